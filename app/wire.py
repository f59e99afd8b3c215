"""HTTP on the wire: uvicorn's protocol with the bounds it lacks, since anybody may connect.

By itself it takes heads and trailers of any size, keeps every pipelined request it is sent, waits for a head and for a
body for ever, takes more connections than the process may have open files, and leaves the body of a request that asks
for an upgrade on the wire, to be read as the next request.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from functools import cache
from typing import Any, cast

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import PROBLEM_CONTENT_TYPE, BadRequest, problem_body

log = structlog.get_logger(__name__)

MADE_ROOM = "connections.made_room"
MOST_CONNECTIONS = 2000
WANTED_FILES = 2 * MOST_CONNECTIONS  # half of them for the database and the sinks
ROOM_SHARE = 8  # an eighth goes at once, so that looking for them is not done for each
MAX_HEAD_BYTES = 64 * 1024  # in pieces that neither end a head nor bring a body: heads, trailers, sizes of chunks
MAX_PIPELINED = 64  # requests that wait for the answers before theirs
HEAD_SECONDS = 30.0  # for the first head of a connection, and for one that came in part
REFUSED_SECONDS = 1.0  # then the connection is closed; at once, the caller would see a reset and not the answer
# Key in `scope["extensions"]` of a function that closes the connection at once: ASGI has no way to say that.
DROP_EXTENSION = "jethook.drop"
MAX_GATHERED_BYTES = 64 * 1024
TOO_LARGE_HEAD = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


@cache
def most_connections() -> int:
    """At once; asks for more open files where it may.

    What the operating system lets us open is not for strangers alone: without a file left, nothing is stored and no
    sink is reached.
    """
    try:
        import resource  # noqa: PLC0415  Windows has no such bound
    except ImportError:
        return MOST_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, soft // 2)


class OneWrite:
    """A transport that writes at the end of the loop's round: uvicorn hands over head and body of an answer one by one,
    and each would be a system call and a packet of its own. Everything else goes to the transport it stands for."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_GATHERED_BYTES:
            self._flush()  # a long answer is held back by the transport, and for that the transport must know of it

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size() + self._size

    def _flush(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
            if not self._transport.is_closing():
                self._transport.write(data)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, one for each connection.

    A piece counts against the bound if it brought nothing on: it ended no head and no message, and held no body.

    Where there are too many connections, those go that have waited for their other end the longest: for a request, for
    the rest of one, or for it to read. Whoever sends a whole request at once, as Mailjet and proxies do, is not among
    them, however many strangers hold a connection and say nothing.
    """

    _waits_since = 0.0

    _progress = False
    _idle_bytes = 0
    _refused = False
    _is_open_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", OneWrite(transport, self.loop)))
        self._waits_since = self.loop.time()
        if len(self.connections) > most_connections():
            self._make_room()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._progress = False
        super().data_received(data)
        if self._progress:
            self._idle_bytes = 0
        else:
            self._idle_bytes += len(data)
            if self._idle_bytes > MAX_HEAD_BYTES:
                self._refuse()
        if self._is_open_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def on_message_begin(self) -> None:
        self._is_open_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._progress = True
        self._is_open_head = False
        self._head_came()
        self.scope["extensions"] = {DROP_EXTENSION: self.transport.abort}  # type: ignore[dict-item]
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            raise ValueError("too many requests at once")  # the parser stops here: 400, and the connection is closed

    def on_body(self, body: bytes) -> None:
        self._progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progress = True
        self._waits_since = self.loop.time()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._waits_since = self.loop.time()
        super().pause_writing()

    @property
    def waits_for_its_other_end(self) -> bool:
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body or self.flow.write_paused

    def _make_room(self) -> None:
        there = [one for one in self.connections if isinstance(one, BoundedProtocol) and not one.transport.is_closing()]
        most = most_connections()
        if len(there) <= most:
            return
        waiting = sorted((one for one in there if one.waits_for_its_other_end), key=lambda one: one._waits_since)
        gone = waiting[: max(most // ROOM_SHARE, 1)]
        for one in gone:
            one.transport.abort()
        log.warning(MADE_ROOM, connections=len(there), closed=len(gone), most=most)

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, in the one shape of our errors."""
        body = problem_body(BadRequest(msg), instance="/", request_id=secrets.token_hex(16))
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.format(PROBLEM_CONTENT_TYPE, len(body)).encode() + body)
        self.transport.close()

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self) -> None:
        self._refused = True
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:  # else it would stand in the middle of an answer
            self.transport.write(TOO_LARGE_HEAD)
        self.loop.call_later(REFUSED_SECONDS, self.transport.close)
