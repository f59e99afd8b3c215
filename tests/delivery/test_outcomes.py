"""Each way a try may end, from the socket to the row: its label, its attempt, its metric, the next wait."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from app.addresses import ONLY_ALWAYS, AddressRules, parse_network
from app.clock import utc_now
from app.db import Database
from app.metrics import Metrics
from app.models import AttemptOutcome
from tests.delivery.peers import Authority
from tests.delivery.stand import Stand, attempts_of, event, rows, states
from tests.delivery.support import Handler, answering, raw_server, read_request, run, sink, until

pytestmark = pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)  # the network is the subject
WAIT = 60.0
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def told(status: int, **headers: str) -> Handler:
    """Each connection's requests get this answer."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return answering(*[f"HTTP/1.1 {status} Told\r\ncontent-length: 0\r\n{lines}\r\n".encode()] * 10)


TAKES_ALL = told(200)


def told_to_wait(moment: Callable[[], datetime]) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await told(503, retry_after=format_datetime(moment(), usegmt=True))(reader, writer)

    return handler


def endless(status: int, seconds: float = 0.0) -> Handler:
    """A body without end, a piece each so many seconds."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(f"HTTP/1.1 {status} Told\r\n\r\n".encode())
        while True:
            writer.write(b"x" if seconds else b"x" * 65536)
            await writer.drain()
            await asyncio.sleep(seconds)

    return handler


@dataclass(frozen=True)
class Case:
    outcome: str
    handler: Handler = TAKES_ALL
    status: int | None = None
    error: str | None = None
    wait_seconds: float | None = WAIT  # at least until the next try; None: there is none
    connections: int = 1
    host: str = "127.0.0.1"
    settings: dict[str, Any] = field(default_factory=dict)
    rules: AddressRules = ONLY_ALWAYS
    with_tls: bool = False
    is_closed: bool = False  # nobody listens


CASES = {
    "taken": Case("success", status=200, wait_seconds=None),
    "Retry-After in seconds": Case(
        "http_5xx", told(503, retry_after="300"), 503, "the sink answered 503", wait_seconds=300
    ),
    "Retry-After as a date": Case(
        "http_5xx", told_to_wait(lambda: datetime.now(UTC) + timedelta(seconds=302)), 503, "the sink answered 503",
        wait_seconds=300,
    ),
    "a shorter Retry-After": Case("http_429", told(429, retry_after="1"), 429, "the sink answered 429"),
    "a longer one than an hour": Case(
        "http_429", told(429, retry_after="86400"), 429, "the sink answered 429", wait_seconds=3600
    ),
    "410": Case("http_4xx", told(410), 410, "the sink answered 410", wait_seconds=0),
    "redirect": Case("http_3xx", told(307, location="http://127.0.0.1:9/"), 307, "the sink answered 307"),
    "endless answer": Case("success", endless(200), 200, wait_seconds=None),
    "endless refusal": Case("http_5xx", endless(500), 500, "the sink answered 500"),
    "slow drip": Case(
        "timeout", endless(200, 0.02), None, "no whole answer within the time limit", settings={"timeout_seconds": 0.3}
    ),
    "certificate": Case(
        "tls", error="the sink's certificate is not accepted", with_tls=True, connections=0,
    ),
    "DNS": Case("dns", error="the sink's host name does not resolve", host="nothing.invalid", connections=0),
    "refused connection": Case(
        "connect", error="no connection to the sink: Connection refused", is_closed=True, connections=0
    ),
    "forbidden address": Case(
        "blocked", error="the sink's address is in JETHOOK_SINK_DENY_CIDRS", host="localhost", connections=0,
        rules=AddressRules(deny=(parse_network("127.0.0.0/8"), parse_network("::1"))),
    ),
}  # fmt: skip


@dataclass
class Seen:
    attempt: dict[str, Any]
    delivery: dict[str, Any]
    wait_seconds: float
    metrics: Metrics

    def metric(self, name: str, **labels: str) -> float | None:
        return metric(self.metrics, name, **labels)


def metric(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"jethook_{name}", {"sink": "crm"} | labels)


async def first_try(database: Database, case: Case, context: ssl.SSLContext | None) -> Seen:
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(raw_server(case.handler, ssl=context))
        if case.is_closed:
            await stack.aclose()
        settings = {"timeout_seconds": 5, "retry_schedule_seconds": [WAIT], "min_backoff_seconds": 0} | case.settings
        crm = sink(f"{'https' if context else 'http'}://{case.host}:{port}/", **settings)
        started_at = utc_now()
        async with Stand(database, {"crm": crm}, rules=case.rules).running() as stand:
            (event_id,) = await stand.post(event(1))
            await until(lambda: metric(stand.metrics, "delivery_duration_seconds_count"), "a finished try")
        delivery = rows(database)[event_id]
        waits = (delivery["next_attempt_at"] - started_at).total_seconds() if delivery["state"] == "pending" else 0.0
        return Seen(attempts_of(database, event_id)[0], delivery, waits, stand.metrics)


@pytest.fixture
def context(request: pytest.FixtureRequest, tmp_path: Path) -> ssl.SSLContext | None:
    return Authority(tmp_path, "nobody knows it").server_context() if request.getfixturevalue("case").with_tls else None


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_a_try_has_its_label_its_row_its_metric_and_its_wait(
    case: Case, context: ssl.SSLContext | None, database: Database
) -> None:
    seen = run(first_try(database, case, context))

    attempt = seen.attempt
    assert (attempt["number"], attempt["outcome"], attempt["status"]) == (1, case.outcome, case.status)
    assert (attempt["error"] or "").startswith(case.error or "")
    assert (attempt["error"] is None) == (case.error is None)
    for label in AttemptOutcome:
        counted = seen.metric("delivery_attempts_total", outcome=label.value)
        assert counted == (1 if label == case.outcome else 0), label
    assert seen.metric("sink_connections_total", kind="new") == case.connections
    assert seen.metric("sink_connections_total", kind="reused") == 0
    assert seen.metric("sink_paused") == (1 if case.status == 410 else 0)
    if case.wait_seconds is None:
        assert seen.delivery["state"] == "delivered"
    else:
        assert seen.delivery["state"] == "pending"
        assert case.wait_seconds <= seen.wait_seconds < case.wait_seconds * 1.2 + 15


def test_a_batch_that_is_too_large_has_an_attempt_for_each_event_and_counts_once(database: Database) -> None:
    async def picky(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(reader)
            too_large = b"x-jethook-batch: 2" in head.lower()
            writer.write(OK.replace(b"200", b"413") if too_large else OK)
            await writer.drain()

    async def main() -> tuple[list[str], Stand]:
        async with raw_server(picky) as port:
            crm = sink(f"http://127.0.0.1:{port}/", batch_size=2, batch_linger_seconds=9)
            async with Stand(database, {"crm": crm}).running() as stand:
                ids = await stand.post(event(1), event(2))
                await until(lambda: states(database) == {"delivered"}, "both halves")
                return ids, stand

    ids, stand = run(main())
    for event_id in ids:
        found = [(a["number"], a["outcome"], a["status"]) for a in attempts_of(database, event_id)]
        assert found == [(1, "http_4xx", 413), (2, "success", 200)]
    assert metric(stand.metrics, "delivery_attempts_total", outcome="http_4xx") == 1
    assert rows(database)[ids[0]]["schedule_step"] == 1  # the 413 used up none


@pytest.mark.parametrize("at_once", [True, False], ids=["while it is idle", "when the request comes"])
def test_a_reused_connection_that_is_half_closed_costs_no_attempt(at_once: bool, database: Database) -> None:
    answered: list[bytes] = []

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answered.append((await read_request(reader))[0])
        writer.write(OK)
        await writer.drain()
        if len(answered) == 1:
            if not at_once:
                await reader.readexactly(1)
            writer.write_eof()  # our side may still write, and nobody reads it
        await reader.read()

    async def main() -> Stand:
        async with raw_server(closing) as port:
            crm = sink(f"http://127.0.0.1:{port}/", timeout_seconds=5)
            async with Stand(database, {"crm": crm}).running() as stand:
                for number in (1, 2):
                    await stand.post(event(number))
                    await until(lambda: states(database) == {"delivered"}, "its delivery")
                return stand

    stand = run(main())
    assert len(answered) == 2
    assert [a["outcome"] for e in rows(database) for a in attempts_of(database, e)] == ["success"] * 2
    assert metric(stand.metrics, "sink_connections_total", kind="new") == 2
    # Where the end was not seen in time, the request went out on the dying one first.
    reused = metric(stand.metrics, "sink_connections_total", kind="reused")
    assert reused in ((0, 1) if at_once else (1,))


def test_connections_are_counted_by_whether_they_served_before_and_are_present_from_the_start(
    database: Database,
) -> None:
    async def main() -> tuple[list[float | None], list[float | None]]:
        async with raw_server(answering(*[OK] * 10)) as port:
            stand = Stand(database, {"crm": sink(f"http://127.0.0.1:{port}/", timeout_seconds=5)})

            def counts() -> list[float | None]:
                return [metric(stand.metrics, "sink_connections_total", kind=kind) for kind in ("new", "reused")]

            before = counts()
            async with stand.running():
                for number in range(4):
                    await stand.post(event(number))
                    await until(lambda: states(database) == {"delivered"}, "its delivery")
                await stand.relay.test("crm")  # over a connection of its own, and not counted
                return before, counts()

    assert run(main()) == ([0, 0], [1, 3])
