"""A move from its first row to the last comparison. It can be broken off at any time and started again.

Batches go in the order of each table's key, each in a transaction with the place where it ends. At the end every table
is read again on both sides and compared; one that differs, because the source was used between two parts of a move, is
copied once more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url

from app.clock import utc_now
from app.errors import DatabaseFault
from app.models import Secret
from app.move import source, target
from app.move.tables import Digest, Row, all_tables, key_of

BATCH_ROWS = 5000
CHECKED_AT_ONCE = 20_000  # rows between two words about the progress of the check

_secrets: sa.Table = Secret.__table__  # type: ignore[attr-defined]
Told = Callable[[str, float], None]


@dataclass(slots=True)
class Moved:
    """One table at the end of a move; `digest` is of the source."""

    table: str
    rows: int
    copied: int  # by this run
    digest: str
    is_equal: bool


@dataclass(slots=True)
class Report:
    tables: list[Moved] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return all(table.is_equal for table in self.tables)


def must_be_movable(url: str) -> None:
    """Raises DatabaseFault for a source that is no SQLite file."""
    if not url.startswith("sqlite"):
        raise DatabaseFault("JETHOOK_DATABASE_URL: a move starts from SQLite, and this is another database")


class Move:
    """`tell` hears what is done, in words and in rows copied and rows checked: in the end twice `total`."""

    def __init__(
        self, here: Connection, there: Connection, name: str, *, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._now = now
        self._here = here
        self._there = there
        self._name = name
        self._counts = {table.name: source.count(here, table) for table in all_tables()}
        self._done = 0
        self._tell: Told = lambda words, rows: None

    @property
    def total(self) -> int:
        """Rows to copy and rows to check."""
        return 2 * sum(self._counts.values())

    def run(self, tell: Told = lambda words, rows: None) -> Report:
        """Raises DatabaseFault for a target that is not ours to fill, and what either database raises."""
        self._tell = tell
        places = target.begin(self._there, self._name)
        target.make_weeks(self._there, source.weeks_of_events(self._here, self._now()))
        copied: dict[str, int] = {}
        for table in all_tables():
            cursor, rows = places.get(table.name, (None, 0))
            self._done += rows
            copied[table.name] = self._copy(table, cursor)
        report = Report([self._checked(table, copied[table.name]) for table in all_tables()])
        if report.is_whole:
            self._go_on_counting()
            target.end(self._there)
        return report

    def _copy(self, table: sa.Table, cursor: list[Any] | None) -> int:
        copied = 0
        while rows := source.page(self._here, table, cursor, BATCH_ROWS):
            cursor = key_of(table, rows[-1])
            target.take(self._there, table, rows, cursor)
            copied += len(rows)
            self._done += len(rows)
            self._tell(f"{table.name}: {copied} of {self._counts[table.name]} rows", self._done)
        return copied

    def _checked(self, table: sa.Table, copied: int) -> Moved:
        here = self._digest(table, source.every_row(self._here, table))
        there = self._digest(table, target.every_row(self._there, table))
        if here != there:
            target.start_again(self._there, table)
            copied += self._copy(table, None)
            there = self._digest(table, target.every_row(self._there, table))
        return Moved(table.name, here.rows, copied, str(here), here == there)

    def _digest(self, table: sa.Table, rows: Iterable[Row]) -> Digest:
        digest = Digest()
        for row in rows:
            digest.add(row)
            if digest.rows % CHECKED_AT_ONCE == 0:
                self._tell(f"{table.name}: {digest.rows} rows compared", self._done + digest.rows / 2)
        self._done += digest.rows // 2
        return digest

    def _go_on_counting(self) -> None:
        for table in all_tables():
            column = table.autoincrement_column
            if column is not None and isinstance(column.type, sa.Integer):
                last = source.last_number(self._here, table)
                if last:
                    target.go_on_counting(self._there, table, column.name, last)


def name_of(url: str, connection: Connection) -> str:
    """Tells one source from another: its file, and the secret it made for itself."""
    path = Path(str(make_url(url).database)).resolve()
    secrets = sorted(connection.execute(sa.select(_secrets.c.name, _secrets.c.value)).all())
    return hashlib.sha256(repr((str(path), [tuple(row) for row in secrets])).encode()).hexdigest()
