"""How a sink is reached: TLS, proxy, connections; and which side of the way is to blame when it is not.

aiohttp shows one TLS context to an https:// proxy and to the sink behind it, so `ca_file` has to cover both.
Source: aio-libs/aiohttp:aiohttp/connector.py, `_create_proxy_connection`.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from app import tls
from app.models import AttemptOutcome

Fault = tuple[AttemptOutcome, str]

SINK = "the sink"
GATEWAY_STATUSES = frozenset({502, 503, 504})
KEEP_ALIVE_SECONDS = 30
DNS_CACHE_SECONDS = 30


@dataclass(slots=True)
class Progress:
    """How far one request came; given to aiohttp as `trace_request_ctx`."""

    connected: bool = False  # for an https:// sink behind a proxy: the tunnel and the TLS in it are there
    reused: bool = False


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

        The resolver stays the caller's; every request needs a `Progress` as `trace_request_ctx`.
        """
        connector = aiohttp.TCPConnector(
            limit=limit, ssl=self._ssl, resolver=resolver, ttl_dns_cache=DNS_CACHE_SECONDS,
            keepalive_timeout=KEEP_ALIVE_SECONDS if keep_alive else None, force_close=not keep_alive,
        )  # fmt: skip
        return self._session(connector, total_seconds, connect_seconds)

    def open_token_session(
        self, *, resolver: AbstractResolver, total_seconds: float, connect_seconds: float
    ) -> aiohttp.ClientSession:
        """For one request to the token endpoint, by the same proxy; the next one is minutes away."""
        connector = aiohttp.TCPConnector(limit=1, ssl=self._token_ssl, resolver=resolver, force_close=True)
        return self._session(connector, total_seconds, connect_seconds)

    def classify(self, error: BaseException, url: URL | str, progress: Progress, *, peer: str = SINK) -> Fault:
        """(label, sentence) of a request to `url` that brought no answer; the sentence names who failed: `peer`, or
        the proxy before it. No secret, no header, no address is in it."""
        return self._proxy_fault(error, url, progress) or classify(error, peer)

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
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
            trace_configs=[_progress_trace()],
        )


def classify(error: BaseException, peer: str = SINK) -> Fault:
    """(label, sentence) of a failed try at `peer`. The sentence names no header and no address of ours."""
    match error:
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


def _progress_trace() -> aiohttp.TraceConfig:
    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(_note_connected)
    trace.on_connection_reuseconn.append(_note_reused)
    return trace


async def _note_connected(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
    context.trace_request_ctx.connected = True


async def _note_reused(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
    context.trace_request_ctx.connected = context.trace_request_ctx.reused = True
