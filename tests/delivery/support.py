"""What the tests of delivery share: jobs, servers that misbehave, a worker with a real database and a real sink."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from app.clock import to_micros, utc_now
from app.db import Database
from app.dispatch.service import Job
from app.settings import SinkSettings
from app.views import EVENT_COLUMNS
from tests.factories import event_values

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], seconds: float = 30) -> T:
    """The result of `work` on an event loop of its own."""

    async def limited() -> T:
        async with asyncio.timeout(seconds):
            return await work

    return asyncio.run(limited())


def sink(url: str = "http://127.0.0.1:9/", **given: Any) -> SinkSettings:
    return SinkSettings(**{"url": url, **given})


def event_tuple(**given: Any) -> tuple[Any, ...]:
    """One event as it travels to the worker, in the order of `EVENT_COLUMNS`."""
    values = event_values(**given)
    times = {name: to_micros(values[name]) for name in ("occurred_at", "received_at")}
    return tuple((values | times)[name] for name in EVENT_COLUMNS)


def make_job(raw: str | None = None, **given: Any) -> Job:
    """A job whose event has this raw text, or plausible content."""
    event = event_tuple(**({"raw": raw} if raw is not None else {}), **given)
    return Job(event_id=event[0], sink="crm", webhook=event[1], type=event[3], event=event)


async def until(ask: Callable[[], T], wanted: str, seconds: float = 10) -> T:
    """Ask on the loop until the answer is true; a deadline instead of a sleep."""
    give_up = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < give_up, f"waited {seconds} s for {wanted}"
        await asyncio.sleep(0.005)
    return answer


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(handler: Handler, **options: Any) -> AsyncIterator[int]:
    """A TCP server on this loop whose every connection `handler` leads; gives its port."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """(head, body) of one request that has a content-length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    return head, await reader.readexactly(length)


def answering(*answers: bytes, requests: list[bytes] | None = None) -> Handler:
    """Answers the requests of each connection with these bytes in turn, then closes it."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            head, _ = await read_request(reader)
            if requests is not None:
                requests.append(head)
            writer.write(answer)
            await writer.drain()

    return handler


def store_event(database: Database, *, sinks: tuple[str, ...] = ("crm",), **delivery: Any) -> str:
    """An event with a pending delivery for each sink, due now; its id."""
    from tests.factories import make_delivery, make_event

    event = make_event(database)
    for name in sinks:
        make_delivery(database, event, **{"sink": name, "next_attempt_at": utc_now(), **delivery})
    return str(event["id"])


def raw_event(number: int, **more: Any) -> bytes:
    return json.dumps(
        {"event": "open", "time": 1_777_802_400 + number, "MessageID": 19421777835146490, **more}
    ).encode()
