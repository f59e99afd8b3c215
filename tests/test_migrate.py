"""Migrations: from nothing to the newest schema, without drift, by many at once, on both databases."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


# --- expand, then contract -------------------------------------------------------------------------------------------

VERSIONS = Path(__file__).parent.parent / "migrations/versions"


def contractions(source: str) -> list[str]:
    """What of a migration the release before would not survive. One that contracts says why it may, as `CONTRACTS`:
    the last release no longer uses what goes."""
    tree = ast.parse(source)
    if any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CONTRACTS" for node in tree.body):
        return []
    upgrade = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "upgrade")
    return [ast.unparse(call) for call in ast.walk(upgrade) if isinstance(call, ast.Call) and _contracts(call)]


def _contracts(call: ast.Call) -> bool:
    name, text = ast.unparse(call.func).rpartition(".")[2], ast.unparse(call)
    if name == "add_column":
        return "nullable=False" in text and "server_default" not in text
    if name == "alter_column":
        return bool(re.search(r"nullable=False|new_column_name|type_=", text))
    if name in ("execute", "text"):
        return bool(re.search(r"\b(DROP (TABLE|COLUMN)|RENAME|SET NOT NULL)\b", text, re.IGNORECASE))
    return name in ("drop_table", "drop_column", "rename_table")


@pytest.mark.parametrize(
    ("step", "is_fine"),
    [
        ('op.add_column("events", sa.Column("a", sa.Text()))', True),
        ('op.add_column("events", sa.Column("a", sa.Integer(), nullable=False, server_default="0"))', True),
        ('op.create_table("more", sa.Column("a", sa.Integer(), nullable=False))', True),
        ('op.drop_index("ix_old")', True),
        ('op.add_column("events", sa.Column("a", sa.Integer(), nullable=False))', False),
        ('op.drop_column("events", "raw")', False),
        ('op.alter_column("events", "raw", new_column_name="body")', False),
        ('op.execute("ALTER TABLE events DROP COLUMN raw")', False),
    ],
)
def test_what_breaks_the_version_before_is_told_from_what_does_not(step: str, is_fine: bool) -> None:
    assert (contractions(f"def upgrade():\n    {step}\n") == []) is is_fine
    assert contractions(f"CONTRACTS = 'unused since 0.2'\ndef upgrade():\n    {step}\n") == []


def test_no_migration_breaks_the_version_before_it() -> None:
    migrations = sorted(VERSIONS.glob("*.py"))

    assert migrations
    for migration in migrations:
        assert contractions(migration.read_text(encoding="utf-8")) == [], migration.name
