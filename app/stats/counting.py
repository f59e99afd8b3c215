"""How many events there were, from the counts.

The database adds up by cell, which is a number, and what a cell stands for is looked up afterwards: that takes a fifth
of the time of joining each count with its cell and grouping by their texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.db import read_many
from app.rollups.cells import ALL_FIELDS, Unit, View
from app.rollups.store import Progress, counts, members
from app.stats.answering import Row, Rows
from app.stats.asking import Plan, Question, Shape, Span, too_much
from app.stats.memory import Memory
from app.stats.statements import (
    between,
    bucket_of,
    from_to,
    made_once,
    of_cells,
    of_levels,
    parted,
    total,
    within,
)

MOST_CELL_ROWS = 100_000  # of one statement
MOST_WHOLE = 100_000  # events looked at where the question's fields are in no view together
_FOUND_BYTES = 200

_KIND = tuple(ALL_FIELDS.index(name) for name in ("type", "outcome", "automated"))


def count(connection: Connection, question: Question, how: Plan, progress: Progress, memory: Memory) -> Rows:
    """The rows of counted events, without uniques. Raises Invalid where that takes too long."""
    assert how.view is not None
    if how.view is View.WHOLE:
        if sum(total(connection, span) for span in how.spans) > MOST_WHOLE:
            raise too_much("these fields together are counted event by event: ask for a shorter time")
        reads = [_read(connection, whole_statement(question.shape), how.hours)]
    else:
        reads = [_read_span(connection, question, how.view, span, progress, memory) for span in how.spans]
    return _summed([row for read in reads for row in read], question, connection, memory)


def _summed(found: Sequence[Any], question: Question, connection: Connection, memory: Memory) -> Rows:
    """(bucket, cell, events) -> rows. Thousands of them for a few hundred rows: they are added up under whole numbers,
    which takes a fifth of the time of a key's tuple each."""
    group = [ALL_FIELDS.index(name) for name in question.group_by]
    numbers: dict[tuple[Any, ...], int] = {}
    number_of: dict[int, int] = {}
    for cell, values in memory.read_cells(connection, {row[1] for row in found}).items():
        part = (tuple([values[at] for at in group]), tuple([values[at] for at in _KIND]))
        number_of[cell] = numbers.setdefault(part, len(numbers))
    sums: defaultdict[int, int] = defaultdict(int)
    width = len(numbers) or 1
    for bucket, cell, events in found:
        sums[bucket * width + number_of[cell]] += events
    parts = list(numbers)
    rows: Rows = {}
    for place, events in sums.items():
        bucket, number = divmod(place, width)
        group_values, kind = parts[number]
        key = (bucket, *group_values)
        row = rows.get(key)
        if row is None:
            row = rows[key] = Row()
        row.add(kind, events)
    return rows


def _read_span(
    connection: Connection, question: Question, view: View, span: Span, progress: Progress, memory: Memory
) -> Sequence[Any]:
    """Of a table the days before the last one are added up once, and hold as long as the number of all their events."""
    if question.interval is not None or span.unit is Unit.HOUR:
        return _read(connection, counted_statement(question.shape, view, span.unit), (span.start, span.end))
    statement = counted_statement(question.shape, view, span.unit)
    last = connection.execute(_last_statement(span.unit), from_to(span.start, span.end)).scalar() or span.start
    past = Span(span.unit, span.start, last)
    state = (past, progress.changes, progress.key, total(connection, past))
    key = ("counts", question.shape, view, *state)
    found: Sequence[Any] | None = memory.get(key)
    if found is None:
        found = _read(connection, statement, (past.start, past.end))
        memory.put(key, found, len(found) * _FOUND_BYTES)
    return [*found, *_read(connection, statement, (last, span.end))]


@made_once
def _last_statement(unit: Unit) -> sa.Select[Any]:
    return sa.select(sa.func.max(counts.c.start)).where(*within(View.TOTAL, unit))


@made_once
def counted_statement(shape: Shape, view: View, unit: Unit) -> sa.Select[Any]:
    """(bucket, cell, events)."""
    bucket = bucket_of(shape, counts.c.start, unit).label("bucket")
    summed = sa.cast(sa.func.sum(counts.c.count), sa.BigInteger)
    return (
        sa.select(bucket, counts.c.cell, summed)
        .where(*within(view, unit), *of_cells(counts.c.cell, view, shape.filters))
        .group_by(*parted(shape, [bucket]), counts.c.cell)
        .limit(MOST_CELL_ROWS + 1)
    )


@made_once
def whole_statement(shape: Shape) -> sa.Select[Any]:
    """The same from the single events, where no view has all the fields."""
    bucket = bucket_of(shape, members.c.hour, Unit.HOUR).label("bucket")
    return (
        sa.select(bucket, members.c.cell, sa.func.count())
        .where(*of_levels(0), *between(), *of_cells(members.c.cell, View.WHOLE, shape.filters))
        .group_by(*parted(shape, [bucket]), members.c.cell)
        .limit(MOST_CELL_ROWS + 1)
    )


def _read(connection: Connection, statement: sa.Select[Any], units: tuple[int, int]) -> Sequence[Any]:
    found = read_many(connection, statement, from_to(*units))
    if len(found) > MOST_CELL_ROWS:
        raise too_much(f"more than {MOST_CELL_ROWS} counts: ask for a shorter time, fewer groups or a narrower filter")
    return found
