"""Is tracing on, and where do spans go? By OpenTelemetry's own variables.

`OTEL_TRACES_EXPORTER` is `otlp` (the default: HTTP with protobuf, to `OTEL_EXPORTER_OTLP_ENDPOINT`), `console`
(standard error), or `none` (traces are carried on, and told to nobody). Sampling and names are the SDK's, by
`OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME` and others.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

from app import __version__
from app.db import Database
from app.tracing.book import TraceBook

if TYPE_CHECKING:
    from app.tracing.tracer import Tracer

log = structlog.get_logger(__name__)

ON, UNAVAILABLE, UNKNOWN = "tracing.on", "tracing.unavailable", "tracing.exporter_unknown"
PREFIX, EXPORTER, DISABLED = "OTEL_", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP = "http/protobuf"


def is_wanted(environ: Mapping[str, str]) -> bool:
    named = [name for name, value in environ.items() if name.startswith(PREFIX) and value.strip()]
    return bool(set(named) - {DISABLED}) and environ.get(DISABLED, "").strip().lower() != "true"


def make_tracer(environ: Mapping[str, str], database: Database) -> Tracer | None:
    """None where nobody asks for traces, or where the extra is not installed, which a line of the log says."""
    if not is_wanted(environ):
        return None
    try:
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  an extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415

        from app.tracing.tracer import Tracer  # noqa: PLC0415

        name = environ.get("OTEL_SERVICE_NAME", "").strip() or "jethook"
        provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": __version__}))
        _export(provider, environ)
    except ModuleNotFoundError as error:
        told = f"OTEL_* is set, and {error.name} is not installed: pip install 'jethook[otel]', or unset OTEL_*"
        log.warning(UNAVAILABLE, error=told)
        return None
    log.info(ON, exporter=environ.get(EXPORTER, "").strip() or "otlp")
    return Tracer(provider, TraceBook(database))


def _export(provider: Any, environ: Mapping[str, str]) -> None:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter  # noqa: PLC0415

    match environ.get(EXPORTER, "").strip().lower() or "otlp":
        case "otlp":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

            for name in PROTOCOLS:
                if environ.get(name, HTTP).strip() not in (HTTP, ""):
                    log.warning(UNKNOWN, error=f"{name}: only {HTTP} is spoken, to port 4318 as a rule")
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        case "console":
            provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
        case "none":
            pass
        case other:
            log.warning(UNKNOWN, error=f"{EXPORTER}: {other!r} is none of otlp, console and none; spans go nowhere")
