"""Draft campaigns and sent campaigns."""

from __future__ import annotations

import pytest

from tests.connector.conftest import BASE, data, last_call, refusal

DRAFTS, CAMPAIGNS = f"{BASE}/drafts", f"{BASE}/campaigns"
PLAIN = {"Limit": "50", "Sort": "ID"}
FULL = {
    "title": "Spring", "subject": "Hello", "locale": "en_US", "sender_name": "Shop",
    "sender_email": "shop@example.com", "reply_email": "r@example.com", "contact_list_id": "7", "segmentation_id": "8",
    "template_id": "9", "edit_mode": "html2", "is_starred": True, "html": "<p>H</p>", "text": "T", "mjml": "<mjml/>",
}  # fmt: skip


def make(client, **more):
    response = client.post(DRAFTS, json=FULL | more)
    assert response.status_code == 201, response.text
    return response.json()


@pytest.mark.parametrize(
    ("query", "reaches"),
    [
        ("contact_list_id=7", {"ContactsList": "7"}),
        ("delivered_after=2026-05-03T12:00:00%2B02:00", {"DeliveredAt": "2026-05-03T10:00:00Z"}),
        *((f"edit_mode={mode}", {"EditMode": mode}) for mode in ("tool2", "html2", "mjml")),
        *((f"{ours}={value}", {theirs: value}) for value in ("true", "false") for ours, theirs in (
            ("is_archived", "IsArchived"), ("is_campaign", "IsCampaign"), ("is_deleted", "IsDeleted"),
            ("is_handled", "IsHandled"), ("is_starred", "IsStarred"), ("is_modified", "Modified"))),
        *((f"status={word}", {"Status": number}) for word, number in (
            ("ax_cancelled", "-3"), ("deleted", "-2"), ("archived", "-1"), ("draft", "0"), ("programmed", "1"),
            ("sent", "2"), ("ax_tested", "3"), ("ax_selected", "4"), ("ax_sent_lost", "5"), ("ax_sent_won", "6"),
            ("-2", "-2"), ("2", "2"))),
        ("status=draft&status=programmed", {"Status": "0,1"}),
        ("subject=Hello", {"Subject": "Hello"}),
        ("template_id=9", {"Template": "9"}),
    ],
)  # fmt: skip
def test_each_filter_of_drafts_reaches_mailjet(client, mailjet, query, reaches):
    assert data(client.get(f"{DRAFTS}?{query}")) == []

    assert last_call(mailjet).path == "/v3/REST/campaigndraft"
    assert last_call(mailjet).query == PLAIN | reaches


@pytest.mark.parametrize(
    ("query", "reaches"),
    [
        ("contact_list_id=7", {"ContactsListID": "7"}),
        ("from_email=shop@example.com", {"From": "shop@example.com"}),
        *((f"from_type={word}", {"FromType": n}) for word, n in (
            ("transactional", "1"), ("marketing", "2"), ("unknown", "3"), ("3", "3"))),
        ("since=2026-05-03T10:00:00Z", {"FromTS": "1777802400"}),
        ("until=2026-05-03T10:00:00Z", {"ToTS": "1777802400"}),
        ("is_deleted=true", {"IsDeleted": "true"}),
        ("is_newsletter_tool=false", {"IsNewsletterTool": "false"}),
        ("is_starred=true", {"IsStarred": "true"}),
        *((f"period={word}", {"Period": word.title()}) for word in ("day", "week", "month", "year")),
        ("sort=id", {"Sort": "ID"}),
        ("sort=-id", {"Sort": "ID DESC"}),  # trap 32: the stand-in gets a space, not a plus
    ],
)  # fmt: skip
def test_each_filter_of_campaigns_reaches_mailjet(client, mailjet, query, reaches):
    assert data(client.get(f"{CAMPAIGNS}?{query}")) == []

    assert last_call(mailjet).path == "/v3/REST/campaign"
    assert last_call(mailjet).query == PLAIN | reaches


@pytest.mark.parametrize("path", [f"{DRAFTS}?status=lost", f"{DRAFTS}?edit_mode=tool", f"{DRAFTS}?subject=",
                                  f"{DRAFTS}?is_starred=2", f"{CAMPAIGNS}?sort=created_at", f"{CAMPAIGNS}?period=hour",
                                  f"{CAMPAIGNS}?sort=id&sort=-id"])  # fmt: skip
def test_a_filter_that_does_not_fit_is_refused(client, mailjet, path):
    assert refusal(client.get(path))[:2] == (422, "validation_failed")
    assert mailjet.requests == []


def test_a_campaign_is_shown_in_our_words(client, account):
    account.campaigns[2**60] = {
        "ID": 2**60, "CampaignType": 2, "CreatedAt": "2026-05-03T10:00:00Z", "SendStartAt": "", "FromEmail": "s@e.com",
        "IsDeleted": "false", "ListID": "7", "Status": 2, "Subject": "S", "CustomValue": "mj.nl=44098",
    }  # fmt: skip

    campaign = client.get(f"{CAMPAIGNS}/{2**60}").json()

    assert campaign == data(client.get(CAMPAIGNS))[0]
    assert (campaign["id"], campaign["from_type"], campaign["status"], campaign["started_at"]) == (
        str(2**60), "marketing", "sent", None)  # fmt: skip
    assert (campaign["is_deleted"], campaign["contact_list_id"], campaign["segmentation_id"]) == (False, "7", None)
    assert refusal(client.get(f"{CAMPAIGNS}/17"))[:2] == (404, "campaign_not_found")


def test_a_draft_is_made_with_its_content(client, mailjet):
    draft = make(client)

    assert {name: draft[name] for name in FULL} == FULL
    assert (draft["status"], draft["delivered_at"]) == ("draft", None)
    assert [request.json for request in mailjet.requests if request.json] == [
        {
            "Title": "Spring", "Subject": "Hello", "Locale": "en_US", "Sender": "Shop", "SenderName": "Shop",
            "SenderEmail": "shop@example.com", "ReplyEmail": "r@example.com", "ContactsListID": 7, "SegmentationID": 8,
            "TemplateID": 9, "EditMode": "html2", "IsStarred": True,
        },
        {"Html-part": "<p>H</p>", "Text-part": "T", "MJMLContent": "<mjml/>"},
    ]  # fmt: skip


@pytest.mark.parametrize("has_put", [True, False])
def test_a_part_of_the_content_that_is_left_out_is_kept(client, mailjet, has_put):
    draft = make(client)
    if not has_put:
        mailjet.fail_next(1, 405, method="PUT")

    changed = client.patch(f"{DRAFTS}/{draft['id']}", json={"text": "new"}).json()

    assert (changed["html"], changed["text"], changed["mjml"]) == ("<p>H</p>", "new", "<mjml/>")


def test_a_change_names_only_what_was_given(client, mailjet):
    draft = make(client)
    mailjet.clear_requests()

    changed = client.patch(f"{DRAFTS}/{draft['id']}", json={"title": "New", "contact_list_id": 12}).json()

    assert mailjet.requests[0].json == {"Title": "New", "ContactsListID": 12}
    assert (changed["title"], changed["contact_list_id"], changed["subject"]) == ("New", "12", "Hello")


def sent_to(mailjet, method: str):
    return [request.json for request in mailjet.requests if request.method == method]


def test_a_new_address_of_the_sender_leaves_its_name_alone(client, mailjet):
    given = {name: value for name, value in FULL.items() if name != "sender_name"}
    named, nameless = make(client), client.post(DRAFTS, json=given).json()
    mailjet.clear_requests()

    for draft in (named, nameless):
        client.patch(f"{DRAFTS}/{draft['id']}", json={"sender_email": "new@example.com"})
    client.patch(f"{DRAFTS}/{nameless['id']}", json={"sender_name": "N"})

    assert sent_to(mailjet, "PUT") == [
        {"SenderEmail": "new@example.com"}, {"SenderEmail": "new@example.com", "Sender": "new@example.com"},
        {"SenderName": "N", "Sender": "N"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("action", "body", "told"),
    [("/test", {"recipients": [{"email": "a@example.com"}]}, "the test was sent"), ("/send", None, "on its way")],
)
def test_what_was_done_is_told_also_if_the_draft_cannot_be_read_then(client, mailjet, action, body, told):
    path = f"{DRAFTS}/{make(client)['id']}"
    mailjet.fail_next(9, 500, method="GET")

    problem = client.post(path + action, json=body).json()

    assert problem["code"] == "mailjet_unavailable"
    assert told in problem["detail"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [({"subject": ""}, "/subject"), ({"locale": "english"}, "/locale"), ({"contact_list_id": "x"}, "/contact_list_id"),
     ({"contact_list_id": None}, "/contact_list_id"), ({"edit_mode": "tool"}, "/edit_mode"),
     ({"status": 1}, "/status")],
)  # fmt: skip
def test_a_draft_that_does_not_fit_is_told_by_its_pointer(client, mailjet, change, pointer):
    for response in (client.post(DRAFTS, json=FULL | change), client.patch(f"{DRAFTS}/7", json=change)):
        status, _, errors = refusal(response)
        assert (status, errors[0][0]) == (422, pointer)
    assert mailjet.requests == []


def test_what_mailjet_misses_in_a_draft_is_a_422_with_our_pointer(client):
    bare = {"subject": "S", "locale": "en_US"}

    assert refusal(client.post(DRAFTS, json=bare)) == (422, "validation_failed", [("/sender_name", "mailjet_refused")])


def test_a_draft_is_tested_scheduled_taken_back_and_sent(client, mailjet):
    path = f"{DRAFTS}/{make(client)['id']}"

    tested = client.post(f"{path}/test", json={"recipients": [{"email": "a@example.com", "name": "A"}]})
    assert tested.json()["status"] == "draft"
    assert mailjet.requests[-3].json == {"Recipients": [{"Email": "a@example.com", "Name": "A"}]}

    scheduled = client.post(f"{path}/schedule", json={"at": "2030-01-01T12:00:00+02:00"})
    assert scheduled.json()["status"] == "programmed"
    assert mailjet.requests[-3].json == {"Date": "2030-01-01T10:00:00Z"}

    assert client.delete(f"{path}/schedule").status_code == 204
    assert client.get(path).json()["status"] == "draft"
    mailjet.lose_answers(1, method="POST")
    assert client.post(f"{path}/send").json()["status"] == "programmed"
    assert [r.path.rpartition("/")[2] for r in mailjet.requests].count("send") == 1


def test_a_draft_that_is_not_ready_or_not_there_is_told(client):
    bare = client.post(DRAFTS, json={"subject": "S", "locale": "en_US", "sender_name": "Shop"}).json()

    assert refusal(client.post(f"{DRAFTS}/{bare['id']}/send"))[:2] == (422, "validation_failed")
    assert refusal(client.post(f"{DRAFTS}/1/send"))[:2] == (404, "draft_not_found")
    assert refusal(client.get(f"{DRAFTS}/x"))[:2] == (404, "draft_not_found")
