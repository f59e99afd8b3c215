"""Who should hear -> heard: takes claimed deliveries, sends them, decides, records.

`Relay` is the process's worker. Each sink has a `SinkRunner` of its own, with its own slots, breaker and share of
memory, so a sink that hangs or refuses is felt by no other. First attempts go before retries, retries before replays.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import orjson
import structlog
from sqlalchemy.engine import Connection

from app import __version__
from app.clock import EPOCH, to_micros, utc_now
from app.db import Database
from app.delivery import queue
from app.delivery.breaker import Breaker, BreakerState
from app.delivery.envelope import body_of
from app.delivery.policy import Decision, decide
from app.delivery.queue import ClaimRequest, Completion
from app.delivery.sender import AttemptResult, SinkSender
from app.delivery.signing import signature_header
from app.dispatch import sink_states
from app.dispatch.service import Job
from app.group_commit import GroupCommit, Lane
from app.metrics import Metrics
from app.models import AttemptOutcome, DeliveryState, Priority
from app.settings import SinkSettings, signing_key
from app.views import EVENT_COLUMNS

log = structlog.get_logger(__name__)

LEASE_SECONDS = 12.0  # after a crash others take over within 15 seconds
RENEW_SECONDS = 4.0
POLL_SECONDS = 1.0  # what other processes made due; our own is known without asking
GAUGE_SECONDS = 10.0
HELD_PER_QUEUE = 1000  # deliveries of one sink and priority in memory; the others wait in the table
CLAIM_AT_ONCE = 250
STOP_SECONDS = 8.0  # for requests under way when the service stops

Monotonic = Callable[[], float]


class Relay:
    """The deliveries of this process; implements `dispatch.service.Handover`."""

    def __init__(
        self, sinks: Mapping[str, SinkSettings], *, database: Database, commits: GroupCommit, metrics: Metrics
    ) -> None:
        self.lease_token = secrets.token_hex(16)
        self._database = database
        self._claims: Lane[ClaimRequest, list[Job]] = commits.lane(_Claims())
        self.completions: Lane[Completion, None] = commits.lane(_Completions())
        self.metrics = metrics
        self.runners = {name: SinkRunner(name, sink, self) for name, sink in sinks.items()}
        self._wake = asyncio.Event()
        self._wake_at = EPOCH
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self.sink_results: dict[str, dict[str, Any]] = {}

    # --- Handover ---

    def reserve(self, sink: str) -> bool:
        return not self._stopping and self.runners[sink].reserve()

    def lease_until_micros(self, now_micros: int) -> int:
        return now_micros + int(LEASE_SECONDS * 1_000_000)

    def accept(self, job: Job) -> None:
        self.runners[job.sink].add(job)

    def release(self, sink: str) -> None:
        self.runners[sink].release()

    # --- life ---

    async def start(self) -> None:
        for runner in self.runners.values():
            runner.open()
        await self._refresh_pauses()
        for loop in (self._claim_loop, self._renew_loop, self._gauge_loop):
            self._tasks.append(asyncio.create_task(loop(), name=f"relay-{loop.__name__}"))

    async def stop(self) -> None:
        """Finish what is under way, give back the rest; nothing is lost, and nobody waits for our leases."""
        self._stopping = True
        for runner in self.runners.values():
            runner.stop_sending()
        await asyncio.gather(*(runner.finish(STOP_SECONDS) for runner in self.runners.values()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(runner.close() for runner in self.runners.values()))

    def wake_at(self, moment: datetime) -> None:
        """Something may be claimed at `moment`: look then, not only at the next poll."""
        if moment < self._wake_at:
            self._wake.set()

    def look_again(self) -> None:
        self._wake.set()

    async def store(self, work: Callable[[Connection], None]) -> None:
        await _until_done(lambda: self._database.run_write(work))

    def snapshot(self, sink: str) -> dict[str, Any]:
        """What only this process knows of a sink."""
        return self.runners[sink].snapshot()

    async def test(self, sink: str) -> dict[str, Any]:
        """One try with an event that is not real, whatever the sink's state; nothing is stored."""
        return await self.runners[sink].test()

    def resumed(self, sink: str) -> None:
        """A person resumed the sink: its breaker is closed with it, and its deliveries go at once."""
        runner = self.runners.get(sink)
        if runner is not None:
            runner.breaker.reset()
            runner.set_paused(None, paused=False)
            self._wake.set()

    def paused(self, sink: str, reason: str | None) -> None:
        runner = self.runners.get(sink)
        if runner is not None:
            runner.set_paused(reason, paused=True)

    # --- loops ---

    async def _claim_loop(self) -> None:
        while True:
            self._wake.clear()
            try:
                self._wake_at = await self._claim_round()
            except Exception as error:  # noqa: BLE001  the database comes back; the loop must be there then
                log.warning("delivery.claim_failed", error=type(error).__name__)
                self._wake_at = utc_now() + timedelta(seconds=POLL_SECONDS)
            await _wait(self._wake, (self._wake_at - utc_now()).total_seconds())

    async def _claim_round(self) -> datetime:
        """Claim what is due and has room; returns when to look again."""
        due = await self._database.run_read(self._look)
        now = utc_now()
        again = now + timedelta(seconds=POLL_SECONDS)
        requests: list[ClaimRequest] = []
        for (sink, priority), moment in due.items():
            runner = self.runners[sink]
            room = runner.room(priority)
            if room <= 0:
                continue
            if moment > now:
                again = min(again, moment)
                continue
            until = now + timedelta(seconds=LEASE_SECONDS)
            requests.append(ClaimRequest(sink, priority, room, now, until, self.lease_token))
        claimed = await asyncio.gather(*(self._claim(request) for request in requests))
        return now if any(claimed) else again

    async def _claim(self, request: ClaimRequest) -> bool:
        """True if there may be more where this came from."""
        jobs = await self._claims.submit(request)
        runner = self.runners[request.sink]
        for job in jobs:
            runner.add_claimed(job)
        return len(jobs) == request.limit and runner.room(request.priority) > 0

    def _look(self, connection: Connection) -> dict[tuple[str, int], datetime]:
        paused = sink_states.paused_sinks(connection)
        for name, runner in self.runners.items():
            runner.seen_paused = (name in paused, paused.get(name))
        return queue.next_due(connection, [n for n, r in self.runners.items() if not r.seen_paused[0]])

    async def _refresh_pauses(self) -> None:
        await self._database.run_read(self._look)
        for runner in self.runners.values():
            runner.apply_pause()

    async def _renew_loop(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for runner in self.runners.values():
                runner.apply_pause()
            holding = [name for name, runner in self.runners.items() if runner.holds]
            if not holding:
                continue
            until = utc_now() + timedelta(seconds=LEASE_SECONDS)
            try:
                await self._database.run_write(
                    partial(queue.renew, sinks=holding, lease_token=self.lease_token, until=until)
                )
            except Exception as error:  # noqa: BLE001  tried again in four seconds; a lost lease costs a repeat
                log.warning("delivery.renew_failed", error=type(error).__name__)

    async def _gauge_loop(self) -> None:
        while True:
            try:
                await self._write_gauges()
            except Exception as error:  # noqa: BLE001
                log.debug("delivery.gauges_failed", error=type(error).__name__)
            await asyncio.sleep(GAUGE_SECONDS)

    async def _write_gauges(self) -> None:
        results, self.sink_results = self.sink_results, {}
        if results:
            await self._database.run_write(lambda c: sink_states.record_results(c, results))
        for sink, (pending, dead, overdue) in (await self._database.run_read(self._backlog)).items():
            self.metrics.deliveries.labels(sink, "pending").set(pending)
            self.metrics.deliveries.labels(sink, "dead").set(dead)
            self.metrics.oldest_overdue.labels(sink).set(overdue)
            self.runners[sink].write_gauges()

    def _backlog(self, connection: Connection) -> dict[str, tuple[int, int, float]]:
        now = utc_now()
        return {
            sink: (
                sink_states.count_pending(connection, sink),
                sink_states.count_dead(connection, sink),
                sink_states.oldest_overdue_seconds(connection, sink, now),
            )
            for sink in self.runners
        }


class SinkRunner:
    """One sink's share of the worker. All of it runs on the event loop."""

    def __init__(self, name: str, sink: SinkSettings, relay: Relay, *, clock: Monotonic = time.monotonic) -> None:
        self.name = name
        self.sink = sink
        self.breaker = Breaker(sink.breaker_failures, sink.breaker_cooldown_seconds)
        self.seen_paused: tuple[bool, str | None] = (False, None)
        self._relay = relay
        self._clock = clock
        self._keys = [signing_key(secret.get_secret_value()) for secret in sink.secrets]
        self._sender: SinkSender | None = None
        self._queues: dict[int, deque[Job]] = {priority: deque() for priority in Priority}
        self._held: dict[int, int] = dict.fromkeys(Priority, 0)  # reserved, queued, being sent or recorded
        self._held_ids: set[str] = set()
        self._under_way: dict[int, int] = dict.fromkeys(Priority, 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = False
        self._paused = False
        # Retries and replays together leave this many slots to first attempts.
        self._slots_behind = max(1, sink.concurrency // 2)
        self._probe_timer: asyncio.TimerHandle | None = None

    # --- room ---

    @property
    def holds(self) -> bool:
        return any(self._held.values())

    def reserve(self) -> bool:
        """Room for one fresh delivery that would be sent soon?"""
        if self._paused or self._held[Priority.FIRST] >= HELD_PER_QUEUE:
            return False
        if self.breaker.state(self._clock()) is not BreakerState.CLOSED:
            return False
        self._held[Priority.FIRST] += 1
        return True

    def release(self) -> None:
        self._held[Priority.FIRST] -= 1

    def room(self, priority: int) -> int:
        """How many more of this priority may be claimed now."""
        if self._paused or not self._sending:
            return 0
        slots = self.breaker.free_slots(self._clock(), CLAIM_AT_ONCE)
        if slots < CLAIM_AT_ONCE:  # not closed: one delivery probes, and only one is taken for it
            return slots if not self.holds else 0
        return min(CLAIM_AT_ONCE, HELD_PER_QUEUE - self._held[priority])

    def add(self, job: Job) -> None:
        """A reserved job whose delivery is committed."""
        self._held_ids.add(job.event_id)
        self._queues[job.priority].append(job)
        self._pump()

    def add_claimed(self, job: Job) -> None:
        if job.event_id in self._held_ids:
            return  # our own lease ran out while the database was away; it is still in hand
        self._held[job.priority] += 1
        self.add(job)

    # --- sending ---

    def open(self) -> None:
        self._sender = SinkSender(self.sink)
        self._sending = True

    def stop_sending(self) -> None:
        self._sending = False
        self._give_back_waiting()

    async def finish(self, seconds: float) -> None:
        """Wait for what is under way; what is not done by then is cut off and given back."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=2)

    async def close(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        if self._sender is not None:
            await self._sender.close()

    def _pump(self) -> None:
        while self._sending and not self._paused:
            used = sum(self._under_way.values())
            slots = self.breaker.free_slots(self._clock(), self.sink.concurrency)
            if used >= slots:
                break
            job = self._next()
            if job is None:
                break
            self.breaker.started(self._clock())
            self._under_way[job.priority] += 1
            task = asyncio.create_task(self._deliver(job))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next(self) -> Job | None:
        if self._queues[Priority.FIRST]:
            return self._queues[Priority.FIRST].popleft()
        behind = self._under_way[Priority.RETRY] + self._under_way[Priority.REPLAY]
        if behind < self._slots_behind:
            for priority in (Priority.RETRY, Priority.REPLAY):
                if self._queues[priority]:
                    return self._queues[priority].popleft()
        return None

    async def _deliver(self, job: Job) -> None:
        assert self._sender is not None
        number, at = job.attempt_count + 1, utc_now()
        result: AttemptResult | None = None
        try:
            body, content_type = body_of(job, self.sink.envelope)
            result = await self._sender.send(body, self._headers(job, number, at, body, content_type))
        finally:
            self._under_way[job.priority] -= 1
            if result is None:
                self.breaker.abandoned()
                self._give_back(job)
        decision = self._judge(job, result)
        self._pump()
        await self._record(job, _completion(job, number, at, result, decision, self._relay.lease_token))
        self._observe(job, result, decision)

    async def test(self) -> dict[str, Any]:
        """Post a test event as Mailjet's web interface makes them, over connections of its own."""
        now = utc_now()
        payload = {"event": "sent", "time": int(now.timestamp()), "MessageID": 0, "email": ""}
        raw = orjson.dumps(payload).decode()
        values = dict.fromkeys(EVENT_COLUMNS) | {
            "id": f"test-{secrets.token_hex(8)}", "webhook": "test", "connection": "test", "type": "sent",
            "outcome": "delivered", "occurred_at": to_micros(now), "received_at": to_micros(now), "test": True,
            "raw": raw,
        }  # fmt: skip
        job = Job(str(values["id"]), self.name, "test", "sent", tuple(values.values()))
        body, content_type = body_of(job, self.sink.envelope)
        sender = SinkSender(self.sink)
        try:
            result = await sender.send(body, self._headers(job, 1, now, body, content_type))
        finally:
            await sender.close()
        return {
            "outcome": result.outcome, "status": result.status, "error": result.error,
            "duration_ms": result.duration_ms, "response_excerpt": result.response_excerpt,
        }  # fmt: skip

    def _headers(self, job: Job, number: int, at: datetime, body: bytes, content_type: str) -> dict[str, str]:
        timestamp = int(at.timestamp())
        headers = {
            "content-type": content_type,
            "user-agent": f"jethook/{__version__}",
            "webhook-id": job.event_id,
            "webhook-timestamp": str(timestamp),
            "idempotency-key": job.event_id,
            "x-jethook-webhook": job.webhook,
            "x-jethook-event": _header_text(job.type),
            "x-jethook-attempt": str(number),
        }
        if self._keys:
            headers["webhook-signature"] = signature_header(
                self._keys, message_id=job.event_id, timestamp=timestamp, body=body
            )
        if job.replay:
            headers["x-jethook-replay"] = "true"
        return headers

    def _judge(self, job: Job, result: AttemptResult) -> Decision:
        decision = decide(
            result.outcome, result.status, attempt=job.schedule_step + 1, schedule=self.sink.retry_schedule_seconds,
            min_backoff=self.sink.min_backoff_seconds, retry_after=result.retry_after, wish=result.wish,
            jitter=random.random(),  # noqa: S311  spreads retries, hides nothing
        )  # fmt: skip
        if result.outcome is AttemptOutcome.SUCCESS:
            self.breaker.succeeded()
        elif self.breaker.failed(self._clock()):
            log.warning("sink.breaker_opened", sink=self.name, error=result.error)
            self._give_back_waiting()
            self._wake_for_probe()
        if decision.pause_sink:
            self._pause_itself(decision.reason)
        return decision

    async def _record(self, job: Job, completion: Completion) -> None:
        """Write the result, however long the database is away: an attempt that was made must not be made again."""
        await _until_done(lambda: self._relay.completions.submit(completion))
        self._let_go(job)
        if completion.state is DeliveryState.PENDING:
            self._relay.wake_at(EPOCH + timedelta(microseconds=completion.next_attempt_micros))

    def _let_go(self, job: Job) -> None:
        was_full = self._held[job.priority] >= HELD_PER_QUEUE
        self._held[job.priority] -= 1
        self._held_ids.discard(job.event_id)
        if was_full or not self.holds:
            self._relay.wake_at(utc_now())

    def _observe(self, job: Job, result: AttemptResult, decision: Decision) -> None:
        metrics = self._relay.metrics
        metrics.delivery_attempts.labels(self.name, result.outcome.value).inc()
        metrics.delivery_duration.labels(self.name).observe(result.duration_ms / 1000)
        now = utc_now()
        if decision.state is DeliveryState.DELIVERED:
            received_micros = job.event[6]
            metrics.end_to_end.labels(self.name).observe(max(0, to_micros(now) - received_micros) / 1_000_000)
            self._relay.sink_results.setdefault(self.name, {})["last_success_at"] = now
            return
        news = self._relay.sink_results.setdefault(self.name, {})
        news["last_error"], news["last_error_at"] = result.error, now
        log.info(
            "delivery.failed", event_id=job.event_id, sink=self.name, attempt=job.attempt_count + 1,
            outcome=result.outcome.value, status=result.status, duration_ms=result.duration_ms,
            state=decision.state.value, retry_in_seconds=decision.retry_in_seconds, reason=decision.reason,
        )  # fmt: skip

    # --- holding back ---

    def apply_pause(self) -> None:
        paused, reason = self.seen_paused
        if paused != self._paused:
            self.set_paused(reason, paused=paused)

    def set_paused(self, reason: str | None, *, paused: bool) -> None:
        self._paused = paused
        self.seen_paused = (paused, reason)
        self._relay.metrics.sink_paused.labels(self.name).set(paused)
        log.info("sink.paused" if paused else "sink.resumed", sink=self.name, reason=reason)
        if paused:
            self.breaker.abandoned()
            self._give_back_waiting()

    def _pause_itself(self, reason: str | None) -> None:
        if self._paused:
            return
        self.set_paused(reason, paused=True)
        task = asyncio.create_task(self._store_pause(reason))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _store_pause(self, reason: str | None) -> None:
        await self._relay.store(lambda c: sink_states.set_paused(c, self.name, paused=True, reason=reason))

    def _give_back_waiting(self) -> None:
        for waiting in self._queues.values():
            while waiting:
                self._give_back(waiting.popleft())

    def _give_back(self, job: Job) -> None:
        """Due again at once, for whoever may send it; no attempt is used up."""
        completion = Completion(
            event_id=job.event_id, sink=job.sink, lease_token=self._relay.lease_token, state=DeliveryState.PENDING,
            priority=job.priority, attempt_count=job.attempt_count, schedule_step=job.schedule_step,
            next_attempt_micros=to_micros(utc_now()), settled_micros=None, last_status=None, last_error=None,
            attempt=None,
        )  # fmt: skip
        task = asyncio.create_task(self._record(job, completion))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wake_for_probe(self) -> None:
        moment = self.breaker.reopens_at()
        if moment is not None:
            delay = max(0.0, moment - self._clock())
            self._probe_timer = asyncio.get_running_loop().call_later(delay + 0.01, self._relay.look_again)

    def snapshot(self) -> dict[str, Any]:
        return {"breaker": self.breaker.state(self._clock()).value, "paused": self._paused}

    def write_gauges(self) -> None:
        number = {BreakerState.CLOSED: 0, BreakerState.OPEN: 1, BreakerState.HALF_OPEN: 2}
        self._relay.metrics.sink_circuit_state.labels(self.name).set(number[self.breaker.state(self._clock())])


class _Claims:
    """The lane of claims."""

    def execute(self, connection: Connection, items: Sequence[ClaimRequest]) -> list[list[Job]]:
        return [queue.claim_due(connection, request) for request in items]

    def committed(self, items: Sequence[ClaimRequest], results: Sequence[list[Job]]) -> None: ...

    def failed(self, items: Sequence[ClaimRequest]) -> None: ...


class _Completions:
    """The lane of finished attempts; they share the transaction with whatever else is written."""

    def execute(self, connection: Connection, items: Sequence[Completion]) -> list[None]:
        queue.record_completions(connection, items)
        return [None] * len(items)

    def committed(self, items: Sequence[Completion], results: Sequence[None]) -> None: ...

    def failed(self, items: Sequence[Completion]) -> None: ...


def _completion(
    job: Job, number: int, at: datetime, result: AttemptResult, decision: Decision, lease_token: str
) -> Completion:
    now = to_micros(utc_now())
    pending = decision.state is DeliveryState.PENDING
    wait = int((decision.retry_in_seconds or 0) * 1_000_000)
    error = result.error if decision.reason is None else f"{result.error}; {decision.reason}"
    return Completion(
        event_id=job.event_id, sink=job.sink, lease_token=lease_token, state=decision.state,
        priority=job.priority if job.priority == Priority.REPLAY else Priority.RETRY,
        attempt_count=number, schedule_step=job.schedule_step + decision.counts, next_attempt_micros=now + wait,
        settled_micros=None if pending else now, last_status=result.status,
        last_error=None if result.outcome is AttemptOutcome.SUCCESS else error,
        attempt=(
            job.event_id, job.sink, number, to_micros(at), result.status, result.outcome.value, result.error,
            result.duration_ms, result.response_excerpt, job.replay,
        ),
    )  # fmt: skip


def _header_text(text: str) -> str:
    """An unknown event type is the sender's own word; a header carries visible ASCII only."""
    return "".join(c if " " < c < "\x7f" else "?" for c in text[:100])


async def _until_done(attempt: Callable[[], Awaitable[object]]) -> None:
    """Write it, again and again, until the database takes it."""
    wait = 0.1
    while True:
        try:
            await attempt()
        except Exception as error:  # noqa: BLE001  whatever it was, the write is still owed
            log.warning("delivery.record_failed", error=type(error).__name__)
            await asyncio.sleep(wait)
            wait = min(wait * 2, 5.0)
        else:
            return


async def _wait(event: asyncio.Event, seconds: float) -> None:
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
