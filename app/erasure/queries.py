"""The SQL of erasures: the job and its receipt, and what it takes away a slice at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app import ledger, operator_events
from app.erasure.search import ERASED, Finds, finder, holds, without
from app.errors import ErasureNotFound
from app.filters import Unindexed
from app.ledger import Entry
from app.mailjet.vocabulary import normal_email
from app.maintenance.expiry import delete_events, deliveries, events, traces
from app.models import (
    AddressSpelling,
    DeliveryState,
    Erasure,
    ErasureState,
    EventTrace,
    KeptPayload,
    Quarantined,
    Replay,
    Send,
    SinkState,
    Suppression,
    SuppressionAct,
)
from app.suppressions.queries import spellings

Row = sa.Row[Any]

erasures: sa.Table = Erasure.__table__  # type: ignore[attr-defined]
_quarantine: sa.Table = Quarantined.__table__  # type: ignore[attr-defined]
_replays: sa.Table = Replay.__table__  # type: ignore[attr-defined]
_sinks: sa.Table = SinkState.__table__  # type: ignore[attr-defined]
_sends: sa.Table = Send.__table__  # type: ignore[attr-defined]
_kept: sa.Table = KeptPayload.__table__  # type: ignore[attr-defined]

CANCELLED = "deliveries_cancelled"
_BESIDE = (
    Erasure, Suppression, SuppressionAct, AddressSpelling, Quarantined, Replay, SinkState, Send, KeptPayload,
    EventTrace,
)  # fmt: skip
BESIDE = tuple(table.__tablename__ for table in _BESIDE)
"""The tables beside the events that an erasure changes, its own among them: it held the address. Too few rows of theirs
are dead afterwards for PostgreSQL to clear them up by itself."""
_SEARCHED = (_sinks.c.last_error, _sinks.c.paused_reason)


# --- the job ---------------------------------------------------------------------------------------------------------


def insert(connection: Connection, values: dict[str, Any]) -> None:
    connection.execute(sa.insert(erasures).values(**values))


def get(connection: Connection, erasure_id: str) -> Row:
    """Raises ErasureNotFound."""
    row = connection.execute(sa.select(erasures).where(erasures.c.id == erasure_id)).first()
    if row is None:
        raise ErasureNotFound("there is no erasure with this id")
    return row


def page(connection: Connection, *, beyond: str | None, descending: bool, limit: int) -> Sequence[Row]:
    """Up to `limit` erasures after the id `beyond`; an id starts with its time."""
    key = erasures.c.id
    statement = sa.select(erasures).order_by(key.desc() if descending else key.asc()).limit(limit)
    if beyond is not None:
        statement = statement.where(key < beyond if descending else key > beyond)
    return connection.execute(statement).all()


def unfinished() -> sa.Select[Any]:
    """There are never many erasures: the key is walked."""
    return sa.select(erasures).where(erasures.c.state == ErasureState.RUNNING.value)


def list_unfinished(connection: Connection) -> Sequence[Row]:
    """Oldest first."""
    return connection.execute(unfinished().order_by(erasures.c.id)).all()


def add_counts(connection: Connection, erasure_id: str, more: Counter[str]) -> None:
    """With what was taken away or not at all: the receipt is right whatever breaks off."""
    mine = erasures.c.id == erasure_id
    told = connection.execute(sa.select(erasures.c.counts).where(mine).with_for_update()).scalar_one()
    counts = Counter(orjson.loads(told))
    counts.update(more)
    connection.execute(sa.update(erasures).where(mine).values(counts=orjson.dumps(counts).decode()))


def finish(connection: Connection, erasure_id: str, now: datetime) -> None:
    values = {"state": ErasureState.DONE.value, "addresses": None, "erased_at": now}
    running = erasures.c.state == ErasureState.RUNNING.value
    connection.execute(sa.update(erasures).where(erasures.c.id == erasure_id, running).values(**values))


# --- events ----------------------------------------------------------------------------------------------------------


def variants(connection: Connection, email: str, *, folded: bool) -> list[str]:
    """The addresses meant, the given one first. Folded, all that differ in case only."""
    if not folded:
        return [email]
    spelled = sa.select(spellings.c.email).where(spellings.c.folded == email.lower())
    return [email, *sorted({email.lower(), *connection.execute(spelled).scalars()} - {email})]


def event_ids(connection: Connection, addresses: Sequence[str], most: int) -> list[str]:
    """Some events of the person."""
    of_them = events.c.email.is_not(None), events.c.email.in_(addresses)
    return list(connection.execute(sa.select(events.c.id).where(*of_them).limit(most)).scalars())


def those_of(connection: Connection, ids: Sequence[str], email: str) -> list[str]:
    """Of these events, those of one address."""
    mine = sa.select(events.c.id).where(events.c.id.in_(ids), Unindexed(events.c.email) == email)
    return list(connection.execute(mine).scalars())


def operator_event_ids(connection: Connection, finds: Finds) -> list[str]:
    """Operator events that name the address, though none should. There are few of them all."""
    statement = sa.select(events.c.id, events.c.raw).where(events.c.webhook == operator_events.WEBHOOK)
    return [row.id for row in connection.execute(statement) if row.raw is not None and holds(row.raw.encode(), finds)]


def erase_events(connection: Connection, ids: Sequence[str]) -> Counter[str]:
    """Delete events with all that belongs to them; table -> rows, and how many deliveries were pending."""
    mine = sa.select(deliveries.c.state).where(deliveries.c.event_id.in_(ids)).order_by(deliveries.c.event_id)
    # Locked before anything goes: who writes an attempt locks the delivery first, so none is written behind our back.
    states = connection.execute(mine.with_for_update()).scalars().all()
    erased = delete_events(connection, lambda key: key.in_(ids), Entry.ERASED)
    connection.execute(sa.delete(_kept).where(_kept.c.event_id.in_(ids)))
    connection.execute(sa.delete(traces).where(traces.c.event_id.in_(ids)))
    erased[CANCELLED] = sum(state == DeliveryState.PENDING for state in states)
    return erased


# --- beside them -----------------------------------------------------------------------------------------------------


def quarantine_sizes(connection: Connection, after: str, most: int) -> list[tuple[str, int]]:
    """(id, bytes) of the next entries by id."""
    statement = sa.select(_quarantine.c.id, sa.func.length(_quarantine.c.body)).where(_quarantine.c.id > after)
    return [(row[0], row[1]) for row in connection.execute(statement.order_by(_quarantine.c.id).limit(most))]


def quarantine_naming(connection: Connection, ids: Sequence[str], finds: Finds) -> list[str]:
    """Of these entries, those that name the address in their body or their reason."""
    statement = sa.select(_quarantine.c.id, _quarantine.c.body, _quarantine.c.reason).where(_quarantine.c.id.in_(ids))
    rows = connection.execute(statement)
    return [row.id for row in rows if holds(bytes(row.body), finds) or holds(row.reason.encode(), finds)]


def delete_quarantine(connection: Connection, ids: Sequence[str]) -> int:
    return ledger.delete_quarantined(connection, _quarantine.c.id.in_(ids), Entry.ERASED)


def erase_selections(connection: Connection, finds: Finds) -> int:
    """Replays that were asked for by the address keep the rest of their selection."""
    changed = 0
    for row in connection.execute(sa.select(_replays.c.id, _replays.c.selection)).all():
        told = without(row.selection, finds) if "@" in row.selection or "\\u" in row.selection else row.selection
        if told != row.selection:
            connection.execute(sa.update(_replays).where(_replays.c.id == row.id).values(selection=told))
            changed += 1
    return changed


def erase_errors(connection: Connection, finds: Finds) -> int:
    """What sinks said last, should they have repeated an address."""
    changed = 0
    for row in connection.execute(sa.select(_sinks.c.name, *_SEARCHED)).mappings().all():
        named = {c.name: None for c in _SEARCHED if row[c.name] and holds(row[c.name].encode(), finds)}
        if named:
            connection.execute(sa.update(_sinks).where(_sinks.c.name == row["name"]).values(**named))
            changed += 1
    return changed


def blank_in_sends(connection: Connection, email: str) -> int:
    """Take the address out of what is kept of requests to send, which is seven days; the number of requests. Mailjet's
    words for why it refused a message may name it too."""
    local, at, _ = email.rpartition("@")
    # By what has to be the same to the letter: databases differ in which letters they make small.
    told = orjson.dumps(local + at if at else email).decode()[1:-1]
    like = _sends.c.messages.contains(told, autoescape=True)
    rows = connection.execute(sa.select(_sends.c.connection, _sends.c.key, _sends.c.messages).where(like)).all()
    blanked = 0
    for row in rows:
        entries = orjson.loads(row.messages)
        if _blank(entries, email):
            here = (_sends.c.connection == row.connection, _sends.c.key == row.key)
            connection.execute(sa.update(_sends).where(*here).values(messages=orjson.dumps(entries).decode()))
            blanked += 1
    return blanked


def _blank(entries: list[dict[str, Any]], email: str) -> bool:
    """Whether any of these messages went to the address, or was refused with a sentence that names it."""
    results = [entry["result"] for entry in entries if entry["result"]]
    people = [one for result in results for one in result.get("recipients", ())]
    mine = [one for one in people if normal_email(one.get("email") or "") == email]
    for one in mine:
        one["email"] = ""
    finds = finder(email, folded=False)
    naming = [fault for result in results for fault in result.get("errors", ()) if finds(fault.get("message") or "")]
    for fault in naming:
        fault["message"] = ERASED
    return bool(mine or naming)
