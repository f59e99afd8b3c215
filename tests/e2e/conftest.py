from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

MakeDatabase = Callable[[], str]


@pytest.fixture(scope="module")
def make_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Makes an empty database of a kind and gives its URL; for as long as a module lasts."""

    def make(kind: str) -> str:
        if kind == "sqlite":
            folder: Path = tmp_path_factory.mktemp("database")
            return f"sqlite:///{folder / 'e2e.db'}"
        server = request.getfixturevalue("postgres_server")
        name = f"e2e_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"{server.url}/{name}"

    return make


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def module_database_url(request: pytest.FixtureRequest, make_database: Callable[[str], str]) -> str:
    """One database of each kind for the module."""
    return make_database(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
