"""How a sink is reached: addresses, TLS, proxy, connections; and which side of the way is to blame when it is not.

The address that was judged is the one connected to: aiohttp asks our resolver for names, and our socket factory for a
socket to every address it is about to connect to, literal ones included. What a proxy resolves is out of our reach.

aiohttp shows one TLS context to an https:// proxy and to the sink behind it, so `ca_file` has to cover both.
Source: aio-libs/aiohttp:aiohttp/connector.py, `_create_proxy_connection`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from app import tls
from app.addresses import ONLY_ALWAYS, AddressRules
from app.models import AttemptOutcome

if TYPE_CHECKING:
    from aiohttp import ClientRequest
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

Fault = tuple[AttemptOutcome, str]
CountConnection = Callable[[bool], object]
"""Hears of each request that got its connection, and whether that one was used before."""

SINK = "the sink"
GATEWAY_STATUSES = frozenset({502, 503, 504})
KEEP_ALIVE_SECONDS = 30
DNS_CACHE_SECONDS = 30


@dataclass(slots=True)
class Progress:
    """How far one request came."""

    connected: bool = False  # for an https:// sink behind a proxy: the tunnel and the TLS in it are there
    made_connection: bool = False

    @property
    def reused(self) -> bool:
        """It goes over a connection that served others before."""
        return self.connected and not self.made_connection


# Set by whoever makes a request, written by the connector: a `TraceConfig` costs a sixth of a post's CPU time.
PROGRESS: ContextVar[Progress] = ContextVar("progress")


class RefusedAddress(OSError):
    """The rules forbid this address. An OSError, which is what aiohttp expects of a resolver and a socket factory; it
    is the cause of the error that aiohttp makes of it. `reason` goes on after "the address"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Transport:
    """The way to one sink. Made at the start, off the hot path: it reads the TLS files.

    `proxy` is an http:// or https:// URL, its user and password percent-encoded in it. The proxies of the environment
    do not count. Raises tls.BadTlsFile.
    """

    def __init__(
        self,
        *,
        ca_file: str | None = None,
        client_cert_file: str | None = None,
        client_key_file: str | None = None,
        proxy: str | None = None,
        rules: AddressRules = ONLY_ALWAYS,
        count: CountConnection | None = None,
    ) -> None:
        own_files = ca_file or client_cert_file or client_key_file
        self._ssl = _plain_context() if not own_files else tls.client_context(
            ca_file=ca_file, cert_file=client_cert_file, key_file=client_key_file
        )  # fmt: skip
        # A private authority for the sink says nothing about a token endpoint, which is often a public one.
        self._token_ssl = self._ssl if ca_file is None else tls.client_context(
            ca_file=ca_file, cert_file=client_cert_file, key_file=client_key_file, also_system=True
        )  # fmt: skip
        self._proxy = URL(proxy) if proxy else None
        self._rules = rules
        self._count = count

    def open_session(
        self,
        *,
        resolver: AbstractResolver,
        limit: int,
        total_seconds: float,
        connect_seconds: float,
        keep_alive: bool = True,
    ) -> aiohttp.ClientSession:
        """Connections to the sink, at most `limit`, with `keep_alive` kept for the next request.

        The resolver stays the caller's. How far a request comes is written into the `PROGRESS` of its context.
        """
        connector = _Connector(
            limit=limit, ssl=self._ssl, resolver=_Vetted(resolver, self._rules), ttl_dns_cache=DNS_CACHE_SECONDS,
            keepalive_timeout=KEEP_ALIVE_SECONDS if keep_alive else None, force_close=not keep_alive,
            rules=self._rules, count=self._count,
        )  # fmt: skip
        return self._session(connector, total_seconds, connect_seconds)

    def open_token_session(
        self, *, resolver: AbstractResolver, total_seconds: float, connect_seconds: float
    ) -> aiohttp.ClientSession:
        """For one request to the token endpoint, by the same proxy; the next one is minutes away."""
        connector = _Connector(
            limit=1, ssl=self._token_ssl, resolver=_Vetted(resolver, self._rules), force_close=True, rules=self._rules
        )
        return self._session(connector, total_seconds, connect_seconds)

    async def post(
        self, session: aiohttp.ClientSession, url: URL | str, body: bytes, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """As `session.post`, without what a sink has no use for and every post would pay with a fifth of its time:
        redirects, cookies, middlewares, retries, defaults of the session. The caller limits the time.

        The steps are those of aiohttp:aiohttp/client.py, `ClientSession._request`, as they have been since 3.0.
        """
        if isinstance(url, str):
            raise aiohttp.InvalidURL(url)
        assert session.connector is not None
        request = _Request(
            "POST", url, headers=headers, data=aiohttp.BytesPayload(body), loop=asyncio.get_running_loop(),
            session=session, proxy=self._proxy,
        )  # fmt: skip
        connection = await session.connector.connect(request, [], session.timeout)
        try:
            assert connection.protocol is not None
            connection.protocol.set_response_params(read_until_eof=True, auto_decompress=False)
            response = await request.send(connection)
            try:
                return await response.start(connection)
            except BaseException:
                response.close()
                raise
        except (aiohttp.ClientError, TimeoutError):
            connection.close()
            raise
        except OSError as error:
            connection.close()
            raise aiohttp.ClientOSError(*error.args) from error
        except BaseException:
            connection.close()
            raise

    def classify(self, error: BaseException, url: URL | str, progress: Progress, *, peer: str = SINK) -> Fault:
        """(label, sentence) of a request to `url` that brought no answer; the sentence names who failed: `peer`, or
        the proxy before it. No secret, no header, no address is in it."""
        return self._proxy_fault(error, url, progress) or classify(error, peer)

    def blocked(self, url: URL | str, peer: str = SINK) -> Fault | None:
        """The fault of a URL whose host may not be reached whatever the way to it is: where a proxy connects for us,
        nobody else asks the rules about it."""
        reason = self._rules.refusal_of_url(str(url))
        return None if reason is None else (AttemptOutcome.BLOCKED, f"{peer}'s address {reason}")

    def refusal(self, url: URL | str, status: int) -> Fault | None:
        """An answer to `url` that is the proxy's and not the sink's, as a fault of the way.

        Only a plain http:// request is answered by the proxy in its own name; 407 is nobody else's status there.
        """
        if self._forwards(url) and status == 407:
            return AttemptOutcome.CONNECT, "the proxy does not accept our user and password (407)"
        return None

    def answerer(self, url: URL | str, status: int, *, peer: str = SINK) -> str:
        """Who answered, as far as one can know: a proxy that forwards answers for a dead sink with a gateway status."""
        return f"{peer} (or the proxy before it)" if self._forwards(url) and status in GATEWAY_STATUSES else peer

    def _forwards(self, url: URL | str) -> bool:
        return self._proxy is not None and str(url).lower().startswith("http://")

    def _proxy_fault(self, error: BaseException, url: URL | str, progress: Progress) -> Fault | None:
        if self._proxy is None:
            return None
        match error:
            case aiohttp.ClientHttpProxyError(status=407):
                return AttemptOutcome.CONNECT, "the proxy does not accept our user and password (407)"
            case aiohttp.ClientHttpProxyError():
                return AttemptOutcome.CONNECT, f"the proxy opened no way to the host: it answered {error.status}"
            case aiohttp.ClientConnectorError() if _is_at(error, self._proxy):
                return classify(error, "the proxy")
            case aiohttp.ClientProxyConnectionError():
                return classify(error, "the proxy")
            case TimeoutError() if not progress.connected:
                return AttemptOutcome.TIMEOUT, "no connection through the proxy within the time limit"
            case aiohttp.ClientConnectorError():
                return None  # inside the tunnel: the sink's
            case aiohttp.ClientError() if not progress.connected or self._forwards(url):
                return classify(error, "the proxy")
        return None

    def _session(
        self, connector: aiohttp.TCPConnector, total_seconds: float, connect_seconds: float
    ) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            proxy=self._proxy,
            timeout=aiohttp.ClientTimeout(total=total_seconds, sock_connect=connect_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # a small answer may unpack to a large one
            request_class=_Request,
        )


def classify(error: BaseException, peer: str = SINK) -> Fault:
    """(label, sentence) of a failed try at `peer`. The sentence names no header and no address of ours."""
    match error:
        case OSError() if isinstance(error.__cause__, RefusedAddress):
            return AttemptOutcome.BLOCKED, f"{peer}'s address {error.__cause__.reason}"
        case TimeoutError():
            whose = "" if peer == SINK else f" from {peer}"
            return AttemptOutcome.TIMEOUT, f"no whole answer{whose} within the time limit"
        case aiohttp.ClientConnectorDNSError():
            return AttemptOutcome.DNS, f"{peer}'s host name does not resolve"
        case aiohttp.ClientConnectorCertificateError():
            return AttemptOutcome.TLS, f"{peer}'s certificate is not accepted: {error.certificate_error}"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return AttemptOutcome.TLS, f"TLS with {peer} failed: {error.strerror or type(error).__name__}"
        case aiohttp.InvalidURL():
            return AttemptOutcome.INVALID, f"{peer}'s URL cannot be used"
        case aiohttp.ServerDisconnectedError():
            return AttemptOutcome.CONNECT, f"{peer} closed the connection without an answer"
        case aiohttp.ClientResponseError():
            return AttemptOutcome.INVALID, f"{peer}'s answer is not HTTP: {error.message}"
        case aiohttp.ClientOSError() | OSError():
            return AttemptOutcome.CONNECT, f"no connection to {peer}: {_reason(error)}"
        case aiohttp.ClientError():
            return AttemptOutcome.CONNECT, f"the connection to {peer} broke: {type(error).__name__}"
    return AttemptOutcome.INVALID, f"the request to {peer} cannot be sent: {type(error).__name__}"


def _reason(error: OSError) -> str:
    """By its number: asyncio's own sentences hold addresses, of our network perhaps."""
    return os.strerror(error.errno) if error.errno else type(error).__name__


@cache
def _plain_context() -> ssl.SSLContext:
    """For every sink without files of its own: reading the system's authorities takes 35 ms."""
    return tls.client_context()


def _is_at(error: aiohttp.ClientConnectorError, server: URL) -> bool:
    """Was this server being connected to? aiohttp tells a proxy's faults of name and TLS by nothing else."""
    return (error.host, error.port) == (server.raw_host, server.port)


class _Connector(aiohttp.TCPConnector):
    """Connects to what the rules allow, and writes down how far a request came."""

    def __init__(
        self, *, limit: int, ssl: ssl.SSLContext, resolver: AbstractResolver, rules: AddressRules,
        ttl_dns_cache: int | None = None, keepalive_timeout: float | None = None, force_close: bool = False,
        count: CountConnection | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            limit=limit, ssl=ssl, resolver=resolver, ttl_dns_cache=ttl_dns_cache, force_close=force_close,
            keepalive_timeout=keepalive_timeout, socket_factory=partial(_vetted_socket, rules),
        )  # fmt: skip
        self._count = count

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout  # noqa: ASYNC109
    ) -> Connection:  # fmt: skip
        connection = await super().connect(req, traces, timeout)
        progress = PROGRESS.get()
        progress.connected = True
        if self._count is not None:
            self._count(progress.reused)
        return connection

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout  # noqa: ASYNC109
    ) -> ResponseHandler:  # fmt: skip
        PROGRESS.get().made_connection = True
        return await super()._create_connection(req, traces, timeout)


def _vetted_socket(rules: AddressRules, target: aiohttp.AddrInfoType) -> socket.socket:
    """For a connection to `target`, which nobody looks up again. Raises RefusedAddress."""
    family, kind, protocol, _, address = target
    reason = rules.refusal_of_text(str(address[0]))
    if reason is not None:
        raise RefusedAddress(reason)
    return socket.socket(family, kind, protocol)


class _Request(aiohttp.ClientRequest):
    def update_auto_headers(self, skip_auto_headers: Iterable[str] | None) -> None:
        """Adds none, as `skip_auto_headers` could tell at twice the cost: nothing of the answer is negotiated."""


class _Vetted(AbstractResolver):
    """What another resolver finds, without the addresses that the rules refuse. With a good one beside them, the bad
    ones are not even tried."""

    def __init__(self, resolver: AbstractResolver, rules: AddressRules) -> None:
        self._resolver = resolver
        self._rules = rules

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        reasons = [self._rules.refusal_of_text(one["host"]) for one in found]
        allowed = [one for one, reason in zip(found, reasons, strict=True) if reason is None]
        if reasons and reasons[0] is not None and not allowed:
            raise RefusedAddress(reasons[0])
        return allowed

    async def close(self) -> None:
        """The other one is its owner's."""
