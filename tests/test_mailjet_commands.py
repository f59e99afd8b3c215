"""The commands about what lives at Mailjet, on a terminal and in a pipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from app import mailjet_commands, terminal
from app.cli import cli
from app.simulator.account import Account
from app.simulator.mailjet import DEFAULT_KEYS, SMS_TOKEN, StandInMailjet
from app.simulator.server import LocalServer

Jethook = Callable[..., Result]
LETTER = {"from": {"email": "shop@example.com"}, "to": [{"email": "a@example.com"}], "text": "T"}


@pytest.fixture
def mailjet() -> StandInMailjet:
    return StandInMailjet()


@pytest.fixture
def account(mailjet: StandInMailjet) -> Account:
    return mailjet.account


@pytest.fixture
def jethook(mailjet: StandInMailjet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jethook]:
    """Runs a command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    for module in (terminal, mailjet_commands):
        monkeypatch.setattr(module, "configure_logs", lambda *_: None)  # of the whole process
    key, secret = next(iter(DEFAULT_KEYS.items()))
    with LocalServer(mailjet) as server, capture_logs():
        given = {"API_KEY": key, "SECRET_KEY": secret, "SMS_TOKEN": SMS_TOKEN, "BASE_URL": server.url}
        for name, value in given.items():
            monkeypatch.setenv(f"JETHOOK_CONNECTIONS__DEFAULT__{name}", value)
        yield lambda *arguments, body="": CliRunner().invoke(cli, list(arguments), input=body)


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for console in (terminal.out, terminal.err):
        monkeypatch.setattr(console, "_force_terminal", True)
        monkeypatch.setattr(console, "_width", 200)


def shown(done: Result) -> object:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_call_prints_what_mailjet_answers(jethook, mailjet, account):
    account.add_contact("a@example.com", ID=2**60 + 1)

    answer = shown(jethook("call", "get", "/v3/REST/contact?Limit=1&Sort=CreatedAt%20DESC"))

    assert answer["Data"][0]["ID"] == 2**60 + 1
    assert (mailjet.requests[0].method, mailjet.requests[0].query) == ("GET", {"Limit": "1", "Sort": "CreatedAt DESC"})


def test_a_call_sends_a_body_from_the_line_a_file_or_standard_input(jethook, mailjet, tmp_path):
    (tmp_path / "body.json").write_text('{"Name": "two"}')

    for given, body in (('{"Name": "one"}', ""), ("@body.json", ""), ("-", '{"Name": "three"}')):
        shown(jethook("call", "POST", "/v3/REST/contactslist", given, "--header", "X-Mine: 1", body=body))

    assert [request.json["Name"] for request in mailjet.requests] == ["one", "two", "three"]
    assert {request.headers["x-mine"] for request in mailjet.requests} == {"1"}


def test_a_call_that_mailjet_refuses_is_1_and_its_answer_is_printed(jethook):
    done = jethook("call", "GET", "/v3/REST/contact/17")

    assert (done.exit_code, done.stderr) == (1, "404\n")
    assert json.loads(done.stdout)["ErrorMessage"] == "Object not found"


@pytest.mark.parametrize(
    "arguments",
    [("call", "GET", "http://evil.example/"), ("call", "GET", "/v3", "--header", "Authorization: x"),
     ("call", "POST", "/v3", "{"), ("call", "POST", "/v3", "@nowhere.json"), ("contacts", "foo=1"), ("contacts", "foo"),
     ("contacts", "limit=5"), ("contacts", "create", '{"emil": "a@example.com"}'), ("drafts", "status=lost"),
     ("contacts", "--connection", "nobody"), ("sms", "send", '{"from": "Shop", "to": "0612345678", "text": "T"}')],
)  # fmt: skip
def test_what_does_not_fit_is_2_and_asks_mailjet_nothing(jethook, mailjet, arguments):
    done = jethook(*arguments)

    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr
    assert mailjet.requests == []


def test_mailjets_fault_is_1_and_a_sentence(jethook, mailjet):
    mailjet.keys.clear()

    done = jethook("contacts")

    assert (done.exit_code, done.stdout) == (1, "")
    assert "Check MJ_APIKEY_PUBLIC and MJ_APIKEY_PRIVATE" in done.stderr


def test_a_list_in_a_pipe_is_one_json_array(jethook, account, tmp_path):
    for n in range(60):
        account.add_contact(f"{n}@example.com", IsExcludedFromCampaigns=n < 3)

    assert len(shown(jethook("contacts"))) == 50
    assert [row["email"] for row in shown(jethook("contacts", "--limit", "2"))] == ["0@example.com", "1@example.com"]
    assert [row["id"] for row in shown(jethook("contacts", "list", "is_excluded=true"))] == ["100", "101", "102"]
    assert shown(jethook("campaigns", "sort=-id", "from_type=marketing")) == []
    assert shown(jethook("messages", "status=sent")) == []
    assert shown(jethook("drafts", "status=draft", "status=sent")) == []
    assert list(tmp_path.iterdir()) == []  # a list makes no database


def test_all_goes_through_every_page(jethook, mailjet, account):
    for n in range(2100):
        account.add_contact(f"{n}@example.com")

    assert len({row["id"] for row in shown(jethook("contacts", "--all"))}) == 2100
    assert [request.query.get("Offset") for request in mailjet.requests] == [None, "1000", "2000"]


def test_a_list_that_breaks_off_is_1_and_no_whole_array(jethook, mailjet, account):
    for n in range(1000):
        account.add_contact(f"{n}@example.com")
    mailjet.on_request = lambda call: mailjet.fail_next(1, 403) if "Offset" in call.query else None

    done = jethook("contacts", "--all")

    assert done.exit_code == 1
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.stdout)


@pytest.mark.usefixtures("on_a_terminal")
def test_a_terminal_gets_tables_a_bar_and_nothing_that_steers_it(jethook, mailjet, account):
    account.add_contact("a@example.com", Name="A \x1b[31m\x9b2J")
    account.add_contact("b@example.com", Name="[bold]")

    done = jethook("contacts", "--all")

    assert done.exit_code == 0
    header, first, second = done.stdout.splitlines()
    assert header.split() == ["id", "email", "name", "is_excluded", "delivered_count", "created_at", "updated_at"]
    assert first.split()[:4] == [
        "100",
        "a@example.com",
        "A",
        "\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}2J",
    ]
    assert "[bold]" in second
    assert "2 shown" in done.stderr
    assert mailjet.requests[0].query["countOnly"] == "1"  # what the bar is measured by


@pytest.mark.usefixtures("on_a_terminal")
def test_one_object_on_a_terminal_is_a_table_and_json_on_request(jethook, account):
    account.add_contact("a@example.com", Name="A")

    table, plain = jethook("contacts", "get", "a@example.com"), jethook("contacts", "get", "100", "--json")

    assert ["email", "a@example.com"] in [line.split() for line in table.stdout.splitlines()]
    assert json.loads(plain.stdout)["email"] == "a@example.com"


def test_contacts_and_drafts_are_made_and_changed(jethook, mailjet, account):
    made = shown(jethook("contacts", "create", '{"email": "a/b@example.com", "name": "A"}'))
    changed = shown(jethook("contacts", "update", "a/b@example.com", "-", body='{"name": "B"}'))
    assert (changed["id"], changed["name"]) == (made["id"], "B")
    assert jethook("contacts", "delete", "a/b@example.com").exit_code == 0
    assert jethook("contacts", "get", "nobody@example.com").exit_code == 1

    new = {"subject": "S", "locale": "en_US", "sender_email": "shop@example.com", "text": "T",
           "contact_list_id": str(account.add_list("News", SubscriberCount=1)["ID"])}  # fmt: skip
    draft = shown(jethook("drafts", "create", json.dumps(new)))["id"]
    assert shown(jethook("drafts", "update", draft, '{"html": "<p>"}'))["text"] == "T"
    for arguments in (["test", draft, "a@example.com", "b@example.com"], ["schedule", draft, "2099-01-01T00:00:00Z"],
                      ["unschedule", draft]):  # fmt: skip
        done = jethook("drafts", *arguments)
        assert (done.exit_code, done.output) == (0, "")
    assert shown(jethook("drafts", "send", draft))["status"] == "programmed"


def test_messages_are_sent_once_by_their_key_and_1_tells_that_not_all_were_accepted(jethook, account):
    body = json.dumps({"messages": [LETTER, LETTER | {"from": {"email": "x@refused.example"}}]})

    first, second = (jethook("messages", "send", "-", "--idempotency-key", "k1", body=body) for _ in range(2))

    assert (first.exit_code, second.exit_code) == (1, 1)
    assert first.stdout == second.stdout
    assert len(account.messages) == 1
    accepted, refused = json.loads(first.stdout)["results"]
    assert refused["errors"][0]["code"] == "send-0008"
    message_id = accepted["recipients"][0]["message_id"]
    assert shown(jethook("messages", "get", message_id))["history"][0]["type"] == "sent"


def test_a_text_is_sent_and_listed(jethook):
    sent = shown(jethook("sms", "send", '{"from": "Shop", "to": "+33612345678", "text": "T"}'))

    assert [text["message_id"] for text in shown(jethook("sms", "--all", "to=+33612345678"))] == [sent["message_id"]]
