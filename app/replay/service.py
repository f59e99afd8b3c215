"""A replay from its request to its end: a durable job that any replica may carry on.

A step takes up the next few events and moves the cursor in one transaction, so whoever dies between two steps repeats
nothing and loses nothing. The worker of `app.delivery` sends what was taken up, after everything more urgent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy.engine import Connection

from app.clock import EPOCH, to_micros, utc_now, wait_for_event
from app.db import Database
from app.maintenance.leader import LEASE_SECONDS, release, try_lead
from app.models import ReplayState
from app.replay import pace, queries
from app.replay.queries import Row, Slice, Standing, Tally
from app.replay.selection import (
    DeadSelection,
    Recipient,
    Selection,
    UnreadableSelection,
    parse_selection,
    selection_text,
)
from app.views import new_id

log = structlog.get_logger(__name__)

REPLAY_FINISHED = "replay.finished"
REPLAY_STEP_FAILED = "replay.step_failed"

SLICE = 128  # deliveries in one transaction: one statement, a few milliseconds
MOST_OUTSTANDING = 512  # of one replay: enough to keep a worker busy, few enough to give back quickly
POLL_SECONDS = 1.0  # while there are any
REST_SECONDS = 86_400.0  # while there are none: the lookout tells of those that others left
BUSY_SECONDS = 0.1  # between two looks at a replay whose deliveries are being settled …
IDLE_SECONDS = 0.5  # … and at one where nothing moves; less than the second that a rate is planned ahead
FAILED_SECONDS = 2.0
COUNTING_SHARE = 20  # progress is counted anew after 20 times what counting took, but not more often than …
COUNT_SECONDS = 1.0


def count(connection: Connection, recipient: Recipient, selection: Selection, now: datetime) -> tuple[int, int]:
    """(how many deliveries it would be now, the number of the last event looked at)."""
    last_seq = queries.newest_seq(connection)
    return queries.count(connection, selection, recipient, last_seq=last_seq, made_at=now), last_seq


def new_replay(
    sink: str, selection: Selection, rate_per_second: float | None, *, found: int, last_seq: int, now: datetime
) -> dict[str, Any]:
    """The columns of a replay that begins; `found` and `last_seq` are from `count`."""
    return {
        "id": new_id(now), "sink": sink, "selection": selection_text(selection), "rate_per_second": rate_per_second,
        "state": ReplayState.RUNNING.value, "count": found, "last_seq": last_seq, "cursor": None, "taken": 0, "done": 0,
        "failed": 0, "error": None, "created_at": now, "finished_at": None,
    }  # fmt: skip


@dataclass(slots=True)
class _Work:
    """What this process remembers of a replay it works on. A successor needs none of it."""

    state: str = ReplayState.RUNNING
    look_at: datetime = EPOCH
    renew_at: datetime = EPOCH
    next_slot: int | None = None  # microseconds since 1970; replays with a rate
    at_end: bool = False  # everything is taken up
    pending: int = -1  # at the last look
    idle_seconds: float = BUSY_SECONDS
    count_at: float = 0.0  # on the monotonic clock

    def forget(self) -> None:
        """From here on believe the table only."""
        self.at_end, self.next_slot = False, None


class Replays:
    """Carries on every unfinished replay that no other replica works on. All but `look_again` runs on the event loop.

    `owner` must be unique among replicas and their restarts; `wake` tells this process's worker that something is due.
    """

    def __init__(
        self,
        recipients: Mapping[str, Recipient],
        database: Database,
        owner: str,
        wake: Callable[[], None],
        *,
        now: Callable[[], datetime] = utc_now,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._recipients = dict(recipients)
        self._database = database
        self._owner = owner
        self._wake_worker = wake
        self._now = now
        self._lease_seconds = lease_seconds
        self._works: dict[str, _Work] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()

    def look_again(self) -> None:
        """From any thread: a replay was made or cancelled, here or elsewhere. Without effect where `run` does not."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._woken.set)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`, then give the leases back. A database that is away is waited for."""
        self._loop = asyncio.get_running_loop()
        stopping = asyncio.create_task(self._wake_on(stop))
        try:
            while not stop.is_set():
                self._woken.clear()
                seconds = await self._safe_round()
                if not stop.is_set():
                    await wait_for_event(self._woken, seconds)
        finally:
            stopping.cancel()
            self._loop = None
            try:
                await self._forget(self._works)
            except Exception as error:  # noqa: BLE001  the leases run out by themselves
                log.info(REPLAY_STEP_FAILED, error=type(error).__name__)

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._woken.set()

    async def _safe_round(self) -> float:
        try:
            return await self.round()
        except Exception as error:  # noqa: BLE001  the database comes back; the loop must be there then
            log.warning(REPLAY_STEP_FAILED, error=type(error).__name__)
            return FAILED_SECONDS

    async def round(self) -> float:
        """One step of every replay whose turn it is; seconds until the next round."""
        rows = await self._database.run_read(queries.list_unfinished)
        await self._forget(self._works.keys() - {row.id for row in rows})
        for row in rows:
            work = self._works.setdefault(row.id, _Work())
            if row.state != work.state:
                work.state, work.look_at = row.state, EPOCH
            if work.look_at <= self._now():
                work.look_at = self._now() + timedelta(seconds=await self._safe_step(row, work))
        next_look = min((work.look_at for work in self._works.values()), default=None)
        if next_look is None:
            return REST_SECONDS
        return max(0.0, min(POLL_SECONDS, (next_look - self._now()).total_seconds()))

    async def _safe_step(self, row: Row, work: _Work) -> float:
        """One replay that cannot go on must not hold up the others."""
        try:
            return await self._step(row, work)
        except UnreadableSelection as error:
            await self._end(row, ReplayState.FAILED, error=str(error))
        except Exception as error:  # noqa: BLE001  an outage, a deadlock: the next look finds all as it was
            log.warning(REPLAY_STEP_FAILED, replay=row.id, error=type(error).__name__)
            work.forget()  # a commit may have gone through before its answer was lost
        return FAILED_SECONDS

    async def _step(self, row: Row, work: _Work) -> float:
        """Seconds until the next one."""
        if not await self._leads(row, work):
            return self._lease_seconds / 3
        if row.state == ReplayState.CANCELLED:
            return await self._wind_up(row)
        selection = parse_selection(row.selection)
        now = self._now()
        found = await self._database.run_read(lambda c: queries.standing(c, row.id, now))
        if found.orphans:
            await self._database.run_write(lambda c: queries.cancel_orphans(c, row.id, now))
            return 0.0
        part = await self._take_up(row, work, selection, found)
        took = len(part.rows) if part else 0
        if work.at_end and not took and not found.pending:
            await self._end(row, ReplayState.DONE)
            return 0.0
        await self._count(row, work)
        if part and not part.at_end and (row.rate_per_second is None or not took):
            return 0.0  # there is more, and nothing to wait for
        return _pause(work, found.pending, took)

    # --- lease ---

    async def _leads(self, row: Row, work: _Work) -> bool:
        now = self._now()
        if now < work.renew_at:
            return True
        name = _lease_of(row.id)
        leads = await self._database.run_write(lambda c: try_lead(c, name, self._owner, now, self._lease_seconds))
        work.renew_at = now + timedelta(seconds=self._lease_seconds / 3) if leads else EPOCH
        if not leads:
            # Another one goes on with it; what we remember is out of date by the time it comes back to us.
            work.forget()
        return leads

    async def _forget(self, ids: Iterable[str]) -> None:
        """Give the leases back, so that others need not wait."""
        works = {name: self._works.pop(name) for name in list(ids)}
        held = [_lease_of(name) for name, work in works.items() if work.renew_at > EPOCH]
        if held:
            await self._database.run_write(lambda c: [release(c, name, self._owner) for name in held])

    # --- the parts of a step ---

    async def _take_up(self, row: Row, work: _Work, selection: Selection, found: Standing) -> Slice | None:
        """Owe the next slice; None where there is nothing to take up now.

        A sink that is not configured any more: its replay waits, as its deliveries do.
        """
        recipient = self._recipients.get(row.sink)
        if recipient is None or work.at_end:
            return None
        now = self._now()
        most = min(SLICE, MOST_OUTSTANDING - found.pending)
        due = _due(row, work, found, now, most)
        if not due:
            return None
        part = await self._database.run_read(lambda c: queries.next_slice(c, row, selection, recipient, len(due)))
        only_dead = isinstance(selection, DeadSelection)
        if part.cursor != row.cursor and not await self._store(row, part, due, now, only_dead=only_dead):
            return None
        work.at_end = part.at_end
        if part.rows:
            _use_slots(row, work, due, len(part.rows))
            self._wake_worker()
        return part

    async def _store(self, row: Row, part: Slice, due: Sequence[int], now: datetime, *, only_dead: bool) -> bool:
        """False: somebody else cancelled the replay or went on with it since `row` was read."""

        def work(connection: Connection) -> bool:
            if not try_lead(connection, _lease_of(row.id), self._owner, now, self._lease_seconds):
                return False
            locked = queries.lock(connection, row.id)
            if locked.state != ReplayState.RUNNING or locked.cursor != row.cursor:
                return False
            gap = None if row.rate_per_second is None else pace.gap_of(row.rate_per_second)
            moments = [slot if gap is None else pace.due_at(slot, gap) for slot in due]
            queries.take_up(connection, locked, part, moments, now, only_dead=only_dead)
            return True

        return await self._database.run_write(work)

    async def _count(self, row: Row, work: _Work) -> None:
        """Make progress visible. Counting costs more the longer a replay runs, so it is done the more seldom."""
        started = time.monotonic()
        if started < work.count_at:
            return
        found = await self._database.run_read(lambda c: queries.tally(c, row.id))
        work.count_at = time.monotonic() + max(COUNT_SECONDS, COUNTING_SHARE * (time.monotonic() - started))
        if (found.done, found.failed) != (row.done, row.failed):
            await self._database.run_write(lambda c: _store_count(c, row.id, found))

    async def _wind_up(self, row: Row) -> float:
        now = self._now()

        def work(connection: Connection) -> bool:
            locked = queries.lock(connection, row.id)
            return locked.finished_at is not None or queries.wind_up(connection, locked, now)

        if not await self._database.run_write(work):
            return POLL_SECONDS
        await self._database.run_write(lambda c: release(c, _lease_of(row.id), self._owner))
        return 0.0

    async def _end(self, row: Row, state: ReplayState, *, error: str | None = None) -> None:
        found = await self._database.run_read(lambda c: queries.tally(c, row.id))
        now = self._now()

        def work(connection: Connection) -> bool:
            if queries.lock(connection, row.id).state != ReplayState.RUNNING:
                return False
            queries.update(
                connection, row.id, state=state.value, done=found.done, failed=found.failed, error=error,
                finished_at=now,
            )  # fmt: skip
            release(connection, _lease_of(row.id), self._owner)
            return True

        if await self._database.run_write(work):
            log.info(
                REPLAY_FINISHED, replay=row.id, sink=row.sink, state=state.value, count=row.count, done=found.done,
                failed=found.failed, error=error,
            )  # fmt: skip


def _lease_of(replay_id: str) -> str:
    return f"replay:{replay_id}"


def _store_count(connection: Connection, replay_id: str, found: Tally) -> None:
    if queries.lock(connection, replay_id).state == ReplayState.RUNNING:
        queries.update(connection, replay_id, done=found.done, failed=found.failed)


def _pause(work: _Work, pending: int, took: int) -> float:
    """Soon while deliveries are taken up or settled, more and more seldom where nothing moves."""
    moves = took or pending != work.pending
    work.idle_seconds = BUSY_SECONDS if moves else min(work.idle_seconds * 2, IDLE_SECONDS)
    work.pending = pending + took
    return work.idle_seconds


def _due(row: Row, work: _Work, found: Standing, now: datetime, most: int) -> Sequence[int]:
    """The slots (microseconds since 1970) of what may be taken up now; for a replay without a rate all of them are now.

    Where a second's worth is overdue nobody is sending: taking up more would let it all go at once later.
    """
    if row.rate_per_second is None:
        return [to_micros(now)] * most
    if found.overdue >= max(1.0, row.rate_per_second):
        return ()
    gap = pace.gap_of(row.rate_per_second)
    first = work.next_slot
    if first is None:  # the first step here: a predecessor may have filled the next second already
        last = EPOCH if found.last_due_at is None else found.last_due_at
        first = max(to_micros(last), to_micros(row.created_at) + (row.taken - 1) * gap) + gap
    return pace.next_slots(first, gap, now=to_micros(now), most=most)


def _use_slots(row: Row, work: _Work, due: Sequence[int], used: int) -> None:
    if row.rate_per_second is not None:
        work.next_slot = due[used - 1] + pace.gap_of(row.rate_per_second)
