"""Any call: passed through to the connection's own host, and to nowhere else."""

from __future__ import annotations

import base64

import pytest

from app.connector.calls import _check_path
from tests.connector.conftest import BASE, KEY, SECRET, last_call, refusal

CALL = f"{BASE}/call"


def test_a_call_is_passed_through_and_its_answer_back(client, mailjet, account):
    account.add_contact("a@example.com", ID=2**62 + 1)

    answer = client.post(CALL, json={
        "path": "/v3/REST/contact", "query": {"Limit": 5, "IsExcludedFromCampaigns": False},
        "headers": {"x-mine": "1"},
    }).json()  # fmt: skip

    assert (answer["status"], answer["body"]["Data"][0]["ID"]) == (200, 2**62 + 1)
    assert answer["headers"]["content-type"].startswith("application/json")
    sent = last_call(mailjet)
    assert sent.query == {"Limit": "5", "IsExcludedFromCampaigns": "false"}
    assert sent.headers["x-mine"] == "1"
    assert sent.headers["authorization"] == "Basic " + base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()


def test_what_mailjet_refuses_is_passed_back_too(client, mailjet):
    body = {"Url": "https://x.example", "EventType": "open", "Big": 2**80}
    made = client.post(CALL, json={"method": "POST", "path": "/v3/REST/eventcallbackurl", "body": body}).json()
    assert made["status"] == 400
    assert last_call(mailjet).body.endswith(b"1208925819614629174706176}")

    lost = client.post(CALL, json={"path": "/v3/REST/nothing"}).json()
    assert (lost["status"], lost["body"]["ErrorInfo"]) == (500, "EFPWebError")
    assert len(mailjet.requests) == 2
    gone = client.post(CALL, json={"method": "DELETE", "path": "/v3/REST/eventcallbackurl/open%7Cfalse"}).json()
    assert (gone["status"], gone["body"]["ErrorMessage"]) == (404, "Object not found")
    assert last_call(mailjet).path.endswith("/open|false")


@pytest.mark.parametrize(
    "path",
    ["https://evil.example/x", "//evil.example/x", "v3/REST/contact", "/\\evil.example", "/v3/../../x", "/v3/%2e%2e/x",
     "/v3/%252e%252e/x", "/v3/REST/contact?Limit=1", "/v3/REST/contact#x", "/v3/ REST", "/v3\r\nhost: evil", "",
     "@evil.example/", "/%5cevil", "/v3//x", "/v3%2F/REST/apikey", "/%2Fv3/REST/apikey"],
)  # fmt: skip
def test_a_path_that_could_lead_elsewhere_is_refused(client, mailjet, path):
    assert refusal(client.post(CALL, json={"path": path}))[2][0][0] == "/path"
    assert mailjet.requests == []


def test_escaped_keys_of_mailjet_are_paths():
    for path in ("/v3/REST/contact/a%2Fb%40example.com", "/v3/REST/contact/ü@example.com", "/@evil.example/"):
        assert _check_path(path) == path


@pytest.mark.parametrize("name", ["Authorization", "proxy-authorization", "HOST", "cookie", "content-length"])
def test_headers_that_are_ours_are_refused(client, mailjet, name):
    assert refusal(client.post(CALL, json={"path": "/v3/REST/contact", "headers": {name: "x"}}))[2] == [
        ("/headers", "header_not_allowed")]  # fmt: skip
    assert mailjet.requests == []


def test_a_key_that_may_only_read_can_get_what_holds_no_secrets(client):
    read = {"authorization": "Bearer read"}

    def ask(**call: str) -> int:
        return client.post(CALL, json=call, headers=read).status_code

    assert ask(path="/v3/REST/contact") == 200
    assert ask(path="/v3/REST/contact", method="PUT") == 403
    assert ask(path="/v3/rest/EventCallbackUrl") == 403
    assert ask(path="/v3/REST/%61pikey") == 403
    assert (
        client.post(CALL, json={"path": "/v3/REST/contact"}, headers={"authorization": "Bearer x"}).status_code == 401
    )


@pytest.mark.parametrize(
    "more",
    [
        *({"headers": {name: "DELETE"}} for name in ("X-HTTP-Method-Override", "x-http-method", "X-Method-Override")),
        {"headers": {"X-Original-URL": "/v3/REST/apikey"}}, {"headers": {"x-mine": "1"}},
        {"body": {"Name": "B"}}, {"body": ""},
        *({"path": f"/v3/REST/contact{slash}apikey"} for slash in ("%2F", "%2f", "%5C", "%252f", "%25255C")),
        {"path": "/v3/REST;x/apikey"}, {"path": "/v3/REST/%2561pikey"},
    ],
)  # fmt: skip
def test_a_key_that_may_only_read_has_no_way_round_that(client, mailjet, more):
    read = {"authorization": "Bearer read"}

    refused = client.post(CALL, json={"path": "/v3/REST/contact"} | more, headers=read)

    assert refused.status_code in (403, 422), refused.text
    assert mailjet.requests == []


def test_a_key_that_may_only_read_can_say_what_it_wants_to_read(client, mailjet):
    headers = {"Accept": "text/csv", "accept-language": "fr", "content-type": "application/json", "X-Request-Id": "r1"}

    call = {"path": "/v3/REST/contact/a%40example.com", "headers": headers, "query": {"Limit": 5}}
    assert client.post(CALL, json=call, headers={"authorization": "Bearer read"}).status_code == 200

    assert {name: last_call(mailjet).headers.get(name.lower()) for name in headers} == headers


def test_a_mailjet_that_is_gone_is_told(client, server):
    server.stop()

    assert refusal(client.post(CALL, json={"path": "/v3/REST/contact"}))[:2] == (502, "mailjet_unavailable")
