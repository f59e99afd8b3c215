"""One trace from a post to the sink, over retries and restarts; and nothing at all while nobody asks for it."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
import structlog
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.db import Database
from app.main import create_app
from app.maintenance.expiry import delete_traces
from app.models import EventTrace
from app.partitions import first_id
from app.settings import load_settings
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from app.tracing.book import TraceBook
from app.tracing.switch import is_wanted, make_tracer
from app.tracing.tracer import Tracer
from tests.factories import insert

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
INCOMING = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
AUTH = ("jethook", "callback-password-1")
START = int(datetime.now(UTC).timestamp()) - 3600  # traces of what is older than two weeks are deleted
_traces: sa.Table = EventTrace.__table__  # type: ignore[attr-defined]


@pytest.fixture
def sink() -> Iterator[SampleSink]:
    made = SampleSink()
    with LocalServer(made) as server:
        made.url = server.url  # type: ignore[attr-defined]
        yield made


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Tracing is on, and spans come here."""
    exporter = InMemorySpanExporter()

    def make(environ: Any, database: Database) -> Tracer:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        return Tracer(provider, TraceBook(database))

    monkeypatch.setattr("app.main.make_tracer", make)
    return exporter


def opened(url: str, sink: Any, **more: str) -> TestClient:
    environment = {
        "DATABASE_URL": url.replace("postgresql+psycopg", "postgresql"), "API_KEYS": "rest-key",
        "WEBHOOKS__ORDERS__PASSWORDS": AUTH[1], "SINKS__CRM__URL": sink.url,
        "SINKS__CRM__RETRY_SCHEDULE_SECONDS": "0.05,0.05", **more,
    }  # fmt: skip
    settings = load_settings({f"JETHOOK_{name}": value for name, value in environment.items()}, env_file=None)
    return TestClient(create_app(settings))


def event(number: int) -> dict[str, Any]:
    return {"event": "open", "time": START + number, "MessageID": 2**60 + number, "email": "a@example.com"}


def post(client: TestClient, *numbers: int, headers: dict[str, str] | None = None) -> None:
    body = orjson.dumps([event(number) for number in numbers])
    answer = client.post("/webhooks/orders", content=body, auth=AUTH, headers=headers or {})
    assert answer.status_code == 200, answer.text


def parts(request: Any) -> list[str]:
    return str(request.headers["traceparent"]).split("-")


def ids(spans: InMemorySpanExporter, name: str) -> list[tuple[str, str, str | None]]:
    """(trace, span, parent) of the spans of that name."""
    found = [span for span in spans.get_finished_spans() if span.name == name]
    return [
        (f"{s.context.trace_id:032x}", f"{s.context.span_id:016x}", f"{s.parent.span_id:016x}" if s.parent else None)
        for s in found
        if s.context is not None
    ]


def test_one_trace_goes_from_the_post_to_the_sink(
    migrated_url: str, sink: SampleSink, spans: InMemorySpanExporter
) -> None:
    with opened(migrated_url, sink) as client:
        post(client, 1, headers=INCOMING)
        (request,) = sink.wait_for(1)

    ((trace, received, above),) = ids(spans, "receive")
    ((sent_trace, sent, below),) = ids(spans, "send")
    assert (trace, above) == (TRACE, PARENT)
    assert (sent_trace, below) == (TRACE, received)
    assert parts(request) == ["00", TRACE, sent, "01"]
    told = " ".join(span.to_json() for span in spans.get_finished_spans())
    assert "a@example.com" not in told
    assert AUTH[1] not in told


def test_a_retry_and_another_process_know_the_trace(
    migrated_url: str, sink: SampleSink, spans: InMemorySpanExporter
) -> None:
    with opened(migrated_url, sink, ROLE="receive") as client:
        post(client, 1, headers=INCOMING)
    sink.answer_next(503)
    with opened(migrated_url, sink, SINKS__CRM__MIN_BACKOFF_SECONDS="0"):
        requests = sink.wait_for(2)

    assert [parts(request)[1] for request in requests] == [TRACE, TRACE]
    assert len({parts(request)[2] for request in requests}) == 2


def test_a_batch_of_two_traces_has_links_to_both(
    migrated_url: str, sink: SampleSink, spans: InMemorySpanExporter
) -> None:
    batches = {"SINKS__CRM__BATCH_SIZE": "2", "SINKS__CRM__BATCH_LINGER_SECONDS": "20"}
    with opened(migrated_url, sink, **batches) as client:
        post(client, 1, headers=INCOMING)
        post(client, 2)
        (request,) = sink.wait_for(1)

    (send,) = (span for span in spans.get_finished_spans() if span.name == "send")
    assert send.parent is None
    assert {link.context.trace_id for link in send.links} == {int(trace, 16) for trace, _, _ in ids(spans, "receive")}
    assert parts(request)[1] not in {trace for trace, _, _ in ids(spans, "receive")}


def test_while_it_is_off_nothing_is_sent_and_nothing_stored(
    migrated_url: str, sink: SampleSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with opened(migrated_url, sink) as client:
        post(client, 1, headers=INCOMING)
        (request,) = sink.wait_for(1)

    assert "traceparent" not in request.headers
    database = Database(migrated_url)
    with database.reading() as connection:
        assert connection.execute(sa.select(_traces)).all() == []
    database.close()


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": " "}, False),
        ({"OTEL_SERVICE_NAME": "mail"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_SERVICE_NAME": "mail", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_SDK_DISABLED": "false"}, False),
    ],
)
def test_it_is_on_where_a_variable_of_opentelemetrys_is_set(environ: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environ) is wanted


def test_without_the_extra_a_line_says_what_to_install(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with structlog.testing.capture_logs() as lines:
        assert make_tracer({"OTEL_SERVICE_NAME": "mail"}, database) is None

    (line,) = lines
    assert line["event"] == "tracing.unavailable"
    assert "pip install 'jethook[otel]'" in line["error"]


@pytest.mark.parametrize(("exporter", "complaints"), [("none", 0), ("console", 0), ("otlp", 0), ("zipkin", 1)])
def test_where_spans_go_is_told_by_the_variable(database: Database, exporter: str, complaints: int) -> None:
    with structlog.testing.capture_logs() as lines:
        tracer = make_tracer({"OTEL_TRACES_EXPORTER": exporter}, database)

    assert tracer is not None
    tracer.close()
    assert sum(line["event"] == "tracing.exporter_unknown" for line in lines) == complaints


def test_traces_of_what_is_sent_no_more_are_deleted(database: Database) -> None:
    now = datetime(2026, 11, 20, tzinfo=UTC)
    old, young = (first_id(now - timedelta(days=days)) for days in (15, 1))
    insert(database, EventTrace, [{"event_id": key, "traceparent": "x"} for key in (old, young)])

    assert database.write(lambda c: delete_traces(c, now - timedelta(days=14), 10)) == 1
    with database.reading() as connection:
        assert connection.execute(sa.select(_traces.c.event_id)).scalars().all() == [young]
