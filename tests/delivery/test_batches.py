"""Batches with the real worker, on both databases, to sinks over real HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from app.clock import utc_now
from app.db import Database
from app.delivery import queue
from app.delivery.batching import batch_id
from app.delivery.queue import ClaimRequest
from app.models import DeliveryState, Priority
from app.settings import SinkSettings
from app.simulator.server import LocalServer
from app.simulator.sink import ReceivedRequest, SampleSink
from app.views import EVENT_ID
from tests.delivery.stand import Stand, attempts_of, event, make_due, numbers, rows, states
from tests.delivery.support import run, until
from tests.e2e.service import SinkFarm, id_of
from tests.factories import event_values, insert, make_delivery

SECRET = "whsec_" + base64.b64encode(bytes([7]) * 32).decode()
Settings = Callable[..., dict[str, SinkSettings]]


@pytest.fixture
def crm() -> SampleSink:
    return SampleSink(secrets=[SECRET])


@pytest.fixture
def settings(crm: SampleSink) -> Iterator[Settings]:
    """Settings of one sink, `crm`, that takes batches."""
    with LocalServer(crm) as server:

        def make(**given: Any) -> dict[str, SinkSettings]:
            values = {
                "url": server.url, "secrets": [SECRET], "batch_size": 10, "batch_linger_seconds": 0.03,
                "retry_schedule_seconds": (0, 0, 0), "min_backoff_seconds": 0, **given,
            }  # fmt: skip
            return {"crm": SinkSettings(**values)}

        yield make


def delivered(database: Database, sink: str = "crm") -> Callable[[], bool]:
    return lambda: states(database, sink) == {"delivered"}


# --- what a batch is -------------------------------------------------------------------------------------------------


def test_arrays_of_up_to_the_size_in_every_envelope_and_no_event_at_another_sink(database: Database) -> None:
    names = ["mailjet", "jethook", "cloudevents", "bounces"]
    with SinkFarm(names, secrets=[SECRET]) as farm:
        common = {"secrets": [SECRET], "batch_size": 10, "batch_linger_seconds": 0.1}
        sinks = {n: SinkSettings(url=farm.url(n), envelope=n, events=("open",), **common) for n in names[:3]}
        sinks["bounces"] = SinkSettings(url=farm.url("bounces"), events=("bounce",), **common)
        opens, bounces = [event(n) for n in range(25)], [event(n, event="bounce") for n in range(100, 107)]

        async def main() -> None:
            async with Stand(database, sinks).running() as stand:
                await stand.post(*opens[:20], *bounces, *opens[20:])
                for name in names:
                    await until(delivered(database, name), f"all at {name}")

        run(main())

        expected = {
            "mailjet": ("application/json", lambda body: body),
            "jethook": ("application/json", lambda body: [one["raw"] for one in body["events"]]),
            "cloudevents": ("application/cloudevents-batch+json", lambda body: [one["data"]["raw"] for one in body]),
            "bounces": ("application/json", lambda body: body),
        }
        for name, (content_type, unwrap) in expected.items():
            requests = farm[name].requests
            sizes = sorted((len(unwrap(r.json())) for r in requests), reverse=True)
            assert sizes == ([7] if name == "bounces" else [10, 10, 5])
            got = [one for request in requests for one in unwrap(request.json())]
            assert sorted(got, key=lambda one: one["n"]) == (bounces if name == "bounces" else opens)
            for request in requests:
                members = unwrap(request.json())
                assert request.signature_fault is None
                assert request.headers["content-type"] == content_type
                assert request.headers["x-jethook-batch"] == str(len(members))
                assert request.headers["x-jethook-attempt"] == "1"
                assert not {"x-jethook-webhook", "x-jethook-event", "x-jethook-replay"} & request.headers.keys()
                assert request.webhook_id == request.headers["idempotency-key"] == batch_id(map(id_of, members))


def test_one_event_alone_is_an_array_of_one_after_the_linger(
    database: Database, crm: SampleSink, settings: Settings
) -> None:
    async def main() -> float:
        async with Stand(database, settings(batch_linger_seconds=0.2)).running() as stand:
            began = utc_now().timestamp()
            await stand.post(event(1))
            await until(delivered(database), "the event")
            return began

    began = run(main())

    (request,) = crm.requests
    assert numbers(request) == [1]
    assert request.headers["x-jethook-batch"] == "1"
    assert request.at - began >= 0.19


def test_a_full_batch_does_not_linger(database: Database, crm: SampleSink, settings: Settings) -> None:
    async def main() -> None:
        async with Stand(database, settings(batch_size=3, batch_linger_seconds=3600)).running() as stand:
            await stand.post(*map(event, range(7)))
            await until(lambda: crm.total == 2, "two full batches")
            assert sum(row["state"] == "pending" for row in rows(database).values()) >= 1

    run(main())

    assert sorted(n for request in crm.requests for n in numbers(request)) == list(range(6))
    (left,) = [row for row in rows(database).values() if row["state"] == "pending"]
    assert (left["lease_token"], left["batch_id"], left["attempt_count"]) == (None, None, 0)  # given back at the stop


# --- as a whole ------------------------------------------------------------------------------------------------------


def test_a_batch_fails_and_succeeds_as_a_whole_and_stays_the_same(
    database: Database, crm: SampleSink, settings: Settings
) -> None:
    crm.answer_next(500, 503, 200)

    async def main() -> tuple[list[str], dict[str, Any]]:
        async with Stand(database, settings(breaker_failures=3)).running() as stand:
            ids = await stand.post(*map(event, (3, 1, 2, 0)))
            await until(delivered(database), "the batch")
            return ids, stand.relay.snapshot("crm")

    ids, snapshot = run(main())

    requests = crm.requests
    assert [numbers(request) for request in requests] == [[0, 1, 2, 3]] * 3
    assert {request.webhook_id for request in requests} == {batch_id(sorted(ids))}
    assert len({request.body for request in requests}) == 1
    assert [request.headers["x-jethook-attempt"] for request in requests] == ["1", "2", "3"]
    assert snapshot["breaker"] == "closed"  # two failures, not eight
    for one in ids:
        assert [(a["number"], a["status"]) for a in attempts_of(database, one)] == [(1, 500), (2, 503), (3, 200)]
    assert {row["attempt_count"] for row in rows(database).values()} == {3}


def test_the_breaker_counts_a_batch_once(database: Database, crm: SampleSink, settings: Settings) -> None:
    crm.answer_always(500)

    async def main() -> None:
        sinks = settings(breaker_failures=3, breaker_cooldown_seconds=3600, retry_schedule_seconds=(0,) * 9)
        async with Stand(database, sinks).running() as stand:
            await stand.post(*map(event, range(5)))
            await until(lambda: stand.relay.snapshot("crm")["breaker"] == "open", "an open breaker")

    run(main())

    assert crm.total == 3
    assert {row["attempt_count"] for row in rows(database).values()} == {3}


def test_a_batch_without_success_is_dead_as_a_whole(database: Database, crm: SampleSink, settings: Settings) -> None:
    crm.answer_always(400)

    async def main() -> None:
        async with Stand(database, settings(client_error_tries=2)).running() as stand:
            await stand.post(*map(event, range(4)))
            await until(lambda: states(database) == {"dead"}, "dead deliveries")

    run(main())

    assert crm.total == 2


@pytest.mark.parametrize("size", [1, 2, 10])
def test_a_batch_survives_a_restart_whatever_the_size_is_then(
    database: Database, crm: SampleSink, settings: Settings, size: int
) -> None:
    crm.answer_next(503)

    async def main() -> None:
        async with Stand(database, settings(retry_schedule_seconds=(3600,))).running() as stand:
            await stand.post(*map(event, range(5)))
            await until(lambda: {r["attempt_count"] for r in rows(database).values()} == {1}, "one attempt")
        make_due(database)
        async with Stand(database, settings(batch_size=size)).running():
            await until(delivered(database), "the batch")

    run(main())

    first, second = crm.requests
    assert (first.webhook_id, first.body) == (second.webhook_id, second.body)
    assert second.headers["x-jethook-attempt"] == "2"
    assert second.headers["x-jethook-batch"] == "5"


def test_a_batch_survives_a_crash_after_it_was_noted(database: Database, crm: SampleSink, settings: Settings) -> None:
    async def main() -> list[str]:
        async with Stand(database, settings()).running() as stand:
            stand.relay.dies_when_noted = True
            ids = await stand.post(*map(event, range(5)))
            await until(lambda: stand.relay.is_dead, "the note")
            await stand.relay.crash()
        assert crm.total == 0
        make_due(database)
        async with Stand(database, settings()).running() as stand:
            await stand.post(*map(event, range(50, 53)))  # does not join it
            await until(delivered(database), "all")
        return ids

    ids = run(main())

    assert sorted(map(numbers, crm.requests)) == [[0, 1, 2, 3, 4], [50, 51, 52]]
    assert batch_id(sorted(ids)) in crm.counts


def test_a_batch_sent_and_not_recorded_comes_again_as_the_same(
    database: Database, crm: SampleSink, settings: Settings
) -> None:
    async def main() -> None:
        async with Stand(database, settings()).running() as stand:
            crm.answer_with(lambda request: [setattr(stand.relay, "is_dead", True), 200][1])
            await stand.post(*map(event, range(5)))
            await until(lambda: crm.total == 1, "the request")
            await stand.relay.crash()
        crm.answer_with(None)
        assert {row["state"] for row in rows(database).values()} == {"pending"}
        make_due(database)
        async with Stand(database, settings()).running():
            await until(delivered(database), "the batch")

    run(main())

    first, second = crm.requests
    assert (first.webhook_id, first.body) == (second.webhook_id, second.body)
    assert second.headers["x-jethook-attempt"] == "1"  # nobody knows of the other


@pytest.mark.parametrize("token", [None, "another", "me"])
def test_a_claim_takes_a_batch_whole_or_two_parts_would_bear_one_id(database: Database, token: str | None) -> None:
    now = utc_now()
    made = [
        make_delivery(database, batch_id=EVENT_ID, priority=Priority.RETRY, lease_token=token,
                      next_attempt_at=now - timedelta(seconds=n))
        for n in range(5)
    ]  # fmt: skip
    request = ClaimRequest("crm", Priority.RETRY, 2, now, now + timedelta(seconds=12), "me")

    jobs = database.write(lambda c: queue.claim_due(c, request))

    assert [job.event_id for job in jobs] == sorted(row["event_id"] for row in made)
    assert {(r["lease_token"], r["next_attempt_at"]) for r in rows(database).values()} == {("me", request.lease_until)}
    assert database.write(lambda c: queue.claim_due(c, request)) == []


# --- too large -------------------------------------------------------------------------------------------------------


def test_a_batch_too_large_is_split_until_it_fits(database: Database, crm: SampleSink, settings: Settings) -> None:
    crm.answer_with(lambda request: 413 if len(request.json()) > 2 else 200)

    async def main() -> list[str]:
        async with Stand(database, settings(breaker_failures=1)).running() as stand:
            ids = await stand.post(*map(event, range(9)))
            await until(delivered(database), "all")
            return ids

    ids = run(main())

    tried = {tuple(numbers(request)): request.webhook_id for request in crm.requests}
    assert set(tried) == {
        tuple(range(9)), (0, 1, 2, 3), (4, 5, 6, 7, 8), (0, 1), (2, 3), (4, 5), (6, 7, 8), (6,), (7, 8),
    }  # fmt: skip
    assert crm.total == len(tried)
    assert len(set(tried.values())) == len(tried)
    assert all(name == batch_id([ids[n] for n in members]) for members, name in tried.items())
    assert [a["status"] for a in attempts_of(database, ids[0])] == [413, 413, 200]
    assert [a["status"] for a in attempts_of(database, ids[8])] == [413, 413, 413, 200]


def test_a_single_one_that_is_still_too_large_follows_the_usual_rules(
    database: Database, crm: SampleSink, settings: Settings
) -> None:
    def answer(request: ReceivedRequest) -> int:
        return 413 if 2 in numbers(request) else 200

    crm.answer_with(answer)

    async def main() -> list[str]:
        async with Stand(database, settings(client_error_tries=2)).running() as stand:
            ids = await stand.post(*map(event, range(4)))
            await until(lambda: states(database) == {"delivered", "dead"}, "an end")
            return ids

    ids = run(main())

    ends = rows(database)
    assert [ends[one]["state"] for one in ids] == ["delivered", "delivered", "dead", "delivered"]
    alone = [request for request in crm.requests if numbers(request) == [2]]
    assert len(alone) == 2  # splitting used up no tries
    assert len({request.webhook_id for request in alone}) == 1
    assert [a["number"] for a in attempts_of(database, ids[2])] == [1, 2, 3, 4]


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_a_cancelled_member_is_left_out_of_the_next_try(
    database: Database, crm: SampleSink, settings: Settings
) -> None:
    ids = _failed_once(database, crm, settings)
    database.write(lambda c: queue.cancel(c, ids[1], "crm", utc_now()))
    make_due(database)

    _deliver(database, settings)

    first, second = crm.requests
    assert [numbers(first), numbers(second)] == [[0, 1, 2, 3], [0, 2, 3]]
    # A receiver that took the first try and was not heard knows them all by this id: it may leave the second.
    assert first.webhook_id == second.webhook_id
    assert second.headers["x-jethook-batch"] == "3"
    assert rows(database)[ids[1]]["state"] == DeliveryState.CANCELLED


def test_a_member_retried_by_hand_goes_in_a_batch_of_its_own(
    database: Database, crm: SampleSink, settings: Settings
) -> None:
    ids = _failed_once(database, crm, settings)
    database.write(lambda c: queue.retry(c, ids[1], "crm", utc_now()))

    async def main() -> None:
        async with Stand(database, settings()).running() as stand:
            await until(lambda: rows(database)[ids[1]]["state"] == "delivered", "the one retried by hand")
            make_due(database)
            stand.relay.look_again()
            await until(delivered(database), "the others")

    run(main())

    first, second, third = crm.requests
    assert [numbers(r) for r in (first, second, third)] == [[0, 1, 2, 3], [1], [0, 2, 3]]
    assert second.webhook_id == batch_id([ids[1]])
    assert third.webhook_id == first.webhook_id
    assert [a["number"] for a in attempts_of(database, ids[1])] == [1, 2]


def _failed_once(database: Database, crm: SampleSink, settings: Settings) -> list[str]:
    """Four deliveries of one batch that wait for their next try."""
    crm.answer_next(500)

    async def main() -> list[str]:
        async with Stand(database, settings(retry_schedule_seconds=(3600,))).running() as stand:
            ids = await stand.post(*map(event, range(4)))
            await until(lambda: {r["attempt_count"] for r in rows(database).values()} == {1}, "one attempt")
            return ids

    return run(main())


def _deliver(database: Database, settings: Settings) -> None:
    async def main() -> None:
        async with Stand(database, settings()).running():
            await until(lambda: "pending" not in states(database), "an end")

    run(main())


# --- replays ---------------------------------------------------------------------------------------------------------


def test_a_replay_in_batches_says_so_and_has_the_id_of_the_same_events(
    database: Database, crm: SampleSink, settings: Settings
) -> None:
    events = sorted((event_values() for _ in range(6)), key=lambda values: str(values["id"]))
    from app.models import Event

    insert(database, Event, events)
    for values in events:
        make_delivery(database, values, replay=True, priority=Priority.REPLAY, next_attempt_at=utc_now())
    crm.answer_next(500)

    _deliver(database, settings)

    assert crm.total == 2
    for request in crm.requests:
        assert request.headers["x-jethook-replay"] == "true"
        assert request.webhook_id == batch_id(values["id"] for values in events)
        assert request.json() == [json.loads(values["raw"]) for values in events]
    assert {a["replay"] for values in events for a in attempts_of(database, values["id"])} == {True}
    assert {row["priority"] for row in rows(database).values()} == {Priority.REPLAY}
