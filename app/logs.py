"""Log lines: JSON for machines, coloured columns on a terminal; a request's id on every line it causes.

Names of lines are dotted and past tense. Ids and counts; no addresses, bodies or secrets.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

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
                structlog.processors.JSONRenderer() if as_json else _console(),
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


def _keep(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return event
