"""Sinks that fail and sinks that hear of it: the real worker, over HTTP, on both databases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from app.alerts.bounds import Bounds
from app.alerts.service import Alerts
from app.clock import to_micros, utc_now
from app.db import Database
from app.delivery import worker
from app.delivery.worker import Relay
from app.dispatch import sink_states
from app.dispatch.matching import Matcher
from app.group_commit import GroupCommit
from app.ingest.service import Ingest
from app.metrics import Metrics
from app.models import Event
from app.settings import SinkSettings, WebhookSettings
from app.simulator.server import LocalServer
from app.simulator.sink import Answer, SampleSink
from tests.delivery.stand import deliveries, event, rows
from tests.delivery.support import run, until
from tests.e2e.service import SinkFarm

EVENTS = Event.__table__
QUICK: dict[str, Any] = {
    "retry_schedule_seconds": [0.05] * 50, "min_backoff_seconds": 0, "breaker_failures": 2,
    "breaker_cooldown_seconds": 0.2,
}  # fmt: skip
SHORT = {**QUICK, "retry_schedule_seconds": [0.01], "breaker_failures": 1000}
on_one_database = pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)  # where it makes no difference


@pytest.fixture
def farm() -> Iterator[SinkFarm]:
    with SinkFarm(["crm", "erp", "pager", "plain"]) as farm:
        yield farm


class Stand:
    """One replica that tells of itself."""

    def __init__(self, database: Database, sinks: dict[str, SinkSettings], replica: str = "here") -> None:
        self.alerts = Alerts(
            sinks, database, instance="jethook", replica=replica, bounds=Bounds(),
            stored=lambda: self.relay.look_everywhere(),  # noqa: PLW0108  made below
        )  # fmt: skip
        self.commits = GroupCommit(database)
        metrics = Metrics(webhooks=["orders"], sinks=sinks)
        self.relay = Relay(sinks, database=database, commits=self.commits, metrics=metrics, herald=self.alerts)
        self.ingest = Ingest(
            {"orders": WebhookSettings()}, matcher=Matcher(sinks), commits=self.commits, worker=self.relay,
            herald=self.alerts,
        )  # fmt: skip

    async def post(self, *events: Any) -> None:
        await self.ingest.accept("orders", json.dumps(events).encode(), now_micros=to_micros(utc_now()))


@asynccontextmanager
async def stand(
    database: Database, farm: SinkFarm, replica: str = "here", **sinks: dict[str, Any]
) -> AsyncIterator[Stand]:
    configured = {name: SinkSettings(url=farm.url(name), **given) for name, given in sinks.items()}
    here = Stand(database, configured, replica)
    await here.alerts.start()
    await here.relay.start()
    try:
        yield here
    finally:
        await here.relay.stop(2)
        await here.commits.drain()
        await here.alerts.stop()


def told(database: Database) -> list[dict[str, Any]]:
    """The operator events, in the order they were stored."""
    ours = sa.select(EVENTS.c.raw).where(EVENTS.c.webhook == "jethook").order_by(EVENTS.c.seq)
    with database.reading() as connection:
        return [json.loads(raw) for raw in connection.execute(ours).scalars()]


def types(database: Database) -> list[tuple[str, str]]:
    return [(raw["event"], raw.get("sink") or raw.get("webhook")) for raw in told(database)]


def heard(sink: SampleSink) -> list[tuple[str, str]]:
    """(operator type, the sink it is about) of what a sink got."""
    bodies = [request.json() for request in sink.requests if request.headers["x-jethook-webhook"] == "jethook"]
    return [(body["event"], body.get("sink") or body.get("webhook")) for body in bodies]


def pending(database: Database) -> int:
    with database.reading() as connection:
        wanted = sa.select(sa.func.count()).where(deliveries.c.state == "pending")
        return int(connection.execute(wanted).scalar_one())


def test_a_sink_that_fails_and_heals_is_heard_of_once_each_by_who_asks(database: Database, farm: SinkFarm) -> None:
    farm["crm"].answer_always(503)

    async def scenario() -> None:
        async with stand(
            database, farm, crm={**QUICK, "events": ["open", "jethook.*"]}, pager={"events": ["jethook.*"]}, plain={}
        ) as here:
            await here.post(*(event(n) for n in range(20)))
            await until(lambda: farm["pager"].requests, "the first")
            assert heard(farm["pager"]) == [("jethook.sink.opened", "crm")]
            farm["crm"].answer_always(200)
            await until(lambda: pending(database) == 0, "all delivered", 20)
            await until(lambda: len(heard(farm["pager"])) == 2, "the second")

    run(scenario(), 60)
    assert heard(farm["pager"]) == [("jethook.sink.opened", "crm"), ("jethook.sink.recovered", "crm")]
    assert types(database) == heard(farm["pager"])
    assert heard(farm["crm"]) == heard(farm["plain"]) == []
    assert len(rows(database, "plain")) == 20
    opened, recovered = told(database)
    assert (opened["error"], opened["status"], opened["failures"], opened["replica"]) == ("http_5xx", 503, 2, "here")
    assert opened["backlog"] >= 1
    assert opened["since"] < opened["at"]
    assert recovered["since"] == opened["at"] < recovered["at"]
    assert {request.webhook_id for request in farm["pager"].requests} == rows(database, "pager").keys()
    assert farm["pager"].requests[0].headers["x-jethook-event"] == "jethook.sink.opened"


def test_each_replica_tells_of_its_own_breaker(database: Database, farm: SinkFarm) -> None:
    farm["crm"].answer_always(503)
    sinks = {"crm": {**QUICK, "events": ["open"]}, "pager": {"events": ["jethook.*"]}}

    async def scenario() -> None:
        async with stand(database, farm, **sinks) as here, stand(database, farm, "there", **sinks) as there:
            await here.post(*(event(n) for n in range(5)))
            await there.post(*(event(n) for n in range(5, 10)))
            await until(lambda: len(heard(farm["pager"])) == 2, "both")
            farm["crm"].answer_always(200)
            await until(lambda: pending(database) == 0, "all delivered", 20)

    run(scenario(), 60)
    opened = [raw for raw in told(database) if raw["event"] == "jethook.sink.opened"]
    assert sorted(raw["replica"] for raw in opened) == ["here", "there"]


@on_one_database
def test_what_becomes_of_an_operator_event_is_no_news(database: Database, farm: SinkFarm) -> None:
    for name, answer in (("crm", 500), ("erp", 410)):
        farm[name].answer_always(answer)
    eager = {**QUICK, "breaker_failures": 1, "retry_schedule_seconds": [0.05], "events": ["jethook.*"]}

    async def scenario() -> None:
        async with stand(database, farm, crm=eager, erp=eager, pager={"events": ["jethook.*"]}) as here:
            await here.post("no event")
            await until(lambda: {row["state"] for row in rows(database).values()} == {"dead"}, "its end")
            await until(lambda: here.relay.snapshot("erp")["paused"], "the pause")
            await until(lambda: heard(farm["pager"]), "the news")

    run(scenario(), 60)
    assert types(database) == [("jethook.event.quarantined", "orders")]
    assert heard(farm["pager"]) == types(database)


@on_one_database
def test_two_alert_sinks_that_fail_at_each_other_do_not_loop(
    database: Database, farm: SinkFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst case: each opens at every failure and closes at every success, and answers by turns."""
    monkeypatch.setattr(worker, "HEARD_POLL_SECONDS", 0.3)
    for name in ("crm", "erp"):
        count = iter(range(10**6))
        farm[name].answer_with(lambda _, count=count: (503, 200)[next(count) % 2])
    flapping = {**QUICK, "breaker_failures": 1, "breaker_cooldown_seconds": 0.05, "events": ["open", "jethook.*"]}

    async def scenario() -> None:
        async with stand(database, farm, crm=flapping, erp=flapping) as here:
            await here.post(event(1))
            await until(lambda: len(told(database)) >= 2 and pending(database) == 0, "peace")
            seen = len(told(database))
            asked = farm["crm"].total + farm["erp"].total
            # Longer than the worker's poll, the cool-down and the retries together.
            await asyncio.sleep(1)
            assert (len(told(database)), farm["crm"].total + farm["erp"].total) == (seen, asked)
            assert pending(database) == 0

    run(scenario(), 60)
    # All of it was caused by the one event of Mailjet's.
    assert sorted(set(types(database))) == [
        ("jethook.sink.opened", "crm"), ("jethook.sink.opened", "erp"),
        ("jethook.sink.recovered", "crm"), ("jethook.sink.recovered", "erp"),
    ]  # fmt: skip
    assert len(told(database)) == 4


def test_dead_deliveries_are_told_together_and_those_of_operator_events_not_at_all(
    database: Database, farm: SinkFarm
) -> None:
    for name in ("crm", "pager"):
        farm[name].answer_always(500)

    async def scenario() -> None:
        async with stand(
            database, farm, crm={**SHORT, "events": ["open"]}, pager={**SHORT, "events": ["jethook.*"]},
            erp={"events": ["jethook.delivery.dead"]},
        ) as here:  # fmt: skip
            await here.post(*(event(n) for n in range(300)))
            await until(lambda: pending(database) == 0, "nothing owed", 20)
            await until(lambda: heard(farm["erp"]), "the news")
            assert {row["state"] for row in rows(database, "crm").values()} == {"dead"}
            await until(lambda: {row["state"] for row in rows(database, "pager").values()} == {"dead"}, "its end")

    run(scenario(), 60)
    # The rest of the minute is told at the stop.
    assert types(database) == [("jethook.delivery.dead", "crm")] * 2
    first, rest = told(database)
    assert first["count"] + rest["count"] == 300
    assert (first["error"], first["status"], first["reason"]) == ("http_5xx", 500, "the retry schedule is used up")
    assert {first["first_event_id"], rest["first_event_id"]} <= rows(database, "crm").keys()


def test_a_sink_that_wants_no_more_is_told_by_the_replica_that_paused_it(
    database: Database, farm: SinkFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL the other one hears of it; on SQLite, where there is none but in tests, it finds it."""
    monkeypatch.setattr(worker, "HEARD_POLL_SECONDS", 0.5 if database.is_sqlite else 60.0)
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.5 if database.is_sqlite else 60.0)
    farm["crm"].answer_always(Answer(410))

    async def scenario() -> None:
        sinks = {"crm": {**QUICK, "events": ["open"]}, "pager": {"events": ["jethook.*"]}}
        async with stand(database, farm, **sinks) as here, stand(database, farm, **sinks) as there:
            await here.post(*(event(n) for n in range(20)))
            await until(lambda: heard(farm["pager"]), "the news")
            await until(lambda: there.relay.snapshot("crm")["paused"], "the other replica to follow")

    run(scenario(), 60)
    assert types(database) == [("jethook.sink.paused", "crm")]
    assert told(database)[0]["error"] == "the sink answered 410"
    assert heard(farm["pager"]) == types(database)


@on_one_database
def test_a_resume_closes_the_breaker_and_says_so(database: Database, farm: SinkFarm) -> None:
    farm["crm"].answer_always(503)
    asleep = {**QUICK, "breaker_cooldown_seconds": 600, "events": ["open"]}

    async def scenario() -> None:
        async with stand(database, farm, crm=asleep, pager={"events": ["jethook.*"]}) as here:
            await here.post(event(1))
            await until(lambda: told(database), "the opening")
            farm["crm"].answer_always(200)
            database.write(lambda c: sink_states.set_paused(c, "crm", paused=False, reason=None))
            here.relay.resumed("crm")
            await until(lambda: len(told(database)) == 2, "the recovery")

    run(scenario(), 60)
    assert types(database) == [("jethook.sink.opened", "crm"), ("jethook.sink.recovered", "crm")]
    assert told(database)[1]["error"] == "a person resumed the sink"


@on_one_database
def test_a_batch_with_mail_in_it_is_told_and_counts_only_mail(database: Database, farm: SinkFarm) -> None:
    farm["crm"].answer_always(500)
    batched = {**SHORT, "batch_size": 10, "batch_linger_seconds": 0.05, "events": ["open", "jethook.*"]}

    async def scenario() -> None:
        async with stand(database, farm, crm=batched, pager={"events": ["jethook.*"]}) as here:
            await here.post(*(event(n) for n in range(4)))
            await here.post("no event")  # an operator event that crm is owed as well
            await until(lambda: len(rows(database)) == 5 and pending(database) == 0, "nothing owed")
            await until(lambda: len(told(database)) >= 2, "the news")

    run(scenario(), 60)
    found = told(database)
    dead = [raw for raw in found if raw["event"] == "jethook.delivery.dead"]
    assert sum(raw["count"] for raw in dead) == 4
    (unread,) = [raw for raw in found if raw["event"] == "jethook.event.quarantined"]
    assert (unread["webhook"], unread["count"], unread["error"]) == ("orders", 1, "not an object")


@on_one_database
def test_what_cannot_be_read_is_told_by_its_webhook_and_counted(database: Database, farm: SinkFarm) -> None:
    async def scenario() -> None:
        async with stand(database, farm, pager={"events": ["jethook.*"]}) as here:
            for number in range(50):
                await here.post(event(number), f"no event {number}", {"event": "open"})
            await until(lambda: heard(farm["pager"]), "the news")

    run(scenario(), 60)
    first, rest = told(database)
    assert (first["webhook"], first["count"], rest["count"]) == ("orders", 2, 98)
    assert "no event" not in json.dumps([first, rest])
    assert rest["first_quarantine_id"] != first["first_quarantine_id"]


@on_one_database
def test_operator_events_are_signed_batched_and_wrapped_like_others(database: Database) -> None:
    secret = "whsec_" + "QUFB" * 8
    sink = SampleSink(secrets=[secret])

    async def scenario(url: str) -> None:
        given = SinkSettings(
            url=url,
            events=("jethook.*",),
            envelope="cloudevents",
            secrets=(secret,),
            batch_size=5,  # type: ignore[arg-type]
        )
        here = Stand(database, {"pager": given})
        await here.alerts.start()
        await here.relay.start()
        await here.post("no event")
        await until(lambda: sink.requests, "the news")
        await here.relay.stop(2)
        await here.commits.drain()
        await here.alerts.stop()

    with LocalServer(sink) as server:
        run(scenario(server.url))
    (request,) = sink.requests
    assert request.signature_fault is None
    (body,) = request.json()
    assert (body["type"], body["source"], body["subject"]) == ("jethook.event.quarantined", "/jethook", "orders")
    assert body["data"]["webhook"] == "jethook"
    assert body["data"]["details"]["count"] == 1
