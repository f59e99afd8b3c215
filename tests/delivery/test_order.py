"""Events of one key arrive one after the other, by time; others are not held up. Real worker, both databases."""

from __future__ import annotations

import random
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from app.clock import utc_now
from app.db import Database
from app.delivery import queue
from app.delivery.queue import ClaimRequest
from app.dispatch.matching import order_key
from app.models import Delivery, Event, Priority
from app.settings import SinkSettings
from app.simulator.server import LocalServer
from app.simulator.sink import Answer, ReceivedRequest, SampleSink
from app.views import EVENT_ID
from tests.delivery.stand import Stand, event, make_due, numbers, rows, states
from tests.delivery.support import event_tuple, run, until
from tests.factories import event_values, insert, make_delivery

Settings = Callable[..., dict[str, SinkSettings]]
NOW = utc_now()


@pytest.fixture
def crm() -> SampleSink:
    return SampleSink()


@pytest.fixture
def settings(crm: SampleSink) -> Iterator[Settings]:
    """Settings of one sink, `crm`, in the order of recipients."""
    with LocalServer(crm) as server:

        def make(**given: Any) -> dict[str, SinkSettings]:
            values = {
                "url": server.url, "ordered_by": "recipient", "retry_schedule_seconds": (0.02, 0.02, 0.02),
                "min_backoff_seconds": 0, **given,
            }  # fmt: skip
            return {"crm": SinkSettings(**values)}

        yield make


def mail(number: int, who: str) -> dict[str, Any]:
    return event(number, email=f"{who}@example.com")


def arrivals(crm: SampleSink) -> dict[str, list[int]]:
    """Recipient -> the numbers of its events as they came, repeats included."""
    found: dict[str, list[int]] = defaultdict(list)
    for request in crm.requests:
        value = request.json()
        for one in value if isinstance(value, list) else [value]:
            found[one["email"][0]].append(one["n"])
    return found


def deliver(database: Database, sinks: dict[str, SinkSettings], *events: dict[str, Any]) -> None:
    async def main() -> None:
        async with Stand(database, sinks).running() as stand:
            if events:
                await stand.post(*events)
            await until(lambda: "pending" not in states(database), "an end")

    run(main())


def claim(database: Database, *, limit: int = 250, priority: int = Priority.FIRST, token: str = "me") -> list[str]:
    now = utc_now()
    request = ClaimRequest("crm", priority, limit, now, now + timedelta(seconds=12), token, is_ordered=True)
    return [job.event_id for job in database.write(lambda c: queue.claim_due(c, request))]


def owed(database: Database, number: int, key: str | None, **given: Any) -> str:
    """A due delivery of an event at second `number`; its id."""
    values = event_values(occurred_at=NOW.replace(microsecond=0) + timedelta(seconds=number))
    insert(database, Event, [values])
    given = {"next_attempt_at": utc_now() - timedelta(seconds=1), "order_key": key} | given
    return str(make_delivery(database, values, **given)["event_id"])


# --- over the wire ---------------------------------------------------------------------------------------------------


def test_posted_in_disorder_they_arrive_in_the_order_of_their_times(
    database: Database, crm: SampleSink, settings: Settings
) -> None:
    events = [mail(n, "abc"[n % 3]) for n in range(24)]
    random.Random(5).shuffle(events)

    deliver(database, settings(), *events)

    assert arrivals(crm) == {who: list(range(n, 24, 3)) for n, who in enumerate("abc")}


def test_a_failing_one_holds_up_its_own_key_only(database: Database, crm: SampleSink, settings: Settings) -> None:
    failures = [503, 503]

    def answer(request: ReceivedRequest) -> int:
        return failures.pop() if numbers(request) == [0] and failures else 200

    crm.answer_with(answer)
    sinks = settings(retry_schedule_seconds=(0.3, 0.3))

    deliver(database, sinks, mail(0, "a"), mail(1, "a"), mail(2, "a"), mail(3, "b"), mail(4, "b"))

    assert arrivals(crm) == {"a": [0, 0, 0, 1, 2], "b": [3, 4]}
    at = {(tuple(numbers(r)), r.headers["x-jethook-attempt"]): r.at for r in crm.requests}
    assert max(at[(3,), "1"], at[(4,), "1"]) < at[(0,), "2"]


def test_one_that_is_dead_or_cancelled_lets_the_next_go(
    database: Database, crm: SampleSink, settings: Settings
) -> None:
    crm.answer_with(lambda request: 400 if numbers(request)[0] in (0, 10) else 200)

    async def main() -> None:
        async with Stand(database, settings(client_error_tries=1)).running() as stand:
            await stand.post(mail(0, "a"), mail(1, "a"))
            await until(lambda: "pending" not in states(database), "a dead one and a delivered one")
        async with Stand(database, settings(retry_schedule_seconds=(3600,))).running() as stand:
            ids = await stand.post(mail(10, "b"), mail(11, "b"))
            await until(lambda: rows(database)[ids[0]]["attempt_count"] == 1, "a failure")
            assert rows(database)[ids[1]]["attempt_count"] == 0
            await database.run_write(lambda c: queue.cancel(c, ids[0], "crm", utc_now()))
            stand.relay.look_again()
            await until(lambda: rows(database)[ids[1]]["state"] == "delivered", "the next")

    run(main())

    assert arrivals(crm) == {"a": [0, 1], "b": [10, 11]}
    assert sorted(r["state"] for r in rows(database).values()) == ["cancelled", "dead", "delivered", "delivered"]


def test_two_replicas_keep_the_order_and_never_send_two_of_a_key_at_once(
    database: Database, crm: SampleSink, settings: Settings
) -> None:
    events = [mail(n, "abcdefgh"[n % 8]) for n in range(120)]
    random.Random(7).shuffle(events)
    lock, under_way, overlaps = threading.Lock(), defaultdict(float), []

    def answer(request: ReceivedRequest) -> Answer:
        who = request.json()["email"]
        with lock:
            if request.at < under_way[who]:
                overlaps.append(numbers(request))
            under_way[who] = request.at + 0.004
        return Answer.delayed(0.005)

    crm.answer_with(answer)

    async def main() -> None:
        async with Stand(database, settings()).running() as one, Stand(database, settings()).running() as other:
            await one.post(*events[:40])
            await other.post(*events[40:])
            await until(lambda: states(database) == {"delivered"}, "all", 25)

    run(main())

    assert overlaps == []
    assert set(crm.counts.values()) == {1}
    # What was in the other body may have come after its elders' turn: order is of what is known.
    for who, got in arrivals(crm).items():
        assert sorted(got) == [e["n"] for e in sorted(events, key=lambda e: e["n"]) if e["email"][0] == who]


def test_two_replicas_keep_the_order_of_what_is_owed(database: Database, crm: SampleSink, settings: Settings) -> None:
    made = [event_values(email=f"{'abcdef'[n % 6]}@example.com", raw=None) for n in range(60)]
    for n, values in enumerate(made):
        values["raw"] = f'{{"event":"open","time":1,"email":"{values["email"]}","n":{n}}}'
    insert(database, Event, sorted(made, key=lambda values: str(values["id"])))
    for values in reversed(made):
        make_delivery(database, values, order_key=values["email"], next_attempt_at=utc_now())

    async def main() -> None:
        async with Stand(database, settings()).running(), Stand(database, settings()).running():
            await until(lambda: states(database) == {"delivered"}, "all", 25)

    run(main())

    assert arrivals(crm) == {who: list(range(n, 60, 6)) for n, who in enumerate("abcdef")}


def test_a_replay_keeps_the_order(database: Database, crm: SampleSink, settings: Settings) -> None:
    deliver(database, settings(), *(mail(n, "ab"[n % 2]) for n in range(10)))
    again = {"state": "pending", "priority": int(Priority.REPLAY), "replay": True, "next_attempt_at": utc_now()}
    table = Delivery.__table__  # type: ignore[attr-defined]
    database.write(lambda c: c.execute(sa.update(table).values(**again)))
    crm.clear()
    crm.answer_next(500)

    deliver(database, settings())

    got = arrivals(crm)
    assert {who: sorted(set(ns)) for who, ns in got.items()} == {"a": [0, 2, 4, 6, 8], "b": [1, 3, 5, 7, 9]}
    assert all(ns == sorted(ns) for ns in got.values())
    assert crm.total == 11


def test_batches_hold_one_of_a_key_and_come_in_order(database: Database, crm: SampleSink, settings: Settings) -> None:
    crm.answer_next(500)
    sinks = settings(batch_size=10, batch_linger_seconds=0.01)

    deliver(database, sinks, *(mail(n, "abc"[n % 3]) for n in range(12)))

    for request in crm.requests:
        assert len({one["email"] for one in request.json()}) == len(request.json())
    for got in arrivals(crm).values():
        assert got == sorted(got)
        assert len(set(got)) == 4


def test_the_next_goes_without_waiting_for_a_poll(database: Database, crm: SampleSink, settings: Settings) -> None:
    async def main() -> None:
        async with Stand(database, settings()).running() as stand:
            for n in range(8):
                await stand.post(mail(n, "a"))
                await until(lambda n=n: crm.total == n + 1, "the event", 5)

    run(main())

    gaps = [later.at - one.at for one, later in zip(crm.requests, crm.requests[1:], strict=False)]
    assert sorted(gaps)[len(gaps) // 2] < 0.3  # polls are a second apart


def test_a_probe_is_found_behind_what_may_not_go_before_it(
    database: Database, crm: SampleSink, settings: Settings
) -> None:
    """The one that failed is a retry; all first attempts wait for it. The probe must be that one."""
    crm.answer_next(500)
    sinks = settings(breaker_failures=1, breaker_cooldown_seconds=0.1)

    deliver(database, sinks, *(mail(n, "a") for n in range(4)))

    assert arrivals(crm) == {"a": [0, 0, 1, 2, 3]}


# --- the claim -------------------------------------------------------------------------------------------------------


def test_a_claim_takes_the_first_of_each_key_and_all_without_one(database: Database) -> None:
    late = owed(database, 5, "a")
    first, other = owed(database, 1, "a"), owed(database, 9, "b")
    free = [owed(database, 2, None), owed(database, 3, None)]
    owed(database, 0, "b", sink="another")

    assert sorted(claim(database)) == sorted([first, other, *free])
    assert late not in claim(database, token="she")


def test_an_elder_that_comes_late_waits_for_what_is_under_way(database: Database) -> None:
    younger = owed(database, 5, "a")
    assert claim(database) == [younger]
    elder = owed(database, 1, "a")

    assert claim(database, token="she") == []

    make_due(database)  # whoever held it died
    assert claim(database, token="she") == [elder]


def test_a_batch_waits_for_an_elder_of_one_of_its_members(database: Database) -> None:
    retry = {"batch_id": EVENT_ID, "priority": Priority.RETRY, "attempt_count": 1}
    members = [owed(database, 5, "a", **retry), owed(database, 6, "b", **retry)]
    elder = owed(database, 1, "b")

    assert claim(database, priority=Priority.RETRY) == []
    assert claim(database) == [elder]
    table = Delivery.__table__  # type: ignore[attr-defined]
    database.write(lambda c: c.execute(sa.update(table).where(table.c.event_id == elder).values(state="delivered")))
    assert claim(database, priority=Priority.RETRY, limit=1) == members


def test_members_of_one_batch_never_wait_for_each_other(database: Database) -> None:
    """Batches that were formed before the sink asked for an order may hold several of a key."""
    members = [owed(database, n, "a", batch_id=EVENT_ID) for n in range(3)]

    assert claim(database) == members


@pytest.mark.parametrize(
    ("ordered_by", "given", "key"),
    [
        (None, {}, None),
        ("recipient", {"email": "b@example.com"}, "b@example.com"),
        ("recipient", {"email": None}, None),
        ("message", {"message_id": "7", "message_guid": "g"}, "7"),
        ("message", {"message_id": None, "message_guid": "g"}, "g"),
        ("message", {"message_id": None}, None),
    ],
)
def test_the_key_of_an_order(ordered_by: str | None, given: dict[str, Any], key: str | None) -> None:
    assert order_key(event_tuple(**given), ordered_by) == key


def test_the_claim_looks_things_up_in_its_indexes(database: Database) -> None:
    """With rows enough that a plan by reading everything would be the worse one."""
    values = [event_values(n=n) for n in range(400)]
    insert(database, Event, sorted(values, key=lambda v: str(v["id"])))
    table = Delivery.__table__  # type: ignore[attr-defined]
    moment = utc_now()
    made = [
        {"event_id": v["id"], "sink": ("crm", "other")[n % 2], "webhook": "orders", "type": "open", "attempt_count": 0,
         "state": "pending" if n % 10 < 2 else "delivered", "next_attempt_at": moment, "order_key": f"key{n % 97}",
         "created_at": moment, "priority": 0, "schedule_step": 0, "replay": False}
        for n, v in enumerate(values)
    ]  # fmt: skip
    database.write(lambda c: c.execute(sa.insert(table), made))
    statement = queue.due_ids(ClaimRequest("crm", 0, 250, moment, moment, "me", is_ordered=True))
    dialect = sqlite.dialect() if database.is_sqlite else postgresql.dialect()
    text = str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))

    def explain(connection: sa.Connection) -> str:
        if database.is_sqlite:
            return "\n".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}"))
        connection.exec_driver_sql("ANALYZE deliveries")
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        return "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {text.replace('%', '%%')}"))

    plan = database.write(explain)

    assert "ix_deliveries_due" in plan, plan
    assert "ix_deliveries_order" in plan, plan
    assert not re.search(r"SCAN (?!CONSTANT)|Seq Scan", plan), plan
