"""The SQL of statistics.

Counted events come from the counts, what was committed since from the events themselves; both are read in one
transaction, so the answer is that of one moment, whether or not somebody counts meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from app import operator_events
from app.clock import from_micros
from app.errors import FieldError, Invalid
from app.filters import Condition, EventFilters, event_conditions
from app.rollups.cells import (
    ALL_FIELDS,
    HOUR_MICROS,
    HOURS_OF_A_DAY,
    TOP_LEVEL,
    Fact,
    Unit,
    View,
    digest_of,
    level_of,
)
from app.rollups.store import FACT_COLUMNS, Progress, cells, counts, events, fact_of, members, read_progress
from app.stats.answering import Row, Rows, key_of, kind_of
from app.stats.asking import Plan, Question, Span, plan, spans_of

MOST_ROWS = 10_000  # of an answer
MOST_TAIL = 5_000  # events not counted yet that an answer adds up itself
MOST_READ = 50_000  # events read for filters that only an index serves, or at the edges of a range
MOST_WHOLE = 300_000  # events looked at where the question's fields are in no view together
EXACT = 60_000  # events in a range up to which recipients and messages are told apart one by one,
EXACT_IN_A_DAY = 400_000  # and within one day;
SAMPLE = 8_000  # of more, so many at least

Parts = list[sa.ColumnElement[Any]]
KIND = (cells.c.type, cells.c.outcome, cells.c.automated)


@dataclass(slots=True)
class Answer:
    """`sample` is the share of recipients that uniques were counted from, 1 where they are exact. `as_of`: everything
    received until then is in; None: everything."""

    rows: Rows
    as_of: datetime | None = None
    sample: float = 1.0
    from_events: bool = False


def answer(connection: Connection, question: Question) -> Answer:
    """Raises Invalid for what cannot be answered in a bounded time."""
    how = plan(question)
    if how.view is None:
        return _from_events(connection, question)
    progress = read_progress(connection)
    end, as_of = _tail_end(connection, progress.seq)
    loose = _edge_facts(connection, question, how, progress) + _tail_facts(connection, question, progress.seq, end)
    rows = _counted(connection, question, how)
    _add_facts(rows, loose, question)
    _refuse_more_than(MOST_ROWS, len(rows), "rows")
    sample = _uniques(connection, question, how, rows, loose, progress)
    return Answer(rows, as_of, sample)


# --- from the events alone -------------------------------------------------------------------------------------------


def direct_statement(question: Question) -> sa.Select[Any]:
    return sa.select(*FACT_COLUMNS).where(*event_conditions(question.filters, events.c)).limit(MOST_READ + 1)


def _from_events(connection: Connection, question: Question) -> Answer:
    facts = [fact_of(row) for row in connection.execute(direct_statement(question))]
    _refuse_more_than(MOST_READ, len(facts), "events")
    rows: Rows = {}
    _add_facts(rows, facts, question)
    _refuse_more_than(MOST_ROWS, len(rows), "rows")
    seen: dict[Any, tuple[set[str], set[str]]] = {key: (set(), set()) for key in rows}
    for fact in facts:
        recipients, messages = seen[key_of(fact, question)]
        recipients.update([fact.email] if fact.email is not None else ())
        messages.update([fact.message_id] if fact.message_id is not None else ())
    for key, (recipients, messages) in seen.items():
        rows[key].recipients, rows[key].messages = len(recipients), len(messages)
    return Answer(rows, from_events=True)


def _add_facts(rows: Rows, facts: Iterable[Fact], question: Question) -> None:
    for fact in facts:
        rows.setdefault(key_of(fact, question), Row()).kinds[kind_of(fact)] += 1


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
        if _total(connection, Span(Unit.HOUR, hour, hour + 1)) > MOST_READ:
            raise _too_much("the hour at the end of the range holds too many events: let `after` and `before` be hours")
        found += [fact_of(row) for row in connection.execute(edge_statement(question.filters, edge, progress.seq))]
    return found


# --- from the counts -------------------------------------------------------------------------------------------------


def cell_conditions(filters: EventFilters) -> list[Condition]:
    """The event filters on cells, with the same meaning as on events."""
    conditions: list[Condition] = []
    if not (filters.webhook or filters.type):
        conditions.append(cells.c.webhook != operator_events.WEBHOOK)
    asked = {name: values for name in ALL_FIELDS if (values := getattr(filters, name, None))}
    return conditions + [cells.c[name].in_(list(dict.fromkeys(values))) for name, values in asked.items()]


def _bucket(question: Question, start: sa.ColumnElement[int], unit: Unit) -> sa.ColumnElement[int]:
    if question.interval is None:
        return sa.literal_column("0")
    return start if question.interval == "hour" or unit is Unit.DAY else start // sa.literal_column("24")


def _grouped(question: Question, start: sa.ColumnElement[int], unit: Unit) -> Parts:
    return [_bucket(question, start, unit).label("bucket"), *(cells.c[name] for name in question.group_by)]


def counted_statement(question: Question, view: View, span: Span) -> sa.Select[Any]:
    keys = _grouped(question, counts.c.start, span.unit)
    summed = sa.cast(sa.func.sum(counts.c.count), sa.BigInteger)
    return (
        sa.select(*keys, *_labelled_kind(), summed)
        .select_from(counts.join(cells, cells.c.id == counts.c.cell))
        .where(*_within(view, span), *cell_conditions(question.filters))
        .group_by(*_parted(question, keys), *KIND)
    )


def whole_statement(question: Question, hours: tuple[int, int]) -> sa.Select[Any]:
    """The same from the single events, where no view has all the fields."""
    keys = _grouped(question, members.c.hour, Unit.HOUR)
    return (
        sa.select(*keys, *_labelled_kind(), sa.func.count())
        .select_from(members.join(cells, cells.c.id == members.c.cell))
        .where(*_of_levels(0), *_between(hours), *cell_conditions(question.filters))
        .group_by(*_parted(question, keys), *KIND)
    )


def _parted(question: Question, keys: Parts) -> Parts:
    """What to group by: PostgreSQL takes a plain 0 for the place of a column."""
    return keys if question.interval is not None else keys[1:]


def _labelled_kind() -> Parts:
    """Under names of their own: `type` may be grouped by as well."""
    return [part.label(f"kind_{part.name}") for part in KIND]


def _within(view: View, span: Span) -> list[Condition]:
    place = (counts.c.view == int(view), counts.c.unit == int(span.unit))
    return [*place, counts.c.start >= span.start, counts.c.start < span.end]


def _between(hours: tuple[int, int]) -> list[Condition]:
    return [members.c.hour >= hours[0], members.c.hour < hours[1]]


def _of_levels(lowest: int) -> list[Condition]:
    # One by one: the key begins with the level, and a range of it would hide the hours from the index.
    return [members.c.level.in_(range(lowest, TOP_LEVEL + 1))]


def _counted(connection: Connection, question: Question, how: Plan) -> Rows:
    assert how.view is not None
    if how.view is View.WHOLE:
        if sum(_total(connection, span) for span in how.spans) > MOST_WHOLE:
            raise _too_much("these fields together are counted event by event: ask for a shorter time")
        statements = [whole_statement(question, how.hours)]
    else:
        statements = [counted_statement(question, how.view, span) for span in how.spans]
    rows: Rows = {}
    width = 1 + len(question.group_by)
    for statement in statements:
        for found in connection.execute(statement.limit(MOST_ROWS * 10)):
            kind = (found[width], found[width + 1], found[width + 2])
            rows.setdefault(tuple(found[:width]), Row()).kinds[kind] += found[-1]
    return rows


def _total(connection: Connection, span: Span) -> int:
    """All events of a span, whatever they are."""
    wanted = sa.select(sa.func.coalesce(sa.func.sum(counts.c.count), 0)).where(*_within(View.TOTAL, span))
    return int(connection.execute(wanted).scalar_one())


# --- uniques ---------------------------------------------------------------------------------------------------------


def _uniques(
    connection: Connection, question: Question, how: Plan, rows: Rows, loose: Sequence[Fact], progress: Progress
) -> float:
    """Fills in how many recipients and messages the rows are about; the share of recipients that were looked at."""
    if not rows:
        return 1.0
    hours = _hull(connection, question, how, rows)
    lowest = _lowest_level(connection, hours)
    statement = unique_statement(connection.dialect.name, question, hours, lowest)
    tail = orjson.dumps(
        [_loose_member(fact, question, progress.key) for fact in loose if _level(fact, progress.key) >= lowest]
    )
    for found in connection.execute(statement, {"loose": tail.decode()}):
        row = rows.get(tuple(found[:-2]))
        if row is not None:
            row.recipients, row.messages = found[-2] << lowest, found[-1] << lowest
            if lowest:  # a guess must not say more than the counts do
                row.recipients, row.messages = min(row.recipients, row.total), min(row.messages, row.total)
    return 1 / (1 << lowest)


def _hull(connection: Connection, question: Question, how: Plan, rows: Rows) -> tuple[int, int]:
    """The part of the range in which anything was found."""
    if question.interval is None:
        place = (counts.c.view == int(View.TOTAL), counts.c.unit == int(Unit.HOUR))
        ends = [
            connection.execute(sa.select(counts.c.start).where(*place).order_by(order).limit(1)).scalar()
            for order in (counts.c.start, counts.c.start.desc())
        ]
        return max(how.hours[0], ends[0] or 0), min(how.hours[1], (ends[1] or 0) + 1)
    length = 1 if question.interval == "hour" else HOURS_OF_A_DAY
    buckets = [key[0] for key in rows]
    return max(how.hours[0], min(buckets) * length), min(how.hours[1], (max(buckets) + 1) * length)


def _lowest_level(connection: Connection, hours: tuple[int, int]) -> int:
    """0 where everything can be looked at, as always within a day (unless it has hundreds of thousands of events)."""
    total = sum(_total(connection, span) for span in spans_of(*hours, None))
    in_a_day = hours[0] // HOURS_OF_A_DAY == (hours[1] - 1) // HOURS_OF_A_DAY
    if total <= (EXACT_IN_A_DAY if in_a_day else EXACT):
        return 0
    return min((total // SAMPLE).bit_length() - 1, TOP_LEVEL)


def unique_statement(dialect: str, question: Question, hours: tuple[int, int], lowest: int) -> sa.Select[Any]:
    """Different recipients and messages by row, of counted events and of those in the parameter `loose`."""
    keys = _grouped(question, members.c.hour, Unit.HOUR)
    named = [key.label(f"k{number}") for number, key in enumerate(keys)]
    counted = (
        sa.select(*named, members.c.recipient.label("recipient"), members.c.message.label("message"))
        .select_from(members.join(cells, cells.c.id == members.c.cell))
        .where(*_of_levels(lowest), *_between(hours), *cell_conditions(question.filters))
    )
    both = sa.union_all(counted, _loose_rows(dialect, len(keys))).subquery()
    grouped = [both.c[f"k{number}"] for number in range(len(keys))]
    different = [sa.func.count(sa.distinct(sa.func.nullif(both.c[name], 0))) for name in ("recipient", "message")]
    return sa.select(*grouped, *different).group_by(*grouped)


def _loose_rows(dialect: str, keys: int) -> sa.Select[Any]:
    """The rows of the JSON text in the parameter `loose`: the keys, the recipient's and the message's digest."""
    text = sa.bindparam("loose", type_=sa.Text())
    part: Callable[[int], sa.ColumnElement[Any]]
    if dialect == "sqlite":
        each = sa.func.json_each(text).table_valued("value")
        part = lambda at: sa.func.json_extract(each.c.value, f"$[{at}]")  # noqa: E731
    else:
        each = sa.func.jsonb_array_elements(sa.cast(text, JSONB)).table_valued("value")
        part = lambda at: each.c.value.op("->>")(sa.literal_column(str(at)))  # noqa: E731
    numbers = {0, keys, keys + 1}
    return sa.select(
        *(sa.cast(part(at), sa.BigInteger) if at in numbers else part(at) for at in range(keys + 2))
    ).select_from(each)


def _loose_member(fact: Fact, question: Question, key: bytes) -> list[Any]:
    return [*key_of(fact, question), digest_of(fact.email, key), digest_of(fact.message_id, key)]


def _level(fact: Fact, key: bytes) -> int:
    return level_of(digest_of(fact.email, key) or digest_of(fact.message_id, key))


# --- bounds ----------------------------------------------------------------------------------------------------------


def _refuse_more_than(most: int, found: int, what: str) -> None:
    if found > most:
        raise _too_much(f"more than {most} {what}: ask for a shorter time, fewer groups or a narrower filter")


def _too_much(detail: str) -> Invalid:
    return Invalid(detail, errors=[FieldError("after", detail, "too_much")])
