import asyncio
import time

import orjson
import pytest

from app.simulator.latency import Latencies
from app.simulator.posting import Target
from app.simulator.server import LocalServer
from app.simulator.simulate import SimulateOptions, simulate
from app.simulator.sink import Answer, SampleSink
from app.simulator.traffic import EVENT_TYPES


@pytest.fixture
def sink():
    return SampleSink()


@pytest.fixture
def server(sink):
    with LocalServer(sink) as server:
        yield server


def run(options, **more):
    return asyncio.run(simulate(options, **more))


def elements(sink):
    bodies = [request.json() for request in sink.requests]
    return [event for body in bodies for event in (body if isinstance(body, list) else [body])]


def test_every_event_is_posted_once_with_the_credentials_of_the_url(sink, server):
    report = run(SimulateOptions(server.url_with("me", "pw", "/webhooks/default"), count=200))

    assert (report.events, report.acknowledged, report.posts) == (200, 200, 200)
    assert report.is_clean
    assert len({orjson.dumps(event) for event in elements(sink)}) == 200
    assert {event["event"] for event in elements(sink)} == set(EVENT_TYPES)
    assert {request.headers["authorization"] for request in sink.requests} == {"Basic bWU6cHc="}


def test_groups_retries_duplicates_and_disorder_come_as_asked(sink, server):
    options = SimulateOptions(server.url, count=500, group=10, retries=0.2, duplicates=0.2, disorder=0.2)

    report = run(options)

    assert report.retries > 0
    assert report.posts == sink.total
    assert report.events == len(elements(sink)) > 500
    assert len({orjson.dumps(event) for event in elements(sink)}) == 500


def test_large_groups_raise_no_warning(sink, server):
    assert run(SimulateOptions(server.url, count=5000, group=5000)).is_clean
    assert len(sink.requests[0].body) > 2**20


def test_only_the_wanted_types_are_posted(sink, server):
    run(SimulateOptions(server.url, count=20, types=("unsub",)))

    assert {event["event"] for event in elements(sink)} == {"unsub"}


def test_what_happened_is_not_in_the_future(sink, server):
    run(SimulateOptions(server.url, count=100))

    assert max(event["time"] for event in elements(sink)) <= time.time() + 30


def test_a_rate_is_kept(sink, server):
    report = run(SimulateOptions(server.url, count=60, rate=300))

    assert 0.19 <= report.seconds < 1
    assert report.events == 60


def test_refusals_are_counted_and_not_repeated(sink, server):
    sink.answer_next(503, 401, Answer.dropped())

    report = run(SimulateOptions(server.url, count=10, concurrency=1))

    assert dict(report.statuses) == {200: 7, 401: 1, 503: 1}
    assert dict(report.failures) == {"broken": 1}
    assert (report.posts, report.acknowledged, report.is_clean) == (10, 7, False)


def test_silence_is_a_timeout_and_a_closed_port_a_failed_connection(sink, server):
    sink.answer_always(Answer.hanging())
    assert dict(run(SimulateOptions(server.url, count=2, timeout_seconds=0.05)).failures) == {"timeout": 2}

    server.stop()
    assert dict(run(SimulateOptions(server.url, count=2)).failures) == {"connect": 2}


def test_an_endless_run_ends_when_it_is_stopped(sink, server):
    async def stopped():
        stop = asyncio.Event()
        answers = []

        def stop_after_some(body, result):
            answers.append(result)
            if len(answers) == 25:
                stop.set()

        return await simulate(SimulateOptions(server.url, count=0), stop=stop, on_answer=stop_after_some)

    report = asyncio.run(stopped())
    assert 25 <= report.posts <= 25 + 32


def test_stopping_does_not_wait_for_a_slow_rate(sink, server):
    async def stopped():
        stop = asyncio.Event()
        task = asyncio.create_task(simulate(SimulateOptions(server.url, count=10, rate=0.01), stop=stop))
        await asyncio.sleep(0)
        stop.set()
        return await asyncio.wait_for(task, 5)

    assert asyncio.run(stopped()).posts == 0


def test_progress_is_told_during_the_run_and_at_its_end(sink, server):
    seen = []

    options = SimulateOptions(server.url, count=50, rate=500, progress_seconds=0.02)
    run(options, on_progress=lambda report: seen.append(report.posts))

    assert len(seen) >= 2
    assert seen[-1] == 50


def test_the_report_is_json_and_never_shows_the_password(sink, server):
    options = SimulateOptions(server.url_with("me", "hunter2"), count=5)

    report = run(options)

    text = orjson.dumps(report.to_json()).decode()
    assert report.to_json()["statuses"] == {"200": 5}
    assert "hunter2" not in text + repr(report) + repr(options) + repr(Target.parse(options.url))


@pytest.mark.parametrize("url", ["", "ftp://a.example", "http://", "//me:hunter2@a.example", "http://me:hunter2@[a"])
def test_a_url_that_cannot_be_is_refused_without_being_quoted(url):
    with pytest.raises(ValueError, match="http") as caught:
        run(SimulateOptions(url))
    assert "hunter2" not in str(caught.value)


def test_percentiles_are_right_to_within_two_percent():
    latencies = Latencies()
    for milliseconds in range(1, 1001):
        latencies.add(milliseconds / 1000)

    for share in (0.5, 0.9, 0.99):
        assert latencies.percentile(share) == pytest.approx(share, rel=0.021)
    assert latencies.percentile(1) == latencies.longest_seconds == 1.0
    assert Latencies().percentile(0.5) == 0.0
