"""Client credentials against a real token endpoint; the clock is the test's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import pytest

from app.delivery import oauth
from app.delivery.oauth import TokenFailure, TokenSource
from app.delivery.transport import Transport
from app.models import AttemptOutcome
from tests.delivery.peers import Answer, Authority, LocalNames, Peer, ProxyPeer, Request

SECRET = "s3cr:t/+ü"


class Clock:
    """Seconds; only the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def granting(**extra: Any) -> Callable[[Request], Answer]:
    """An endpoint that gives `token-1`, `token-2`, … for an hour each."""
    numbers = itertools.count(1)

    def answer(_: Request) -> Answer:
        given = {"access_token": f"token-{next(numbers)}", "token_type": "Bearer", "expires_in": 3600} | extra
        return Answer(body=json.dumps({key: value for key, value in given.items() if value is not None}).encode())

    return answer


def always(status: int, body: bytes = b"{}", **headers: str) -> Callable[[Request], Answer]:
    return lambda _: Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


@contextlib.asynccontextmanager
async def source_at(
    url: str, *, transport: Transport | None = None, clock: Clock | None = None, seconds: float = 10, **options: Any
) -> AsyncIterator[TokenSource]:
    transport = transport or Transport()
    source = TokenSource(
        url, "relay", SECRET, classify=transport.classify, clock=clock or Clock(),
        open_session=partial(
            transport.open_token_session, resolver=LocalNames(), total_seconds=seconds, connect_seconds=seconds
        ),
        **options,
    )  # fmt: skip
    try:
        yield source
    finally:
        await source.close()


async def failure_at(url: str, **options: Any) -> TokenFailure:
    async with source_at(url, **options) as source:
        with pytest.raises(TokenFailure) as failed:
            await source.token()
    return failed.value


async def answered(answer: Callable[[Request], Answer | None]) -> TokenFailure:
    async with Peer(answer) as endpoint:
        return await failure_at(endpoint.url)


def form_of(request: Request) -> dict[str, str]:
    return {name: value for name, (value,) in parse_qs(request.body.decode(), strict_parsing=True).items()}


# --- asking ----------------------------------------------------------------------------------------------------------


def test_the_client_authenticates_by_basic_with_both_parts_encoded():
    async def scene():
        async with Peer(granting()) as endpoint, source_at(endpoint.url, scope="events write") as source:
            return await source.token(), endpoint.requests

    token, [request] = asyncio.run(scene())
    assert token == "token-1"
    assert request.method == "POST"
    assert form_of(request) == {"grant_type": "client_credentials", "scope": "events write"}
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert base64.b64decode(request.headers["authorization"].removeprefix("Basic ")) == b"relay:s3cr%3At%2F%2B%C3%BC"


def test_the_client_authenticates_in_the_form_where_that_is_asked_for():
    async def scene():
        async with (
            Peer(granting()) as endpoint,
            source_at(endpoint.url, auth_method="post", audience="https://sink.example") as source,
        ):
            await source.token()
            return endpoint.requests

    [request] = asyncio.run(scene())
    assert "authorization" not in request.headers
    assert form_of(request) == {
        "grant_type": "client_credentials",
        "audience": "https://sink.example",
        "client_id": "relay",
        "client_secret": SECRET,
    }


def test_the_token_comes_by_the_sinks_proxy_and_authority(tmp_path):
    authority = Authority(tmp_path, "ours")

    async def scene():
        async with Peer(granting(), context=authority.server_context()) as endpoint, ProxyPeer() as proxy:
            transport = Transport(ca_file=authority.ca_file, proxy=proxy.url)
            async with source_at(endpoint.url, transport=transport) as source:
                return await source.token(), [request.method for request in proxy.requests]

    assert asyncio.run(scene()) == ("token-1", ["CONNECT"])


# --- keeping ---------------------------------------------------------------------------------------------------------


def test_a_token_is_kept_and_renewed_in_time_without_anybody_waiting():
    clock = Clock()

    async def scene():
        async with Peer(granting()) as endpoint, source_at(endpoint.url, clock=clock) as source:
            first = [await source.token()]
            clock.now += 3539
            first.append(await source.token())
            endpoint.asked.clear()
            clock.now += 1
            first.append(await source.token())  # the old one, while the new one is on its way
            await endpoint.asked.wait()
            clock.now += 60
            return first, await source.token(), len(endpoint.requests)

    assert asyncio.run(scene()) == (["token-1"] * 3, "token-2", 2)


@pytest.mark.parametrize(
    ("expires_in", "kept", "gone"),
    [
        pytest.param(None, 299, 300, id="absent"),
        pytest.param("600", 599, 600, id="text"),
        pytest.param(600.5, 600, 601, id="fraction"),
        pytest.param("soon", 299, 300, id="nonsense"),
        pytest.param(True, 299, 300, id="boolean"),
        pytest.param(0, None, 0, id="none at all"),
        pytest.param(-5, None, 0, id="negative"),
    ],
)
def test_the_life_of_a_token_is_what_the_answer_says_or_five_minutes(expires_in, kept, gone):
    async def token_at_age(age: float) -> str:
        clock = Clock()
        async with Peer(granting(expires_in=expires_in)) as endpoint, source_at(endpoint.url, clock=clock) as source:
            await source.token()
            clock.now += age
            return await source.token()

    if kept is not None:
        assert asyncio.run(token_at_age(kept)) == "token-1"
    assert asyncio.run(token_at_age(gone)) == "token-2"


def test_all_who_wait_share_one_fetch():
    async def scene():
        gate = asyncio.Event()
        async with Peer(granting(), gate=gate) as endpoint, source_at(endpoint.url) as source:
            waiting = [asyncio.create_task(source.token()) for _ in range(20)]
            await endpoint.asked.wait()
            waiting[0].cancel()  # one that gives up takes nothing from the others
            gate.set()
            return await asyncio.gather(*waiting, return_exceptions=True), len(endpoint.requests)

    (first, *others), fetches = asyncio.run(scene())
    assert isinstance(first, asyncio.CancelledError)
    assert others == ["token-1"] * 19
    assert fetches == 1


def test_all_who_wait_share_one_failure_and_the_next_asks_again():
    answers = iter([Answer(503), Answer(body=b'{"access_token":"late"}')])

    async def scene():
        gate = asyncio.Event()
        async with Peer(lambda _: next(answers), gate=gate) as endpoint, source_at(endpoint.url) as source:
            waiting = [asyncio.create_task(source.token()) for _ in range(5)]
            await endpoint.asked.wait()
            gate.set()
            failed = await asyncio.gather(*waiting, return_exceptions=True)
            return failed, await source.token(), len(endpoint.requests)

    failed, token, fetches = asyncio.run(scene())
    assert [str(error) for error in failed] == ["no token: the token endpoint answered 503"] * 5
    assert (token, fetches) == ("late", 2)


def test_an_outage_of_the_endpoint_is_not_felt_while_the_token_is_good_and_it_is_not_pressed():
    clock = Clock()
    grant = granting()

    async def scene():
        async with (
            Peer(lambda request: grant(request) if clock.now < 2000 else None) as endpoint,
            source_at(endpoint.url, clock=clock) as source,
        ):
            await source.token()
            clock.now += 3550
            endpoint.asked.clear()
            tokens = [await source.token()]
            await endpoint.asked.wait()
            tokens += [await source.token() for _ in range(50)]
            return set(tokens), len(endpoint.requests)

    assert asyncio.run(scene()) == ({"token-1"}, 2)


def test_a_refused_token_is_replaced_once_however_many_report_it():
    async def scene():
        async with Peer(granting()) as endpoint, source_at(endpoint.url) as source:
            refused = await source.token()
            source.invalidate(refused)
            second = await source.token()
            source.invalidate(refused)  # a slower request that had used the old one
            return second, await source.token(), len(endpoint.requests)

    assert asyncio.run(scene()) == ("token-2", "token-2", 2)


def test_a_source_may_be_closed_while_it_asks():
    async def scene():
        async with Peer(granting(), gate=asyncio.Event()) as endpoint:
            async with source_at(endpoint.url) as source:
                waiting = asyncio.create_task(source.token())
                await endpoint.asked.wait()
            await asyncio.wait([waiting])
            return waiting.cancelled()

    assert asyncio.run(scene())


# --- failing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "outcome", "text"),
    [
        pytest.param(
            401, b'{"error":"invalid_client"}', AttemptOutcome.BLOCKED, "answered 401 (invalid_client)", id="refused"
        ),
        pytest.param(400, b'{"error":"s3cr:t"}', AttemptOutcome.BLOCKED, "answered 400", id="a word of its own"),
        pytest.param(400, b'{"error":["invalid_client"]}', AttemptOutcome.BLOCKED, "answered 400", id="no word"),
        pytest.param(500, b"<html>", AttemptOutcome.BLOCKED, "answered 500", id="not JSON"),
        pytest.param(302, b"", AttemptOutcome.BLOCKED, "answered 302", id="a redirect is not followed"),
        pytest.param(429, b"", AttemptOutcome.HTTP_429, "answered 429", id="too many"),
    ],
)
def test_an_endpoint_that_refuses_is_told_with_the_standards_word_only(status, body, outcome, text):
    failure = asyncio.run(answered(always(status, body, location="http://127.0.0.1:1/", retry_after="17")))

    assert (failure.outcome, failure.text) == (outcome, f"no token: the token endpoint {text}")
    assert failure.retry_after == "17"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"access_token":""}',
        b'{"access_token":7}',
        b'{"access_token":"a\\r\\nx-evil: 1"}',
        b'{"access_token":"a b"}',
    ],
)
def test_an_answer_without_a_usable_token_is_a_failure(body):
    failure = asyncio.run(answered(always(200, body)))

    assert failure.outcome is AttemptOutcome.BLOCKED
    assert "no usable access_token" in failure.text


@pytest.mark.parametrize(("kind", "usable"), [("bearer", True), ("BEARER", True), ("DPoP", False), (None, True)])
def test_only_bearer_tokens_are_used(kind, usable):
    async def scene():
        async with Peer(granting(token_type=kind)) as endpoint, source_at(endpoint.url) as source:
            try:
                return await source.token()
            except TokenFailure as failure:
                return failure.text

    told = asyncio.run(scene())
    assert told == ("token-1" if usable else "no token: the token endpoint gives tokens of another type than Bearer")


def test_an_answer_of_any_size_is_not_read():
    failure = asyncio.run(answered(always(200, b" " * (oauth.MAX_ANSWER_BYTES + 1))))

    assert failure.text == "no token: the token endpoint answered with more than 64 KiB"


def test_an_endpoint_that_hangs_up_hangs_or_is_not_there_is_named():
    async def scene():
        async with Peer(lambda _: None) as rude, Peer(gate=asyncio.Event()) as silent:
            failures = [await failure_at(rude.url), await failure_at(silent.url, seconds=0.05)]
        failures += [await failure_at(rude.url), await failure_at("http://tokens.invalid/")]
        return [(failure.outcome, failure.text.removeprefix("no token: ")) for failure in failures]

    assert asyncio.run(scene()) == [
        (AttemptOutcome.CONNECT, "the token endpoint closed the connection without an answer"),
        (AttemptOutcome.TIMEOUT, "no whole answer from the token endpoint within the time limit"),
        (AttemptOutcome.CONNECT, "no connection to the token endpoint: Connection refused"),
        (AttemptOutcome.DNS, "the token endpoint's host name does not resolve"),
    ]


def test_an_endpoint_behind_a_dead_proxy_is_not_blamed():
    async def scene():
        async with ProxyPeer(hang_up=True) as proxy:
            return await failure_at("https://127.0.0.1:1/", transport=Transport(proxy=proxy.url))

    assert asyncio.run(scene()).text == "no token: the proxy closed the connection without an answer"


def test_no_secret_is_logged_or_told(caplog):
    async def scene():
        refusing = always(401, json.dumps({"error": SECRET}).encode())
        async with Peer(refusing) as endpoint, source_at(endpoint.url) as source:
            with pytest.raises(TokenFailure) as failed:
                await source.token()
            return repr(failed.value) + repr(vars(failed.value)) + repr(source)

    with caplog.at_level(logging.DEBUG):
        told = asyncio.run(scene())
    assert SECRET not in told + caplog.text


def test_a_held_token_is_not_shown():
    assert "abc" not in repr(oauth._parse_token(b'{"access_token":"abc"}', 0))
