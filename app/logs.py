"""Log lines: JSON for machines, coloured columns on a terminal; a request's id on every line it causes.

Names of lines are dotted and past tense. Ids and counts; no addresses, bodies or secrets.

One wide line tells of one unit of work: a post, a delivery, a request. Those that come in thousands share a line where
they end within the same moment, see `SharedLines`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog

SHARED_SECONDS = 0.05
MOST_IDS = 20

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logs(log_format: Literal["auto", "json", "console"] = "auto", log_level: str = "info") -> None:
    """Send our lines and those of the libraries to standard error in one shape. Standard output stays for results."""
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info if as_json else _keep,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([structlog.processors.JSONRenderer()] if as_json else [_on_one_line, _console()]),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(log_level)
    for noisy in ("uvicorn.access", "httpx2", "httpcore2", "alembic", "stamina", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def set_level(log_level: str) -> None:
    """From now on the least severe line shown; also while running."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(LEVELS[log_level]))
    logging.getLogger().setLevel(LEVELS[log_level])
    logging.getLogger("uvicorn.error").setLevel(max(LEVELS[log_level], logging.WARNING))


def _console() -> structlog.dev.ConsoleRenderer:
    # The richer tracebacks show the values of variables, which here are addresses and bodies.
    return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)


def _on_one_line(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A library may put an outsider's words into its sentence: they must not look like a line of their own. Values are
    escaped by the renderer."""
    said = str(event.get("event", ""))
    if not said.isprintable():
        event["event"] = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said)
    return event


def _keep(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return event


@dataclass(slots=True)
class _Line:
    """What the line of some units of work will say; `units` is how many they are."""

    units: int = 0
    slowest_ms: float = 0.0
    ids: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)


class SharedLines:
    """Units of work that are alike and end within 50 ms are told together: numbers added up, the slowest, ids of the
    first 20. A line takes 50 microseconds, a sixth of what a post does; so an idle service has a line for each, a
    busy one twenty a second, and at the level `debug` each has its own again. For the event loop.

    `units` is what they are called in the plural, `ids` what their ids are called in the singular.
    """

    def __init__(self, name: str, *, units: str, ids: str) -> None:
        self._log = logging.getLogger(__name__)
        self._name, self._units, self._ids = name, units, ids
        self._waiting: dict[tuple[tuple[str, Any], ...], _Line] = {}

    def add(self, place: Mapping[str, Any], unit_id: str, seconds: float, numbers: Mapping[str, int]) -> None:
        """`place` holds what must be the same in one line."""
        if not self._waiting:
            # In a context of its own: the line belongs to no request.
            asyncio.get_running_loop().call_later(SHARED_SECONDS, self.flush, context=contextvars.Context())
        key = tuple(place.items())
        line = self._waiting.get(key)
        if line is None:
            line = self._waiting[key] = _Line()
        line.units += 1
        line.slowest_ms = max(line.slowest_ms, seconds * 1000)
        told = line.numbers
        for name, number in numbers.items():  # `Counter.update` takes three times as long
            told[name] = told.get(name, 0) + number
        if len(line.ids) < MOST_IDS:
            line.ids.append(unit_id)
        if self._log.isEnabledFor(logging.DEBUG):
            contextvars.Context().run(self.flush)

    def flush(self) -> None:
        """Tell what has gathered."""
        waiting, self._waiting = self._waiting, {}
        for place, line in waiting.items():
            ids = {self._ids: line.ids[0]} if line.units == 1 else {f"{self._ids}s": line.ids}
            structlog.get_logger(__name__).info(
                self._name, **dict(place), **{self._units: line.units}, **line.numbers,
                duration_ms=round(line.slowest_ms, 1), **ids,
            )  # fmt: skip
