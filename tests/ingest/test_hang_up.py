"""Clients that behave badly on the wire: over real sockets, against the service under uvicorn."""

from __future__ import annotations

import base64
import itertools
import json
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from app.ingest.identity import event_id
from app.main import Service, create_app
from app.settings import load_settings
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from tests.conftest import MakeDatabase
from tests.ingest.conftest import ENVIRONMENT, PASSWORD, Receiver

_numbers = itertools.count(1)
CREDENTIALS = base64.b64encode(f"jethook:{PASSWORD}".encode()).decode()


@dataclass
class Live:
    """The service on a port, with a sink behind it."""

    server: LocalServer
    service: Service
    sink: SampleSink

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=20)

    def head(self, *lines: str, credentials: str = CREDENTIALS) -> bytes:
        own = ["POST /webhooks/orders HTTP/1.1", "host: x", f"authorization: Basic {credentials}", *lines]
        return "\r\n".join([*own, "", ""]).encode()

    def get(self, path: str) -> int:
        """The status of one GET."""
        with self.connect() as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            return status_of(connection)

    def is_stored(self, event: dict[str, Any]) -> bool:
        receiver = Receiver.__new__(Receiver)
        receiver.service = self.service
        return id_of(event) in {row["id"] for row in receiver.all_events()}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def live(request: pytest.FixtureRequest, make_database: MakeDatabase) -> Iterator[Live]:
    url = make_database(request.param)
    sink = SampleSink()
    with LocalServer(sink) as sink_server:
        environment = {"JETHOOK_DATABASE_URL": url, "JETHOOK_SINKS__CRM__URL": sink_server.url, "JETHOOK_ROLE": "all"}
        app = create_app(load_settings(ENVIRONMENT | environment, env_file=None))
        with LocalServer(app) as server:
            yield Live(server, app.state.service, sink)


def fresh() -> tuple[dict[str, Any], bytes]:
    event = {"event": "click", "time": 1777802400, "MessageID": next(_numbers), "url": "https://example.com/" * 50}
    return event, json.dumps(event).encode()


def id_of(event: dict[str, Any]) -> str:
    return event_id("orders", event["time"], event)


def status_of(connection: socket.socket) -> int:
    """Of the one answer that comes."""
    data = b""
    while b"\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return 0
        data += part
    return int(data.split(b" ", 2)[1])


def test_a_client_that_closes_right_after_the_body_loses_nothing(live: Live) -> None:
    sent = []
    for _ in range(20):
        event, body = fresh()
        with live.connect() as connection:
            connection.sendall(live.head(f"content-length: {len(body)}") + body)
        sent.append(id_of(event))

    live.sink.wait_until(lambda: set(sent) <= set(live.sink._counts), wanted="every event")
    assert {live.sink.counts[id] for id in sent} == {1}


def test_a_client_that_resets_the_connection_after_the_body_loses_nothing(live: Live) -> None:
    event, body = fresh()
    with live.connect() as connection:
        connection.sendall(live.head(f"content-length: {len(body)}") + body)
        live.sink.wait_until(lambda: id_of(event) in live.sink._counts)  # it was read: now slam the door
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert live.is_stored(event)


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
def test_a_client_that_breaks_off_within_the_body_stores_nothing(live: Live, chunked: bool) -> None:
    event, body = fresh()
    with live.connect() as connection:
        if chunked:
            connection.sendall(live.head("transfer-encoding: chunked") + b"%x\r\n%s\r\n" % (len(body), body))
        else:
            connection.sendall(live.head(f"content-length: {len(body) + 1}") + body)
        in_flight(live, 1)
    in_flight(live, 0)

    assert not live.is_stored(event)


def test_a_body_in_small_pieces_and_chunks_is_read_whole(live: Live) -> None:
    event, body = fresh()
    with live.connect() as connection:
        connection.sendall(live.head("transfer-encoding: chunked"))
        for start in range(0, len(body), 100):
            piece = body[start : start + 100]
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")
        assert status_of(connection) == 200
    assert live.is_stored(event)


def test_many_posts_on_one_connection_are_each_answered(live: Live) -> None:
    events = [fresh() for _ in range(5)]
    with live.connect() as connection:
        for _, body in events:
            connection.sendall(live.head(f"content-length: {len(body)}") + body)
            assert status_of(connection) == 200
    assert all(live.is_stored(event) for event, _ in events)


def test_a_client_without_credentials_is_refused_before_its_body(live: Live) -> None:
    """It need not send ten megabytes to learn that nobody wants them."""
    with live.connect() as connection:
        connection.sendall(live.head("content-length: 10000000", credentials="bm86bm8="))
        assert status_of(connection) == 401


def test_a_client_that_asks_first_is_told_to_go_on(live: Live) -> None:
    event, body = fresh()
    with live.connect() as connection:
        connection.sendall(live.head(f"content-length: {len(body)}", "expect: 100-continue"))
        assert status_of(connection) == 100
        connection.sendall(body)
        assert status_of(connection) == 200
    assert live.is_stored(event)


def test_a_body_over_the_limit_is_answered_413_though_the_client_sends_on(live: Live) -> None:
    """Reading on lets the caller see the answer instead of a broken connection."""
    piece = b"x" * 65536
    with live.connect() as connection:
        connection.sendall(live.head("content-length: 16777216"))
        for _ in range(256):
            connection.sendall(piece)
        assert status_of(connection) == 413


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST /webhooks/orders HTTP/9\r\n\r\n"])
def test_what_is_no_http_does_no_harm(live: Live, garbage: bytes) -> None:
    with live.connect() as connection:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        assert status_of(connection) in (0, 400)
    assert live.get("/readyz") == 200


def in_flight(live: Live, count: int) -> None:
    give_up = time.monotonic() + 20
    while live.service.receiver.in_flight != count:
        assert time.monotonic() < give_up
        time.sleep(0.01)
