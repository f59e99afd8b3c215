"""SIGTERM: what is in flight is committed and answered, what is new is refused so that Mailjet repeats it."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa

from app.clock import utc_now
from app.db import Database
from app.models import Delivery, Event
from app.simulator.server import LocalServer
from app.simulator.sink import Answer, SampleSink
from app.simulator.traffic import make_events
from tests.conftest import MakeDatabase
from tests.e2e.kill9 import Load
from tests.e2e.service import PASSWORD, ServiceProcess, id_of, ids_in, until

RATE = 400  # events a second: enough to be under load, and the machine is not what is tested
_events: sa.Table = Event.__table__  # type: ignore[attr-defined]
_deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]


@pytest.fixture(params=["sqlite", "postgresql"])
def service(
    request: pytest.FixtureRequest, make_database: MakeDatabase, folder: Path, sink_server: LocalServer
) -> Iterator[ServiceProcess]:
    environment = {"JETHOOK_SINKS__CRM__URL": sink_server.url, "JETHOOK_SINKS__CRM__CONCURRENCY": "1"}
    with ServiceProcess(folder, make_database(request.param), environment) as service:
        yield service


@pytest.fixture
def sink() -> SampleSink:
    return SampleSink()


@pytest.fixture
def sink_server(sink: SampleSink) -> Iterator[LocalServer]:
    with LocalServer(sink) as server:
        yield server


def test_a_stop_under_load_loses_nothing(service: ServiceProcess) -> None:
    with half_a_post(service) as (slow, rest, event), Load(service.callback_url(), seed=21, rate=RATE) as load:
        assert load.first_answer.wait(20)
        service.ask_to_stop()
        refusal = until(lambda: refused(service), "new posts to be refused")
        assert refusal.headers["retry-after"].isdigit()
        assert refusal.headers["content-type"] == "application/problem+json"
        assert refusal.json()["code"] == "unavailable"
        # The one that was half in when we were told to stop is answered like any other.
        slow.sendall(rest)
        answer = slow.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        code = service.wait()

    assert code == 0, service.logs[-3000:]
    assert load.statuses.keys() <= {200, 503, "connect", "broken"}
    assert load.statuses[503] > 0
    stored = set(rows(service, sa.select(_events.c.id)))
    acknowledged = set().union(*(ids_in(body) for body in load.acknowledged))
    assert acknowledged <= stored
    assert id_of(event) in stored


def test_a_stop_gives_leases_back_so_that_the_next_start_delivers_at_once(
    service: ServiceProcess, sink: SampleSink
) -> None:
    sink.answer_always(Answer.delayed(0.2))  # one at a time: the others wait in the service's memory
    events = list(make_events(8, 60, 1_777_000_000))
    assert service.post(events).json()["stored"] == 60
    sink.wait_for(2)

    assert service.terminate() == 0

    waiting = sa.select(_deliveries.c.event_id).where(_deliveries.c.state == "pending")
    later = _deliveries.c.next_attempt_at > utc_now()
    leased = waiting.where(sa.or_(_deliveries.c.lease_token.is_not(None), later))
    assert len(rows(service, waiting)) > 30
    assert rows(service, leased) == []
    sink.answer_always(200)
    service.start()
    sink.wait_for_ids(60)
    until(lambda: service.get("/v1/sinks/crm")["backlog"] == 0, "nothing to be left")
    assert sink.counts == Counter(id_of(event) for event in events)


class half_a_post:  # noqa: N801  reads as what it is
    """A connection on which half of a post has been sent: (socket, the other half, the event)."""

    def __init__(self, service: ServiceProcess) -> None:
        self._event = {"event": "click", "time": 1_777_600_000, "MessageID": 4711}
        body = json.dumps(self._event).encode()
        credentials = base64.b64encode(f"jethook:{PASSWORD}".encode())
        head = b"POST /webhooks/orders HTTP/1.1\r\nhost: x\r\nauthorization: Basic %s\r\ncontent-length: %d\r\n\r\n"
        self._socket = socket.create_connection(("127.0.0.1", service.port), timeout=20)
        self._socket.sendall(head % (credentials, len(body)) + body[:10])
        self._rest = body[10:]

    def __enter__(self) -> tuple[socket.socket, bytes, dict]:
        return self._socket, self._rest, self._event

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def refused(service: ServiceProcess) -> httpx2.Response | None:
    response = service.post([])
    return response if response.status_code == 503 else None


def rows(service: ServiceProcess, statement: sa.Select) -> list:
    database = Database(service.environment["JETHOOK_DATABASE_URL"])
    try:
        with database.reading() as connection:
            return list(connection.execute(statement).scalars())
    finally:
        database.close()


def test_a_signal_shows_every_line_and_the_next_one_only_what_is_configured(folder: Path) -> None:
    url = f"sqlite:///{folder / 'level.db'}"
    with ServiceProcess(folder, url, {"JETHOOK_LOG_LEVEL": "warning"}) as service:

        def levels() -> list[str]:
            return [line["log_level"] for line in service.log_lines("log_level.changed")]

        for number, level in enumerate(("debug", "warning", "debug"), 1):
            os.kill(service.pid, signal.SIGUSR1)
            until(lambda number=number: len(levels()) == number, f"{level}, the change number {number}")
        assert service.terminate() == 0

        assert levels() == ["debug", "warning", "debug"]
        assert service.log_lines("service.starting") == []
        assert len(service.log_lines("service.stopped")) == 1
