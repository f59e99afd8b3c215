"""The SQL of completeness: what is stored of a day, by the statistics, and what comparing found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from app.completeness.figures import INCOMPLETE, Compared, ratio_of
from app.models import Completeness, CompletenessLook
from app.query.cursor import Position
from app.query.pages import by_index
from app.rollups.cells import Unit, View
from app.rollups.store import cells, counts

found: sa.Table = Completeness.__table__  # type: ignore[attr-defined]
looks: sa.Table = CompletenessLook.__table__  # type: ignore[attr-defined]
KEYS = (found.c.day, found.c.connection, found.c.type)
Row = sa.Row[Any]


@dataclass(frozen=True, slots=True)
class Week:
    """The settled days of the last look together, of one connection and type."""

    connection: str
    type: str
    first_day: int
    expected: int
    stored: int

    @property
    def ratio(self) -> float | None:
        return ratio_of(self.expected, self.stored)

    @property
    def is_incomplete(self) -> bool:
        return self.ratio is not None and self.ratio < INCOMPLETE


def _of_days(webhooks: Collection[str]) -> list[sa.ColumnElement[bool]]:
    by_day = [counts.c.view == int(View.TOTAL), counts.c.unit == int(Unit.DAY)]
    return [*by_day, cells.c.webhook.in_(webhooks), cells.c.test == sa.false()]


def stored_by_day(connection: Connection, webhooks: Collection[str], days: range) -> dict[tuple[int, str], int]:
    """(day, type) -> events, of the webhook that has the most: each webhook that watches a type stores the same."""
    statement = (
        sa.select(counts.c.start, cells.c.type, cells.c.webhook, sa.func.sum(counts.c.count))
        .select_from(counts.join(cells, cells.c.id == counts.c.cell))
        .where(*_of_days(webhooks), counts.c.start.between(days.start, days.stop - 1))
        .group_by(counts.c.start, cells.c.type, cells.c.webhook)
    )
    most: dict[tuple[int, str], int] = defaultdict(int)
    for day, event_type, _, number in connection.execute(statement):
        most[day, event_type] = max(most[day, event_type], int(number))
    return most


def first_day(connection: Connection, webhooks: Collection[str]) -> int | None:
    """Of which events are counted."""
    statement = sa.select(sa.func.min(counts.c.start)).select_from(counts.join(cells, cells.c.id == counts.c.cell))
    day: int | None = connection.execute(statement.where(*_of_days(webhooks))).scalar_one_or_none()
    return day


# --- what was found --------------------------------------------------------------------------------------------------


def find_look(connection: Connection, name: str) -> Row | None:
    return connection.execute(sa.select(looks).where(looks.c.connection == name)).one_or_none()


def record_look(connection: Connection, name: str, begun_on: int, now: datetime, error: str | None) -> None:
    values = {"connection": name, "begun_on": begun_on, "looked_at": now, "error": error}
    _upsert(connection, looks, values)


def record(connection: Connection, rows: Iterable[Compared], now: datetime) -> None:
    for row in rows:
        values = {"day": row.day, "connection": row.connection, "type": row.type, "expected": row.expected,
                  "stored": row.stored, "checked_at": now}  # fmt: skip
        _upsert(connection, found, values)


def drop_before(connection: Connection, day: int) -> None:
    connection.execute(sa.delete(found).where(found.c.day < day))


def page(
    connection: Connection, conditions: Sequence[sa.ColumnElement[bool]], position: Position | None, *,
    descending: bool, limit: int,
) -> tuple[Sequence[Row], bool]:  # fmt: skip
    """(the rows after `position` (day, connection, type), whether more follow)."""
    by_index(connection)
    wanted = sa.select(found).where(*conditions)
    if position is not None:
        values = [sa.literal(value, key.type) for value, key in zip(position, KEYS, strict=True)]
        here, there = sa.tuple_(*KEYS), sa.tuple_(*values)
        wanted = wanted.where(here < there if descending else here > there)
    order = [key.desc() if descending else key.asc() for key in KEYS]
    rows = connection.execute(wanted.order_by(*order).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def weeks(connection: Connection, days: range) -> list[Week]:
    """The sums of these days by connection and type: what falls into the next day by minutes evens out."""
    keys = (found.c.connection, found.c.type)
    sums = (sa.func.min(found.c.day), sa.func.sum(found.c.expected), sa.func.sum(found.c.stored))
    within = found.c.day.between(days.start, days.stop - 1)
    rows = connection.execute(sa.select(*keys, *sums).where(within).group_by(*keys).order_by(*keys))
    return [Week(name, event_type, int(first), int(e), int(s)) for name, event_type, first, e, s in rows]


def _upsert(connection: Connection, table: sa.Table, values: dict[str, Any]) -> None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    keys = [column.name for column in table.primary_key]
    statement = insert(table).values(values)
    changes = {name: statement.excluded[name] for name in values if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes))
