"""TLS, client certificates and proxies against real servers, on both event loops that Jethook runs on."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from yarl import URL

from app.delivery.connections import Progress
from app.delivery.transport import Fault, Transport
from app.models import AttemptOutcome
from app.tls import BadTlsFile, client_context
from tests.delivery.peers import Answer, Authority, LocalNames, Peer, ProxyPeer

Run = Callable[[Coroutine[Any, Any, Any]], Any]
BODY = b'{"event":"open"}'
BASIC = "Basic " + base64.b64encode(b"relay:p@ss").decode()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    def on_new_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(coroutine)

    return on_new_loop


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("strange"), "strange")


async def post(transport: Transport, url: str, *, times: int = 1, total_seconds: float = 10) -> int | Fault:
    """The status of the last of `times` posts over one session, or the fault that came of it."""
    progress = Progress()
    session = transport.open_session(resolver=LocalNames(), limit=4, total_seconds=total_seconds, connect_seconds=5)
    async with session:
        connections = transport.connections(session, URL(url))
        try:
            for _ in range(times):
                progress = Progress()
                status = (await connections.post(request_to(transport, url), total_seconds, progress)).status
        except (aiohttp.ClientError, TimeoutError) as error:
            return transport.classify(error, url, progress)
        finally:
            connections.close()
        return transport.refusal(url, status) or status


def request_to(transport: Transport, url: str) -> bytes:
    return transport.head_of(URL(url), {}) + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)


async def closed_port() -> int:
    """A port that nobody listens on."""
    async with Peer() as peer:
        return peer.port


def with_credentials(url: str) -> str:
    return url.replace("://", "://relay:p%40ss@")


# --- authorities and client certificates -----------------------------------------------------------------------------


def test_a_sink_of_the_own_authority_is_trusted(run, authority):
    async def scene():
        async with Peer(context=authority.server_context()) as sink:
            return await post(Transport(ca_file=authority.ca_file), sink.url), sink.requests

    status, requests = run(scene())
    assert status == 200
    assert [request.body for request in requests] == [BODY]


@pytest.mark.parametrize("trusted", ["the system", "another authority"])
def test_a_sink_of_another_authority_is_not_trusted(run, authority, stranger, trusted):
    async def scene():
        async with Peer(context=authority.server_context()) as sink:
            transport = Transport(ca_file=stranger.ca_file if trusted == "another authority" else None)
            return await post(transport, sink.url), sink.requests

    (outcome, text), requests = run(scene())
    assert outcome is AttemptOutcome.TLS
    assert text.startswith("the sink's certificate is not accepted")
    assert requests == []


def test_a_certificate_for_another_name_is_not_accepted(run, authority):
    async def scene():
        async with Peer(context=authority.server_context("sink.example")) as sink:
            return await post(Transport(ca_file=authority.ca_file), sink.url.replace("127.0.0.1", "localhost"))

    outcome, text = run(scene())
    assert outcome is AttemptOutcome.TLS
    assert "Hostname mismatch" in text


def test_a_client_certificate_is_shown_to_a_sink_that_asks(run, authority):
    us = authority.issue("jethook.example")

    async def scene():
        async with Peer(context=authority.server_context(client_authority=authority)) as sink:
            transport = Transport(ca_file=authority.ca_file, client_cert_file=us.cert_file, client_key_file=us.key_file)
            return await post(transport, sink.url, times=2), sink.requests

    status, requests = run(scene())
    assert status == 200
    assert [request.client_name for request in requests] == ["jethook.example"] * 2


def test_without_a_client_certificate_a_sink_that_asks_for_one_is_a_tls_fault_or_a_broken_connection(run, authority):
    async def scene():
        async with Peer(context=authority.server_context(client_authority=authority)) as sink:
            return await post(Transport(ca_file=authority.ca_file), sink.url), sink.requests

    (outcome, _), requests = run(scene())
    # With TLS 1.3 our handshake is over before the server refuses, so its alert comes with the answer.
    assert outcome in {AttemptOutcome.TLS, AttemptOutcome.CONNECT}
    assert requests == []


def test_nothing_older_than_tls_1_2_is_spoken(authority):
    assert client_context().minimum_version >= ssl.TLSVersion.TLSv1_2
    assert client_context(ca_file=authority.ca_file).verify_mode is ssl.CERT_REQUIRED
    assert client_context(ca_file=authority.ca_file).check_hostname


def test_own_authorities_take_the_place_of_the_systems_or_join_them(authority):
    alone = client_context(ca_file=authority.ca_file)
    joined = client_context(ca_file=authority.ca_file, also_system=True)

    assert alone.cert_store_stats()["x509_ca"] == 1
    assert joined.cert_store_stats()["x509_ca"] == 1 + client_context().cert_store_stats()["x509_ca"]


# --- files that do not fit -------------------------------------------------------------------------------------------


def refused(**files: str | None) -> tuple[str, str]:
    with pytest.raises(BadTlsFile) as error:
        client_context(**files)
    return error.value.setting, str(error.value)


def test_a_missing_file_is_named_with_its_setting(tmp_path):
    missing = str(tmp_path / "none.pem")

    assert refused(ca_file=missing) == ("CA_FILE", f"cannot read {missing!r}: No such file or directory")


def test_a_certificate_and_its_key_go_together(authority):
    us = authority.issue()

    assert refused(cert_file=us.cert_file) == ("CLIENT_KEY_FILE", "is required with CLIENT_CERT_FILE")
    assert refused(key_file=us.key_file) == ("CLIENT_CERT_FILE", "is required with CLIENT_KEY_FILE")


def test_files_that_hold_something_else_are_named(authority, tmp_path):
    us, other = authority.issue(), str(tmp_path / "notes.txt")
    Path(other).write_text("remember the milk", encoding="utf-8")

    assert refused(ca_file=other) == ("CA_FILE", f"{other!r} holds no PEM certificate that can be read")
    assert refused(ca_file=us.key_file)[0] == "CA_FILE"
    assert refused(cert_file=other, key_file=us.key_file)[0] == "CLIENT_CERT_FILE"
    assert refused(cert_file=us.cert_file, key_file=us.cert_file) == (
        "CLIENT_KEY_FILE",
        f"{us.cert_file!r} holds no PEM private key that can be read",
    )


def test_the_key_of_another_certificate_is_refused(authority):
    us, them = authority.issue(), authority.issue()

    setting, text = refused(cert_file=us.cert_file, key_file=them.key_file)

    assert setting == "CLIENT_KEY_FILE"
    assert text == f"the key in {them.key_file!r} does not belong to CLIENT_CERT_FILE {us.cert_file!r}"


def test_a_key_with_a_passphrase_is_refused_rather_than_asked_for(authority):
    us = authority.issue(passphrase=b"secret")

    setting, text = refused(cert_file=us.cert_file, key_file=us.key_file)

    assert setting == "CLIENT_KEY_FILE"
    assert "has a passphrase" in text


def test_a_key_put_where_its_file_belongs_is_not_told(authority):
    us = authority.issue()
    key = Path(us.key_file).read_text(encoding="utf-8")

    for given in (key, key.replace("\n", ""), "A" * 300):
        setting, text = refused(cert_file=us.cert_file, key_file=given)
        assert setting == "CLIENT_KEY_FILE"
        assert "it is no path" in text
        assert given[40:60] not in text


def test_certificate_and_key_may_share_a_file(authority, tmp_path):
    us, both = authority.issue(), tmp_path / "both.pem"
    both.write_bytes(Path(us.cert_file).read_bytes() + Path(us.key_file).read_bytes())

    assert client_context(cert_file=str(both), key_file=str(both))


# --- proxies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls_proxy", [False, True], ids=["http proxy", "https proxy"])
@pytest.mark.parametrize("tls_sink", [False, True], ids=["http sink", "https sink"])
def test_a_request_goes_through_the_proxy_with_its_credentials(run, authority, tls_proxy, tls_sink):
    async def scene():
        async with (
            Peer(context=authority.server_context() if tls_sink else None) as sink,
            ProxyPeer(context=authority.server_context() if tls_proxy else None) as proxy,
        ):
            transport = Transport(ca_file=authority.ca_file, proxy=with_credentials(proxy.url))
            status = await post(transport, f"{sink.url}/hook", times=2)
            return status, sink.requests, proxy.requests, sink.port

    status, at_sink, at_proxy, port = run(scene())
    assert status == 200
    assert [(r.method, r.target, r.body) for r in at_sink] == [("POST", "/hook", BODY)] * 2
    assert all("proxy-authorization" not in request.headers for request in at_sink)
    wanted = ("CONNECT", f"127.0.0.1:{port}") if tls_sink else ("POST", f"http://127.0.0.1:{port}/hook")
    tunnels_or_posts = 1 if tls_sink else 2
    assert [(r.method, r.target, r.headers["proxy-authorization"]) for r in at_proxy] == [
        (*wanted, BASIC)
    ] * tunnels_or_posts


def test_a_proxy_that_refuses_connections_is_named(run):
    async def scene():
        async with Peer() as sink:
            transport = Transport(proxy=f"http://127.0.0.1:{await closed_port()}")
            return await post(transport, sink.url)

    assert run(scene()) == (AttemptOutcome.CONNECT, "no connection to the proxy: Connection refused")


def test_a_proxy_whose_name_does_not_resolve_is_named(run):
    async def scene():
        async with Peer() as sink:
            return await post(Transport(proxy="http://proxy.invalid:3128"), sink.url)

    assert run(scene()) == (AttemptOutcome.DNS, "the proxy's host name does not resolve")


def test_a_proxy_that_is_not_trusted_is_named(run, authority, stranger):
    async def scene():
        async with Peer() as sink, ProxyPeer(context=stranger.server_context()) as proxy:
            return await post(Transport(ca_file=authority.ca_file, proxy=proxy.url), sink.url)

    outcome, text = run(scene())
    assert outcome is AttemptOutcome.TLS
    assert text.startswith("the proxy's certificate is not accepted")


def test_a_sink_that_is_not_trusted_is_the_sinks_fault_behind_a_proxy_too(run, authority, stranger):
    async def scene():
        async with Peer(context=stranger.server_context()) as sink, ProxyPeer() as proxy:
            return await post(Transport(ca_file=authority.ca_file, proxy=proxy.url), sink.url)

    outcome, text = run(scene())
    assert outcome is AttemptOutcome.TLS
    assert text.startswith("the sink's certificate is not accepted")


@pytest.mark.parametrize("tls_sink", [False, True], ids=["http sink", "https sink"])
def test_a_proxy_that_does_not_accept_our_credentials_is_named(run, authority, tls_sink):
    async def scene():
        async with (
            Peer(context=authority.server_context() if tls_sink else None) as sink,
            ProxyPeer(refuse=407) as proxy,
        ):
            return await post(Transport(ca_file=authority.ca_file, proxy=with_credentials(proxy.url)), sink.url)

    assert run(scene()) == (AttemptOutcome.CONNECT, "the proxy does not accept our user and password (407)")


def test_a_407_of_the_sink_itself_stays_the_sinks(run, authority):
    async def scene():
        async with Peer(lambda _: Answer(407), context=authority.server_context()) as sink, ProxyPeer() as proxy:
            tunnelled = await post(Transport(ca_file=authority.ca_file, proxy=proxy.url), sink.url)
            return tunnelled, await post(Transport(ca_file=authority.ca_file), sink.url)

    assert run(scene()) == (407, 407)


def test_a_proxy_that_finds_no_way_to_the_sink_says_so(run):
    async def scene():
        async with ProxyPeer() as proxy:
            return await post(Transport(proxy=proxy.url), f"https://127.0.0.1:{await closed_port()}")

    assert run(scene()) == (AttemptOutcome.CONNECT, "the proxy opened no way to the host: it answered 502")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_hangs_up_is_named(run, scheme):
    async def scene():
        async with ProxyPeer(hang_up=True) as proxy:
            return await post(Transport(proxy=proxy.url), f"{scheme}://127.0.0.1:1/")

    assert run(scene()) == (AttemptOutcome.CONNECT, "the proxy closed the connection without an answer")


def test_a_proxy_that_does_not_answer_in_time_is_named(run):
    async def scene():
        async with Peer(gate=asyncio.Event()) as silent:
            return await post(Transport(proxy=silent.url), "https://127.0.0.1:1/", total_seconds=0.05)

    assert run(scene()) == (AttemptOutcome.TIMEOUT, "no connection through the proxy within the time limit")


def test_a_sink_that_hangs_up_in_a_tunnel_is_the_sinks_fault(run, authority):
    async def scene():
        async with Peer(lambda _: None, context=authority.server_context()) as rude, ProxyPeer() as proxy:
            return await post(Transport(ca_file=authority.ca_file, proxy=proxy.url), rude.url)

    assert run(scene()) == (AttemptOutcome.CONNECT, "the sink closed the connection without an answer")


def test_a_sink_that_hangs_in_a_tunnel_is_the_sinks_fault(run, authority):
    async def scene():
        gate = asyncio.Event()
        gate.set()

        def once(_: object) -> Answer:
            gate.clear()
            return Answer()

        async with Peer(once, context=authority.server_context(), gate=gate) as sink, ProxyPeer() as proxy:
            transport = Transport(ca_file=authority.ca_file, proxy=proxy.url)
            return await post(transport, sink.url, times=2, total_seconds=1)

    assert run(scene()) == (AttemptOutcome.TIMEOUT, "no whole answer within the time limit")


@pytest.mark.parametrize(
    ("proxy", "url", "status", "answerer"),
    [
        pytest.param(
            "http://p:1", "http://s/", 502, "the sink (or the proxy before it)", id="forwarded gateway status"
        ),
        pytest.param("http://p:1", "http://s/", 500, "the sink", id="forwarded"),
        pytest.param("http://p:1", "https://s/", 502, "the sink", id="tunnelled"),
        pytest.param(None, "http://s/", 502, "the sink", id="no proxy"),
    ],
)
def test_who_answered_is_told_as_far_as_it_is_known(proxy, url, status, answerer):
    assert Transport(proxy=proxy).answerer(url, status) == answerer


def test_the_proxies_of_the_environment_do_not_count(run, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    async def scene():
        async with Peer() as sink:
            return await post(Transport(), sink.url)

    assert run(scene()) == 200


def test_a_request_tells_how_far_it_came(run):
    async def scene():
        async with Peer() as sink:
            transport, seen = Transport(), []
            resolver = LocalNames()
            async with transport.open_session(
                resolver=resolver, limit=1, total_seconds=5, connect_seconds=5
            ) as session:
                connections = transport.connections(session, URL(sink.url))
                for _ in range(2):
                    seen.append(Progress())
                    await connections.post(request_to(transport, sink.url), 5, seen[-1])
                connections.close()
            return seen

    assert run(scene()) == [Progress(connected=True), Progress(connected=True, reused=True)]
