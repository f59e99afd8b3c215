"""The service registers itself at a stand-in Mailjet, which then posts to it: the whole circle, over restarts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import EVENT_TYPES
from app.simulator.mailjet import StandInMailjet
from app.simulator.sender import Sender, SenderOptions
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from app.simulator.traffic import make_events
from tests.conftest import MakeDatabase
from tests.e2e.service import API_KEY, PASSWORD, ServiceProcess, id_of, until

KEY, SECRET = "e2e-mailjet-key", "e2e-mailjet-secret-Zk3"
ROTATED = "e2e-rotated-password-9pL"
WHSEC = "whsec_c2lnbmluZy1zZWNyZXQtb2YtdGhlLWUyZS10ZXN0cw=="
SECRETS = (SECRET, PASSWORD, ROTATED, API_KEY, WHSEC, "sink-token-4Tg")


@pytest.fixture
def mailjet() -> StandInMailjet:
    return StandInMailjet({KEY: SECRET})


@pytest.fixture
def sink() -> SampleSink:
    return SampleSink(secrets=[WHSEC])


@pytest.fixture
def service(
    mailjet: StandInMailjet, sink: SampleSink, folder: Path, make_database: MakeDatabase
) -> Iterator[ServiceProcess]:
    """Configured and not started; its log is searched for secrets at the end."""
    with LocalServer(mailjet) as mailjet_server, LocalServer(sink) as sink_server:
        service = ServiceProcess(folder, make_database("sqlite"))
        service.environment |= {
            "JETHOOK_PUBLIC_URL": service.url,
            "JETHOOK_LOG_LEVEL": "debug",
            "JETHOOK_REGISTER_EVERY_SECONDS": "1",
            "JETHOOK_CONNECTIONS__DEFAULT__API_KEY": KEY,
            "JETHOOK_CONNECTIONS__DEFAULT__SECRET_KEY": SECRET,
            "JETHOOK_CONNECTIONS__DEFAULT__BASE_URL": mailjet_server.url,
            "JETHOOK_SINKS__CRM__URL": sink_server.url.replace("://", "://user:sink-token-4Tg@"),
            "JETHOOK_SINKS__CRM__SECRETS": WHSEC,
        }
        try:
            yield service
        finally:
            service.close()
        logs = service.logs
        assert '"event"' in logs
        assert [secret for secret in SECRETS if secret in logs] == []


def test_callbacks_appear_at_the_start_and_follow_the_settings(
    mailjet: StandInMailjet, sink: SampleSink, service: ServiceProcess
) -> None:
    # Seven callbacks appear, and what Mailjet then posts to them arrives at the sink.
    service.start()
    until(lambda: len(mailjet.callbacks()) == 7, "seven callbacks", detail=lambda: service.logs[-3000:])
    first = {c.event_type: c.id for c in mailjet.callbacks()}
    assert first.keys() == set(EVENT_TYPES)
    assert {(c.url, c.version, c.status) for c in mailjet.callbacks()} == {(service.callback_url(), 2, "alive")}
    events = list(make_events(11, 120, 1_777_000_000))
    asyncio.run(send_all(mailjet, events))
    sink.wait_for_ids(len(events))
    assert sink.counts == {id_of(event): 1 for event in events}
    assert {request.signature_fault for request in sink.requests} == {None}
    shown = until(lambda: registered(service), "REST to show it")
    assert {(c["type"], c["state"]) for c in shown["callbacks"]} == {(t, "ok") for t in EVENT_TYPES}
    assert PASSWORD not in str(shown)

    # A restart changes nothing.
    mailjet.clear_requests()
    assert service.terminate() == 0
    service.start()
    until(lambda: len(mailjet.requests) >= 4, "looks after the restart")
    assert registered(service)
    assert {request.method for request in mailjet.requests} == {"GET"}

    # A new password and another public URL become changes of the same callbacks.
    assert service.terminate() == 0
    public = service.url.replace("127.0.0.1", "localhost")
    service.environment |= {
        "JETHOOK_PUBLIC_URL": public,
        "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": f"{ROTATED},{PASSWORD}",
    }
    mailjet.clear_requests()
    service.start()
    url = public.replace("://", f"://jethook:{ROTATED}@") + "/webhooks/orders"
    until(lambda: {c.url for c in mailjet.callbacks()} == {url}, "the new URL", detail=lambda: mailjet.requests)
    assert {c.event_type: c.id for c in mailjet.callbacks()} == first
    writes = [request for request in mailjet.requests if request.method != "GET"]
    assert [request.method for request in writes] == ["PUT"] * 7
    # What Mailjet still repeats under the old password is taken too.
    assert service.post({"event": "open", "time": 1_777_500_000, "MessageID": 1}).status_code == 200


def test_a_mailjet_that_is_down_at_the_start_stops_nothing_and_is_caught_up(
    mailjet: StandInMailjet, sink: SampleSink, service: ServiceProcess
) -> None:
    mailjet.set_down(True)
    service.start()
    until(lambda: mailjet.requests, "the first try")

    numbers = itertools.count(1)
    assert service.post({"event": "sent", "time": 1_777_500_000, "MessageID": next(numbers)}).status_code == 200
    sink.wait_for_ids(1)
    assert service.get("/readyz")["status"] == "ok"
    assert mailjet.callbacks() == []

    mailjet.set_down(False)
    assert service.http.post("/v1/webhooks/orders/register").status_code in (200, 502)
    until(lambda: len(mailjet.callbacks()) == 7, "the callbacks", seconds=40, detail=lambda: service.logs[-3000:])


def test_a_foreign_callback_keeps_its_slot_and_is_told(mailjet: StandInMailjet, service: ServiceProcess) -> None:
    foreign = mailjet.put_callback(None, "open", "https://crm:foreign-pass-8Kd@crm.example.com/in")
    service.start()

    def states() -> dict[str, str]:
        return {c["type"]: c["state"] for c in service.get("/v1/webhooks/orders")["callbacks"]}

    until(lambda: states() == dict.fromkeys(EVENT_TYPES, "ok") | {"open": "foreign"}, "REST to tell", detail=states)
    assert registered(service, "degraded")
    assert mailjet.find_callback(None, "open") == foreign
    assert len(mailjet.callbacks()) == 7
    assert "foreign-pass-8Kd" not in str(service.get("/v1/webhooks/orders")) + service.logs
    assert service.metric('jethook_registration_ok{event="open",webhook="orders"}') == 0


def registered(service: ServiceProcess, state: str = "ok") -> dict | None:
    shown = service.get("/v1/webhooks/orders")
    return shown if shown["registration"] == state else None


async def send_all(mailjet: StandInMailjet, events: list) -> None:
    async with Sender(mailjet, options=SenderOptions(retry_seconds=1, group_seconds=0.2)) as sender:
        await sender.send(events)
        counts = await sender.drain()
    assert (counts.given_up, counts.unwanted) == (0, 0)
