"""Is the database there, does it take writes, will it keep them, and is there room?"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.clock import utc_now
from app.db import Database, insert_missing
from app.doctor.findings import Finding, failure, ok, warning
from app.doctor.network import judge_clock
from app.maintenance.clock_watch import MAX_AHEAD_SECONDS, database_now
from app.migrate import is_current
from app.models import Lease

URL = "JETHOOK_DATABASE_URL"
MIN_POSTGRES = 14
LITTLE_DISK_BYTES = 1024**3
NO_DISK_BYTES = 100 * 1024**2
LARGE_WAL_BYTES = 512 * 1024**2  # a reader or another process keeps it from being taken up into the file

_leases: sa.Table = Lease.__table__  # type: ignore[attr-defined]


class _GiveUp(Exception):
    """Ends the trial transaction without a commit."""


def examine(database: Database) -> Iterator[Finding]:
    """Raises what the driver raises when the database does not answer."""
    with database.reading() as connection:
        yield from _sqlite(connection) if database.is_sqlite else _postgres(connection)
        current = is_current(connection)
    if not current:
        yield warning("database", "the schema is out of date: `jethook serve` or `jethook migrate` brings it up", URL)
    else:
        yield _writes(database)


def _writes(database: Database) -> Finding:
    def trial(connection: Connection) -> None:
        insert_missing(connection, _leases, ("name", "owner", "expires_at"), [("doctor", "doctor", 0)])
        raise _GiveUp

    try:
        database.write(trial)
    except _GiveUp:
        return ok("database", "takes writes")
    except Exception as error:  # noqa: BLE001  whatever it is, it is the finding
        return failure("database", f"takes no writes: {getattr(error, 'orig', error)}", URL)
    raise AssertionError("the trial cannot be committed")


def _sqlite(connection: Connection) -> Iterator[Finding]:
    mode = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())
    yield ok("database", f"SQLite {sqlite3.sqlite_version}, journal mode {mode}")
    if mode != "wal":
        yield failure("database", "is not in write-ahead mode: the file system does not carry it", URL)
    path = Path(str(connection.engine.url.database)).resolve()
    yield _disk(path.parent)
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size > LARGE_WAL_BYTES:
        yield warning("database", f"{wal.name} has {_size(wal.stat().st_size)}: a long read holds it up", URL)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    if free < NO_DISK_BYTES:
        return failure("disk", f"only {_size(free)} free in {folder}", URL)
    if free < LITTLE_DISK_BYTES:
        return warning("disk", f"{_size(free)} free in {folder}", URL)
    return ok("disk", f"{_size(free)} free in {folder}")


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:.0f} MiB"


def _postgres(connection: Connection) -> Iterator[Finding]:
    version = int(_ask(connection, "SHOW server_version_num"))
    yield ok("database", f"PostgreSQL {_ask(connection, 'SHOW server_version')}")
    if version < MIN_POSTGRES * 10_000:
        yield failure("database", f"PostgreSQL {MIN_POSTGRES} or newer is needed", URL)
    if _ask(connection, "SELECT pg_is_in_recovery()") == "True":
        yield failure("database", "is a standby: it takes no writes; name the primary", URL)
    if _ask(connection, "SHOW synchronous_commit") == "off":
        yield failure("database", "synchronous_commit is off: an answered event may be lost in a crash", URL)
    if _ask(connection, "SHOW fsync") == "off":
        yield warning("database", "fsync is off: a power cut can destroy the database", URL)
    yield from _clock(connection)
    used = int(_ask(connection, "SELECT count(*) FROM pg_stat_activity"))
    most = int(_ask(connection, "SHOW max_connections"))
    told = f"{used} of {most} connections in use"
    yield ok("database", told) if used < most * 0.8 else warning("database", told + "; raise max_connections", URL)
    yield ok("disk", f"the database has {_size(int(_ask(connection, 'SELECT pg_database_size(current_database())')))}")


def _clock(connection: Connection) -> Iterator[Finding]:
    here, there = utc_now(), database_now(connection)
    yield judge_clock("the database", there, here)
    if (here - there).total_seconds() > MAX_AHEAD_SECONDS:
        yield failure("clock", "so far ahead, retention deletes nothing here until it fits", "the machine's clock")


def _ask(connection: Connection, question: str) -> str:
    return str(connection.execute(sa.text(question)).scalar_one())
