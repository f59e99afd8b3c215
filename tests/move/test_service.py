"""A move of every table that the models know, whatever is in them."""

from __future__ import annotations

import itertools
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from app.audit.service import audit
from app.db import Database, IdText, UTCDateTime
from app.errors import DatabaseFault
from app.migrate import migrate
from app.models import Event
from app.move import service, source, target
from app.move.service import Move, Report, must_be_movable, name_of
from app.move.tables import Digest, all_tables, plain_columns, portable
from app.partitions import list_weeks, week_of
from tests.conftest import MakeDatabase
from tests.factories import make_event

_numbers = itertools.count(1)
ROWS = 7
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def value_for(column: sa.Column[Any]) -> Any:
    """Something of the column's type that no other row has where that can be; now and then nothing."""
    number = next(_numbers)
    if column.nullable and number % 5 == 0:
        return None
    if isinstance(column.type, UTCDateTime):
        return 1_777_000_000_000_000 + number
    if isinstance(column.type, IdText):
        return f"{number:08x}-d100-8c4e-9a51-3f9c2b7d1e60"
    if isinstance(column.type, sa.Boolean):
        return number % 2 == 0
    if isinstance(column.type, sa.Integer):
        return number
    if isinstance(column.type, sa.Float):
        return number / 7
    if isinstance(column.type, sa.LargeBinary):
        return b"\x00\xff\\%d" % number
    if isinstance(column.type, sa.JSON):
        return {"n": number}
    assert isinstance(column.type, sa.String), f"tell this test how to fill {column.table.name}.{column.name}"
    if column.type.length == 7:  # a slot
        return f"{number:07x}"
    return f'"é\t\\{number}'[: column.type.length or 50].ljust(min(column.type.length or 0, 36), "x")


def fill(database: Database, rows: int = ROWS) -> None:
    """Some rows in each table."""

    def work(connection: sa.Connection) -> None:
        for table in all_tables():
            for _ in range(rows):
                values = {column.name: sa.literal(value_for(column), plain.type)
                          for column, plain in zip(table.columns, plain_columns(table), strict=True)}  # fmt: skip
                connection.execute(sa.insert(table).values(**values))

    database.write(work)


def contents(url: str) -> dict[str, set[tuple[Any, ...]]]:
    database = Database(url)
    try:
        with database.reading() as connection:
            return {t.name: {tuple(r) for r in connection.execute(sa.select(*plain_columns(t)))} for t in all_tables()}
    finally:
        database.close()


@pytest.fixture
def origin(migrated_sqlite: Path, tmp_path: Path) -> str:
    """A SQLite database with something in every table."""
    path = tmp_path / "origin.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    database = Database(f"sqlite:///{path}")
    fill(database)
    database.close()
    return f"sqlite:///{path}"


@pytest.fixture
def goal(make_database: MakeDatabase) -> str:
    return make_database("postgresql")


def move(origin: str, goal: str, *, tell: Any = lambda words, rows: None) -> Report:
    with source.opened_alone(origin) as here, target.opened(goal) as there:
        return Move(here, there, name_of(origin, here)).run(tell)


def test_every_table_comes_along_value_by_value(origin: str, goal: str) -> None:
    """A table that is added to the models is filled here, and must be there."""
    told: list[float] = []

    report = move(origin, goal, tell=lambda words, rows: told.append(rows))

    assert report.is_whole
    before, after = contents(origin), contents(goal)
    assert after == before
    assert {name for name, rows in after.items() if len(rows) == ROWS} == {table.name for table in all_tables()}
    assert {(table.table, table.rows, table.copied) for table in report.tables} == {
        (table.name, ROWS, ROWS) for table in all_tables()
    }
    assert told == sorted(told)


def test_the_next_event_comes_after_all_that_ever_were(origin: str, goal: str) -> None:
    """Also after one that was deleted: a feed's reader has its number in a cursor."""
    with sqlite3.connect(origin.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE sqlite_sequence SET seq = 5000000 WHERE name = 'events'")
    connection.close()

    move(origin, goal)

    database = Database(goal)
    event: sa.Table = Event.__table__  # type: ignore[attr-defined]
    with database.reading() as connection_there:
        assert connection_there.execute(sa.text("SELECT nextval('events_seq_seq')")).scalar_one() == 5_000_001
        assert not sa.inspect(connection_there).has_table("move_progress")
        assert connection_there.execute(sa.select(sa.func.max(event.c.seq))).scalar_one() < 5_000_000
    database.close()


class Broken(Exception):
    pass


def breaking(after: int) -> Any:
    calls = itertools.count(1)

    def tell(words: str, rows: float) -> None:
        if next(calls) == after:
            raise Broken

    return tell


@pytest.mark.parametrize("after", [1, 6, 19])
def test_a_move_that_was_broken_off_goes_on(
    origin: str, goal: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH_ROWS", 3)
    with pytest.raises(Broken):
        move(origin, goal, tell=breaking(after))

    report = move(origin, goal)

    assert report.is_whole
    assert contents(goal) == contents(origin)
    assert sum(table.copied for table in report.tables) == ROWS * len(all_tables()) - after_rows(after)


def after_rows(calls: int) -> int:
    """Rows that `calls` batches of 3 hold, in tables of 7: 3, 3 and 1 in turn."""
    return calls // 3 * 7 + calls % 3 * 3


def test_what_changed_between_two_parts_of_a_move_is_copied_again(
    origin: str, goal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH_ROWS", 3)
    with pytest.raises(Broken):
        move(origin, goal, tell=breaking(3 * len(all_tables())))
    with sqlite3.connect(origin.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE deliveries SET state = 'delivered'")
    connection.close()

    report = move(origin, goal)

    assert report.is_whole
    assert [table.table for table in report.tables if table.copied] == ["deliveries"]
    assert contents(goal) == contents(origin)


def test_a_target_with_something_in_it_is_refused(origin: str, goal: str) -> None:
    move(origin, goal)

    with pytest.raises(DatabaseFault, match=r"--to: the database is not empty \(.*events"):
        move(origin, goal)


def test_an_unfinished_move_of_another_source_is_refused(
    origin: str, goal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BATCH_ROWS", 3)
    with pytest.raises(Broken):
        move(origin, goal, tell=breaking(1))
    other = f"sqlite:///{tmp_path / 'other.db'}"
    opened = Database(other)
    migrate(opened)
    opened.close()

    with pytest.raises(DatabaseFault, match="another source"):
        move(other, goal)


def test_a_source_that_somebody_has_open_is_refused(origin: str, goal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LOCK_SECONDS", 0.05)
    database = Database(origin)
    with database.reading() as connection:
        connection.execute(sa.text("SELECT 1"))

    with pytest.raises(DatabaseFault, match="JETHOOK_DATABASE_URL: the database is in use"):
        move(origin, goal)
    database.close()


def test_a_target_where_a_service_runs_is_refused(origin: str, goal: str) -> None:
    database = Database(goal)
    with database.reading(), pytest.raises(DatabaseFault, match="--to: a service"):
        move(origin, goal)
    database.close()


def test_a_table_nobody_knows_is_not_left_behind(origin: str, goal: str) -> None:
    with sqlite3.connect(origin.removeprefix("sqlite:///")) as connection:
        connection.execute("CREATE TABLE orphan (x)")
    connection.close()

    with pytest.raises(DatabaseFault, match="orphan"):
        move(origin, goal)


@pytest.mark.parametrize("to", ["sqlite:///other.db", "mysql://x/y", "nonsense"])
def test_only_postgresql_can_be_moved_to(origin: str, to: str) -> None:
    with pytest.raises(DatabaseFault, match="--to"):
        move(origin, to)


def test_only_sqlite_can_be_moved_from() -> None:
    with pytest.raises(DatabaseFault, match="JETHOOK_DATABASE_URL"):
        must_be_movable("postgresql://x/y")


def test_the_audit_says_the_same_on_both_sides(origin: str, goal: str) -> None:
    move(origin, goal)

    assert report_of(origin) == report_of(goal)


def test_each_week_of_events_has_its_partitions_there(origin: str, goal: str) -> None:
    database = Database(origin)
    weeks = [week_of(NOW - timedelta(days=days)) for days in (400, 30, 0)]
    for week in weeks:
        make_event(database, occurred_at=week.start + timedelta(days=2))
    make_event(database, occurred_at=NOW - timedelta(days=9000))
    database.close()

    with source.opened_alone(origin) as here, target.opened(goal) as there:
        assert Move(here, there, name_of(origin, here), now=lambda: NOW).run().is_whole
        assert set(weeks) <= set(list_weeks(there))
        for week in weeks:
            assert there.execute(sa.text(f"SELECT count(*) FROM {week.part_of('events')}")).scalar_one() == 1
        assert there.execute(sa.text("SELECT count(*) FROM events_rest")).scalar_one() == ROWS + 1


def report_of(url: str) -> dict[str, Any]:
    database = Database(url)
    with database.reading() as connection:
        found = audit(connection).to_json()
    database.close()
    return found


@given(st.lists(st.tuples(st.integers(), st.text(), st.none() | st.booleans()), max_size=6), st.randoms())
def test_a_digest_knows_rows_and_not_their_order(rows: list[tuple[Any, ...]], chance: Any) -> None:
    shuffled = list(rows)
    chance.shuffle(shuffled)

    assert digest(rows) == digest(shuffled)
    assert digest(rows) != digest([*rows, (1, "more", None)])
    if rows:
        assert digest([(*rows[0], "changed"), *rows[1:]]) != digest(rows)


def digest(rows: list[tuple[Any, ...]]) -> Digest:
    made = Digest()
    for row in rows:
        made.add(row)
    return made


def test_text_that_postgresql_refuses_is_made_portable() -> None:
    assert portable(("a\0b", 1, None, b"\0")) == ("a\ufffdb", 1, None, b"\0")
