"""The tables that statistics are kept in: counting events in, and taking them out again.

Every change holds the one row of `stat_progress` locked, so that two who count never count the same event, and whoever
deletes events knows for certain which of them were counted.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import chain
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.clock import to_micros
from app.db import chunks, insert_missing, run_driver_sql
from app.models import Event, StatCell, StatCount, StatMember, StatProgress
from app.rollups.cells import (
    ALL_FIELDS,
    COUNTED,
    FIELDS,
    HOUR_MICROS,
    HOURS_OF_A_DAY,
    TOP_LEVEL,
    Cells,
    Fact,
    Unit,
    View,
    cells_of,
    member_of,
    parts_of,
)

events: sa.Table = Event.__table__  # type: ignore[attr-defined]
cells: sa.Table = StatCell.__table__  # type: ignore[attr-defined]
counts: sa.Table = StatCount.__table__  # type: ignore[attr-defined]
members: sa.Table = StatMember.__table__  # type: ignore[attr-defined]
_progress: sa.Table = StatProgress.__table__  # type: ignore[attr-defined]
_wanted = sa.select(_progress.c.seq, _progress.c.digest_key, _progress.c.changes)
_wanted_alone = _wanted.with_for_update()
_advanced = sa.update(_progress).values(seq=sa.bindparam("upto"))

FACT_COLUMNS = (
    events.c.seq,
    sa.type_coerce(events.c.occurred_at, sa.BigInteger).label("occurred_micros"),
    events.c.email,
    events.c.message_id,
    *(events.c[name] for name in ALL_FIELDS),
)
_CELL_COLUMNS = ("id", "view", *ALL_FIELDS)
_MEMBER_COLUMNS = ("level", "hour", "seq", "cell", "recipient", "message")
IDS_AT_ONCE = 512

CountKey = tuple[int, int, int, int]
"""(view, unit, start, cell)"""


@dataclass(frozen=True, slots=True)
class Progress:
    """Events up to `seq` are counted; `key` makes the digests of whom they are about."""

    seq: int = 0
    key: bytes = b""
    changes: int = 0


@dataclass(slots=True)
class KnownCells:
    """Cells that are in the table for certain; those of a transaction under way only once `confirm` says so."""

    MOST = 100_000

    of: dict[tuple[Any, ...], Cells] = field(default_factory=dict)
    stored: set[int] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)

    def look_up(self, values: tuple[Any, ...]) -> Cells:
        found = self.of.get(values)
        if found is None:
            if len(self.of) >= self.MOST:
                self.of.clear()
            found = self.of[values] = cells_of(values)
        return found

    def confirm(self) -> None:
        """The transaction that needed the pending ones was committed."""
        if len(self.stored) > 4 * self.MOST:
            self.stored.clear()
        self.stored |= self.pending
        self.pending = set()


# --- progress --------------------------------------------------------------------------------------------------------


def uncounted() -> sa.Select[Any]:
    """Events beyond what is counted."""
    counted = sa.select(_progress.c.seq).scalar_subquery()
    return sa.select(events.c.seq).where(events.c.seq > sa.func.coalesce(counted, 0))


def read_progress(connection: Connection) -> Progress:
    row = connection.execute(_wanted).first()
    return Progress() if row is None else Progress(row.seq, bytes(row.digest_key), row.changes)


def lock_progress(connection: Connection) -> Progress:
    """The progress, which nobody else changes before this transaction ends; made where there is none yet."""
    row = connection.execute(_wanted_alone).first()
    if row is None:
        fresh = (1, 0, 0, secrets.token_bytes(16))
        insert_missing(connection, _progress, ("id", "seq", "changes", "digest_key"), [fresh])
        row = connection.execute(_wanted_alone).one()
    return Progress(row.seq, bytes(row.digest_key), row.changes)


def note_change(connection: Connection) -> None:
    """Something was taken out, so that the number of events no longer tells whether anything is new."""
    connection.execute(sa.update(_progress).values(changes=_progress.c.changes + 1))


def advance(connection: Connection, seq: int) -> None:
    connection.execute(_advanced, {"upto": seq})


# --- counting --------------------------------------------------------------------------------------------------------


def fact_of(row: Sequence[Any]) -> Fact:
    """A row of `FACT_COLUMNS`."""
    return Fact(row[0], row[1], row[2], row[3], tuple(row[4:]))


def add(connection: Connection, facts: Sequence[Fact], key: bytes, known: KnownCells) -> None:
    """Count events that are not counted yet. Needs the lock."""
    tally: Counter[CountKey] = Counter()
    rows = []
    fresh: dict[int, tuple[Any, ...]] = {}
    for fact in facts:
        found = known.look_up(fact.values)
        if found.whole not in known.stored:
            fresh.update(_cell_rows(found, fact.values, known))
        tally.update(_count_keys(found, fact.hour))
        rows.append(tuple(member_of(fact, found.whole, key)))
    insert_missing(connection, cells, _CELL_COLUMNS, [fresh[id] for id in sorted(fresh)])
    known.pending.update(fresh)
    _add_counts(connection, tally)
    insert_missing(connection, members, _MEMBER_COLUMNS, rows)


def subtract(connection: Connection, facts: Sequence[Fact], key: bytes) -> None:
    """Take counted events out again. What was dropped for its age stays so. Needs the lock."""
    note_change(connection)
    tally: Counter[CountKey] = Counter()
    places = []
    for fact in facts:
        found = cells_of(fact.values)
        tally.update(_count_keys(found, fact.hour))
        places.append(member_of(fact, found.whole, key)[:3])
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    where = " AND ".join(f"{name} = {mark}" for name in ("view", "unit", "start", "cell"))
    for count_key, count in sorted(tally.items()):
        run_driver_sql(connection, f"UPDATE stat_counts SET count = count - {mark} WHERE {where}", (count, *count_key))  # noqa: S608
        run_driver_sql(connection, f"DELETE FROM stat_counts WHERE {where} AND count <= 0", count_key)  # noqa: S608
    for place in places:
        run_driver_sql(
            connection, f"DELETE FROM stat_members WHERE level = {mark} AND hour = {mark} AND seq = {mark}", place  # noqa: S608
        )  # fmt: skip


def uncount(connection: Connection, event_ids: Iterable[str]) -> int:
    """Take events out of the statistics, for one who deletes them because they must not have been; how many were in.

    Within the transaction that deletes them, and before it does: only then is certain what was counted. Events not
    counted yet simply never will be. Deleting events for their age calls nothing: their counts stay.
    """
    progress = lock_progress(connection)
    taken = 0
    for ids in chunks(list(event_ids), IDS_AT_ONCE):
        wanted = sa.select(*FACT_COLUMNS).where(events.c.id.in_(ids), events.c.seq <= progress.seq)
        facts = [fact_of(row) for row in connection.execute(wanted)]
        subtract(connection, facts, progress.key)
        taken += len(facts)
    return taken


def drop_before(connection: Connection, moment: datetime) -> int:
    """Forget the statistics of the days that ended before `moment`; the rows deleted."""
    lock_progress(connection)
    note_change(connection)
    day = to_micros(moment) // (HOUR_MICROS * HOURS_OF_A_DAY)
    deleted = 0
    for view in COUNTED:
        for unit, start in ((Unit.HOUR, day * HOURS_OF_A_DAY), (Unit.DAY, day)):
            old = sa.and_(counts.c.view == int(view), counts.c.unit == int(unit), counts.c.start < start)
            deleted += connection.execute(sa.delete(counts).where(old)).rowcount
    for level in range(TOP_LEVEL + 1):
        aged = sa.and_(members.c.level == level, members.c.hour < day * HOURS_OF_A_DAY)
        deleted += connection.execute(sa.delete(members).where(aged)).rowcount
    return deleted


def _cell_rows(found: Cells, values: tuple[Any, ...], known: KnownCells) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """(id, row) of the event's cells that may not be there."""
    ids = {**dict(found.counted), View.WHOLE: found.whole}
    for view, part in parts_of(values):
        if ids[view] not in known.stored:
            told = dict(zip(FIELDS[view], part, strict=True))
            yield ids[view], (ids[view], int(view), *(told.get(name) for name in ALL_FIELDS))


def _count_keys(found: Cells, hour: int) -> Iterator[CountKey]:
    day = hour // HOURS_OF_A_DAY
    for view, cell in found.counted:
        yield int(view), int(Unit.HOUR), hour, cell
        yield int(view), int(Unit.DAY), day, cell


def _add_counts(connection: Connection, tally: Counter[CountKey]) -> None:
    rows = [(*count_key, count) for count_key, count in sorted(tally.items())]
    for chunk in chunks(rows):
        sql = _upsert_sql(len(chunk), connection.dialect.name)
        run_driver_sql(connection, sql, tuple(chain.from_iterable(chunk))).close()


@lru_cache(maxsize=256)
def _upsert_sql(rows: int, dialect: str) -> str:
    row = "(?, ?, ?, ?, ?)" if dialect == "sqlite" else "(%s, %s, %s, %s, %s)"
    return (
        f"INSERT INTO stat_counts (view, unit, start, cell, count) VALUES {', '.join([row] * rows)}"  # noqa: S608
        " ON CONFLICT (view, unit, start, cell) DO UPDATE SET count = stat_counts.count + excluded.count"
    )
