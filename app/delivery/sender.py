"""One HTTP attempt at one sink. A refusing, slow or broken sink is a value here, not an exception.

Each sink has its own session: connections, name look-ups and waiting are shared with nobody. aiohttp makes the
connections, because its errors tell a name that does not resolve from a port that refuses and a certificate that does
not fit; what goes over them is our own, for its speed (see tests/benchmarks/README.md).
"""

from __future__ import annotations

import asyncio
import base64
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from app.addresses import ONLY_ALWAYS, AddressRules
from app.delivery.connections import Answer, Connections, CountConnection, Progress, header_lines
from app.delivery.oauth import PEER as TOKEN_ENDPOINT
from app.delivery.oauth import TokenFailure, TokenSource
from app.delivery.policy import outcome_of_status
from app.delivery.transport import Fault, Transport
from app.models import AttemptOutcome
from app.settings import SinkSettings
from app.views import clean

KEPT_ANSWER_CHARS = 4096
MAX_ERROR_CHARS = 300
REUSE_SECONDS = 1.0  # a connection that was closed before we reused it shows that within a round trip


class AttemptResult(NamedTuple):
    """What one try brought. `retry_after` in seconds, `wish` the answer's `webhook-delivery` header."""

    outcome: AttemptOutcome
    status: int | None
    error: str | None
    duration_ms: float
    response_excerpt: str | None = None
    retry_after: float | None = None
    wish: str | None = None
    is_our_fault: bool = False  # nothing was sent, and it says nothing about the sink


class SinkSender:
    """Posts to one sink; made on the event loop, closed with `close()`. Raises tls.BadTlsFile."""

    def __init__(
        self, sink: SinkSettings, rules: AddressRules = ONLY_ALWAYS, count: CountConnection | None = None
    ) -> None:
        configured = {name: value.get_secret_value() for name, value in sink.headers.items()}
        self._url, self._headers = _address(sink.url, configured)
        self._sink = sink
        self._resolver = _OwnThreadsResolver()
        self._transport = Transport(
            ca_file=sink.ca_file, client_cert_file=sink.client_cert_file, client_key_file=sink.client_key_file,
            proxy=sink.proxy, rules=rules, count=count,
        )  # fmt: skip
        self._blocked = self._blocked_by_rules()
        self._times = {"total_seconds": sink.timeout_seconds, "connect_seconds": sink.connect_timeout_seconds}
        self._session = self._transport.open_session(resolver=self._resolver, limit=sink.concurrency, **self._times)
        self._connections = self._transport.connections(self._session, self._url)
        self._fresh: Connections | None = None
        self._head = self._transport.head_of(self._url, self._headers)
        self._tokens = self._token_source()

    def _blocked_by_rules(self) -> Fault | None:
        """What the settings alone tell: behind a proxy, nothing else would look at the addresses."""
        blocked = self._transport.blocked(self._url)
        if blocked is None and self._sink.oauth_token_url:
            return self._transport.blocked(self._sink.oauth_token_url, TOKEN_ENDPOINT)
        return blocked

    def _token_source(self) -> TokenSource | None:
        sink = self._sink
        if not (sink.oauth_token_url and sink.oauth_client_id and sink.oauth_client_secret):
            return None
        return TokenSource(
            sink.oauth_token_url, sink.oauth_client_id, sink.oauth_client_secret.get_secret_value(),
            open_session=partial(self._transport.open_token_session, resolver=self._resolver, **self._times),
            classify=self._transport.classify, scope=sink.oauth_scope, audience=sink.oauth_audience,
            auth_method=sink.oauth_auth_method,
        )  # fmt: skip

    async def send(self, body: bytes, headers: Mapping[str, str]) -> AttemptResult:
        """One attempt; our headers win over the configured ones. Never raises but for cancellation.

        A token that the sink refuses is replaced, and the request repeated, once within the attempt.
        """
        started = time.perf_counter()
        if self._blocked is not None:
            return _failure(*self._blocked, started)
        if self._tokens is None:
            return await self._try(body, headers, started)
        try:
            token = await self._tokens.token()
            result = await self._try(body, {**headers, "authorization": f"Bearer {token}"}, started)
            if result.status == 401:
                self._tokens.invalidate(token)
                token = await self._tokens.token()
                result = await self._try(body, {**headers, "authorization": f"Bearer {token}"}, started)
        except TokenFailure as failure:
            return _failure(failure.outcome, failure.text, started, retry_after=_retry_after(failure.retry_after))
        return result

    async def _try(self, body: bytes, headers: Mapping[str, str], started: float) -> AttemptResult:
        progress = Progress()
        sent = time.perf_counter()
        try:
            return await self._post(self._connections, body, headers, progress, started)
        except Exception as error:  # noqa: BLE001  every fault of a sink is a value
            if not _closed_before_reuse(error, progress, time.perf_counter() - sent):
                return _failure(*self._transport.classify(error, self._url, progress), started)
        # The sink had closed an idle connection before we reused it: it never saw the request. Its other idle
        # connections are likely closed as well, so this one is new.
        if self._fresh is None:
            self._fresh = self._transport.connections(self._session, self._url, is_kept=False)
        progress = Progress()
        try:
            return await self._post(self._fresh, body, {**headers, "connection": "close"}, progress, started)
        except Exception as error:  # noqa: BLE001
            return _failure(*self._transport.classify(error, self._url, progress), started)

    async def probe(self) -> AttemptResult:
        """Connect as for an attempt, with name, addresses, proxy, TLS and token, and hang up without a word."""
        started = time.perf_counter()
        if self._blocked is not None:
            return _failure(*self._blocked, started)
        try:
            async with asyncio.timeout(self._sink.timeout_seconds):
                await self._transport.touch(self._session, self._url)
                if self._tokens is not None:
                    await self._tokens.token()
        except TokenFailure as failure:
            return _failure(failure.outcome, failure.text, started)
        except Exception as error:  # noqa: BLE001  every fault of a sink is a value
            return _failure(*self._transport.classify(error, self._url, Progress()), started)
        return AttemptResult(AttemptOutcome.SUCCESS, None, None, _since(started))

    async def close(self) -> None:
        if self._tokens is not None:
            await self._tokens.close()
        self._connections.close()
        await self._session.close()
        await self._resolver.close()

    async def _post(
        self, connections: Connections, body: bytes, headers: Mapping[str, str], progress: Progress, started: float
    ) -> AttemptResult:
        request = b"%b%bcontent-length: %d\r\n\r\n%b" % (self._head, header_lines(headers), len(body), body)
        answer = await connections.post(request, self._sink.timeout_seconds, progress)
        if (fault := self._transport.refusal(self._url, answer.status)) is not None:
            return _failure(*fault, started)
        return self._told(answer, started)

    def _told(self, answer: Answer, started: float) -> AttemptResult:
        outcome = outcome_of_status(answer.status)
        who = self._transport.answerer(self._url, answer.status)
        return AttemptResult(
            outcome=outcome,
            status=answer.status,
            error=None if outcome is AttemptOutcome.SUCCESS else f"{who} answered {answer.status}",
            duration_ms=_since(started),
            response_excerpt=excerpt(answer.body),
            retry_after=_retry_after(answer.retry_after),
            wish=answer.wish.strip().lower() or None if answer.wish else None,
        )


def _address(url: str, configured: Mapping[str, str]) -> tuple[URL | str, dict[str, str]]:
    """(URL without credentials, the headers to add to ours). A configured `Authorization` goes before the URL's user
    and password. Header names are compared without regard to case, so that none is sent twice."""
    headers = dict(configured)
    try:
        parsed = URL(url)
    except ValueError:
        return url, headers  # aiohttp says what is wrong with it, attempt by attempt
    if parsed.raw_user is None and parsed.raw_password is None:
        return parsed, headers
    if not any(name.lower() == "authorization" for name in headers):
        # UTF-8 as browsers and RFC 7617 have it; aiohttp by itself refuses what is not in Latin-1.
        user = f"{parsed.user or ''}:{parsed.password or ''}".encode()
        headers["authorization"] = "Basic " + base64.b64encode(user).decode()
    return parsed.with_user(None), headers


def _closed_before_reuse(error: Exception, progress: Progress, seconds: float) -> bool:
    """Later than a round trip, the sink may well have read the request: that is a failed attempt."""
    broken = isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError))
    return broken and progress.reused and seconds < REUSE_SECONDS


def excerpt(answer: bytes) -> str | None:
    """The first characters of an answer as text that every database takes."""
    if not answer:
        return None
    return answer[: KEPT_ANSWER_CHARS * 4].decode("utf-8", "replace").replace("\0", "\ufffd")[:KEPT_ANSWER_CHARS]


def _retry_after(value: str | None) -> float | None:
    return None if value is None else retry_after_seconds(value, datetime.now(UTC))


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """`Retry-After` as seconds from now: a whole number or an HTTP date; None for anything else."""
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)  # thousands of digits are infinity; `decide` has a limit
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


def _failure(outcome: AttemptOutcome, text: str, started: float, *, retry_after: float | None = None) -> AttemptResult:
    return AttemptResult(
        outcome=outcome, status=None, error=one_line(text), duration_ms=_since(started), retry_after=retry_after
    )


def one_line(text: str) -> str:
    """A sentence that every database and log takes, whatever bytes of a broken answer it repeats."""
    return " ".join((clean(text) or "").split())[:MAX_ERROR_CHARS]


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)


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
