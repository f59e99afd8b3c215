"""Replays with the real worker and a real receiver, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from app.clock import utc_now
from app.db import Database
from app.delivery.worker import Relay
from app.group_commit import GroupCommit
from app.metrics import Metrics
from app.models import Attempt, Event
from app.replay import queries
from app.replay.queries import deliveries
from app.replay.selection import recipients
from app.replay.service import Replays
from app.settings import SinkSettings
from app.simulator.server import LocalServer
from app.simulator.sink import Answer, SampleSink
from tests.factories import event_values, insert, make_attempt, make_delivery
from tests.replay.conftest import Bench, run

attempts = Attempt.__table__


class Stand:
    """One receiver, the worker that sends to it, and one replica of replays after the other."""

    def __init__(self, database: Database, url: str, **settings: Any) -> None:
        sinks = {"crm": SinkSettings(url=url, **settings)}
        commits = GroupCommit(database)
        self.bench = Bench(database, recipients=recipients(sinks))
        self.relay = Relay(sinks, database=database, commits=commits, metrics=Metrics(webhooks=[], sinks=sinks))
        self._commits = commits

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.relay.start()
        try:
            yield
        finally:
            await self.relay.stop()
            await self._commits.drain()

    @asynccontextmanager
    async def replica(self, owner: str) -> AsyncIterator[None]:
        """As in a service; at the end of the block it dies without a word."""
        worker = Replays(self.bench.recipients, self.bench.database, owner, self.relay.look_again, lease_seconds=0.5)
        task = asyncio.create_task(worker.run(asyncio.Event()))
        try:
            yield
        finally:
            worker._works.clear()  # the dead give no leases back
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, replay: str, reached: Callable[[Any], bool]) -> Any:
        """The replay once `reached`; the timeout of the test bounds it."""
        while not reached(row := self.bench.get(replay)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # as a client would watch it
        return row

    def ask(self, **options: Any) -> str:
        self.bench.now = utc_now()
        return self.bench.ask(**options)


def ended(row: Any) -> bool:
    return row.finished_at is not None


@pytest.fixture
def sink():
    return SampleSink()


@pytest.fixture
def url(sink):
    with LocalServer(sink) as server:
        yield server.url


def stored(database, count, **given):
    rows = sorted((event_values(**given) for _ in range(count)), key=lambda row: row["id"])
    insert(database, Event, rows)
    return rows


def test_a_sink_added_today_gets_last_weeks_events_once_each(database, sink, url):
    events = stored(database, 300)
    stand = Stand(database, url)
    replay = stand.ask()

    async def main():
        async with stand.running(), stand.replica("a"):
            return await stand.until(replay, ended)

    row = run(main())

    assert (row.state, row.count, row.done, row.failed) == ("done", 300, 300, 0)
    assert sink.counts == {event["id"]: 1 for event in events}
    by_id = {event["id"]: orjson.loads(event["raw"]) for event in events}
    for request in sink.requests:
        assert request.headers["x-jethook-replay"] == "true"
        assert request.headers["x-jethook-attempt"] == "1"
        assert request.headers["idempotency-key"] == request.webhook_id
        assert request.json() == by_id[request.webhook_id]
    with database.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).where(attempts.c.replay)).scalar_one() == 300


def test_dead_deliveries_are_sent_again_with_the_next_attempt_number(database, sink, url):
    stand = Stand(database, url, retry_schedule_seconds=(0,), min_backoff_seconds=0)
    made = []
    for event, state in zip(stored(database, 6), ("dead", "delivered") * 3, strict=True):
        made.append(make_delivery(database, event, state=state, attempt_count=1, settled_at=event["received_at"]))
        make_attempt(database, made[-1], outcome="success" if state == "delivered" else "http_5xx")
    sink.answer_next(500)
    replay = stand.ask(dead=True)

    async def main():
        async with stand.running(), stand.replica("a"):
            return await stand.until(replay, ended)

    row = run(main())

    assert (row.state, row.count, row.done, row.failed) == ("done", 3, 3, 0)
    assert set(sink.counts) == {delivery["event_id"] for delivery in made[::2]}
    assert sorted(request.headers["x-jethook-attempt"] for request in sink.requests) == ["2", "2", "2", "3"]
    assert {request.headers["x-jethook-replay"] for request in sink.requests} == {"true"}


def test_a_replica_that_dies_in_the_middle_is_succeeded(database, sink, url):
    events = stored(database, 700)
    stand = Stand(database, url)
    replay = stand.ask()

    async def main():
        async with stand.running():
            for number in range(3):
                async with stand.replica(f"dying-{number}"):
                    await stand.until(replay, lambda row, least=100 * number: row.taken > least)
            async with stand.replica("last"):
                return await stand.until(replay, ended)

    row = run(main())

    assert (row.state, row.taken, row.done) == ("done", 700, 700)
    assert sink.counts == {event["id"]: 1 for event in events}


def test_a_cancelled_one_sends_no_more_than_what_was_in_hand(database, sink, url):
    stored(database, 900)
    stand = Stand(database, url, concurrency=2)
    sink.answer_always(Answer.delayed(0.005))
    replay = stand.ask()

    async def main():
        async with stand.running(), stand.replica("a"):
            await stand.until(replay, lambda row: sink.total >= 20)
            await database.run_write(lambda c: queries.cancel(c, replay, utc_now()))
            return await stand.until(replay, ended)

    row = run(main())

    rows = stand.bench.deliveries()
    assert row.state == "cancelled"
    assert len(rows) == row.taken < 900
    assert {delivery["state"] for delivery in rows} <= {"delivered", "cancelled"}
    arrived = {delivery["event_id"] for delivery in rows if delivery["state"] == "delivered"}
    assert sink.counts == dict.fromkeys(arrived, 1)
    assert row.done == len(arrived) < 900
    assert stand.bench.deliveries(deliveries.c.state == "pending") == []
