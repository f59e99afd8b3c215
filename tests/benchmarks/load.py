"""The load generator, a process of its own: posts ready-made requests over N connections as fast as they are answered.

Raw asyncio protocols on uvloop, one request at a time on each connection, every byte of every request made before the
clock starts: with aiohttp in this place the generator would use more of the two cores than the empty route it measures.
Takes a `LoadSpec` as JSON in its one argument and prints a `LoadResult` as JSON.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import re
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import cast

import uvloop

from tests.benchmarks.corpus import read_bodies
from tests.benchmarks.sink import digest_of

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
ANSWER_SECONDS = 15.0  # without a single answer for that long the run is given up


@dataclass(frozen=True)
class LoadSpec:
    """Post `events` of the corpus after the first `skip`, for at most `seconds` of posting.

    repeat: begin again when the bodies are used up, until `seconds` are over (for servers that keep nothing).
    rate: posts a second, each at its time whatever the answers do; None: each connection posts as it is answered.
    """

    port: int
    path: str
    credentials: str
    corpus: str
    events: int
    group: int
    connections: int
    seconds: float
    skip: int = 0
    repeat: bool = False
    rate: float | None = None


@dataclass
class LoadResult:
    """`acknowledged` are the events answered with 200; `began` is on the machine's monotonic clock."""

    acknowledged: int = 0
    began: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    sent: dict[str, float] = field(default_factory=dict)  # with a rate: when each body was due, by its digest


class _Run:
    def __init__(self, spec: LoadSpec) -> None:
        self.spec = spec
        made = [
            (_request(spec, body), count)
            for body, count in read_bodies(Path(spec.corpus), skip=spec.skip, events=spec.events, group=spec.group)
        ]
        self._requests = cycle(made) if spec.repeat else iter(made)
        self.acknowledged = 0
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []
        self.last_answer = 0.0
        self.until = 0.0
        self.news = asyncio.Event()
        self.idle: list[_Connection] = []  # with a rate: those that wait for the next post's time
        self.open = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def next(self) -> tuple[bytes, int] | None:
        return None if time.monotonic() >= self.until else next(self._requests, None)

    def answered(self, status: int, events: int, sent_at: float) -> None:
        self.last_answer = time.monotonic()
        self.latencies.append(self.last_answer - sent_at)
        self.statuses[status] += 1
        if status == 200:
            self.acknowledged += events

    def rest(self, connection: _Connection) -> None:
        self.idle.append(connection)
        self.news.set()

    async def free_connection(self) -> _Connection:
        while not self.idle:
            self.news.clear()
            await self.news.wait()
        return self.idle.pop()

    async def all_answered(self, posts: int) -> None:
        while len(self.latencies) < posts:
            self.news.clear()
            await self.news.wait()

    def reopened(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.finished()

    def finished(self) -> None:
        self.open -= 1
        if not self.open and not self.done.done():
            self.done.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection: send, wait for the whole answer, send the next; opened again where the server closes it."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._buffer = b""
        self._current: tuple[bytes, int] | None = None
        self._sent_at = 0.0
        self._ended = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has no such base class
        if self._current is not None:
            self._transport.write(self._current[0])

    def send_next(self) -> None:
        self._current = self._run.next()
        if self._current is None:
            self._end()
            return
        self._sent_at = time.monotonic()
        if self._transport is None:
            self._connect_again()
        else:
            self._transport.write(self._current[0])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._buffer, 0, end)
        if length is None:
            raise RuntimeError("the answer has no content-length")
        if len(self._buffer) < end + 4 + int(length[1]):
            return
        status, closes = int(self._buffer[9:12]), _CLOSE.search(self._buffer, 0, end) is not None
        self._buffer = b""
        assert self._current is not None
        self._run.answered(status, self._current[1], self._sent_at)
        if closes:
            self._drop()
        if self._run.spec.rate is None:
            self.send_next()
        else:
            self._run.rest(self)

    @property
    def body(self) -> bytes:
        assert self._current is not None
        return self._current[0].partition(b"\r\n\r\n")[2]

    def send_due(self, due_at: float) -> bool:
        """The next post, which was due at `due_at`: what it waited for a connection counts. False: there is none."""
        self._current = self._run.next()
        if self._current is None:
            return False
        self._sent_at = due_at
        assert self._transport is not None
        self._transport.write(self._current[0])
        return True

    def connection_lost(self, _: Exception | None) -> None:
        if self._transport is None or self._ended:
            return
        self._transport = None  # closed by the server without an answer, or between two requests
        self._run.statuses[0] += 1
        self._connect_again()

    def _drop(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _connect_again(self) -> None:
        again = _Connection(self._run)
        again._current, again._sent_at = self._current, self._sent_at
        self._ended = True
        task = asyncio.ensure_future(_connect(again, self._run.spec.port))
        task.add_done_callback(self._run.reopened)

    def _end(self) -> None:
        self._ended = True
        self._drop()
        self._run.finished()


async def _connect(connection: _Connection, port: int) -> None:
    await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", port)


def _request(spec: LoadSpec, body: bytes) -> bytes:
    authorization = base64.b64encode(spec.credentials.encode()).decode()
    head = (
        f"POST {spec.path} HTTP/1.1\r\nhost: 127.0.0.1:{spec.port}\r\nuser-agent: Go-http-client/2.0\r\n"
        f"content-type: application/json\r\nauthorization: Basic {authorization}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _post_all(spec: LoadSpec) -> LoadResult:
    run = _Run(spec)
    connections = [_Connection(run) for _ in range(spec.connections)]
    for connection in connections:
        await _connect(connection, spec.port)
    gc.collect()
    gc.freeze()
    run.open = len(connections)
    cpu, began = time.process_time(), time.monotonic()
    run.last_answer, run.until = began, began + spec.seconds
    sent: dict[str, float] = {}
    if spec.rate is None:
        for connection in connections:
            connection.send_next()
        await _until_done(run)
    else:
        run.idle = list(connections)
        sent = await _post_at(run, spec.rate, began)
    if not run.latencies:
        raise RuntimeError(f"no answer in {ANSWER_SECONDS} s")
    latencies = sorted(run.latencies)
    return LoadResult(
        acknowledged=run.acknowledged,
        began=began,
        seconds=run.last_answer - began,
        cpu_seconds=time.process_time() - cpu,
        statuses={str(status): count for status, count in sorted(run.statuses.items())},
        p50_ms=latencies[len(latencies) // 2] * 1000,
        p99_ms=latencies[int(len(latencies) * 0.99)] * 1000,
        sent=sent,
    )


async def _post_at(run: _Run, rate: float, began: float) -> dict[str, float]:
    """Each post at its time over a connection that is free, until none is left and all are answered."""
    sent: dict[str, float] = {}
    while True:
        due_at = began + len(sent) / rate
        await asyncio.sleep(max(0.0, due_at - time.monotonic()))
        connection = await run.free_connection()
        if not connection.send_due(due_at):
            break
        sent[digest_of(connection.body)] = due_at
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_SECONDS):
            await run.all_answered(len(sent))
    return sent


async def _until_done(run: _Run) -> None:
    while not run.done.done():
        await asyncio.wait({run.done}, timeout=1)
        if time.monotonic() - run.last_answer > ANSWER_SECONDS:
            return


def main() -> None:
    spec = LoadSpec(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(uvloop.run(_post_all(spec)))))


if __name__ == "__main__":
    main()
