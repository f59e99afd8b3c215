from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError

from app.clock import from_micros, rfc3339, rfc3339_of_micros, to_micros
from app.db import Database, chunks, insert_missing, insert_new, is_outage, read_many
from app.errors import DatabaseFault
from app.models import Event, Secret
from app.views import EVENT_COLUMNS
from tests.delivery.support import event_tuple, run
from tests.factories import event_values, insert

secrets: Any = Secret.__table__  # type: ignore[attr-defined]
events: Any = Event.__table__  # type: ignore[attr-defined]
moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001


# --- time ------------------------------------------------------------------------------------------------------------


@given(moments)
def test_microseconds_are_exact_both_ways(moment: datetime) -> None:
    assert from_micros(to_micros(moment)) == moment


@given(moments)
def test_a_time_reads_the_same_from_microseconds(moment: datetime) -> None:
    assert rfc3339_of_micros(to_micros(moment)) == rfc3339(moment)


@given(moments, moments)
def test_microseconds_sort_as_the_times_do(one: datetime, other: datetime) -> None:
    assert (to_micros(one) < to_micros(other)) == (one < other)


def test_a_time_of_another_zone_is_stored_as_the_same_moment(database: Database) -> None:
    tokyo = datetime(2026, 5, 3, 19, 0, 0, 123456, tzinfo=timezone(timedelta(hours=9)))
    table = sa.Table("times", sa.MetaData(), sa.Column("at", events.c.occurred_at.type))

    def store(connection: Connection) -> list[datetime | None]:
        table.create(connection)
        connection.execute(table.insert(), [{"at": tokyo}, {"at": None}])
        stored = list(connection.execute(sa.select(table.c.at).order_by(table.c.at.is_(None))).scalars())
        table.drop(connection)
        return stored

    found, none = database.write(store)
    assert found == tokyo
    assert found is not None
    assert found.tzinfo is UTC
    assert none is None


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 5, 3, 10, tzinfo=UTC), "2026-05-03T10:00:00Z"),
        (datetime(2026, 5, 3, 10, 0, 0, 5, tzinfo=UTC), "2026-05-03T10:00:00.000005Z"),
        (datetime(2026, 5, 3, 10, tzinfo=timezone(timedelta(hours=2))), "2026-05-03T08:00:00Z"),
    ],
)
def test_times_are_shown_in_utc(moment: datetime, text: str) -> None:
    assert rfc3339(moment) == text


# --- rows ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(), max_size=700), st.sampled_from([2, 128, 512]))
def test_chunks_hold_everything_in_order_in_few_sizes(rows: list[int], most: int) -> None:
    parts = list(chunks(rows, most))

    assert [row for part in parts for row in part] == rows
    assert all(0 < len(part) <= most for part in parts)
    assert len(parts) <= len(rows) // most + 2


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 1000])
def test_missing_rows_are_inserted_and_known_ones_left_alone(database: Database, count: int) -> None:
    old = [(f"n{n}", "old") for n in range(0, count, 3)]
    rows = [(f"n{n}", "new") for n in range(count)]

    def work(connection: Connection) -> tuple[int, int, int]:
        first = insert_missing(connection, secrets, ("name", "value"), old)
        return first, insert_missing(connection, secrets, ("name", "value"), rows), 0

    first, second, _ = database.write(work)
    assert (first, second) == (len(old), count - len(old))
    with database.reading() as connection:
        found = {r.name: r.value for r in connection.execute(sa.select(secrets))}
    assert found == dict(rows) | dict(old)


@pytest.mark.parametrize("count", [1, 129, 400])
def test_new_keys_are_told(database: Database, count: int) -> None:
    rows = [event_tuple() for _ in range(count)]
    known, later = rows[::4], rows

    def insert(some: list[tuple[Any, ...]]) -> set[str]:
        return database.write(lambda c: insert_new(c, events, EVENT_COLUMNS, some))

    assert insert(known) == {row[0] for row in known}
    assert insert(later) == {row[0] for row in rows} - {row[0] for row in known}
    assert insert(later) == set()
    assert insert([]) == set()


@pytest.mark.parametrize(
    "text", ["", "NULL", 'a"b\\c', "{1,2}", "é\u2028\U0001f600", "tab\tand\nline", "\\u0041", "%s"]
)
def test_text_is_stored_as_it_is(database: Database, text: str) -> None:
    row = event_tuple(raw=text, reason=text, custom_id=text)
    assert database.write(lambda c: insert_new(c, events, EVENT_COLUMNS, [row])) == {row[0]}

    with database.reading() as connection:
        found = connection.execute(sa.select(events)).mappings().one()
    assert {found[name] for name in ("raw", "reason", "custom_id")} == {text}


def test_every_kind_of_value_is_stored_as_it_is(database: Database) -> None:
    kinds = sa.Table(
        "kinds", sa.MetaData(), sa.Column("key", sa.Text(), primary_key=True), sa.Column("number", sa.BigInteger()),
        sa.Column("share", sa.Float()), sa.Column("yes", sa.Boolean()), sa.Column("bytes", sa.LargeBinary()),
        sa.Column("given", sa.Text(), server_default="by default"),
    )  # fmt: skip
    rows = [("a", 2**63 - 1, 0.1, True, bytes(range(256))), ("b", -(2**63), -1e300, False, b""), ("c", *[None] * 4)]

    def store(connection: Connection) -> list[Any]:
        kinds.create(connection)
        assert insert_missing(connection, kinds, ("key", "number", "share", "yes", "bytes"), rows) == 3
        found = connection.execute(sa.select(kinds).order_by(kinds.c.key)).all()
        kinds.drop(connection)
        return [tuple(row) for row in found]

    assert database.write(store) == [(*row, "by default") for row in rows]


def test_rows_go_in_in_their_order(database: Database) -> None:
    """By which two who store the same rows never wait for each other in a circle."""
    rows = sorted((event_tuple() for _ in range(2_100)), reverse=True)
    assert database.write(lambda c: insert_missing(c, events, EVENT_COLUMNS, rows)) == len(rows)

    with database.reading() as connection:
        assert list(connection.execute(sa.select(events.c.id).order_by(events.c.seq)).scalars()) == [r[0] for r in rows]


@pytest.mark.parametrize("text", ["a\0b", "\ud800"], ids=["NUL", "half a pair"])
def test_text_that_postgresql_cannot_hold_is_refused_and_no_outage(migrated_postgres: Database, text: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  psycopg's or the encoder's
        migrated_postgres.write(lambda c: insert_missing(c, secrets, ("name", "value"), [("n", text)]))
    assert not is_outage(caught.value)


# --- transactions ----------------------------------------------------------------------------------------------------


def put(name: str, value: str = "x") -> Any:
    return lambda c: c.execute(sa.insert(secrets).values(name=name, value=value))


def names(database: Database) -> list[str]:
    with database.reading() as connection:
        return list(connection.execute(sa.select(secrets.c.name).order_by(secrets.c.name)).scalars())


def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    def work(connection: Connection) -> None:
        put("a")(connection)
        put("a")(connection)

    with pytest.raises(IntegrityError):
        database.write(work)
    assert names(database) == []
    database.write(put("a"))
    assert names(database) == ["a"]


def test_a_caller_that_is_cancelled_does_not_cancel_the_write(database: Database) -> None:
    started, go = threading.Event(), threading.Event()

    def work(connection: Connection) -> None:
        started.set()
        go.wait(10)
        put("a")(connection)

    async def scenario() -> None:
        task = asyncio.create_task(database.run_write(work))
        await asyncio.to_thread(started.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        await database.run_write(put("b"))

    run(scenario())
    deadline = time.monotonic() + 5
    while names(database) != ["a", "b"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert names(database) == ["a", "b"]


def test_reads_go_on_while_a_write_is_under_way(database: Database) -> None:
    started, go = threading.Event(), threading.Event()

    def work(connection: Connection) -> None:
        put("a")(connection)
        started.set()
        go.wait(10)

    async def scenario() -> tuple[list[str], list[str]]:
        writing = asyncio.create_task(database.run_write(work))
        await asyncio.to_thread(started.wait, 10)
        before = await database.run_read(lambda c: list(c.execute(sa.select(secrets.c.name)).scalars()))
        go.set()
        await writing
        return before, await database.run_read(lambda c: list(c.execute(sa.select(secrets.c.name)).scalars()))

    assert run(scenario()) == ([], ["a"])


def test_closing_finishes_what_was_begun(database: Database) -> None:
    other = Database(database.writer.url.render_as_string(hide_password=False))

    async def scenario() -> None:
        write = asyncio.create_task(other.run_write(put("a")))
        await asyncio.sleep(0)
        await asyncio.to_thread(other.close)
        await write

    run(scenario())
    assert names(database) == ["a"]


def test_many_rows_are_what_they_are_one_by_one_in_their_order(database: Database) -> None:
    odd = ["", "a\nb", 'q"uo\\te', "\u2028", "\U0001f600", "\x7f\x01", "[1, null]", "9" * 30]
    values = [
        event_values(occurred_at=from_micros(2**40 + n), custom_campaign=text, automated=(None, True, False)[n % 3])
        for n, text in enumerate(odd)
    ]
    insert(database, Event, values)
    columns = (events.c.seq, events.c.id, events.c.occurred_at, events.c.custom_campaign, events.c.automated,
               events.c.message_id, events.c.raw)  # fmt: skip
    wanted = sa.select(*columns).order_by(events.c.custom_campaign.desc(), events.c.id)

    with database.reading() as connection:
        one_by_one = [list(row) for row in connection.execute(wanted)]
        many = read_many(connection, wanted)
        some = sa.select(*columns).where(events.c.id == sa.bindparam("id", type_=events.c.id.type))
        found = [read_many(connection, some, {"id": row[1]}) for row in one_by_one]

    assert len(many) == len(odd)
    assert [[*row[:2], to_micros(row[2]), *row[3:]] for row in one_by_one] == many
    assert found == [[row] for row in many]


def test_many_rows_can_be_none(database: Database) -> None:
    with database.reading() as connection:
        assert read_many(connection, sa.select(events.c.id)) == []


def test_an_error_does_not_show_what_was_to_be_written(database: Database) -> None:
    database.write(put("a"))

    with pytest.raises(IntegrityError) as caught:
        database.write(put("a", "someone@example.com"))

    assert "someone@example.com" not in str(caught.value)


# --- outages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OperationalError("s", {}, Exception()), True),
        (IntegrityError("s", {}, Exception()), False),
        (InterfaceError("s", {}, Exception(), connection_invalidated=True), True),
        (InterfaceError("s", {}, Exception(), connection_invalidated=False), False),
        (sqlite3.OperationalError("database is locked"), True),
        (sqlite3.IntegrityError("unique"), False),
        (psycopg.OperationalError("gone"), True),
        (psycopg.DataError("NUL"), False),
        (psycopg.errors.DiskFull("full"), True),
        (psycopg.errors.ProgramLimitExceeded("an index entry is too long"), False),
        (OperationalError("s", {}, psycopg.errors.ProgramLimitExceeded("the same")), False),
        (TimeoutError(), True),
        (ValueError(), False),
        (OverflowError(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_counts_as_an_outage(error: BaseException, expected: bool) -> None:
    assert is_outage(error) is expected


def test_a_locked_file_is_an_outage(sqlite_url: str, tmp_path: Path) -> None:
    database = Database(sqlite_url)
    database.write(lambda c: c.exec_driver_sql("CREATE TABLE t (n)"))
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")

        def impatient(connection: Connection) -> None:
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")

        with database.writer.connect() as connection:
            assert connection.connection.dbapi_connection is not None
            connection.connection.dbapi_connection.execute("PRAGMA busy_timeout=50")  # type: ignore[attr-defined]
        with pytest.raises(Exception, match="locked") as caught:
            database.write(impatient)
        assert is_outage(caught.value)
        other.execute("ROLLBACK")
        database.write(impatient)
    finally:
        other.close()
        database.close()


# --- opening ---------------------------------------------------------------------------------------------------------


def test_sqlite_is_durable_and_lets_readers_go_on(sqlite_url: str) -> None:
    database = Database(sqlite_url)

    def pragmas(connection: Connection) -> list[Any]:
        return [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "auto_vacuum")
        ]

    try:
        assert database.write(pragmas) == ["wal", 2, 2]  # FULL, INCREMENTAL
        with database.reading() as connection:
            assert pragmas(connection)[:2] == ["wal", 2]
    finally:
        database.close()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite://", "in-memory"),
        ("sqlite:///:memory:", "in-memory"),
        ("sqlite:////nowhere/at/all/x.db", "does not exist"),
        ("sqlite:////tmp", "is a directory"),
        ("not a url", "not a database URL"),
    ],
)
def test_a_database_that_cannot_be_opened_says_what_to_change(url: str, told: str) -> None:
    with pytest.raises(DatabaseFault, match=told):
        Database(url)
