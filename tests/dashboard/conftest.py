from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlmodel import SQLModel

from app.main import Service, create_app
from app.settings import load_settings

KEYS = {
    "JETHOOK_API_KEYS": "full-key-1",
    "JETHOOK_READ_API_KEYS": "read-key-1",
    "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": "pw",
    "JETHOOK_SINKS__CRM__URL": "http://127.0.0.1:9/crm",
    "JETHOOK_SINKS__CRM__RETRY_SCHEDULE_SECONDS": "86400",
    "JETHOOK_PUBLIC_URL": "https://hooks.example.com",
}


KEPT = ("alembic_version", "secrets", "leases", "sink_states")


@pytest.fixture(scope="module")
def environment(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("dashboard") / "test.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    # What the tests put in is from a day that is long past by now.
    return {**KEYS, "JETHOOK_DATABASE_URL": f"sqlite:///{path}", "JETHOOK_RETENTION_DAYS": "0"}


@pytest.fixture(scope="module")
def running(environment: dict[str, str]) -> Iterator[TestClient]:
    """One service for a file: starting one takes longer than most tests."""
    with TestClient(create_app(load_settings(environment, env_file=None)), follow_redirects=False) as client:
        yield client


@pytest.fixture
def anybody(running: TestClient) -> TestClient:
    """A browser that is not signed in, and a service that knows of nothing yet."""
    running.cookies.clear()
    running.app.state.service.database.write(_empty)  # type: ignore[attr-defined]
    return running


def _empty(connection: sa.Connection) -> None:
    for name, table in SQLModel.metadata.tables.items():
        if name not in KEPT:
            connection.execute(table.delete())
    connection.execute(sa.text("UPDATE sink_states SET paused = false, paused_reason = NULL"))


@pytest.fixture
def service(anybody: TestClient) -> Service:
    return anybody.app.state.service  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def reader(anybody: TestClient) -> TestClient:
    """One signed in with a key that may only read."""
    return signed_in(anybody, "read-key-1")


@pytest.fixture
def person(anybody: TestClient) -> TestClient:
    """One signed in with a full key."""
    return signed_in(anybody, "full-key-1")


def signed_in(client: TestClient, key: str) -> TestClient:
    assert client.post("/dashboard/sign-in", data={"key": key}).status_code == 303
    return client


def csrf_of(client: TestClient) -> str:
    page = client.get("/").text
    return page.partition('name="csrf" value="')[2].partition('"')[0]


def press(client: TestClient, path: str, **fields: str):
    """Send a form of ours, as a page would."""
    return client.post(path, data={"csrf": csrf_of(client), **fields})
