"""Events that no counts hold: those not counted yet, and those in parts of hours at the ends of a range.

The database adds them up; whom they are about is read only where recipients are told apart one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.clock import from_micros
from app.db import read_many
from app.filters import Condition, EventFilters, Unindexed, event_conditions, id_bounds
from app.partitions import first_id
from app.rollups.cells import HOUR_MICROS, Unit
from app.rollups.store import Progress, events
from app.stats.answering import Row, Rows
from app.stats.asking import MOST_READ, Plan, Question, Shape, Span, too_much
from app.stats.statements import bucket_of, made_once, parted, total

MOST_TAIL = 5_000  # events not counted yet that an answer adds up itself
_LAST = 2**62  # beyond every event's number

_HOUR = sa.type_coerce(events.c.occurred_at, sa.BigInteger) // sa.literal_column(str(HOUR_MICROS), sa.BigInteger)
_KIND = [events.c[name].label(f"kind_{name}") for name in ("type", "outcome", "automated")]


@dataclass(frozen=True, slots=True)
class Part:
    """Events of the tail, or of an edge; `values` are the parameters of its statements."""

    is_tail: bool
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Loose:
    """`rows` without uniques, and where their events are found."""

    rows: Rows
    parts: tuple[Part, ...]

    @property
    def buckets(self) -> set[int]:
        return {key[0] for key in self.rows}

    def add_to(self, rows: Rows) -> None:
        for key, row in self.rows.items():
            whole = rows.setdefault(key, Row())
            for kind, number in row.kinds.items():
                whole.add(kind, number)

    def people(self, connection: Connection, question: Question) -> Iterator[list[Any]]:
        """(bucket, value of each grouped field …, email, message id) of every event."""
        for part in self.parts:
            yield from read_many(connection, people_statement(question.shape, part.is_tail), part.values)


def read_loose(
    connection: Connection, question: Question, how: Plan, progress: Progress
) -> tuple[Loose, datetime | None]:
    """(what is loose, up to when that is all; None: it is all). Raises Invalid for an hour with too many events."""
    end, as_of = _tail_end(connection, progress.seq)
    parts = [edge_part(edge, progress.seq) for edge in how.edges]
    for edge in how.edges:
        hour = edge[0] // HOUR_MICROS
        if total(connection, Span(Unit.HOUR, hour, hour + 1)) > MOST_READ:
            raise too_much("the hour at the end of the range holds too many events: let `after` and `before` be hours")
    parts.append(tail_part(question.filters, progress.seq, end))
    rows: Rows = {}
    width = 1 + len(question.group_by)
    for part in parts:
        for found in connection.execute(loose_statement(question.shape, part.is_tail), part.values):
            kind = (found[width], found[width + 1], found[width + 2])
            rows.setdefault(tuple(found[:width]), Row()).add(kind, found[-1])
    return Loose(rows, tuple(parts)), as_of


@made_once
def loose_statement(shape: Shape, is_tail: bool) -> sa.Select[Any]:
    keys = _keys(shape)
    counted = sa.select(*keys, *_KIND, sa.func.count()).where(*_conditions(shape, is_tail))
    return counted.group_by(*parted(shape, keys), *_KIND)


@made_once
def people_statement(shape: Shape, is_tail: bool) -> sa.Select[Any]:
    return sa.select(*_keys(shape), events.c.email, events.c.message_id).where(*_conditions(shape, is_tail))


def _keys(shape: Shape) -> list[sa.ColumnElement[Any]]:
    bucket = bucket_of(shape, _HOUR, Unit.HOUR).label("bucket")
    return [bucket, *(events.c[name].label(f"by_{name}") for name in shape.group_by)]


# --- which they are --------------------------------------------------------------------------------------------------


def tail_part(filters: EventFilters, after: int, upto: int | None) -> Part:
    """Events not counted yet."""
    first, beyond = id_bounds(filters)
    return Part(is_tail=True, values={"after": after, "upto": upto or _LAST, "first": first, "beyond": beyond})


def edge_part(edge: tuple[int, int], upto: int) -> Part:
    """Counted events in a part of an hour."""
    first, beyond = map(first_id, map(from_micros, edge))
    return Part(is_tail=False, values={"upto": upto, "first": first, "beyond": beyond})


def _conditions(shape: Shape, is_tail: bool) -> list[Condition]:
    """In the order of commits for the tail, and by the ids for an edge."""
    seq = events.c.seq if is_tail else events.c.seq + 0
    id: sa.ColumnElement[str] = Unindexed(events.c.id) if is_tail else events.c.id
    return [
        *([seq > sa.bindparam("after", type_=sa.BigInteger())] if is_tail else []),
        seq <= sa.bindparam("upto", type_=sa.BigInteger()),
        *event_conditions(shape.filters, events.c, by_seq=is_tail),
        id >= sa.bindparam("first", type_=events.c.id.type),
        id < sa.bindparam("beyond", type_=events.c.id.type),
    ]


tail_end_statement = (
    sa.select(events.c.seq, events.c.received_at)
    .where(events.c.seq > sa.bindparam("after", type_=sa.BigInteger()))
    .order_by(events.c.seq)
    .offset(sa.bindparam("skipped", type_=sa.Integer()))
    .limit(2)
)


def _tail_end(connection: Connection, after: int) -> tuple[int | None, datetime | None]:
    """(the last event to add, when it was received) where there are more than an answer can add; else (None, None)."""
    found = connection.execute(tail_end_statement, {"after": after, "skipped": MOST_TAIL - 1}).all()
    return (found[0].seq, found[0].received_at) if len(found) == 2 else (None, None)
