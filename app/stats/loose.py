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
from app.filters import Condition, EventFilters, event_conditions
from app.rollups.cells import HOUR_MICROS, Unit
from app.rollups.store import Progress, events
from app.stats.answering import Row, Rows
from app.stats.asking import MOST_READ, Plan, Question, Span, too_much
from app.stats.statements import bucket_of, parted, total

MOST_TAIL = 5_000  # events not counted yet that an answer adds up itself

_HOUR = sa.type_coerce(events.c.occurred_at, sa.BigInteger) // sa.literal_column(str(HOUR_MICROS), sa.BigInteger)
_KIND = [events.c[name].label(f"kind_{name}") for name in ("type", "outcome", "automated")]


@dataclass(frozen=True, slots=True)
class Loose:
    """`rows` without uniques; `parts` are the conditions by which their events are found."""

    rows: Rows
    parts: tuple[list[Condition], ...]

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
            yield from read_many(connection, people_statement(question, part))


def read_loose(
    connection: Connection, question: Question, how: Plan, progress: Progress
) -> tuple[Loose, datetime | None]:
    """(what is loose, up to when that is all; None: it is all). Raises Invalid for an hour with too many events."""
    end, as_of = _tail_end(connection, progress.seq)
    parts = [edge_conditions(question.filters, edge, progress.seq) for edge in how.edges]
    for edge in how.edges:
        hour = edge[0] // HOUR_MICROS
        if total(connection, Span(Unit.HOUR, hour, hour + 1)) > MOST_READ:
            raise too_much("the hour at the end of the range holds too many events: let `after` and `before` be hours")
    parts.append(tail_conditions(question.filters, progress.seq, end))
    rows: Rows = {}
    width = 1 + len(question.group_by)
    for part in parts:
        for found in connection.execute(loose_statement(question, part)):
            kind = (found[width], found[width + 1], found[width + 2])
            rows.setdefault(tuple(found[:width]), Row()).add(kind, found[-1])
    return Loose(rows, tuple(parts)), as_of


def loose_statement(question: Question, conditions: list[Condition]) -> sa.Select[Any]:
    keys = _keys(question)
    counted = sa.select(*keys, *_KIND, sa.func.count()).where(*conditions)
    return counted.group_by(*parted(question, keys), *_KIND)


def people_statement(question: Question, conditions: list[Condition]) -> sa.Select[Any]:
    return sa.select(*_keys(question), events.c.email, events.c.message_id).where(*conditions)


def _keys(question: Question) -> list[sa.ColumnElement[Any]]:
    bucket = bucket_of(question, _HOUR, Unit.HOUR).label("bucket")
    return [bucket, *(events.c[name].label(f"by_{name}") for name in question.group_by)]


# --- which they are --------------------------------------------------------------------------------------------------


def tail_conditions(filters: EventFilters, after: int, upto: int | None) -> list[Condition]:
    """Events not counted yet."""
    within = [events.c.seq > after] if upto is None else [events.c.seq > after, events.c.seq <= upto]
    return [*within, *event_conditions(filters, events.c, by_seq=True)]


def edge_conditions(filters: EventFilters, edge: tuple[int, int], upto: int) -> list[Condition]:
    """Counted events in a part of an hour."""
    bounds = {"after": [from_micros(edge[0])], "before": [from_micros(edge[1])]}
    return [events.c.seq + 0 <= upto, *event_conditions(filters.model_copy(update=bounds), events.c)]


def tail_end_statement(after: int) -> sa.Select[Any]:
    return (
        sa.select(events.c.seq, events.c.received_at)
        .where(events.c.seq > after)
        .order_by(events.c.seq)
        .offset(MOST_TAIL - 1)
        .limit(2)
    )


def _tail_end(connection: Connection, after: int) -> tuple[int | None, datetime | None]:
    """(the last event to add, when it was received) where there are more than an answer can add; else (None, None)."""
    found = connection.execute(tail_end_statement(after)).all()
    return (found[0].seq, found[0].received_at) if len(found) == 2 else (None, None)
