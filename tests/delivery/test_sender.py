from __future__ import annotations

import asyncio
import base64
import gzip
import socket
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.delivery.connections import MAX_ANSWER_BYTES
from app.delivery.sender import (
    KEPT_ANSWER_CHARS,
    AttemptResult,
    SinkSender,
    excerpt,
    one_line,
    retry_after_seconds,
)
from app.delivery.transport import classify
from app.simulator.server import LocalServer
from app.simulator.sink import Answer, SampleSink
from tests.delivery.support import answering, raw_server, read_request, run, sink

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
NOW = datetime(2026, 5, 3, 12, 0, tzinfo=UTC)
HEADERS = {"content-type": "application/json", "webhook-id": "ours", "user-agent": "jethook/1"}


def send(url: str, times: int = 1, headers: Mapping[str, str] = HEADERS, **options: Any) -> list[AttemptResult]:
    """Attempts one after the other over one sender, on a loop of their own."""
    return run(attempts(url, times, headers, **options))


async def attempts(
    url: str, times: int = 1, headers: Mapping[str, str] = HEADERS, **options: Any
) -> list[AttemptResult]:
    sender = SinkSender(sink(url, **({"timeout_seconds": 5.0} | options)))
    try:
        return [await sender.send(b'{"event":"open"}', headers) for _ in range(times)]
    finally:
        await sender.close()


@pytest.fixture
def target() -> SampleSink:
    return SampleSink()


@pytest.fixture
def server(target: SampleSink) -> Iterator[LocalServer]:
    with LocalServer(target) as running:
        yield running


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "success"), (204, "success"), (302, "http_3xx"), (404, "http_4xx"), (410, "http_4xx"), (429, "http_429"),
     (500, "http_5xx"), (503, "http_5xx")],
)  # fmt: skip
def test_the_status_decides_the_label(status: int, outcome: str, server: LocalServer, target: SampleSink) -> None:
    target.answer_next(Answer(status, b"" if status == 204 else b"why"))

    (result,) = send(server.url)

    assert (result.outcome, result.status) == (outcome, status)
    assert result.error == (None if outcome == "success" else f"the sink answered {status}")
    assert result.response_excerpt == (None if status == 204 else "why")
    assert result.duration_ms > 0


def test_a_status_of_no_known_class_is_invalid() -> None:
    async def scenario() -> AttemptResult:
        async with raw_server(answering(OK.replace(b"200", b"799"))) as port:
            return (await attempts(f"http://127.0.0.1:{port}/"))[0]

    result = run(scenario())

    assert (result.outcome, result.status, result.error) == ("invalid", 799, "the sink answered 799")


def test_a_redirect_is_not_followed(server: LocalServer, target: SampleSink) -> None:
    target.answer_next(Answer.redirect(server.url + "/elsewhere", 307))

    (result,) = send(server.url)

    assert result.outcome == "http_3xx"
    assert [r.path for r in target.requests] == ["/"]


def test_what_the_answer_says_about_the_next_attempt_comes_along(server: LocalServer, target: SampleSink) -> None:
    target.answer_next(Answer(503, headers={"Retry-After": " 17 ", "Webhook-Delivery": " Disable "}))

    (result,) = send(server.url)

    assert (result.retry_after, result.wish) == (17.0, "disable")


def test_no_answer_in_time_is_a_timeout(server: LocalServer, target: SampleSink) -> None:
    target.answer_next(Answer.hanging())

    (result,) = send(server.url, timeout_seconds=0.2)

    assert (result.outcome, result.status) == ("timeout", None)
    assert 190 <= result.duration_ms < 4000


def test_a_port_that_takes_no_connection_in_time_is_a_timeout() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        full = [socket.socket() for _ in range(4)]  # the backlog is full: no further handshake is answered
        try:
            for one in full:
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
            (result,) = send(f"http://127.0.0.1:{port}/", connect_timeout_seconds=0.2)
        finally:
            for one in full:
                one.close()

    assert result.outcome == "timeout"
    assert result.duration_ms < 4000


def test_a_closed_port_is_a_connect_failure() -> None:
    held = LocalServer(SampleSink())  # holds the port and does not listen
    try:
        (result,) = send(held.url)
    finally:
        held.stop()

    assert (result.outcome, result.status) == ("connect", None)


def test_a_name_that_does_not_resolve_is_a_dns_failure() -> None:
    (result,) = send("http://nothing.invalid/x")

    assert (result.outcome, result.error) == ("dns", "the sink's host name does not resolve")


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "a..test", "xn--" + "z" * 60 + ".test"])
def test_a_host_name_that_no_resolver_takes_is_a_value_too(host: str) -> None:
    (result,) = send(f"http://{host}/x")

    assert result.outcome in ("dns", "invalid")


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    from tests.delivery.peers import Authority

    return Authority(tmp_path, "nobody knows it").server_context()


def test_a_certificate_nobody_vouches_for_is_a_tls_failure(self_signed: ssl.SSLContext) -> None:
    async def scenario() -> AttemptResult:
        async with raw_server(answering(OK), ssl=self_signed) as port:
            (result,) = await attempts(f"https://user:hush@127.0.0.1:{port}/")
            return result

    result = run(scenario())

    assert result.outcome == "tls"
    assert result.error is not None
    assert "certificate" in result.error
    assert "hush" not in result.error


def test_tls_to_a_port_that_speaks_none_is_a_tls_failure() -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is no TLS record, whatever you may think of it\r\n\r\n")
        await reader.read()

    async def scenario() -> AttemptResult:
        async with raw_server(garbage) as port:
            (result,) = await attempts(f"https://127.0.0.1:{port}/")
            return result

    assert run(scenario()).outcome == "tls"


def test_a_port_that_hangs_up_during_the_handshake_is_told_in_words() -> None:
    async def scenario() -> AttemptResult:
        async with raw_server(lambda reader, writer: reader.read(1)) as port:
            (result,) = await attempts(f"https://127.0.0.1:{port}/")
            return result

    result = run(scenario())

    assert (result.outcome, result.error) == (
        "connect",
        "no connection to the sink: it hung up during the TLS handshake",
    )


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\x00\xff\xfe garbage\r\n\r\n", id="garbage"),
        pytest.param(b"HTTP/1.1 abc OK\r\n\r\n", id="status is no number"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n\r\n", id="one huge header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"x-y: " + b"a" * 70_000, id="a header without end"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", id="length is no number"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\x00bad\x00: x\r\n\r\n", id="NUL in a header name"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="another protocol"),
    ],
)
def test_an_answer_that_is_no_http_is_invalid_and_its_error_fits_every_database(answer: bytes) -> None:
    async def scenario() -> AttemptResult:
        async with raw_server(answering(answer)) as port:
            (result,) = await attempts(f"http://127.0.0.1:{port}/")
            return result

    result = run(scenario())

    assert (result.outcome, result.status) == ("invalid", None)
    assert result.error is not None
    assert "\0" not in result.error
    assert "\n" not in result.error
    assert len(result.error) <= 300
    result.error.encode()


def test_a_connection_closed_without_an_answer_is_a_connect_failure(server: LocalServer, target: SampleSink) -> None:
    target.answer_next(Answer.dropped())

    (result,) = send(server.url)

    assert (result.outcome, result.error) == ("connect", "the sink closed the connection without an answer")
    assert target.total == 1  # a new connection: it may have read the request


def test_endless_interim_answers_run_into_the_time_limit() -> None:
    async def interim(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        while True:
            writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    async def scenario() -> AttemptResult:
        async with raw_server(interim) as port:
            (result,) = await attempts(f"http://127.0.0.1:{port}/", timeout_seconds=0.3)
            return result

    assert run(scenario()).outcome == "timeout"


# --- the body of the answer ------------------------------------------------------------------------------------------


def test_an_endless_answer_is_cut_off_and_its_status_counts(server: LocalServer, target: SampleSink) -> None:
    target.answer_next(Answer.endless(), Answer.endless(500))

    taken, refused = send(server.url, 2)

    assert (taken.outcome, taken.status) == ("success", 200)
    assert (refused.outcome, refused.status) == ("http_5xx", 500)
    assert taken.response_excerpt == "x" * KEPT_ANSWER_CHARS


def test_trailers_without_end_are_cut_off_and_tell_nothing() -> None:
    async def trailing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n0\r\nretry-after: 77\r\nx: ")
        while not writer.is_closing():
            writer.write(b"a" * 65536)
            await writer.drain()

    async def scenario() -> AttemptResult:
        async with raw_server(trailing) as port:
            (result,) = await attempts(f"http://127.0.0.1:{port}/", timeout_seconds=20)
            return result

    result = run(scenario())

    assert (result.outcome, result.status, result.retry_after) == ("http_5xx", 503, None)
    assert result.duration_ms < 10_000


def test_no_more_than_64_kib_of_an_answer_is_read() -> None:
    written = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            written += 65536

    async def scenario() -> AttemptResult:
        async with raw_server(endless) as port:
            (result,) = await attempts(f"http://127.0.0.1:{port}/")
            return result

    assert run(scenario()).outcome == "success"
    assert written < 16 * 1024 * 1024  # what the kernel's buffers hold; an endless reader would go on for seconds


def test_an_answer_that_drips_runs_into_the_total_time_limit(server: LocalServer, target: SampleSink) -> None:
    target.answer_next(Answer.dripping(0.01))

    (result,) = send(server.url, timeout_seconds=0.3)

    assert (result.outcome, result.status) == ("timeout", None)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", id="too short"),
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", id="no last chunk"),
    ],
)
@pytest.mark.parametrize("abort", [False, True], ids=["closed", "reset"])
def test_a_body_that_breaks_off_does_not_undo_the_status(answer: bytes, abort: bool) -> None:
    seen: list[bytes] = []

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(2):  # the second time over a reused connection, where a retry would be a repeat
            seen.append((await read_request(reader))[0])
            writer.write(OK if number == 0 else answer)
            await writer.drain()
        await asyncio.sleep(0.05)  # the client has the head before the connection ends
        if abort:
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    async def scenario() -> list[AttemptResult]:
        async with raw_server(half) as port:
            return await attempts(f"http://127.0.0.1:{port}/", 2)

    first, second = run(scenario())

    assert first.outcome == second.outcome == "success"
    assert second.status == 200
    assert len(seen) == 2


def test_a_packed_answer_is_not_unpacked(server: LocalServer, target: SampleSink) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    target.answer_next(Answer(200, bomb, headers={"content-encoding": "gzip"}))

    (result,) = send(server.url)

    assert result.outcome == "success"
    assert result.response_excerpt is not None
    assert result.response_excerpt[:1] == "\x1f"  # gzip's own first byte
    assert "accept-encoding" not in target.requests[0].headers


@given(st.binary(max_size=8000))
def test_an_excerpt_of_any_bytes_fits_every_database(answer: bytes) -> None:
    kept = excerpt(answer)

    assert (kept is None) == (not answer)
    if kept is not None:
        assert 0 < len(kept) <= KEPT_ANSWER_CHARS
        assert "\0" not in kept
        kept.encode()


def test_an_excerpt_keeps_whole_characters_up_to_its_length() -> None:
    assert excerpt("é".encode() * MAX_ANSWER_BYTES) == "é" * KEPT_ANSWER_CHARS


# --- connections -----------------------------------------------------------------------------------------------------


def test_a_reused_connection_that_was_closed_already_costs_no_attempt() -> None:
    requests: list[bytes] = []
    connections = 0
    closed: list[asyncio.StreamWriter] = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        requests.append((await read_request(reader))[0])
        writer.write(OK)
        await writer.drain()
        if connections == 1:
            # As a server that gave up on an idle connection: what comes after is reset, unread.
            closed.append(writer)
            await reader.readexactly(1)
            writer.transport.abort()
        await reader.read()

    async def scenario() -> list[AttemptResult]:
        async with raw_server(once) as port:
            return await attempts(f"http://127.0.0.1:{port}/", 2)

    results = run(scenario())

    assert [r.outcome for r in results] == ["success", "success"]
    assert len(requests) == 2  # each was answered exactly once
    assert connections == 2


def test_every_idle_connection_may_be_gone_at_once() -> None:
    """As after a silent restart of what stands before the sink: the second try must not take the next dead one."""
    dying = 8
    answered = 0

    async def scenario() -> list[AttemptResult]:
        nonlocal answered
        meeting = asyncio.Barrier(dying)

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal answered
            await read_request(reader)
            answered += 1
            if answered <= dying:
                await meeting.wait()
                writer.write(OK)
                await reader.readexactly(1)
                writer.transport.abort()
            writer.write(OK)
            await reader.read()

        async with raw_server(handler) as port:
            sender = SinkSender(sink(f"http://127.0.0.1:{port}/", timeout_seconds=5))
            try:
                await asyncio.gather(*(sender.send(b"{}", HEADERS) for _ in range(dying)))
                return await asyncio.gather(*(sender.send(b"{}", HEADERS) for _ in range(dying)))
            finally:
                await sender.close()

    assert [r.outcome for r in run(scenario())] == ["success"] * dying
    assert answered == 2 * dying


def test_a_reused_connection_that_ends_late_is_a_failed_attempt() -> None:
    requests = 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await read_request(reader)
        requests += 1
        writer.write(OK)
        await read_request(reader)
        requests += 1
        await asyncio.sleep(1.1)  # longer than any round trip: it had the request, and died of it

    async def scenario() -> list[AttemptResult]:
        async with raw_server(slow) as port:
            return await attempts(f"http://127.0.0.1:{port}/", 2)

    results = run(scenario())

    assert [r.outcome for r in results] == ["success", "connect"]
    assert requests == 2


def test_connections_are_kept_and_reused() -> None:
    connections = 0

    async def keeping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answering(*[OK] * 10)(reader, writer)

    async def scenario() -> list[AttemptResult]:
        async with raw_server(keeping) as port:
            return await attempts(f"http://127.0.0.1:{port}/", 5)

    assert [r.outcome for r in run(scenario())] == ["success"] * 5
    assert connections == 1


def test_cookies_are_not_kept(server: LocalServer, target: SampleSink) -> None:
    target.answer_always(Answer(200, headers={"set-cookie": "track=me; Path=/"}))

    send(server.url, 2)

    assert target.total == 2
    assert all("cookie" not in request.headers for request in target.requests)


def test_a_cancelled_attempt_leaves_no_connection_behind(server: LocalServer, target: SampleSink) -> None:
    target.answer_next(Answer.hanging())

    async def scenario() -> AttemptResult:
        sender = SinkSender(sink(server.url, concurrency=1, timeout_seconds=20))
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await sender.send(b"{}", HEADERS)
            return await sender.send(b"{}", HEADERS)  # the one slot is free again
        finally:
            await sender.close()

    assert run(scenario(), 10).outcome == "success"


# --- headers ---------------------------------------------------------------------------------------------------------


def names(target: SampleSink) -> list[str]:
    return [name.decode() for name, _ in target.requests[0].raw_headers]


def test_configured_headers_are_sent_beside_ours_and_none_is_sent_twice(
    server: LocalServer, target: SampleSink
) -> None:
    (result,) = send_configured(server.url, {"X-Tenant": "one"})

    assert result.outcome == "success"
    assert len(names(target)) == len(set(names(target)))
    seen = target.requests[0].headers
    assert seen["x-tenant"] == "one"
    assert (seen["content-type"], seen["webhook-id"], seen["user-agent"]) == ("application/json", "ours", "jethook/1")
    assert seen["content-length"] == "16"
    assert target.requests[0].body == b'{"event":"open"}'


@pytest.mark.parametrize(
    "name",
    ["Content-Type", "Webhook-Id", "USER-AGENT", "X-Jethook-Replay", "webhook-signature", "Idempotency-Key",
     "Content-Length", "Transfer-Encoding"],
)  # fmt: skip
def test_a_header_of_ours_cannot_be_configured(name: str) -> None:
    with pytest.raises(ValidationError, match="is set by Jethook itself"):
        sink("http://127.0.0.1:9/", headers={name: "theirs"})


def send_configured(url: str, configured: dict[str, str]) -> list[AttemptResult]:
    async def scenario() -> list[AttemptResult]:
        sender = SinkSender(sink(url, headers=configured, timeout_seconds=5))
        try:
            return [await sender.send(b'{"event":"open"}', HEADERS)]
        finally:
            await sender.close()

    return run(scenario())


def test_a_configured_host_is_sent(server: LocalServer, target: SampleSink) -> None:
    send_configured(server.url, {"Host": "inner.example"})

    assert target.requests[0].headers["host"] == "inner.example"


@pytest.mark.parametrize(
    ("user", "password", "plain"),
    [("u", "p", "u:p"), ("u%40x", "p%3A%2F", "u@x:p:/"), ("u", "", "u:"), ("", "p", ":p"),
     ("%D1%8E", "%D0%BF%F0%9F%94%91", "ю:п🔑")],
)  # fmt: skip
def test_user_and_password_of_the_url_become_basic_auth(
    user: str, password: str, plain: str, server: LocalServer, target: SampleSink
) -> None:
    (result,) = send(server.url_with(user, password, "/in?x=1"))

    assert result.outcome == "success"
    (request,) = target.requests
    assert request.headers["authorization"] == "Basic " + base64.b64encode(plain.encode()).decode()
    assert (request.path, request.query_string) == ("/in", "x=1")
    assert names(target).count("authorization") == 1


def test_a_configured_authorization_goes_before_the_url(server: LocalServer, target: SampleSink) -> None:
    (result,) = send_configured(server.url_with("u", "p"), {"Authorization": "Bearer token"})

    assert result.outcome == "success"
    assert target.requests[0].headers["authorization"] == "Bearer token"


@pytest.mark.parametrize("where", ["closed", "http://u:hush@nothing.invalid/", "http://u:hush@a..b/", "garbage"])
def test_no_error_shows_the_credentials_of_the_url(where: str) -> None:
    async def scenario() -> AttemptResult:
        async with raw_server(answering(b"hush? garbage\r\n\r\n")) as port:
            if where == "garbage":
                return (await attempts(f"http://u:hush0@127.0.0.1:{port}/"))[0]
        url = f"http://u:hush@127.0.0.1:{port}/" if where == "closed" else where
        return (await attempts(url))[0]

    result = run(scenario())

    assert result.outcome != "success"
    assert result.error
    assert "u:hush" not in repr(result)
    assert "hush0" not in repr(result)


# --- pure parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("", None), ("0", 0.0), ("17", 17.0), (" 17\t", 17.0), ("0000000000000017", 17.0),
        ("9" * 400, float("inf")), ("-1", None), ("+1", None), ("1.5", None), ("1e3", None), ("soon", None),
        ("１７", None), ("²", None), ("17 seconds", None), ("\udc80", None),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(days=90), usegmt=True), 0.0),
        ("Sunday, 03-May-26 12:00:30 GMT", 30.0), ("Sun May  3 12:00:30 2026", 30.0),
        ("Sun, 03 May 2026 14:00:30 +0200", 30.0), ("Sun, 03 May 2026 12:00:30 -0000", 30.0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", None), ("Sun, 99 May 2026 12:00:30 GMT", None),
        ("Sun, 03 May 2026 12:00:30 +9999", None), ("Sun, 03 May 99999 12:00:30 GMT", None),
    ],
)  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    found = retry_after_seconds(value, NOW)

    if value is not None and "9999 23" in value:
        assert found is not None
        assert found > 1e9
    else:
        assert found == seconds


@given(st.text(max_size=60) | st.integers(0).map(str) | st.datetimes(timezones=st.just(UTC)).map(format_datetime))
def test_retry_after_never_raises_and_is_never_negative(value: str) -> None:
    seconds = retry_after_seconds(value, NOW)

    assert seconds is None or seconds >= 0


@given(st.datetimes(min_value=datetime(2026, 5, 3, 12), max_value=datetime(2090, 1, 1)).map(lambda d: d.replace(microsecond=0, tzinfo=UTC)))  # noqa: E501, DTZ001  # fmt: skip
def test_a_date_is_the_seconds_until_then(moment: datetime) -> None:
    assert retry_after_seconds(format_datetime(moment, usegmt=True), NOW) == (moment - NOW).total_seconds()


@given(st.integers(0, 10**12))
def test_a_number_is_its_seconds(seconds: int) -> None:
    assert retry_after_seconds(str(seconds), NOW) == seconds


KEY = aiohttp.client_reqrep.ConnectionKey("h", 1, True, True, None, None, None)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (TimeoutError(), "timeout"),
        (aiohttp.ServerTimeoutError(), "timeout"),
        (aiohttp.SocketTimeoutError(), "timeout"),
        (aiohttp.ConnectionTimeoutError(), "timeout"),
        (aiohttp.ClientConnectorDNSError(KEY, OSError(1, "x")), "dns"),
        (aiohttp.ClientConnectorCertificateError(KEY, ssl.CertificateError("self-signed")), "tls"),
        (aiohttp.ClientConnectorSSLError(KEY, OSError(1, "x")), "tls"),
        (ssl.SSLError(1, "bad"), "tls"),
        (aiohttp.ClientConnectorError(KEY, OSError(111, "refused")), "connect"),
        (aiohttp.ClientOSError(104, "reset"), "connect"),
        (ConnectionResetError(104, "reset"), "connect"),
        (aiohttp.ServerDisconnectedError(), "connect"),
        (aiohttp.ClientPayloadError(), "connect"),
        (aiohttp.InvalidURL("http://u:hush@x"), "invalid"),
        (ValueError("u:hush"), "invalid"),
        (UnicodeError("u:hush"), "invalid"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_fault_has_one_label_and_a_sentence_without_secrets(error: BaseException, outcome: str) -> None:
    label, sentence = classify(error)

    assert label == outcome
    assert sentence
    assert "hush" not in sentence


@given(st.text())
def test_an_error_is_one_line_that_every_database_takes(text: str) -> None:
    line = one_line(text)

    assert len(line) <= 300
    assert not set(line) & set("\0\n\r\t")
    line.encode()
