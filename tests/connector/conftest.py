"""The connector's routes over one database and a stand-in Mailjet, over real HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.connector.doors import Doors
from app.connector.sending import Sending
from app.connector.service import Connector
from app.db import Database
from app.http import ApiKeys
from app.mailjet.door import RetryPolicy
from app.settings import Settings, load_settings
from app.simulator.account import Account
from app.simulator.mailjet import SMS_TOKEN, ApiRequest, StandInMailjet
from app.simulator.server import LocalServer
from tests.conftest import empty
from tests.rest import app_of

KEY, SECRET = "key", "mailjet-secret"
BASE = "/v1/connections/shop"
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
AT_ONCE = RetryPolicy(attempts=3, total_seconds=10, wait_initial_seconds=0, wait_max_seconds=0, jitter_seconds=0)


@pytest.fixture
def mailjet() -> StandInMailjet:
    return StandInMailjet({KEY: SECRET})


@pytest.fixture
def server(mailjet: StandInMailjet) -> Iterator[LocalServer]:
    with LocalServer(mailjet) as server:
        yield server


@pytest.fixture
def account(mailjet: StandInMailjet) -> Account:
    return mailjet.account


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """SQLite: most of the connector stores nothing. What does is tested on both, see `BOTH`."""
    if getattr(request, "param", "sqlite") == "sqlite":
        path = tmp_path / "test.db"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        url = f"sqlite:///{path}"
    else:
        kept: Database = request.getfixturevalue("migrated_postgres")
        kept.write(empty)
        url = kept.writer.url.render_as_string(hide_password=False)
    opened = Database(url)
    yield opened
    opened.close()


def settings_for(url: str, **more: str) -> Settings:
    environment = {
        "JETHOOK_CONNECTIONS__SHOP__API_KEY": KEY,
        "JETHOOK_CONNECTIONS__SHOP__SECRET_KEY": SECRET,
        "JETHOOK_CONNECTIONS__SHOP__SMS_TOKEN": SMS_TOKEN,
        "JETHOOK_CONNECTIONS__SHOP__BASE_URL": url,
        "JETHOOK_CONNECTIONS__BARE__BASE_URL": url,
    }
    return load_settings(environment | more, env_file=None)


def connector_of(
    server: LocalServer, database: Database, *, owner: str = "me", timeout_seconds: float = 5
) -> Connector:
    settings = settings_for(server.url)
    doors = Doors(settings.connections, retry=AT_ONCE, timeout_seconds=timeout_seconds)
    connector = Connector(settings, database, owner=owner, observe=lambda operation, code: None, doors=doors)
    connector._sending = Sending(database, owner, settle=timedelta(0))  # this Mailjet does nothing late
    return connector


@pytest.fixture
def connector(server: LocalServer, database: Database) -> Connector:
    return connector_of(server, database)


class Part:
    """A part of the connector of the test that runs."""

    connector: Connector

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(Part.connector, self._name), name)


@cache
def the_app() -> FastAPI:
    """Built once: that takes longer than most tests do."""
    parts = {name: Part(name) for name in ("doors", "subscriptions", "_sending", "_database")}
    routes = Connector.build_router(cast("Connector", SimpleNamespace(**parts)), ApiKeys(["full"], ["read"]))
    return app_of(routes)


@pytest.fixture
def client(connector: Connector) -> Iterator[TestClient]:
    Part.connector = connector
    with TestClient(the_app(), headers={"authorization": "Bearer full"}) as opened:
        yield opened
        assert opened.portal is not None
        opened.portal.call(connector.doors.aclose)  # its connections belong to the client's event loop


def last_call(mailjet: StandInMailjet) -> ApiRequest:
    return mailjet.requests[-1]


def data(response: Any) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["data"]


def refusal(response: Any) -> tuple[int, str, list[tuple[str, str]]]:
    """(status, code, [(pointer, code)])."""
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json", problem
    return response.status_code, problem["code"], [(e["pointer"], e["code"]) for e in problem.get("errors") or []]
