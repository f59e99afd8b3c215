"""Counting events into the statistics, a slice at a time and in the order of commits.

A slice is one short transaction: the events, their counts and how far it has come are written together, so an event is
counted once whatever happens. How far may be counted the caller says (`query.horizon`): below that no event can appear
any more.

The same pass judges opens and clicks by the time since their message's `sent`, which may come late or never: it looks
at all events of the messages in the slice. So in the end the verdict depends on which events there are, and not on the
order they came in; an event counted before its `sent` came moves to another cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.db import chunks
from app.filters import Unindexed
from app.mailjet.machines import JUDGED_TYPES, TOO_SOON_RULE, is_too_soon
from app.rollups.cells import ALL_FIELDS, Fact
from app.rollups.store import (
    FACT_COLUMNS,
    IDS_AT_ONCE,
    KnownCells,
    add,
    advance,
    events,
    fact_of,
    lock_progress,
    subtract,
)

SLICE_EVENTS = 500
_TYPE, _AUTOMATED = ALL_FIELDS.index("type"), ALL_FIELDS.index("automated")


def fold_slice(connection: Connection, settled: int, known: KnownCells, *, most: int = SLICE_EVENTS) -> int:
    """Count the next events up to number `settled`; how many there were. `known.confirm` follows the commit."""
    progress = lock_progress(connection)
    known.pending = set()
    asked = {"after": progress.seq, "upto": settled, "most": most}
    facts = [fact_of(row) for row in connection.execute(SLICE, asked).all()]
    end = facts[-1].seq if len(facts) == most else max(settled, progress.seq)
    judged = _judge_by_time(connection, facts)
    if judged:
        before = [fact for fact in judged.values() if fact.seq <= progress.seq]
        if before:  # or answers that are remembered would be forgotten for nothing
            subtract(connection, before, progress.key)
        facts = [_as_automated(f) if f.seq in judged else f for f in facts] + [_as_automated(f) for f in before]
    add(connection, facts, progress.key, known)
    if end > progress.seq:
        advance(connection, end)
    return len(facts)


# Made once: to put a statement together costs more than to run it, and a slice is counted many times a second.
SLICE = (
    sa.select(*FACT_COLUMNS)
    .where(events.c.seq > sa.bindparam("after"), events.c.seq <= sa.bindparam("upto"))
    .order_by(events.c.seq)
    .limit(sa.bindparam("most", type_=sa.Integer))
)


# --- time since `sent` -----------------------------------------------------------------------------------------------


def _judge_by_time(connection: Connection, facts: Sequence[Fact]) -> dict[int, Fact]:
    """Marks what happened too soon in the table; number -> the event as it was before."""
    concerned = sorted({fact.message_id for fact in facts if fact.message_id is not None and _matters(fact)})
    related = [
        fact_of(row)
        for ids in chunks(concerned, IDS_AT_ONCE)
        for row in connection.execute(RELATED, {"message_ids": ids}).all()
    ]  # fmt: skip
    hasty = {fact.seq: fact for fact in too_soon(related)}
    changed: set[int] = set()
    for seqs in chunks(sorted(hasty), IDS_AT_ONCE):
        marked = sa.update(events).where(events.c.seq.in_(seqs)).values(automated=True, automated_rule=TOO_SOON_RULE)
        changed.update(connection.execute(marked.returning(events.c.seq)).scalars())
    return {seq: hasty[seq] for seq in changed}  # another transaction may have deleted one meanwhile


# The events of some messages that the verdict by time depends on. An open that was redacted keeps its verdict: it was
# counted with an address that nobody knows any more, and so cannot be taken out again.
_judged = sa.and_(Unindexed(events.c.type).in_(sorted(JUDGED_TYPES)), events.c.raw.is_not(None))
RELATED = sa.select(*FACT_COLUMNS).where(
    events.c.message_id.in_(sa.bindparam("message_ids", expanding=True)),
    sa.or_(Unindexed(events.c.type) == "sent", _judged),
)


def too_soon(related: Iterable[Fact]) -> list[Fact]:
    """Those of a person's opens and clicks that came too soon after any `sent` of their message."""
    sent: dict[str | None, list[int]] = {}
    candidates: list[Fact] = []
    for fact in related:
        if fact.values[_TYPE] == "sent":
            sent.setdefault(fact.message_id, []).append(fact.occurred_micros)
        elif fact.values[_AUTOMATED] is False:
            candidates.append(fact)
    return [
        fact
        for fact in candidates
        if any(is_too_soon(moment, fact.occurred_micros) for moment in sent.get(fact.message_id, ()))
    ]


def _matters(fact: Fact) -> bool:
    return fact.values[_TYPE] == "sent" or fact.values[_AUTOMATED] is False


def _as_automated(fact: Fact) -> Fact:
    values = list(fact.values)
    values[_AUTOMATED] = True
    return fact._replace(values=tuple(values))
