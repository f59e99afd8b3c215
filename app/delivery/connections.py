"""Requests and answers over connections that are kept: HTTP/1.1, one request at a time on each.

aiohttp makes the connections: names, addresses, TLS, proxies, and the errors that tell which of them failed. What goes
over one is written and read here, with the parser that uvicorn uses, since half of a lone delivery's time on the event
loop was aiohttp's client and what it offers to those who want more of an answer than its first bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import aiohttp
import httptools
from aiohttp.connector import Connection

MAX_ANSWER_BYTES = 64 * 1024  # read, then the connection is closed and the status counts
MAX_HEAD_BYTES = 64 * 1024
KEEP_ALIVE_SECONDS = 30.0

CountConnection = Callable[[bool], object]
"""Hears of each request that got its connection, and whether that one was used before."""


@dataclass(slots=True)
class Progress:
    """How far one request came."""

    connected: bool = False  # for an https:// sink behind a proxy: the tunnel and the TLS in it are there
    reused: bool = False  # it goes over a connection that served others before


class NotHttp(aiohttp.ClientError):
    """What came is no answer; the message says why."""


TOO_LONG = f"its head is longer than {MAX_HEAD_BYTES} bytes"


class Answer(NamedTuple):
    """What is wanted of one: the first 64 KiB of its body, and two headers as they stand."""

    status: int
    body: bytes
    retry_after: str | None
    wish: str | None


class Wire(asyncio.Protocol):
    """One connection. `exchange` once at a time; afterwards `is_reusable` tells whether it may serve again."""

    def __init__(self, connection: Connection) -> None:
        """Takes the connection over from aiohttp's own protocol."""
        assert connection.protocol is not None
        assert connection.transport is not None
        self.idle_since = 0.0
        self.is_reusable = False
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._handler = connection.protocol
        self._transport = connection.transport
        self._waiter: asyncio.Future[Answer] | None = None
        self._lost: Exception | None = None
        # Before it was asked, it has spoken or hung up already.
        self._spoke_first = self._handler.should_close
        self._transport.set_protocol(self)

    async def exchange(self, request: bytes, seconds: float) -> Answer:
        """Raises TimeoutError, NotHttp, and aiohttp's errors of a connection that broke."""
        if self._spoke_first:
            raise NotHttp("it spoke before it was asked")
        if self._lost is not None or self._transport.is_closing():
            raise self._lost or aiohttp.ServerDisconnectedError
        self._begin()
        waiter: asyncio.Future[Answer]
        waiter = self._waiter = self._loop.create_future()
        timer = self._loop.call_later(seconds, self._late)
        self._transport.write(request)
        try:
            return await waiter
        except BaseException:
            self._transport.abort()  # a peer that reads nothing would keep what is not sent yet for ever
            self.close()
            raise
        finally:
            timer.cancel()
            self._waiter = None

    def close(self) -> None:
        self.is_reusable = False
        self._connection.close()

    def _begin(self) -> None:
        self.is_reusable = False
        self._parser = httptools.HttpResponseParser(self)
        # As browsers and aiohttp read answers: what a sink says badly is still said.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_lf_after_cr=True, lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )  # fmt: skip
        self._head_bytes = self._header_bytes = 0
        self._has_head = False
        self._retry_after: bytes | None = None
        self._wish: bytes | None = None
        self._body: list[bytes] = []
        self._body_bytes = self._rest_bytes = 0

    def _late(self) -> None:
        self._fail(TimeoutError())

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def _finish(self, *, is_reusable: bool = False) -> None:
        self.is_reusable = is_reusable
        if self._waiter is not None and not self._waiter.done():
            body = b"".join(self._body)[:MAX_ANSWER_BYTES]
            status = self._parser.get_status_code()
            self._waiter.set_result(Answer(status, body, _text(self._retry_after), _text(self._wish)))

    # --- the transport's side ---

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self.close()  # nobody asked for it: the next answer on this connection could be the wrong one
            return
        if not self._has_head:
            self._head_bytes += len(data)
        else:  # trailers and the sizes of chunks are no body, and may be endless too
            self._rest_bytes += len(data)
            if self._rest_bytes > 2 * MAX_ANSWER_BYTES:
                self._finish()
                self.close()
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._finish()
        except httptools.HttpParserError as error:
            self._broken(NotHttp(str(error)))
        else:
            if not self._has_head and self._head_bytes > MAX_HEAD_BYTES:
                self._fail(NotHttp(TOO_LONG))

    def connection_lost(self, exc: Exception | None) -> None:
        self._handler.connection_lost(exc)
        self._lost = _error_of(exc)
        self._broken(self._lost)
        self.close()

    def _broken(self, error: Exception) -> None:
        """A body that breaks off does not undo a status that came whole."""
        if self._waiter is not None and not self._waiter.done() and self._has_head:
            self._finish()
        else:
            self._fail(error)

    # --- the parser's side ---

    def on_message_begin(self) -> None:
        if self._waiter is None or self._waiter.done():
            self.is_reusable = False  # something follows the answer

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_head:
            return  # a trailer
        self._header_bytes += len(name) + len(value)
        if len(name) == 11 and self._retry_after is None and name.lower() == b"retry-after":
            self._retry_after = value
        elif len(name) == 16 and self._wish is None and name.lower() == b"webhook-delivery":
            self._wish = value

    def on_headers_complete(self) -> None:
        if self._header_bytes > MAX_HEAD_BYTES:  # as it would have been, had it come in pieces
            self._fail(NotHttp(TOO_LONG))
            return
        self._has_head = self._parser.get_status_code() >= 200
        if not self._has_head:  # an interim answer
            self._head_bytes = self._header_bytes = 0
            self._retry_after = self._wish = None

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes >= MAX_ANSWER_BYTES:
            self._finish()

    def on_message_complete(self) -> None:
        if self._has_head and self._body_bytes < MAX_ANSWER_BYTES:
            self._finish(is_reusable=self._parser.should_keep_alive())


class Connections:
    """Those of one sink: at most as many as requests are under way at once, the most recently used first.

    `connect` makes a new one. `is_kept` False: each serves one request.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], count: CountConnection | None = None, *,
        is_kept: bool = True,
    ) -> None:  # fmt: skip
        self._connect = connect
        self._count = count
        self._is_kept = is_kept
        self._idle: list[Wire] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def post(self, request: bytes, seconds: float, progress: Progress) -> Answer:
        """One request and its answer, the connection and the whole body within `seconds`.

        Raises what connecting and `Wire.exchange` raise.
        """
        wire = self._take()
        progress.reused = wire is not None
        if wire is None:
            began = asyncio.get_running_loop().time()
            async with asyncio.timeout(seconds):
                wire = Wire(await self._connect())
            seconds = max(seconds - (asyncio.get_running_loop().time() - began), 0)
        progress.connected = True
        if self._count is not None:
            self._count(progress.reused)
        try:
            answer = await wire.exchange(request, seconds)
        finally:
            if wire.is_reusable and self._is_kept and not self._closed:
                self._keep(wire)
            else:
                wire.close()
        return answer

    def close(self) -> None:
        """The session that made the connections closes them, and waits for that: close it afterwards."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._idle.clear()

    def _take(self) -> Wire | None:
        """The one used last, if the sink has not closed it meanwhile."""
        while self._idle:
            wire = self._idle.pop()
            if wire.is_reusable:
                return wire
        return None

    def _keep(self, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        wire.idle_since = loop.time()
        self._idle.append(wire)
        if self._timer is None:
            self._timer = loop.call_later(KEEP_ALIVE_SECONDS, self._close_old)

    def _close_old(self) -> None:
        """The oldest stand first."""
        loop = asyncio.get_running_loop()
        fresh = [wire for wire in self._idle if loop.time() - wire.idle_since < KEEP_ALIVE_SECONDS]
        for wire in self._idle[: len(self._idle) - len(fresh)]:
            wire.close()
        self._idle = [wire for wire in fresh if wire.is_reusable]
        self._timer = None
        if self._idle:
            left = KEEP_ALIVE_SECONDS - (loop.time() - self._idle[0].idle_since)
            self._timer = loop.call_later(max(left, 0.1), self._close_old)


def header_lines(headers: Mapping[str, str]) -> bytes:
    """As they go over the wire. Raises ValueError for one that would be more than one."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") + lines.count("\r") != 2 * len(headers) or "\0" in lines:
        raise ValueError("a header holds a line break")
    return lines.encode()


def _error_of(lost: Exception | None) -> Exception:
    """As aiohttp calls them."""
    if lost is None:
        return aiohttp.ServerDisconnectedError()
    return cast("Exception", aiohttp.ClientOSError(*lost.args)) if isinstance(lost, OSError) else lost


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
