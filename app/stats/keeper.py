"""Keeps the statistics up: one replica at a time counts what was committed, and drops what has grown too old.

It rests between slices, so that counting never takes more than a part of the writer's time: a tenth while events come
in, so that a flood is received first and counted after. A post waits for the slice under way, so these are small then:
two milliseconds for 25 events, against 5 to 8 for a hundred and 20 to 35 for five hundred.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

from app.clock import utc_now, wait_for_event
from app.db import Database, is_outage
from app.maintenance.clock_watch import MAX_AHEAD_SECONDS, ClockWatch
from app.query.horizon import Horizon, Mark
from app.rollups.fold import SLICE_EVENTS, fold_slice
from app.rollups.store import KnownCells, Progress, drop_before, events, read_progress

log = structlog.get_logger(__name__)

FAILED = "stats.failed"
DROPPED = "stats.dropped"
LOOK_SECONDS = 1.0  # while events come in
REST_SECONDS = 3600.0  # while none do: `wake` tells of new ones, and what is old is dropped once an hour
BUSY_SLICE_EVENTS = 25
BEHIND_SLICE_EVENTS = 100  # where more than that wait: an answer adds up by itself what is not counted yet
RENEW_SECONDS = 3.0  # of the lease, which is asked for only when there is something to do
BUSY_REST, QUIET_REST = 9.0, 1.0  # times as long as a slice took
DROP_EVERY = timedelta(hours=1)


class StatsKeeper:
    """One for the process, on the event loop. `may_lead` asks for the lease of this duty."""

    def __init__(
        self, database: Database, horizon: Horizon, may_lead: Callable[[], Awaitable[bool]], *, retention_days: int,
        on_lag: Callable[[float], None] = lambda seconds: None, now: Callable[[], datetime] = utc_now,
        ahead: Callable[[], Awaitable[float]] | None = None,
    ) -> None:  # fmt: skip
        """`ahead` as for retention: a clock in doubt drops no figures."""
        self._database = database
        self._horizon = horizon
        self._may_lead = may_lead
        self._retention = timedelta(days=retention_days)
        self._on_lag = on_lag
        self._now = now
        self._ahead = ahead or ClockWatch(database, now=now).ahead_seconds
        self._known = KnownCells()
        self._leads_until = 0.0
        self._drop_at: datetime | None = None
        self._given = 0
        self._woken = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`, which the caller follows with `wake`."""
        while not stop.is_set():
            self._woken.clear()
            rest = LOOK_SECONDS
            try:
                rest = await self.step()
            except Exception as error:  # whatever it was, the next look may do better
                log.warning(FAILED, error=type(error).__name__, exc_info=not is_outage(error))
            await wait_for_event(stop if rest < REST_SECONDS else self._woken, rest)

    def wake(self) -> None:
        """Something was stored, or it is time to stop. A rest between slices goes on all the same."""
        self._woken.set()

    async def step(self) -> float:
        """One look, and a slice where there is one to count; how many seconds to rest."""
        mark = await self._database.run_read(self._horizon.look)
        progress, waiting_since = await self._database.run_read(_where_we_are)
        self._on_lag(0.0 if waiting_since is None else max((self._now() - waiting_since).total_seconds(), 0.0))
        busy, self._given = mark.given > self._given, mark.given
        if not await self._is_ours(self._is_due(mark, progress)):
            return LOOK_SECONDS if mark.given > progress.seq else REST_SECONDS
        await self._drop_old()
        if mark.given <= progress.seq:
            return REST_SECONDS
        if mark.settled is None or mark.settled <= progress.seq:
            return LOOK_SECONDS
        began, most = time.monotonic(), _slice(mark.settled - progress.seq) if busy else SLICE_EVENTS
        counted = await self.fold(mark.settled, most)
        rest = (time.monotonic() - began) * (BUSY_REST if busy else QUIET_REST)
        return rest if counted >= most else max(rest, LOOK_SECONDS)

    async def fold(self, settled: int, most: int = SLICE_EVENTS) -> int:
        """Count one slice; how many events it had."""
        counted = await self._database.run_write(
            lambda connection: fold_slice(connection, settled, self._known, most=most)
        )
        self._known.confirm()
        return counted

    def _is_due(self, mark: Mark, progress: Progress) -> bool:
        aged = self._drop_at is None or self._now() >= self._drop_at
        return aged or (mark.settled is not None and mark.settled > progress.seq)

    async def _is_ours(self, is_due: bool) -> bool:
        if not is_due:
            return False
        if time.monotonic() >= self._leads_until:
            if not await self._may_lead():
                return False
            self._leads_until = time.monotonic() + RENEW_SECONDS
        return True

    async def _drop_old(self) -> None:
        now = self._now()
        if self._drop_at is not None and now < self._drop_at:
            return
        if await self._ahead() > MAX_AHEAD_SECONDS:
            return  # retention tells of it
        self._drop_at = now + DROP_EVERY
        dropped = await self._database.run_write(lambda connection: drop_before(connection, now - self._retention))
        if dropped:
            log.info(DROPPED, rows=dropped)


def _slice(waiting: int) -> int:
    return BUSY_SLICE_EVENTS if waiting <= BEHIND_SLICE_EVENTS else BEHIND_SLICE_EVENTS


def _where_we_are(connection: Connection) -> tuple[Progress, datetime | None]:
    """How far events are counted, and when the first of the others was received."""
    progress = read_progress(connection)
    wanted = sa.select(events.c.received_at).where(events.c.seq > progress.seq).order_by(events.c.seq).limit(1)
    return progress, connection.execute(wanted).scalar()
