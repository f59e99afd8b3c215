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

from app.filters import event_conditions
from app.rollups.cells import Fact
from app.rollups.store import FACT_COLUMNS, Progress, events, fact_of, read_progress
from app.stats.answering import Row, Rows, keys_by, kind_of
from app.stats.asking import MOST_READ, Plan, Question, plan, too_much
from app.stats.counting import count
from app.stats.loose import Loose, read_loose
from app.stats.memory import Memory
from app.stats.scale import scale_of
from app.stats.uniques import count_uniques

MOST_ROWS = 10_000  # of an answer


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
    """What an answer starts from: how far events are counted, and those that no counts hold."""

    progress: Progress
    loose: Loose
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
    loose, as_of = read_loose(connection, question, how, progress)
    return Moment(progress, loose, as_of)


def rows_of(connection: Connection, question: Question, how: Plan, moment: Moment, memory: Memory) -> Rows:
    """The rows without uniques."""
    rows = count(connection, question, how, moment.progress, memory)
    moment.loose.add_to(rows)
    refuse_more_than(MOST_ROWS, len(rows), "rows")
    return rows


# --- from the events alone -------------------------------------------------------------------------------------------


def direct_statement(question: Question) -> sa.Select[Any]:
    return sa.select(*FACT_COLUMNS).where(*event_conditions(question.filters, events.c)).limit(MOST_READ + 1)


def _from_events(connection: Connection, question: Question) -> Answer:
    facts = [fact_of(row) for row in connection.execute(direct_statement(question)).all()]
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
        rows.setdefault(key_of(fact), Row()).add(kind_of(fact), 1)


# --- bounds ----------------------------------------------------------------------------------------------------------


def refuse_more_than(most: int, found: int, what: str) -> None:
    if found > most:
        raise too_much(f"more than {most} {what}: ask for a shorter time, fewer groups or a narrower filter")
