"""Both databases, real: SQLite in a temporary folder, PostgreSQL 18 from a package, one server for the session."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from app.db import Database
from app.migrate import migrate
from tests.postgres import PostgresServer, running_postgres

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the session; its data goes with it."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def new_postgres(postgres_server: PostgresServer) -> Callable[[], str]:
    """Makes an empty database and gives its URL."""

    def make() -> str:
        name = f"t{next(_numbers)}"
        with psycopg.connect(f"{postgres_server.url}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"{postgres_server.url}/{name}"

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    make: Callable[[], str] = request.getfixturevalue("new_postgres")
    return make()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file to copy: migrating for each test would take longer than most tests."""
    path = tmp_path_factory.mktemp("template") / "migrated.db"
    _migrate_once(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: PostgresServer) -> str:
    """The name of a migrated database to copy."""
    name = "migrated"
    with psycopg.connect(f"{postgres_server.url}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    _migrate_once(f"{postgres_server.url}/{name}")
    return name


def _migrate_once(url: str) -> None:
    database = Database(url)
    migrate(database)
    database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated database of each kind."""
    if request.param == "sqlite":
        path = tmp_path / "test.db"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        return f"sqlite:///{path}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    template, name = request.getfixturevalue("migrated_postgres"), f"t{next(_numbers)}"
    with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE {template} STRATEGY FILE_COPY')
    return f"{server.url}/{name}"


@pytest.fixture
def database(migrated_url: str) -> Iterator[Database]:
    """A migrated database of each kind."""
    opened = Database(migrated_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'test.db'}"
