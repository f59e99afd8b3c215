"""Pages that end. A page is sought for as long as it takes to fill it, but not for ever.

A filter that no index serves can refuse a million rows in a row. Then the page ends after a while with what it has
found, be it nothing, and its cursor goes on from there, as in DynamoDB's scans: a walk over all pages misses nothing,
and no reader holds a connection for minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.db import read_many
from app.query.cursor import Position
from app.query.walks import Keys, Walk, merged_page, position_of

Row = Mapping[str, Any]
Enough = Callable[[], bool]

DEFAULT_SECONDS = 2.0
FIRST_STEP = 2_000  # rows; found along the index in 0.1 ms, read in 5
LARGEST_STEP = 32_000  # 0.1 to 0.3 s, by which a page can be late
GROWTH = 4
MANY = 200  # rows from which on it pays to read them as one value
_BY_INDEX = "SELECT " + ", ".join(
    f"set_config('enable_{way}', 'off', true)" for way in ("seqscan", "bitmapscan", "sort", "incremental_sort")
)


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a list. `beyond` is where it goes on; None: nothing follows."""

    rows: Sequence[Row]
    beyond: Position | None

    @property
    def has_more(self) -> bool:
        return self.beyond is not None


def within(seconds: float) -> Enough:
    """True once that long has passed since now."""
    give_up = time.monotonic() + seconds
    return lambda: time.monotonic() >= give_up


def read_walk(connection: Connection, walk: Walk, limit: int, enough: Enough) -> Page:
    """The next rows of a walk: `limit` of them, or as many as are met until it is `enough`."""
    if not walk.besides:
        return page_of(fetch(connection, walk.page(limit + 1), limit), walk.keys, limit)
    rows: list[Row] = []
    step = FIRST_STEP
    while True:
        edge = _edge(connection, walk, step)
        part = walk if edge is None else walk.upto(edge)
        rows += fetch(connection, part.page(limit + 1 - len(rows)), limit)
        if edge is None or len(rows) > limit:
            return page_of(rows, walk.keys, limit)
        if len(rows) == limit or enough():
            return Page(rows, edge)
        walk = walk.after(edge)
        step = min(step * GROWTH, LARGEST_STEP)


def read_merged(connection: Connection, walks: Sequence[Walk], limit: int) -> Page:
    return page_of(fetch(connection, merged_page(walks, limit + 1), limit), walks[0].keys, limit)


def page_of(rows: Sequence[Row], keys: Keys, limit: int) -> Page:
    """Of one row more than the limit, which tells whether more follow."""
    shown = rows[:limit]
    return Page(shown, position_of(shown[-1], keys) if len(rows) > limit else None)


def is_few(
    connection: Connection, rows: sa.FromClause, conditions: Sequence[sa.ColumnElement[bool]], most: int
) -> bool:
    """Do at most `most` rows fit? Counts no further, and along the index that serves the conditions."""
    found = sa.select(sa.literal(1)).select_from(rows).where(*conditions).limit(most + 1).subquery()
    return int(connection.execute(sa.select(sa.func.count()).select_from(found)).scalar_one()) <= most


def by_index(connection: Connection) -> None:
    """PostgreSQL's idea of how common a value is can be a day old, and a table can have grown a thousandfold since: in
    this transaction it reads no whole table, and sorts only where no index has the order."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_BY_INDEX)


def fetch(connection: Connection, statement: sa.Select[Any], about: int = 1) -> list[Row]:
    """The rows of a statement that finds `about` so many; of many, times are in microseconds and not `datetime`."""
    names = tuple(statement.selected_columns.keys())
    is_many = about >= MANY and not any(
        isinstance(column.type, sa.LargeBinary) for column in statement.selected_columns
    )
    rows: Sequence[Sequence[Any]] = read_many(connection, statement) if is_many else connection.execute(statement).all()
    return [dict(zip(names, row, strict=True)) for row in rows]


def _edge(connection: Connection, walk: Walk, rows: int) -> Position | None:
    found = fetch(connection, walk.edge(rows))
    return position_of(found[0], walk.keys) if found else None
