"""One migrated database of each kind for all tests of delivery, emptied before each: making them costs the most."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import structlog
from sqlalchemy.engine import Connection
from sqlmodel import SQLModel

from app.db import Database
from app.migrate import migrate


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """The log lines of a test."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def shared_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('delivery') / 'test.db'}"
    else:
        server, name = request.getfixturevalue("postgres_server"), f"delivery_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        url = f"{server.url}/{name}"
    opened = Database(url)
    migrate(opened)
    yield opened
    opened.close()


@pytest.fixture
def database(shared_database: Database) -> Database:
    """A migrated database of each kind, empty."""

    def empty(connection: Connection) -> None:
        for table in SQLModel.metadata.sorted_tables:
            connection.execute(table.delete())

    shared_database.write(empty)
    return shared_database
