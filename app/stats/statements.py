"""Parts of the statements on the counts: which cells, which time, by what they are grouped.

SQLAlchemy takes as long to make a statement as a database takes to run one that finds little, so each is made once for
a shape of questions, with times as its parameters.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app import operator_events
from app.filters import Condition, EventFilters
from app.rollups.cells import ALL_FIELDS, TOP_LEVEL, Unit, View
from app.rollups.store import cells, counts, members
from app.stats.asking import Shape, Span, used_filters

Parts = list[sa.ColumnElement[Any]]

made_once = lru_cache(maxsize=128)
"""For a function that makes a statement."""


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


def bucket_of(shape: Shape, start: sa.ColumnElement[int], unit: Unit) -> sa.ColumnElement[int]:
    if shape.interval is None:
        return sa.literal_column("0")
    return start if shape.interval == "hour" or unit is Unit.DAY else start // sa.literal_column("24", sa.Integer)


def grouped(shape: Shape, start: sa.ColumnElement[int], unit: Unit) -> Parts:
    return [bucket_of(shape, start, unit).label("bucket"), *(cells.c[name] for name in shape.group_by)]


def parted(shape: Shape, keys: Parts) -> Parts:
    """What to group by: PostgreSQL takes a plain 0 for the place of a column."""
    return keys if shape.interval is not None else keys[1:]


def within(view: View, unit: Unit) -> list[Condition]:
    """Counts of the units in the parameters `first` and `beyond`."""
    return [counts.c.view == int(view), counts.c.unit == int(unit), *_from_to(counts.c.start)]


def between() -> list[Condition]:
    """Members of the hours in the parameters `first` and `beyond`."""
    return _from_to(members.c.hour)


def _from_to(start: sa.ColumnElement[int]) -> list[Condition]:
    return [
        start >= sa.bindparam("first", type_=sa.BigInteger()),
        start < sa.bindparam("beyond", type_=sa.BigInteger()),
    ]


def from_to(first: int, beyond: int) -> dict[str, int]:
    return {"first": first, "beyond": beyond}


def of_levels(lowest: int) -> list[Condition]:
    # One by one: the key begins with the level, and a range of it would hide the hours from the index.
    return [members.c.level.in_(range(lowest, TOP_LEVEL + 1))]


def totals(connection: Connection, shape: Shape, span: Span) -> list[tuple[int, int]]:
    """(bucket, all its events)."""
    found = connection.execute(_totals_statement(shape, span.unit), from_to(span.start, span.end))
    return [(int(row[0]), int(row[1])) for row in found]


def total(connection: Connection, span: Span) -> int:
    """All events of a span, whatever they are."""
    return int(connection.execute(_total_statement(span.unit), from_to(span.start, span.end)).scalar_one())


@made_once
def _totals_statement(shape: Shape, unit: Unit) -> sa.Select[Any]:
    keys: Parts = [bucket_of(shape, counts.c.start, unit).label("bucket")]
    summed = sa.cast(sa.func.sum(counts.c.count), sa.BigInteger)
    return sa.select(*keys, summed).where(*within(View.TOTAL, unit)).group_by(*keys)


@made_once
def _total_statement(unit: Unit) -> sa.Select[Any]:
    return sa.select(sa.func.coalesce(sa.func.sum(counts.c.count), 0)).where(*within(View.TOTAL, unit))
