"""Contacts and contact lists: the request that reaches Mailjet, and what comes of its answer."""

from __future__ import annotations

import asyncio

import pytest

from tests.connector.conftest import BASE, BOTH, connector_of, data, last_call, refusal

CONTACTS, LISTS = f"{BASE}/contacts", f"{BASE}/lists"


@pytest.mark.parametrize(
    ("parameters", "reaches"),
    [
        ({"campaign_id": "7"}, {"Campaign": "7"}),
        ({"contact_list_id": "8"}, {"ContactsList": "8"}),
        ({"is_excluded": "true"}, {"IsExcludedFromCampaigns": "true"}),
        ({"is_excluded": "false", "limit": "20"}, {"IsExcludedFromCampaigns": "false", "Limit": "20"}),
    ],
)
def test_each_filter_of_contacts_reaches_mailjet_by_its_name(client, mailjet, parameters, reaches):
    assert data(client.get(CONTACTS, params=parameters)) == []

    assert last_call(mailjet).query == {"Limit": "50", "Sort": "ID"} | reaches


@pytest.mark.parametrize(
    ("query", "pointer"),
    [("campain_id=7", "campain_id"), ("is_excluded=maybe", "is_excluded"), ("campaign_id=", "campaign_id"),
     ("campaign_id=1&campaign_id=2", "campaign_id"), ("limit=1001", "limit"), ("campaign_id=0", "campaign_id")],
)  # fmt: skip
def test_what_mailjet_would_silently_ignore_is_refused(client, mailjet, query, pointer):
    status, code, errors = refusal(client.get(f"{CONTACTS}?{query}"))

    assert (status, code, [e[0] for e in errors]) == (422, "validation_failed", [pointer])
    assert mailjet.requests == []


def test_a_walk_shows_each_contact_once_while_others_come(client, account):
    made = [account.add_contact(f"{n}@example.com")["ID"] for n in range(25)]
    shown, url = [], f"{CONTACTS}?limit=10"
    while url:
        page = client.get(url)
        shown += [contact["id"] for contact in page.json()["data"]]
        url = page.links["next"]["url"] if "next" in page.links else None
        if len(shown) == 10:
            account.add_contact("new@example.com")

    assert shown[:25] == [str(number) for number in made]
    assert len(shown) == 26


def test_a_cursor_of_other_filters_is_refused(client, account):
    for n in range(3):
        account.add_contact(f"{n}@example.com")
    cursor = client.get(CONTACTS, params={"limit": 2}).json()["next_cursor"]

    assert refusal(client.get(CONTACTS, params={"cursor": cursor, "is_excluded": "true"}))[:2] == (400, "bad_cursor")


def test_a_contact_is_made_read_changed_and_deleted(client, mailjet, account):
    made = client.post(CONTACTS, json={"email": "ü/a@example.com", "name": "A", "properties": {"city": "Köln"}})
    assert made.status_code == 201, made.text
    contact = made.json()
    assert (contact["email"], contact["name"], contact["properties"]) == ("ü/a@example.com", "A", {"city": "Köln"})
    assert [r.json for r in mailjet.requests if r.json] == [
        {"Email": "ü/a@example.com", "Name": "A"},
        {"Data": [{"Name": "city", "Value": "Köln"}]},  # trap 23
    ]

    changed = client.patch(f"{CONTACTS}/%C3%BC%2Fa@example.com", json={"is_excluded": True})
    assert (changed.json()["is_excluded"], changed.json()["name"]) == (True, "A")
    again = client.patch(f"{CONTACTS}/{contact['id']}", json={"is_excluded": True})  # 304, trap 17
    assert again.json()["is_excluded"] is True

    assert client.delete(f"{CONTACTS}/%C3%BC%2Fa@example.com").status_code == 204
    assert last_call(mailjet).path == f"/v4/contacts/{contact['id']}"
    assert account.contacts[int(contact["id"])]["Name"] == "Anonymized"


def test_what_mailjet_refuses_of_a_contact_is_told_in_our_names(client):
    client.post(CONTACTS, json={"email": "a@example.com"})

    assert refusal(client.post(CONTACTS, json={"email": "a@example.com"})) == (
        409, "already_exists", [("/email", "already_exists")])  # fmt: skip
    unknown = client.patch(f"{CONTACTS}/a@example.com", json={"properties": {"shoe": 43}})
    assert refusal(unknown) == (422, "validation_failed", [("/properties/shoe", "property_not_defined")])
    assert refusal(client.patch(f"{CONTACTS}/a@example.com", json={"email": "b@example.com"}))[2] == [
        ("/email", "email_fixed")]  # fmt: skip
    assert refusal(client.get(f"{CONTACTS}/nobody@example.com"))[:2] == (404, "contact_not_found")
    assert refusal(client.get(f"{CONTACTS}/..%2Flist"))[:2] == (404, "contact_not_found")


@pytest.mark.parametrize("value", [{}, [], 1, "yes", None, [[]], 0.5])
@pytest.mark.parametrize("field", ["is_excluded", "email", "properties"])
def test_a_field_of_another_kind_is_told_by_its_pointer(client, mailjet, field, value):
    if (field, value) == ("properties", {}):
        value = {"city": [None]}

    status, _, errors = refusal(client.patch(f"{CONTACTS}/a@example.com", json={field: value}))

    assert (status, errors[0][0].split("/")[1]) == (422, field)
    assert mailjet.requests == []


def test_a_contact_whose_making_was_not_answered_is_found_and_not_refused(client, mailjet):
    mailjet.lose_answers(1, method="POST")

    made = client.post(CONTACTS, json={"email": "a@example.com"})

    assert (made.status_code, made.json()["email"]) == (201, "a@example.com")


def test_a_contact_whose_deletion_was_not_answered_and_that_is_gone_counts_as_deleted(client, mailjet, account):
    contact = account.add_contact("a@example.com")
    mailjet.lose_answers(1, method="DELETE")
    mailjet.on_request = lambda call: account.contacts.clear() if len(mailjet.requests) == 2 else None

    assert client.delete(f"{CONTACTS}/{contact['ID']}").status_code == 204
    assert refusal(client.delete(f"{CONTACTS}/{contact['ID']}"))[:2] == (404, "contact_not_found")


@pytest.mark.parametrize(
    ("status", "body", "headers", "told", "code"),
    [
        (401, None, {}, 502, "mailjet_unauthorized"),
        (401, {"ErrorMessage": "Internal error: MJ19 Setting a value for property \"Name\" is not allowed"}, {}, 422,
         "validation_failed"),
        (403, None, {}, 502, "mailjet_forbidden"),
        (429, None, {"retry-after": "77"}, 503, "mailjet_rate_limited"),
        (500, None, {}, 502, "mailjet_unavailable"),
    ],
)  # fmt: skip
def test_mailjets_faults_are_problems_of_ours(client, mailjet, status, body, headers, told, code):
    mailjet.fail_next(9, status, body, headers)

    response = client.patch(f"{CONTACTS}/7", json={"name": "B"})

    assert refusal(response)[:2] == (told, code)
    assert response.headers.get("retry-after") == ("77" if told == 503 else None)
    if code == "mailjet_unauthorized":
        assert "JETHOOK_CONNECTIONS__SHOP__SECRET_KEY" in response.json()["detail"]
    if status == 401:
        assert len(mailjet.requests) == 1
    if code == "validation_failed":
        assert refusal(response)[2] == [("/name", "mailjet_refused")]
    assert ("look before you repeat" in response.json()["detail"]) is (status == 500)


@pytest.mark.parametrize("fault", [(500, b"<html>"), (200, b"<html>"), (504, b"")])
def test_reading_leaves_no_doubt_about_what_mailjet_did(client, mailjet, fault):
    mailjet.fail_next(9, *fault)

    problem = client.get(CONTACTS).json()

    assert problem["code"] == "mailjet_unavailable"
    assert "look before you repeat" not in problem["detail"]


def test_keys_and_connections(client):
    read = {"authorization": "Bearer read"}

    assert client.get(CONTACTS, headers=read).status_code == 200
    assert refusal(client.post(CONTACTS, headers=read, json={"email": "a@example.com"}))[:2] == (403, "forbidden")
    assert refusal(client.get("/v1/connections/nope/contacts"))[:2] == (404, "connection_not_found")
    bare = refusal(client.get("/v1/connections/bare/contacts"))
    assert bare[:2] == (409, "connection_incomplete")


# --- lists -------------------------------------------------------------------------------------------------------


def test_lists_are_made_and_found_by_name(client, mailjet):
    made = client.post(LISTS, json={"name": "News"})
    assert (made.status_code, made.json()["name"]) == (201, "News")
    assert refusal(client.post(LISTS, json={"name": "News"})) == (409, "already_exists", [("/name", "already_exists")])

    assert [found["id"] for found in data(client.get(LISTS, params={"name": "News"}))] == [made.json()["id"]]
    assert last_call(mailjet).query == {"Name": "News", "Limit": "50", "Sort": "ID"}


@pytest.mark.parametrize("action", ["addforce", "addnoforce", "remove", "unsub"])
def test_one_contact_is_subscribed_with_each_action(client, mailjet, account, action):
    number = account.add_list("News")["ID"]
    body = {"email": "a@example.com", "action": action, "name": "A", "properties": {"city": "Köln"}}

    done = client.post(f"{LISTS}/{number}/subscriptions", json=body)

    assert done.status_code == 200, done.text
    assert done.json() == {
        "contact_id": str(next(iter(account.contacts))), "email": "a@example.com", "action": action, "name": "A",
    }  # fmt: skip
    assert last_call(mailjet).path == f"/v3/REST/contactslist/{number}/managecontact"
    assert last_call(mailjet).json == {
        "Email": "a@example.com", "Name": "A", "Properties": {"city": "Köln"}, "Action": action,
    }  # fmt: skip


def test_addforce_undoes_an_unsubscribe_and_addnoforce_does_not(client, account):
    number = account.add_list("News")["ID"]
    states = []
    for action in ("unsub", "addnoforce", "addforce"):
        client.post(f"{LISTS}/{number}/subscriptions", json={"email": "a@example.com", "action": action})
        states.append(next(iter(account.members.values()))["IsUnsubscribed"])

    assert states == [True, True, False]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({"action": "add", "email": "a@example.com"}, "/action"), ({"action": "unsub"}, ""),
     ({"action": "unsub", "email": "a@example.com", "contacts": [{"email": "b@example.com"}]}, ""),
     ({"action": "unsub", "contacts": []}, "/contacts"),
     ({"action": "unsub", "contacts": [{"email": "x"}]}, "/contacts/0/email"),
     ({"action": "addforce", "email": "a@example.com", "properties": {"shoe": 43}}, "/properties/shoe")],
)  # fmt: skip
def test_a_subscription_that_does_not_fit_is_told_by_its_pointer(client, account, body, pointer):
    number = account.add_list("News")["ID"]

    status, _, errors = refusal(client.post(f"{LISTS}/{number}/subscriptions", json=body))

    assert status == 422
    assert pointer in {p for p, _ in errors}


@BOTH
def test_many_contacts_are_a_job_that_another_replica_finishes(client, connector, server, database, account):
    number = account.add_list("News")["ID"]
    contacts = [{"email": f"{n}@example.com"} for n in range(1100)]
    begun = client.post(f"{LISTS}/{number}/subscriptions", json={"action": "addforce", "contacts": contacts})
    assert (begun.status_code, begun.json()["count"], begun.json()["state"]) == (202, 1100, "running")

    async def work() -> list[int]:
        other = connector_of(server, database, owner="other")
        progress = []
        for _ in range(30):
            await other.subscriptions.round()
            row = await other.subscriptions.find(begun.json()["id"])
            progress.append(row.done)
            if row.state != "running":
                break
        await other.doors.aclose()
        return progress

    progress = asyncio.run(work())
    ended = client.get(begun.headers["location"]).json()

    assert (ended["state"], ended["done"], ended["failed"]) == ("done", 1100, 0)
    assert sorted(set(progress)) == [0, 500, 1000, 1100]
    assert len(account.members) == 1100
    assert refusal(client.get(f"{LISTS}/1/subscriptions/{begun.json()['id']}"))[:2] == (404, "job_not_found")


def test_a_job_for_a_list_that_is_gone_fails_and_says_so(client, connector):
    begun = client.post(f"{LISTS}/99/subscriptions", json={"action": "unsub", "contacts": [{"email": "a@example.com"}]})
    client.portal.call(connector.subscriptions.round)

    ended = client.get(begun.headers["location"]).json()

    assert (ended["state"], ended["error"]) == ("failed", "NotFound (404)")
