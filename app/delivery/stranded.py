"""Deliveries put off while a clock was ahead: when it is set back, nobody should wait months for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.clock import uptime_seconds, utc_now
from app.delivery.policy import JITTER_SHARE, MAX_RETRY_AFTER_SECONDS
from app.models import Delivery, DeliveryState, Priority

BACK_SECONDS = 60.0  # less is a correction, and costs no more than it takes
AT_ONCE = 500

_deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]


class BackWatch:
    """Was the wall clock set back? Yes until `confirm`, and at first: it may have been before the start."""

    def __init__(self, *, now: Callable[[], datetime] = utc_now, uptime: Callable[[], float] = uptime_seconds) -> None:
        self._now = now
        self._uptime = uptime
        self._furthest: float | None = None  # the wall clock, less the time that passed

    def went_back(self) -> bool:
        apart = self._apart()
        if self._furthest is None or apart < self._furthest - BACK_SECONDS:
            return True
        self._furthest = max(apart, self._furthest)
        return False

    def confirm(self) -> None:
        """What is to be done about it has been done."""
        self._furthest = self._apart()

    def _apart(self) -> float:
        return self._now().timestamp() - self._uptime()


def longest_wait(schedule: Sequence[float], min_backoff: float) -> timedelta:
    """Nothing that `policy.decide` says, and no lease, is further ahead than that."""
    longest = max([*schedule, min_backoff]) * (1 + JITTER_SHARE)
    return timedelta(seconds=max(longest, MAX_RETRY_AFTER_SECONDS) + BACK_SECONDS)


def recall(connection: Connection, sink: str, *, beyond: datetime, due_at: datetime) -> int:
    """Bring some of a sink's deliveries that would be due after `beyond` to `due_at`; how many, 0 when none is left.

    Also leased ones, so `due_at` is a lease away: who holds them renews or settles them by then.
    """
    far = (
        sa.select(_deliveries.c.event_id)
        .where(
            _deliveries.c.sink == sink,
            _deliveries.c.state == sa.literal_column("'pending'"),  # the partial index asks for the very word
            _deliveries.c.priority.in_([int(priority) for priority in Priority]),
            _deliveries.c.next_attempt_at > beyond,
        )
        .limit(AT_ONCE)
        .with_for_update(skip_locked=True)
    ).cte("far")
    mine = (_deliveries.c.sink == sink, _deliveries.c.event_id.in_(sa.select(far.c.event_id)))
    pending = _deliveries.c.state == DeliveryState.PENDING.value
    moved = (
        sa.update(_deliveries).where(*mine, pending).values(next_attempt_at=due_at).returning(_deliveries.c.event_id)
    )
    return len(connection.execute(moved).all())  # of an UPDATE with a WITH, Python's sqlite3 tells no row count
