"""An import: the lines of an export back into the database, in batches, each a transaction of its own.

An event that is there already is left alone, so an import can be repeated, and goes on where another one broke off.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app import ledger, operator_events
from app.db import Database, insert_missing, insert_new
from app.dispatch.matching import Matcher
from app.dispatch.service import DELIVERY_COLUMNS, NoWorker, delivery_key, fan_out
from app.models import Delivery, Event
from app.suppressions.keeping import Keeper
from app.transfer.lines import BadLine, Row, parse_line
from app.views import EVENT_COLUMNS

BATCH_EVENTS = 1000
MAX_LINE_BYTES = 64 * 1024 * 1024  # several times what a callback may hold

_events: sa.Table = Event.__table__  # type: ignore[attr-defined]
_deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
_ID, _WEBHOOK, _TYPE, _TEST = (EVENT_COLUMNS.index(name) for name in ("id", "webhook", "type", "test"))


@dataclass(slots=True)
class Report:
    """lines = stored + duplicates + faults, counted as far as they are committed; blank lines are none."""

    lines: int = 0
    stored: int = 0
    duplicates: int = 0
    deliveries: int = 0
    faults: int = 0


class Importer:
    """Stores what the lines of a file hold. `matcher` finds the sinks of new events; without one nothing is owed.
    `keeper` keeps suppressions up with them.

    `on_fault` is told the number of a line and what is wrong with it, `on_progress` after each batch.
    """

    def __init__(
        self, database: Database, *, matcher: Matcher | None = None, keeper: Keeper | None = None,
        on_fault: Callable[[int, str], None], on_progress: Callable[[Report], None] = lambda report: None,
    ) -> None:  # fmt: skip
        self.report = Report()
        self._database = database
        self._matcher = matcher
        self._keeper = keeper or Keeper()
        self._on_fault = on_fault
        self._on_progress = on_progress

    def run(self, file: IO[bytes], *, now_micros: int) -> Report:
        """Read `file` to its end, gzip or not. Raises what the database raises; what was committed stays."""
        batch: list[Row] = []
        for number, line in self._lines(file):
            try:
                batch.append(parse_line(line))
            except BadLine as fault:
                self._fault(number, str(fault))
            if len(batch) >= BATCH_EVENTS:
                self._store(batch, now_micros)
                batch = []
        if batch:
            self._store(batch, now_micros)
        return self.report

    def _lines(self, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
        """(number, line) without blank ones; a file that ends within its gzip stream is a fault at its last line."""
        number = 0
        try:
            for number, line in numbered_lines(unpacked(file)):
                if len(line) > MAX_LINE_BYTES:
                    self._fault(number, f"longer than {MAX_LINE_BYTES} bytes")
                elif line.strip():
                    yield number, line
        except (EOFError, gzip.BadGzipFile, zlib.error):
            self._fault(number + 1, "the gzip stream is broken or ends too early: the file is not whole")

    def _fault(self, number: int, text: str) -> None:
        self.report.lines += 1
        self.report.faults += 1
        self._on_fault(number, text)

    def _store(self, batch: list[Row], now_micros: int) -> None:
        stored, owed = self._database.write(lambda connection: store_rows(
            connection, batch, matcher=self._matcher, keeper=self._keeper, now_micros=now_micros
        ))  # fmt: skip
        self.report.lines += len(batch)
        self.report.stored += stored
        self.report.duplicates += len(batch) - stored
        self.report.deliveries += owed
        self._on_progress(self.report)


def store_rows(
    connection: Connection, rows: Iterable[Row], *, matcher: Matcher | None, keeper: Keeper, now_micros: int
) -> tuple[int, int]:
    """Store what is not there, and what it causes; (events stored, deliveries owed)."""
    # In order of id, as ingest does: two that store the same events never wait for each other in a circle.
    unique = {row[_ID]: row for row in rows}
    ordered = [unique[event_id] for event_id in sorted(unique)]
    new = insert_new(connection, _events, EVENT_COLUMNS, ordered)
    stored = [row for row in ordered if row[_ID] in new]
    owed = [] if matcher is None else [d for row in stored for d in _owed(matcher, row, now_micros)]
    insert_missing(connection, _deliveries, DELIVERY_COLUMNS, owed)
    ledger.record(
        connection, ledger.Entry.MADE, events=((row[_ID], row[_WEBHOOK]) for row in stored),
        deliveries=map(delivery_key, owed),
    )  # fmt: skip
    keeper.record(connection, [row for row in stored if row[_WEBHOOK] != operator_events.WEBHOOK])
    return len(stored), len(owed)


def _owed(matcher: Matcher, row: Row, now_micros: int) -> list[tuple[Any, ...]]:
    """Delivery rows of a new event, due at once, for whoever delivers; none for a test event."""
    if row[_TEST]:
        return []
    owed, _ = fan_out(
        event_id=row[_ID], webhook=row[_WEBHOOK], event_type=row[_TYPE], event=row,
        targets=matcher.targets(row[_WEBHOOK], row[_TYPE], row), worker=NoWorker(), now_micros=now_micros,
    )  # fmt: skip
    return owed


# --- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], int | None]]:
    """(the file, its size where it is known); `-` is standard input."""
    if str(path) == "-":
        yield sys.stdin.buffer, None
        return
    with path.open("rb") as file:
        yield file, path.stat().st_size or None


def unpacked(file: IO[bytes]) -> IO[bytes]:
    """The same file, or what is packed in it: a gzip file tells by its first two bytes."""
    buffered = io.BufferedReader(file) if isinstance(file, io.RawIOBase) else file
    start = buffered.peek(2)[:2] if isinstance(buffered, io.BufferedReader) else b""
    return gzip.GzipFile(fileobj=buffered) if start == b"\x1f\x8b" else buffered  # type: ignore[return-value]


def numbered_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines from number 1. Of one that is too long just its start is given, one byte more than is allowed."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        yield number, line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)
