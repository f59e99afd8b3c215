"""The ledger: how many events and deliveries were made, and how many were deleted on purpose.

Whoever stores or deletes events or deliveries writes it down here in the same transaction, from what it means to do and
not from what the tables say afterwards. So `made = there + erased + expired` can be asked at any time, and a row that
is missing, or there without having been taken in, shows: that is `jethook audit`.

A line stands for a slot of time: the first seven digits of an event's id, which are 2**20 ms (17.5 minutes) of the time
at which it happened. By that head the tables themselves can be counted from their indexes, in any range of time, and a
partition by id (see retention) holds whole lines or parts of them, never something else.

What could not be read is accepted as well: a line of quarantine counts its entries, by when they came, since they have
no other time. One that somebody deleted, or that could be read in the end, counts as erased.

Lines of long ago, with nothing left of what they stand for, are put together into one (`put_together`): what adds up
goes on adding up, and the ledger does not grow for ever.

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
from app.models import LedgerEntry, Quarantined

_lines: sa.Table = LedgerEntry.__table__  # type: ignore[attr-defined]

SLOT_DIGITS = 7
SLOT_MILLIS = 1 << 20  # an id starts with 48 bits of milliseconds: seven digits leave 20 of them
SLOT_MICROS = SLOT_MILLIS * 1000
WRITERS = 64
THE_EVENTS = ""  # in the place of a sink: the line counts events
QUARANTINE = "?"  # in the place of a sink: the line counts entries of quarantine
THE_PAST = "0" * SLOT_DIGITS  # the slot of lines that were put together

EventKey = tuple[str, str]  # id, webhook
DeliveryKey = tuple[str, str, str]  # event's id, webhook, sink
EntryKey = tuple[str, int]  # webhook, when it came in microseconds since 1970
Line = tuple[str, str, str]  # slot, webhook, sink


class Entry(StrEnum):
    """A column of the ledger."""

    MADE = "made"
    ERASED = "erased"  # a person's, at their wish
    EXPIRED = "expired"  # by retention


def slot_of(moment: datetime) -> str:
    """The slot in which `moment` lies; slots sort as their times do."""
    return slot_of_micros(to_micros(moment))


def slot_of_micros(micros: int) -> str:
    return f"{micros // SLOT_MICROS:0{SLOT_DIGITS}x}"


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
    connection: Connection, entry: Entry, *, events: Iterable[EventKey] = (), deliveries: Iterable[DeliveryKey] = (),
    quarantined: Iterable[EntryKey] = (),
) -> None:  # fmt: skip
    """Write down what this transaction makes or deletes, each event, delivery and entry once."""
    counts = Counter((event_id[:SLOT_DIGITS], webhook, THE_EVENTS) for event_id, webhook in events)
    counts.update((event_id[:SLOT_DIGITS], webhook, sink) for event_id, webhook, sink in deliveries)
    counts.update((slot_of_micros(micros), webhook, QUARANTINE) for webhook, micros in quarantined)
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


def delete_quarantined(connection: Connection, which: sa.ColumnElement[bool], why: Entry) -> int:
    """Delete entries of quarantine and write it down; how many there were."""
    table: sa.Table = Quarantined.__table__  # type: ignore[attr-defined]
    micros = sa.type_coerce(table.c.received_at, sa.BigInteger)
    gone = connection.execute(sa.delete(table).where(which).returning(table.c.webhook, micros)).all()
    record(connection, why, quarantined=[(webhook, int(moment)) for webhook, moment in gone])
    return len(gone)


def lines_between_the_past_and(slot: str) -> sa.Exists:
    """Are there any that `put_together` would look at?"""
    return sa.exists().where(_lines.c.slot > THE_PAST, _lines.c.slot < slot)


def put_together(connection: Connection, before: str, most: int) -> int:
    """Take at most `most` lines of slots before that one, of which nothing is left, into the line of the past.

    A line that changes meanwhile goes back to its place. How many lines there were.
    """
    where = (_lines.c.slot, _lines.c.webhook, _lines.c.sink)
    sums = [sa.func.sum(_lines.c[entry]) for entry in Entry]
    settled = (
        sa.select(*where).where(_lines.c.slot > THE_PAST, _lines.c.slot < before).group_by(*where)
        .having(sums[0] == sums[1] + sums[2]).order_by(*where).limit(most)
    )  # fmt: skip
    found = [(slot, webhook, sink) for slot, webhook, sink in connection.execute(settled)]
    numbers = {line: Counter[Entry]() for line in found}
    # SQLite 3.40 wants the pairs as values; the key's order keeps two who do this from waiting in a circle.
    for line in found:
        gone = sa.delete(_lines).where(*(column == value for column, value in zip(where, line, strict=True)))
        for row in connection.execute(gone.returning(*(_lines.c[entry] for entry in Entry))):
            numbers[line].update(dict(zip(Entry, row, strict=True)))
    for entry in Entry:
        counts: Counter[Line] = Counter()
        for line, made in numbers.items():
            counts[_place_of(line, made)] += made[entry]
        add(connection, entry, counts)
    return len(found)


def _place_of(line: Line, numbers: Mapping[Entry, int]) -> Line:
    is_settled = numbers[Entry.MADE] == numbers[Entry.ERASED] + numbers[Entry.EXPIRED]
    return (THE_PAST, line[1], line[2]) if is_settled else line


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
