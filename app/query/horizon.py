"""Up to where the feed may read: no event with a `seq` at or below the horizon can appear any more.

SQLite has one writer, so `seq` is in commit order and the last one given out is the horizon. On PostgreSQL a sequence
gives numbers before their transactions commit, and in any order these commit: who reads past a number that is still
under way skips it for good. What helps is the lock that every transaction holds on the table from before it draws its
first number until its commit can be seen. So, in this order:

1. read the last number given out;
2. read who holds that lock. Whoever drew a number up to 1 is among them, or has ended.

When none of them is left, everything up to 1 is committed and visible, or never will be. Nothing is written for that,
no column, no index: ingest pays nothing, and a `seq` means the same in every cluster that it is copied to. Only writers
of this table are waited for. A column with the transaction's id, the usual scheme, waits for every transaction of the
cluster that writes anything anywhere, loses its meaning in another cluster, and with its index took 72 bytes more for
an event (of 795) and 10 to 22 % of the rate of single events in two runs (groups of 20 and 200: nothing that stood out
of the noise). A look takes 1.3 ms, also with 100 sessions in open transactions.

The numbers must be drawn one by one (`CACHE 1`, as a serial column does), and copies keep `seq` and set the sequence.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

log = structlog.get_logger(__name__)

FEED_HELD = "feed.held"
PATIENCE_SECONDS = 10.0  # a writer that takes longer is worth a line in the log

_GIVEN_ON_SQLITE = sa.text("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'")
_GIVEN = sa.text("SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM events_seq_seq")
_WRITERS = sa.text(
    "SELECT virtualtransaction, pid FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted"
    " AND relation = 'events'::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)

Writers = Mapping[str, int]
"""Transactions that may have drawn numbers -> process ids of their sessions."""


def last_given(connection: Connection) -> int:
    """The last `seq` given to an event, committed or not."""
    is_sqlite = connection.dialect.name == "sqlite"
    return int(connection.execute(_GIVEN_ON_SQLITE if is_sqlite else _GIVEN).scalar_one())


@dataclass(frozen=True, slots=True)
class Mark:
    """What one look found. `settled` is None until the writers that the first look met have ended."""

    given: int
    settled: int | None

    @property
    def is_settled(self) -> bool:
        return self.settled is not None and self.settled >= self.given


@dataclass(frozen=True, slots=True)
class _Pending:
    """Settled up to `given` once none of `writers` is left."""

    given: int
    writers: frozenset[str]
    since: float


class Horizon:
    """Remembers, between looks, whom it waits for. One for the process; `look` may be called from any thread.

    What reads up to the horizon does it in a transaction that begins after the look.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.held_seconds = 0.0  # for how long, at the last look, the same transactions had held the feed back
        self._lock = threading.Lock()
        self._settled: int | None = None
        self._pending: _Pending | None = None
        self._told = False

    def look(self, connection: Connection) -> Mark:
        with self._lock:  # over the questions too: answers must be judged in the order they were got
            given = last_given(connection)
            writers: Writers = {}
            if connection.dialect.name != "sqlite":
                writers = {row[0]: row[1] for row in connection.execute(_WRITERS)}
            return self._judge(given, writers)

    def _judge(self, given: int, writers: Writers) -> Mark:
        if self._settled is not None and given < self._settled:
            self._settled = None  # the database was put back to an earlier state
            self._pending = None
        if self._pending is not None and self._pending.writers.isdisjoint(writers):
            self._settle(self._pending.given)
        if not writers:
            self._settle(given)
        elif self._pending is None and given != self._settled:
            self._pending = _Pending(given, frozenset(writers), self._clock())
        self.held_seconds = 0.0 if self._pending is None else self._clock() - self._pending.since
        self._tell(writers)
        return Mark(given, self._settled)

    def _settle(self, seq: int) -> None:
        self._settled = seq
        self._pending = None
        self._told = False

    def _tell(self, writers: Writers) -> None:
        if self._told or self._pending is None or self.held_seconds < PATIENCE_SECONDS:
            return
        self._told = True
        pids = sorted({pid for name, pid in writers.items() if name in self._pending.writers})
        log.warning(FEED_HELD, seconds=round(self.held_seconds, 1), pids=pids)
