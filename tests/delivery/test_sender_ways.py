"""The sender over its ways: bearer tokens, authorities, client certificates and proxies."""

from __future__ import annotations

import asyncio
import json

import pytest

from app.delivery.sender import AttemptResult, SinkSender
from app.models import AttemptOutcome
from app.settings import SinkSettings
from tests.delivery.peers import Answer, Authority, Peer, ProxyPeer, Request


def granting(request: Request) -> Answer:
    granting.given += 1
    return Answer(body=json.dumps({"access_token": f"token-{granting.given}", "expires_in": 3600}).encode())


@pytest.fixture(autouse=True)
def _no_tokens_given() -> None:
    granting.given = 0


def sink(url: str, token_url: str | None = None, **options) -> SinkSettings:
    oauth = {"oauth_token_url": token_url, "oauth_client_id": "relay", "oauth_client_secret": "s"} if token_url else {}
    return SinkSettings(url=url, **oauth, **options)


async def send(settings: SinkSettings, times: int = 1) -> list[AttemptResult]:
    sender = SinkSender(settings)
    try:
        return [await sender.send(b"{}", {"webhook-id": "1"}) for _ in range(times)]
    finally:
        await sender.close()


def test_a_bearer_token_goes_with_each_request():
    async def scene():
        async with Peer() as receiver, Peer(granting) as endpoint:
            results = await send(sink(receiver.url, endpoint.url), times=3)
            return results, receiver.requests, len(endpoint.requests)

    results, requests, fetches = asyncio.run(scene())
    assert [result.outcome for result in results] == [AttemptOutcome.SUCCESS] * 3
    assert [request.headers["authorization"] for request in requests] == ["Bearer token-1"] * 3
    assert fetches == 1


def test_a_401_brings_one_new_token_and_one_repeat_within_the_attempt():
    def picky(request: Request) -> Answer:
        return Answer(200 if request.headers["authorization"] == "Bearer token-2" else 401)

    async def scene():
        async with Peer(picky) as receiver, Peer(granting) as endpoint:
            results = await send(sink(receiver.url, endpoint.url), times=2)
            return results, [request.headers["authorization"] for request in receiver.requests]

    results, tokens = asyncio.run(scene())
    assert [result.status for result in results] == [200, 200]
    assert tokens == ["Bearer token-1", "Bearer token-2", "Bearer token-2"]


def test_a_sink_that_goes_on_refusing_is_asked_twice():
    async def scene():
        async with Peer(lambda _: Answer(401)) as receiver, Peer(granting) as endpoint:
            return await send(sink(receiver.url, endpoint.url)), len(receiver.requests), len(endpoint.requests)

    [result], posts, fetches = asyncio.run(scene())
    assert (result.outcome, result.status, posts, fetches) == (AttemptOutcome.HTTP_4XX, 401, 2, 2)


def test_without_a_token_the_sink_is_not_asked_and_the_attempt_has_no_status():
    async def scene():
        refusing = Peer(lambda _: Answer(410, b'{"error":"invalid_client"}', {"retry-after": "9"}))
        async with Peer() as receiver, refusing as endpoint:
            return await send(sink(receiver.url, endpoint.url)), receiver.requests

    [result], requests = asyncio.run(scene())
    assert (result.outcome, result.status, result.retry_after) == (AttemptOutcome.BLOCKED, None, 9.0)
    assert result.error == "no token: the token endpoint answered 410 (invalid_client)"
    assert requests == []


def test_token_and_delivery_go_by_proxy_with_client_certificate(tmp_path):
    authority = Authority(tmp_path, "ours")
    us = authority.issue("relay.example")

    async def scene():
        demanding = authority.server_context(client_authority=authority)
        async with (
            Peer(context=demanding) as receiver,
            Peer(granting, context=demanding) as endpoint,
            ProxyPeer() as proxy,
        ):
            way = {"ca_file": authority.ca_file, "client_cert_file": us.cert_file, "client_key_file": us.key_file}
            results = await send(sink(receiver.url, endpoint.url, proxy=proxy.url, **way), times=2)
            return results, receiver.requests + endpoint.requests, [request.method for request in proxy.requests]

    results, requests, at_proxy = asyncio.run(scene())
    assert [result.status for result in results] == [200, 200]
    assert {request.client_name for request in requests} == {"relay.example"}
    assert at_proxy == ["CONNECT", "CONNECT"]


def test_a_proxy_that_refuses_us_is_no_answer_of_the_sink():
    async def scene():
        async with Peer() as receiver, ProxyPeer(refuse=407) as proxy:
            return await send(sink(receiver.url, proxy=proxy.url))

    [result] = asyncio.run(scene())
    assert (result.outcome, result.status) == (AttemptOutcome.CONNECT, None)
    assert result.error == "the proxy does not accept our user and password (407)"


def test_a_forwarded_gateway_status_blames_nobody_for_sure():
    async def scene():
        async with Peer(lambda _: Answer(502)) as receiver, ProxyPeer() as proxy:
            return await send(sink(receiver.url, proxy=proxy.url))

    [result] = asyncio.run(scene())
    assert (result.status, result.error) == (502, "the sink (or the proxy before it) answered 502")
