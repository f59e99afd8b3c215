from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient

from app.clock import utc_now
from app.db import Database
from app.dispatch import sink_states
from app.operator_events import Change
from app.settings import Settings
from app.sinks.routes import build_router
from tests.factories import NOON, make_delivery
from tests.rest import KEYS, asking_of

SETTINGS = Settings(
    webhooks={"orders": {}, "news": {}},
    sinks={
        "crm": {"url": "https://user:hush@crm.example.com/in?token=hush", "events": "bounce", "webhooks": "orders",
                "headers": {"authorization": "Bearer hush"}, "secrets": "whsec_" + "A" * 32},
        "all": {"url": "http://all.example.com/", "envelope": "cloudevents", "batch_size": 50},
    },
)  # fmt: skip
on_one_database = pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)  # where it makes no difference
CALLS = [("GET", ""), ("GET", "/crm"), ("POST", "/crm/pause"), ("POST", "/crm/resume"), ("POST", "/crm/test")]


class Control:
    """The worker as the routes see it; remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.here: dict[str, Any] = {"breaker": "closed", "paused": False}

    def snapshot(self, sink: str) -> dict[str, Any]:
        return self.here

    def paused(self, sink: str, reason: str | None) -> None:
        self.told.append(("paused", sink, reason))

    def resumed(self, sink: str) -> None:
        self.told.append(("resumed", sink))

    async def test(self, sink: str) -> dict[str, Any]:
        self.told.append(("test", sink))
        return {"outcome": "http_4xx", "status": 418, "error": "the sink answered 418", "duration_ms": 1.5,
                "response_excerpt": "teapot"}  # fmt: skip


class Herald:
    """Remembers what is to be stored."""

    def __init__(self) -> None:
        self.stored: list[Change] = []

    def tell(self, change: Change) -> None:
        raise AssertionError("a pause has a transaction of its own")

    def store(self, connection: Any, change: Change) -> None:
        assert connection.in_transaction()
        self.stored.append(change)


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def herald() -> Herald:
    return Herald()


@pytest.fixture
def client(database: Database, control: Control, herald: Herald) -> Iterator[TestClient]:
    database.write(lambda c: sink_states.remember_sinks(c, SETTINGS.sinks))
    with asking_of(routers, database, control, herald) as opened:
        yield opened


def routers(database: Any, control: Any, herald: Any) -> tuple[APIRouter, ...]:
    return (build_router(SETTINGS, database, KEYS, control, herald),)


def paused(database: Database) -> dict[str, str | None]:
    with database.reading() as connection:
        return sink_states.paused_sinks(connection)


def test_sinks_are_listed_by_name_in_one_page(client: TestClient) -> None:
    page = client.get("/v1/sinks").json()

    assert [s["name"] for s in page["data"]] == ["all", "crm"]
    assert (page["next_cursor"], page["has_more"]) == (None, False)


@on_one_database
def test_a_sink_shows_its_settings_without_secrets(client: TestClient) -> None:
    response = client.get("/v1/sinks/crm")
    shown, other = response.json(), client.get("/v1/sinks/all").json()

    assert "hush" not in response.text
    assert "AAAA" not in response.text
    assert shown["url"].startswith("https://user:***@crm.example.com/in")
    assert (shown["webhooks"], shown["events"], shown["envelope"]) == (["orders"], ["bounce"], "mailjet")
    assert other["webhooks"] == ["news", "orders"]
    assert other["events"] == ["sent", "open", "click", "bounce", "spam", "blocked", "unsub"]
    assert (other["envelope"], other["batch_size"]) == ("cloudevents", 50)
    assert (shown["state"], shown["breaker"], shown["paused_reason"]) == ("active", "closed", None)


def test_a_sink_shows_how_it_is_doing(client: TestClient, database: Database, control: Control) -> None:
    for state, count in (("pending", 3), ("dead", 2), ("delivered", 1)):
        for _ in range(count):
            make_delivery(database, state=state, next_attempt_at=utc_now())
    database.write(
        lambda c: sink_states.record_results(
            c, {"crm": {"last_success_at": NOON, "last_error": "it hung", "last_error_at": NOON}}
        )
    )
    control.here = {"breaker": "half_open", "paused": False}

    shown = client.get("/v1/sinks/crm").json()

    assert (shown["backlog"], shown["dead"], shown["breaker"]) == (3, 2, "half_open")
    assert 0 <= shown["oldest_overdue_seconds"] < 60
    assert (shown["last_success_at"], shown["last_error"]) == ("2026-05-03T12:00:00Z", "it hung")


def test_a_pause_is_written_down_and_told_to_the_worker(
    client: TestClient, database: Database, control: Control
) -> None:
    shown = client.post("/v1/sinks/crm/pause")

    assert shown.status_code == 200
    assert (shown.json()["state"], shown.json()["paused_reason"]) == ("paused", "paused by hand")
    assert paused(database) == {"crm": "paused by hand"}
    assert control.told == [("paused", "crm", "paused by hand")]
    assert client.post("/v1/sinks/crm/pause").json() == shown.json()


def test_a_resume_is_written_down_and_told_to_the_worker(
    client: TestClient, database: Database, control: Control
) -> None:
    database.write(lambda c: sink_states.set_paused(c, "crm", paused=True, reason="the sink answered 410"))

    shown = client.post("/v1/sinks/crm/resume").json()

    assert (shown["state"], shown["paused_reason"]) == ("active", None)
    assert paused(database) == {}
    assert control.told == [("resumed", "crm")]


def test_a_pause_and_a_resume_are_operator_events_and_a_second_one_is_not(client: TestClient, herald: Herald) -> None:
    for act in ("resume", "pause", "pause", "resume", "resume"):
        assert client.post(f"/v1/sinks/crm/{act}").status_code == 200

    assert [(change.type, change.sink, change.error) for change in herald.stored] == [
        ("jethook.sink.paused", "crm", "paused by hand"),
        ("jethook.sink.resumed", "crm", None),
    ]


@on_one_database
def test_a_test_tells_what_came_of_it(client: TestClient, control: Control) -> None:
    response = client.post("/v1/sinks/crm/test")

    assert response.status_code == 200
    assert response.json() == {
        "outcome": "http_4xx", "status": 418, "error": "the sink answered 418", "duration_ms": 1.5,
        "response_excerpt": "teapot",
    }  # fmt: skip
    assert control.told == [("test", "crm")]


def test_a_removed_sink_is_shown_while_it_is_owed_something(client: TestClient, database: Database) -> None:
    database.write(lambda c: sink_states.remember_sinks(c, ["gone", "forgotten"]))
    make_delivery(database, sink="gone")

    listed = {s["name"]: s for s in client.get("/v1/sinks").json()["data"]}

    assert listed.keys() == {"all", "crm", "gone"}
    gone = listed["gone"]
    assert (gone["state"], gone["url"], gone["envelope"], gone["backlog"]) == ("removed", None, None, 1)
    assert client.get("/v1/sinks/gone").json() | {"oldest_overdue_seconds": 0} == gone | {"oldest_overdue_seconds": 0}
    assert client.get("/v1/sinks/forgotten").json()["state"] == "removed"


@on_one_database
@pytest.mark.parametrize("act", ["pause", "resume", "test"])
@pytest.mark.parametrize("name", ["gone", "nobody", "CRM", "%00", "a" * 500])
def test_only_a_configured_sink_can_be_steered(
    act: str, name: str, client: TestClient, database: Database, control: Control
) -> None:
    database.write(lambda c: sink_states.remember_sinks(c, ["gone"]))

    response = client.post(f"/v1/sinks/{name}/{act}")

    assert (response.status_code, response.json()["code"]) == (404, "sink_not_found")
    assert len(response.text) < 1000
    assert control.told == []
    assert paused(database) == {}


@on_one_database
@pytest.mark.parametrize("name", ["nobody", "%00", "..", "é"])
def test_an_unknown_sink_is_not_found(client: TestClient, name: str) -> None:
    response = client.get(f"/v1/sinks/{name}")

    assert response.status_code in (404, 405)
    assert response.headers["content-type"] == "application/problem+json"


@on_one_database
@pytest.mark.parametrize(("method", "path"), CALLS)
def test_reading_needs_any_key_and_changing_a_full_one(
    method: str, path: str, client: TestClient, control: Control, database: Database
) -> None:
    def status(key: str) -> int:
        return client.request(method, f"/v1/sinks{path}", headers={"authorization": key}).status_code

    assert status("Bearer wrong") == 401
    assert status("Bearer read") == (200 if method == "GET" else 403)
    assert control.told == []
    assert paused(database) == {}
