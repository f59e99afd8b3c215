"""The client against a stand-in Mailjet over real HTTP, and against answers no honest server would give."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import orjson
import pytest

from app.mailjet import client as client_module
from app.mailjet.client import (
    ActualCallback,
    MailjetCallbackNotFound,
    MailjetClient,
    MailjetCredentialsRefused,
    MailjetDuplicate,
    MailjetError,
    MailjetPropertyReadOnly,
    MailjetRateLimited,
    MailjetRefused,
    MailjetServerFault,
    MailjetUnreachable,
    MailjetUnreadable,
    RetryPolicy,
)
from app.simulator.mailjet import StandInMailjet
from app.simulator.server import LocalServer

KEY, SECRET, PASSWORD = "the-key", "the-secret-of-mailjet", "callback/pass word"
URL = "https://jethook:callback%2Fpass%20word@hooks.example.com/webhooks/orders"
FOREIGN = "https://crm:foreign-password@crm.example.com/in?token=foreign-token"
AT_ONCE = RetryPolicy(attempts=3, total_seconds=10, wait_initial_seconds=0, wait_max_seconds=0, jitter_seconds=0)
NOON = datetime(2026, 5, 3, 12, 0, tzinfo=UTC)

Call = Callable[[MailjetClient], Awaitable[Any]]


@pytest.fixture
def mailjet() -> StandInMailjet:
    return StandInMailjet({KEY: SECRET})


@pytest.fixture
def server(mailjet: StandInMailjet) -> Iterator[LocalServer]:
    with LocalServer(mailjet) as server:
        yield server


def call(base_url: str, work: Call, **options: Any) -> Any:
    async def run() -> Any:
        async with MailjetClient(base_url, KEY, SECRET, **({"retry": AT_ONCE} | options)) as client:
            return await work(client)

    return asyncio.run(run())


Answer = httpx2.Response | Exception | Callable[[], httpx2.Response]


def answering(*answers: Answer) -> tuple[httpx2.MockTransport, list[httpx2.Request]]:
    """A transport that gives these answers in turn (the last one for ever), and what it was asked."""
    left, asked = list(answers), []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        given = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(given, Exception):
            raise given
        return given() if callable(given) else given

    return httpx2.MockTransport(answer), asked


def envelope(*items: Any, status: int = 200, **more: Any) -> httpx2.Response:
    body = {"Count": len(items), "Data": list(items), "Total": len(items)} | more
    return httpx2.Response(status, content=orjson.dumps(body))


def refusal(status: int, message: str, **headers: str) -> httpx2.Response:
    body = {"ErrorInfo": "", "ErrorMessage": message, "StatusCode": status}
    return httpx2.Response(status, content=orjson.dumps(body), headers=headers)


def listing(*answers: Answer, **options: Any) -> Any:
    transport, _ = answering(*answers)
    return call("https://api.mailjet.com", lambda c: c.list_callbacks(), transport=transport, **options)


def create(client: MailjetClient) -> Awaitable[ActualCallback]:
    return client.create_callback(event_type="open", url=URL)


# --- what works ------------------------------------------------------------------------------------------------------


def test_a_callback_is_created_listed_changed_and_deleted(mailjet, server):
    async def work(client: MailjetClient) -> list[Any]:
        created = await create(client)
        changed = await client.update_callback(created.key, {"Url": f"{URL}?revived=1"})
        listed = await client.list_callbacks()
        await client.delete_callback(created.key)
        return [created, changed, listed, await client.list_callbacks()]

    created, changed, listed, after = call(server.url, work)

    assert (created.event_type, created.is_backup, created.url) == ("open", False, URL)
    assert (created.version, created.status) == (2, "alive")
    assert listed == [changed]
    assert changed.url == f"{URL}?revived=1"
    assert after == []
    assert mailjet.requests[0].json == {"EventType": "open", "IsBackup": False, "Url": URL, "Version": 2}


def test_all_callbacks_are_listed_not_only_the_ten_mailjet_shows_by_default(mailjet, server):
    for event_type in ("sent", "open", "click", "bounce", "spam", "blocked", "unsub"):
        for is_backup in (False, True):
            mailjet.put_callback(None, event_type, URL, is_backup=is_backup)

    assert len(call(server.url, lambda c: c.list_callbacks())) == 14
    assert [request.query for request in mailjet.requests] == [{"Limit": "1000"}]


def test_a_full_page_is_followed_by_the_next():
    items = [{"ID": n, "EventType": "open", "Url": URL} for n in range(1003)]
    transport, asked = answering(envelope(*items[:1000]), envelope(*items[1000:]))

    found = call("https://api.mailjet.com", lambda c: c.list_callbacks(), transport=transport)

    assert len(found) == 1003
    assert [request.url.params.get("Offset") for request in asked] == [None, "1000"]


def test_a_server_that_ignores_the_offset_is_not_asked_for_ever():
    page = envelope(*({"ID": n, "EventType": "open", "Url": URL} for n in range(1000)))
    transport, asked = answering(page)

    assert len(call("https://api.mailjet.com", lambda c: c.list_callbacks(), transport=transport)) == 1000
    assert len(asked) == 2


def test_an_unchanged_put_is_a_success_without_a_body(mailjet, server):
    row = mailjet.put_callback(None, "open", URL, version=2)

    assert call(server.url, lambda c: c.update_callback(str(row.id), {"Version": 2})) is None
    assert mailjet.requests[-1].status == 304


def test_only_the_changes_are_sent(mailjet, server):
    row = mailjet.put_callback(None, "open", URL, version=1)

    call(server.url, lambda c: c.update_callback(str(row.id), {"Version": 2}))

    assert mailjet.requests[-1].json == {"Version": 2}


def test_a_callback_that_is_gone_counts_as_deleted(server):
    call(server.url, lambda c: c.delete_callback("12345"))


def test_a_callback_without_an_id_is_named_by_its_unique_key(mailjet, server):
    mailjet.put_callback(None, "open", URL)

    call(server.url, lambda c: c.delete_callback(ActualCallback(None, "open", False, URL).key))

    assert mailjet.callbacks() == []


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        pytest.param(
            {"ID": "17", "EventType": "Open", "IsBackup": "true", "Status": "Dead", "Url": URL, "Version": "2"},
            ActualCallback("17", "open", True, URL, 2, "dead"),
            id="numbers and booleans as text",
        ),
        pytest.param(
            {"ID": 17, "EventType": "open", "IsBackup": "false", "Url": URL},
            ActualCallback("17", "open", False, URL, None, None),
            id="no version, no status",
        ),
        pytest.param(
            {"ID": 17, "EventType": "open", "QueueName": "q", "Version": 1},
            ActualCallback("17", "open", False, "", 1, None),
            id="a cloud queue has no Url",
        ),
        pytest.param(
            {"ID": "../x", "EventType": "open", "Url": URL, "Version": "new", "IsBackup": None, "Later": {}},
            ActualCallback(None, "open", False, URL, None, None),
            id="what makes no sense is unknown",
        ),
    ],
)
def test_answers_are_read_leniently(item, expected):
    assert listing(envelope(item)) == [expected]


def test_an_entry_without_an_event_type_names_no_slot():
    assert listing(envelope({"ID": 1, "Url": URL})) == []


# --- errors ----------------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_told_by_the_settings_to_change(mailjet, server):
    async def work() -> None:
        async with MailjetClient(server.url, KEY, "wrong-secret", connection="shop") as client:
            await client.list_callbacks()

    with pytest.raises(MailjetCredentialsRefused, match="JETHOOK_CONNECTIONS__SHOP__API_KEY") as caught:
        asyncio.run(work())

    assert not caught.value.retryable
    assert "JETHOOK_CONNECTIONS__SHOP__SECRET_KEY" in str(caught.value)
    assert len(mailjet.requests) == 1


def test_the_default_connection_also_has_the_names_of_mailjets_sdks():
    with pytest.raises(MailjetCredentialsRefused, match="MJ_APIKEY_PUBLIC and MJ_APIKEY_PRIVATE"):
        listing(httpx2.Response(401, headers={"content-type": "text/html"}))


def test_mj0015_is_a_credential_problem_too():
    body = {"ErrorIdentifier": "x", "ErrorCode": "mj-0015", "StatusCode": 401, "ErrorMessage": "Unauthorized"}
    with pytest.raises(MailjetCredentialsRefused, match="Unauthorized"):
        listing(httpx2.Response(401, content=orjson.dumps(body)))


def test_a_read_only_property_is_no_credential_problem_though_it_is_a_401(mailjet, server):
    row = mailjet.put_callback(None, "open", URL)

    with pytest.raises(MailjetPropertyReadOnly, match="MJ19") as caught:
        call(server.url, lambda c: c.update_callback(str(row.id), {"ID": row.id, "Url": URL}))

    assert caught.value.status == 401
    assert "API_KEY" not in str(caught.value)


def test_a_taken_slot_is_a_duplicate(mailjet, server):
    mailjet.put_callback(None, "open", FOREIGN)

    with pytest.raises(MailjetDuplicate, match="MJ18"):
        call(server.url, create)


def test_changing_a_callback_that_is_gone_is_not_found(server):
    with pytest.raises(MailjetCallbackNotFound):
        call(server.url, lambda c: c.update_callback("12345", {"Version": 2}))


@pytest.mark.parametrize(
    ("answer", "error", "retryable"),
    [
        pytest.param(refusal(400, "no"), MailjetRefused, False, id="400"),
        pytest.param(refusal(403, "no"), MailjetRefused, False, id="403"),
        pytest.param(httpx2.Response(405), MailjetRefused, False, id="405 without a body"),
        pytest.param(httpx2.Response(302, headers={"location": "/x"}), MailjetRefused, False, id="a redirect"),
        pytest.param(refusal(429, "slow down"), MailjetRateLimited, True, id="429"),
        pytest.param(refusal(500, "EFPWebError"), MailjetServerFault, True, id="500"),
        pytest.param(httpx2.Response(502, content=b"<html>"), MailjetServerFault, True, id="502 of a gateway"),
        pytest.param(httpx2.Response(408), MailjetServerFault, True, id="408"),
        pytest.param(httpx2.Response(200, content=b"<html>"), MailjetUnreadable, True, id="HTML"),
        pytest.param(httpx2.Response(200, content=b""), MailjetUnreadable, True, id="empty"),
        pytest.param(httpx2.Response(200, content=b"[]"), MailjetUnreadable, True, id="no envelope"),
        pytest.param(httpx2.Response(200, content=b'{"Data":{}}'), MailjetUnreadable, True, id="Data is no list"),
        pytest.param(httpx2.Response(200, content=b'{"Data":[1]}'), MailjetUnreadable, True, id="Data holds a number"),
        pytest.param(envelope(Count=3), MailjetUnreadable, True, id="Count says more than there is"),
        pytest.param(
            httpx2.Response(200, content=b'{"ErrorMessage":"no","StatusCode":400}'),
            MailjetUnreadable, True, id="an error that says it is a success",
        ),
        pytest.param(
            lambda: httpx2.Response(200, stream=httpx2.ByteStream(b"no"), headers={"content-encoding": "gzip"}),
            MailjetUnreadable, True, id="an encoding that is not there",
        ),
        pytest.param(httpx2.ConnectError("[Errno -2] Name or service not known"), MailjetUnreachable, True, id="DNS"),
        pytest.param(httpx2.ReadTimeout(""), MailjetUnreachable, True, id="timeout"),
        pytest.param(httpx2.RemoteProtocolError("cut"), MailjetUnreachable, True, id="cut off"),
    ],
)  # fmt: skip
def test_each_failure_has_a_class_that_says_if_trying_again_helps(answer, error, retryable):
    transport, asked = answering(answer)

    with pytest.raises(error) as caught:
        call("https://api.mailjet.com", lambda c: c.list_callbacks(), transport=transport)

    assert type(caught.value) is error
    assert caught.value.retryable is retryable
    assert len(asked) == (AT_ONCE.attempts if retryable else 1)


def test_an_answer_without_end_is_not_read_to_the_end():
    read = 0

    class Endless(httpx2.AsyncByteStream):
        async def __aiter__(self):
            nonlocal read
            while True:
                read += 1
                yield b"x" * 65536

    with pytest.raises(MailjetUnreadable, match="longer than"):
        listing(httpx2.Response(200, stream=Endless()), retry=RetryPolicy(attempts=1))

    assert read * 65536 <= client_module.MAX_ANSWER_BYTES + 65536


def test_a_server_that_drips_is_given_up():
    gone = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(4096), 0.01)
        writer.close()
        gone.set()

    async def run() -> None:
        dripping = await asyncio.start_server(drip, "127.0.0.1", 0)
        port = dripping.sockets[0].getsockname()[1]
        retry = RetryPolicy(attempts=1)
        async with dripping, MailjetClient(f"http://127.0.0.1:{port}", KEY, SECRET, timeout=0.2, retry=retry) as client:
            try:
                await client.list_callbacks()
            finally:
                await gone.wait()

    with pytest.raises(MailjetUnreachable, match="in time"):
        asyncio.run(run())


def test_a_closed_port_names_the_setting():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"

    with pytest.raises(MailjetUnreachable, match="JETHOOK_CONNECTIONS__DEFAULT__BASE_URL") as caught:
        call(url, lambda c: c.list_callbacks())

    assert caught.value.status is None
    assert not caught.value.ambiguous


# --- trying again ----------------------------------------------------------------------------------------------------


def test_a_passing_fault_is_ridden_out(mailjet, server):
    mailjet.fail_next(2, 503)

    assert call(server.url, lambda c: c.list_callbacks()) == []
    assert [request.status for request in mailjet.requests] == [503, 503, 200]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param("7", 7.0, id="seconds"),
        pytest.param("Sun, 03 May 2026 12:00:09 GMT", 9.0, id="a date"),
        pytest.param("Sun, 03 May 2026 11:00:00 GMT", 0.0, id="a date gone by"),
        pytest.param("soon", None, id="nonsense"),
        pytest.param("-5", None, id="negative"),
        pytest.param("1 Jan 2030 00:00:00 +" + "9" * 30, None, id="an offset beyond all numbers"),
    ],
)
def test_retry_after_is_read_in_both_forms(header, expected):
    with pytest.raises(MailjetRateLimited) as caught:
        listing(refusal(429, "slow down", **{"retry-after": header}), retry=RetryPolicy(attempts=1), now=lambda: NOON)

    assert caught.value.retry_after_seconds == expected


def test_a_wait_beyond_the_budget_is_left_to_the_caller():
    transport, asked = answering(refusal(429, "slow down", **{"retry-after": "3600"}))

    with pytest.raises(MailjetRateLimited) as caught:
        call("https://api.mailjet.com", lambda c: c.list_callbacks(), transport=transport)

    assert caught.value.retry_after_seconds == 3600
    assert len(asked) == 1


def test_a_refused_post_is_sent_again_without_looking(mailjet, server):
    mailjet.fail_next(1, 429, method="POST")

    call(server.url, create)

    assert [request.method for request in mailjet.requests] == ["POST", "POST"]


def test_a_post_that_may_have_worked_is_looked_up_before_it_is_sent_again(mailjet, server):
    mailjet.fail_next(1, 500, method="POST")
    mailjet.on_request = lambda request: (
        mailjet.put_callback(None, "open", URL, version=2) if request.method == "POST" else None
    )

    created = call(server.url, create)

    assert created.url == URL
    assert [request.method for request in mailjet.requests] == ["POST", "GET"]


def test_a_post_that_did_not_work_is_sent_again_after_the_look(mailjet, server):
    mailjet.fail_next(1, 500, method="POST")

    assert call(server.url, create).url == URL
    assert [request.method for request in mailjet.requests] == ["POST", "GET", "POST"]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(envelope({"ID": 1, "EventType": "click", "Url": URL}, status=201), id="another callback"),
        pytest.param(envelope(status=201), id="no callback"),
        pytest.param(httpx2.Response(201, content=b'{"ID":1,"EventType":"open"}'), id="a bare object"),
    ],
)
def test_a_post_whose_answer_lies_is_looked_up(answer):
    transport, asked = answering(answer, envelope({"ID": 5, "EventType": "open", "Url": URL}))

    assert call("https://api.mailjet.com", create, transport=transport).id == "5"
    assert [request.method for request in asked] == ["POST", "GET"]


def test_every_http_call_is_counted_by_operation_and_code(mailjet, server):
    seen: list[tuple[str, str]] = []
    mailjet.fail_next(1, 503, method="GET")

    async def work(client: MailjetClient) -> None:
        await client.list_callbacks()
        created = await create(client)
        await client.update_callback(created.key, {"Version": 2})
        await client.delete_callback(created.key)

    call(server.url, work, observe=lambda operation, code: seen.append((operation, code)))

    assert seen == [("list", "503"), ("list", "200"), ("create", "201"), ("update", "304"), ("delete", "204")]


# --- secrets ---------------------------------------------------------------------------------------------------------

SECRETS = (SECRET, PASSWORD, "callback%2Fpass%20word", "foreign-password", "foreign-token", "base-password", "Basic ")


def assert_tells_no_secret(*texts: str) -> None:
    for text in texts:
        assert not [secret for secret in SECRETS if secret in text], text


@pytest.mark.parametrize(
    "words",
    [
        f'Invalid value for property "Url": {URL}',
        f"Invalid value {PASSWORD} of key {SECRET}",
        f"A callback {FOREIGN} exists",
        "https%3A%2F%2Fcrm%3Aforeign-password%40crm.example.com",
    ],
)
def test_what_mailjet_echoes_is_scrubbed(words):
    transport, _ = answering(refusal(400, words + "\n\0" + "x" * 5000))

    with pytest.raises(MailjetError) as caught:
        call("https://api.mailjet.com", create, transport=transport)

    assert_tells_no_secret(str(caught.value), repr(caught.value))
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_no_log_line_or_repr_tells_a_secret(mailjet, server, caplog):
    caplog.set_level(logging.DEBUG)
    mailjet.put_callback(None, "sent", FOREIGN)
    mailjet.fail_next(1, 503)
    reprs: list[str] = []

    async def work(client: MailjetClient) -> None:
        created = await create(client)
        await client.update_callback(created.key, {"Url": f"{URL}?revived=1"})
        reprs.extend([repr(client), repr(created), repr(await client.list_callbacks())])

    call(server.url.replace("://", "://user:base-password@"), work)

    assert any("httpx2" in record.name for record in caplog.records)
    assert_tells_no_secret(caplog.text, *reprs)


def test_an_error_keeps_no_link_to_the_request():
    with pytest.raises(MailjetUnreachable) as caught:
        listing(httpx2.ConnectError("no"), retry=RetryPolicy(attempts=1))

    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
