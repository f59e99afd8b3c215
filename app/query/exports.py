"""Exports over REST: as many events as there are, streamed.

An export holds a thread and a connection only while it reads a page, never while its client does. All exports share
one thread of their own and take turns, so that they starve neither the other reads nor the relay; too many get 503.

An answer that breaks off must not look like a whole one. Its status has gone out long before, so the connection is
closed without the last chunk (and a gzip stream without its trailer), which HTTP/1.1 clients report as an error.
"""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field
from starlette.types import Message, Receive, Scope, Send

from app.clock import utc_now
from app.db import Database, is_outage
from app.errors import FieldError, Invalid, Unavailable
from app.http import PROBLEM_RESPONSES, ApiKeys
from app.query import parquet
from app.query.exporting import Export, ExportFilters
from app.query.shapes import EventModel
from app.views import dump

log = structlog.get_logger(__name__)

FINISHED = "export.finished"
MAX_EXPORTS = 4
# Rendering holds the interpreter lock, so more threads add no speed and slow the rest: beside four exports a post takes
# 10 ms (p95 35) with one thread, 26 (63) with two and 33 (88) with four; alone 5 (9).
THREADS = 1
STALL_SECONDS = 60.0  # a client that takes not even a piece in that time has gone or never meant to read
PIECE_BYTES = 64 * 1024
RETRY_AFTER_SECONDS = 30
MEDIA_TYPES = {
    "ndjson": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8; header=present",
    "parquet": "application/vnd.apache.parquet",
}


class ExportQuery(ExportFilters):
    """`GET /v1/exports/events`."""

    gzip: bool = Field(False, description="a gzip file; without it `Accept-Encoding: gzip` compresses on the way")


class Cut(Exception):
    """The answer ends here, unfinished; the text says why."""


class Exports:
    """The exports of this process: at most `most` under way at once. One for the process, on the event loop."""

    def __init__(
        self, database: Database, *, stopping: Callable[[], bool] = lambda: False, most: int = MAX_EXPORTS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:  # fmt: skip
        self.stall_seconds = stall_seconds
        self.under_way = 0
        self._most = most
        self._database = database
        self._stopping = stopping
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="export")

    def begin(self) -> None:
        """Take a place, to be given back by `end`. Raises Unavailable."""
        if self.under_way >= self._most:
            text = f"{self.under_way} exports are under way; try again when one has ended"
            raise Unavailable(text, retry_after_seconds=RETRY_AFTER_SECONDS)
        self.under_way += 1

    def end(self) -> None:
        self.under_way -= 1

    async def next_part(self, export: Export) -> bytes:
        """Raises Cut when the service stops, and whatever the database raises."""
        if self._stopping():
            raise Cut("stopping")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, export)

    def _read(self, export: Export) -> bytes:
        with self._database.reading() as connection:
            return export.next_part(connection)

    def close(self) -> None:
        """Blocking. A page that is being read ends first: its connection must be back before the database closes."""
        self._threads.shutdown(wait=True)


class ExportStream(StreamingResponse):
    """Sends an export that has begun, and gives its place back however it ends.

    The base class ends it when the client hangs up.
    """

    def __init__(self, exports: Exports, export: Export, first: bytes, headers: dict[str, str]) -> None:
        super().__init__(self._parts(first), headers=headers)
        self._exports = exports
        self._export = export
        self._bytes = 0
        self._result = "hung_up"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        try:
            await super().__call__(scope, receive, send)
        except Cut as cut:
            self._result = str(cut)  # an app that returns now has its connection closed by the server
        except Exception as error:
            self._result = "database_unavailable" if is_outage(error) else "failed"
            if not is_outage(error):
                raise  # a bug of ours: the server logs it and closes the connection
        finally:
            self._exports.end()
            log.info(
                FINISHED, result=self._result, events=self._export.count, bytes=self._bytes,
                duration_ms=round((time.monotonic() - started) * 1000),
            )  # fmt: skip

    async def _parts(self, first: bytes) -> AsyncIterator[bytes]:
        yield first
        while not self._export.done:
            yield await self._exports.next_part(self._export)

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self.body_iterator:
            assert isinstance(part, bytes)
            for piece in _pieces(part):
                await self._send(send, {"type": "http.response.body", "body": piece, "more_body": True})
                self._bytes += len(piece)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self._result = "complete"

    async def _send(self, send: Send, message: Message) -> None:
        try:
            await asyncio.wait_for(send(message), self._exports.stall_seconds)
        except TimeoutError:
            raise Cut("stalled") from None


def _pieces(part: bytes) -> Iterator[bytes]:
    return (part[start : start + PIECE_BYTES] for start in range(0, len(part), PIECE_BYTES))


# --- routes ----------------------------------------------------------------------------------------------------------


def build_router(exports: Exports, keys: ApiKeys) -> APIRouter:
    router = APIRouter(prefix="/v1/exports", responses=PROBLEM_RESPONSES, tags=["exports"])

    @router.get(
        "/events",
        summary="Export events",
        description="All events that the filters let through, streamed, the oldest first: NDJSON as in `/v1/events`"
        " with `raw`, or CSV or Parquet with one column a field, `details` and `raw` as JSON text. What comes meanwhile"
        " never makes it miss or repeat what was there. With `Accept-Encoding: gzip` it is compressed on the way, with"
        " `gzip=true` it is a gzip file. An export that breaks off ends without the last chunk of the chunked"
        " encoding, which HTTP clients report as an error: such a file is not whole."
        f" {MAX_EXPORTS} exports may be under way; more get a 503. A parameter that is not listed is refused.",
        response_class=StreamingResponse,
        responses={200: {"description": "The events, in one of the forms", "content": _documented_content()}},
        dependencies=[Depends(keys.reader)],
    )
    async def export_events(request: Request, query: Annotated[ExportQuery, Query()]) -> ExportStream:
        check_form(query)
        on_the_way = (
            query.format != "parquet" and not query.gzip and accepts_gzip(request.headers.get("accept-encoding", ""))
        )
        export = Export(query, gzip=query.gzip or on_the_way)
        exports.begin()
        try:
            # Before the status goes out, so that a database that is gone is told as such.
            first = await _first_part(exports, export)
        except BaseException:
            exports.end()
            raise
        return ExportStream(exports, export, first, headers_of(query, on_the_way=on_the_way))

    return router


def check_form(query: ExportQuery) -> None:
    """Raises Invalid."""
    errors = [FieldError(name, told, "not_available") for name, told in parquet.faults(query.format, gzip=query.gzip)]
    if errors:
        raise Invalid(f"{errors[0].pointer}: {errors[0].message}", errors=errors)


async def _first_part(exports: Exports, export: Export) -> bytes:
    try:
        return await exports.next_part(export)
    except Cut:
        raise Unavailable("the service is stopping") from None


def headers_of(query: ExportQuery, *, on_the_way: bool) -> dict[str, str]:
    name = f"jethook-events-{utc_now():%Y%m%dT%H%M%SZ}.{query.format}"
    headers = {
        "content-type": "application/gzip" if query.gzip else MEDIA_TYPES[query.format],
        "content-disposition": f'attachment; filename="{name}{".gz" if query.gzip else ""}"',
        "vary": "accept-encoding",
    }
    return headers | ({"content-encoding": "gzip"} if on_the_way else {})


def accepts_gzip(header: str) -> bool:
    """Does an `Accept-Encoding` ask for gzip? `*` does, a weight of 0 does not (RFC 9110, 12.5.3)."""
    weights: dict[str, bool] = {}
    for item in header.lower().split(","):
        name, _, weight = item.partition(";")
        weights[name.strip()] = weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", False)))


def _documented_content() -> dict[str, Any]:
    example = EventModel.model_config["json_schema_extra"]["example"]  # type: ignore[index]
    text = {"type": "string"}
    return {
        "application/x-ndjson": {"schema": text, "example": dump(example).decode() + "\n"},
        "text/csv": {"schema": text, "example": "id,webhook,connection,type,outcome,occurred_at,…\r\n"},
        "application/vnd.apache.parquet": {"schema": text | {"format": "binary"}},
        "application/gzip": {"schema": text | {"format": "binary"}},
    }
