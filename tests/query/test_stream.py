"""`GET /v1/stream`: over a real server where the connection matters, over plain ASGI where its end does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import uvicorn

from app.db import Database
from app.filters import FeedQuery, StreamQuery
from app.models import Event
from app.query.feed import Feed, FeedEvent, parse_ask
from app.query.horizon import Horizon
from app.query.stream import EventStream, error_frame, event_frame
from app.simulator.server import LocalServer
from app.wire import DROP_EXTENSION, BoundedProtocol
from tests.factories import event_values, insert, make_event
from tests.query.test_feed import NEVER, build_app, run

KEY = {"authorization": "Bearer read"}


@pytest.fixture
def feed(database: Database) -> Feed:
    return Feed(database, poll_seconds=0.02)


@pytest.fixture
def url(feed: Feed) -> Iterator[str]:
    app = build_app(feed)

    @app.post("/close")
    async def close() -> None:
        feed.close()

    with LocalServer(app) as server:
        yield server.url


class Client:
    """Reads frames as they come: dicts of their fields."""

    def __init__(self, url: str, *, last: str | None = None, **params: Any) -> None:
        headers = KEY | ({"last-event-id": last} if last else {})
        self._http = httpx2.Client(timeout=20)
        self._request = self._http.stream("GET", f"{url}/v1/stream", headers=headers, params=params)

    def __enter__(self) -> Client:
        self.response = self._request.__enter__()
        assert self.response.status_code == 200, self.response.read()
        self._lines = self.response.iter_lines()
        self.begin = self.frame()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(httpx2.TransportError):
            self._request.__exit__(None, None, None)
        self._http.close()

    def frame(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for line in self._lines:
            if not line:
                return found
            name, _, value = line.partition(": ")
            assert name not in found, "no field comes twice in a frame"
            found[name] = value
        raise EOFError

    def events(self, count: int) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        while len(found) < count:
            frame = self.frame()
            if "data" in frame:
                found.append(frame)
        return found


def ids(frames: list[dict[str, str]]) -> list[str]:
    return [json.loads(frame["data"])["id"] for frame in frames]


def test_events_come_with_cursor_type_and_content_those_stored_and_those_to_come(url, database):
    first = make_event(database, type="bounce")
    with Client(url) as client:
        [frame] = client.events(1)
        second = make_event(database, type="open")
        [later] = client.events(1)
        content_type = client.response.headers["content-type"]

    listed = httpx2.get(f"{url}/v1/feed", headers=KEY).json()
    assert [json.loads(frame["data"]), json.loads(later["data"])] == listed["data"]
    assert later["id"] == listed["next_cursor"]
    assert ids([frame, later]) == [first["id"], second["id"]]
    assert [frame["event"], later["event"]] == ["bounce", "open"]
    assert client.begin["retry"] == "2000"
    assert content_type == "text/event-stream; charset=utf-8"


def test_it_is_resumed_by_the_id_of_the_last_event_read(url, database):
    insert(database, Event, [event_values() for _ in range(250)])
    wanted: list[str] = []
    cursor: str | None = None
    while True:
        page = httpx2.get(f"{url}/v1/feed", headers=KEY, params={"cursor": cursor} if cursor else {}).json()
        wanted += [event["id"] for event in page["data"]]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break

    read: list[str] = []
    last: str | None = None
    for count in (1, 3, 120, 126):
        with Client(url, last=last) as client:
            frames = client.events(count)
        read += ids(frames)
        last = frames[-1]["id"]

    assert read == wanted


def test_before_the_first_event_there_is_an_id_to_resume_from(url, database):
    make_event(database)
    with Client(url, cursor="latest") as client:
        last = client.begin["id"]
    missed = make_event(database)
    with Client(url, cursor="latest", last=last) as client:
        assert ids(client.events(1)) == [missed["id"]]


def test_filters_and_raw(url, database):
    make_event(database, type="open")
    event = make_event(database, type="odd\r\ndata: 1", raw='{"event":\r\n"odd",\n\r"n": 12345678901234567890123}')
    with Client(url, type="odd\r\ndata: 1", include="raw") as client:
        [frame] = client.events(1)

    assert ids([frame]) == [event["id"]]
    assert frame["event"] == "odd data: 1"
    assert "12345678901234567890123" in frame["data"]


def test_what_does_not_fit_is_refused_before_the_stream_begins(url):
    cursor = httpx2.get(f"{url}/v1/feed?type=open", headers=KEY).json()["next_cursor"]
    for headers, params, status in [
        ({"last-event-id": cursor}, {}, 400), ({"last-event-id": "x"}, {}, 400), ({}, {"cursor": cursor}, 400),
        ({}, {"limit": "5"}, 422), ({"authorization": "Bearer no"}, {}, 401),
        ({"last-event-id": parse_ask(FeedQuery(), None, 1).cursor(99)}, {}, 400),
    ]:  # fmt: skip
        response = httpx2.get(f"{url}/v1/stream", headers=KEY | headers, params=params)
        assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")


def test_a_client_that_leaves_gives_its_place_back(url, feed):
    with Client(url):
        assert feed.snapshot()["clients"] == {"stream": 1}
    until(lambda: feed.snapshot()["clients"]["stream"] == 0)


def test_a_closed_feed_ends_streams_with_a_reason(url, feed, database):
    event = make_event(database)
    with Client(url) as client:
        assert ids(client.events(1)) == [event["id"]]
        httpx2.post(f"{url}/close")
        frames = client.events(1)
        with pytest.raises(EOFError):
            client.events(1)

    assert frames[0]["event"] == "error"
    assert json.loads(frames[0]["data"])["code"] == "stopping"
    assert httpx2.get(f"{url}/v1/stream", headers=KEY).status_code == 503
    assert httpx2.get(f"{url}/v1/feed?wait_seconds=30", headers=KEY).status_code == 200


# --- over plain ASGI -------------------------------------------------------------------------------------------------


ASK = parse_ask(StreamQuery(), None, 100)


async def play(stream: EventStream, send: Any, gone: asyncio.Event, extensions: dict[str, Any] | None = None) -> None:
    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    await stream({"type": "http", "extensions": extensions or {}}, receive, send)


def test_without_events_a_comment_with_an_id_tells_that_it_lives(database):
    sent: list[bytes] = []

    async def story() -> None:
        gone = asyncio.Event()

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))
            if len(sent) == 5:
                gone.set()

        await play(EventStream(Feed(database), ASK, heartbeat_seconds=0.01), send, gone)

    run(story())
    assert len(sent) == 5
    assert sent[3] == sent[4] == b": still here\nid: %b\n\n" % ASK.cursor(0).encode()


def test_streams_that_read_together_are_written_once(database):
    """A hundred streams are common; making each event's text for each of them would cost more than taking it in."""
    insert(database, Event, [event_values() for _ in range(3)])
    sent: list[list[bytes]] = [[], [], []]

    async def story() -> None:
        gone, feed = asyncio.Event(), Feed(database)

        async def one(mine: list[bytes]) -> None:
            async def send(message: Any) -> None:
                mine.append(message.get("body", b""))
                if all(len(each) == 3 for each in sent):
                    gone.set()

            await play(EventStream(feed, ASK), send, gone)

        await asyncio.gather(*map(one, sent))

    run(story())
    first, second, third = (bodies[2] for bodies in sent)
    assert first == second
    assert first.count(b"event: ") == 3
    assert second is third  # the first one has begun its read alone


def test_a_client_that_takes_nothing_is_cut_off_and_can_resume(database):
    insert(database, Event, [event_values() for _ in range(300)])
    endings: list[str] = []
    sent: list[bytes] = []

    async def story() -> None:
        gone, feed = asyncio.Event(), Feed(database)

        async def send(message: Any) -> None:
            if len(sent) == 3:
                await asyncio.Event().wait()  # its buffer is full
            sent.append(message.get("body", b""))

        stream = EventStream(feed, ASK, on_end=endings.append, slow_seconds=0.05)
        await play(stream, send, gone, {DROP_EXTENSION: gone.set})
        assert gone.is_set()
        assert feed.snapshot()["clients"] == {"stream": 0}
        last = sent[-1].rpartition(b"id: ")[2].partition(b"\n")[0].decode()
        page = await feed.first(parse_ask(FeedQuery(), last, 1000))
        assert len(page.events) == 300 - 100

    run(story())
    assert endings == ["slow"]


def test_a_database_that_goes_away_ends_the_stream_with_a_reason(database):
    class Failing(Horizon):
        def look(self, connection):
            looks.append(1)
            if len(looks) > 1:
                raise OSError("gone")
            return super().look(connection)

    looks: list[int] = []
    endings: list[str] = []
    sent: list[Any] = []

    async def story() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        await play(EventStream(Feed(database, Failing()), ASK, on_end=endings.append), send, asyncio.Event())

    run(story())
    assert endings == ["error"]
    assert sent[-1]["more_body"] is False
    assert sent[-1]["body"].startswith(b'event: error\ndata: {"code": "unavailable"')


def test_no_field_breaks_out_of_its_line():
    frame = event_frame(FeedEvent(1, "a\nid: x\r\rb\x00\u2028", b'{"a":\r\n\n1}'), "C")

    assert frame == b'id: C\nevent: a id: x b\x00\ndata: {"a":   1}\n\n'
    assert json.loads(error_frame("x", "y").decode().splitlines()[1].removeprefix("data: ")) == {
        "code": "x",
        "detail": "y",
    }


@pytest.mark.timeout(60)
def test_a_stalled_reader_is_disconnected_by_the_servers_own_protocol(database, monkeypatch):
    """With the sockets' buffers full, a plain close would wait for the reader for ever."""
    big = json.dumps({"event": "open", "x": "y" * 100_000})
    insert(database, Event, [event_values(raw=big) for _ in range(200)])
    monkeypatch.setattr("app.query.feed_routes.EventStream", lambda *a, **kw: EventStream(*a, **kw, slow_seconds=0.2))
    feed = Feed(database, poll_seconds=NEVER)
    with closing_server(build_app(feed)) as port, socket.create_connection(("127.0.0.1", port)) as reader:
        reader.sendall(b"GET /v1/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer read\r\n\r\n")
        until(lambda: feed.snapshot()["clients"].get("stream") == 1)
        until(lambda: feed.snapshot()["clients"].get("stream") == 0)
        with contextlib.suppress(ConnectionResetError):
            size = sum(len(chunk) for chunk in iter(lambda: reader.recv(1 << 20), b""))
            assert size < 200 * len(big)


@contextlib.contextmanager
def closing_server(app: Any) -> Iterator[int]:
    """uvicorn with the protocol that the service runs on."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=BoundedProtocol, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def until(ask: Any, seconds: float = 20) -> None:
    """A deadline instead of a sleep."""
    ready = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if ask():
            return
        ready.wait(0.01)
    raise AssertionError("it did not happen")
