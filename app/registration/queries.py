"""The SQL of registration: what the last look found, and the foreign callbacks whose place we took."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from app.models import Callback, Event, ReplacedCallback
from app.registration.plan import Original, SlotKey

_callbacks: sa.Table = Callback.__table__  # type: ignore[attr-defined]
_replaced: sa.Table = ReplacedCallback.__table__  # type: ignore[attr-defined]
_events: sa.Table = Event.__table__  # type: ignore[attr-defined]


class CallbackState(StrEnum):
    """What a slot was found to be. `shared` and `pending` are never stored: the reader works them out."""

    OK = "ok"
    SHARED = "shared"
    MISSING = "missing"
    DEAD = "dead"
    FOREIGN = "foreign"
    PENDING = "pending"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Checked:
    """One slot as the last look left it. `held_by` is a URL without its password."""

    connection: str
    type: str
    backup: bool
    state: CallbackState
    holder: str | None
    held_by: str | None
    mailjet_id: str | None
    checked_at: datetime
    error: str | None

    @property
    def key(self) -> SlotKey:
        return SlotKey(self.type, self.backup)


def list_checked(connection: Connection, name: str) -> dict[SlotKey, Checked]:
    """The slots of one Mailjet connection that were looked at."""
    columns = [_callbacks.c[field] for field in Checked.__dataclass_fields__]
    rows = connection.execute(sa.select(*columns).where(_callbacks.c.connection == name)).mappings()
    found = (Checked(**{**row, "state": CallbackState(row["state"]), "backup": bool(row["backup"])}) for row in rows)
    return {checked.key: checked for checked in found}


def record_checked(connection: Connection, rows: Iterable[Checked]) -> None:
    """Write what was found, over what was found before."""
    _upsert(connection, _callbacks, [asdict(row) for row in rows])


def record_failed_look(connection: Connection, rows: Iterable[Checked]) -> None:
    """Write that a look failed: the state, time and error change, what was known of the callback stays."""
    values = [asdict(row) for row in rows]
    _upsert(connection, _callbacks, values, keep=("held_by", "mailjet_id"))


def forget(connection: Connection, name: str, keys: Iterable[SlotKey]) -> None:
    """Drop what was found in these slots."""
    here = _callbacks.c.connection == name
    for key in keys:
        connection.execute(sa.delete(_callbacks).where(here, *_at(_callbacks, key)))


def list_originals(connection: Connection, name: str) -> dict[SlotKey, Original]:
    """The foreign callbacks of one Mailjet connection whose place we took."""
    rows = connection.execute(sa.select(_replaced).where(_replaced.c.connection == name))
    return {SlotKey(row.type, bool(row.backup)): Original(row.url, row.version) for row in rows}


def remember_original(connection: Connection, name: str, key: SlotKey, original: Original, now: datetime) -> None:
    """Keep a foreign callback before it is replaced. A newer foreign one takes the place of an older."""
    values = {"connection": name, **key._asdict(), **original._asdict(), "replaced_at": now}
    _upsert(connection, _replaced, [values])


def forget_original(connection: Connection, name: str, key: SlotKey) -> None:
    connection.execute(sa.delete(_replaced).where(_replaced.c.connection == name, *_at(_replaced, key)))


def last_event_at(connection: Connection, webhook: str, event_type: str) -> datetime | None:
    """When we received the newest event of one type at one webhook. One step into the index, however many there are."""
    newest = (
        sa.select(_events.c.received_at)
        .where(_events.c.webhook == webhook, _events.c.type == event_type)
        .order_by(_events.c.id.desc())
        .limit(1)
    )
    moment: datetime | None = connection.execute(newest).scalar_one_or_none()
    return moment


def _at(table: sa.Table, key: SlotKey) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return table.c.type == key.type, table.c.backup == key.backup


def _upsert(
    connection: Connection, table: sa.Table, rows: Sequence[dict[str, Any]], *, keep: Collection[str] = ()
) -> None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    keys = [column.name for column in table.primary_key]
    last = {tuple(row[key] for key in keys): row for row in rows}  # fourteen at most; PostgreSQL takes none twice
    if not last:
        return
    statement = insert(table).values(list(last.values()))
    changes = {name: statement.excluded[name] for name in rows[0] if name not in keys and name not in keep}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes))
