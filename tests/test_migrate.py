"""Migrations: from nothing to the newest schema, without drift, by many at once, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlmodel import SQLModel

from app.db import Database
from app.migrate import is_current, is_described, migrate


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """One of its own, migrated just now: nobody else should meet what is done to its schema here."""
    opened = Database(database_url)
    migrate(opened)
    yield opened
    opened.close()


def test_the_migrated_schema_is_the_one_the_models_describe(database: Database) -> None:
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_name": is_described})

        assert compare_metadata(context, SQLModel.metadata) == []
        assert is_current(connection)


def test_many_processes_that_start_at_once_migrate_once(database_url: str) -> None:
    def start(_: int) -> tuple[str | None, str]:
        database = Database(database_url)
        try:
            return migrate(database)
        finally:
            database.close()

    with ThreadPoolExecutor(6) as starts:
        results = list(starts.map(start, range(6)))

    assert [found for found, _ in results].count(None) == 1


def test_a_newer_schema_is_left_alone(database: Database) -> None:
    database.write(lambda c: c.execute(sa.text("UPDATE alembic_version SET version_num = 'from_the_future'")))

    assert migrate(database) == ("from_the_future", "from_the_future")


def test_the_database_finds_no_fault_in_rows_of_any_table_without_rowids(sqlite_url: str) -> None:
    """SQLite 3.40's integrity_check tells NULLs that are none where such a table does not begin with its key."""
    database = Database(sqlite_url)
    migrate(database)
    tables = [t for t in SQLModel.metadata.sorted_tables if not t.dialect_options["sqlite"]["with_rowid"]]

    assert tables
    for table in tables:
        assert list(table.columns)[: len(table.primary_key.columns)] == list(table.primary_key.columns), table.name
    database.close()
