"""The worker with a real database and a real sink."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from app.clock import to_micros, utc_now
from app.db import Database
from app.delivery import queue, worker
from app.delivery.batching import Parcel
from app.delivery.breaker import BreakerState
from app.delivery.runner import HELD_AT_LEAST
from app.delivery.worker import Relay
from app.dispatch import sink_states
from app.dispatch.matching import Matcher
from app.erasure.queries import erase_events
from app.group_commit import GroupCommit
from app.ingest.service import Ingest
from app.metrics import Metrics
from app.migrate import migrate
from app.models import Delivery, Event, Priority
from app.query.queries import all_attempts
from app.settings import SinkSettings, WebhookSettings
from app.simulator.server import LocalServer
from app.simulator.sink import Answer, ReceivedRequest, SampleSink
from tests.delivery.support import make_job, raw_event, run, sink, store_event, until
from tests.e2e.service import ids_in
from tests.factories import event_values, insert

T = TypeVar("T")
QUICK: dict[str, Any] = {"retry_schedule_seconds": [0.1] * 20, "min_backoff_seconds": 0, "timeout_seconds": 5}
NEVER_OPEN = {"breaker_failures": 1000}
on_one_database = pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)  # where it makes no difference


class Remote:
    """The database as the worker meets it: it can go away, be slow to tell, and is counted."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.is_away = False
        self.reads = self.writes = 0
        self.may_tell = asyncio.Event()
        self.may_tell.set()
        self.told = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def run_read(self, work: Callable[[Connection], T]) -> T:
        return await self._tell(self._database.run_read, work)

    async def run_glance(self, work: Callable[[Connection], T]) -> T:
        return await self._tell(self._database.run_glance, work)

    async def _tell(
        self, read: Callable[[Callable[[Connection], T]], Awaitable[T]], work: Callable[[Connection], T]
    ) -> T:
        self.reads += 1
        self._check()
        result = await read(work)
        self.told += 1
        await self.may_tell.wait()
        return result

    async def run_write(self, work: Callable[[Connection], T]) -> T:
        self.writes += 1
        self._check()
        return await self._database.run_write(work)

    def in_transaction(self, work: Callable[[Connection], T]) -> T:
        self.writes += 1
        self._check()
        return self._database.in_transaction(work)

    def _check(self) -> None:
        if self.is_away:
            raise OperationalError("statement", {}, Exception("the server closed the connection"))


class Station:
    """One replica: receiving and delivering."""

    def __init__(self, database: Database, sinks: dict[str, SinkSettings]) -> None:
        self.remote = Remote(database)
        self.database: Any = self.remote
        self.commits = GroupCommit(self.database)
        self.metrics = Metrics(webhooks=["orders"], sinks=sinks)
        self.relay = Relay(sinks, database=self.database, commits=self.commits, metrics=self.metrics)
        self.ingest = Ingest(
            {"orders": WebhookSettings()}, matcher=Matcher(sinks), commits=self.commits, worker=self.relay
        )

    async def post(self, *bodies: bytes) -> None:
        """One callback POST with these events."""
        answer = await self.ingest.accept("orders", b"[" + b",".join(bodies) + b"]", now_micros=to_micros(utc_now()))
        assert answer.stored == len(bodies)

    def is_idle(self) -> bool:
        """Nothing in hand, on any account."""
        return not any(
            runner.holds or runner.held_ids or runner._tasks or runner._at_sink or any(runner._under_way.values())
            for runner in self.relay.runners.values()
        )

    def nothing_in_hand(self) -> bool:
        return all(
            not runner.held_ids and set(runner._held.values()) == {0} and set(runner._under_way.values()) == {0}
            for runner in self.relay.runners.values()
        )


@asynccontextmanager
async def station(database: Database, stop_seconds: float = 2, **sinks: SinkSettings) -> AsyncIterator[Station]:
    here = Station(database, sinks)
    await here.relay.start()
    try:
        yield here
    finally:
        here.remote.is_away = False
        here.remote.may_tell.set()
        await here.relay.stop(stop_seconds)
        await here.commits.drain()
        assert here.nothing_in_hand()


@pytest.fixture
def crm() -> Iterator[SampleSink]:
    app = SampleSink()
    with LocalServer(app) as server:
        app.url = server.url  # type: ignore[attr-defined]
        yield app


def url(app: SampleSink) -> str:
    return str(app.url)  # type: ignore[attr-defined]


def rows(database: Database) -> dict[str, dict[str, Any]]:
    table = Delivery.__table__  # type: ignore[attr-defined]
    with database.reading() as connection:
        return {f"{r['event_id']}.{r['sink']}": {**r} for r in connection.execute(sa.select(table)).mappings()}


def states(database: Database) -> Counter[str]:
    return Counter(r["state"] for r in rows(database).values())


def attempts(database: Database) -> list[dict[str, Any]]:
    made = all_attempts()
    with database.reading() as connection:
        found = connection.execute(sa.select(made).order_by(made.c.event_id, made.c.number))
        return [{**r} for r in found.mappings()]


async def all_delivered(database: Database, count: int, seconds: float = 15) -> None:
    await until(lambda: states(database) == {"delivered": count}, f"{count} delivered", seconds)


def store_many(database: Database, count: int, **given: Any) -> list[str]:
    events = [event_values() for _ in range(count)]
    insert(database, Event, events)
    values: dict[str, Any] = {
        "sink": "crm", "state": "pending", "priority": 0, "attempt_count": 0, "schedule_step": 0,
        "next_attempt_at": utc_now(), "lease_token": None, "replay": False, "created_at": utc_now(),
    } | given  # fmt: skip
    insert(database, Delivery, [
        values | {"event_id": e["id"], "webhook": e["webhook"], "type": e["type"]} for e in events
    ])  # fmt: skip
    return [e["id"] for e in events]


# --- the way of an event ---------------------------------------------------------------------------------------------


def test_a_fresh_event_is_handed_over_in_memory_and_delivered_once(database: Database, crm: SampleSink) -> None:
    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            crm.answer_next(Answer.delayed(0.3))
            await here.post(raw_event(1))
            (leased,) = rows(database).values()
            assert leased["lease_token"] == here.relay.lease_token  # born claimed
            assert leased["next_attempt_at"] > utc_now() + timedelta(seconds=5)
            await all_delivered(database, 1)
            await until(here.is_idle, "nothing in hand")

    run(scenario())
    assert crm.total == 1
    (attempt,) = attempts(database)
    assert (attempt["number"], attempt["outcome"], attempt["status"]) == (1, "success", 200)


def test_what_a_dead_process_left_is_delivered_when_its_lease_runs_out(
    database: Database, crm: SampleSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEARD_POLL_SECONDS", 0.5)
    store_many(database, 3)
    store_many(database, 2, lease_token="dead", next_attempt_at=utc_now() + timedelta(seconds=0.3))
    store_many(database, 1, priority=Priority.RETRY, attempt_count=2, schedule_step=2)
    store_many(database, 1, priority=Priority.REPLAY, replay=True)

    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)):
            await all_delivered(database, 7)

    run(scenario())
    assert crm.total == 7
    assert Counter(r.headers["x-jethook-attempt"] for r in crm.requests) == {"1": 6, "3": 1}
    assert Counter(r.headers.get("x-jethook-replay") for r in crm.requests) == {None: 6, "true": 1}


@on_one_database
def test_a_backlog_of_thousands_is_drained_within_the_limits_of_memory(database: Database, crm: SampleSink) -> None:
    ids = store_many(database, 1600)
    most = 0

    async def scenario() -> None:
        nonlocal most
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            runner = here.relay.runners["crm"]
            while crm.total < 1600:
                most = max(most, len(runner.held_ids))
                await asyncio.sleep(0.005)
            await all_delivered(database, 1600)

    run(scenario())
    assert set(crm.counts) == set(ids)
    assert set(crm.counts.values()) == {1}
    assert 250 < most <= HELD_AT_LEAST


@on_one_database
def test_what_does_not_fit_into_memory_goes_through_the_table(database: Database, crm: SampleSink) -> None:
    crm.answer_always(Answer.delayed(0.5))
    total = HELD_AT_LEAST + 150

    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), concurrency=50, **QUICK)) as here:
            await here.post(*(raw_event(n) for n in range(total)))
            tokens = Counter(r["lease_token"] for r in rows(database).values())
            assert tokens[here.relay.lease_token] == HELD_AT_LEAST
            assert tokens[None] == 150
            crm.answer_always(200)
            await all_delivered(database, total)

    run(scenario())
    assert set(crm.counts.values()) == {1}


@pytest.fixture
def _stalled_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.delivery.runner.STALLED_SECONDS", 0.05)


@asynccontextmanager
async def stalled_station(database: Database, crm: SampleSink, events: int, concurrency: int) -> AsyncIterator[Station]:
    """One that has posted so many events and got no answer for a while."""
    async with station(database, crm=sink(url(crm), concurrency=concurrency, **QUICK)) as here:
        await here.post(*(raw_event(n) for n in range(events)))
        await until(here.relay.runners["crm"]._is_stalled, "no answer for a while")
        yield here


@on_one_database
@pytest.mark.usefixtures("_stalled_soon")
def test_of_a_sink_that_answers_nothing_little_is_held_and_all_is_sent_once_it_does(
    database: Database, crm: SampleSink
) -> None:
    crm.answer_always(Answer.delayed(3))

    async def scenario() -> None:
        async with stalled_station(database, crm, events=6, concurrency=4) as here:
            runner = here.relay.runners["crm"]
            await here.post(*(raw_event(n) for n in range(6, 60)))
            tokens = Counter(r["lease_token"] for r in rows(database).values())
            assert tokens == {here.relay.lease_token: 8, None: 52}  # twice as many as go out at once
            runner._held_stalled = 5
            runner.shed()
            await until(lambda: len(runner.held_ids) == 5, "the others to be given back")
            crm.answer_always(200)
            await all_delivered(database, 60)

    run(scenario())
    assert set(crm.counts.values()) == {1}


@on_one_database
@pytest.mark.usefixtures("_stalled_soon")
def test_a_sink_that_answers_slowly_is_not_one_that_answers_nothing(database: Database, crm: SampleSink) -> None:
    crm.answer_always(Answer.delayed(0.5))

    async def scenario() -> None:
        async with stalled_station(database, crm, events=2, concurrency=1) as here:
            runner = here.relay.runners["crm"]
            await until(lambda: crm.total == 2, "the second request")
            await asyncio.sleep(0.1)
            assert runner._under_way_in_all == 1
            assert not runner._is_stalled()
            await all_delivered(database, 2)

    run(scenario())


@on_one_database
def test_no_more_is_given_back_than_is_too_much_where_requests_hold_several(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[Parcel] = []

    async def scenario() -> None:
        async with station(database, crm=sink("http://crm.invalid", **QUICK)) as here:
            runner = here.relay.runners["crm"]
            monkeypatch.setattr(runner, "_give_back", given_back.append)
            parcels = [Parcel([make_job() for _ in range(3)]) for _ in range(3)]
            runner._ready[Priority.FIRST].extend(parcels)
            runner._held[Priority.FIRST], runner._held_limit = 9, 5
            runner.shed()
            runner._ready[Priority.FIRST].clear()
            runner._held[Priority.FIRST] = 0
            assert given_back == parcels[-1:]  # without a second one there would be room again

    run(scenario())


@on_one_database
def test_what_was_refused_for_want_of_room_is_looked_for_soon_after_its_commit(
    database: Database, crm: SampleSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room may come free before the commit: then the look for it finds nothing, and there is no other."""

    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            await until(lambda: here.remote.told >= 2, "the first looks at the table")
            monkeypatch.setattr(here.relay.runners["crm"], "reserve", lambda: False)
            await here.post(raw_event(1))
            await until(lambda: crm.total == 1, "the request", worker.HEARD_POLL_SECONDS / 2)

    run(scenario())


def test_what_is_ours_no_more_is_dropped_with_the_commit_that_told_so() -> None:
    dropped: list[tuple[str, Collection[str]]] = []
    lane = worker._Renewals(lambda name, event_ids: dropped.append((name, event_ids)))

    lane.committed([], [{}, {"crm": {"a"}}])

    assert dropped == [("crm", {"a"})]


@on_one_database
def test_first_attempts_never_wait_behind_retries(database: Database, crm: SampleSink) -> None:
    retries = set(store_many(database, 40, priority=Priority.RETRY, attempt_count=1, schedule_step=1))
    crm.answer_with(lambda r: Answer.hanging() if r.webhook_id in retries else Answer())

    async def scenario() -> None:
        async with station(database, 0.1, crm=sink(url(crm), concurrency=4, **QUICK)) as here:
            await until(lambda: crm.total == 2, "retries in their half of the slots")
            for n in range(5):
                await here.post(raw_event(n))
            await until(lambda: states(database)["delivered"] == 5, "the fresh ones", 4)
            assert crm.total == 2 + 5

    run(scenario())


@on_one_database
def test_a_short_schedule_is_kept_to_and_does_not_wait_for_the_next_poll(database: Database, crm: SampleSink) -> None:
    crm.answer_next(500, 500, 500)

    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            await here.post(raw_event(1))
            await all_delivered(database, 1)

    run(scenario())
    at = [r.at for r in crm.requests]
    waits = [later - earlier for earlier, later in pairwise(at)]
    assert len(waits) == 3
    assert all(0.099 <= wait < 0.7 for wait in waits), waits


@on_one_database
def test_it_looks_no_oftener_than_it_must(database: Database, crm: SampleSink) -> None:
    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            started, before = time.monotonic(), here.remote.reads
            for n in range(40):
                await here.post(raw_event(n))
                await until(lambda n=n: crm.total == n + 1, "the request")
                await until(here.is_idle, "the record")
            polls = (time.monotonic() - started) + 2
            assert here.remote.reads - before <= 2 * polls

    run(scenario())


@on_one_database
def test_a_look_that_is_under_way_does_not_swallow_a_wake_up(database: Database, crm: SampleSink) -> None:
    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            here.remote.may_tell.clear()
            told = here.remote.told
            here.relay.look_again()
            await until(lambda: here.remote.told > told, "a look that has read the table")
            started = time.monotonic()
            store_event(database, next_attempt_at=utc_now() + timedelta(seconds=0.1))  # too late for that look
            here.relay.wake_at(utc_now() + timedelta(seconds=0.1))
            here.remote.may_tell.set()
            await all_delivered(database, 1)
            assert time.monotonic() - started < 0.8

    run(scenario())


# --- the breaker -----------------------------------------------------------------------------------------------------


@on_one_database
def test_an_open_breaker_keeps_deliveries_without_using_up_attempts_then_probes_with_one_and_drains(
    database: Database, crm: SampleSink, logs: list[Any]
) -> None:
    crm.answer_always(500)
    settings = sink(url(crm), breaker_failures=4, breaker_cooldown_seconds=0.4, concurrency=2, **QUICK)

    async def scenario() -> None:
        async with station(database, crm=settings) as here:
            await here.post(*(raw_event(n) for n in range(60)))
            runner = here.relay.runners["crm"]
            await until(lambda: here.relay.snapshot("crm")["breaker"] == "open", "an open breaker")
            await until(lambda: not runner.holds, "all given back")
            tried, waiting = crm.total, rows(database).values()
            assert tried <= 5
            assert all(r["lease_token"] is None and r["state"] == "pending" for r in waiting)
            assert sum(r["attempt_count"] for r in waiting) == tried
            crm.answer_always(Answer.delayed(0.3))
            await until(lambda: crm.total == tried + 1, "the probe")
            assert here.relay.snapshot("crm")["breaker"] == "half_open"
            await asyncio.sleep(0.15)  # while it is under way nothing else goes
            assert crm.total == tried + 1
            crm.answer_always(200)
            await all_delivered(database, 60)
            assert here.relay.snapshot("crm")["breaker"] == "closed"

    run(scenario())
    assert len(attempts(database)) == crm.total
    opened, closed = (
        sum(line["event"] == name for line in logs) for name in ("sink.breaker_opened", "sink.breaker_closed")
    )
    assert (opened, closed) == (1, 1)


@on_one_database
def test_a_failed_probe_waits_longer_and_the_next_goes_by_itself(database: Database, crm: SampleSink) -> None:
    crm.answer_always(500)
    settings = sink(url(crm), breaker_failures=1, breaker_cooldown_seconds=0.2, concurrency=1, **QUICK)
    store_many(database, 5)

    async def scenario() -> None:
        async with station(database, crm=settings):
            await until(lambda: crm.total >= 4, "three probes", 8)

    run(scenario())
    gaps = [later - earlier for earlier, later in pairwise(r.at for r in crm.requests)][:3]
    # 0.2, 0.4 and 0.8 seconds; each goes by its own timer, and not with the next poll
    assert [0.19 <= gap < wait + 0.6 for gap, wait in zip(gaps, (0.2, 0.4, 0.8), strict=True)] == [True] * 3
    assert gaps[2] >= 0.79


@on_one_database
def test_a_delivery_reserved_before_the_breaker_opened_is_not_stuck(database: Database, crm: SampleSink) -> None:
    settings = sink(url(crm), breaker_failures=1, breaker_cooldown_seconds=0.3, **QUICK)

    async def scenario() -> None:
        async with station(database, crm=settings) as here:
            assert here.relay.reserve("crm")
            runner = here.relay.runners["crm"]
            event = store_event(
                database, lease_token=here.relay.lease_token, next_attempt_at=utc_now() + timedelta(seconds=12)
            )
            runner.breaker.failed(time.monotonic())
            runner._wake_for_probe()
            assert not here.relay.reserve("crm")
            job = make_job()
            job.event_id = event
            here.relay.accept(job)  # committed only now
            await until(lambda: not runner.holds, "it to be given back")
            (waiting,) = rows(database).values()
            assert (waiting["lease_token"], waiting["attempt_count"]) == (None, 0)
            await all_delivered(database, 1, 5)
            assert runner.breaker.state(time.monotonic()) is BreakerState.CLOSED

    run(scenario())


@on_one_database
def test_a_sink_that_fails_nearly_always_is_held_back_though_it_never_fails_often_in_a_row(
    database: Database, crm: SampleSink, logs: list[Any]
) -> None:
    crm.answer_next(*([500] * 7 + [200]) * 20)
    settings = sink(url(crm), concurrency=1, breaker_cooldown_seconds=60, **QUICK | {"retry_schedule_seconds": [600]})

    async def scenario() -> None:
        async with station(database, crm=settings) as here:
            await here.post(*(raw_event(n) for n in range(40)))
            await until(lambda: here.relay.snapshot("crm")["breaker"] == "open", "an open breaker")
            await until(here.is_idle, "all given back")

    run(scenario())
    assert crm.total == 20
    assert [line["event"] for line in logs if "breaker" in line["event"]] == ["sink.breaker_opened"]


@on_one_database
def test_with_an_open_breaker_it_does_not_spin(database: Database, crm: SampleSink) -> None:
    store_many(database, 50)
    crm.answer_always(500)
    settings = sink(url(crm), breaker_failures=1, breaker_cooldown_seconds=60, **QUICK)

    async def scenario() -> None:
        async with station(database, crm=settings) as here:
            await until(lambda: here.relay.snapshot("crm")["breaker"] == "open", "an open breaker")
            await until(here.is_idle, "all given back")
            reads, writes = here.remote.reads, here.remote.writes
            await asyncio.sleep(1.2)
            assert here.remote.reads - reads <= 6
            assert here.remote.writes - writes <= 2

    run(scenario())


@on_one_database
def test_a_request_that_cannot_be_made_is_an_attempt_and_no_fault_of_the_sink(
    database: Database, crm: SampleSink, logs: list[Any]
) -> None:
    settings = sink(url(crm), envelope="jethook", breaker_failures=1, retry_schedule_seconds=[900])

    async def scenario() -> None:
        async with station(database, crm=settings) as here:
            assert here.relay.reserve("crm")
            event = store_event(database, lease_token=here.relay.lease_token)
            job = make_job()
            job.event_id, job.event = event, job.event[1:]  # no row of ours has such a shape
            here.relay.accept(job)
            await until(here.is_idle, "the record")
            assert here.relay.snapshot("crm")["breaker"] == "closed"

    run(scenario())
    (attempt,) = attempts(database)
    assert (attempt["outcome"], attempt["status"]) == ("invalid", None)
    assert attempt["error"].startswith("the request cannot be made")
    (row,) = rows(database).values()
    assert row["next_attempt_at"] > utc_now() + timedelta(seconds=600)  # it does not come back at once
    assert crm.total == 0


# --- pausing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)  # where there is another replica
def test_what_is_stored_after_a_pause_on_another_replica_does_not_go_out(database: Database, crm: SampleSink) -> None:
    settings = sink(url(crm), **QUICK)

    async def scenario() -> None:
        async with station(database, crm=settings) as here:
            await until(lambda: here.remote.told >= 2, "the first looks at the table")
            here.remote.may_tell.clear()  # from here on it learns of nothing by looking
            database.write(lambda c: sink_states.set_paused(c, "crm", paused=True, reason="by hand"))
            await here.post(raw_event(1), raw_event(2))
            await until(here.is_idle, "both given back")
            assert (crm.total, here.relay.snapshot("crm")["paused"]) == (0, True)
            here.remote.may_tell.set()

    run(scenario())
    assert states(database) == {"pending": 2}


def test_a_pause_reaches_another_replica_and_a_resume_too(
    database: Database, crm: SampleSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEARD_POLL_SECONDS", worker.POLL_SECONDS)  # on SQLite, where there are no others
    crm.answer_always(Answer.delayed(0.05))
    settings = sink(url(crm), concurrency=1, **QUICK)

    async def scenario() -> None:
        async with station(database, crm=settings) as here, station(database, crm=settings) as there:
            await there.post(*(raw_event(n) for n in range(200)))
            database.write(lambda c: sink_states.set_paused(c, "crm", paused=True, reason="by hand"))
            here.relay.paused("crm", "by hand")
            started = time.monotonic()
            await until(lambda: there.relay.snapshot("crm")["paused"], "the other replica to hear", 3)
            assert time.monotonic() - started < 2.5
            await until(lambda: here.is_idle() and there.is_idle(), "all given back")
            seen = crm.total
            kept = [r for r in rows(database).values() if r["state"] == "pending"]
            assert len(kept) + states(database)["delivered"] == 200
            assert all(r["lease_token"] is None and r["attempt_count"] == 0 for r in kept)
            await asyncio.sleep(0.3)
            assert crm.total == seen

            crm.answer_always(200)
            there.relay.runners["crm"].breaker.failed(time.monotonic())
            database.write(lambda c: sink_states.set_paused(c, "crm", paused=False, reason=None))
            here.relay.resumed("crm")
            await all_delivered(database, 200)
            await until(lambda: not there.relay.snapshot("crm")["paused"], "the other replica to hear", 3)

    run(scenario())
    assert set(crm.counts.values()) == {1}


@on_one_database
def test_a_pause_survives_a_restart(database: Database, crm: SampleSink) -> None:
    database.write(lambda c: sink_states.set_paused(c, "crm", paused=True, reason="by hand"))

    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            assert here.relay.snapshot("crm")["paused"]
            await here.post(raw_event(1))
            (row,) = rows(database).values()
            assert row["lease_token"] is None  # not handed over: it waits for whoever may send it

    run(scenario())
    assert crm.total == 0


@on_one_database
def test_a_look_from_before_a_pause_does_not_undo_it(database: Database, crm: SampleSink, logs: list[Any]) -> None:
    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            here.remote.may_tell.clear()
            told = here.remote.told
            here.relay.look_again()
            await until(lambda: here.remote.told > told, "a look that has read the table")
            database.write(lambda c: sink_states.set_paused(c, "crm", paused=True, reason="by hand"))
            here.relay.paused("crm", "by hand")
            here.remote.may_tell.set()
            reads = here.remote.reads
            await until(lambda: here.remote.reads > reads, "the next look")
            assert here.relay.snapshot("crm")["paused"]

    run(scenario())
    assert [line["event"] for line in logs if line["event"].startswith("sink.")] == ["sink.paused"]


@on_one_database
@pytest.mark.parametrize(
    "answer", [Answer(410), Answer(503, headers={"webhook-delivery": "disable"})], ids=["410", "disable"]
)
def test_a_sink_that_wants_no_more_is_paused_and_its_deliveries_wait(
    answer: Answer, database: Database, crm: SampleSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEARD_POLL_SECONDS", 0.2)
    crm.answer_always(answer)

    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), concurrency=1, **QUICK)) as here:
            await here.post(*(raw_event(n) for n in range(20)))
            await until(lambda: here.relay.snapshot("crm")["paused"], "the pause")
            await until(here.is_idle, "all given back")
            assert crm.total == 1
            with database.reading() as connection:
                assert sink_states.paused_sinks(connection).keys() == {"crm"}
            assert states(database) == {"pending": 20}
            assert max(r["schedule_step"] for r in rows(database).values()) == 0
            looks = here.remote.told
            await until(lambda: here.remote.told > looks + 1, "the next looks at the table")  # must not resume it
            assert crm.total == 1

            crm.answer_always(200)
            database.write(lambda c: sink_states.set_paused(c, "crm", paused=False, reason=None))
            here.relay.resumed("crm")
            await all_delivered(database, 20)

    run(scenario())


@on_one_database
def test_a_sink_that_pauses_itself_while_the_database_is_away_stays_paused(database: Database, crm: SampleSink) -> None:
    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            crm.answer_next(Answer(410, delay_seconds=0.2))
            await here.post(raw_event(1))
            await until(lambda: crm.total == 1, "the request")
            here.remote.is_away = True
            await until(lambda: here.relay.snapshot("crm")["paused"], "the pause")
            await asyncio.sleep(0.3)
            here.remote.is_away = False
            await until(here.is_idle, "the record", 8)
            with database.reading() as connection:
                assert "crm" in sink_states.paused_sinks(connection)
            assert here.relay.snapshot("crm")["paused"]

    run(scenario())
    assert crm.total == 1


# --- stopping --------------------------------------------------------------------------------------------------------


def test_a_stop_gives_back_what_is_not_sent_and_waits_only_so_long_for_a_sink_that_hangs(
    database: Database, crm: SampleSink
) -> None:
    crm.answer_always(Answer.hanging())

    async def scenario() -> None:
        here = Station(database, {"crm": sink(url(crm), concurrency=2, timeout_seconds=60)})
        await here.relay.start()
        await here.post(*(raw_event(n) for n in range(10)))
        await until(lambda: crm.total == 2, "two requests")
        started = time.monotonic()
        await here.relay.stop(0.3)
        assert 0.29 <= time.monotonic() - started < 3
        await here.commits.drain()
        assert here.nothing_in_hand()

    run(scenario())
    kept = rows(database).values()
    assert len(kept) == 10
    assert all(r["state"] == "pending" and r["lease_token"] is None and r["attempt_count"] == 0 for r in kept)
    assert all(r["next_attempt_at"] <= utc_now() for r in kept)
    assert attempts(database) == []


@on_one_database
def test_a_stop_finishes_what_is_under_way(database: Database, crm: SampleSink) -> None:
    crm.answer_always(Answer.delayed(0.3))

    async def scenario() -> None:
        async with station(database, 5, crm=sink(url(crm), concurrency=3, **QUICK)) as here:
            await here.post(*(raw_event(n) for n in range(3)))
            await until(lambda: crm.total == 3, "three requests")

    run(scenario())
    assert states(database) == {"delivered": 3}
    assert len(attempts(database)) == 3
    with database.reading() as connection:
        assert sink_states.list_states(connection)["crm"]["last_success_at"] is not None  # written at the end


@on_one_database
def test_what_is_committed_while_it_stops_is_given_back(database: Database, crm: SampleSink) -> None:
    async def scenario() -> None:
        here = Station(database, {"crm": sink(url(crm), **QUICK)})
        await here.relay.start()
        assert here.relay.reserve("crm")
        event = store_event(
            database, lease_token=here.relay.lease_token, next_attempt_at=utc_now() + timedelta(seconds=12)
        )
        await here.relay.stop(0.3)
        assert not here.relay.reserve("crm")
        job = make_job()
        job.event_id = event
        here.relay.accept(job)
        await asyncio.sleep(0)
        await here.commits.drain()

    run(scenario())
    (row,) = rows(database).values()
    assert row["lease_token"] is None
    assert crm.total == 0


@on_one_database
def test_a_stop_with_the_database_away_ends_in_bounded_time(database: Database, crm: SampleSink) -> None:
    async def scenario() -> float:
        here = Station(database, {"crm": sink(url(crm), **QUICK)})
        await here.relay.start()
        crm.answer_next(Answer.delayed(0.2))
        await here.post(raw_event(1))
        await until(lambda: crm.total == 1, "the request")
        here.remote.is_away = True
        started = time.monotonic()
        await here.relay.stop(0.3)
        return time.monotonic() - started

    assert run(scenario()) < 8
    (row,) = rows(database).values()
    assert row["state"] == "pending"  # its lease runs out by itself


# --- faults ----------------------------------------------------------------------------------------------------------


@on_one_database
def test_an_attempt_made_while_the_database_is_away_is_neither_lost_nor_repeated(
    database: Database, crm: SampleSink
) -> None:
    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            crm.answer_always(Answer.delayed(0.2))
            await here.post(*(raw_event(n) for n in range(10)))
            await until(lambda: crm.total == 10, "the requests")
            here.remote.is_away = True
            await asyncio.sleep(0.8)
            assert states(database) == {"pending": 10}
            here.remote.is_away = False
            await all_delivered(database, 10)
            await until(here.is_idle, "nothing in hand")

    run(scenario())
    assert set(crm.counts.values()) == {1}
    assert [a["number"] for a in attempts(database)] == [1] * 10


@on_one_database
def test_it_goes_on_when_the_database_comes_back(database: Database, crm: SampleSink) -> None:
    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            here.remote.is_away = True
            here.relay.look_again()
            reads = here.remote.reads
            await until(lambda: here.remote.reads > reads, "a look that fails")
            store_event(database)
            here.remote.is_away = False
            await all_delivered(database, 1)

    run(scenario())


def test_an_answer_of_any_bytes_is_recorded(database: Database, crm: SampleSink) -> None:
    crm.answer_next(Answer(500, b"\0\xff\xed\xa0\x80 " * 400), Answer(500, "é\0".encode() * 4000))

    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            await here.post(raw_event(1))
            await all_delivered(database, 1)

    run(scenario())
    assert [a["outcome"] for a in attempts(database)] == ["http_5xx", "http_5xx", "success"]


@on_one_database
def test_a_delivery_cancelled_while_it_is_sent_stays_cancelled(database: Database, crm: SampleSink) -> None:
    crm.answer_next(Answer(500, delay_seconds=0.3))

    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            event = store_event(database)
            here.relay.look_again()
            await until(lambda: crm.total == 1, "the request")
            database.write(lambda c: queue.cancel(c, event, "crm", utc_now()))
            await until(here.is_idle, "the record")
            await asyncio.sleep(0.3)  # longer than the schedule

    run(scenario())
    assert states(database) == {"cancelled": 1}
    assert crm.total == 1
    assert len(attempts(database)) == 1


def test_a_duplicate_post_leaves_nothing_reserved(database: Database, crm: SampleSink) -> None:
    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            await here.post(raw_event(1))
            answer = await here.ingest.accept("orders", raw_event(1), now_micros=to_micros(utc_now()))
            assert answer.duplicates == 1
            await all_delivered(database, 1)
            await until(here.is_idle, "nothing in hand")

    run(scenario())
    assert crm.total == 1


@on_one_database
def test_a_post_that_the_database_refuses_leaves_nothing_reserved(database: Database, crm: SampleSink) -> None:
    async def scenario() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            here.remote.is_away = True
            with pytest.raises(OperationalError):
                await here.post(raw_event(1))
            assert here.nothing_in_hand()

    run(scenario())
    assert crm.total == 0


# --- sinks among themselves ------------------------------------------------------------------------------------------


@on_one_database
def test_a_hanging_and_a_refusing_sink_do_not_hold_up_a_healthy_one(database: Database, crm: SampleSink) -> None:
    hanging, refusing = SampleSink(), SampleSink()
    hanging.answer_always(Answer.hanging())
    refusing.answer_always(500)
    with LocalServer(hanging) as slow, LocalServer(refusing) as bad:
        sinks = {
            "crm": sink(url(crm), **QUICK),
            "slow": sink(slow.url, concurrency=2, **(QUICK | {"timeout_seconds": 30})),
            "bad": sink(bad.url, **QUICK, **NEVER_OPEN),
        }

        async def scenario() -> None:
            async with station(database, 0.1, **sinks) as here:
                for n in range(100):
                    await here.post(raw_event(n))
                await until(lambda: crm.total == 100, "the healthy one to have all", 5)
                assert hanging.total == 2

        run(scenario())


@on_one_database
def test_a_sink_taken_out_of_the_settings_keeps_its_deliveries(database: Database, crm: SampleSink) -> None:
    store_event(database, sinks=("crm", "gone"))

    async def without() -> None:
        async with station(database, crm=sink(url(crm), **QUICK)):
            await until(lambda: states(database)["delivered"] == 1, "the other sink's")

    async def back() -> None:
        async with station(database, gone=sink(url(crm), **QUICK)):
            await all_delivered(database, 2)

    run(without())
    left = {r["sink"]: r for r in rows(database).values()}["gone"]
    assert (left["state"], left["attempt_count"], left["lease_token"]) == ("pending", 0, None)
    run(back())


def test_two_replicas_share_a_backlog_and_deliver_nothing_twice(database: Database, crm: SampleSink) -> None:
    store_many(database, 300)
    crm.answer_always(Answer.delayed(0.01))
    settings = sink(url(crm), concurrency=8, **QUICK)

    async def scenario() -> None:
        async with station(database, crm=settings) as here, station(database, crm=settings) as there:
            await here.post(*(raw_event(n) for n in range(50)))
            await there.post(*(raw_event(n) for n in range(50, 100)))
            await all_delivered(database, 400)

    run(scenario())
    assert crm.distinct == 400
    assert set(crm.counts.values()) == {1}


def test_the_lease_of_a_long_request_is_renewed(
    sqlite_url: str, crm: SampleSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no other replica finds it due; the statement itself is tested on both databases."""
    monkeypatch.setattr(worker, "LEASE_SECONDS", worker.LEASE_SECONDS / 4)
    monkeypatch.setattr(worker, "RENEW_SECONDS", worker.RENEW_SECONDS / 4)
    crm.answer_always(Answer.hanging())
    database = Database(sqlite_url)
    migrate(database)

    async def scenario() -> None:
        async with station(database, 0.1, crm=sink(url(crm), timeout_seconds=40)) as here:
            await here.post(raw_event(1))
            (row,) = rows(database).values()
            first = row["next_attempt_at"]
            row = await until(
                lambda: next((r for r in rows(database).values() if r["next_attempt_at"] > first), None),
                "a later lease", 9,
            )  # fmt: skip
            assert row["lease_token"] == here.relay.lease_token
            assert utc_now() < first  # in good time

    run(scenario())
    database.close()
    assert crm.total == 1


@pytest.mark.parametrize("more", [{}, {"batch_size": 3, "batch_linger_seconds": 0.01}], ids=["one by one", "batches"])
def test_what_is_cancelled_or_erased_while_it_waits_in_memory_is_not_sent(
    database: Database, more: dict[str, Any]
) -> None:
    gate = threading.Event()

    def hold(_: ReceivedRequest) -> None:
        gate.wait(20)

    crm = SampleSink(on_request=hold)

    async def scenario(target: str) -> None:
        async with station(database, crm=sink(target, concurrency=1, timeout_seconds=30, **more)) as here:
            bodies = [raw_event(n) for n in range(12)]
            await here.post(*bodies)
            await until(lambda: crm.total == 1, "the first to be on its way")
            runner = here.relay.runners["crm"]
            waiting = sorted(runner.held_ids - ids_in(crm.requests[0].body))
            gone, cancelled = waiting[1:5], waiting[-1]
            await here.remote.run_write(lambda c: erase_events(c, gone))
            await here.remote.run_write(lambda c: queue.cancel(c, cancelled, "crm", utc_now()))

            await here.relay._renew({"crm": runner.held_ids})
            gate.set()
            await until(here.is_idle, "all to be sent")

            sent = {id for request in crm.requests for id in ids_in(request.body)}
            assert sent == {id for body in bodies for id in ids_in(body)} - {*gone, cancelled}

    with LocalServer(crm) as server:
        try:
            run(scenario(server.url))
        finally:
            gate.set()
    assert states(database) == {"delivered": 7, "cancelled": 1}


@on_one_database
def test_a_test_event_is_sent_whatever_the_state_and_leaves_no_trace(database: Database, crm: SampleSink) -> None:
    database.write(lambda c: sink_states.set_paused(c, "crm", paused=True, reason="by hand"))
    crm.answer_next(Answer(418, b"short and stout"))

    async def scenario() -> dict[str, Any]:
        async with station(database, crm=sink(url(crm), envelope="cloudevents", **QUICK)) as here:
            here.relay.runners["crm"].breaker.failed(time.monotonic())
            return await here.relay.test("crm")

    result = run(scenario())
    assert (result["outcome"], result["status"], result["response_excerpt"]) == ("http_4xx", 418, "short and stout")
    (request,) = crm.requests
    assert request.json()["data"]["test"] is True
    assert request.webhook_id == json.loads(request.body)["id"]
    assert rows(database) == {}
    assert attempts(database) == []


@on_one_database
def test_metrics_tell_of_every_attempt(database: Database, crm: SampleSink) -> None:
    crm.answer_next(500)

    async def scenario() -> Station:
        async with station(database, crm=sink(url(crm), **QUICK)) as here:
            await here.post(raw_event(1))
            await all_delivered(database, 1)
            await until(here.is_idle, "the record")
            return here

    registry = run(scenario()).metrics.registry
    for outcome, count in (("success", 1), ("http_5xx", 1), ("timeout", 0)):
        labels = {"sink": "crm", "outcome": outcome}
        assert registry.get_sample_value("jethook_delivery_attempts_total", labels) == count
    assert registry.get_sample_value("jethook_delivery_duration_seconds_count", {"sink": "crm"}) == 2
    assert registry.get_sample_value("jethook_end_to_end_seconds_count", {"sink": "crm"}) == 1
