"""Another Mailjet, with its own spellings, leads to the same answers of ours."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from app.simulator.mailjet import StandInMailjet
from app.simulator.server import LocalServer
from tests.connector.conftest import BASE, KEY, SECRET, Part, connector_of
from tests.connector.other_mailjet import OtherSpellings

RANDOM = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}|jethook-[0-9a-f]{32}")
SHOP = {"email": "shop@example.com"}
DRAFT = {"subject": "S", "locale": "en_US", "sender_email": "shop@example.com"}
LETTERS = [
    {"from": SHOP, "to": [{"email": "a@example.com"}], "text": "T"},
    {"from": {"email": "x@refused.example"}, "to": [{"email": "a@example.com"}], "text": "T"},
    {"from": SHOP, "to": [{"email": "nobody@nowhere"}], "cc": [SHOP], "html": "T"},
    {"from": SHOP, "to": [{"email": "a@example.com"}], "subject": "no content"},
]

# What is asked, in this order; `{…}` is the id that the last answer on such a thing had.
SESSION: list[tuple[str, str, Any]] = [
    ("POST", "/contacts", {"email": "ü/a@example.com", "name": "A", "is_excluded": True, "properties": {"age": 7}}),
    ("POST", "/contacts", {"email": "ü/a@example.com"}),
    ("GET", "/contacts/{contact}", None),
    ("PATCH", "/contacts/{contact}", {"name": "B", "is_excluded": False}),
    ("PATCH", "/contacts/{contact}", {"name": "B"}),
    ("PATCH", "/contacts/{contact}", {"properties": {"shoe": 43}}),
    ("GET", "/contacts", None),
    ("GET", "/contacts?campaign_id=7", None),
    ("GET", "/contacts/nobody@example.com", None),
    ("POST", "/lists", {"name": "News"}),
    ("POST", "/lists", {"name": "News"}),
    ("POST", "/lists/{list}/subscriptions", {"email": "b@example.com", "action": "addnoforce"}),
    ("POST", "/lists/{list}/subscriptions",
     {"email": "b@example.com", "action": "addforce", "properties": {"shoe": 43, "hat": 1}}),
    ("GET", "/lists", None),
    ("POST", "/drafts", DRAFT | {"is_starred": True, "html": "<p>H</p>", "text": "T"}),
    ("PATCH", "/drafts/{draft}", {"text": "", "title": "New"}),
    ("POST", "/drafts", {"subject": "S", "locale": "en_US"}),  # without a sender
    ("POST", "/drafts/{draft}/test", {"recipients": [{"email": "a@example.com"}]}),
    ("POST", "/drafts/{draft}/schedule", {"at": "2030-01-01T12:00:00Z"}),
    ("DELETE", "/drafts/{draft}/schedule", None),
    ("POST", "/drafts/{draft}/send", None),
    ("GET", "/drafts", None),
    ("GET", "/campaigns", None),
    ("GET", "/campaigns/{campaign}", None),
    ("POST", "/messages", {"messages": LETTERS}),
    ("POST", "/messages", {"messages": LETTERS[:1], "sandbox": True}),
    ("GET", "/messages", None),
    ("GET", "/messages/{message}", None),
    ("POST", "/sms", {"from": "Shop", "to": "+33612345678", "text": "Hello"}),
    ("GET", "/sms", None),
    ("GET", "/sms?status=delivered", None),
    ("DELETE", "/contacts/{contact}", None),
]  # fmt: skip


def answers(client, account) -> list[tuple[str, int, Any]]:
    """Of the whole session: what was asked, the status and the answer, without what is made by chance."""
    account.now = lambda: datetime(2026, 5, 3, 12, tzinfo=UTC)
    campaign = {"ID": 2**60, "CampaignType": 2, "IsDeleted": False, "ListID": 7, "Status": 2, "SpamassScore": 1.5,
                "OpenTracked": 3, "SendStartAt": "", "Subject": "", "CreatedAt": account.time()}  # fmt: skip
    account.campaigns[2**60] = campaign
    ids = {"campaign": str(2**60)}
    told = []
    for method, path, body in SESSION:
        given = body | {"contact_list_id": ids["list"]} if path == "/drafts" and body else body
        response = client.request(method, BASE + path.format(**ids), json=given)
        shown = response.json() if response.content else None
        if response.status_code == 201 and "id" in shown:
            ids[path[1:-1]] = shown["id"]
        if path == "/messages" and method == "POST" and not body.get("sandbox"):
            ids["message"] = shown["results"][0]["recipients"][0]["message_id"]
        if response.status_code >= 400:  # the sentences are not the contract
            shown = shown["code"], [(error["pointer"], error["code"]) for error in shown.get("errors", [])]
        told.append((f"{method} {path}", response.status_code, RANDOM.sub("…", repr(shown))))
    return told


def test_other_spellings_of_mailjet_lead_to_the_same_answers(client, account, database):
    plain = answers(client, account)
    other = StandInMailjet({KEY: SECRET})
    with LocalServer(OtherSpellings(other)) as server:
        Part.connector = connector_of(server, database)
        told = answers(client, other.account)
        client.portal.call(Part.connector.doors.aclose)

    assert [status for _, status, _ in plain if status >= 500] == []
    for expected, got in zip(plain, told, strict=True):
        assert got == expected
