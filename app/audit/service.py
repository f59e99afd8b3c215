"""The audit: accepted = stored + quarantined + erased + expired, and for each sink owed = delivered + pending + dead +
cancelled + erased + expired; and no delivery without its event.

What matches a sink is settled when an event is stored: the ledger then takes down how many deliveries it is owed. So a
sink that is added later owes nothing for earlier events, one that is removed keeps what it was owed, and a replay adds
to it what was missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from app.audit import queries
from app.audit.queries import MOST_NAMED, Account, Range
from app.clock import rfc3339
from app.ledger import QUARANTINE, SLOT_DIGITS, THE_EVENTS, Line, next_slot, slot_of, slot_start
from app.models import DeliveryState

STATES = tuple(state.value for state in DeliveryState)
WHAT_CAME = {THE_EVENTS: "events", QUARANTINE: "quarantined"}


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that does not add up, within one slot of time. `event_ids` are the events it is about as far as that
    can be told, at most ten; for missing deliveries they are events that owe the sink nothing, of which it may be
    some."""

    kind: str  # `missing` or `unaccounted` of events, quarantined or deliveries, as events_missing; deliveries_orphaned
    webhook: str
    sink: str | None
    first: str
    end: str
    expected: int
    found: int
    event_ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = self.kind.replace("_", " ") + (f" of sink {self.sink}" if self.sink else "")
        ids = f"; see {', '.join(self.event_ids)}" if self.event_ids else ""
        return f"{what}, webhook {self.webhook}, {self.first} to {self.end}: {self.found} of {self.expected}{ids}"


@dataclass(slots=True)
class Report:
    """Totals as JSON objects, by webhook and by sink; `since` and `until` are the ends of the slots looked at."""

    since: datetime | None
    until: datetime | None
    events: dict[str, int]
    deliveries: dict[str, int]
    webhooks: list[dict[str, Any]]
    sinks: list[dict[str, Any]]
    differences: list[Difference] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        ends = {name: None if end is None else rfc3339(end) for name, end in self._ends()}
        return {
            "ok": self.is_clean, **ends, "events": self.events, "deliveries": self.deliveries,
            "webhooks": self.webhooks, "sinks": self.sinks, "differences": [asdict(d) for d in self.differences],
        }  # fmt: skip

    def _ends(self) -> Iterator[tuple[str, datetime | None]]:
        yield "since", self.since
        yield "until", self.until


def audit(connection: Connection, *, since: datetime | None = None, until: datetime | None = None) -> Report:
    """Compare everything whose event happened from `since` and before `until`, widened to whole slots.

    `connection` shows one moment; nothing is written.
    """
    wanted = Range(None if since is None else slot_of(since), None if until is None else _slot_from(until))
    found = queries.accounts(connection, wanted)
    report = _totals(found, wanted)
    orphans = queries.orphans(connection, wanted)
    gone = {event_id for event_id, _, _ in orphans}
    for line in sorted(line for line, account in found.items() if account.missing):
        report.differences.append(_difference(connection, line, found[line], gone))
    report.differences += _orphaned(orphans)
    return report


def _slot_from(until: datetime) -> str:
    """The first slot that begins at `until` or later."""
    slot = slot_of(until)
    return slot if slot_start(slot) == until else next_slot(slot)


def _totals(found: Mapping[Line, Account], wanted: Range) -> Report:
    of_events = {line: account for line, account in found.items() if line[2] in WHAT_CAME}
    of_sinks = {line: account for line, account in found.items() if line[2] not in WHAT_CAME}
    webhooks = sorted({webhook for _, webhook, _ in of_events})
    sinks = sorted({sink for _, _, sink in of_sinks})
    return Report(
        since=None if wanted.first is None else slot_start(wanted.first),
        until=None if wanted.end is None else slot_start(wanted.end),
        events=_of_events(of_events.values()),
        deliveries=_of_sinks(of_sinks.values()),
        webhooks=[{"webhook": w} | _of_events(a for (_, x, _), a in of_events.items() if x == w) for w in webhooks],
        sinks=[{"sink": s} | _of_sinks(a for (_, _, x), a in of_sinks.items() if x == s) for s in sinks],
    )


def _of_events(accounts: Iterable[Account]) -> dict[str, int]:
    every = list(accounts)
    return {
        "accepted": sum(account.made for account in every),
        "stored": sum(account.states.get("stored", 0) for account in every),
        "quarantined": sum(account.states.get("quarantined", 0) for account in every),
        **_written_off(every),
    }


def _of_sinks(accounts: Iterable[Account]) -> dict[str, int]:
    every = list(accounts)
    return {
        "owed": sum(account.made for account in every),
        **{state: sum(account.states.get(state, 0) for account in every) for state in STATES},
        **_written_off(every),
    }


def _written_off(every: list[Account]) -> dict[str, int]:
    return {
        "erased": sum(account.erased for account in every),
        "expired": sum(account.expired for account in every),
        # What is missing in one slot must not be made good by what is too much in another.
        "missing": sum(max(account.missing, 0) for account in every),
        "unaccounted": sum(max(-account.missing, 0) for account in every),
    }


# --- naming ----------------------------------------------------------------------------------------------------------


def _difference(connection: Connection, line: Line, account: Account, gone: set[str]) -> Difference:
    slot, webhook, sink = line
    what = WHAT_CAME.get(sink, "deliveries")
    kind = f"{what}_missing" if account.missing > 0 else f"{what}_unaccounted"
    expected = account.made - account.erased - account.expired
    ids: Iterable[str] = ()
    if kind == "events_missing":
        ids = sorted(event_id for event_id in gone if event_id.startswith(slot))[:MOST_NAMED]
    elif kind == "deliveries_missing":
        ids = queries.without_delivery(connection, slot, webhook, sink)
    elif expected == 0 and kind == "events_unaccounted":  # then it is all of them; of more, nobody can tell which
        ids = queries.events_there(connection, slot, webhook)
    elif expected == 0 and kind == "deliveries_unaccounted":
        ids = queries.deliveries_there(connection, slot, webhook, sink)
    return _named(kind, webhook, None if sink in WHAT_CAME else sink, slot, expected, account.there, ids)


def _orphaned(orphans: Iterable[tuple[str, str, str]]) -> Iterator[Difference]:
    """Those of one slot, webhook and sink together."""
    groups: dict[Line, list[str]] = {}
    for event_id, webhook, sink in orphans:
        groups.setdefault((event_id[:SLOT_DIGITS], webhook, sink), []).append(event_id)
    for (slot, webhook, sink), ids in sorted(groups.items()):
        yield _named("deliveries_orphaned", webhook, sink, slot, 0, len(ids), ids[:MOST_NAMED])


def _named(
    kind: str, webhook: str, sink: str | None, slot: str, expected: int, found: int, ids: Iterable[str]
) -> Difference:
    ends = (rfc3339(slot_start(slot)), rfc3339(slot_start(next_slot(slot))))
    return Difference(kind, webhook, sink, *ends, expected, found, tuple(ids))
