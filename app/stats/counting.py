"""How many events there were, from the counts.

The database adds up by cell, which is a number, and what a cell stands for is looked up afterwards: that takes a fifth
of the time of joining each count with its cell and grouping by their texts.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.rollups.cells import ALL_FIELDS, Unit, View
from app.rollups.store import counts, members
from app.stats.answering import Row, Rows
from app.stats.asking import Plan, Question, Span, too_much
from app.stats.memory import Memory
from app.stats.statements import between, bucket_of, of_cells, of_levels, parted, total, within

MOST_CELL_ROWS = 100_000  # of one statement
MOST_WHOLE = 100_000  # events looked at where the question's fields are in no view together

_KIND = tuple(ALL_FIELDS.index(name) for name in ("type", "outcome", "automated"))


def count(connection: Connection, question: Question, how: Plan, memory: Memory) -> Rows:
    """The rows of counted events, without uniques. Raises Invalid where that takes too long."""
    assert how.view is not None
    if how.view is View.WHOLE:
        if sum(total(connection, span) for span in how.spans) > MOST_WHOLE:
            raise too_much("these fields together are counted event by event: ask for a shorter time")
        statements = [whole_statement(question, how.hours)]
    else:
        statements = [counted_statement(question, how.view, span) for span in how.spans]
    found = [row for statement in statements for row in _read(connection, statement)]
    group = [ALL_FIELDS.index(name) for name in question.group_by]
    parts = {
        cell: (tuple(values[at] for at in group), tuple(values[at] for at in _KIND))
        for cell, values in memory.read_cells(connection, {row[1] for row in found}).items()
    }
    rows: Rows = {}
    for bucket, cell, number in found:
        values, kind = parts[cell]
        key = (bucket, *values)
        row = rows.get(key)
        if row is None:
            row = rows[key] = Row()
        row.kinds[kind] += number
    return rows


def counted_statement(question: Question, view: View, span: Span) -> sa.Select[Any]:
    """(bucket, cell, events)."""
    bucket = bucket_of(question, counts.c.start, span.unit).label("bucket")
    summed = sa.cast(sa.func.sum(counts.c.count), sa.BigInteger)
    return (
        sa.select(bucket, counts.c.cell, summed)
        .where(*within(view, span), *of_cells(counts.c.cell, view, question.filters))
        .group_by(*parted(question, [bucket]), counts.c.cell)
    )


def whole_statement(question: Question, hours: tuple[int, int]) -> sa.Select[Any]:
    """The same from the single events, where no view has all the fields."""
    bucket = bucket_of(question, members.c.hour, Unit.HOUR).label("bucket")
    return (
        sa.select(bucket, members.c.cell, sa.func.count())
        .where(*of_levels(0), *between(hours), *of_cells(members.c.cell, View.WHOLE, question.filters))
        .group_by(*parted(question, [bucket]), members.c.cell)
    )


def _read(connection: Connection, statement: sa.Select[Any]) -> list[Any]:
    found = list(connection.execute(statement.limit(MOST_CELL_ROWS + 1)))
    if len(found) > MOST_CELL_ROWS:
        raise too_much(f"more than {MOST_CELL_ROWS} counts: ask for a shorter time, fewer groups or a narrower filter")
    return found
