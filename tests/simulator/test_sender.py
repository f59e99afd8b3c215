import asyncio
import base64
from collections import Counter

import orjson
import pytest

from app.simulator.mailjet import StandInMailjet
from app.simulator.outbox import SenderCounts
from app.simulator.sender import Sender, SenderOptions
from app.simulator.server import LocalServer
from app.simulator.sink import Answer, SampleSink
from app.simulator.traffic import EVENT_TYPES, make_events

QUICK = SenderOptions(retry_seconds=0.01, group_seconds=0.01, timeout_seconds=2)


@pytest.fixture
def sink():
    return SampleSink()


@pytest.fixture
def server(sink):
    with LocalServer(sink) as server:
        yield server


def mailjet_calling(url, version=2):
    mailjet = StandInMailjet()
    for event_type in EVENT_TYPES:
        mailjet.put_callback(None, event_type, url, version=version)
    return mailjet


def send_all(mailjet, events, options=QUICK):
    async def run():
        async with Sender(mailjet, options=options) as sender:
            await sender.send(events)
            return await sender.drain(5)

    return asyncio.run(run())


def received(sink):
    bodies = [request.json() for request in sink.requests]
    return [event for body in bodies for event in (body if isinstance(body, list) else [body])]


def as_set(events):
    return {orjson.dumps(event) for event in events}


def test_a_post_looks_like_mailjets(sink, server):
    send_all(mailjet_calling(server.url_with("je%40t", "p%3Aw", "/webhooks/a?r=1")), make_events(1, 3, 0))

    (request,) = sink.requests
    assert (request.method, request.path, request.query_string) == ("POST", "/webhooks/a", "r=1")
    assert request.headers["authorization"] == "Basic " + base64.b64encode(b"je@t:p:w").decode()
    assert request.headers["user-agent"] == "Go-http-client/2.0"
    assert request.headers["content-type"] == "application/json"


@pytest.mark.parametrize(("version", "kind"), [(1, dict), (2, list)])
def test_every_event_arrives_in_the_form_of_the_version(sink, server, version, kind):
    events = list(make_events(1, 200, 0))

    counts = send_all(mailjet_calling(server.url, version), events)

    assert as_set(received(sink)) == as_set(events)
    assert {type(request.json()) for request in sink.requests} == {kind}
    assert (counts.acknowledged, counts.pending) == (sink.total, 0)


def test_everything_but_a_200_is_repeated_byte_for_byte(sink, server):
    sink.answer_next(503, 202, 302, Answer.dropped(), 204, 404)

    counts = send_all(mailjet_calling(server.url), make_events(1, 20, 0))

    assert len({request.body for request in sink.requests}) == 1
    assert counts == SenderCounts(posted=7, acknowledged=1, repeated=6)


def test_what_hangs_is_repeated_after_the_timeout(sink, server):
    sink.answer_next(Answer.hanging())

    counts = send_all(mailjet_calling(server.url), make_events(1, 1, 0), SenderOptions(0.01, timeout_seconds=0.05))

    assert counts == SenderCounts(posted=2, acknowledged=1, repeated=1)


def test_nothing_is_lost_while_the_receiver_is_away(sink):
    server = LocalServer(sink)
    mailjet = mailjet_calling(server.url)
    events = list(make_events(1, 30, 0))

    async def run():
        async with Sender(mailjet, options=QUICK) as sender:
            await sender.send(events)
            with pytest.raises(TimeoutError):
                await sender.drain(0.2)
            await asyncio.to_thread(server.start)
            return await sender.drain(5)

    try:
        counts = asyncio.run(run())
    finally:
        server.stop()
    assert counts.repeated >= 1
    assert as_set(received(sink)) == as_set(events)


def test_a_dead_callback_gives_way_to_its_backup(sink, server):
    mailjet = StandInMailjet()
    mailjet.put_callback(None, "open", server.url + "/primary")
    mailjet.put_callback(None, "open", server.url + "/backup", is_backup=True)
    sink.answer_with(lambda request: 500 if request.path == "/primary" else 200)
    options = SenderOptions(retry_seconds=0.01, failure_window_seconds=0.0)

    send_all(mailjet, make_events(1, 5, 0, types=["open"]), options)

    assert mailjet.find_callback(None, "open").status == "dead"
    assert Counter(request.path for request in sink.requests) == {"/primary": 5, "/backup": 5}


def test_a_url_that_is_none_fails_like_one_where_nobody_answers():
    mailjet = StandInMailjet()
    mailjet.put_callback(None, "open", "http://")
    options = SenderOptions(retry_seconds=0.01, failure_window_seconds=0.0)

    assert send_all(mailjet, make_events(1, 2, 0, types=["open"]), options).given_up == 2


def test_sending_waits_while_too_much_is_pending(sink, server):
    options = SenderOptions(retry_seconds=0.01, concurrency=2, max_pending=3)

    counts = send_all(mailjet_calling(server.url, version=1), make_events(1, 50, 0), options)

    assert counts.acknowledged == 50


def test_stopping_does_not_wait_for_what_hangs(sink, server):
    sink.answer_always(Answer.hanging())

    async def run():
        async with Sender(mailjet_calling(server.url)) as sender:
            await sender.send(make_events(1, 3, 0))
            await asyncio.to_thread(sink.wait_for, 1)
            with pytest.raises(TimeoutError, match="pending=3"):
                await sender.drain(0.01)

    asyncio.run(run())
    assert sink.total == 1


def test_each_sender_serves_one_key(sink, server):
    mailjet = StandInMailjet({"a": "x", "b": "y"})
    mailjet.put_callback("b", "open", server.url)

    async def run(api_key):
        async with Sender(mailjet, api_key, QUICK) as sender:
            await sender.send(make_events(1, 1, 0, types=["open"]))
            return await sender.drain(5)

    assert asyncio.run(run("a")) == SenderCounts(unwanted=1)
    assert asyncio.run(run("b")) == SenderCounts(posted=1, acknowledged=1)
