"""The SQL of silence: in which hours something came, what came last, and what is expected of each webhook and type."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.db import chunks, insert_missing
from app.models import Event, Expectation
from app.partitions import first_id
from app.rollups.cells import Unit, View
from app.rollups.store import cells, counts
from app.silence.rhythm import WINDOW_HOURS

_expectations: sa.Table = Expectation.__table__  # type: ignore[attr-defined]
_events: sa.Table = Event.__table__  # type: ignore[attr-defined]

SKEW = timedelta(minutes=5)  # an event from further ahead has somebody's wrong clock, and would hide years of silence

Key = tuple[str, str]
"""Webhook and type."""


@dataclass(frozen=True, slots=True)
class Expected:
    """By when something should come, and since when it has not."""

    expected_by: datetime | None = None
    silent_since: datetime | None = None


def active_hours(connection: Connection, now_hour: int) -> dict[Key, set[int]]:
    """(webhook, type) -> hours since 1970 that brought an event, of twice the time that is learned from: where nothing
    comes any more, the weeks before count. Test events are none."""
    of_hours = (counts.c.view == int(View.TOTAL), counts.c.unit == int(Unit.HOUR))
    recent = counts.c.start.between(now_hour - 2 * WINDOW_HOURS, now_hour)
    statement = (
        sa.select(cells.c.webhook, cells.c.type, counts.c.start)
        .select_from(counts.join(cells, cells.c.id == counts.c.cell))
        .where(*of_hours, recent, counts.c.count > 0, cells.c.test == sa.false())
        .distinct()
    )
    found: dict[Key, set[int]] = defaultdict(set)
    for webhook, event_type, hour in connection.execute(statement):
        found[webhook, event_type].add(hour)
    return found


def last_events(connection: Connection, keys: Iterable[Key], now: datetime) -> dict[Key, datetime | None]:
    """When the newest event of each happened: one that came in late, or was fetched later, is no sign of life."""
    found: dict[Key, datetime | None] = {}
    for some in chunks(list(keys)):
        newest = [_newest(key, now) for key in some]
        found |= zip(some, connection.execute(sa.select(*newest)).one(), strict=True)
    return found


def _newest(key: Key, now: datetime) -> sa.ScalarSelect[datetime]:
    webhook, event_type = key
    return (
        sa.select(_events.c.occurred_at)
        .where(_events.c.webhook == webhook, _events.c.type == event_type, _events.c.id < first_id(now + SKEW))
        .where(_events.c.test == sa.false())
        .order_by(_events.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )


def list_expected(connection: Connection, *, locked: bool = False) -> dict[Key, Expected]:
    """What is known; `locked`: and nobody else changes it before this transaction ends."""
    statement = sa.select(_expectations).order_by(_expectations.c.webhook, _expectations.c.type)
    rows = connection.execute(statement.with_for_update() if locked else statement)
    return {(row.webhook, row.type): Expected(row.expected_by, row.silent_since) for row in rows}


def make_rows(connection: Connection, keys: Iterable[Key]) -> None:
    insert_missing(connection, _expectations, ("webhook", "type"), sorted(keys))


def record(connection: Connection, found: Mapping[Key, Expected]) -> None:
    for (webhook, event_type), expected in found.items():
        here = (_expectations.c.webhook == webhook, _expectations.c.type == event_type)
        values = {"expected_by": expected.expected_by, "silent_since": expected.silent_since}
        connection.execute(sa.update(_expectations).where(*here).values(values))


def forget(connection: Connection, keys: Iterable[Key]) -> None:
    """Webhooks and types that are configured no longer."""
    for webhook, event_type in keys:
        here = (_expectations.c.webhook == webhook, _expectations.c.type == event_type)
        connection.execute(sa.delete(_expectations).where(*here))
