"""Messages: filters, history, and sending each of them once whatever happens in between."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from app.connector.ledger import Entry, Ledger
from app.connector.problems import InFlight
from app.connector.sending import Sending, SendRequest
from tests.connector.conftest import BASE, BOTH, KEY, SECRET, data, last_call, refusal
from tests.factories import make_event

MESSAGES = f"{BASE}/messages"
SHOWN = {"ShowSubject": "true", "ShowContactAlt": "true", "ShowCustomID": "true", "Limit": "50", "Sort": "ID"}

FROM_TYPES = ("transactional", "marketing", "unknown")
STATES = (
    "user unknown", "mailbox inactive", "quota exceeded", "invalid domain", "no mail host", "relay/access denied",
    "sender blocked", "content blocked", "policy issue", "system issue", "protocol issue", "connection issue",
    "greylisted", "preblocked", "duplicate in campaign", "spam preblocked", "bad or empty template",
    "error in template language", "typofix", "blacklisted", "spam reporter",
)  # fmt: skip
STATUSES = ("processed", "queued", "sent", "opened", "clicked", "bounce", "spam", "unsub", "blocked", "softbounced",
            "hardbounced", "deferred")  # fmt: skip


def letter(number: int = 0, **more):
    return {"from": {"email": "shop@example.com"}, "to": [{"email": f"{number}@example.com"}], "subject": "S",
            "text": "T"} | more  # fmt: skip


def send(client, *letters, key=None, **more):
    headers = {"idempotency-key": key} if key else {}
    return client.post(MESSAGES, json={"messages": list(letters), **more}, headers=headers)


def sends(mailjet):
    return [request for request in mailjet.requests if request.path == "/v3.1/send"]


@pytest.mark.parametrize(
    ("parameters", "reaches"),
    [
        ({"campaign_id": "7"}, {"Campaign": "7"}),
        ({"contact_id": "8"}, {"Contact": "8"}),
        ({"since": "2026-05-03T10:00:00Z"}, {"FromTS": "1777802400"}),
        ({"until": "2026-05-03T12:00:00+02:00"}, {"ToTS": "1777802400"}),
        *(({"from_type": word}, {"FromType": str(n)}) for n, word in enumerate(FROM_TYPES, 1)),
        *(({"state": word}, {"MessageState": str(n)}) for n, word in enumerate(STATES, 1)),
        *(({"status": word}, {"MessageStatus": str(n)}) for n, word in enumerate(STATUSES)),
        ({"state": "spam_reporter"}, {"MessageState": "21"}),
        ({"state": "6"}, {"MessageState": "6"}),
        ({"status": "Hard bounce"}, {"MessageStatus": "10"}),
        ({"status": "0"}, {"MessageStatus": "0"}),
    ],
)  # fmt: skip
def test_each_filter_of_messages_reaches_mailjet(client, mailjet, parameters, reaches):
    assert data(client.get(MESSAGES, params=parameters)) == []

    assert last_call(mailjet).query == SHOWN | reaches


@pytest.mark.parametrize("query", ["status=lost", "state=22", "since=2026-05-03", "from_type=mine", "custom_id=x"])
def test_a_filter_of_messages_that_does_not_fit_is_refused(client, mailjet, query):
    assert refusal(client.get(f"{MESSAGES}?{query}"))[2][0][0] == query.partition("=")[0]
    assert mailjet.requests == []


def test_a_message_comes_with_its_names_its_history_and_our_timeline(client, database, account):
    sent = send(client, letter(custom_id="order-17")).json()["results"][0]
    message_id = sent["recipients"][0]["message_id"]
    make_event(database, message_id=message_id, type="open", outcome="opened")

    (listed,) = data(client.get(MESSAGES))
    message = client.get(f"{MESSAGES}/{message_id}").json()

    assert int(message_id) > 2**60
    assert (listed["id"], listed["subject"], listed["email"], listed["custom_id"], listed["status"]) == (
        message_id, "S", "0@example.com", "order-17", "sent")  # fmt: skip
    assert [entry["type"] for entry in message["history"]] == ["sent"]
    assert message["timeline"]["state"] == "opened"
    assert refusal(client.get(f"{MESSAGES}/17"))[:2] == (404, "message_not_found")


def test_everything_a_message_can_hold_reaches_mailjet(client, mailjet):
    picture = base64.b64encode(b"picture").decode()
    full = letter(
        cc=[{"email": "c@example.com", "name": "C"}], bcc=[{"email": "b@example.com"}],
        reply_to={"email": "r@example.com"}, html="<p>H</p>", variables={"day": 1},
        attachments=[{"filename": "a.txt", "content_type": "text/plain", "data": "QQ=="},
                     {"filename": "p.png", "content_type": "image/png", "data": picture, "content_id": "p1"}],
        custom_id="order-17", payload='{"a": 1}', custom_campaign="spring", track_opens="enabled", track_clicks=False,
        headers={"X-Shop": "1"},
    )  # fmt: skip

    assert send(client, full).json()["results"][0]["status"] == "accepted"

    assert sends(mailjet)[0].json == {
        "Messages": [
            {
                "From": {"Email": "shop@example.com"}, "To": [{"Email": "0@example.com"}],
                "Cc": [{"Email": "c@example.com", "Name": "C"}], "Bcc": [{"Email": "b@example.com"}],
                "ReplyTo": {"Email": "r@example.com"}, "Subject": "S", "TextPart": "T", "HTMLPart": "<p>H</p>",
                "TemplateLanguage": True, "Variables": {"day": 1},
                "Attachments": [{"Filename": "a.txt", "ContentType": "text/plain", "Base64Content": "QQ=="}],
                "InlinedAttachments": [
                    {"Filename": "p.png", "ContentType": "image/png", "Base64Content": picture, "ContentID": "p1"}
                ],
                "CustomID": "order-17", "EventPayload": '{"a": 1}', "CustomCampaign": "spring",
                "TrackOpens": "enabled", "TrackClicks": "disabled", "Headers": {"X-Shop": "1"},
            }
        ]
    }  # fmt: skip


def test_a_template_goes_by_its_number_and_a_sandbox_gives_no_ids(client, mailjet):
    template = {"from": {"email": "shop@example.com"}, "to": [{"email": "a@example.com"}], "template_id": "12"}

    (result,) = send(client, template, sandbox=True).json()["results"]

    sent = sends(mailjet)[0].json
    assert (sent["SandboxMode"], sent["Messages"][0]["TemplateID"]) == (True, 12)
    assert result["recipients"] == [{"email": "a@example.com", "message_id": None, "message_guid": None}]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [({"to": []}, "/messages/0/to"), ({"custom_id": "x" * 65}, "/messages/0/custom_id"),
     ({"attachments": [{"filename": "a", "data": "Q"}]}, "/messages/0/attachments/0/data"),
     ({"attachments": [{"filename": "a", "data": "QUFB" * (5 * 2**20 + 1)}]}, "/messages/0/attachments"),
     ({"track_opens": "maybe"}, "/messages/0/track_opens"), ({"track_opens": []}, "/messages/0/track_opens"),
     ({"template_id": "x"}, "/messages/0/template_id"), ({"sender": 1}, "/messages/0/sender")],
)  # fmt: skip
def test_a_message_that_does_not_fit_is_told_by_its_pointer_and_nothing_is_sent(client, mailjet, change, pointer):
    status, _, errors = refusal(send(client, letter(**change)))

    assert (status, errors[0][0]) == (422, pointer)
    assert mailjet.requests == []


def test_what_the_stand_in_sent_becomes_events_to_post(client, mailjet):
    bad = letter(1, **{"from": {"email": "x@refused.example"}})
    sent = send(client, letter(0, custom_id="order-17", payload="p"), bad).json()["results"][0]["recipients"][0]
    send(client, letter(2), sandbox=True)

    (event,) = mailjet.take_events()

    assert (event["event"], event["email"], event["CustomID"], event["Payload"]) == (
        "sent", "0@example.com", "order-17", "p")  # fmt: skip
    assert (str(event["MessageID"]), event["Message_GUID"]) == (sent["message_id"], sent["message_guid"])
    assert mailjet.take_events() == []


def test_51_messages_are_refused(client):
    assert refusal(send(client, *map(letter, range(51))))[2] == [("/messages", "too_long")]


def test_accepted_and_refused_messages_are_told_apart(client):
    bad = letter(1, **{"from": {"email": "x@refused.example"}})
    no_address = letter(2, cc=[{"email": "nobody@nowhere"}])

    results = send(client, letter(0), bad, no_address).json()["results"]

    assert [result["status"] for result in results] == ["accepted", "refused", "refused"]
    assert [(e["pointer"], e["code"]) for result in results for e in result["errors"]] == [
        ("/messages/1/from", "send-0008"), ("/messages/2/cc/0/email", "mj-0013")]  # fmt: skip


@BOTH
def test_a_repeat_with_the_same_key_sends_nothing_and_tells_the_same(client, mailjet):
    letters = [letter(0), letter(1, **{"from": {"email": "x@refused.example"}})]

    first, second = send(client, *letters, key="k1"), send(client, *letters, key="k1")

    assert first.json() == second.json()
    assert len(sends(mailjet)) == 1
    assert refusal(send(client, letter(9), key="k1"))[:2] == (422, "idempotency_key_reused")


@BOTH
def test_two_requests_with_one_key_at_once_send_once(client, mailjet):
    mailjet.set_slow(0.3)
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda _: send(client, letter(0), key="k1"), range(2)))

    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert len(sends(mailjet)) == 1


def test_an_answer_that_was_lost_is_looked_up_and_nothing_is_sent_again(client, mailjet, account):
    mailjet.lose_answers(1, method="POST")

    (result,) = send(client, letter(0)).json()["results"]

    assert (result["status"], len(sends(mailjet)), len(account.messages)) == ("accepted", 1, 1)
    assert result["recipients"][0]["message_id"] == str(next(iter(account.messages)))
    assert last_call(mailjet).query["CustomID"] == result["custom_id"]


def test_what_nobody_knows_is_told_as_unknown_and_sent_by_a_repeat(client, mailjet, account):
    mailjet.fail_next(1, 503, method="POST")

    first = send(client, letter(0), key="k1").json()["results"]
    second = send(client, letter(0), key="k1").json()["results"]

    assert ([r["status"] for r in first], [r["status"] for r in second]) == (["unknown"], ["accepted"])
    assert len(account.messages) == 1


@pytest.mark.parametrize(("status", "told"), [(401, 502), (429, 503), (400, 422)])
def test_a_request_that_mailjet_refuses_as_a_whole_can_be_repeated_with_its_key(client, mailjet, status, told):
    mailjet.fail_next(3, status, {"ErrorCode": "mj-0002", "ErrorMessage": "no", "StatusCode": status}, method="POST")

    assert send(client, letter(0), key="k1").status_code == told
    mailjet._faults.clear()
    assert send(client, letter(0), key="k1").json()["results"][0]["status"] == "accepted"


def test_a_fault_of_the_whole_request_points_at_its_message(client, mailjet, connector, database):
    """Also where Mailjet was handed fewer messages than there are, since some were settled before."""
    fault = {"ErrorCode": "mj-0004", "ErrorMessage": "no", "ErrorRelatedTo": ["Messages[0].To"], "StatusCode": 400}
    mailjet.fail_next(1, 400, fault, method="POST")
    assert refusal(send(client, letter(0), letter(1)))[2] == [("/messages/0/to", "mj-0004")]
    request = SendRequest.model_validate({"messages": [letter(0), letter(1)]})
    settled = {"status": "accepted", "custom_id": "a", "recipients": [], "errors": []}
    died = Ledger(database, "shop", "k1", request.fingerprint, "dead", lambda: datetime.now(UTC) - timedelta(seconds=6))
    asyncio.run(_leave(died, [Entry("a", result=settled), Entry("b")]))

    mailjet.fail_next(1, 400, fault, method="POST")

    assert refusal(send(client, letter(0), letter(1), key="k1"))[2] == [("/messages/1/to", "mj-0004")]


@BOTH
@pytest.mark.parametrize("own_ids", [True, False])
def test_after_a_crash_fifty_messages_are_looked_up_and_only_those_not_there_are_sent(
    client, server, mailjet, account, database, own_ids
):
    """A process that was killed after Mailjet did what it asked leaves entries that were tried, and a lease."""
    names = {"custom_id": "order"} if own_ids else {}
    bad = {"from": {"email": "x@refused.example"}}
    letters = [letter(n, **names, **(bad if n in (7, 20, 49) else {})) for n in range(50)]
    request = SendRequest.model_validate({"messages": letters})
    now = datetime.now(UTC)
    tried_at = int(now.timestamp())
    entries = [Entry(one.custom_id or f"made-{n}", tried_at=tried_at) for n, one in enumerate(request.messages)]
    posted = [one.as_sent(entry.custom_id) for one, entry in zip(request.messages, entries, strict=True)]
    httpx2.post(f"{server.url}/v3.1/send", json={"Messages": posted}, auth=(KEY, SECRET))
    died = Ledger(database, "shop", "k1", request.fingerprint, "dead", lambda: now - timedelta(seconds=4))
    asyncio.run(_leave(died, entries))

    results = send(client, *letters, key="k1").json()["results"]

    assert [n for n, result in enumerate(results) if result["status"] == "refused"] == [7, 20, 49]
    assert sum(result["status"] == "accepted" for result in results) == 47
    assert len(account.messages) == 47
    assert len(sends(mailjet)[1].json["Messages"]) == 3
    assert {r["recipients"][0]["email"] for r in results if r["recipients"]} == {
        m["ContactAlt"] for m in account.messages.values()}  # fmt: skip


@BOTH
def test_what_mailjet_takes_after_its_sender_died_and_we_looked_is_not_sent_again(
    client, connector, mailjet, account, database
):
    """Killed while Mailjet held its answer; the repeat comes before Mailjet is through."""
    now = datetime.now(UTC).replace(microsecond=0)
    connector._sending = Sending(database, "me", lambda: now, settle=timedelta(seconds=0.2))
    request = SendRequest.model_validate({"messages": [letter(0, custom_id="order-17")]})
    died = Ledger(database, "shop", "k1", request.fingerprint, "dead", lambda: now - timedelta(seconds=6))
    asyncio.run(_leave(died, [Entry("order-17", tried_at=int(now.timestamp()))]))

    def take_late(call) -> None:
        if len(mailjet.requests) == 2:
            account.add_message(CustomID="order-17", ContactAlt="0@example.com")

    mailjet.on_request = take_late
    (result,) = send(client, letter(0, custom_id="order-17"), key="k1").json()["results"]

    assert (result["status"], sends(mailjet)) == ("accepted", [])
    assert result["recipients"][0]["message_id"] == str(next(iter(account.messages)))


def test_messages_that_come_to_be_seen_while_they_are_looked_up_are_not_sent_again(
    client, connector, mailjet, account, database
):
    """The first was looked for before Mailjet had it, the second after: Mailjet was in the middle of the request."""
    now = datetime.now(UTC).replace(microsecond=0)
    connector._sending = Sending(database, "me", lambda: now, settle=timedelta(seconds=0.2))
    letters = [letter(n, custom_id=f"order-{n}") for n in range(2)]
    request = SendRequest.model_validate({"messages": letters})
    died = Ledger(database, "shop", "k1", request.fingerprint, "dead", lambda: now - timedelta(seconds=6))
    asyncio.run(_leave(died, [Entry(f"order-{n}", tried_at=int(now.timestamp())) for n in range(2)]))

    def take_both(call) -> None:
        if len(mailjet.requests) == 2:
            for n in range(2):
                account.add_message(CustomID=f"order-{n}", ContactAlt=f"{n}@example.com")

    mailjet.on_request = take_both
    results = send(client, *letters, key="k1").json()["results"]

    assert ([result["status"] for result in results], sends(mailjet)) == (["accepted", "accepted"], [])


@BOTH
def test_a_sender_that_has_lost_its_lease_stops_and_sends_nothing(client, mailjet, database):
    """It was away for longer than its lease, and another replica has the request now."""
    request = SendRequest.model_validate({"messages": [letter(0, custom_id="order-17")]})
    began = datetime.now(UTC) - timedelta(minutes=1)
    died = Ledger(database, "shop", "k1", request.fingerprint, "dead", lambda: began)
    asyncio.run(_leave(died, [Entry("order-17", tried_at=int(began.timestamp()))]))
    later = datetime.now(UTC) + timedelta(seconds=10)
    other = Ledger(database, "shop", "k1", request.fingerprint, "other", lambda: later)

    def take_over(call) -> None:
        mailjet.on_request = None
        database.write(lambda c: other._try(c, []))

    mailjet.on_request = take_over  # while the first looks up what the dead one may have sent
    refused = send(client, letter(0, custom_id="order-17"), key="k1")

    assert refusal(refused)[:2] == (409, "request_in_flight")
    assert refused.headers["retry-after"] == "5"
    assert [request.method for request in mailjet.requests] == ["GET"]
    with pytest.raises(InFlight):
        asyncio.run(died.save([]))
    asyncio.run(other.save([Entry("order-17")]))  # whose request it is goes on


async def _leave(ledger: Ledger, entries: list[Entry]) -> None:
    await ledger._take(entries)
    await ledger.save(entries)
