import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, Counter

from app.db import Database
from app.health import Readiness, build_router
from app.http import install_problem_handlers
from app.migrate import migrate


class Service:
    """What the rest of the service tells, for a test to change."""

    stopping = False
    confused = False

    def tell_registration(self) -> dict[str, Any]:
        if self.confused:
            raise RuntimeError("no idea")
        return {"state": "degraded"}

    def tell_components(self) -> dict[str, Any]:
        if self.confused:
            raise RuntimeError("no idea")
        return {"worker": {"state": "ok"}}


@pytest.fixture
def service() -> Service:
    return Service()


Start = Callable[[Database], TestClient]


@pytest.fixture
def start(service: Service) -> Start:
    def build(database: Database) -> TestClient:
        registry = CollectorRegistry()
        Counter("jethook_things", "things", registry=registry).inc(3)
        app = FastAPI()
        router = build_router(
            database,
            registry,
            registration_state=service.tell_registration,
            stopping=lambda: service.stopping,
            components=service.tell_components,
        )
        app.include_router(router)
        install_problem_handlers(app)
        return TestClient(app)

    return build


@pytest.fixture
def client(start: Start, database: Database) -> Iterator[TestClient]:
    with start(database) as opened:
        yield opened


def test_a_working_service_is_ready_and_tells_of_registration(client):
    response = client.get("/readyz")

    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "checks": {"database": "ok", "schema": "ok", "stopping": False},
        "registration": {"state": "degraded"},
    }


def test_health_tells_of_every_part(client):
    body = client.get("/healthz").json()

    assert (body["status"], body["components"]) == ("ok", {"worker": {"state": "ok"}})


def test_looking_leaves_no_trace(client, database):
    client.get("/readyz")

    with database.reading() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM leases")).scalar_one() == 0


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/metrics"])
def test_a_probe_may_ask_by_head(client, path):
    assert client.head(path).status_code == 200


def test_metrics_are_those_of_the_registry(client):
    response = client.get("/metrics")

    assert response.headers["content-type"].startswith("text/plain; version=")
    assert "jethook_things_total 3.0" in response.text


def test_a_stopping_service_is_alive_and_not_ready(client, service):
    service.stopping = True

    response = client.get("/readyz")

    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["checks"]["stopping"] is True
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert client.get("/healthz").status_code == 503
    assert client.get("/livez").json() == {"status": "ok"}


def test_a_database_without_our_schema_is_not_ready_until_it_has(start, database_url):
    database = Database(database_url)
    with start(database) as client:
        before = client.get("/readyz")
        migrate(database)
        after = client.get("/readyz")
    database.close()

    assert (before.status_code, before.json()["checks"]["schema"]) == (503, "outdated")
    assert (after.status_code, after.json()["registration"]) == (200, {"state": "degraded"})


def test_a_database_that_is_gone_is_not_ready(client, database):
    database.close()

    response = client.get("/readyz")

    assert (response.status_code, response.json()["checks"]["database"]) == (503, "error")
    assert client.get("/livez").status_code == 200


def test_a_part_that_cannot_tell_its_state_makes_nothing_unready(client, service):
    service.confused = True

    assert client.get("/readyz").json()["registration"] == {"state": "error"}
    assert client.get("/healthz").json()["components"] == {"state": "error"}


async def look_twice(readiness: Readiness) -> list[str]:
    return [(await readiness.look()).database for _ in range(2)]


def test_a_database_that_hangs_is_noticed_in_time_and_asked_once(database):
    release, asked = threading.Event(), []

    def hang(connection: sa.Connection) -> str:
        asked.append(connection)
        release.wait(10)
        return "ok"

    readiness = Readiness(database, lambda: False, timeout_seconds=0.05)
    readiness._probe = hang

    async def run() -> None:
        assert await look_twice(readiness) == ["timeout", "timeout"]
        release.set()
        while (await readiness.look()).database != "ok":
            pass

    asyncio.run(run())
    assert len(asked) <= 2


def test_health_needs_no_key_and_is_documented(client):
    document = client.get("/openapi.json").json()

    assert {"/livez", "/readyz", "/healthz", "/metrics"} <= document["paths"].keys()
    assert all("head" not in path for path in document["paths"].values())
