"""Statistics made anew from the events, a day in one transaction.

Days of which events were deleted or redacted for their age cannot be counted again: where fewer events are kept whole
than were counted, the day stays as it is. So nothing is lost, and a day that was counted too high is not mended by
this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.clock import from_micros
from app.db import Database
from app.partitions import first_id
from app.rollups.cells import COUNTED, HOUR_MICROS, HOURS_OF_A_DAY, TOP_LEVEL, Unit, View
from app.rollups.store import (
    FACT_COLUMNS,
    KnownCells,
    Progress,
    add,
    counts,
    events,
    fact_of,
    lock_progress,
    members,
    note_change,
)

DAY_MICROS = HOUR_MICROS * HOURS_OF_A_DAY
AT_ONCE = 1000


@dataclass(slots=True)
class Rebuilt:
    """Days counted again, those left as they were, and the events counted."""

    days: int = 0
    kept: int = 0
    events: int = 0


def rebuild_stats(database: Database, on_progress: Callable[[Rebuilt], None] = lambda done: None) -> Rebuilt:
    """Count every day again whose events are all there. What is not counted yet is left to the usual pass; it may go
    on meanwhile, and so may everything else."""
    done = Rebuilt()
    known = KnownCells()
    day = _next_day(database, 0)
    while day is not None:
        counted = database.write(lambda connection, day=day: _rebuild_day(connection, day, known))  # type: ignore[misc]
        known.confirm()
        done.days += counted is not None
        done.kept += counted is None
        done.events += counted or 0
        on_progress(done)
        day = _next_day(database, day + 1)
    return done


def _next_day(database: Database, day: int) -> int | None:
    """The first day from `day` on that has events or counts."""
    place = (counts.c.view == int(View.TOTAL), counts.c.unit == int(Unit.DAY))
    with database.reading() as connection:
        counted = connection.execute(
            sa.select(sa.func.min(counts.c.start)).where(*place, counts.c.start >= day)
        ).scalar()
        following = sa.select(events.c.occurred_at).where(events.c.id >= _id_of(day)).order_by(events.c.id).limit(1)
        moment = connection.execute(following.with_only_columns(_micros)).scalar()
    found = [*([] if counted is None else [counted]), *([] if moment is None else [moment // DAY_MICROS])]
    return min(found, default=None)


_micros = sa.type_coerce(events.c.occurred_at, sa.BigInteger)


def _id_of(day: int) -> str:
    return first_id(from_micros(day * DAY_MICROS))


def _rebuild_day(connection: Connection, day: int, known: KnownCells) -> int | None:
    """How many events were counted; None where fewer are kept, with whom they are about, than were counted."""
    known.pending = set()
    progress = lock_progress(connection)
    place = (counts.c.view == int(View.TOTAL), counts.c.unit == int(Unit.DAY), counts.c.start == day)
    counted = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(counts.c.count), 0)).where(*place)).scalar_one()
    kept = sa.select(sa.func.count()).select_from(events).where(*_of_day(day, progress), events.c.raw.is_not(None))
    if connection.execute(kept).scalar_one() < counted:
        return None
    _clear(connection, day)
    return sum(_add_page(connection, rows, progress, known) for rows in _pages(connection, day, progress))


def _of_day(day: int, progress: Progress) -> list[sa.ColumnElement[bool]]:
    within = [events.c.id >= _id_of(day), events.c.id < _id_of(day + 1)]
    return [*within, events.c.seq + 0 <= progress.seq]


def _clear(connection: Connection, day: int) -> None:
    note_change(connection)
    first, beyond = day * HOURS_OF_A_DAY, (day + 1) * HOURS_OF_A_DAY
    for view in COUNTED:
        for unit, start, end in ((Unit.HOUR, first, beyond), (Unit.DAY, day, day + 1)):
            place = (counts.c.view == int(view), counts.c.unit == int(unit))
            connection.execute(sa.delete(counts).where(*place, counts.c.start >= start, counts.c.start < end))
    for level in range(TOP_LEVEL + 1):
        hours = (members.c.hour >= first, members.c.hour < beyond)
        connection.execute(sa.delete(members).where(members.c.level == level, *hours))


def _pages(connection: Connection, day: int, progress: Progress) -> Iterator[list[sa.Row[tuple[object, ...]]]]:
    """The day's counted events in the order of their ids, some at a time; each row has its id in front."""
    after = ""
    while True:
        wanted = sa.select(events.c.id, *FACT_COLUMNS).where(*_of_day(day, progress), events.c.id > after)
        rows = list(connection.execute(wanted.order_by(events.c.id).limit(AT_ONCE)))
        if not rows:
            return
        yield rows
        after = str(rows[-1][0])


def _add_page(
    connection: Connection, rows: list[sa.Row[tuple[object, ...]]], progress: Progress, known: KnownCells
) -> int:
    add(connection, [fact_of(row[1:]) for row in rows], progress.key, known)
    return len(rows)
