"""How a sink is reached: addresses, TLS, proxy, connections; and which side of the way is to blame when it is not.

The address that was judged is the one connected to: aiohttp asks our resolver for names, and our socket factory for a
socket to every address it is about to connect to, literal ones included. What a proxy resolves is out of our reach.

aiohttp shows one TLS context to an https:// proxy and to the sink behind it, so `ca_file` has to cover both.
Source: aio-libs/aiohttp:aiohttp/connector.py, `_create_proxy_connection`.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from app import tls
from app.addresses import ONLY_ALWAYS, AddressRules
from app.delivery.connections import Connections, CountConnection, NotHttp, Progress, header_lines
from app.models import AttemptOutcome

if TYPE_CHECKING:
    from aiohttp import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

Fault = tuple[AttemptOutcome, str]
SINK = "the sink"
GATEWAY_STATUSES = frozenset({502, 503, 504})
DNS_CACHE_SECONDS = 30


# Set by whoever makes a request through a session, written by the connector: a `TraceConfig` costs more.
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
    ) -> aiohttp.ClientSession:
        """What makes connections to the sink, at most `limit` at once. The resolver stays the caller's."""
        connector = _Connector(
            self._rules, limit=limit, ssl=self._ssl, resolver=_Vetted(resolver, self._rules),
            ttl_dns_cache=DNS_CACHE_SECONDS,
        )  # fmt: skip
        return self._session(connector, total_seconds, connect_seconds)

    def open_token_session(
        self, *, resolver: AbstractResolver, total_seconds: float, connect_seconds: float
    ) -> aiohttp.ClientSession:
        """For one request to the token endpoint, by the same proxy; the next one is minutes away."""
        connector = _Connector(
            self._rules, limit=1, ssl=self._token_ssl, resolver=_Vetted(resolver, self._rules), force_close=True
        )
        return self._session(connector, total_seconds, connect_seconds)

    def connections(self, session: aiohttp.ClientSession, url: URL | str, *, is_kept: bool = True) -> Connections:
        """To `url`, made as the session says."""
        return Connections(partial(self._connect, session, url), self._count, is_kept=is_kept)

    async def _connect(self, session: aiohttp.ClientSession, url: URL | str) -> Connection:
        if isinstance(url, str):
            raise aiohttp.InvalidURL(url)
        assert session.connector is not None
        loop = asyncio.get_running_loop()
        request = aiohttp.ClientRequest("POST", url, loop=loop, session=session, proxy=self._proxy)
        return await session.connector.connect(request, [], session.timeout)

    async def touch(self, session: aiohttp.ClientSession, url: URL | str) -> None:
        """Make a connection and close it."""
        (await self._connect(session, url)).close()

    def head_of(self, url: URL | str, headers: Mapping[str, str]) -> bytes:
        """The first lines of every request to `url`: where it goes, and `headers`, which hold no line break."""
        if isinstance(url, str):
            return b""
        told = {"host": url.host_port_subcomponent or ""} if "host" not in map(str.lower, headers) else {}
        target = url.raw_path_qs
        if self._forwards(url):
            assert self._proxy is not None
            target = str(url.with_fragment(None))
            if self._proxy.raw_user is not None:
                user = f"{self._proxy.user or ''}:{self._proxy.password or ''}".encode("latin-1")
                told["proxy-authorization"] = "Basic " + base64.b64encode(user).decode()
        return f"POST {target} HTTP/1.1\r\n".encode() + header_lines(told | dict(headers))

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
        case NotHttp():
            return AttemptOutcome.INVALID, f"{peer}'s answer is not HTTP: {error}"
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
    if error.errno:
        return os.strerror(error.errno)
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return "it hung up during the TLS handshake" if isinstance(cause, ConnectionError) else type(cause).__name__


@cache
def _plain_context() -> ssl.SSLContext:
    """For every sink without files of its own: reading the system's authorities takes 35 ms."""
    return tls.client_context()


def _is_at(error: aiohttp.ClientConnectorError, server: URL) -> bool:
    """Was this server being connected to? aiohttp tells a proxy's faults of name and TLS by nothing else."""
    return (error.host, error.port) == (server.raw_host, server.port)


class _Connector(aiohttp.TCPConnector):
    """Connects to what the rules allow, and writes down how far a request came."""

    def __init__(self, rules: AddressRules, **options: Any) -> None:
        super().__init__(socket_factory=partial(_vetted_socket, rules), **options)

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout  # noqa: ASYNC109
    ) -> Connection:  # fmt: skip
        connection = await super().connect(req, traces, timeout)
        if (progress := PROGRESS.get(None)) is not None:
            progress.connected = True
        return connection


def _vetted_socket(rules: AddressRules, target: aiohttp.AddrInfoType) -> socket.socket:
    """For a connection to `target`, which nobody looks up again. Raises RefusedAddress."""
    family, kind, protocol, _, address = target
    reason = rules.refusal_of_text(str(address[0]))
    if reason is not None:
        raise RefusedAddress(reason)
    return socket.socket(family, kind, protocol)


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
