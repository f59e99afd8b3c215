"""Both ends of a connection to PostgreSQL give up on silence; that they do is played by `python -m tests.faults`."""

from __future__ import annotations

import psycopg
import pytest
import sqlalchemy as sa

from app.db import Database
from tests.conftest import MakeDatabase


@pytest.fixture(scope="module")
def url(make_database: MakeDatabase) -> str:
    return make_database("postgresql")


def test_the_server_gives_up_soon_on_a_client_that_is_gone_and_a_rollback_does_not_change_that(url: str) -> None:
    database = Database(url)
    try:
        for _ in range(2):
            with database.reader.connect() as connection:
                shown = [connection.execute(sa.text(f"SHOW {name}")).scalar_one() for name in _THEIRS]
                connection.rollback()
            assert shown == ["10000", "10", "3", "3"]
    finally:
        database.close()


@pytest.mark.parametrize(("query", "expected"), [("", "10000"), ("?tcp_user_timeout=3000", "3000")])
def test_our_end_gives_up_soon_too_and_what_the_url_says_wins(url: str, query: str, expected: str) -> None:
    database = Database(url + query)
    try:
        with database.reading() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            given = raw.info.get_parameters()
        assert (given["tcp_user_timeout"], given["keepalives_idle"]) == (expected, "10")
        assert f"tcp_user_timeout={expected}" in database.driver_url  # the connection that listens has it too
    finally:
        database.close()


@pytest.mark.parametrize("is_rested", [True, False])
def test_a_connection_is_asked_whether_it_is_there_only_after_a_rest(
    url: str, is_rested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.postgres.ASK_AFTER_SECONDS", 0.0 if is_rested else 3600.0)
    database = Database(url)
    asked: list[object] = []
    monkeypatch.setattr(database.writer.dialect, "do_ping", asked.append)
    try:
        used = {backend_of(database) for _ in range(3)}
    finally:
        database.close()
    assert len(used) == 1
    assert len(asked) == (2 if is_rested else 0)  # a new one is there


def test_a_connection_that_went_away_while_it_rested_is_replaced(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.postgres.ASK_AFTER_SECONDS", 0.0)
    database = Database(url)
    try:
        first = backend_of(database)
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", (first,))
        assert backend_of(database) != first
    finally:
        database.close()


def backend_of(database: Database) -> int:
    return database.write(lambda c: int(c.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()))


_THEIRS = ("tcp_user_timeout", "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count")
