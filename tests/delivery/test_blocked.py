"""Addresses that may not be connected to, against real servers: nothing reaches these, by whatever way."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import aiohttp
import pytest
from yarl import URL

from app.addresses import DENIED, NEVER_ALLOWED, ONLY_ALWAYS, AddressRules, parse_network
from app.delivery.connections import Progress
from app.delivery.oauth import TokenFailure, TokenSource
from app.delivery.sender import AttemptResult, SinkSender
from app.delivery.transport import Fault, Transport
from app.models import AttemptOutcome
from tests.delivery.peers import Answer, Authority, LocalNames, Peer, ProxyPeer, Request
from tests.delivery.support import run, sink

BLOCKED_BY_DENY = (AttemptOutcome.BLOCKED, f"the sink's address {DENIED}")
BLOCKED_ALWAYS = (AttemptOutcome.BLOCKED, f"the sink's address {NEVER_ALLOWED}")


def rules(deny: str, allow: str = "") -> AddressRules:
    return AddressRules(*(tuple(parse_network(text) for text in texts.split()) for texts in (deny, allow)))


NO_LOOPBACK = rules("127.0.0.0/8 ::1")


async def send(url: str, given: AddressRules = ONLY_ALWAYS, **options: Any) -> AttemptResult:
    sender = SinkSender(sink(url, **({"timeout_seconds": 5.0} | options)), given)
    try:
        return await sender.send(b"{}", {"webhook-id": "1"})
    finally:
        await sender.close()


async def post(transport: Transport, url: str, resolver: LocalNames, times: int = 1) -> list[int | Fault]:
    """What came of each post; each over a connection of its own."""
    session = transport.open_session(
        resolver=resolver, limit=4, total_seconds=5, connect_seconds=5
    )  # fmt: skip
    results: list[int | Fault] = []
    async with session:
        connections = transport.connections(session, URL(url), is_kept=False)
        for _ in range(times):
            progress = Progress()
            try:
                request = transport.head_of(URL(url), {}) + b"content-length: 2\r\n\r\n{}"
                results.append((await connections.post(request, 5, progress)).status)
            except (aiohttp.ClientError, TimeoutError) as error:
                results.append(transport.classify(error, url, progress))
    return results


# --- spelled as a number ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0x7f.1", "127.1", "2130706433", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"]
)
def test_a_denied_address_is_not_reached_however_it_is_spelled(host: str) -> None:
    async def scene() -> tuple[AttemptResult, list[Request]]:
        async with Peer() as peer:
            return await send(f"http://{host}:{peer.port}/", NO_LOOPBACK), peer.requests

    result, requests = run(scene())
    assert (result.outcome, result.status) == (AttemptOutcome.BLOCKED, None)
    assert result.error == f"the sink's address {DENIED}"
    assert requests == []


@pytest.mark.parametrize("host", ["[::ffff:127.0.0.1]", "127.0.0.1", "0x7f.1"])
def test_the_socket_itself_is_refused_where_no_name_is_looked_up(host: str) -> None:
    """Below what the sender knows of its URL, as if that had been missed."""

    async def scene() -> tuple[list[int | Fault], int]:
        async with Peer() as peer:
            resolver = LocalNames(**{"0x7f.1": [["127.0.0.1"]]})
            return await post(Transport(rules=NO_LOOPBACK), f"http://{host}:{peer.port}/", resolver), len(peer.requests)

    assert run(scene()) == ([BLOCKED_BY_DENY], 0)


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest", "http://2852039166/", "http://[fe80::1%25lo]/", "http://[::]/"]
)
def test_what_is_always_refused_is_blocked_without_any_setting(url: str) -> None:
    result = run(send(url))

    assert (result.outcome, result.error) == BLOCKED_ALWAYS
    assert result.duration_ms < 100


def test_an_exception_is_reached() -> None:
    async def scene() -> AttemptResult:
        async with Peer() as peer:
            return await send(f"http://localhost:{peer.port}/", rules("0.0.0.0/0 ::/0", "127.0.0.1"))

    assert run(scene()).outcome is AttemptOutcome.SUCCESS


# --- by name ---------------------------------------------------------------------------------------------------------


def test_of_a_names_addresses_the_refused_ones_are_left_out() -> None:
    async def scene() -> list[int | Fault]:
        async with Peer() as peer:
            names = LocalNames(mixed=[["169.254.169.254", "fe80::1", "127.0.0.1"]])
            return await post(Transport(), f"http://mixed:{peer.port}/", names)

    assert run(scene()) == [200]


def test_a_name_with_refused_addresses_only_is_blocked_and_its_addresses_are_not_told() -> None:
    async def scene() -> list[int | Fault]:
        return await post(Transport(), "http://inner/", LocalNames(inner=[["169.254.169.254", "fd00:ec2::254"]]))

    assert run(scene()) == [BLOCKED_ALWAYS]


@pytest.mark.parametrize("addresses", [["169.254.169.254", "127.0.0.1"], ["127.0.0.1", "169.254.169.254"]])
def test_a_closed_port_beside_a_refused_address_is_a_connect_failure(addresses: list[str]) -> None:
    async def scene() -> list[int | Fault]:
        async with Peer() as peer:
            port = peer.port
        return await post(Transport(), f"http://mixed:{port}/", LocalNames(mixed=[addresses]))

    assert run(scene()) == [(AttemptOutcome.CONNECT, "no connection to the sink: Connection refused")]


def test_a_name_that_changes_its_mind_is_looked_up_once_and_that_address_is_connected_to() -> None:
    """DNS rebinding: a second look-up between the check and the connection would get the other address."""

    async def scene() -> tuple[list[int | Fault], list[str], int]:
        async with Peer() as peer:
            names = LocalNames(fickle=[["127.0.0.1"], ["169.254.169.254"]])
            results = await post(Transport(), f"http://fickle:{peer.port}/", names, times=3)
            return results, names.asked, len(peer.requests)

    assert run(scene()) == ([200] * 3, ["fickle"], 3)


def test_a_name_without_addresses_is_a_dns_failure() -> None:
    async def scene() -> list[int | Fault]:
        return await post(Transport(rules=NO_LOOPBACK), "http://nobody/", LocalNames())

    assert run(scene()) == [(AttemptOutcome.DNS, "the sink's host name does not resolve")]


def test_a_redirect_leads_nowhere() -> None:
    async def scene() -> list[int | Fault]:
        elsewhere = Answer(307, headers={"location": "http://169.254.169.254/latest"})
        async with Peer(lambda _: elsewhere) as peer:
            return await post(Transport(), peer.url, LocalNames())

    assert run(scene()) == [307]


# --- proxies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_at_a_denied_address_is_blocked_and_named(host: str) -> None:
    async def scene() -> tuple[AttemptResult, list[Request]]:
        async with ProxyPeer() as proxy:
            way = {"proxy": f"http://{host}:{proxy.port}"}
            return await send("https://sink.invalid/", NO_LOOPBACK, **way), proxy.requests

    result, requests = run(scene())
    assert (result.outcome, result.error) == (AttemptOutcome.BLOCKED, f"the proxy's address {DENIED}")
    assert requests == []


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", ["169.254.169.254", "2852039166", "[::ffff:a9fe:a9fe]", "metadata.google.internal"])
def test_a_proxy_is_not_asked_for_what_is_always_refused(scheme: str, host: str) -> None:
    async def scene() -> tuple[AttemptResult, list[Request]]:
        async with ProxyPeer() as proxy:
            return await send(f"{scheme}://{host}/latest", proxy=proxy.url), proxy.requests

    result, requests = run(scene())
    assert (result.outcome, result.error) == BLOCKED_ALWAYS
    assert requests == []


def test_a_name_behind_a_proxy_is_the_proxys_to_resolve() -> None:
    async def scene() -> tuple[AttemptResult, list[str]]:
        async with ProxyPeer(refuse=502) as proxy:
            only_proxy = rules("0.0.0.0/0 ::/0", "127.0.0.1")
            result = await send("http://sink.invalid/", only_proxy, proxy=proxy.url)
            return result, [request.target for request in proxy.requests]

    result, targets = run(scene())
    assert result.status == 502
    assert targets == ["http://sink.invalid/"]


# --- the token endpoint ----------------------------------------------------------------------------------------------

OAUTH = {"oauth_client_id": "relay", "oauth_client_secret": "hush"}


@pytest.mark.parametrize("by_proxy", [False, True])
def test_a_token_endpoint_at_a_refused_address_is_not_asked_and_nor_is_the_sink(by_proxy: bool) -> None:
    async def scene() -> tuple[AttemptResult, list[Request]]:
        async with Peer() as peer, ProxyPeer() as proxy:
            way = {"proxy": proxy.url} if by_proxy else {}
            result = await send(peer.url, oauth_token_url="http://169.254.169.254/token", **OAUTH, **way)
            return result, peer.requests + proxy.requests

    result, requests = run(scene())
    assert (result.outcome, result.error) == (AttemptOutcome.BLOCKED, f"the token endpoint's address {NEVER_ALLOWED}")
    assert requests == []


def test_a_token_endpoint_is_judged_by_what_its_name_resolves_to() -> None:
    async def scene() -> TokenFailure:
        transport, names = Transport(rules=NO_LOOPBACK), LocalNames()
        source = TokenSource(
            "http://localhost:1/token", "relay", "hush", classify=transport.classify,
            open_session=lambda: transport.open_token_session(resolver=names, total_seconds=5, connect_seconds=5),
        )  # fmt: skip
        with pytest.raises(TokenFailure) as failed:
            await source.token()
        await source.close()
        return failed.value

    failure = run(scene())
    assert (failure.outcome, failure.text) == (
        AttemptOutcome.BLOCKED,
        f"no token: the token endpoint's address {DENIED}",
    )


# --- what stays as it was --------------------------------------------------------------------------------------------


def test_a_certificate_is_checked_against_the_name_and_not_the_vetted_address(tmp_path: Any) -> None:
    authority = Authority(tmp_path, "ours")

    async def scene() -> list[int | Fault]:
        async with Peer(context=authority.server_context("sink.test")) as peer:
            names = LocalNames(**{"sink.test": [["127.0.0.1"]]})
            return await post(Transport(ca_file=authority.ca_file), f"https://sink.test:{peer.port}/", names)

    assert run(scene()) == [200]


def test_ipv6_loopback_is_reached_where_there_is_one() -> None:
    async def scene() -> int | Fault:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(Answer(body=json.dumps({}).encode()).encoded())
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "::1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            (result,) = await post(Transport(), f"http://[::1]:{port}/", LocalNames())
            return result

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    assert run(scene()) == 200
