"""What the database knows of sinks: paused or not, their last results, and how much waits for each.

Every count comes from the small partial index of just the rows counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.clock import to_micros
from app.db import chunks, insert_missing
from app.models import Delivery, Priority, SinkState

_states: sa.Table = SinkState.__table__  # type: ignore[attr-defined]
_deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
_pending = _deliveries.c.state == sa.literal_column("'pending'")  # the very words of the partial indexes
_dead = _deliveries.c.state == sa.literal_column("'dead'")


def remember_sinks(connection: Connection, names: Iterable[str]) -> None:
    """A row for each configured sink, so that one taken out of the settings is still known by name."""
    insert_missing(connection, _states, ("name", "paused"), [(name, False) for name in sorted(names)])


def list_states(connection: Connection) -> dict[str, dict[str, Any]]:
    return {row["name"]: {**row} for row in connection.execute(sa.select(_states)).mappings()}


def count_pending(connection: Connection, sink: str, most: int | None = None) -> int:
    """At most `most`: then nothing beyond it is looked at."""
    return _count(connection, sink, _pending, most)


def count_dead(connection: Connection, sink: str, most: int | None = None) -> int:
    return _count(connection, sink, _dead, most)


def oldest_overdue_seconds(connection: Connection, sink: str, now: datetime) -> float:
    """How long the longest waiting due delivery is overdue; 0 where none is."""
    return _overdue(list(connection.execute(sa.select(*_first_due(sink))).one()), now)


class Backlog(NamedTuple):
    """What waits for one sink, what is dead, and for how long the first of what is due has waited."""

    pending: int
    dead: int
    overdue_seconds: float


def backlogs(connection: Connection, sinks: Iterable[str], now: datetime) -> dict[str, Backlog]:
    """Of all of them in one statement: a service at rest asks for it again and again."""
    found: dict[str, Backlog] = {}
    for some in chunks(list(sinks)):
        columns: list[sa.ScalarSelect[Any]] = []
        for sink in some:
            columns += [_counted(sink, _pending), _counted(sink, _dead), *_first_due(sink)]
        values = iter(connection.execute(sa.select(*columns)).one())
        for sink in some:
            found[sink] = Backlog(next(values), next(values), _overdue([next(values) for _ in Priority], now))
    return found


def _first_due(sink: str) -> list[sa.ScalarSelect[datetime]]:
    return [
        sa.select(_deliveries.c.next_attempt_at)
        .where(_deliveries.c.sink == sink, _pending, _deliveries.c.priority == priority.value)
        .order_by(_deliveries.c.next_attempt_at)
        .limit(1)
        .scalar_subquery()
        for priority in Priority
    ]


def _overdue(firsts: Sequence[datetime | None], now: datetime) -> float:
    times = [moment for moment in firsts if moment is not None]
    return max(0.0, (to_micros(now) - to_micros(min(times))) / 1_000_000) if times else 0.0


def set_paused(connection: Connection, sink: str, *, paused: bool, reason: str | None) -> bool:
    """Whether it was not so before."""
    remember_sinks(connection, [sink])
    mine = _states.c.name == sink
    was = bool(connection.execute(sa.select(_states.c.paused).where(mine).with_for_update()).scalar_one())
    values = {"paused": paused, "paused_reason": reason if paused else None}
    connection.execute(sa.update(_states).where(mine).values(**values))
    return was is not paused


def paused_sinks(connection: Connection) -> dict[str, str | None]:
    """Paused sink -> the reason."""
    rows = connection.execute(sa.select(_states.c.name, _states.c.paused_reason).where(_states.c.paused == sa.true()))
    return {row.name: row.paused_reason for row in rows}


def record_results(connection: Connection, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Sink -> the columns of its state to change (last success, last error)."""
    for sink in sorted(results):
        remember_sinks(connection, [sink])
        connection.execute(sa.update(_states).where(_states.c.name == sink).values(**results[sink]))


def _count(connection: Connection, sink: str, state: sa.ColumnElement[bool], most: int | None) -> int:
    return int(connection.execute(sa.select(_counted(sink, state, most))).scalar_one())


def _counted(sink: str, state: sa.ColumnElement[bool], most: int | None = None) -> sa.ScalarSelect[int]:
    found = sa.select(sa.literal(1)).select_from(_deliveries).where(_deliveries.c.sink == sink, state)
    return sa.select(sa.func.count()).select_from(found.limit(most).subquery()).scalar_subquery()
