"""Parts of the statements on the counts: which cells, which time, by what they are grouped."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app import operator_events
from app.filters import Condition, EventFilters
from app.rollups.cells import ALL_FIELDS, TOP_LEVEL, Unit, View
from app.rollups.store import cells, counts, members
from app.stats.asking import Question, Span, used_filters

Parts = list[sa.ColumnElement[Any]]


def cell_conditions(filters: EventFilters) -> list[Condition]:
    """The event filters on cells, with the same meaning as on events."""
    conditions: list[Condition] = []
    if not (filters.webhook or filters.type):
        conditions.append(cells.c.webhook != operator_events.WEBHOOK)
    asked = {name: values for name in ALL_FIELDS if (values := getattr(filters, name, None))}
    return conditions + [cells.c[name].in_(list(dict.fromkeys(values))) for name, values in asked.items()]


def of_cells(column: sa.ColumnElement[int], view: View, filters: EventFilters) -> list[Condition]:
    """The same on a column that names cells of `view`. Nearly all cells fit where only tests and operator events are
    left out: then those are named that do not."""
    conditions = sa.and_(*cell_conditions(filters))
    ids = sa.select(cells.c.id).where(cells.c.view == int(view))
    if used_filters(filters) <= {"test"}:
        return [column.not_in(ids.where(sa.not_(conditions)))]
    return [column.in_(ids.where(conditions))]


def bucket_of(question: Question, start: sa.ColumnElement[int], unit: Unit) -> sa.ColumnElement[int]:
    if question.interval is None:
        return sa.literal_column("0")
    return start if question.interval == "hour" or unit is Unit.DAY else start // sa.literal_column("24", sa.Integer)


def grouped(question: Question, start: sa.ColumnElement[int], unit: Unit) -> Parts:
    return [bucket_of(question, start, unit).label("bucket"), *(cells.c[name] for name in question.group_by)]


def parted(question: Question, keys: Parts) -> Parts:
    """What to group by: PostgreSQL takes a plain 0 for the place of a column."""
    return keys if question.interval is not None else keys[1:]


def within(view: View, span: Span) -> list[Condition]:
    place = (counts.c.view == int(view), counts.c.unit == int(span.unit))
    return [*place, counts.c.start >= span.start, counts.c.start < span.end]


def between(hours: tuple[int, int]) -> list[Condition]:
    return [members.c.hour >= hours[0], members.c.hour < hours[1]]


def of_levels(lowest: int) -> list[Condition]:
    # One by one: the key begins with the level, and a range of it would hide the hours from the index.
    return [members.c.level.in_(range(lowest, TOP_LEVEL + 1))]


def totals(connection: Connection, span: Span, bucket: sa.ColumnElement[int]) -> list[tuple[int, int]]:
    """(bucket, all its events)."""
    summed = sa.cast(sa.func.sum(counts.c.count), sa.BigInteger)
    wanted = sa.select(bucket.label("bucket"), summed).where(*within(View.TOTAL, span)).group_by(bucket)
    return [(int(row[0]), int(row[1])) for row in connection.execute(wanted)]


def total(connection: Connection, span: Span) -> int:
    """All events of a span, whatever they are."""
    wanted = sa.select(sa.func.coalesce(sa.func.sum(counts.c.count), 0)).where(*within(View.TOTAL, span))
    return int(connection.execute(wanted).scalar_one())
