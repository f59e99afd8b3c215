"""What statistics are answered from again and again, kept for as long as it stays true."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.db import chunks
from app.rollups.cells import ALL_FIELDS
from app.rollups.store import cells

_READ = sa.select(cells.c.id, *(cells.c[name] for name in ALL_FIELDS)).where(
    cells.c.id.in_(sa.bindparam("ids", expanding=True))
)
_ENTRY_BYTES = 500  # what an entry takes beside its own content


class Memory:
    """Parts of answers by what they depend on, those least asked for forgotten first; and what cells stand for. One
    for the process, for any thread."""

    MOST_BYTES = 16_000_000
    MOST_CELLS = 20_000  # some 400 bytes each

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: OrderedDict[tuple[Any, ...], tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._cells: dict[int, tuple[Any, ...]] = {}

    def get(self, key: tuple[Any, ...]) -> Any | None:
        """What was put there; never None itself."""
        with self._lock:
            found = self._parts.get(key)
            if found is None:
                return None
            self._parts.move_to_end(key)
            return found[0]

    def put(self, key: tuple[Any, ...], part: Any, size: int) -> None:
        """`size` in bytes, roughly. What would push out most others is not kept."""
        size += _ENTRY_BYTES
        if size > self.MOST_BYTES // 2:
            return
        with self._lock:
            self._bytes += size - self._parts.pop(key, (None, 0))[1]
            self._parts[key] = part, size
            while self._bytes > self.MOST_BYTES:
                self._bytes -= self._parts.popitem(last=False)[1][1]

    def read_cells(self, connection: Connection, ids: Iterable[int]) -> Mapping[int, tuple[Any, ...]]:
        """The values of cells, in the order of `ALL_FIELDS`. An id is a digest of them, so what is known stays true."""
        known, wanted = self._cells, set(ids)
        found = {id: known[id] for id in wanted & known.keys()}
        fresh = {
            row[0]: tuple(row[1:])
            for part in chunks(sorted(wanted - found.keys()), 512)
            for row in connection.execute(_READ, {"ids": part}).all()
        }
        if len(known) + len(fresh) <= self.MOST_CELLS:
            known.update(fresh)
        else:
            self._cells = fresh if len(fresh) <= self.MOST_CELLS else {}
        return found | fresh
