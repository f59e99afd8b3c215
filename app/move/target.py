"""The PostgreSQL database that takes everything in. How far it is stands in a table there, written with the rows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, make_url

from app import partitions
from app.db import Database
from app.errors import DatabaseFault
from app.migrate import migrate
from app.move.tables import Row, all_tables, plain_columns, portable
from app.partitions import Week

APPLICATION = "jethook move"
GOODBYE_SECONDS = 3.0  # a server takes a moment to see that a client has gone

_metadata = sa.MetaData()
progress = sa.Table(
    "move_progress",
    _metadata,
    sa.Column("source", sa.Text(), nullable=False),
    sa.Column("table_name", sa.Text(), primary_key=True),
    sa.Column("cursor", sa.Text()),  # JSON: the key of the last row that is here
    sa.Column("rows", sa.BigInteger(), nullable=False),
)


@contextmanager
def opened(url: str) -> Iterator[Connection]:
    """Migrated, and with nobody else of ours on it. Raises DatabaseFault."""
    if not url.startswith(("postgresql:", "postgresql+", "postgres:")):
        raise DatabaseFault("--to: PostgreSQL is where a move goes, as postgresql://user:password@host/jethook")
    _migrate(url)
    engine = sa.create_engine(
        make_url(url).set(drivername="postgresql+psycopg"), hide_parameters=True,
        connect_args={"connect_timeout": 5, "application_name": APPLICATION},
    )  # fmt: skip
    try:
        with engine.connect() as connection:
            _must_be_alone(connection)
            connection.commit()
            yield connection
    finally:
        engine.dispose()


def _migrate(url: str) -> None:
    try:
        database = Database(url)
    except DatabaseFault as fault:
        raise DatabaseFault(str(fault).replace("JETHOOK_DATABASE_URL", "--to")) from None
    try:
        migrate(database)
    except DatabaseFault as fault:
        raise DatabaseFault(str(fault).replace("JETHOOK_DATABASE_URL", "--to")) from None
    finally:
        database.close()


def _must_be_alone(connection: Connection) -> None:
    others = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND application_name LIKE 'jethook%'"
    )
    give_up = time.monotonic() + GOODBYE_SECONDS
    while connection.execute(others).scalar_one():
        connection.rollback()  # the view stays as it is within a transaction
        if time.monotonic() < give_up:
            time.sleep(0.1)
            continue
        raise DatabaseFault("--to: a service, or another move, is at work on that database; stop it first")


def begin(connection: Connection, source: str) -> dict[str, tuple[list[Any] | None, int]]:
    """Table -> (key of the last row that is here, rows), of an unfinished move of the same source; else all from the
    start. Raises DatabaseFault for a database that holds something else."""
    with connection.begin():
        if sa.inspect(connection).has_table(progress.name):
            return _unfinished(connection, source)
        filled = [table.name for table in all_tables() if _has_rows(connection, table)]
        if filled:
            raise DatabaseFault(f"--to: the database is not empty ({', '.join(filled)}); a move needs one of its own")
        progress.create(connection)
        start = [{"source": source, "table_name": table.name, "cursor": None, "rows": 0} for table in all_tables()]
        connection.execute(sa.insert(progress), start)
        return {table.name: (None, 0) for table in all_tables()}


def _unfinished(connection: Connection, source: str) -> dict[str, tuple[list[Any] | None, int]]:
    rows = connection.execute(sa.select(progress)).all()
    if {row.source for row in rows} != {source}:
        raise DatabaseFault("--to: the database holds an unfinished move of another source; use an empty one")
    return {row.table_name: (None if row.cursor is None else json.loads(row.cursor), int(row.rows)) for row in rows}


def _has_rows(connection: Connection, table: sa.Table) -> bool:
    return connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None


def make_weeks(connection: Connection, weeks: Iterable[Week]) -> None:
    """Partitions for these weeks, so that nothing of them lies where a week is not dropped whole."""
    for week in weeks:
        with connection.begin():
            partitions.make(connection, week)


def take(connection: Connection, table: sa.Table, rows: Sequence[Row], cursor: list[Any]) -> None:
    """Store `rows` and how far the table is, both or neither."""
    with connection.begin():
        _copy(connection, table, rows)
        connection.execute(
            sa.update(progress)
            .where(progress.c.table_name == table.name)
            .values(cursor=json.dumps(cursor), rows=progress.c.rows + len(rows))
        )


def _copy(connection: Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    binds = [column.type.dialect_impl(dialect).bind_processor(dialect) for column in plain_columns(table)]
    names = ", ".join(f'"{name}"' for name in table.columns.keys())  # noqa: SIM118  a collection of columns is no dict
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    with driver.cursor() as cursor, cursor.copy(f'COPY "{table.name}" ({names}) FROM STDIN') as copy:
        for row in rows:
            copy.write_row([bind(v) if bind else v for bind, v in zip(binds, row, strict=True)])


def start_again(connection: Connection, table: sa.Table) -> None:
    """Empty the table: what was copied is not what the source holds now."""
    with connection.begin():
        connection.execute(sa.delete(table))
        mine = progress.c.table_name == table.name
        connection.execute(sa.update(progress).where(mine).values(cursor=None, rows=0))


def every_row(connection: Connection, table: sa.Table) -> Iterator[Row]:
    """In one pass and with little memory, however many there are."""
    with connection.begin():
        streamed = {"stream_results": True, "yield_per": 2000}
        for row in connection.execute(sa.select(*plain_columns(table)), execution_options=streamed):
            yield portable(row)


def go_on_counting(connection: Connection, table: sa.Table, column: str, last: int) -> None:
    """The next number that the table gives itself comes after `last`."""
    with connection.begin():
        connection.execute(
            sa.text("SELECT setval(pg_get_serial_sequence(:table, :column), :last)"),
            {"table": table.name, "column": column, "last": last},
        )


def end(connection: Connection) -> None:
    """Nothing is left to be done: the mark goes. Then statistics are taken, so that the first questions are quick."""
    with connection.begin():
        progress.drop(connection)
        for table in all_tables():
            connection.execute(sa.text(f'ANALYZE "{table.name}"'))
