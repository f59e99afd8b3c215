"""An export: a walk over events, a page at a time, each page rendered to bytes. Knows no HTTP.

A page is read in a transaction of its own and rendered, so neither memory nor a transaction grows with the export. It
goes on after the id of the last event looked at, as lists do: what arrives meanwhile never makes it miss or repeat
what was there.
"""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy.engine import Connection

from app.filters import EventFilters, EventQuery
from app.query.cursor import Position
from app.query.pages import Row
from app.query.parquet import COLUMNS, ParquetForm
from app.query.queries import list_events
from app.views import dump, event_view

FIRST_ROWS = 50
MOST_ROWS = 500
# An event can be as large as a callback may be: pages of large ones shrink, so that a page stays in memory.
PAGE_BYTES = 1024 * 1024
PAGE_SECONDS = 0.25  # so long a rare filter's page keeps others waiting for the thread
GZIP_LEVEL = 5  # of 20 MB of events: a ninth at 128 MB/s; level 6 saves 4 % more at 76 MB/s

Format = Literal["ndjson", "csv", "parquet"]
# What a spreadsheet takes for the start of a formula, also in full width (OWASP, "CSV Injection").
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class ExportFilters(EventFilters):
    """Which events, in which order and form."""

    order: Literal["asc", "desc"] = Field("asc", description="`asc`: oldest first")
    format: Format = Field(
        "ndjson",
        description="one JSON object a line, comma separated values (RFC 4180), or Parquet where that is installed",
    )
    csv_safe: bool = Field(
        False,
        description="CSV for a spreadsheet: a value that would be taken for a formula gets a `'` in front, which"
        " changes it",
    )


class Export:
    """One export under way. `done` once everything has been rendered; `count` events so far."""

    def __init__(self, asked: ExportFilters, *, gzip: bool = False) -> None:
        self.count = 0
        self.done = False
        self._query = _query_of(asked)
        self._position: Position | None = None
        self._rows = FIRST_ROWS
        self._asked = asked
        self._form: Lines | ParquetForm | None = None  # made where pages are read: Parquet takes a while to load
        self._compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31) if gzip else None

    def next_part(self, connection: Connection) -> bytes:
        """The next page as bytes; of a rare filter, and with compression, they may be none yet."""
        asked = self._query.model_copy(update={"limit": self._rows})
        page = list_events(connection, asked, self._position, PAGE_SECONDS)
        form = self._form = self._form or form_of(self._asked)
        plain, size = form.add(page.rows)
        self.count += len(page.rows)
        self.done = not page.has_more
        self._position = page.beyond
        if page.rows:
            self._rows = next_rows(len(page.rows), size)
        return self._packed(plain + form.end() if self.done else plain)

    def _packed(self, plain: bytes) -> bytes:
        if self._compressor is None:
            return plain
        return self._compressor.compress(plain) + (self._compressor.flush() if self.done else b"")


def next_rows(rows: int, size: int) -> int:
    """How many rows to read after a page of that many rows and bytes."""
    return max(1, min(MOST_ROWS, rows * 4, rows * PAGE_BYTES // max(size, 1)))


def _query_of(asked: ExportFilters) -> EventQuery:
    filters = {name: getattr(asked, name) for name in EventFilters.model_fields}
    # Checked already, when they were asked for.
    return EventQuery.model_construct(**filters, order=asked.order, limit=FIRST_ROWS, cursor=None, include=[])


# --- forms -----------------------------------------------------------------------------------------------------------


class Lines:
    """A head and a line for each event."""

    def __init__(self, render: Callable[[Row], bytes], head: bytes = b"") -> None:
        self._render = render
        self._head = head

    def add(self, rows: Sequence[Row]) -> tuple[bytes, int]:
        """(the lines, their bytes)."""
        lines = self._head + b"".join(map(self._render, rows))
        self._head = b""
        return lines, len(lines)

    def end(self) -> bytes:
        return b""


def form_of(asked: ExportFilters) -> Lines | ParquetForm:
    if asked.format == "parquet":
        return ParquetForm()
    if asked.format == "ndjson":
        return Lines(ndjson_line)
    cell = safe_cell if asked.csv_safe else csv_cell
    return Lines(lambda row: csv_line(map(cell, _csv_values(row))).encode(), csv_line(COLUMNS).encode())


def ndjson_line(row: Row) -> bytes:
    """The event of contract shape with `raw`, every digit kept, on one line."""
    return dump(event_view(_on_one_line(row), include_raw=True)) + b"\n"


def _on_one_line(row: Row) -> Mapping[str, Any]:
    # In JSON a line can end between values only: within a text it must be escaped.
    raw: str | None = row["raw"]
    if raw is None or ("\n" not in raw and "\r" not in raw):
        return row
    return {**row, "raw": raw.replace("\r", " ").replace("\n", " ")}


def _csv_values(row: Row) -> Iterable[Any]:
    row = _on_one_line(row)
    view = event_view(row, include_raw=False)
    view["raw"] = row["raw"]
    view["details"] = dump(view["details"]).decode()
    return (view[name] for name in COLUMNS)


def csv_line(cells: Iterable[str]) -> str:
    """RFC 4180: quotes only where they are needed, lines end with CRLF."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue()


def csv_cell(value: str | bool | datetime | None) -> str:
    """Null is nothing; there is no empty text among an event's values."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def safe_cell(value: str | bool | datetime | None) -> str:
    """The same, but never the start of a formula."""
    cell = csv_cell(value)
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell
