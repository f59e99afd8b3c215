"""Which HTTP client for the sinks? POST of 400 bytes, 32 at once, one core each for client and sink.

Prints `{client: {"rate": posts a second, "cpu_ms": client CPU a post}}`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version

import aiohttp
import httpx2
import uvloop
from yarl import URL

from app.delivery.connections import Progress
from app.delivery.transport import Transport

AT_ONCE = 32
BODY = b'{"event":"open","filler":"' + b"x" * 372 + b'"}'
HEADERS = {"content-type": "application/json"}
Post = Callable[[], Awaitable[None]]


async def measure(post: Post, seconds: float) -> dict[str, float]:
    await asyncio.gather(*(post() for _ in range(AT_ONCE)))
    sent, until = 0, time.perf_counter() + seconds

    async def work() -> None:
        nonlocal sent
        while time.perf_counter() < until:
            await post()
            sent += 1

    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    spent = time.perf_counter() - began
    return {"rate": sent / spent, "cpu_ms": (time.process_time() - cpu) / sent * 1000}


async def with_aiohttp(url: str, seconds: float) -> dict[str, float]:
    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def post() -> None:
            async with session.post(url, data=BODY, headers=HEADERS) as response:
                await response.read()

        return await measure(post, seconds)


async def with_ours(url: str, seconds: float) -> dict[str, float]:
    """What `delivery/sender.py` uses."""
    transport, resolver, target = Transport(), aiohttp.ThreadedResolver(), URL(url)
    request = transport.head_of(target, HEADERS) + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
    async with transport.open_session(resolver=resolver, limit=AT_ONCE, total_seconds=10, connect_seconds=5) as session:
        connections = transport.connections(session, target)

        async def post() -> None:
            await connections.post(request, 10, Progress())

        try:
            return await measure(post, seconds)
        finally:
            connections.close()


async def with_httpx2(url: str, seconds: float) -> dict[str, float]:
    limits = httpx2.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with httpx2.AsyncClient(limits=limits, trust_env=False) as client:

        async def post() -> None:
            await client.post(url, content=BODY, headers=HEADERS)

        return await measure(post, seconds)


def main() -> None:
    url, seconds = f"http://127.0.0.1:{int(sys.argv[1])}/", float(sys.argv[2])
    measured = {
        "Jethook's own": uvloop.run(with_ours(url, seconds)),
        f"aiohttp {version('aiohttp')}": uvloop.run(with_aiohttp(url, seconds)),
        f"httpx2 {version('httpx2')}": uvloop.run(with_httpx2(url, seconds)),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
