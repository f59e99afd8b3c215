"""Both databases, real: SQLite in a temporary folder, PostgreSQL 18 from a package, one server for each test process.

A database is made from nothing where a test is about that. The others get a migrated one: of SQLite a copy of a file,
of PostgreSQL the process's only one, emptied, because making one there costs twenty times as much and 8 MB of disk.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hypothesis
import psycopg
import pytest
import sqlalchemy as sa
import structlog
from sqlmodel import SQLModel

from app.db import Database
from app.migrate import migrate
from tests.postgres import PostgresServer, running_postgres

# A slow machine is no finding: how long an example takes says more about what else runs there.
hypothesis.settings.register_profile(
    "suite", max_examples=50, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("suite")

# Every client makes a TLS context, which reads the machine's hundred authorities for 20 ms. Here is one that has signed
# nothing and whose key nobody has; a test that speaks TLS brings its own.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("authority.pem"))

LARGE_BYTES = 256 * 1024

SIZES = sa.text(
    "SELECT relname, pg_relation_size(oid) + coalesce((SELECT sum(pg_relation_size(relid))"
    " FROM pg_partition_tree(oid)), 0) FROM pg_class"
    " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
)

MakeDatabase = Callable[..., str]


def pytest_collection_finish() -> None:
    """What collecting has made stays to the end; looked through again and again it took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(autouse=True)
def _logs_of_its_own() -> Iterator[None]:
    """A command that ran within a test leaves the process's log at the test's standard error, which is closed then."""
    yield
    root = logging.getLogger()
    ours = [handler for handler in root.handlers if type(handler) is logging.StreamHandler]
    for handler in ours:
        root.removeHandler(handler)
    if ours:
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the session; its data goes with it."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def make_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MakeDatabase:
    """Makes a database of a kind, "sqlite" or "postgresql", and gives its URL: empty, or a copy of one nobody uses."""
    numbers = itertools.count(1)

    def make(kind: str, copy_of: str = "") -> str:
        if kind == "sqlite":
            path = tmp_path_factory.mktemp("database") / "test.db"
            if copy_of:
                shutil.copy(copy_of.removeprefix("sqlite:///"), path)
            return f"sqlite:///{path}"
        server: PostgresServer = request.getfixturevalue("postgres_server")
        name, template = f"t{next(numbers)}", copy_of.rpartition("/")[2] or "template1"
        with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return f"{server.url}/{name}"

    return make


@pytest.fixture(scope="session")
def make_migrated(make_database: MakeDatabase) -> MakeDatabase:
    """The same with our tables in it, a copy each time: that takes a third of what migrating does."""

    @cache
    def migrated(kind: str) -> str:
        url = make_database(kind)
        opened = Database(url)
        migrate(opened)
        opened.close()
        return url

    return lambda kind: make_database(kind, migrated(kind))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, make_database: MakeDatabase) -> str:
    """An empty database of each kind."""
    return make_database(request.param)


@pytest.fixture(scope="session")
def migrated_sqlite(make_migrated: MakeDatabase) -> Path:
    """A migrated file to copy: migrating for each test would take longer than most tests."""
    return Path(make_migrated("sqlite").removeprefix("sqlite:///"))


@pytest.fixture(scope="session")
def migrated_postgres(make_migrated: MakeDatabase) -> Iterator[Database]:
    """A migrated database to empty."""
    opened = Database(make_migrated("postgresql"))
    yield opened
    opened.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated database of each kind without a row."""
    if request.param == "sqlite":
        path = tmp_path / "test.db"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        return f"sqlite:///{path}"
    kept: Database = request.getfixturevalue("migrated_postgres")
    kept.write(empty)
    return kept.writer.url.render_as_string(hide_password=False)


def empty(connection: sa.Connection) -> None:
    """DELETE takes a fraction of a millisecond, TRUNCATE 30; but what many rows leave behind would show in the plans of
    later tests. Two questions in all: one for each table would take longer than many a test."""
    sizes = {name: size for name, size in connection.execute(SIZES)}  # noqa: C416  rows of two
    assert sizes.keys() == {*SQLModel.metadata.tables, "alembic_version"}, (
        "a test has changed the tables of all: it needs a database_url of its own"
    )
    written = [table.name for table in SQLModel.metadata.sorted_tables if sizes[table.name]]
    statements = ["SET LOCAL lock_timeout = '10s'"]
    statements += [f"{'TRUNCATE' if sizes[name] > LARGE_BYTES else 'DELETE FROM'} {name}" for name in written]
    statements += ["SELECT setval('events_seq_seq', 1, false)"]
    connection.exec_driver_sql("; ".join(statements))


@pytest.fixture
def database(migrated_url: str) -> Iterator[Database]:
    """The same, opened."""
    opened = Database(migrated_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'test.db'}"
