"""A rolling restart runs two versions on one database: a migration never breaks the version before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlmodel import SQLModel

from app.audit.service import audit
from app.clock import utc_now
from app.db import Database
from app.main import create_app
from app.migrate import migrate
from app.settings import load_settings
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from tests.conftest import MakeDatabase
from tests.e2e.mixed_versions import code_of, last_release, run
from tests.e2e.service import until

KEY = {"authorization": "Bearer full"}


@pytest.mark.timeout(150)
def test_the_last_release_works_on_the_schema_of_this_one(folder: Path, make_database: MakeDatabase) -> None:
    release = last_release()
    if release is None:
        pytest.skip("nothing is released yet")

    assert run(code_of(release, folder / "older"), make_database("postgresql"), folder) == []


@pytest.fixture
def expanded(database_url: str) -> Iterator[Database]:
    """A database as the next release's migration may leave it: more columns and tables, another revision."""
    database = Database(database_url)
    migrate(database)
    database.write(_expand)
    yield database
    database.close()


def _expand(connection: sa.Connection) -> None:
    for name in SQLModel.metadata.tables:
        connection.execute(sa.text(f"ALTER TABLE {name} ADD COLUMN next_words TEXT"))
        connection.execute(sa.text(f"ALTER TABLE {name} ADD COLUMN next_number BIGINT NOT NULL DEFAULT 7"))
    connection.execute(sa.text("CREATE TABLE next_things (id BIGINT PRIMARY KEY)"))
    connection.execute(sa.text("UPDATE alembic_version SET version_num = '0002_of_the_next_release'"))


def test_this_release_works_on_the_schema_that_the_next_one_has_expanded(expanded: Database, database_url: str) -> None:
    """No statement of ours counts on the number of columns, or on there being none that it does not know."""
    now = int(utc_now().timestamp())
    events = [
        {"event": kind, "time": now - n, "MessageID": 19421777396190490 + n, "email": f"{n}@example.com"}
        for n, kind in enumerate(["sent", "open", "click", "spam", "unsub", "blocked"])
    ]
    bounce = {"event": "bounce", "time": now, "MessageID": 5, "email": "gone@example.com", "hard_bounce": True}
    sink = SampleSink()
    with LocalServer(sink) as server:
        settings = load_settings(
            {"JETHOOK_DATABASE_URL": database_url, "JETHOOK_API_KEYS": "full", "JETHOOK_SINKS__CRM__URL": server.url,
             "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": "pw"}, env_file=None,
        )  # fmt: skip
        with TestClient(create_app(settings)) as client:
            answer = client.post("/webhooks/orders", json=[*events, bounce, {"no": "event"}], auth=("jethook", "pw"))
            assert answer.json() == {"received": 8, "stored": 7, "duplicates": 0, "quarantined": 1}
            sink.wait_for_ids(7, timeout=20)
            _ask_for_everything(client)
            assert client.delete("/v1/recipients/0@example.com", headers=KEY).status_code in (200, 202)
            replay = client.post("/v1/replays", json={"sink": "crm", "filter": {"type": "bounce"}}, headers=KEY)
            until(lambda: client.get(replay.headers["location"], headers=KEY).json()["state"] == "done", "the replay")
            until(lambda: client.get("/v1/sinks/crm", headers=KEY).json()["backlog"] == 0, "the sink to have all")
    with expanded.reading() as connection:
        assert audit(connection).differences == []


def _ask_for_everything(client: TestClient) -> None:
    for path in (
        "/readyz", "/v1/events", "/v1/feed", "/v1/deliveries", "/v1/sinks", "/v1/webhooks", "/v1/quarantine",
        "/v1/suppressions", "/v1/recipients/gone@example.com", "/v1/messages/5", "/v1/stats?interval=day",
        "/v1/exports/events", "/v1/completeness", "/v1/replays", "/v1/erasures",
    ):  # fmt: skip
        answer = client.get(path, headers=KEY)
        assert answer.status_code == 200, (path, answer.text)
