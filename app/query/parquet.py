"""Events as Parquet, a row group at a time: one is all that is held. Needs the extra `parquet`: pyarrow."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from app.views import VIEW_COLUMNS, dump, event_view

if TYPE_CHECKING:
    import pyarrow as pa

# A group is what a reader takes at once. Small ones compress badly and each leaves 4 kB for the file's end.
GROUP_ROWS = 10_000
GROUP_BYTES = 8 * 1024 * 1024
COMPRESSION = "zstd"

COLUMNS = (*(name for name in VIEW_COLUMNS if name != "raw"), "payload", "origin", "details", "raw")
MOMENTS = ("occurred_at", "received_at")
TRUTHS = ("test", "permanent", "automated")

HOW_TO_INSTALL = "parquet needs an extra: install `jethook[parquet]`"


def is_installed() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def schema() -> pa.Schema:
    """Texts, but for two truths and two times; `details` and `raw` are JSON."""
    import pyarrow as pa  # noqa: PLC0415  imported where it is asked for: it takes a third of a second

    kinds = dict.fromkeys(MOMENTS, pa.timestamp("us", tz="UTC")) | dict.fromkeys(TRUTHS, pa.bool_())
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])


class ParquetForm:
    """Takes rows of events and gives the bytes of a Parquet file as far as they are settled."""

    def __init__(self) -> None:
        import pyarrow.parquet as pq  # noqa: PLC0415

        self._schema = schema()
        self._out = _Drain()
        self._writer = pq.ParquetWriter(self._out, self._schema, compression=COMPRESSION)
        self._rows: list[dict[str, Any]] = []
        self._size = 0

    def add(self, rows: Sequence[Mapping[str, Any]]) -> tuple[bytes, int]:
        """(what can be sent, about how many bytes the rows hold)."""
        size = sum(len(row["raw"] or "") for row in rows)
        self._rows += map(_values, rows)
        self._size += size
        if len(self._rows) >= GROUP_ROWS or self._size >= GROUP_BYTES:
            self._write_group()
        return self._out.taken(), size

    def end(self) -> bytes:
        """The last group and the file's end."""
        if self._rows:
            self._write_group()
        self._writer.close()
        return self._out.taken()

    def _write_group(self) -> None:
        import pyarrow as pa  # noqa: PLC0415

        table = pa.Table.from_pylist(self._rows, schema=self._schema)
        self._rows, self._size = [], 0
        self._writer.write_table(table, row_group_size=table.num_rows)


def _values(row: Mapping[str, Any]) -> dict[str, Any]:
    view = event_view(row, include_raw=False)
    known = {"details": dump(view["details"]).decode(), "raw": row["raw"], **{name: row[name] for name in MOMENTS}}
    return {name: known[name] if name in known else view[name] for name in COLUMNS}


class _Drain(io.RawIOBase):
    """A file that keeps only what was written since it was last emptied."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        part = bytes(content)
        self._parts.append(part)
        self._at += len(part)
        return len(part)

    def tell(self) -> int:
        return self._at

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def faults(asked_format: str, *, gzip: bool) -> Iterator[tuple[str, str]]:
    """(parameter, what is wrong with it) of what only this form refuses."""
    if asked_format == "parquet" and not is_installed():
        yield "format", HOW_TO_INSTALL
    elif asked_format == "parquet" and gzip:
        yield "gzip", "parquet is compressed already"
