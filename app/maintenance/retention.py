"""Retention: what is past its time goes. One leader does a round every five minutes, so that each has little to do.

An event's age is that of what it tells of (`occurred_at`, the head of its id); but what came in late, or was imported,
is kept as long from its arrival on: nobody expects what was just accepted to be gone. It goes with its deliveries and
attempts once none of these is pending; a dead delivery is settled and holds nothing back. Quarantine and finished
replays go by the same number of days. Payloads and what is personal can go earlier, see `redaction`, so long after the
event happened; then quarantine and replays, which hold little else, go with them. Nothing goes while this machine's
clock is in doubt, see `clock_watch`.

On PostgreSQL whole weeks are dropped. An event in a week that is not over yet waits for it, unless that were more than
a tenth longer than asked for: then it is deleted by slices as on SQLite.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

import structlog
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from app import ledger, partitions
from app.clock import utc_now, wait_for_event
from app.db import BEYOND_IDS, Database, sqlstate_of
from app.ledger import Entry
from app.maintenance import disk, expiry, redaction
from app.maintenance.clock_watch import ADVICE, MAX_AHEAD_SECONDS, ClockWatch
from app.maintenance.leader import LEASE_SECONDS
from app.maintenance.pacing import Pace
from app.partitions import Week, first_id

log = structlog.get_logger(__name__)
T = TypeVar("T")

FINISHED = "retention.finished"
FAILED = "retention.failed"
BUSY = "retention.week_busy"
HELD = "retention.held"
RESUMED = "retention.resumed"
ROUND_SECONDS = 300.0
REST = 10  # between two rounds, in lengths of the one before, where that is more
LONGEST_REST_SECONDS = 3600.0
POLL_SECONDS = 1.0  # asking for the lease renews it; most answers are remembered ones
SLACK = 0.1  # of the days asked for: how much longer an event may wait for its week to end
LOCK_TRIES = 5
LOCK_PAUSE_SECONDS = 0.2
PASSING_STATES = frozenset({"40001", "40P01", "55P03"})  # serialization, deadlock, a lock not had in time
TRACES_STAY = timedelta(days=14)  # longer than any schedule of retries
LEDGER_LINGERS = timedelta(days=7)  # until then a difference can be seen in its quarter of an hour
QUARANTINE_ROWS = 20  # a body can be as large as a callback may be
SEQS = 2000
_WALKED, _SEEN, _LATE = "payload.id", "payload.seen_seq", "payload.late_seq"

MayLead = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Rules:
    """How long things stay. `days` None: for ever; `payload_days` None: as long as the event. `though_owed`: also what
    is still owed to a sink."""

    days: float | None
    payload_days: float | None = None
    though_owed: bool = False

    def cutoff(self, now: datetime) -> datetime | None:
        return None if self.days is None else now - timedelta(days=self.days)

    def payload_cutoff(self, now: datetime) -> datetime | None:
        return None if self.payload_days is None else now - timedelta(days=self.payload_days)

    def first_cutoff(self, now: datetime) -> datetime | None:
        """Of the two, what comes first in a thing's life."""
        found = [moment for moment in (self.cutoff(now), self.payload_cutoff(now)) if moment is not None]
        return max(found, default=None)


@dataclass(slots=True)
class Report:
    """What one round did: rows by kind, and what the file system got back."""

    rows: Counter[str] = field(default_factory=Counter)
    weeks_dropped: int = 0
    pages_freed: int = 0
    oldest: datetime | None = None
    ahead_seconds: float = 0.0  # this machine's clock, of the other one

    @property
    def is_held(self) -> bool:
        """Nothing was deleted, since the clock is in doubt."""
        return self.ahead_seconds > MAX_AHEAD_SECONDS

    @property
    def has_deleted(self) -> bool:
        return self.rows.total() > 0


class Deposed(Exception):
    """The service stops, or another replica has the duty now."""


class Retention:
    """The duty of one replica; `run` on the event loop. `report` is told what each round did, and when it ended."""

    def __init__(
        self, rules: Rules, database: Database, *, report: Callable[[Report, datetime], None] = lambda found, at: None,
        now: Callable[[], datetime] = utc_now, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        ahead: Callable[[], Awaitable[float]] | None = None,
    ) -> None:  # fmt: skip
        """`ahead` tells by how many seconds this machine's clock is ahead; a `ClockWatch` of its own by default."""
        self._rules = rules
        self._database = database
        self._report = report
        self._now = now
        self._sleep = sleep
        self._ahead = ahead or ClockWatch(database, now=now).ahead_seconds
        self._was_held = False

    async def run(self, stop: asyncio.Event, may_lead: MayLead) -> None:
        """A round every five minutes while `may_lead` says yes, until told to stop. A fault is told and tried again."""
        await disk.tell_if_it_cannot_shrink(self._database)
        next_at = 0.0
        while not stop.is_set():
            if await may_lead() and time.monotonic() >= next_at:
                started = time.monotonic()
                await self._safe_round(_goer(stop, may_lead))
                took = time.monotonic() - started
                # Old events that have to stay, a large import, are walked over each time: not the more often for that.
                next_at = time.monotonic() + min(max(ROUND_SECONDS, took * REST), LONGEST_REST_SECONDS)
            await wait_for_event(stop, POLL_SECONDS)

    async def _safe_round(self, go_on: Callable[[], Awaitable[None]]) -> None:
        started = time.monotonic()
        pace = Pace(go_on, sleep=self._sleep)
        try:
            found = await self.round(pace)
        except Deposed:
            return
        except Exception as error:  # noqa: BLE001  the database comes back; the duty must be there then
            log.warning(FAILED, error=type(error).__name__)
            return
        self._report(found, self._now())
        self._tell_if_held(found)
        tell = log.info if found.has_deleted or found.weeks_dropped else log.debug
        tell(
            FINISHED, **found.rows, weeks_dropped=found.weeks_dropped, pages_freed=found.pages_freed,
            slices=pace.slices, longest_slice_ms=round(pace.longest_seconds * 1000, 1),
            duration_ms=round((time.monotonic() - started) * 1000),
        )  # fmt: skip

    def _tell_if_held(self, found: Report) -> None:
        """Once when it begins, and once when it is over."""
        if found.is_held and not self._was_held:
            log.warning(HELD, clock_ahead_seconds=round(found.ahead_seconds), advice=ADVICE)
        elif self._was_held and not found.is_held:
            log.info(RESUMED, clock_ahead_seconds=round(found.ahead_seconds))
        self._was_held = found.is_held

    async def round(self, pace: Pace) -> Report:
        """All that is due now; nothing while the clock is in doubt. Raises Deposed from `pace`, and what the database
        raises."""
        found = Report(ahead_seconds=await self._ahead())
        now = self._now()
        weeks: list[Week] = []
        if not self._database.is_sqlite:
            weeks = await self._make_weeks(now - timedelta(seconds=max(0.0, found.ahead_seconds)))
        oldest = await self._database.run_read(expiry.oldest_event)
        if not found.is_held:
            await self._delete(now, weeks, oldest or BEYOND_IDS, pace, found)
        if found.has_deleted or found.weeks_dropped:
            oldest = await self._database.run_read(expiry.oldest_event)
        found.oldest = None if oldest is None else partitions.time_of(oldest)
        return found

    async def _delete(self, now: datetime, weeks: Sequence[Week], oldest: str, pace: Pace, found: Report) -> None:
        cutoff = self._rules.cutoff(now)
        if cutoff is not None:
            waiting = await self._drop_weeks(weeks, cutoff, found)
            for rows in expiry.ranges_to_slice(waiting, first_id(cutoff)):
                if oldest <= rows[1]:
                    await self._expire(rows, cutoff, pace, found)
        payload_cutoff = self._rules.payload_cutoff(now)
        if payload_cutoff is not None:
            await self._redact(first_id(payload_cutoff), pace, found)
        await self._clear_beside(now, pace, found)
        if self._database.is_sqlite and found.has_deleted:
            found.pages_freed = await disk.shrink(self._database, pace)
            await disk.truncate_log(self._database, pace)

    # --- weeks of PostgreSQL ---

    async def _make_weeks(self, now: datetime) -> list[Week]:
        """Those that were there before, oldest first."""
        there = await self._database.run_read(partitions.list_weeks)
        for week in partitions.missing_among(there, now):
            if await self._locked(partial(partitions.make, week=week)) is None:
                log.warning(BUSY, week=f"{week.start:%Y-%m-%d}", wanted="make")
        return there

    async def _drop_weeks(self, weeks: Sequence[Week], cutoff: datetime, found: Report) -> list[Week]:
        """The weeks that are waited for instead of sliced: those that end soon, or that somebody reads."""
        waiting: list[Week] = []
        for week in weeks:
            if week.end <= cutoff:
                if await self._drop(week, cutoff, found) is None:
                    waiting.append(week)
            elif week.start < cutoff and self._may_wait(week, cutoff):
                waiting.append(week)
        return waiting

    def _may_wait(self, week: Week, cutoff: datetime) -> bool:
        assert self._rules.days is not None
        return week.end - week.start <= timedelta(days=self._rules.days * SLACK) and week.end > cutoff

    async def _drop(self, week: Week, cutoff: datetime, found: Report) -> bool | None:
        """None: somebody reads it, or writes, and keeps us from it for now."""
        though_owed = self._rules.though_owed
        if not though_owed and await self._database.run_read(lambda c: partitions.is_owed(c, week)):
            return False
        if await self._database.run_read(lambda c: partitions.has_late(c, week, cutoff)):
            return False
        mark, counts = await self._database.run_read(partial(_count_week, week))

        def note(connection: Connection) -> bool:
            """Counting takes too long for a lock: it counts if the ledger says that nothing has changed since."""
            if ledger.changes(connection, week.start, week.end) != mark:
                return False
            ledger.add(connection, Entry.EXPIRED, counts)
            return True

        dropped = await self._locked(partial(partitions.drop, week=week, note=note, though_owed=though_owed))
        if dropped is None:
            log.info(BUSY, week=f"{week.start:%Y-%m-%d}", wanted="drop")
        elif dropped:
            for (_, _, sink), number in counts.items():
                found.rows["deliveries" if sink else "events"] += number
            found.weeks_dropped += 1
        return dropped

    async def _locked(self, work: Callable[[Connection], bool]) -> bool | None:
        """A change that needs the tables for itself; None where they cannot be had, and the next round tries again."""
        for _ in range(LOCK_TRIES):
            try:
                return await self._database.run_write(work)
            except DBAPIError as error:
                if sqlstate_of(error) not in PASSING_STATES:
                    raise
            await self._sleep(LOCK_PAUSE_SECONDS)
        return None

    # --- slices ---

    async def _slice(self, work: Callable[[Connection], T], pace: Pace) -> T:
        """One short transaction, tried again where another one was in its way, and a pause after it."""
        for left in reversed(range(LOCK_TRIES)):
            try:
                with pace.timed():
                    result = await self._database.run_write(work)
                break
            except DBAPIError as error:
                if left == 0 or sqlstate_of(error) not in PASSING_STATES:
                    raise
            await pace.rest()
        await pace.rest()
        return result

    async def _expire(self, rows: expiry.Range, cutoff: datetime, pace: Pace, found: Report) -> None:
        start, end = rows
        due = partial(expiry.due_ids, before=cutoff, though_owed=self._rules.though_owed)
        while ids := await self._database.run_read(partial(due, rows=(start, end), size=pace.size)):
            found.rows.update(
                await self._slice(partial(expiry.expire, ids=ids, though_owed=self._rules.though_owed), pace)
            )
            start = ids[-1]

    async def _redact(self, cutoff: str, pace: Pace, found: Report) -> None:
        walked = await self._mark(_WALKED) or ""
        if walked > cutoff:  # payloads stay longer than they did: what lies between stays as long, and is walked again
            walked = cutoff
            await self._database.run_write(lambda c: redaction.set_mark(c, _WALKED, cutoff))
        newest = await self._database.run_read(redaction.newest_seq)
        seen = int(await self._mark(_SEEN) or newest)
        late = int(await self._mark(_LATE) or seen)
        while late < newest:
            upto = min(late + SEQS, newest)
            ids = await self._database.run_read(partial(redaction.late_ids, after=late, upto=upto, mark=walked))
            for start in range(0, len(ids), pace.size):
                await self._redact_slice(ids[start : start + pace.size], pace, found)
            late = upto
        # A round behind: on PostgreSQL a transaction may yet commit numbers below the newest.
        await self._database.run_write(lambda c: redaction.set_marks(c, {_LATE: str(seen), _SEEN: str(newest)}))
        await self._redact_kept(cutoff, pace, found)
        await self._walk(walked, cutoff, pace, found)

    async def _walk(self, walked: str, cutoff: str, pace: Pace, found: Report) -> None:
        """From the mark on."""
        while ids := await self._database.run_read(
            partial(redaction.ids_between, after=walked, upto=cutoff, most=pace.size)
        ):
            walked = ids[-1]
            await self._redact_slice(ids, pace, found, walked)

    async def _redact_kept(self, cutoff: str, pace: Pace, found: Report) -> None:
        after = ""
        find = partial(redaction.kept_ids, upto=cutoff, most=pace.size)
        while ids := await self._database.run_read(partial(find, after=after)):
            after = ids[-1]
            await self._redact_slice(ids, pace, found)

    async def _redact_slice(self, ids: list[str], pace: Pace, found: Report, walked: str | None = None) -> None:
        def work(connection: Connection) -> int:
            if walked is not None:
                redaction.set_mark(connection, _WALKED, walked)
            return redaction.redact(connection, ids, though_owed=self._rules.though_owed)

        found.rows["payloads"] += await self._slice(work, pace)

    async def _mark(self, name: str) -> str | None:
        return await self._database.run_read(lambda c: redaction.get_mark(c, name))

    async def _clear_beside(self, now: datetime, pace: Pace, found: Report) -> None:
        before = self._rules.first_cutoff(now)
        settled = None if before is None else ledger.slot_of(before - LEDGER_LINGERS)
        # One question instead of four deletions that nearly always find nothing.
        there = await self._database.run_glance(lambda c: expiry.aged_beside(c, now - TRACES_STAY, before, settled))
        if there.traces:
            while await self._slice(lambda c: expiry.delete_traces(c, now - TRACES_STAY, pace.size), pace):
                pass
        if before is None or settled is None:
            return
        if there.quarantine:
            while gone := await self._slice(lambda c: expiry.delete_quarantine(c, before, QUARANTINE_ROWS), pace):
                found.rows["quarantine"] += gone
        if there.replays:
            found.rows["replays"] += await self._slice(lambda c: expiry.delete_replays(c, before), pace)
        if there.ledger:
            while lines := await self._slice(lambda c: ledger.put_together(c, settled, pace.size), pace):
                found.rows["ledger"] += lines


def _goer(stop: asyncio.Event, may_lead: MayLead) -> Callable[[], Awaitable[None]]:
    """Asked between slices: renews the lease in time. Raises Deposed."""
    renew_at = time.monotonic() + LEASE_SECONDS / 3

    async def go_on() -> None:
        nonlocal renew_at
        if stop.is_set():
            raise Deposed
        if time.monotonic() >= renew_at:
            if not await may_lead():
                raise Deposed
            renew_at = time.monotonic() + LEASE_SECONDS / 3

    return go_on


def _count_week(week: partitions.Week, connection: Connection) -> tuple[tuple[int, ...], dict[ledger.Line, int]]:
    """(a mark of what had changed it until now, what it holds); one moment's, since a read shows one."""
    events, deliveries = partitions.tables_of(week)
    mark = ledger.changes(connection, week.start, week.end)
    return mark, ledger.count_all_of(connection, events=events, deliveries=deliveries)
