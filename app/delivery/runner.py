"""One sink's share of the worker: its slots, rate, breaker, batches and memory. All of it runs on the event loop.

A sink that hangs or refuses is felt by no other, because nothing here is shared. First attempts go before retries,
retries before replays, and what is not a first attempt never takes more than half of the slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from sqlalchemy.engine import Connection

from app import operator_events
from app.addresses import AddressRules
from app.clock import from_micros, now_micros, utc_now
from app.delivery.batching import Parcel, new_batch, stored_batches
from app.delivery.breaker import Breaker, BreakerState
from app.delivery.news import SinkNews, mail_in
from app.delivery.policy import Decision, decide, is_client_error
from app.delivery.queue import BatchNote, Completion, Report
from app.delivery.rate import TokenBucket
from app.delivery.request import RequestMaker
from app.delivery.results import SPLIT, completions_of, given_back
from app.delivery.sender import AttemptResult, SinkSender
from app.dispatch import sink_states
from app.dispatch.service import Job
from app.logs import SharedLines
from app.metrics import Metrics
from app.models import AttemptOutcome, DeliveryState, Priority
from app.operator_events import Change, Herald
from app.settings import SinkSettings
from app.views import EVENT_COLUMNS

if TYPE_CHECKING:  # an extra
    from app.tracing.tracer import Tracer

log = structlog.get_logger(__name__)

HELD_AT_LEAST = 1000  # deliveries of one sink and priority in memory; the others wait in the table
HELD_AT_MOST = 10_000
STALLED_SECONDS = 1.0  # without any answer
CLAIM_AT_ONCE = 250
GIVE_BACK_SECONDS = 2.0  # when the service stops, for the database to take what came of the last requests
RESUMED = "a person resumed the sink"
PRIORITIES = tuple(Priority)  # to go through an enumeration takes nine times as long
_RECEIVED_AT = EVENT_COLUMNS.index("received_at")
_GAUGE = {BreakerState.CLOSED: 0, BreakerState.OPEN: 1, BreakerState.HALF_OPEN: 2}


class Outbox(Protocol):
    """What a runner needs of the process around it. What is awaited is durable when the call returns, however long the
    database is away."""

    lease_token: str
    metrics: Metrics
    herald: Herald
    address_rules: AddressRules
    tracer: Tracer | None
    sink_results: dict[str, dict[str, Any]]

    def record(self, report: Report) -> None:
        """Not durable when it returns: `report.recorded` is called then."""

    async def note_batch(self, note: BatchNote) -> None: ...

    async def store(self, work: Callable[[Connection], None]) -> None: ...

    def wake_at(self, moment: datetime) -> None:
        """Something may be claimed at `moment`."""

    def look_again(self) -> None: ...

    def look_everywhere(self) -> None:
        """`look_again`, here and on the other replicas."""


class SinkRunner:
    """Takes jobs, sends parcels. Every job it is given is let go of exactly once, when its result is recorded."""

    def __init__(
        self, name: str, sink: SinkSettings, outbox: Outbox, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.sink = sink
        self.breaker = Breaker(sink.breaker_failures, sink.breaker_cooldown_seconds, sink.breaker_failure_rate)
        self.pause_changes = 0  # how often it was paused or resumed here, and not by the table
        self._outbox = outbox
        self._clock = clock
        self._lines = SharedLines("delivery.delivered", units="requests", ids="webhook_id")
        self._requests = RequestMaker(sink)
        self._tracer = outbox.tracer
        self._bucket = TokenBucket(sink.rate_per_second) if sink.rate_per_second is not None else None
        self._sender: SinkSender | None = None
        self._ready: dict[int, deque[Parcel]] = {priority: deque() for priority in PRIORITIES}
        self._loose: dict[int, deque[tuple[float, Job]]] = {priority: deque() for priority in PRIORITIES}
        self._held: dict[int, int] = dict.fromkeys(Priority, 0)  # reserved, queued, being sent or recorded
        self._held_ids: set[str] = set()
        self._held_limit = min(HELD_AT_MOST, max(HELD_AT_LEAST, 2 * sink.batch_size * sink.concurrency))
        # Of a sink that answers nothing: enough to go on with. Each costs a renewed lease every few seconds, and the
        # writer's time, for which others wait.
        self._held_stalled = min(self._held_limit, 2 * sink.batch_size * sink.concurrency)
        self._moved_at = clock()  # when it last answered, or was asked after having nothing to do
        self._answer_seconds = 0.0  # how long its last success took
        self._held_in_all = 0
        self._under_way: dict[int, int] = dict.fromkeys(Priority, 0)
        self._under_way_in_all = 0
        self._slots_behind = max(1, sink.concurrency // 2)
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_sink: set[asyncio.Task[None]] = set()  # those of them that wait for the sink
        self._timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._all_recorded: asyncio.Event | None = None  # somebody waits until nothing is held
        self._sending = False
        self._paused = False
        self._is_storing_pause = False
        self._news = SinkNews(name, self.breaker, outbox.herald)

    # --- room ---

    @property
    def holds(self) -> bool:
        return self._held_in_all > 0

    @property
    def held_ids(self) -> frozenset[str]:
        """The events whose deliveries are in hand, for their leases."""
        return frozenset(self._held_ids)

    @property
    def is_ordered(self) -> bool:
        return self.sink.ordered_by is not None

    @property
    def is_closed(self) -> bool:
        """The breaker is as it should be: everything is sent."""
        return self.breaker.state(self._clock()) is BreakerState.CLOSED

    def reserve(self) -> bool:
        """Room for one fresh delivery that would be sent soon? One in an order is claimed from the table instead."""
        if not self._sending or self._paused or not self.is_closed:
            return False
        if self.is_ordered:
            return False
        held = self._held[Priority.FIRST]
        if held >= self._held_stalled and held >= self._may_hold():
            return False
        self._hold(Priority.FIRST)
        return True

    def release(self) -> None:
        self._free(Priority.FIRST)

    def room(self, priority: int) -> int:
        """How many more of this priority may be claimed now."""
        if self._paused or not self._sending:
            return 0
        if not self.is_closed:  # one request probes, and only one delivery is taken for it
            return 0 if self.holds else self.breaker.free_slots(self._clock(), 1)
        return min(max(CLAIM_AT_ONCE, self.sink.batch_size), self._may_hold() - self._held[priority])

    def _may_hold(self) -> int:
        return self._held_stalled if self._is_stalled() else self._held_limit

    def _is_stalled(self) -> bool:
        # A slow sink answers, too: taken for stalled between its answers, it would be given much and lose it again.
        patience = max(STALLED_SECONDS, 2 * self._answer_seconds)
        return self._under_way_in_all > 0 and self._clock() - self._moved_at > patience

    def accept(self, job: Job) -> None:
        """A reserved job whose delivery is committed."""
        self._held_ids.add(job.event_id)
        self._queue([job])

    def add_claimed(self, jobs: Iterable[Job]) -> None:
        # Our own lease may have run out while the database was away: what is still in hand is not taken twice.
        fresh = [job for job in jobs if job.event_id not in self._held_ids]
        for job in fresh:
            self._hold(job.priority)
            self._held_ids.add(job.event_id)
        self._queue(fresh)

    def drop(self, event_ids: Collection[str]) -> None:
        """What is ours no more (cancelled, erased, somebody else's) and still waits here is not sent."""
        dropped: list[Job] = []
        for priority in PRIORITIES:
            for parcel in self._ready[priority]:
                dropped += [job for job in parcel.jobs if job.event_id in event_ids]
                parcel.jobs = [job for job in parcel.jobs if job.event_id not in event_ids]
            self._ready[priority] = deque(parcel for parcel in self._ready[priority] if parcel.jobs)
            dropped += [job for _, job in self._loose[priority] if job.event_id in event_ids]
            self._loose[priority] = deque(one for one in self._loose[priority] if one[1].event_id not in event_ids)
        self._let_go(dropped)

    def _queue(self, jobs: Sequence[Job]) -> None:
        if not self._sending or self._paused or not self.breaker.free_slots(self._clock(), 1):
            for parcel in self._parcels(jobs):
                self._give_back(parcel)  # what may not be sent now does not wait here for the day
            return
        if self.sink.batch_size == 1:
            for parcel in self._parcels(jobs):
                self._ready[parcel.priority].append(parcel)
        else:
            batches, lone = stored_batches(jobs)
            for parcel in batches:
                self._ready[parcel.priority].append(parcel)
            now = self._clock()
            for job in lone:
                self._loose[job.priority].append((now, job))
        self._pump()

    def _parcels(self, jobs: Iterable[Job]) -> list[Parcel]:
        """Batches that were formed before, and the others one by one."""
        batches, lone = stored_batches(jobs)
        return [*batches, *(Parcel([job]) for job in lone)]

    # --- life ---

    def open(self) -> None:
        count = self._outbox.metrics.connection_counter(self.name)
        self._sender = SinkSender(self.sink, self._outbox.address_rules, count)
        circuit = self._outbox.metrics.sink_circuit_state.labels(self.name)
        circuit.set_function(lambda: _GAUGE[self.breaker.state(self._clock())])
        self._sending = True

    def stop_sending(self) -> None:
        self._sending = False
        self._give_back_waiting()

    async def finish(self, seconds: float) -> None:
        """Wait for what is under way; what is not done by then is cut off and given back."""
        await self._settle(seconds)
        for task in list(self._at_sink):
            task.cancel()
        await self._settle(GIVE_BACK_SECONDS)
        if self.holds:
            self._all_recorded = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_recorded.wait(), GIVE_BACK_SECONDS)
        for task in list(self._tasks):  # the database is away: the leases run out by themselves
            task.cancel()
        await self._settle(GIVE_BACK_SECONDS)

    async def _settle(self, seconds: float) -> None:
        """Until no task is left, those included that others start at their end."""
        give_up = time.monotonic() + seconds
        while self._tasks and (left := give_up - time.monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=left)

    async def close(self) -> None:
        for timer in (self._timer, self._probe_timer):
            if timer is not None:
                timer.cancel()
        if self._sender is not None:
            await self._sender.close()
        self._lines.flush()

    # --- sending ---

    def _pump(self) -> None:
        """Start as many requests as slots, breaker, rate and waiting deliveries allow."""
        while (taken := self._next()) is not None:
            self._at_sink.add(self._spawn(self._slot(*taken)))

    def _next(self) -> tuple[Parcel, int] | None:
        """(what goes out next, its priority), a slot being taken for it; None if nothing may now."""
        if not self._sending or self._paused:
            return None
        now = self._clock()
        if self._under_way_in_all >= self.breaker.free_slots(now, self.sink.concurrency):
            return None
        priority = self._next_priority(now)
        if priority is None:
            return None
        if self._bucket is not None and not self._bucket.take(now):
            self._pump_in(self._bucket.wait(now))
            return None
        self.breaker.started(now)
        if self._under_way_in_all == 0:
            self._moved_at = now
        self._under_way[priority] += 1
        self._under_way_in_all += 1
        return self._take(priority), priority

    async def _slot(self, parcel: Parcel, priority: int) -> None:
        """One request after the other, as long as there is something to send."""
        taken: tuple[Parcel, int] | None = (parcel, priority)
        while taken is not None:
            await self._deliver(*taken)
            taken = self._next()
            if taken is not None:
                self._pump()  # what held back one may have held back several

    def _leave(self, priority: int) -> None:
        if self._is_stalled():
            self._outbox.look_again()  # there is room for what waited in the table
        self._moved_at = self._clock()
        self._under_way[priority] -= 1
        self._under_way_in_all -= 1

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._at_sink.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("delivery.crashed", sink=self.name, exc_info=task.exception())

    def _next_priority(self, now: float) -> int | None:
        """The first priority that has a parcel to send; a batch that is not full waits for more, for a while."""
        behind = self._under_way[Priority.RETRY] + self._under_way[Priority.REPLAY]
        for priority in PRIORITIES:
            if priority is not Priority.FIRST and behind >= self._slots_behind:
                return None
            if self._ready[priority]:
                return priority
            loose = self._loose[priority]
            if loose:
                lingers = loose[0][0] + self.sink.batch_linger_seconds - now
                if len(loose) >= self.sink.batch_size or lingers <= 0:
                    return priority
                self._pump_in(lingers)
        return None

    def _take(self, priority: int) -> Parcel:
        if self._ready[priority]:
            return self._ready[priority].popleft()
        loose = self._loose[priority]
        return new_batch([loose.popleft()[1] for _ in range(min(len(loose), self.sink.batch_size))])

    def _pump_in(self, seconds: float) -> None:
        """Look again then; one timer, set for the soonest."""
        loop = asyncio.get_running_loop()
        at = loop.time() + max(seconds, 0.001)
        if self._timer is not None and not self._timer.cancelled() and loop.time() < self._timer.when() <= at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(at, self._timer_rang)

    def _timer_rang(self) -> None:
        self._timer = None
        self._pump()

    async def _deliver(self, parcel: Parcel, priority: int) -> None:
        at = now_micros()
        try:
            if not parcel.is_stored:
                await self._outbox.note_batch(self._note(parcel))
                parcel.is_stored = True
            result = await self._attempt(parcel, at)
        except BaseException:  # cut off by the stop of the service
            self._leave(priority)
            self.breaker.abandoned()
            self._give_back(parcel)
            raise
        self._leave(priority)
        if result.outcome is AttemptOutcome.SUCCESS:
            self._answer_seconds = result.duration_ms / 1000
        now = now_micros()
        try:
            decision = self._judge(parcel, result)
            completions = completions_of(parcel, at, now, result, decision, self._outbox.lease_token)
        except Exception:  # a bug of ours; it is tried again when its lease has run out, and not at once and for ever
            self._let_go(parcel.jobs)
            raise
        self._record(parcel, completions)
        self._observe(parcel, now, result, decision)
        if decision.state is DeliveryState.DEAD:
            self._news.dead(parcel, result, decision, utc_now())

    def _note(self, parcel: Parcel) -> BatchNote:
        assert parcel.batch_id is not None
        ids = tuple(job.event_id for job in parcel.jobs)
        return BatchNote(self.name, ids, parcel.batch_id, self._outbox.lease_token)

    async def _attempt(self, parcel: Parcel, at: int) -> AttemptResult:
        assert self._sender is not None
        try:
            body, headers = self._requests.make(parcel, at)
        except Exception as error:  # noqa: BLE001  an attempt like others, or it would come back at once and for ever
            log.error("delivery.not_made", webhook_id=parcel.webhook_id, sink=self.name, error=type(error).__name__)  # noqa: TRY400
            text = f"the request cannot be made: {type(error).__name__}"
            return AttemptResult(AttemptOutcome.INVALID, None, text, 0.0, is_our_fault=True)
        if self._tracer is None:
            return await self._sender.send(body, headers)
        return await self._traced(self._sender, parcel, body, headers)

    async def _traced(self, sender: SinkSender, parcel: Parcel, body: bytes, headers: dict[str, str]) -> AttemptResult:
        assert self._tracer is not None
        ids = [job.event_id for job in parcel.jobs]
        number = parcel.attempt_count + 1
        return await self._tracer.attempt(self.name, ids, number, lambda trace: sender.send(body, {**headers, **trace}))

    async def test(self) -> dict[str, Any]:
        """Post a test event, over connections of its own."""
        now = now_micros()
        body, headers = self._requests.make(self._requests.test_parcel(self.name, now), now)
        sender = SinkSender(self.sink, self._outbox.address_rules)
        try:
            result = await sender.send(body, headers)
        finally:
            await sender.close()
        return {
            "outcome": result.outcome, "status": result.status, "error": result.error,
            "duration_ms": result.duration_ms, "response_excerpt": result.response_excerpt,
        }  # fmt: skip

    # --- afterwards ---

    def _judge(self, parcel: Parcel, result: AttemptResult) -> Decision:
        if result.status == 413 and len(parcel.jobs) > 1:
            self._is_well()  # it is there, and will take smaller ones
            return SPLIT
        decision = decide(
            result.outcome, result.status, attempt=parcel.schedule_step + 1,
            schedule=self.sink.retry_schedule_seconds, min_backoff=self.sink.min_backoff_seconds,
            client_error_tries=self.sink.client_error_tries, retry_after=result.retry_after, wish=result.wish,
            jitter=random.random(),  # noqa: S311  spreads retries, hides nothing
        )  # fmt: skip
        if result.is_our_fault:
            self.breaker.abandoned()
        elif result.outcome is AttemptOutcome.SUCCESS:
            self._is_well()
        elif self.breaker.failed(self._clock(), is_answer=is_client_error(result.status)):
            log.warning("sink.breaker_opened", sink=self.name, error=result.error)
            self._give_back_waiting()
            self._wake_for_probe()
        if decision.pause_sink:
            self._pause_itself(decision.reason, is_news=bool(mail_in(parcel)))
        if result.outcome is not AttemptOutcome.SUCCESS and not result.is_our_fault:
            is_held_back = not (self.is_closed or self._paused)
            self._news.failed(parcel, result, utc_now(), is_held_back=is_held_back)
        return decision

    def _is_well(self) -> None:
        was_closed = self.is_closed
        if not self.breaker.succeeded(self._clock()):
            return
        if not was_closed:
            log.info("sink.breaker_closed", sink=self.name)
            self._outbox.look_again()
        self._news.recovered(utc_now())

    def close_breaker(self, why: str) -> None:
        """Whatever it was before, and by no success of the sink's own."""
        self.breaker.reset()
        self._news.recovered(utc_now(), why)

    def _record(self, parcel: Parcel, completions: list[Completion]) -> None:
        """To be written, however long the database is away: an attempt that was made must not be made again. Until
        then the deliveries are in hand; the slot is free for the next."""
        # In an order, the next of the same key waits for it.
        self._outbox.record(Report(completions, partial(self._recorded, parcel, completions[0]), self.is_ordered))

    def _let_go(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._held_ids.discard(job.event_id)
            self._free(job.priority)

    def _recorded(self, parcel: Parcel, first: Completion) -> None:
        self._let_go(parcel.jobs)
        if first.state is DeliveryState.PENDING:
            self._outbox.wake_at(from_micros(first.next_attempt_micros))
        elif self.is_ordered:
            self._outbox.look_again()  # the next of the same key may go

    def _hold(self, priority: int) -> None:
        self._held[priority] += 1
        self._held_in_all += 1

    def _free(self, priority: int) -> None:
        held = self._held[priority]
        was_full = held >= self._held_stalled and held >= self._may_hold()
        self._held[priority] -= 1
        self._held_in_all -= 1
        # Room for what waits in the table; or nothing in hand any more, which is what a probe waits for.
        if was_full or (self._held_in_all == 0 and not self.is_closed):
            self._outbox.look_again()
        if self._held_in_all == 0 and self._all_recorded is not None:
            self._all_recorded.set()

    def _observe(self, parcel: Parcel, now: int, result: AttemptResult, decision: Decision) -> None:
        metrics = self._outbox.metrics
        metrics.attempted(self.name, result.outcome.value, result.duration_ms / 1000)
        news = self._outbox.sink_results.setdefault(self.name, {})
        if decision.state is DeliveryState.DELIVERED:
            news["last_success_at"] = from_micros(now)
            for job in parcel.jobs:
                metrics.arrived(self.name, max(0, now - job.event[_RECEIVED_AT]) / 1_000_000)
            told = {"sink": self.name, "status": result.status}
            self._lines.add(told, parcel.webhook_id, result.duration_ms / 1000, {"events": len(parcel.jobs)})
            return
        news["last_error"], news["last_error_at"] = result.error, from_micros(now)
        log.info(
            "delivery.failed", webhook_id=parcel.webhook_id, events=len(parcel.jobs), sink=self.name,
            attempt=parcel.attempt_count + 1, outcome=result.outcome.value, status=result.status,
            duration_ms=result.duration_ms, state=decision.state.value, retry_in_seconds=decision.retry_in_seconds,
            reason=decision.reason,
        )  # fmt: skip

    # --- holding back ---

    def follow(self, *, paused: bool, reason: str | None) -> None:
        """Do as the table says, unless our own pause is still on its way there."""
        if paused != self._paused and not self._is_storing_pause:
            self._set_paused(reason, paused=paused)

    def set_paused(self, reason: str | None, *, paused: bool) -> None:
        """Paused or resumed here; the caller writes it down for the others."""
        self.pause_changes += 1
        self._set_paused(reason, paused=paused)

    def _set_paused(self, reason: str | None, *, paused: bool) -> None:
        if paused == self._paused:
            return
        self._paused = paused
        self._outbox.metrics.sink_paused.labels(self.name).set(paused)
        log.info("sink.paused" if paused else "sink.resumed", sink=self.name, reason=reason)
        if paused:
            self.breaker.abandoned()
            self._give_back_waiting()
        else:
            self.close_breaker(RESUMED)  # whoever resumed it, on whichever replica, found it well
            self._outbox.look_again()

    def _pause_itself(self, reason: str | None, *, is_news: bool) -> None:
        if self._paused:
            return
        self.set_paused(reason, paused=True)
        self._is_storing_pause = True
        change = Change(operator_events.SINK_PAUSED, utc_now(), sink=self.name, error=reason) if is_news else None
        self._spawn(self._store_pause(reason, change))

    async def _store_pause(self, reason: str | None, change: Change | None) -> None:
        def store(connection: Connection) -> None:
            if not self._paused:  # somebody resumed it while the database was away
                return
            is_new = sink_states.set_paused(connection, self.name, paused=True, reason=reason)
            if is_new and change is not None:
                self._outbox.herald.store(connection, change)

        try:
            await self._outbox.store(store)
        finally:
            self.pause_changes += 1  # what was read before it was written does not count
            self._is_storing_pause = False
        self._outbox.look_everywhere()  # the other replicas pause it too

    def shed(self) -> None:
        """Give back what a sink that answers nothing will not get to soon: it waits as well in the table, where its
        lease need not be renewed."""
        ready = self._ready[Priority.FIRST]
        too_many = self._held[Priority.FIRST] - self._may_hold()
        while ready and too_many >= len(ready[-1].jobs):
            too_many -= len(ready[-1].jobs)
            self._give_back(ready.pop())

    def _give_back_waiting(self) -> None:
        waiting = [parcel for ready in self._ready.values() for parcel in ready]
        waiting += [Parcel([job]) for loose in self._loose.values() for _, job in loose]
        for priority in PRIORITIES:
            self._ready[priority].clear()
            self._loose[priority].clear()
        for parcel in waiting:
            self._give_back(parcel)

    def _give_back(self, parcel: Parcel) -> None:
        """Due again at once, for whoever may send it; no attempt is used up."""
        completions = given_back(parcel, now_micros(), self._outbox.lease_token)
        self._record(parcel, completions)

    def _wake_for_probe(self) -> None:
        moment = self.breaker.reopens_at()
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        if moment is not None:
            delay = max(0.0, moment - self._clock())
            self._probe_timer = asyncio.get_running_loop().call_later(delay + 0.01, self._outbox.look_again)

    # --- shown ---

    def snapshot(self) -> dict[str, Any]:
        return {"breaker": self.breaker.state(self._clock()).value, "paused": self._paused}
