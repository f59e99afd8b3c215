"""The ledger: how many events and deliveries were made, and how many were deleted on purpose.

Whoever stores or deletes events or deliveries writes it down here in the same transaction, from what it means to do and
not from what the tables say afterwards. So `made = there + erased + expired` can be asked at any time, and a row that
is missing, or there without having been taken in, shows: that is `jethook audit`.

A line stands for a slot of time: the first seven digits of an event's id, which are 2**20 ms (17.5 minutes) of the time
at which it happened. By that head the tables themselves can be counted from their indexes, in any range of time, and a
partition by id (see retention) holds whole lines or parts of them, never something else.

Rows of PostgreSQL that many replicas change at once would be a queue: each backend has, nearly always, a line of its
own (`writer`), and their sum is what counts. Lines are written in their order, so nobody waits in a circle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from itertools import chain

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.clock import from_micros, to_micros
from app.db import chunks, run_driver_sql

SLOT_DIGITS = 7
SLOT_MILLIS = 1 << 20  # an id starts with 48 bits of milliseconds: seven digits leave 20 of them
WRITERS = 64
THE_EVENTS = ""  # in the place of a sink: the line counts events

EventKey = tuple[str, str]  # id, webhook
DeliveryKey = tuple[str, str, str]  # event's id, webhook, sink
Line = tuple[str, str, str]  # slot, webhook, sink


class Entry(StrEnum):
    """A column of the ledger."""

    MADE = "made"
    ERASED = "erased"  # a person's, at their wish
    EXPIRED = "expired"  # by retention


def slot_of(moment: datetime) -> str:
    """The slot in which `moment` lies; slots sort as their times do."""
    return f"{to_micros(moment) // 1000 // SLOT_MILLIS:0{SLOT_DIGITS}x}"


def slot_start(slot: str) -> datetime:
    return from_micros(int(slot, 16) * SLOT_MILLIS * 1000)


def slot_within(event_id: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    """The slot of an event, by the column of its id."""
    return sa.func.substr(sa.cast(event_id, sa.Text), 1, SLOT_DIGITS)


def first_id_of(slot: str) -> str:
    """The smallest id of a slot."""
    return f"{slot:0<8}-0000-0000-0000-000000000000"


def next_slot(slot: str) -> str:
    return f"{int(slot, 16) + 1:0{SLOT_DIGITS}x}"


def record(
    connection: Connection, entry: Entry, *, events: Iterable[EventKey] = (), deliveries: Iterable[DeliveryKey] = ()
) -> None:
    """Write down what this transaction makes or deletes, each event and each delivery once."""
    counts = Counter((event_id[:SLOT_DIGITS], webhook, THE_EVENTS) for event_id, webhook in events)
    counts.update((event_id[:SLOT_DIGITS], webhook, sink) for event_id, webhook, sink in deliveries)
    add(connection, entry, counts)


def count_all_of(
    connection: Connection, *, events: sa.FromClause | None = None, deliveries: sa.FromClause | None = None
) -> dict[Line, int]:
    """Every row in tables or subqueries with the columns of `events` and `deliveries`: of partitions, say, that are
    about to be dropped. Who records that sees to it that none changes between this and the deletion."""
    counts: dict[Line, int] = {}
    if events is not None:
        slot = slot_within(events.c.id)
        found = connection.execute(sa.select(slot, events.c.webhook, sa.func.count()).group_by(slot, events.c.webhook))
        counts |= {(first, webhook, THE_EVENTS): int(number) for first, webhook, number in found}
    if deliveries is not None:
        keys = (slot_within(deliveries.c.event_id), deliveries.c.webhook, deliveries.c.sink)
        found = connection.execute(sa.select(*keys, sa.func.count()).group_by(*keys))
        counts |= {(first, webhook, sink): int(number) for first, webhook, sink, number in found}
    return counts


def changes(connection: Connection, first: datetime, last: datetime) -> tuple[int, ...]:
    """A mark of all that was ever made or deleted of the slots from `first` to `last`: the same twice, and nothing was
    in between."""
    sums = ", ".join(f"coalesce(sum({column}), 0)" for column in Entry)
    statement = sa.text(f"SELECT {sums} FROM ledger WHERE slot BETWEEN :first AND :last")  # noqa: S608  our words
    row = connection.execute(statement, {"first": slot_of(first), "last": slot_of(last)}).one()
    return tuple(int(number) for number in row)


def add(connection: Connection, entry: Entry, counts: Mapping[Line, int]) -> None:
    lines = sorted((*line, number) for line, number in counts.items() if number)
    for chunk in chunks(lines):
        sql = _add_sql(entry, len(chunk), connection.dialect.name)
        run_driver_sql(connection, sql, tuple(chain.from_iterable(chunk))).close()


@lru_cache(maxsize=512)
def _add_sql(entry: Entry, rows: int, dialect: str) -> str:
    mark, writer = ("?", "0") if dialect == "sqlite" else ("%s", f"pg_backend_pid() %% {WRITERS}")
    numbers = ", ".join(mark if column is entry else "0" for column in Entry)
    row = f"({mark}, {mark}, {mark}, {writer}, {numbers})"
    return (
        f"INSERT INTO ledger (slot, webhook, sink, writer, {', '.join(Entry)}) VALUES {', '.join([row] * rows)} "  # noqa: S608  our words
        f"ON CONFLICT (slot, webhook, sink, writer) DO UPDATE SET {entry} = ledger.{entry} + excluded.{entry}"
    )
