"""The SQLite file that is moved: opened so that nobody else has it, for as long as the move lasts.

SQLite grants the exclusive lock only while no other process has the file open, and a running service always has. So the
lock tells whether one runs, in whatever role, and keeps one from starting meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from app.errors import DatabaseFault
from app.ledger import next_slot, slot_start, slot_within
from app.migrate import is_current
from app.models import Event
from app.move.tables import Row, all_tables, page_after, plain_columns, portable
from app.partitions import AHEAD, WEEK, Week, week_of

MOST_WEEKS = 520  # ten years; what is older lies in the default partition
MILLISECOND = timedelta(milliseconds=1)
_events: sa.Table = Event.__table__  # type: ignore[attr-defined]
LOCK_SECONDS = 2.0  # a command that ends just now


@contextmanager
def opened_alone(url: str) -> Iterator[Connection]:
    """Raises DatabaseFault: in use, out of date, or with a table that we do not know."""
    engine = sa.create_engine(
        make_url(url), poolclass=StaticPool, hide_parameters=True, connect_args={"timeout": LOCK_SECONDS}
    )
    try:
        with engine.connect() as connection:
            _lock(connection)
            _check(connection)
            yield connection
    finally:
        engine.dispose()


def _lock(connection: Connection) -> None:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.isolation_level = None
    try:
        driver.execute("PRAGMA locking_mode=EXCLUSIVE").close()
        driver.execute("BEGIN EXCLUSIVE").close()
        driver.execute("COMMIT").close()  # the lock stays until the connection is closed
    except sqlite3.OperationalError as error:
        raise DatabaseFault(
            f"JETHOOK_DATABASE_URL: the database is in use ({error}); stop the service and other commands first"
        ) from None


def _check(connection: Connection) -> None:
    try:
        current = is_current(connection)
    except OperationalError as error:
        raise DatabaseFault(f"JETHOOK_DATABASE_URL: the database cannot be read: {error.orig}") from None
    if not current:
        raise DatabaseFault("JETHOOK_DATABASE_URL: the schema is out of date; run `jethook migrate`")
    known = {table.name for table in all_tables()} | {"alembic_version"}
    strange = sorted(set(sa.inspect(connection).get_table_names()) - known)
    if strange:
        raise DatabaseFault(f"JETHOOK_DATABASE_URL: unknown tables would be left behind: {', '.join(strange)}")


def count(connection: Connection, table: sa.Table) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def page(connection: Connection, table: sa.Table, cursor: list[object] | None, limit: int) -> list[Row]:
    return [portable(row) for row in connection.execute(page_after(table, cursor, limit))]


def every_row(connection: Connection, table: sa.Table) -> Iterator[Row]:
    for row in connection.execute(sa.select(*plain_columns(table))):
        yield portable(row)


def weeks_of_events(connection: Connection, now: datetime) -> list[Week]:
    """Those in which events of ours happened, but none of before `MOST_WEEKS` or that is far ahead."""
    slots = connection.execute(sa.select(slot_within(_events.c.id)).distinct()).scalars()
    weeks = {week_of(end) for slot in slots for end in (slot_start(slot), slot_start(next_slot(slot)) - MILLISECOND)}
    return sorted(week for week in weeks if now - MOST_WEEKS * WEEK <= week.start <= now + AHEAD)


def last_number(connection: Connection, table: sa.Table) -> int:
    """The highest number that the table ever gave a row; the row may be gone."""
    given = connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = ?", (table.name,)).scalar()
    highest = connection.execute(sa.select(sa.func.max(*table.primary_key.columns))).scalar()
    return max(int(given or 0), int(highest or 0))
