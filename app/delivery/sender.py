"""One HTTP attempt at one sink. A refusing, slow or broken sink is a value here, not an exception.

Each sink has its own session: connections, name look-ups and waiting are shared with nobody. aiohttp carries it, for
its speed (see tests/benchmarks/README.md) and because its errors tell a name that does not resolve from a port that
refuses and a certificate that does not fit.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from app.delivery.policy import outcome_of_status
from app.models import AttemptOutcome
from app.settings import SinkSettings

MAX_ANSWER_BYTES = 64 * 1024  # read, then the connection is closed and the status counts
KEPT_ANSWER_CHARS = 1024


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """What one try brought. `retry_after` in seconds, `wish` the answer's `webhook-delivery` header."""

    outcome: AttemptOutcome
    status: int | None
    error: str | None
    duration_ms: float
    response_excerpt: str | None = None
    retry_after: float | None = None
    wish: str | None = None


class SinkSender:
    """Posts to one sink; made on the event loop, closed with `close()`."""

    def __init__(self, sink: SinkSettings) -> None:
        self._url = sink.url
        self._headers = {name: value.get_secret_value() for name, value in sink.headers.items()}
        self._resolver = _OwnThreadsResolver()
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=sink.concurrency, resolver=self._resolver, ttl_dns_cache=30, keepalive_timeout=30
            ),
            timeout=aiohttp.ClientTimeout(total=sink.timeout_seconds, sock_connect=sink.connect_timeout_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # a small answer may unpack to a large one
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
            trace_configs=[trace],
        )

    async def send(self, body: bytes, headers: Mapping[str, str]) -> AttemptResult:
        """One attempt; our headers win over the configured ones. Never raises but for cancellation."""
        started = time.perf_counter()
        trace = SimpleNamespace(reused=False)
        try:
            return await self._post(body, headers, started, trace)
        except aiohttp.ServerDisconnectedError:
            if not trace.reused:
                return _failure(AttemptOutcome.CONNECT, "the sink closed the connection without an answer", started)
        except Exception as error:  # noqa: BLE001  every fault of a sink is a value
            outcome, text = classify(error)
            if not (trace.reused and isinstance(error, aiohttp.ClientOSError)):
                return _failure(outcome, text, started)
        # The sink had closed an idle connection before we reused it: it never saw the request.
        try:
            return await self._post(body, headers, started, SimpleNamespace(reused=False))
        except Exception as error:  # noqa: BLE001
            outcome, text = classify(error)
            return _failure(outcome, text, started)

    async def close(self) -> None:
        await self._session.close()
        await self._resolver.close()

    async def _post(
        self, body: bytes, headers: Mapping[str, str], started: float, trace: SimpleNamespace
    ) -> AttemptResult:
        async with self._session.post(
            self._url, data=body, headers={**self._headers, **headers}, allow_redirects=False, trace_request_ctx=trace
        ) as response:
            answer = await _read_some(response)
            outcome = outcome_of_status(response.status)
            return AttemptResult(
                outcome=outcome,
                status=response.status,
                error=None if outcome is AttemptOutcome.SUCCESS else f"the sink answered {response.status}",
                duration_ms=_since(started),
                response_excerpt=excerpt(answer),
                retry_after=retry_after_seconds(response.headers.get("retry-after"), datetime.now(UTC)),
                wish=response.headers.get("webhook-delivery", "").strip().lower() or None,
            )


async def _read_some(response: aiohttp.ClientResponse) -> bytes:
    """The answer's first bytes, at most 64 KiB; a longer one costs it the connection.

    A body that breaks off does not undo a status that came whole, but one that drips runs into the total timeout.
    """
    if response.content_length == 0:
        return b""
    parts: list[bytes] = []
    size = 0
    try:
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size >= MAX_ANSWER_BYTES:
                response.close()
                break
    except aiohttp.ClientPayloadError:
        response.close()
    return b"".join(parts)[:MAX_ANSWER_BYTES]


def excerpt(answer: bytes) -> str | None:
    """The first characters of an answer as text that every database takes."""
    if not answer:
        return None
    return answer[: KEPT_ANSWER_CHARS * 4].decode("utf-8", "replace").replace("\0", "\ufffd")[:KEPT_ANSWER_CHARS]


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """`Retry-After` as seconds from now: a whole number or an HTTP date; None for anything else."""
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


def classify(error: BaseException) -> tuple[AttemptOutcome, str]:
    """(label, sentence) of a failed try. The sentence names no header and no address of ours."""
    match error:
        case TimeoutError():
            return AttemptOutcome.TIMEOUT, "no whole answer within the time limit"
        case aiohttp.ClientConnectorDNSError():
            return AttemptOutcome.DNS, "the sink's host name does not resolve"
        case aiohttp.ClientConnectorCertificateError():
            return AttemptOutcome.TLS, f"the sink's certificate is not accepted: {error.certificate_error}"[:300]
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return AttemptOutcome.TLS, f"TLS failed: {error.strerror or type(error).__name__}"[:300]
        case aiohttp.InvalidURL():
            return AttemptOutcome.INVALID, "the sink's URL cannot be used"
        case aiohttp.ClientResponseError():
            return AttemptOutcome.INVALID, f"the answer is not HTTP: {error.message}"[:300]
        case aiohttp.ClientOSError() | OSError():
            return AttemptOutcome.CONNECT, f"no connection: {error.strerror or type(error).__name__}"[:300]
        case aiohttp.ClientError():
            return AttemptOutcome.CONNECT, f"the connection broke: {type(error).__name__}"
    return AttemptOutcome.INVALID, f"the request cannot be sent: {type(error).__name__}"


def _failure(outcome: AttemptOutcome, text: str, started: float) -> AttemptResult:
    return AttemptResult(outcome=outcome, status=None, error=text, duration_ms=_since(started))


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)


async def _note_reuse(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
    context.trace_request_ctx.reused = True


class _OwnThreadsResolver(AbstractResolver):
    """Name look-ups on threads of this sink's own: a name server that hangs for one sink is felt by no other."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="sink-dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
        )
        return [
            ResolveResult(
                hostname=host, host=str(address[0]), port=int(address[1]), family=kind, proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, proto, _, address in found
        ]  # fmt: skip

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
