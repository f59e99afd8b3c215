"""A sink that costs next to nothing, a process of its own: answers 200 and notes when which `webhook-id` came last.

A raw asyncio protocol on uvloop; `python -m tests.benchmarks.sink PORT [ok | refuse | hang]`. `GET /` tells what came
as JSON: requests, distinct ids, the events in them, the monotonic time of the last new id. `GET /arrivals` tells when
each body came first, by its digest.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from hashlib import blake2b
from typing import cast

import uvloop

_ID = re.compile(rb"\r\nwebhook-id: *([^\r]+)", re.IGNORECASE)
_BATCH = re.compile(rb"\r\nx-jethook-batch: *(\d+)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_REFUSED = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


class Received:
    def __init__(self) -> None:
        self.requests = 0
        self.ids: set[bytes] = set()
        self.events = 0
        self.last_at = 0.0
        self.arrivals: dict[str, float] = {}

    def add(self, head: bytes, body: bytes) -> None:
        self.requests += 1
        webhook_id = _ID.search(head)
        if webhook_id is None or webhook_id[1] in self.ids:
            return
        batch = _BATCH.search(head)
        self.ids.add(webhook_id[1])
        self.events += int(batch[1]) if batch else 1
        self.last_at = time.monotonic()
        self.arrivals[digest_of(body)] = self.last_at

    def report(self, head: bytes) -> bytes:
        told: dict[str, float] = {
            "requests": self.requests, "distinct": len(self.ids), "events": self.events, "last_at": self.last_at,
        }  # fmt: skip
        body = json.dumps(self.arrivals if head.startswith(b"GET /arrivals") else told).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def digest_of(body: bytes) -> str:
    return blake2b(body, digest_size=10).hexdigest()


class SinkProtocol(asyncio.Protocol):
    def __init__(self, received: Received, manner: str) -> None:
        self._received = received
        self._manner = manner
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
            head, body, self._buffer = self._buffer[:end], self._buffer[end + 4 : size], self._buffer[size:]
            self._transport.write(self._answer(head, body))

    def _answer(self, head: bytes, body: bytes) -> bytes:
        if head.startswith(b"GET"):
            return self._received.report(head)
        if self._manner != "ok":
            return b"" if self._manner == "hang" else _REFUSED
        self._received.add(head, body)
        return _OK


async def _serve(port: int, manner: str) -> None:
    received = Received()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SinkProtocol(received, manner), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "ok"))
