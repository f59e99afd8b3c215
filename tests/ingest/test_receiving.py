"""The answers of `POST /webhooks/{webhook}`, and who else hears of what arrives."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from app.ingest.identity import event_id
from tests.ingest.conftest import API_KEY, PASSWORD, Receiver, open_receiver

MakeReceiver = Callable[[Mapping[str, str]], AbstractContextManager[Receiver]]
OPEN = {"event": "open", "time": 1777802400, "MessageID": 19421777396190490}
SMALL = 1024


def problem(response: httpx2.Response) -> dict[str, Any]:
    """The body of an error, whose shape is the same everywhere."""
    assert response.headers["content-type"] == "application/problem+json"
    shown = response.json()
    assert shown["status"] == response.status_code
    assert shown.keys() == {"type", "title", "status", "detail", "instance", "code", "request_id"}
    return shown


def basic(text: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}


# --- who may post ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="no credentials"),
        pytest.param(basic("jethook:wrong"), id="a wrong password"),
        pytest.param(basic(f"other:{PASSWORD}"), id="another user"),
        pytest.param(basic(f"jethook:{PASSWORD} "), id="a longer password"),
        pytest.param(basic(f"jethook:{PASSWORD[:-1]}"), id="a shorter password"),
        pytest.param(basic("jethook:"), id="an empty password"),
        pytest.param(basic(f"jethook{PASSWORD}"), id="no colon"),
        pytest.param({"authorization": f"Bearer {PASSWORD}"}, id="another scheme"),
        pytest.param({"authorization": "Basic"}, id="a scheme alone"),
        pytest.param({"authorization": "Basic ****"}, id="no base64"),
        pytest.param({"authorization": "Basic é".encode("latin-1")}, id="not ASCII"),
        pytest.param({"authorization": ""}, id="an empty header"),
    ],
)
@pytest.mark.parametrize("path", ["orders", "unknown", "orders%00", "é"])
def test_without_valid_credentials_the_answer_is_401_whatever_the_name(
    receiver: Receiver, headers: dict[str, Any], path: str
) -> None:
    response = receiver.post(json.dumps(OPEN), path, auth=None, headers=headers)

    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Basic ")
    assert problem(response)["code"] == "unauthorized"
    assert receiver.news().nothing


@pytest.mark.parametrize("name", ["unknown", "ORDERS", "orders%20", "a" * 300, "é", "%F0%9F%98%80"])
def test_an_unknown_webhook_is_404_for_those_who_know_a_password(receiver: Receiver, name: str) -> None:
    response = receiver.post(json.dumps(OPEN), name)

    assert (response.status_code, problem(response)["code"]) == (404, "webhook_not_found")
    assert receiver.news().nothing


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC", "Basic  "])
def test_other_spellings_of_the_right_credentials_are_taken(receiver: Receiver, scheme: str) -> None:
    encoded = base64.b64encode(f"jethook:{PASSWORD}".encode()).decode()
    response = receiver.post("[]", auth=None, headers={"authorization": f"{scheme} {encoded}"})
    assert response.status_code == 200


def test_every_password_of_a_webhook_is_taken_and_none_of_another_webhook(make_receiver: MakeReceiver) -> None:
    environment = {
        "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": "new,old",
        "JETHOOK_WEBHOOKS__SHOP__PASSWORDS": "of the shop,pässword:with colon",
    }
    with make_receiver(environment) as receiver:
        for webhook, accepted in {"orders": ["new", "old"], "shop": ["of the shop", "pässword:with colon"]}.items():
            for password in ["new", "old", "of the shop", "pässword:with colon", "older"]:
                answer = receiver.post("[]", webhook, auth=None, headers=basic(f"jethook:{password}"))
                assert answer.status_code == (200 if password in accepted else 401), (webhook, password)


def test_the_user_is_the_name_of_the_instance(make_receiver: MakeReceiver) -> None:
    with make_receiver({"JETHOOK_INSTANCE": "eu-1"}) as receiver:
        assert receiver.post("[]", auth=("eu-1", PASSWORD)).status_code == 200
        assert receiver.post("[]", auth=("jethook", PASSWORD)).status_code == 401


# --- methods and size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["orders", "unknown"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_probe_of_the_address_is_answered_200_and_empty(receiver: Receiver, method: str, path: str) -> None:
    response = receiver.client.request(method, f"/webhooks/{path}")
    assert (response.status_code, response.content, response.headers["content-length"]) == (200, b"", "0")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS"])
def test_another_method_is_405(receiver: Receiver, method: str) -> None:
    response = receiver.client.request(method, "/webhooks/orders", auth=("jethook", PASSWORD))
    assert (response.status_code, problem(response)["code"]) == (405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """A service that takes bodies of 1024 bytes."""
    url = f"sqlite:///{tmp_path_factory.mktemp('small') / 'test.db'}"
    with open_receiver(url, {"JETHOOK_MAX_BODY_BYTES": str(SMALL)}) as receiver:
        yield receiver


def body_of(size: int) -> bytes:
    event = json.dumps({**OPEN, "x": ""}).encode()
    return event[:-2] + b"x" * (size - len(event)) + event[-2:]


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
@pytest.mark.parametrize(("size", "status"), [(SMALL, 200), (SMALL + 1, 413), (500_000, 413)])
def test_a_body_over_the_limit_is_413(small: Receiver, size: int, status: int, chunked: bool) -> None:
    body = body_of(size)
    small.news()
    content = (body[i : i + 100] for i in range(0, size, 100)) if chunked else body

    response = small.post(content)

    assert response.status_code == status
    if status == 413:
        assert problem(response)["code"] == "body_too_large"
        assert "JETHOOK_MAX_BODY_BYTES" in response.json()["detail"]
        assert small.news().nothing


def test_credentials_and_name_are_judged_before_the_size(small: Receiver) -> None:
    assert small.post(body_of(5000), auth=None).status_code == 401
    assert small.post(body_of(5000), "unknown").status_code == 404


def test_a_content_type_does_not_matter(receiver: Receiver) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert receiver.post("[]", headers={"content-type": kind}).status_code == 200


# --- who hears of it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """Webhooks that share a connection, one with its own, and sinks that want different things."""
    environment = {
        "JETHOOK_WEBHOOKS__BILLING__EVENTS": "open,bounce",
        "JETHOOK_WEBHOOKS__ORDERS__EVENTS": "open,click",
        "JETHOOK_WEBHOOKS__OTHER__CONNECTION": "second",
        "JETHOOK_CONNECTIONS__SECOND__API_KEY": "second",
        "JETHOOK_SINKS__BOUNCES__URL": "http://127.0.0.1:9/",
        "JETHOOK_SINKS__BOUNCES__EVENTS": "bounce,spam",
        "JETHOOK_SINKS__OFORDERS__URL": "http://127.0.0.1:9/",
        "JETHOOK_SINKS__OFORDERS__WEBHOOKS": "orders",
    }
    environment |= {f"JETHOOK_WEBHOOKS__{name}__PASSWORDS": PASSWORD for name in ("BILLING", "OTHER")}
    url = f"sqlite:///{tmp_path_factory.mktemp('many') / 'test.db'}"
    with open_receiver(url, environment) as receiver:
        yield receiver


def kept(receiver: Receiver) -> tuple[list[str], set[tuple[str, str]]]:
    """(webhooks that stored an event, pairs of webhook and sink that are owed it)."""
    stored = receiver.news()
    by_id = {row["id"]: row["webhook"] for row in stored.events}
    return sorted(by_id.values()), {(by_id[row["event_id"]], row["sink"]) for row in stored.deliveries}


def event(kind: str, number: int) -> dict[str, Any]:
    return {"event": kind, "time": 1777802400, "MessageID": number, "email": "a@example.com"}


@pytest.mark.parametrize("arrives_at", ["billing", "orders"])
def test_what_two_webhooks_of_a_connection_watch_is_stored_once_for_each(many: Receiver, arrives_at: str) -> None:
    body = json.dumps(event("open", 1 if arrives_at == "billing" else 2))
    many.news()

    assert many.counts(body, arrives_at) == (1, 1, 0, 0)
    assert kept(many) == (["billing", "orders"], {("billing", "crm"), ("orders", "crm"), ("orders", "oforders")})
    # Whichever of them it comes to again.
    assert many.counts(body, "billing") == many.counts(body, "orders") == (1, 0, 1, 0)
    assert many.news().nothing


def test_what_only_one_of_them_watches_is_stored_for_that_one(many: Receiver) -> None:
    many.news()
    many.counts(json.dumps(event("click", 3)), "orders")
    assert kept(many)[0] == ["orders"]


def test_what_arrives_at_a_webhook_that_does_not_watch_it_is_stored_for_it_and_for_who_does(many: Receiver) -> None:
    many.news()

    assert many.counts(json.dumps(event("bounce", 4)), "orders") == (1, 1, 0, 0)

    to_all = {(webhook, sink) for webhook in ("billing", "orders") for sink in ("crm", "bounces")}
    assert kept(many) == (["billing", "orders"], to_all | {("orders", "oforders")})


def test_another_connection_hears_nothing_of_it(many: Receiver) -> None:
    many.news()
    for number, webhook in ((5, "other"), (6, "orders")):
        many.counts(json.dumps(event("open", number)), webhook)
        assert ("other" in kept(many)[0]) == (webhook == "other")


def test_an_unknown_type_reaches_only_sinks_that_ask_for_all_types(many: Receiver) -> None:
    many.news()

    assert many.counts(json.dumps(event("typofix", 7)), "orders") == (1, 1, 0, 0)

    assert kept(many) == (["orders"], {("orders", "crm"), ("orders", "oforders")})


@pytest.mark.parametrize("email", ["", None, "missing"])
@pytest.mark.parametrize("message_id", [0, "0"])
def test_a_test_event_is_stored_and_delivered_to_nobody(many: Receiver, email: str | None, message_id: Any) -> None:
    trial = {"event": "bounce", "time": 5, "MessageID": message_id, "email": email, "n": str((email, message_id))}
    if email == "missing":
        del trial["email"]
    many.news()

    assert many.counts(json.dumps(trial), "orders") == (1, 1, 0, 0)

    stored = many.news()
    assert {row["test"] for row in stored.events} == {True}
    assert stored.deliveries == []


@pytest.mark.parametrize(
    "fields",
    [
        {"MessageID": 0, "email": "a@example.com"},
        {"MessageID": 5, "email": ""},
        {"email": ""},
        {"MessageID": None, "email": None},
        {"MessageID": False, "email": ""},
        {"mj_contact_id": 0, "MessageID": 8, "email": "a@example.com"},
    ],
)
def test_half_the_marks_of_a_test_event_make_a_real_one(many: Receiver, fields: dict[str, Any]) -> None:
    many.news()
    many.counts(json.dumps({"event": "spam", "time": 6, **fields}), "orders")
    stored = many.news()
    assert {row["test"] for row in stored.events} == {False}
    assert len(stored.deliveries) > 0


def test_the_webhook_and_the_time_make_another_id(many: Receiver) -> None:
    many.news()
    many.counts(json.dumps(event("open", 9)), "orders")
    assert {row["id"] for row in many.news().events} == {
        event_id(webhook, 1777802400, event("open", 9)) for webhook in ("orders", "billing")
    }


@pytest.mark.parametrize("event_type", ["open", "bounce", "of our own"])
def test_no_letters_are_too_wide_for_an_index(receiver: Receiver, event_type: str) -> None:
    rare = random.Random(7)  # what an index could press together would prove nothing

    def wide(least: int, most: int) -> str:
        return "".join(chr(rare.randrange(least, most)) for _ in range(500))

    sent = event(wide(0x20000, 0x2A6DF) if event_type == "of our own" else event_type, 14)
    sent |= {name: wide(0x20000, 0x2A6DF) for name in ("MessageID", "Message_GUID", "CustomID", "customcampaign")}
    sent |= {"email": f"A{wide(0x20000, 0x2A6DF)}", "hard_bounce": True, "error": wide(0x20000, 0x2A6DF)}
    other = sent | {"email": wide(0x10400, 0x10427), "MessageID": 15}

    assert receiver.counts(json.dumps([sent, other])) == (2, 2, 0, 0)

    rows = receiver.news().events
    for told in (sent, other):
        (row,) = (row for row in rows if told["email"].startswith(row["email"]))
        for name, value in (("email", told["email"]), ("type", told["event"])):
            found = receiver.client.get(
                "/v1/events", params={name: value}, headers={"authorization": f"Bearer {API_KEY}"}
            )
            assert row["id"] in {one["id"] for one in found.json()["data"]}


# --- counts, metrics -------------------------------------------------------------------------------------------------


def test_the_same_event_in_posts_at_the_same_moment_is_stored_once(receiver: Receiver) -> None:
    body = json.dumps([event("open", 10), event("click", 11)])
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: receiver.counts(body), range(24)))

    assert sum(stored for _, stored, _, _ in answers) == 2
    assert sum(duplicates for _, _, duplicates, _ in answers) == 24 * 2 - 2
    assert len(receiver.news().events) == 2


def test_metrics_count_what_was_answered(make_receiver: MakeReceiver) -> None:
    with make_receiver({}) as receiver:
        body = json.dumps([event("open", 12), event("typofix", 13), event("open", 12), 5])
        receiver.post(body)
        receiver.post(body)
        receiver.post(body, auth=None)
        receiver.post(body, "unknown")

        lines = set(receiver.client.get("/metrics").text.splitlines())

    assert lines >= {
        'jethook_ingest_requests_total{code="200",webhook="orders"} 2.0',
        'jethook_ingest_requests_total{code="401",webhook="orders"} 1.0',
        'jethook_ingest_requests_total{code="404",webhook="unknown"} 1.0',
        'jethook_ingest_events_total{event="open",result="stored",webhook="orders"} 1.0',
        'jethook_ingest_events_total{event="open",result="duplicate",webhook="orders"} 3.0',
        'jethook_ingest_events_total{event="unknown",result="stored",webhook="orders"} 1.0',
        'jethook_ingest_events_total{event="unknown",result="quarantined",webhook="orders"} 2.0',
    }


# --- quarantine, again -----------------------------------------------------------------------------------------------


def test_what_still_cannot_be_read_stays_in_quarantine(receiver: Receiver) -> None:
    receiver.counts(b"no JSON, and never will be")
    (row,) = receiver.news().quarantined

    headers = {"authorization": "Bearer ingest-key"}
    answer = receiver.client.post(f"/v1/quarantine/{row['id']}/reprocess", headers=headers)

    assert (answer.status_code, problem(answer)["code"]) == (409, "conflict")
    assert receiver.get(f"/v1/quarantine/{row['id']}").json()["body"] == "no JSON, and never will be"
