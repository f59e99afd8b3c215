"""Who should hear -> heard: takes claimed deliveries, sends them, decides, records.

`Relay` is the process's worker: it claims due deliveries for every sink, keeps the leases, writes what came of them,
and hands fresh ones over from ingest. What is one sink's own is in `runner.py`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy.engine import Connection

from app.addresses import ONLY_ALWAYS, AddressRules
from app.bell import Bell, Listener
from app.clock import EPOCH, utc_now, wait_for_event
from app.db import Database, chunks
from app.delivery import queue
from app.delivery.queue import BatchNote, ClaimRequest, Report
from app.delivery.runner import GIVE_BACK_SECONDS, RESUMED, SinkRunner
from app.delivery.stranded import BackWatch, longest_wait, recall
from app.dispatch import sink_states
from app.dispatch.service import Job
from app.group_commit import GroupCommit, Lane
from app.metrics import Metrics
from app.operator_events import NOBODY, Herald
from app.settings import SinkSettings

if TYPE_CHECKING:  # an extra
    from app.tracing.tracer import Tracer

log = structlog.get_logger(__name__)

LEASE_SECONDS = 12.0  # after a crash others take over within 15 seconds
RENEW_SECONDS = 3.0
RENEW_AGAIN_SECONDS = 0.5
RENEWED_AT_ONCE = 32  # leases in one transaction: less than a millisecond of it
MOST_RENEWALS = 32  # transactions of one round; it must be over long before a lease is
POLL_SECONDS = 1.0  # what other replicas made due, where they cannot be heard; our own is known without asking
HEARD_POLL_SECONDS = 10.0  # where they can, and on SQLite, which has no other; within a lease
GAUGE_SECONDS = 20.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.1, 5.0  # until what the database did not take is offered again
STOP_SECONDS = 8.0  # for requests under way when the service stops
NEVER = datetime.max.replace(tzinfo=UTC)


class Relay:
    """The deliveries of this process; implements `dispatch.service.Handover` and `runner.Outbox`."""

    def __init__(
        self, sinks: Mapping[str, SinkSettings], *, database: Database, commits: GroupCommit, metrics: Metrics,
        herald: Herald = NOBODY, address_rules: AddressRules = ONLY_ALWAYS,
        tracer: Tracer | None = None, on_ring: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """`on_ring` hears of it too when another replica rings."""
        self.tracer = tracer
        self._on_ring = on_ring
        self.lease_token = secrets.token_hex(16)
        self._database = database
        # Before the claims: what is settled in the same transaction is not claimed again.
        self._reports: Lane[Report, None] = commits.lane(_Reports(self.record))
        self._claims: Lane[ClaimRequest, list[Job]] = commits.lane(_Claims(self._claimed))
        self._batches: Lane[BatchNote, None] = commits.lane(_Batches())
        # In the lane and not beside it: two transactions of ours over the same rows could lock each other out.
        self._renewals: Lane[Renewal, dict[str, set[str]]] = commits.lane(_Renewals(self._lost))
        self.metrics = metrics
        self.herald = herald
        self.address_rules = address_rules
        self.runners = {name: SinkRunner(name, sink, self) for name, sink in sinks.items()}
        self._has_order = any(runner.is_ordered for runner in self.runners.values())
        self._clock = BackWatch()
        self._wake = asyncio.Event()
        self._wake_at = NEVER
        self._tasks: list[asyncio.Task[None]] = []
        self._claiming: asyncio.Task[None] | None = None
        self._listener = Listener(database, self._heard)
        self._ringing: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.sink_results: dict[str, dict[str, Any]] = {}

    # --- Handover ---

    def reserve(self, sink: str) -> bool:
        return not self._stopping and self.runners[sink].reserve()

    def lease_until_micros(self, now_micros: int) -> int:
        return now_micros + int(LEASE_SECONDS * 1_000_000)

    def accept(self, job: Job) -> None:
        self.runners[job.sink].accept(job)

    def committed(self) -> None:
        if self._has_order:
            self.look_again()
        else:  # room may have come free between the refusal and the commit, and the look at the table been too early
            self.wake_at(utc_now() + timedelta(seconds=POLL_SECONDS))

    def paused_sinks(self, connection: Connection) -> dict[str, str | None]:
        return sink_states.paused_sinks(connection)

    def follow(self, paused: Mapping[str, str | None]) -> None:
        for name in paused.keys() & self.runners.keys():
            self.runners[name].follow(paused=True, reason=paused[name])

    def release(self, sink: str) -> None:
        self.runners[sink].release()

    # --- life ---

    async def start(self) -> None:
        for runner in self.runners.values():
            runner.open()
        await self._refresh_pauses()
        for loop in (self._claim_loop, self._renew_loop, self._gauge_loop):
            self._tasks.append(asyncio.create_task(loop(), name=f"relay-{loop.__name__}"))
        self._claiming = self._tasks[0]
        if not self._database.is_sqlite:
            self._tasks.append(asyncio.create_task(self._listener.run(), name="relay-listen"))

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Finish what is under way, give back the rest; nothing is lost, and nobody waits for our leases.

        `seconds` for requests under way; it takes a few more at most.
        """
        self._stopping = True
        for runner in self.runners.values():
            runner.stop_sending()
        self.look_again()
        if self._claiming is not None:  # a claim under way brings deliveries, which go back with the others
            await asyncio.wait([self._claiming], timeout=GIVE_BACK_SECONDS)
        await asyncio.gather(*(runner.finish(seconds) for runner in self.runners.values()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._ringing, return_exceptions=True)
        await asyncio.gather(*(runner.close() for runner in self.runners.values()))
        try:
            await asyncio.wait_for(self._write_results(), GIVE_BACK_SECONDS)
        except Exception as error:  # noqa: BLE001
            log.warning("delivery.gauges_failed", error=type(error).__name__)

    def wake_at(self, moment: datetime) -> None:
        """Something may be claimed at `moment`: look then, not only at the next poll."""
        if moment < self._wake_at:
            self._wake_at = moment
            self._wake.set()

    def look_again(self) -> None:
        self.wake_at(EPOCH)

    def look_everywhere(self) -> None:
        """Somebody changed what is due: this replica looks, and the others do."""
        self.look_again()
        if not self._database.is_sqlite:
            task = asyncio.get_running_loop().create_task(self._ring())
            self._ringing.add(task)
            task.add_done_callback(self._ringing.discard)

    async def _ring(self) -> None:
        try:
            await self._database.run_write(Bell().ring)
        except Exception as error:  # noqa: BLE001  their polls find it
            log.debug("bell.not_rung", error=type(error).__name__)

    def _heard(self) -> None:
        self.look_again()
        self._on_ring()

    # --- Outbox ---

    def record(self, report: Report) -> None:
        """One request's results, in one transaction: a batch is never half recorded."""
        self._reports.post(report, is_urgent=report.is_urgent)

    async def note_batch(self, note: BatchNote) -> None:
        await _until_done(lambda: self._batches.submit(note))

    async def store(self, work: Callable[[Connection], None]) -> None:
        await _until_done(lambda: self._database.run_write(work))

    # --- steering ---

    def snapshot(self, sink: str) -> dict[str, Any]:
        """What only this process knows of a sink, and what it has not written down yet."""
        return self.runners[sink].snapshot() | self.sink_results.get(sink, {})

    async def test(self, sink: str) -> dict[str, Any]:
        """One try with an event that is not real, whatever the sink's state; nothing is stored."""
        return await self.runners[sink].test()

    def resumed(self, sink: str) -> None:
        """A person resumed the sink: its breaker is closed with it, and its deliveries go at once."""
        runner = self.runners.get(sink)
        if runner is not None:
            runner.close_breaker(RESUMED)
            runner.set_paused(None, paused=False)
        self.look_everywhere()

    def paused(self, sink: str, reason: str | None) -> None:
        runner = self.runners.get(sink)
        if runner is not None:
            runner.set_paused(reason, paused=True)
        self.look_everywhere()

    # --- loops ---

    async def _claim_loop(self) -> None:
        while not self._stopping:
            self._wake_at = NEVER  # from here on whoever asks to be looked at is heard, also while the round runs
            try:
                again = await self._claim_round()
            except Exception as error:  # noqa: BLE001  the database comes back; the loop must be there then
                log.warning("delivery.claim_failed", error=type(error).__name__)
                again = utc_now() + timedelta(seconds=POLL_SECONDS)
            self.wake_at(again)
            until = time.monotonic() + self._poll_seconds  # a clock that is set back must not make it wait for longer
            while not self._stopping and (seconds := self._seconds_to_wake(until)) > 0:
                self._wake.clear()
                await wait_for_event(self._wake, seconds)

    def _seconds_to_wake(self, until: float) -> float:
        return min((self._wake_at - utc_now()).total_seconds(), until - time.monotonic())

    async def _claim_round(self) -> datetime:
        """Claim what is due and has room; returns when to look again."""
        if self._clock.went_back():
            await self._recall_stranded()
            self._clock.confirm()
        changes = {name: runner.pause_changes for name, runner in self.runners.items()}
        paused, due = await self._database.run_glance(self._look)
        self._follow_pauses(paused, changes)
        now = utc_now()
        again = now + timedelta(seconds=self._poll_seconds)
        requests: list[ClaimRequest] = []
        probes: dict[str, list[ClaimRequest]] = {}
        for (sink, priority), moment in sorted(due.items()):
            runner = self.runners[sink]
            room = runner.room(priority)
            if room <= 0:
                continue
            if moment > now:
                again = min(again, moment)
                continue
            until = now + timedelta(seconds=LEASE_SECONDS)
            request = ClaimRequest(sink, priority, room, now, until, self.lease_token, runner.is_ordered)
            (requests if runner.is_closed else probes.setdefault(sink, [])).append(request)
        claimed = await asyncio.gather(
            *(self._claim(request) for request in requests), *(self._probe(each) for each in probes.values())
        )
        return now if any(claimed) else again

    async def _recall_stranded(self) -> None:
        due_at, recalled = utc_now() + timedelta(seconds=LEASE_SECONDS), 0
        for name, runner in self.runners.items():
            beyond = utc_now() + longest_wait(runner.sink.retry_schedule_seconds, runner.sink.min_backoff_seconds)
            while some := await self._database.run_write(partial(recall, sink=name, beyond=beyond, due_at=due_at)):
                recalled += some
        if recalled:
            log.warning("delivery.recalled", deliveries=recalled, reason="due further ahead than any schedule says")

    async def _probe(self, requests: Sequence[ClaimRequest]) -> bool:
        """One delivery of whatever priority, not one of each. All of the first may have to wait for one of the next:
        they come after it in an order."""
        for request in requests:
            if await self._take(request):
                break
        return False

    async def _claim(self, request: ClaimRequest) -> bool:
        """True if there may be more where this came from."""
        taken = await self._take(request)
        return taken >= request.limit and self.runners[request.sink].room(request.priority) > 0

    async def _take(self, request: ClaimRequest) -> int:
        """How many were claimed."""
        return len(await self._claims.submit(request))

    def _claimed(self, sink: str, jobs: Sequence[Job]) -> None:
        self.runners[sink].add_claimed(jobs)

    def _look(self, connection: Connection) -> queue.Outlook:
        return queue.look(connection, self.runners)

    @property
    def _poll_seconds(self) -> float:
        is_told = self._database.is_sqlite or self._listener.is_sure
        return HEARD_POLL_SECONDS if is_told else POLL_SECONDS

    def _follow_pauses(self, paused: Mapping[str, str | None], changes: Mapping[str, int]) -> None:
        """Do as the table says, but where a sink was paused or resumed here after the table was looked at."""
        for name, runner in self.runners.items():
            if runner.pause_changes == changes[name]:
                runner.follow(paused=name in paused, reason=paused.get(name))

    async def _refresh_pauses(self) -> None:
        changes = {name: runner.pause_changes for name, runner in self.runners.items()}
        paused = await self._database.run_read(sink_states.paused_sinks)
        self._follow_pauses(paused, changes)

    async def _renew_loop(self) -> None:
        known: dict[str, frozenset[str]] = {}
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for runner in self.runners.values():
                runner.shed()
            # What came since the last look has most of its lease before it; most of that is done by the next one.
            before, known = known, {name: runner.held_ids for name, runner in self.runners.items()}
            held = {name: ids & before.get(name, frozenset()) for name, ids in known.items()}
            # In small parts: what a hanging sink holds must not stand before the posts of all others at once.
            size = max(RENEWED_AT_ONCE, sum(map(len, held.values())) // MOST_RENEWALS)
            for name, ids in held.items():
                for part in chunks(sorted(ids), size):
                    await self._renew({name: frozenset(part)})

    async def _renew(self, held: Mapping[str, frozenset[str]]) -> None:
        while True:
            renewal = Renewal(held, self.lease_token, utc_now() + timedelta(seconds=LEASE_SECONDS))
            try:
                await self._renewals.submit(renewal)
            except Exception as error:  # noqa: BLE001  a lost lease costs a repeat at most
                log.warning("delivery.renew_failed", error=type(error).__name__)
                await asyncio.sleep(RENEW_AGAIN_SECONDS)
            else:
                return

    def _lost(self, sink: str, event_ids: Collection[str]) -> None:
        self.runners[sink].drop(event_ids)

    async def _gauge_loop(self) -> None:
        while True:
            try:
                await self._write_gauges()
            except Exception as error:  # noqa: BLE001
                log.debug("delivery.gauges_failed", error=type(error).__name__)
            await asyncio.sleep(GAUGE_SECONDS)

    async def _write_results(self) -> None:
        results, self.sink_results = self.sink_results, {}
        if not results:
            return
        try:
            await self._database.run_write(lambda c: sink_states.record_results(c, results))
        except Exception:
            for sink, news in results.items():
                self.sink_results[sink] = news | self.sink_results.get(sink, {})
            raise

    async def _write_gauges(self) -> None:
        await self._write_results()
        backlogs = await self._database.run_glance(lambda c: sink_states.backlogs(c, self.runners, utc_now()))
        for sink, backlog in backlogs.items():
            self.metrics.deliveries.labels(sink, "pending").set(backlog.pending)
            self.metrics.deliveries.labels(sink, "dead").set(backlog.dead)
            self.metrics.oldest_overdue.labels(sink).set(backlog.overdue_seconds)


class _Claims:
    """The lane of claims. Jobs are handed over before the results of any later transaction: were it left to the caller,
    a delivery could be settled and let go in between, and then be taken up as a new one."""

    def __init__(self, claimed: Callable[[str, Sequence[Job]], None]) -> None:
        self._claimed = claimed

    def execute(self, connection: Connection, items: Sequence[ClaimRequest]) -> list[list[Job]]:
        return [queue.claim_due(connection, request) for request in items]

    def committed(self, items: Sequence[ClaimRequest], results: Sequence[list[Job]]) -> None:
        for item, jobs in zip(items, results, strict=True):
            self._claimed(item.sink, jobs)

    def failed(self, items: Sequence[ClaimRequest]) -> None: ...


@dataclass(frozen=True, slots=True)
class Renewal:
    """Prolong the leases on what is held, sink -> event ids."""

    held: Mapping[str, frozenset[str]]
    lease_token: str
    until: datetime


class _Renewals:
    """The lane of leases that go on; a renewal's result is what is ours no more. It is dropped before the results of
    any later transaction, as claims are handed over: what was lost and claimed anew in between is ours."""

    def __init__(self, lost: Callable[[str, Collection[str]], None]) -> None:
        self._lost = lost

    def execute(self, connection: Connection, items: Sequence[Renewal]) -> list[dict[str, set[str]]]:
        return [
            queue.renew(connection, held=item.held, lease_token=item.lease_token, until=item.until) for item in items
        ]

    def committed(self, items: Sequence[Renewal], results: Sequence[dict[str, set[str]]]) -> None:
        for lost in results:
            for sink, event_ids in lost.items():
                self._lost(sink, event_ids)

    def failed(self, items: Sequence[Renewal]) -> None: ...


class _Reports:
    """The lane of finished attempts; they share the transaction with whatever else is written.

    What cannot be written is offered again, however long the database is away: it is still owed.
    """

    def __init__(self, again: Callable[[Report], None]) -> None:
        self._again = again

    def execute(self, connection: Connection, items: Sequence[Report]) -> list[None]:
        queue.record_completions(connection, [completion for item in items for completion in item.completions])
        return [None] * len(items)

    def committed(self, items: Sequence[Report], results: Sequence[None]) -> None:
        for item in items:
            try:
                item.recorded()
            except Exception:  # a bug of ours with one must not hold the others
                log.exception("delivery.crashed")

    def failed(self, items: Sequence[Report]) -> None:
        log.warning("delivery.record_failed", reports=len(items))
        loop = asyncio.get_running_loop()
        for item in items:
            wait = min(FIRST_WAIT_SECONDS * 2**item.tries, LONGEST_WAIT_SECONDS)
            item.tries = min(item.tries + 1, 10)
            loop.call_later(wait, self._again, item)


class _Batches:
    """The lane of batches about to be sent for the first time."""

    def execute(self, connection: Connection, items: Sequence[BatchNote]) -> list[None]:
        for note in items:
            queue.note_batch(connection, note)
        return [None] * len(items)

    def committed(self, items: Sequence[BatchNote], results: Sequence[None]) -> None: ...

    def failed(self, items: Sequence[BatchNote]) -> None: ...


async def _until_done(attempt: Callable[[], Awaitable[object]]) -> None:
    """Write it, again and again, until the database takes it."""
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            await attempt()
        except Exception as error:  # noqa: BLE001  whatever it was, the write is still owed
            log.warning("delivery.record_failed", error=type(error).__name__)
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT_SECONDS)
        else:
            return
