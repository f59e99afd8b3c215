"""The whole service tells of itself: a sink goes down and comes back, registration breaks and heals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.simulator.mailjet import StandInMailjet
from app.simulator.server import LocalServer
from tests.e2e.service import ServiceProcess, SinkFarm, until

KEY, SECRET = "e2e-mailjet-key", "e2e-mailjet-secret-Zk3"
SINKS = {
    "CRM": {"RETRY_SCHEDULE_SECONDS": ",".join(["0.1"] * 60), "MIN_BACKOFF_SECONDS": "0", "BREAKER_FAILURES": "3",
            "BREAKER_COOLDOWN_SECONDS": "0.3"},
    "PAGER": {"EVENTS": "jethook.*"},
    "MIXED": {"EVENTS": "bounce,jethook.sink.opened", "WEBHOOKS": "orders", "ENVELOPE": "jethook"},
    "BOUNCES": {"EVENTS": "bounce"},
}  # fmt: skip


@pytest.fixture
def mailjet() -> StandInMailjet:
    return StandInMailjet({KEY: SECRET})


@pytest.fixture
def farm() -> Iterator[SinkFarm]:
    with SinkFarm([name.lower() for name in SINKS]) as farm:
        yield farm


@pytest.fixture
def service(
    mailjet: StandInMailjet, farm: SinkFarm, folder: Path, module_database_url: str
) -> Iterator[ServiceProcess]:
    with LocalServer(mailjet) as mailjet_server:
        service = ServiceProcess(folder, module_database_url)
        service.environment |= {
            "JETHOOK_PUBLIC_URL": service.url,
            "JETHOOK_REGISTER_EVERY_SECONDS": "1",
            "JETHOOK_CONNECTIONS__DEFAULT__API_KEY": KEY,
            "JETHOOK_CONNECTIONS__DEFAULT__SECRET_KEY": SECRET,
            "JETHOOK_CONNECTIONS__DEFAULT__BASE_URL": mailjet_server.url,
        }
        for name, options in SINKS.items():
            url = farm.url(name.lower())
            service.environment |= {f"JETHOOK_SINKS__{name}__{key}": v for key, v in {"URL": url, **options}.items()}
        with service:
            yield service


def heard(farm: SinkFarm, name: str) -> list[str]:
    """The types a sink got, in the order they came."""
    return [request.headers["x-jethook-event"] for request in farm[name].requests]


def test_a_service_alerts_through_its_own_relay(
    mailjet: StandInMailjet, farm: SinkFarm, service: ServiceProcess
) -> None:
    # A sink goes down and comes back.
    farm["crm"].answer_always(500)
    for number in range(5):
        service.post({"event": "bounce", "time": 1_777_802_400 + number, "MessageID": 7, "email": "a@example.com"})
    until(lambda: "jethook.sink.opened" in heard(farm, "pager"), "the opening", detail=lambda: service.logs[-3000:])
    farm["crm"].answer_always(200)
    until(lambda: heard(farm, "pager")[-1] == "jethook.sink.recovered", "the recovery")

    # A person pauses and resumes it.
    for act in ("pause", "pause", "resume"):
        assert service.http.post(f"/v1/sinks/crm/{act}").status_code == 200
        assert service.http.post(f"/v1/sinks/pager/{act}").status_code == 200
    until(lambda: len(heard(farm, "pager")) == 4, "the pause")

    # Somebody takes a callback, and gives it back.
    (ours,) = [callback for callback in mailjet.callbacks() if callback.event_type == "open"]
    mailjet.put_callback(KEY, "open", "https://somebody.example.com/else")
    until(lambda: heard(farm, "pager")[-1] == "jethook.registration.failed", "the fault")
    mailjet.put_callback(KEY, "open", ours.url, version=2)
    until(lambda: heard(farm, "pager")[-1] == "jethook.registration.recovered", "its end")

    told = [
        "jethook.sink.opened", "jethook.sink.recovered", "jethook.sink.paused", "jethook.sink.resumed",
        "jethook.registration.failed", "jethook.registration.recovered",
    ]  # fmt: skip
    # Two come at once: order is promised for none. The pager heard nothing about itself, and each thing once.
    assert sorted(heard(farm, "pager")) == sorted(told)
    assert heard(farm, "bounces") == ["bounce"] * 5
    assert set(heard(farm, "crm")) == {"bounce"}
    until(lambda: len(heard(farm, "mixed")) == 6, "both kinds")
    (mixed,) = [r.json() for r in farm["mixed"].requests if r.headers["x-jethook-webhook"] == "jethook"]
    assert (mixed["type"], mixed["webhook"], mixed["raw"]["sink"]) == ("jethook.sink.opened", "jethook", "crm")

    # REST shows them to who asks for them, and they are replayed like others, but to whom they are about.
    def types(query: str) -> list[str]:
        return [event["type"] for event in service.get(f"/v1/events?{query}")["data"]]

    assert types("") == ["bounce"] * 5
    ours_too = [*told, "jethook.sink.paused", "jethook.sink.resumed"]  # those about the pager, owed to nobody
    assert sorted(types("webhook=jethook")) == sorted(ours_too)
    assert types("type=jethook.sink.opened") == ["jethook.sink.opened"]
    deliveries = service.get(f"/v1/events/{mixed['id']}/deliveries")["data"]
    assert [(d["sink"], d["state"]) for d in deliveries] == [("mixed", "delivered"), ("pager", "delivered")]
    assert [count(service, name) for name in ("pager", "bounces", "crm")] == [6, 0, 0]


def count(service: ServiceProcess, sink: str) -> Any:
    """How many operator events a replay would give a sink."""
    asked = {"sink": sink, "dry_run": True, "filter": {"webhook": "jethook"}}
    response = service.http.post("/v1/replays", json=asked)
    assert response.status_code == 200, response.text
    return response.json()["count"]
