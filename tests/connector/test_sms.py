"""SMS, and how many parts a text makes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mailjet.sms import encoding_of, parts_of
from app.simulator.mailjet import SMS_TOKEN
from tests.connector.conftest import BASE, data, last_call, refusal

SMS = f"{BASE}/sms"
STATUSES = (
    "unknown", "sent_pending", "sent", "delivered", "rejected_operator", "rejected_undelivered", "rejected_expired",
    "rejected_incorrect_delivery", "rejected_network", "rejected_dnd", "rejected_from_blacklist",
    "rejected_to_blacklist", "rejected_anti_flood", "rejected_system_error", "invalid_phone_number",
    "rejected_insufficent_funds", "rejected_daily_limit_reached",
)  # fmt: skip
TEXT = {"from": "Shop", "to": "+33612345678", "text": "Hello"}


@pytest.mark.parametrize(
    ("text", "encoding", "parts"),
    [("a" * 160, "gsm7", 1), ("a" * 161, "gsm7", 2), ("a" * 306, "gsm7", 2), ("a" * 307, "gsm7", 3),
     ("a" * 459, "gsm7", 3), ("a" * 612, "gsm7", 4), ("a" * 765, "gsm7", 5), ("a" * 766, "gsm7", 6),
     ("€" * 80, "gsm7", 1), ("€" * 81, "gsm7", 2), ("ж" * 70, "unicode", 1), ("ж" * 71, "unicode", 2),
     ("ж" * 134, "unicode", 2), ("ж" * 201, "unicode", 3), ("ж" * 268, "unicode", 4), ("ж" * 335, "unicode", 5),
     ("ж" * 336, "unicode", 6), ("a" * 100 + "ж", "unicode", 2), ("😀" * 35, "unicode", 1), ("😀" * 36, "unicode", 2)],
)  # fmt: skip
def test_parts_of_a_text(text, encoding, parts):
    assert (encoding_of(text), parts_of(text)) == (encoding, parts)


@given(st.text(min_size=1, max_size=400), st.text(max_size=20))
def test_a_longer_text_never_makes_fewer_parts(text, more):
    assert parts_of(text + more) >= parts_of(text)


def test_a_text_is_sent_with_the_token_and_told_in_our_words(client, mailjet):
    sent = client.post(SMS, json=TEXT)

    assert sent.status_code == 201, sent.text
    told = sent.json()
    assert {**told, "message_id": "", "created_at": ""} == {
        "message_id": "", "from": "Shop", "to": "+33612345678", "text": "Hello", "parts": 1, "encoding": "gsm7",
        "status": "sent_pending", "cost": {"value": 0.0012, "currency": "EUR"}, "created_at": "", "sent_at": None,
    }  # fmt: skip
    assert last_call(mailjet).path == "/v4/sms-send"
    assert last_call(mailjet).json == {"From": "Shop", "To": "+33612345678", "Text": "Hello"}
    assert last_call(mailjet).headers["authorization"] == f"Bearer {SMS_TOKEN}"
    assert data(client.get(SMS))[0]["message_id"] == told["message_id"]  # the other spelling


@pytest.mark.parametrize(
    ("change", "pointer"),
    [({"to": "0612345678"}, "/to"), ({"to": "+0612345678"}, "/to"), ({"to": "+33 6"}, "/to"), ({"text": ""}, "/text"),
     ({"text": "ж" * 336}, "/text"), ({"from": "Much too long a name"}, "/from")],
)  # fmt: skip
def test_a_text_that_does_not_fit_is_refused_before_it_is_sent(client, mailjet, change, pointer):
    assert refusal(client.post(SMS, json=TEXT | change))[2][0][0] == pointer
    assert mailjet.requests == []


@pytest.mark.parametrize(
    ("query", "reaches"),
    [
        *((f"status={word}", {"StatusCode": str(n)}) for n, word in enumerate(STATUSES)),
        ("status=sent&status=3", {"StatusCode": "2,3"}),
        ("to=%2B33612345678", {"To": "+33612345678"}),
        ("since=2026-05-03T10:00:00Z", {"FromTS": "1777802400"}),
        ("until=2026-05-03T10:00:00Z", {"ToTS": "1777802400"}),
    ],
)
def test_each_filter_of_texts_reaches_mailjet(client, mailjet, query, reaches):
    assert data(client.get(f"{SMS}?{query}")) == []

    assert last_call(mailjet).path == "/v4/sms"
    assert last_call(mailjet).query == {"Limit": "50"} | reaches


def test_texts_are_listed_beyond_what_mailjet_gives_in_a_call(client, mailjet):
    for n in range(50):
        client.post(SMS, json=TEXT | {"text": f"t{n}"})
    mailjet.clear_requests()

    first = client.get(SMS, params={"limit": 30, "to": "+33612345678", "status": "sent_pending"})
    rest = client.get(first.links["next"]["url"])

    assert [len(first.json()["data"]), len(rest.json()["data"]), rest.json()["has_more"]] == [30, 20, False]
    assert mailjet.requests[0].query == {"To": "+33612345678", "StatusCode": "1", "Limit": "30"}


@pytest.mark.parametrize("new", [1, 20])
def test_texts_that_come_while_the_list_is_walked_repeat_none(client, new):
    for n in range(40):
        client.post(SMS, json=TEXT | {"text": f"t{n}"})
    first = client.get(SMS, params={"limit": 30})

    for n in range(new):
        client.post(SMS, json=TEXT | {"text": f"new{n}"})
    rest = client.get(first.links["next"]["url"])

    shown = [text["message_id"] for answer in (first, rest) for text in answer.json()["data"]]
    assert (len(shown), len(set(shown))) == (40, 40)


def test_a_text_that_may_have_been_sent_is_not_sent_again(client, mailjet, account):
    mailjet.lose_answers(1, method="POST")

    assert refusal(client.post(SMS, json=TEXT))[:2] == (502, "mailjet_unavailable")
    assert len(account.sms) == 1


def test_without_or_with_a_wrong_token_the_setting_is_named(client, mailjet):
    assert "BARE__SMS_TOKEN" in client.post("/v1/connections/bare/sms", json=TEXT).json()["detail"]
    mailjet.sms_tokens.clear()
    refused = client.post(SMS, json=TEXT)
    assert refusal(refused)[:2] == (502, "mailjet_unauthorized")
    assert "SHOP__SMS_TOKEN" in refused.json()["detail"]
