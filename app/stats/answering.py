"""Counts -> the rows of an answer, with their rates. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from app.clock import EPOCH, rfc3339
from app.models import Outcome
from app.rollups.cells import ALL_FIELDS, HOURS_OF_A_DAY, Fact
from app.stats.asking import Interval, Question, used_filters

RowKey = tuple[Any, ...]
"""(bucket, value of each grouped field …); the bucket counts hours or days since 1970, 0 where rows have no time."""

ATTEMPTED = ("sent", "bounce", "blocked")
"""Types a message's way to its server can end with; a deferral (greylisting) is no end."""

# rate -> (the type it counts, the types it needs to know)
RATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "delivery": ("sent", ATTEMPTED),
    "bounce": ("bounce", ATTEMPTED),
    "open": ("open", ("sent", "open")),
    "click": ("click", ("sent", "click")),
    "complaint": ("spam", ("sent", "spam")),
    "unsubscribe": ("unsub", ("sent", "unsub")),
}
# Where rows or filters part what a rate compares, there is no rate.
PARTING_GROUPS = frozenset({"type", "reason", "reason_group"})
PARTING_FILTERS = frozenset({"outcome", "permanent", "automated"})
_PLACES = {name: ALL_FIELDS.index(name) for name in ALL_FIELDS}


@dataclass(slots=True)
class Row:
    """What happened, by (type, outcome, automated); and how many different recipients and messages it was about."""

    kinds: Counter[tuple[str, str, bool | None]] = field(default_factory=Counter)
    recipients: int = 0
    messages: int = 0

    @property
    def total(self) -> int:
        return self.kinds.total()


Rows = dict[RowKey, Row]


def key_of(fact: Fact, question: Question) -> RowKey:
    """The row an event belongs to."""
    hour = fact.hour
    bucket = {"hour": hour, "day": hour // HOURS_OF_A_DAY, None: 0}[question.interval]
    return (bucket, *(fact.values[_PLACES[name]] for name in question.group_by))


def kind_of(fact: Fact) -> tuple[str, str, bool | None]:
    values = fact.values
    return values[_PLACES["type"]], values[_PLACES["outcome"]], values[_PLACES["automated"]]


def ordered(rows: Rows, question: Question) -> list[tuple[RowKey, Row]]:
    """By time, then by the grouped values; of a table the largest first, and only those that have a value."""
    if question.top is None:
        return sorted(rows.items(), key=lambda item: _sortable(item[0]))
    named = [item for item in rows.items() if any(value is not None for value in item[0][1:])]
    return sorted(named, key=lambda item: (-item[1].total, _sortable(item[0])))[: question.top]


def _sortable(key: RowKey) -> tuple[Any, ...]:
    return (key[0], *((value is not None, value or "") for value in key[1:]))


def view_of(key: RowKey, row: Row, question: Question) -> dict[str, Any]:
    """One row of contract shape."""
    counts, automated = _by_type(row)
    start = {} if question.interval is None else {"start": rfc3339(_start_of(key[0], question.interval))}
    return {
        **start,
        "group": dict(zip(question.group_by, key[1:], strict=True)),
        "counts": dict(counts),
        "automated": {"open": automated["open"], "click": automated["click"]},
        "deferred": _deferred(row),
        "unique": {"recipients": row.recipients, "messages": row.messages},
        "rates": rates(row.kinds, needed=_comparable(question)),
    }


def _start_of(bucket: int, interval: Interval) -> Any:
    return EPOCH + (timedelta(hours=bucket) if interval == "hour" else timedelta(days=bucket))


def _deferred(row: Row) -> dict[str, int]:
    """How many of the counts are no end of an attempt, by the two types that can be one."""
    found: Counter[str] = Counter()
    for (kind, outcome, _), count in row.kinds.items():
        found[kind] += count if outcome == Outcome.DEFERRED else 0
    return {"bounce": found["bounce"], "blocked": found["blocked"]}


def _by_type(row: Row) -> tuple[Counter[str], Counter[str]]:
    counts: Counter[str] = Counter()
    automated: Counter[str] = Counter()
    for (kind, _, by_machine), count in sorted(row.kinds.items(), key=lambda item: item[0][0]):
        counts[kind] += count
        if by_machine:
            automated[kind] += count
    return counts, automated


def _comparable(question: Question) -> Iterable[str]:
    """The rates that mean something for this question."""
    filters = question.filters
    if PARTING_GROUPS & set(question.group_by) or PARTING_FILTERS & used_filters(filters):
        return ()
    return [name for name, (_, types) in RATES.items() if not filters.type or set(types) <= set(filters.type)]


def rates(
    kinds: Mapping[tuple[str, str, bool | None], int], *, needed: Iterable[str] = tuple(RATES)
) -> dict[str, float | None]:
    """Each rate, null where it would divide by nothing or is not `needed`.

    By people only: what machines opened and clicked is left out. A deferral is neither a bounce nor an attempt that
    has ended.
    """
    ended: Counter[str] = Counter()
    for (kind, outcome, automated), count in kinds.items():
        if outcome != Outcome.DEFERRED and not automated:
            ended[kind] += count
    attempts = sum(ended[kind] for kind in ATTEMPTED)
    wanted = set(needed)
    return {
        name: _ratio(ended[kind], attempts if types is ATTEMPTED else ended["sent"]) if name in wanted else None
        for name, (kind, types) in RATES.items()
    }


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
