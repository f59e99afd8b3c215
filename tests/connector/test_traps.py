"""The traps that Mailjet's documents and others' accidents tell of, each by its number in the list of what is known.

Some have their test beside what they concern: 17, 23 and 4.5 in `test_contacts`, 32 and 4.1 in `test_campaigns`, 25 and
the Show… parameters in `test_messages`, both spellings of SMS in `test_spellings`.
"""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from app.mailjet.door import Door
from tests.connector.conftest import BASE, KEY, SECRET, data, last_call, refusal

LISTS = ("contacts", "lists", "messages", "campaigns", "drafts", "sms")
SHOP = {"email": "shop@example.com"}
LETTER = {"from": SHOP, "to": [{"email": "a@example.com"}], "text": "T"}
TEXT = {"from": "Shop", "to": "+33612345678", "text": "Hello"}
DRAFT = {"subject": "S", "locale": "en_US", "sender_email": "shop@example.com", "contact_list_id": "7"}
BIG = 2**62 + 1


def fill(account, count: int) -> None:
    """So many objects of each list."""
    for n in range(count):
        contact = account.add_contact(f"{n}@example.com")
        account.add_list(f"list {n}")
        account.add_message(ContactID=contact["ID"], ContactAlt=contact["Email"])
        account.campaigns[n] = {"ID": n + 1, "Status": 2, "SendStartAt": account.time()}
        account.drafts[n] = {"ID": n + 1, "Status": 0, "DeliveredAt": ""}
        account.sms.append({"From": "Shop", "To": "+33612345678", "MessageId": str(n), "SmsCount": 1,
                            "CreationTS": 1, "SentTS": "", "Status": {"Code": 1}})  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_trap_15_a_list_is_not_cut_after_ten(client, account, name):
    fill(account, 25)

    assert len(data(client.get(f"{BASE}/{name}"))) == 25


@pytest.mark.parametrize("name", LISTS)
def test_trap_27_the_end_of_a_list_is_not_told_by_its_total(client, account, name):
    """`Total` counts the page: a page that is full may be followed by another."""
    fill(account, 12)

    first = client.get(f"{BASE}/{name}?limit=8")
    second = client.get(first.links["next"]["url"])

    assert (len(first.json()["data"]), first.json()["has_more"]) == (8, True)
    assert (len(second.json()["data"]), second.json()["has_more"]) == (4, False)
    assert "next" not in second.links


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("query", ["contactlist_id=7", "Limit=5", "countOnly=1"])
def test_trap_26_a_mistyped_filter_is_refused_and_does_not_show_everything(client, mailjet, name, query):
    assert refusal(client.get(f"{BASE}/{name}?{query}"))[2] == [(query.partition("=")[0], "unknown_parameter")]
    assert mailjet.requests == []


@pytest.mark.parametrize("name", LISTS)
def test_fact_2_4_a_filter_given_twice_is_refused_since_only_the_first_would_count(client, mailjet, name):
    assert refusal(client.get(f"{BASE}/{name}?limit=5&limit=6"))[2] == [("limit", "repeated_parameter")]
    assert mailjet.requests == []


CALLS = [
    pytest.param("GET", "/contacts", None, id="contacts"),
    pytest.param("POST", "/contacts", {"email": "a@example.com"}, id="make a contact"),
    pytest.param("DELETE", "/contacts/7", None, id="delete a contact"),
    pytest.param("POST", "/lists/7/subscriptions", {"email": "a@example.com", "action": "unsub"}, id="subscribe"),
    pytest.param("POST", "/messages", {"messages": [LETTER]}, id="send"),
    pytest.param("GET", "/campaigns/7", None, id="campaign"),
    pytest.param("POST", "/drafts", DRAFT, id="make a draft"),
    pytest.param("POST", "/drafts/7/send", None, id="send a draft"),
    pytest.param("POST", "/sms", TEXT, id="SMS"),
    pytest.param("GET", "/sms", None, id="list SMS"),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_trap_18_an_empty_page_of_html_with_401_names_the_setting(client, mailjet, method, path, body):
    mailjet.fail_next(9, 401)

    refused = client.request(method, BASE + path, json=body)

    assert refusal(refused)[:2] == (502, "mailjet_unauthorized")
    assert "JETHOOK_CONNECTIONS__SHOP__" in refused.json()["detail"]
    assert len(mailjet.requests) == 1


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_trap_17_a_401_with_mj19_is_no_fault_of_the_credentials(client, mailjet, method, path, body):
    told = 'Internal error: MJ19 Setting a value for property "ID" is not allowed'
    mailjet.fail_next(9, 401, {"ErrorInfo": "", "ErrorMessage": told, "StatusCode": 401})

    assert refusal(client.request(method, BASE + path, json=body))[:2] == (422, "validation_failed")


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
@pytest.mark.parametrize("page", [b"", b"<html>bad gateway</html>", b"[]"])
def test_fact_2_2_a_500_of_any_shape_is_a_502(client, mailjet, method, path, body, page):
    mailjet.fail_next(9, 500, page)

    answer = client.request(method, BASE + path, json=body)

    if path == "/messages":  # what may have been sent is told message by message
        assert [result["status"] for result in answer.json()["results"]] == ["unknown"]
    else:
        assert refusal(answer)[:2] == (502, "mailjet_unavailable")


@pytest.mark.parametrize(
    ("method", "path", "body", "reaches"),
    [
        ("GET", "/contacts", None, "GET /v3/REST/contact"),
        ("GET", "/messages", None, "GET /v3/REST/message"),
        ("POST", "/messages", {"messages": [LETTER]}, "POST /v3.1/send"),
        ("DELETE", "/contacts/{contact}", None, "DELETE /v4/contacts/{contact}"),
        ("POST", "/sms", TEXT, "POST /v4/sms-send"),
        ("GET", "/sms", None, "GET /v4/sms"),
        # trap 22: managecontactslists would want the contact to be there already
        ("POST", "/lists/{list}/subscriptions", {"email": "new@example.com", "action": "addforce"},
         "POST /v3/REST/contactslist/{list}/managecontact"),
    ],
)  # fmt: skip
def test_trap_21_each_call_goes_to_the_version_that_has_it(client, mailjet, account, method, path, body, reaches):
    ids = {"contact": account.add_contact("a@example.com")["ID"], "list": account.add_list("News")["ID"]}

    assert client.request(method, BASE + path.format(**ids), json=body).is_success

    assert f"{last_call(mailjet).method} {last_call(mailjet).path}" == reaches.format(**ids)
    scheme = last_call(mailjet).headers["authorization"].partition(" ")[0]
    assert scheme == ("Bearer" if path == "/sms" else "Basic")


def test_fact_2_1_an_account_in_the_us_has_its_own_host():
    asked: list[httpx2.URL] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url)
        return httpx2.Response(200, json={"Count": 0, "Data": [], "Total": 0})

    async def ask() -> None:
        transport = httpx2.MockTransport(answer)
        async with Door("https://api.us.mailjet.com/", KEY, SECRET, transport=transport) as door:
            await door.ask("list_contacts", "/v3/REST/contact", {"Limit": 5})

    asyncio.run(ask())
    assert [str(url) for url in asked] == ["https://api.us.mailjet.com/v3/REST/contact?Limit=5"]


def test_trap_5_ids_beyond_two_to_the_53_stay_exact(client, account):
    account.add_contact("a@example.com", ID=BIG)
    account.campaigns[BIG] = {"ID": BIG, "ListID": BIG, "FirstMessageID": BIG}
    account.drafts[BIG] = {"ID": BIG, "Status": 0, "ContactsListID": BIG}
    account.messages[BIG] = {"ID": BIG, "Status": "sent", "ContactID": BIG, "CampaignID": BIG}

    shown = [client.get(f"{BASE}/{name}/{BIG}").json() for name in ("contacts", "campaigns", "drafts", "messages")]

    assert [one["id"] for one in shown] == [str(BIG)] * 4
    assert (shown[1]["contact_list_id"], shown[2]["contact_list_id"], shown[3]["campaign_id"]) == (str(BIG),) * 3


def test_trap_3_addresses_that_mailjet_has_are_not_judged(client, account):
    account.add_contact("jo..hn@post", Name=7)

    assert data(client.get(f"{BASE}/contacts"))[0]["email"] == "jo..hn@post"
    assert client.get(f"{BASE}/contacts/jo..hn@post").status_code == 200


def test_trap_16_what_was_made_is_read_out_of_the_envelope(client):
    for path, body in (("contacts", {"email": "a@example.com"}), ("lists", {"name": "News"}), ("drafts", DRAFT)):
        assert client.post(f"{BASE}/{path}", json=body).json()["id"].isdigit()


def test_trap_24_lists_and_templates_of_a_draft_go_by_id_as_numbers(client, mailjet):
    client.post(f"{BASE}/drafts", json=DRAFT | {"template_id": 9})

    sent = mailjet.requests[0].json
    assert (sent["ContactsListID"], sent["TemplateID"]) == (7, 9)
    assert not {"ContactsList", "Template"} & set(sent)


def test_fact_4_1_a_template_is_only_linked_and_the_first_content_is_posted(client, mailjet):
    linked = client.post(f"{BASE}/drafts", json=DRAFT | {"template_id": "9"}).json()
    assert (linked["html"], [request.method for request in mailjet.requests].count("POST")) == (None, 1)

    mailjet.clear_requests()
    client.post(f"{BASE}/drafts", json=DRAFT | {"html": "H"})
    assert [(r.method, r.path.rpartition("/")[2]) for r in mailjet.requests if r.json] == [
        ("POST", "campaigndraft"), ("POST", "detailcontent")]  # fmt: skip


def test_fact_4_1_a_draft_cannot_be_deleted(client):
    assert client.delete(f"{BASE}/drafts/7").status_code == 405


def test_trap_25_after_a_partial_failure_nothing_is_sent_again(client, mailjet, account):
    """Mailjet's status is 400 as soon as one message fails, whatever became of the others."""
    bad = LETTER | {"from": {"email": "x@refused.example"}}

    answer = client.post(f"{BASE}/messages", json={"messages": [LETTER, bad]})

    assert [result["status"] for result in answer.json()["results"]] == ["accepted", "refused"]
    assert [(request.path, request.status) for request in mailjet.requests] == [("/v3.1/send", 400)]
    assert len(account.messages) == 1


@pytest.mark.parametrize(
    ("status", "code", "related", "told"),
    [
        (400, "sms-0001", [], (422, "validation_failed", [("", "sms-0001")])),
        (400, "sms-0002", ["To"], (422, "validation_failed", [("/to", "sms-0002")])),
        (400, "mj-0006", "Text", (422, "validation_failed", [("/text", "mj-0006")])),
        (401, "mj-0015", [], (502, "mailjet_unauthorized", [])),
        (403, "mj-0021", [], (502, "mailjet_forbidden", [])),
    ],
)
def test_trap_28_a_refused_sms_is_read_as_the_documents_have_it(client, mailjet, status, code, related, told):
    flat = {"ErrorIdentifier": "x", "ErrorCode": code, "StatusCode": status, "ErrorMessage": "no"}
    mailjet.fail_next(1, status, flat | {"ErrorRelatedTo": related})

    assert refusal(client.post(f"{BASE}/sms", json=TEXT)) == told


def test_fact_4_9_no_text_of_that_kind_is_an_empty_list(client, mailjet):
    mailjet.fail_next(1, 404, {"ErrorCode": "mj-0019", "StatusCode": 404, "ErrorMessage": "no"})

    assert data(client.get(f"{BASE}/sms")) == []


def test_fact_4_9_the_plus_of_a_number_is_escaped(client, mailjet):
    assert data(client.get(f"{BASE}/sms", params={"to": "+33612345678"})) == []

    assert last_call(mailjet).query["To"] == "+33612345678"  # bare, it would be a blank


def test_fact_4_7_a_message_whose_history_is_not_there_is_shown_without(client, mailjet, account):
    number = account.add_message(Subject="S")["ID"]
    mailjet.on_request = lambda call: "history" in call.path and mailjet.fail_next(1, 404)

    assert client.get(f"{BASE}/messages/{number}").json()["history"] == []


@pytest.mark.parametrize("cost", [0.5, "0.5", {"Value": "0.5"}])
def test_fact_4_9_a_cost_of_any_shape_is_read(client, account, cost):
    fill(account, 1)
    account.sms[0]["Cost"] = cost

    assert data(client.get(f"{BASE}/sms"))[0]["cost"]["value"] == 0.5
