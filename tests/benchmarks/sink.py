"""A sink that costs next to nothing, a process of its own: answers 200 and notes when which `webhook-id` came last.

A raw asyncio protocol on uvloop. `GET /` tells what came as JSON: requests, distinct ids, the monotonic time of the
last new id.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import cast

import uvloop

_ID = re.compile(rb"\r\nwebhook-id: *([^\r]+)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


class Received:
    def __init__(self) -> None:
        self.requests = 0
        self.ids: set[bytes] = set()
        self.last_at = 0.0

    def add(self, webhook_id: bytes | None) -> None:
        self.requests += 1
        if webhook_id is not None and webhook_id not in self.ids:
            self.ids.add(webhook_id)
            self.last_at = time.monotonic()

    def report(self) -> bytes:
        body = json.dumps({"requests": self.requests, "distinct": len(self.ids), "last_at": self.last_at}).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


class SinkProtocol(asyncio.Protocol):
    def __init__(self, received: Received) -> None:
        self._received = received
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has no such base class

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        assert self._transport is not None
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, end)
            size = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < size:
                return
            head, self._buffer = self._buffer[:end], self._buffer[size:]
            self._transport.write(self._answer(head))

    def _answer(self, head: bytes) -> bytes:
        if head.startswith(b"GET"):
            return self._received.report()
        webhook_id = _ID.search(head)
        self._received.add(webhook_id[1] if webhook_id else None)
        return _OK


async def _serve(port: int) -> None:
    received = Received()
    server = await asyncio.get_running_loop().create_server(lambda: SinkProtocol(received), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
