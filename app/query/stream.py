"""The feed as server-sent events (WHATWG HTML, "Server-sent events").

Written by hand over ASGI: what matters here (a reader that takes nothing is cut off, and resumes by the id of the last
event it read) needs the `send` of the server, which a library that takes a generator keeps to itself.

At most a page of events and the server's own buffer are held for a client. One that stops reading is cut off after
`SLOW_SECONDS`; nothing more can be told to it, since whatever is sent would wait behind what it does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Literal

import structlog
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.db import is_outage
from app.query.feed import Ask, Feed, FeedEvent, FeedPage
from app.wire import DROP_EXTENSION

log = structlog.get_logger(__name__)

STREAM_ENDED = "stream.ended"
STREAM_FAILED = "stream.failed"
HEARTBEAT_SECONDS = 15.0
SLOW_SECONDS = 20.0
PAGE_EVENTS = 100
RETRY_MS = 2000

Ending = Literal["client", "slow", "stopping", "error"]
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the events back until a buffer is full
]


def event_frame(event: FeedEvent, cursor: str) -> bytes:
    """One event. The type is Mailjet's text and the content may hold raw JSON: neither may begin a line of its own."""
    name = " ".join(event.type.split()).encode("utf-8", "replace")
    data = event.content.replace(b"\r", b" ").replace(b"\n", b" ")  # within JSON they are white space
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (cursor.encode(), name, data)


def place_frame(cursor: str, comment: str) -> bytes:
    """A comment, and the id to resume from; without data no event is fired for it."""
    return b": %b\nid: %b\n\n" % (comment.encode(), cursor.encode())


def error_frame(code: str, detail: str) -> bytes:
    return b'event: error\ndata: {"code": "%b", "detail": "%b"}\n\n' % (code.encode(), detail.encode())


class TooSlow(Exception):
    """The client takes nothing."""


class EventStream(Response):
    """Streams what `ask` wants until the client leaves, does not read, or the feed is closed.

    What goes wrong before the first byte (a cursor that does not fit, no place left) is raised, and answered as usual.
    """

    def __init__(
        self, feed: Feed, ask: Ask, *, on_end: Callable[[str], None] = lambda reason: None,
        heartbeat_seconds: float = HEARTBEAT_SECONDS, slow_seconds: float = SLOW_SECONDS,
    ) -> None:  # fmt: skip
        super().__init__(media_type="text/event-stream")
        self._feed = feed
        self._ask = ask
        self._on_end = on_end
        self._heartbeat_seconds = heartbeat_seconds
        self._slow_seconds = slow_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._feed.client("stream"):
            page = await self._feed.first(self._ask)
            gone = asyncio.create_task(_until_gone(receive))
            ending: Ending = "error"
            try:
                ending = await self._run(_Outlet(send, self._slow_seconds), page, gone)
                if ending == "slow":
                    _drop(scope)
                    await asyncio.wait([gone], timeout=1)  # until the server knows that the connection is closed
            finally:
                gone.cancel()
                log.info(STREAM_ENDED, reason=ending)
                self._on_end(ending)

    async def _run(self, outlet: _Outlet, page: FeedPage, gone: asyncio.Task[None]) -> Ending:
        try:
            await outlet.start()
            return await self._pages(outlet, page, gone)
        except TooSlow:
            return "slow"
        except Exception as error:
            log.warning(STREAM_FAILED, error=type(error).__name__, exc_info=not is_outage(error))
            with contextlib.suppress(TooSlow):
                await outlet.end(error_frame("unavailable", "the events cannot be read now; resume by the last id"))
            return "error"

    async def _pages(self, outlet: _Outlet, page: FeedPage, gone: asyncio.Task[None]) -> Ending:
        begins = page.position if self._ask.start is None else self._ask.start
        await outlet.put(b"retry: %d\n" % RETRY_MS + place_frame(self._ask.cursor(begins), "begins"))
        while True:
            await outlet.put(self._frames(page))
            if self._feed.closed:
                await outlet.end(error_frame("stopping", "the service stops; resume by the last id"))
                return "stopping"
            following = await self._next(page, gone)
            if following is None:
                return "client"
            page = following

    def _frames(self, page: FeedPage) -> bytes:
        if not page.events:
            return place_frame(self._ask.cursor(page.position), "still here")
        # A page is of one question, so that its cursors are the same for all who share it; a hundred streams do.
        if not page.written:
            page.written.append(b"".join(event_frame(event, self._ask.cursor(event.seq)) for event in page.events))
        return page.written[0]

    async def _next(self, page: FeedPage, gone: asyncio.Task[None]) -> FeedPage | None:
        """The next page, empty after a while without events; None when the client has left."""
        following = asyncio.create_task(self._feed.more(self._ask, page, self._heartbeat_seconds))
        try:
            await asyncio.wait([following, gone], return_when=asyncio.FIRST_COMPLETED)
            return None if gone.done() else await following
        finally:
            following.cancel()


class _Outlet:
    """What goes out to one client; waiting for it to read has an end."""

    def __init__(self, send: Send, slow_seconds: float) -> None:
        self._send_on = send
        self._slow_seconds = slow_seconds

    async def start(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})

    async def put(self, content: bytes) -> None:
        """Raises TooSlow."""
        await self._send({"type": "http.response.body", "body": content, "more_body": True})

    async def end(self, content: bytes) -> None:
        """Raises TooSlow."""
        await self._send({"type": "http.response.body", "body": content, "more_body": False})

    async def _send(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._slow_seconds):
                await self._send_on(message)
        except TimeoutError:
            raise TooSlow from None


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _drop(scope: Scope) -> None:
    drop = scope.get("extensions", {}).get(DROP_EXTENSION)
    if drop is not None:
        drop()
