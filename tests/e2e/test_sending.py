"""The connector in a real process: killed in the middle of a send, and contacts that become events on their way out."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import httpx2
import pytest

from app.simulator.mailjet import DEFAULT_KEYS, StandInMailjet
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from tests.e2e.service import ServiceProcess, audit_differences, until

API_KEY, SECRET_KEY = next(iter(DEFAULT_KEYS.items()))
MESSAGES = "/v1/connections/default/messages"


def environment(mailjet_url: str) -> dict[str, str]:
    return {
        "JETHOOK_CONNECTIONS__DEFAULT__API_KEY": API_KEY,
        "JETHOOK_CONNECTIONS__DEFAULT__SECRET_KEY": SECRET_KEY,
        "JETHOOK_CONNECTIONS__DEFAULT__BASE_URL": mailjet_url,
    }


def test_a_service_that_is_killed_while_it_sends_sends_no_message_twice(folder: Path, sqlite_url: str):
    mailjet = StandInMailjet()
    bad = {"email": "x@refused.example"}
    letters = [
        {"from": bad if n in (3, 30, 49) else {"email": "shop@example.com"}, "to": [{"email": f"{n}@example.com"}],
         "text": "T", "custom_id": f"order-{n}"}
        for n in range(50)
    ]  # fmt: skip
    request = {"json": {"messages": letters}, "headers": {"idempotency-key": "k1"}}
    killed = threading.Event()
    with LocalServer(mailjet) as server, ServiceProcess(folder, sqlite_url, environment(server.url)) as service:

        def kill(call) -> None:
            if call.path == "/v3.1/send" and not killed.is_set():
                killed.set()
                os.kill(service.pid, signal.SIGKILL)  # Mailjet does what it was asked, and has nobody to tell

        mailjet.on_request = kill
        with pytest.raises(httpx2.TransportError):
            service.http.post(MESSAGES, **request)
        service.kill()
        service.start()
        results = service.http.post(MESSAGES, **request).json()["results"]
        again = service.http.post(MESSAGES, **request).json()["results"]

    assert killed.is_set()
    assert again == results
    assert [n for n, result in enumerate(results) if result["status"] == "refused"] == [3, 30, 49]
    assert sum(result["status"] == "accepted" for result in results) == 47
    assert {error["code"] for n in (3, 30, 49) for error in results[n]["errors"]} == {"send-0008"}
    told = {one["message_id"] for result in results for one in result["recipients"]}
    assert told == {str(number) for number in mailjet.account.messages}
    assert sorted(m["CustomID"] for m in mailjet.account.messages.values()) == sorted(
        f"order-{n}" for n in range(50) if n not in (3, 30, 49)
    )


def test_watched_contacts_reach_a_sink_and_the_feed(folder: Path, sqlite_url: str):
    mailjet, sink = StandInMailjet(), SampleSink()
    mailjet.account.add_contact("old@example.com")
    with LocalServer(mailjet) as server, LocalServer(sink) as sink_server:
        more = {
            "JETHOOK_WATCHES__PEOPLE__CONTACTS": "both", "JETHOOK_WATCHES__PEOPLE__EVERY_SECONDS": "1",
            "JETHOOK_SINKS__CRM__URL": sink_server.url, "JETHOOK_SINKS__CRM__EVENTS": "contact_created,contact_updated",
        }  # fmt: skip
        with ServiceProcess(folder, sqlite_url, environment(server.url) | more) as service:
            until(lambda: [r for r in mailjet.requests if r.path.endswith("/contact")], "a first look")
            until(lambda: service.log_lines("watch.looked"), "its end")
            contact = mailjet.account.add_contact("new@example.com")
            until(lambda: sink.distinct == 1, "the new contact at the sink")
            mailjet.account.change_contact(contact, Name="N")
            until(lambda: sink.distinct == 2, "its change at the sink")
            feed = service.get("/v1/feed")["data"]

    assert [(event["type"], event["webhook"], event["email"]) for event in feed] == [
        ("contact_created", "people", "new@example.com"), ("contact_updated", "people", "new@example.com")]  # fmt: skip
    assert [request.json()["event"] for request in sink.requests] == ["contact_created", "contact_updated"]
    assert audit_differences(sqlite_url) == []
