"""The SQL of statistics.

Counted events come from the counts, what was committed since from the events themselves; both are read in one
transaction, so the answer is that of one moment, whether or not somebody counts meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.clock import from_micros
from app.filters import EventFilters, event_conditions
from app.rollups.cells import HOUR_MICROS, Fact, Unit
from app.rollups.store import FACT_COLUMNS, Progress, events, fact_of, read_progress
from app.stats.answering import Row, Rows, keys_by, kind_of
from app.stats.asking import Plan, Question, Span, plan, too_much
from app.stats.counting import count
from app.stats.memory import Memory
from app.stats.scale import scale_of
from app.stats.statements import total
from app.stats.uniques import count_uniques

MOST_ROWS = 10_000  # of an answer
MOST_TAIL = 5_000  # events not counted yet that an answer adds up itself
MOST_READ = 50_000  # events read for filters that only an index serves, or at the edges of a range


@dataclass(slots=True)
class Answer:
    """`sample` is the share of recipients that uniques were counted from, 1 where they are exact. `as_of`: everything
    received until then is in; None: everything."""

    rows: Rows
    as_of: datetime | None = None
    sample: float = 1.0
    from_events: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """What an answer starts from: how far events are counted, and the `loose` ones that no counts hold."""

    progress: Progress
    loose: list[Fact]
    as_of: datetime | None


def answer(connection: Connection, question: Question, memory: Memory, *, uniques: bool = True) -> Answer:
    """All rows. Raises Invalid for what cannot be answered in a bounded time."""
    how = plan(question)
    if how.view is None:
        return _from_events(connection, question)
    moment = look(connection, question, how)
    rows = rows_of(connection, question, how, moment, memory)
    if not (rows and uniques):
        return Answer(rows, moment.as_of)
    scale = scale_of(connection, question, how, moment.loose)
    count_uniques(connection, question, scale, rows, moment.loose, moment.progress, memory)
    return Answer(rows, moment.as_of, scale.sample)


def look(connection: Connection, question: Question, how: Plan) -> Moment:
    progress = read_progress(connection)
    end, as_of = _tail_end(connection, progress.seq)
    loose = _edge_facts(connection, question, how, progress) + _tail_facts(connection, question, progress.seq, end)
    return Moment(progress, loose, as_of)


def rows_of(connection: Connection, question: Question, how: Plan, moment: Moment, memory: Memory) -> Rows:
    """The rows without uniques."""
    rows = count(connection, question, how, memory)
    _add_facts(rows, moment.loose, question)
    refuse_more_than(MOST_ROWS, len(rows), "rows")
    return rows


# --- from the events alone -------------------------------------------------------------------------------------------


def direct_statement(question: Question) -> sa.Select[Any]:
    return sa.select(*FACT_COLUMNS).where(*event_conditions(question.filters, events.c)).limit(MOST_READ + 1)


def _from_events(connection: Connection, question: Question) -> Answer:
    facts = [fact_of(row) for row in connection.execute(direct_statement(question))]
    refuse_more_than(MOST_READ, len(facts), "events")
    rows: Rows = {}
    _add_facts(rows, facts, question)
    refuse_more_than(MOST_ROWS, len(rows), "rows")
    seen: dict[Any, tuple[set[str], set[str]]] = {key: (set(), set()) for key in rows}
    key_of = keys_by(question)
    for fact in facts:
        recipients, messages = seen[key_of(fact)]
        recipients.update([fact.email] if fact.email is not None else ())
        messages.update([fact.message_id] if fact.message_id is not None else ())
    for key, (recipients, messages) in seen.items():
        rows[key].recipients, rows[key].messages = len(recipients), len(messages)
    return Answer(rows, from_events=True)


def _add_facts(rows: Rows, facts: Iterable[Fact], question: Question) -> None:
    key_of = keys_by(question)
    for fact in facts:
        rows.setdefault(key_of(fact), Row()).kinds[kind_of(fact)] += 1


# --- what is not counted yet, and what no hour holds -----------------------------------------------------------------


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


def tail_statement(filters: EventFilters, after: int, upto: int | None) -> sa.Select[Any]:
    within = [events.c.seq > after] if upto is None else [events.c.seq > after, events.c.seq <= upto]
    return sa.select(*FACT_COLUMNS).where(*within, *event_conditions(filters, events.c, by_seq=True))


def _tail_facts(connection: Connection, question: Question, after: int, upto: int | None) -> list[Fact]:
    return [fact_of(row) for row in connection.execute(tail_statement(question.filters, after, upto))]


def edge_statement(filters: EventFilters, edge: tuple[int, int], upto: int) -> sa.Select[Any]:
    bounds = {"after": [from_micros(edge[0])], "before": [from_micros(edge[1])]}
    conditions = event_conditions(filters.model_copy(update=bounds), events.c)
    return sa.select(*FACT_COLUMNS).where(events.c.seq + 0 <= upto, *conditions).limit(MOST_READ + 1)


def _edge_facts(connection: Connection, question: Question, how: Plan, progress: Progress) -> list[Fact]:
    """Counted events in the parts of hours at the ends of the range."""
    found: list[Fact] = []
    for edge in how.edges:
        hour = edge[0] // HOUR_MICROS
        if total(connection, Span(Unit.HOUR, hour, hour + 1)) > MOST_READ:
            raise too_much("the hour at the end of the range holds too many events: let `after` and `before` be hours")
        found += [fact_of(row) for row in connection.execute(edge_statement(question.filters, edge, progress.seq))]
    return found


# --- bounds ----------------------------------------------------------------------------------------------------------


def refuse_more_than(most: int, found: int, what: str) -> None:
    if found > most:
        raise too_much(f"more than {most} {what}: ask for a shorter time, fewer groups or a narrower filter")
