"""Counts -> the rows of an answer, with their rates. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from app.clock import EPOCH, rfc3339
from app.models import Outcome
from app.rollups.cells import ALL_FIELDS, HOUR_MICROS, HOURS_OF_A_DAY, Fact
from app.stats.asking import Question, used_filters

RowKey = tuple[Any, ...]
"""(bucket, value of each grouped field …); the bucket counts hours or days since 1970, 0 where rows have no time."""

Kind = tuple[str, str, bool | None]
"""(type, outcome, automated)"""
_DEFERRED = Outcome.DEFERRED.value

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
NO_RATES: dict[str, float | None] = dict.fromkeys(RATES)
# Where rows or filters part what a rate compares, there is no rate.
PARTING_GROUPS = frozenset({"type", "reason", "reason_group"})
PARTING_FILTERS = frozenset({"outcome", "permanent", "automated"})
_PLACES = {name: ALL_FIELDS.index(name) for name in ALL_FIELDS}


@dataclass(slots=True)
class Row:
    """What happened, by (type, outcome, automated); and how many different recipients and messages it was about."""

    kinds: dict[Kind, int] = field(default_factory=dict)
    recipients: int = 0
    messages: int = 0

    @property
    def total(self) -> int:
        return sum(self.kinds.values())

    def add(self, kind: Kind, count: int) -> None:
        self.kinds[kind] = self.kinds.get(kind, 0) + count


Rows = dict[RowKey, Row]


def keys_by(question: Question) -> Callable[[Fact], RowKey]:
    """Tells the row that an event belongs to."""
    places = tuple(_PLACES[name] for name in question.group_by)
    length = {"hour": HOUR_MICROS, "day": HOUR_MICROS * HOURS_OF_A_DAY, None: None}[question.interval]

    def key_of(fact: Fact) -> RowKey:
        values = fact.values
        return (0 if length is None else fact.occurred_micros // length, *(values[at] for at in places))

    return key_of


def kind_of(fact: Fact) -> Kind:
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


def views_of(rows: Rows, question: Question) -> list[dict[str, Any]]:
    """The rows of contract shape, in their order."""
    needed = frozenset(_comparable(question))
    starts = {bucket: _start_of(bucket, question) for bucket in {key[0] for key in rows}}
    return [_view_of(key, row, question, starts[key[0]], needed) for key, row in ordered(rows, question)]


def view_of(key: RowKey, row: Row, question: Question) -> dict[str, Any]:
    """One row of contract shape."""
    return _view_of(key, row, question, _start_of(key[0], question), frozenset(_comparable(question)))


def _view_of(key: RowKey, row: Row, question: Question, start: dict[str, str], needed: Set[str]) -> dict[str, Any]:
    return {
        **start,
        "group": dict(zip(question.group_by, key[1:], strict=True)),
        **_counts_of(row),
        "unique": {"recipients": row.recipients, "messages": row.messages},
        "rates": rates(row.kinds, needed=needed) if needed else NO_RATES,
    }


def _start_of(bucket: int, question: Question) -> dict[str, str]:
    if question.interval is None:
        return {}
    length = timedelta(hours=1) if question.interval == "hour" else timedelta(days=1)
    return {"start": rfc3339(EPOCH + bucket * length)}


def _counts_of(row: Row) -> dict[str, dict[str, int]]:
    """Events by type, and of them those of machines and those that are no end of an attempt."""
    counts: dict[str, int] = {}
    automated, deferred = {"open": 0, "click": 0}, {"bounce": 0, "blocked": 0}
    for (kind, outcome, by_machine), count in sorted(row.kinds.items(), key=_type_of):
        counts[kind] = counts.get(kind, 0) + count
        if by_machine and kind in automated:
            automated[kind] += count
        if outcome == _DEFERRED and kind in deferred:
            deferred[kind] += count
    return {"counts": counts, "automated": automated, "deferred": deferred}


def _type_of(item: tuple[Kind, int]) -> str:
    return item[0][0]


def _comparable(question: Question) -> Iterable[str]:
    """The rates that mean something for this question."""
    filters = question.filters
    if PARTING_GROUPS & set(question.group_by) or PARTING_FILTERS & used_filters(filters):
        return ()
    return [name for name, (_, types) in RATES.items() if not filters.type or set(types) <= set(filters.type)]


def rates(kinds: Mapping[Kind, int], *, needed: Set[str] = frozenset(RATES)) -> dict[str, float | None]:
    """Each rate, null where it would divide by nothing or is not `needed`.

    By people only: what machines opened and clicked is left out. A deferral is neither a bounce nor an attempt that
    has ended.
    """
    ended: dict[str, int] = {}
    for (kind, outcome, automated), count in kinds.items():
        if not automated and outcome != _DEFERRED:
            ended[kind] = ended.get(kind, 0) + count
    sent = ended.get("sent", 0)
    attempts = sent + ended.get("bounce", 0) + ended.get("blocked", 0)
    found: dict[str, float | None] = dict(NO_RATES)
    for name in needed:
        kind, types = RATES[name]
        whole = attempts if types is ATTEMPTED else sent
        if whole:
            found[name] = round(ended.get(kind, 0) / whole, 6)
    return found
