"""The whole service: what is posted suppresses, and sinks that ask for it hear of each change once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import load_settings
from tests.e2e.service import SinkFarm, until
from tests.suppressions.streams import START, payload

AUTH = ("jethook", "a-password")
HARD = {"event": "bounce", "hard_bounce": True, "error": "user unknown"}


@pytest.fixture
def farm() -> Iterator[SinkFarm]:
    with SinkFarm(["crm", "pager", "mail"]) as farm:
        yield farm


@pytest.fixture
def service(migrated_url: str, farm: SinkFarm) -> Iterator[TestClient]:
    environment = {
        "JETHOOK_DATABASE_URL": migrated_url,
        "JETHOOK_API_KEYS": "full",
        "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": AUTH[1],
        "JETHOOK_SINKS__CRM__URL": farm.url("crm"),
        "JETHOOK_SINKS__CRM__EVENTS": "suppression.*",
        "JETHOOK_SINKS__CRM__ORDERED_BY": "recipient",
        "JETHOOK_SINKS__PAGER__URL": farm.url("pager"),
        "JETHOOK_SINKS__PAGER__EVENTS": "jethook.*",
        "JETHOOK_SINKS__MAIL__URL": farm.url("mail"),
    }
    app = create_app(load_settings(environment, env_file=None))
    with TestClient(app, headers={"authorization": "Bearer full"}) as client:
        yield client


def post(service: TestClient, *told: dict[str, Any]) -> None:
    assert service.post("/webhooks/orders", content=json.dumps(told), auth=AUTH).status_code == 200


def heard(farm: SinkFarm, name: str) -> list[dict[str, Any]]:
    return [request.json() for request in farm[name].requests]


def test_a_sink_hears_of_each_change_once_however_often_the_event_comes(service, farm):
    told = [payload(HARD, "a@example.com", START + n, n) for n in range(1, 5)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: post(service, told[n % 4], told[n // 2 % 4]), range(12)))
    post(service, payload({"event": "sent"}, "a@example.com", START))
    lifted = {"email": "a@example.com", "comment": "works again"}
    assert service.post("/v1/suppressions/lift", json=lifted).json()["lifted"]
    until(lambda: len(heard(farm, "crm")) == 2, "both pieces of news")
    until(lambda: len(heard(farm, "mail")) == 5, "the mail")

    added, removed = heard(farm, "crm")
    (cause,) = service.get("/v1/events", params={"type": "bounce", "order": "asc", "limit": 1}).json()["data"]
    assert added.pop("event_id") in {e["id"] for e in service.get("/v1/events?type=bounce").json()["data"]}
    assert removed.pop("event_id") == cause["id"]
    assert [body["event"] for body in (added, removed)] == ["suppression.added", "suppression.removed"]
    for body in (added, removed):
        wanted = {"email": "a@example.com", "reason": "hard_bounce", "scope": "address"}
        assert {name: body[name] for name in wanted} == wanted
    assert (removed["since"], removed["comment"]) == ("2026-04-24T03:06:41Z", "works again")
    assert {body["event"] for body in heard(farm, "mail")} == {"bounce", "sent"}
    assert heard(farm, "pager") == []
    told_of = service.get("/v1/recipients/a@example.com").json()
    assert told_of["counts"] == {"bounce": 4, "sent": 1}


def test_news_are_not_held_back(service, farm):
    post(service, *(payload(HARD, f"p{n}@example.com", START) for n in range(40)))

    until(lambda: len(heard(farm, "crm")) == 40, "all of them")

    assert {body["email"] for body in heard(farm, "crm")} == {f"p{n}@example.com" for n in range(40)}
