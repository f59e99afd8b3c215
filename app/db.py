"""The database: engines, transactions, and the two statements everything hot is made of.

SQLite has one writer: every write of this process runs on one thread, in the order asked for, so nothing here ever
meets SQLITE_BUSY because of ourselves. PostgreSQL writes run side by side. Reads never wait for either.

Rows go in as tuples through multi-row statements. That is no luxury: Python's sqlite3 lets go of the interpreter lock
once a statement step, and a busy event loop gives it back only after the switch interval, so a hundred rows through
`executemany` would mean a hundred such hand-overs where one statement means one. To PostgreSQL they go as one JSON
array, made by orjson: psycopg adapts each value by itself, which took 200 us of Python for an event with its two
deliveries where this takes 15, and the server's work is no more. It is also one statement for any number of rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import orjson
import psycopg
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, Dialect, Engine, make_url
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.pool import QueuePool
from sqlalchemy.types import TypeDecorator

from app.clock import from_micros, to_micros
from app.errors import DatabaseFault
from app.postgres import postgres_engine

T = TypeVar("T")
NO_ID = "00000000-0000-0000-0000-000000000000"  # before every id
BEYOND_IDS = "ffffffff-ffff-ffff-ffff-ffffffffffff"
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_DRIVER_OUTAGES = (sqlite3.OperationalError, psycopg.OperationalError, psycopg.InterfaceError)

MIN_SQLITE = (3, 35, 0)  # RETURNING
BUSY_TIMEOUT_MS = 10_000  # another process (a command, an older container) may hold the lock for a moment
READ_THREADS = 8  # reads of our own loops and asynchronous routes
_AFTER = "after_commit"
WRITE_THREADS = 4  # PostgreSQL: transactions of this process under way at once
JSON_ROWS = 1000  # PostgreSQL: in one statement; of events about a megabyte


class UTCDateTime(TypeDecorator[datetime]):
    """Aware UTC in Python, microseconds since 1970 in the database.

    SQLite hands out naive datetimes, and a whole number sorts, compares and groups by hour alike on both databases.
    """

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else to_micros(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else from_micros(value)


class IdText(TypeDecorator[str]):
    """An id of 36 characters in Python and on SQLite, 16 bytes on PostgreSQL: an event with a delivery has its id six
    times in tables and indexes, which is 170 bytes less. Both databases sort them as bytes.

    What is no id, "" for one, is asked for as the smallest id there can be, which nothing has.
    """

    impl = sa.String(36)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        kind = postgresql.UUID(as_uuid=False) if dialect.name == "postgresql" else sa.String(36)
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or dialect.name != "postgresql" or _ID.fullmatch(value):
            return value
        return NO_ID


class Database:
    """One database, opened once per process; `close()` ends it.

    `reading()` and `writing()` are blocking and belong on a worker thread; `run_write()` is for the event loop.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise DatabaseFault("JETHOOK_DATABASE_URL is not a database URL") from None
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite:
            _check_sqlite(parsed.database)
            self.reader = self._glancer = _sqlite_engine(parsed, writes=False)
            self.writer = _sqlite_engine(parsed, writes=True)
        else:
            self.writer = postgres_engine(parsed.set(drivername="postgresql+psycopg"), pool_size=WRITE_THREADS + 4)
            # One answer shows one moment, also where it takes several statements.
            self.reader = self.writer.execution_options(isolation_level="REPEATABLE READ")
            self._glancer = self.writer.execution_options(isolation_level="AUTOCOMMIT")
        self._path = parsed.database if self.is_sqlite else None
        self.write_failed = False  # did the last transaction fail for the database's own reasons?
        self._file: tuple[int, int] | None = None
        self.placeholder = "?" if self.is_sqlite else "%s"
        self._read_threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="db-read")
        self._write_threads = ThreadPoolExecutor(1 if self.is_sqlite else WRITE_THREADS, thread_name_prefix="db-write")

    @property
    def driver_url(self) -> str:
        """For a connection of psycopg's own."""
        return self.writer.url.set(drivername="postgresql").render_as_string(hide_password=False)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self.reader.connect() as connection:
            yield connection

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction and commit it; blocking. Raises what `work` or the commit raised."""
        return self._write_threads.submit(self.in_transaction, work).result()

    async def run_write(self, work: Callable[[Connection], T]) -> T:
        """`write` for the event loop. A caller that is cancelled does not cancel the transaction."""
        future = asyncio.get_running_loop().run_in_executor(self._write_threads, self.in_transaction, work)
        return await asyncio.shield(future)

    async def run_aside(self, work: Callable[[DBAPICursor], T]) -> T:
        """`work` outside a transaction, for what cannot be done within one; on the thread of the writes."""

        def aside() -> T:
            raw = self.writer.raw_connection()
            try:
                if not self.is_sqlite:
                    raw.driver_connection.autocommit = True  # type: ignore[union-attr]
                return work(raw.cursor())
            finally:
                if not self.is_sqlite:
                    raw.driver_connection.autocommit = False  # type: ignore[union-attr]
                raw.close()

        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._write_threads, aside))

    def submit(self, turn: Callable[[], object]) -> None:
        """Run `turn`, which calls `in_transaction` itself, on the thread of the writes, after what was asked before."""
        self._write_threads.submit(turn)

    async def run_read(self, work: Callable[[Connection], T]) -> T:
        """`work`, which only reads and sees one moment, on a thread of the reads."""
        return await self._run_on(self.reader, work)

    async def run_glance(self, work: Callable[[Connection], T]) -> T:
        """`run_read` for a single statement, which PostgreSQL answers without a transaction around it."""
        return await self._run_on(self._glancer, work)

    async def _run_on(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        def read() -> T:
            with engine.connect() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._read_threads, read)

    def close(self) -> None:
        # A read whose caller was cancelled goes on: its connection must be back before the pool ends.
        self._read_threads.shutdown(wait=True)
        self._write_threads.shutdown(wait=True)
        self.reader.dispose()
        self.writer.dispose()

    def in_transaction(self, work: Callable[[Connection], T]) -> T:
        """`write`, for one who is on a thread of the writes."""
        try:
            with self.writer.begin() as connection:
                connection.info.pop(_AFTER, None)  # of one that was rolled back
                result = work(connection)
                self._check_file()
                calls = connection.info.pop(_AFTER, ())
        except Exception as error:
            self.write_failed = self.write_failed or is_outage(error)
            raise
        self.write_failed = False
        for call in calls:
            call()
        return result

    def _check_file(self) -> None:
        """SQLite writes on into a file that was deleted or replaced, and it would all be gone at the next start."""
        if self._path is None:
            return
        try:
            found = os.stat(self._path)
        except OSError:
            raise sqlite3.OperationalError("the database file was removed") from None
        here = (found.st_dev, found.st_ino)
        if self._file is None:
            self._file = here
        elif here != self._file:
            raise sqlite3.OperationalError("the database file was replaced")


def after_commit(connection: Connection, call: Callable[[], None]) -> None:
    """`call`, which must not raise, once what this transaction writes is there for others; on its thread."""
    connection.info.setdefault(_AFTER, []).append(call)


def is_outage(error: BaseException) -> bool:
    """The database is gone, full, locked or stopping, or takes too long: trying again later can help. Not so what is
    beyond PostgreSQL's limits (class 54), though that is among its operational errors."""
    if (sqlstate_of(error) or "").startswith("54"):
        return False
    if isinstance(error, DBAPIError):
        return isinstance(error, OperationalError) or error.connection_invalidated
    return isinstance(error, (*_DRIVER_OUTAGES, TimeoutError))


def sqlstate_of(error: BaseException) -> str | None:
    """PostgreSQL's five letters for what went wrong."""
    state = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
    return state if isinstance(state, str) else None


def run_driver_sql(connection: Connection, sql: str, values: Sequence[Any]) -> DBAPICursor:
    """A hot statement on the driver itself, within the transaction of `connection`.

    SQLAlchemy's own bookkeeping costs more than a small statement does. Errors are the driver's.
    """
    cursor = connection.connection.cursor()
    cursor.execute(sql, values)
    return cursor


def insert_missing(
    connection: Connection, table: sa.Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> int:
    """Insert rows whose key is not there yet, given as tuples in the order of `columns`; the number inserted."""
    inserted = 0
    for cursor in _inserts(connection, table.name, columns, rows):
        inserted += cursor.rowcount
    return inserted


def insert_new(
    connection: Connection, table: sa.Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> set[Any]:
    """`insert_missing`, but tells which keys were new. The key is the first of `columns`; no key twice in `rows`.

    PostgreSQL tells by RETURNING. On SQLite that costs a hand-over of the interpreter lock for each row, so the count
    tells that all were new, as they nearly always are, or none; else those inserted are the last ones of the table,
    since there is a single writer and `seq` only grows.
    """
    if connection.dialect.name != "sqlite":
        return insert_returning(connection, table, columns, rows)
    new: set[Any] = set()
    for chunk in chunks(rows):
        inserted = insert_missing(connection, table, columns, chunk)
        if inserted == len(chunk):
            new.update(row[0] for row in chunk)
        elif inserted:
            new |= _last_keys(connection, table.name, columns[0], inserted)
    return new


def insert_returning(
    connection: Connection, table: sa.Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> set[Any]:
    """`insert_new` by RETURNING on both databases, for a table without a `seq`."""
    inserted: set[Any] = set()
    for cursor in _inserts(connection, table.name, columns, rows, f' RETURNING "{columns[0]}"'):
        inserted.update(row[0] for row in cursor.fetchall())
    return inserted


def _inserts(
    connection: Connection, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], told: str = ""
) -> Iterator[DBAPICursor]:
    """The statements that insert `rows`, each run when the next is asked for."""
    for sql, values in _statements(connection.dialect.name, table, tuple(columns), rows):
        cursor = run_driver_sql(connection, sql + told, values)
        yield cursor
        cursor.close()


def _statements(
    dialect: str, table: str, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(SQL, its values)"""
    if dialect == "sqlite":
        for chunk in chunks(rows):
            yield _insert_sql(table, columns, len(chunk)), tuple(chain.from_iterable(chunk))
    else:
        for start in range(0, len(rows), JSON_ROWS):
            yield _insert_json_sql(table, columns), (_as_json(columns, rows[start : start + JSON_ROWS]),)


def _last_keys(connection: Connection, table: str, key: str, count: int) -> set[Any]:
    cursor = run_driver_sql(connection, f'SELECT "{key}" FROM {table} ORDER BY seq DESC LIMIT ?', (count,))  # noqa: S608
    found = {row[0] for row in cursor.fetchall()}
    cursor.close()
    return found


def read_many(
    connection: Connection, statement: sa.Select[Any], values: Mapping[str, Any] | None = None
) -> list[list[Any]]:
    """The rows of a statement that finds many, in its order; times in microseconds, on SQLite truth as 0 and 1.
    `values` are the parameters of a statement that is used again and again.

    They come as one JSON array, for the same reason as rows go in: sqlite3 lets go of the interpreter lock for each row
    that it steps to, and beside a busy event loop a page of a thousand events waited for it a thousand times. Not for a
    few rows: the statement costs as much again to make. Bytes cannot be read so.
    """
    array = (_as_array if values is None else _as_known_array)(statement, connection.dialect.name)
    text: str | None = connection.execute(array, values or {}).scalar_one()
    return orjson.loads(text) if text else []


def _as_array(statement: sa.Select[Any], dialect: str) -> sa.Select[Any]:
    found = statement.subquery()
    # As numbers, of times: their type would have the array's values pass through it, and has no say within it.
    row = [
        sa.type_coerce(column, sa.BigInteger) if isinstance(column.type, UTCDateTime) else column for column in found.c
    ]
    array: sa.ColumnElement[str] = sa.func.json_group_array(sa.func.json_array(*row))
    if dialect != "sqlite":
        array = sa.cast(sa.func.json_agg(sa.func.json_build_array(*row)), sa.Text)
    return sa.select(array)


_as_known_array = lru_cache(maxsize=256)(_as_array)


def chunks(rows: Sequence[T], most: int = 128) -> Iterator[Sequence[T]]:
    """Runs of 128 rows, then of 64, then the rest: as few statements as can be while each is prepared once and found
    again, since each costs the writer a turn at the interpreter lock."""
    start, size = 0, most
    while start < len(rows):
        left = len(rows) - start
        if left < size:
            size = min(most // 2, left)
        yield rows[start : start + size]
        start += size


@lru_cache(maxsize=256)
def _insert_sql(table: str, columns: tuple[str, ...], rows: int) -> str:
    row = f"({', '.join(['?'] * len(columns))})"
    return f"INSERT INTO {table} ({_names(columns)}) VALUES {', '.join([row] * rows)} ON CONFLICT DO NOTHING"  # noqa: S608


@lru_cache(maxsize=256)
def _insert_json_sql(table: str, columns: tuple[str, ...]) -> str:
    """Rows go in in the order of the array, as nothing between the two sorts or splits them."""
    names = _names(columns)
    rows = f"json_populate_recordset(NULL::{table}, %s::json)"
    return f"INSERT INTO {table} ({names}) SELECT {names} FROM {rows} ON CONFLICT DO NOTHING"  # noqa: S608


def _as_json(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> str:
    return orjson.dumps([dict(zip(columns, row, strict=True)) for row in rows], default=_bytes_as_text).decode()


def _bytes_as_text(value: object) -> str:
    """As PostgreSQL reads bytes."""
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    raise TypeError(type(value).__name__)


def _names(columns: Sequence[str]) -> str:
    return ", ".join(f'"{c}"' for c in columns)


# --- engines ---------------------------------------------------------------------------------------------------------


def _check_sqlite(path: str | None) -> None:
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        raise DatabaseFault(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 or newer is needed")
    if not path or path == ":memory:":
        raise DatabaseFault("JETHOOK_DATABASE_URL: an in-memory database would lose every event; name a file")
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise DatabaseFault(f"JETHOOK_DATABASE_URL: the directory {str(folder)!r} does not exist; create it")
    with contextlib.suppress(OSError):  # for its owner alone: it holds secrets and addresses
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    if Path(path).is_dir():
        raise DatabaseFault(f"JETHOOK_DATABASE_URL: {path!r} is a directory; name a file in it")


def _sqlite_engine(url: sa.URL, *, writes: bool) -> Engine:
    engine = sa.create_engine(
        url,
        poolclass=QueuePool,
        hide_parameters=True,  # a traceback in the log must not show addresses
        pool_size=1 if writes else 8,
        max_overflow=0 if writes else 32,
        # A writer always ends its transaction itself; asking once more costs a turn at the interpreter lock.
        pool_reset_on_return=None if writes else "rollback",
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000, "cached_statements": 512},
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # the transaction starts where we say, not at the first change
        cursor = connection.cursor()
        try:
            _use_wal(cursor)
            cursor.execute("PRAGMA synchronous=FULL")  # an answered event survives a power cut
            cursor.execute("PRAGMA wal_autocheckpoint=4000")
            cursor.execute("PRAGMA journal_size_limit=67108864")
            cursor.execute("PRAGMA cache_size=-32768")
            cursor.execute("PRAGMA temp_store=MEMORY")
            # What is erased leaves the file's bytes too, not only the table: it is written over with zeros.
            cursor.execute("PRAGMA secure_delete=ON")
        finally:
            cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer takes the lock at once: a reader that turns writer half-way can be refused without waiting.
        # On the driver: through SQLAlchemy, this word took 8 of the 39 microseconds of an empty transaction.
        run_driver_sql(connection, "BEGIN IMMEDIATE" if writes else "BEGIN", ()).close()

    return engine


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Turn a new file to write-ahead logging; it stays so. The change needs the file alone and does not wait by itself,
    so processes that start together on a new file try again until one of them has made it."""
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        return
    give_up = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            # Deleted space can be given back later only if this is chosen before the first table.
            cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        else:
            return
