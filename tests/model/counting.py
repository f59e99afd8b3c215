"""The statistics by a full count, from the README: rows by time and group with counts, uniques and rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

HOUR = 3_600_000_000
LENGTHS = {"hour": HOUR, "day": 24 * HOUR}
GROUPS = ("type", "webhook", "campaign_id", "custom_campaign", "email_domain", "reason", "reason_group")
FIELDS = (*GROUPS, "outcome", "permanent", "test", "automated", "email", "message_id")


class Counted(NamedTuple):
    """What statistics keep of one event: when it happened, and `FIELDS` as they were then."""

    occurred: int
    fields: Mapping[str, Any]


def fact_of(event: Any) -> Counted:
    return Counted(event.occurred, {name: getattr(event, name) for name in FIELDS})


def rows_of(
    facts: Iterable[Counted], *, interval: str | None, group_by: tuple[str, ...], filters: Mapping[str, Any]
) -> dict[tuple[Any, ...], dict[str, Any]]:
    """(start in microseconds, grouped values …) -> the row; test events only where they are asked for."""
    asked = {"test": False} | dict(filters)
    found: dict[tuple[Any, ...], list[Counted]] = {}
    for fact in facts:
        if all(fact.fields[name] == value for name, value in asked.items()):
            start = 0 if interval is None else fact.occurred - fact.occurred % LENGTHS[interval]
            found.setdefault((start, *(fact.fields[name] for name in group_by)), []).append(fact)
    return {key: _row(mine, group_by, filters) for key, mine in found.items()}


def _row(facts: list[Counted], group_by: tuple[str, ...], filters: Mapping[str, Any]) -> dict[str, Any]:
    counts = Counter(fact.fields["type"] for fact in facts)
    machines = Counter(fact.fields["type"] for fact in facts if fact.fields["automated"])
    deferred = Counter(fact.fields["type"] for fact in facts if fact.fields["outcome"] == "deferred")
    unique = {name: len({fact.fields[name] for fact in facts} - {None}) for name in ("email", "message_id")}
    return {
        "counts": dict(counts),
        "automated": {"open": machines["open"], "click": machines["click"]},
        "deferred": {"bounce": deferred["bounce"], "blocked": deferred["blocked"]},
        "unique": {"recipients": unique["email"], "messages": unique["message_id"]},
        "rates": _rates(facts, machines, group_by, filters),
    }


def _rates(
    facts: list[Counted], machines: Counter[str], group_by: tuple[str, ...], filters: Mapping[str, Any]
) -> dict[str, float | None]:
    ended = Counter(fact.fields["type"] for fact in facts if fact.fields["outcome"] != "deferred")
    ended -= machines
    attempts = ended["sent"] + ended["bounce"] + ended["blocked"]
    parts = {"delivery": ("sent", attempts), "bounce": ("bounce", attempts), "open": ("open", ended["sent"]),
             "click": ("click", ended["sent"]), "complaint": ("spam", ended["sent"]),
             "unsubscribe": ("unsub", ended["sent"])}  # fmt: skip
    parted = {"type", "reason", "reason_group"} & set(group_by) or {"outcome", "permanent", "automated"} & set(filters)
    if parted or "type" in filters:  # one type alone is never both sides of a rate
        return dict.fromkeys(parts)
    return {name: round(ended[kind] / whole, 6) if whole else None for name, (kind, whole) in parts.items()}
