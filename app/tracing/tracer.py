"""The spans of a post and of an attempt. The only module that knows OpenTelemetry; imported when tracing is on.

No span holds an address, a body, or a URL, which may carry a secret.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app import __version__
from app.tracing.book import TraceBook

NOTHING = Context()  # what is current where a span begins belongs to whoever started the worker
HEADER, STATE_HEADER = "traceparent", "tracestate"


class Attempted(Protocol):
    """What a span tells of an attempt's result."""

    @property
    def outcome(self) -> str: ...

    @property
    def status(self) -> int | None: ...


R = TypeVar("R", bound=Attempted)
Send = Callable[[dict[str, str]], Awaitable[R]]


class Tracer:
    """`book` knows the traces of events."""

    def __init__(self, provider: TracerProvider, book: TraceBook) -> None:
        self.book = book
        self._provider = provider
        self._tracer = provider.get_tracer("jethook", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def post(self, webhook: str, headers: Iterable[tuple[bytes, bytes]]) -> Iterator[str]:
        """A callback's post, within the trace that its headers tell of; yields the trace that goes on."""
        told = {name: value.decode("latin-1") for key, value in headers
                if (name := key.decode("latin-1").lower()) in (HEADER, STATE_HEADER)}  # fmt: skip
        span = self._tracer.start_span(
            "receive", self._propagator.extract(told, NOTHING), SpanKind.SERVER, {"jethook.webhook": webhook}
        )
        with _ended(span):
            yield self._header(span)

    async def attempt(self, sink: str, event_ids: Sequence[str], number: int, send: Send[R]) -> R:
        """`send` is called with the headers that carry the trace on. A batch of several traces begins one of its own,
        with links to all of them."""
        traces = [self._propagator.extract({HEADER: trace}, NOTHING) for trace in await self.book.find(event_ids)]
        parent = traces[0] if len(traces) == 1 else None
        links = [] if parent is not None else [Link(get_current_span(trace).get_span_context()) for trace in traces]
        told: dict[str, str | int] = {"jethook.sink": sink, "jethook.events": len(event_ids), "jethook.attempt": number}
        span = self._tracer.start_span("send", parent or NOTHING, SpanKind.CLIENT, told, links)
        with _ended(span):
            result = await send({HEADER: self._header(span)})
            span.set_attribute("jethook.outcome", str(result.outcome))
            if result.status is not None:
                span.set_attribute("http.response.status_code", result.status)
            if result.outcome != "success":
                span.set_status(StatusCode.ERROR, str(result.outcome))
            return result

    def close(self) -> None:
        """Hand over what is left; may take some seconds."""
        self._provider.shutdown()

    def _header(self, span: Span) -> str:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return carrier[HEADER]


@contextmanager
def _ended(span: Span) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        span.set_status(StatusCode.ERROR, type(error).__name__)  # its text may hold what must not leave
        raise
    finally:
        span.end()
