"""Which events suppress an address, for what reason, how far and since when. Pure: no clock, no database.

What is suppressed is a function of a set: the facts that an address's events tell, and the manual acts, each with its
time. Neither the order of arrival nor a repetition matters, so ingest, a rebuild and any replica come to the same.

* A lasting bounce (`hard_bounce`) and a lasting block suppress the address. Of Mailjet's blocks only those that concern
  the address are lasting (unknown, inactive or blacklisted mailbox, bad domain); one for `spam reporter` is a
  complaint. What is the sender's, the content's or Mailjet's own fault never counts, nor does `preblocked`, which
  passes, and a greylisted message (`deferred`) is only late.
* An unsubscribe suppresses the address for its list; one that names no list suppresses the address.
* Passing bounces suppress by their number within some days, where the settings say so.
* A lift clears what had happened until then, by the events' own times; what happens later suppresses again.

Source: mailjet/api-documation:guides/_event-api.md, the table of errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.models import Outcome, SuppressionReason, SuppressionScope

CAUSING_TYPES = ("bounce", "blocked", "spam", "unsub")
DAY_MICROS = 86_400_000_000
NEVER = -1  # before every time

Key = tuple[SuppressionReason, str | None]
"""What one suppression of an address is: the reason, and the list it is for, if it is for one."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What suppresses. `soft_bounces` passing bounces within `soft_bounce_days` do; 0: none ever."""

    hard_bounces: bool = True
    complaints: bool = True
    unsubscribes: bool = True
    soft_bounces: int = 0
    soft_bounce_days: int = 30

    def counts(self, reason: SuppressionReason) -> bool:
        match reason:
            case SuppressionReason.COMPLAINT:
                return self.complaints
            case SuppressionReason.UNSUBSCRIBE:
                return self.unsubscribes
            case SuppressionReason.SOFT_BOUNCES:
                return self.soft_bounces > 0
            case SuppressionReason.MANUAL:
                return True
            case _:
                return self.hard_bounces

    @property
    def window_micros(self) -> int:
        return self.soft_bounce_days * DAY_MICROS


class Fact(NamedTuple):
    """What one event says against mailing an address; `at` in microseconds. `message` tells copies at two webhooks."""

    email: str
    reason: SuppressionReason
    list_id: str | None
    at: int
    event_id: str
    message: str | None = None

    @property
    def key(self) -> Key:
        return self.reason, self.list_id


class Act(NamedTuple):
    """What a person did, in the order of `seq`. A lift, up to `until`, is of all that it does not narrow."""

    seq: int
    is_lift: bool
    scope: SuppressionScope | None
    list_id: str | None
    reason: SuppressionReason | None
    comment: str
    at: int
    until: int | None = None

    def lifts(self, key: Key) -> bool:
        reason, list_id = key
        if not self.is_lift or self.reason not in (None, reason):
            return False
        return self.scope is None or (self.scope is scope_of(list_id) and self.list_id == list_id)


class Entry(NamedTuple):
    """A suppression in force: since when, by which event or, for a manual one, why. The earlier one is shown."""

    since: int
    event_id: str | None
    comment: str | None = None


def scope_of(list_id: str | None) -> SuppressionScope:
    return SuppressionScope.ADDRESS if list_id is None else SuppressionScope.LIST


def fact_of(event: Mapping[str, Any]) -> Fact | None:
    """The fact that a stored event of Mailjet's tells; None where it says nothing against mailing. `event` has the
    columns `FACT_COLUMNS`, `occurred_at` in microseconds."""
    found = _reason_of(event)
    if found is None or not event["email"] or event["test"]:
        return None
    reason, list_id = found
    message = event["message_id"] if reason is SuppressionReason.SOFT_BOUNCES else None
    return Fact(event["email"], reason, list_id, event["occurred_at"], event["id"], message)


FACT_COLUMNS = ("id", "type", "outcome", "occurred_at", "test", "email", "message_id", "list_id", "permanent", "reason")


def _reason_of(event: Mapping[str, Any]) -> Key | None:
    match event["type"]:
        case "spam":
            return SuppressionReason.COMPLAINT, None
        case "unsub":
            return SuppressionReason.UNSUBSCRIBE, event["list_id"]
        case "bounce" if event["outcome"] == Outcome.BOUNCED:
            hard = bool(event["permanent"])
            return SuppressionReason.HARD_BOUNCE if hard else SuppressionReason.SOFT_BOUNCES, None
        case "blocked" if event["permanent"]:
            told = (event["reason"] or "").strip().lower()
            return SuppressionReason.COMPLAINT if told == "spam reporter" else SuppressionReason.BLOCKED, None
    return None


def fold(facts: Iterable[Fact], acts: Sequence[Act], policy: Policy) -> dict[Key, Entry]:
    """All that is in force for one address, from all its facts and acts, in whatever order they are given."""
    alike: dict[Key, list[Fact]] = {}
    for fact in facts:
        if policy.counts(fact.reason) and fact.at > lifted_until(acts, fact.key):
            alike.setdefault(fact.key, []).append(fact)
    found = {key: begin for key, group in alike.items() if (begin := beginning(key[0], group, policy)) is not None}
    return found | _manual(acts)


def lifted_until(acts: Iterable[Act], key: Key) -> int:
    """The time up to which (inclusive) lifts have cleared what suppressed for this reason and list."""
    return max((act.until for act in acts if act.until is not None and act.lifts(key)), default=NEVER)


def beginning(reason: SuppressionReason, facts: Iterable[Fact], policy: Policy) -> Entry | None:
    """Where the suppression begins by these facts of one key: at the first, or at the passing bounce that was too many.

    More facts only ever move it to an earlier (time, event): whoever knows some of them comes to the same in the end by
    keeping the earliest.
    """
    needed = policy.soft_bounces if reason is SuppressionReason.SOFT_BOUNCES else 1
    marks = sorted(_without_copies(facts))
    for last in range(needed - 1, len(marks)):
        if marks[last][0] - marks[last - needed + 1][0] <= policy.window_micros:
            return Entry(*marks[last])
    return None


def _without_copies(facts: Iterable[Fact]) -> Iterable[tuple[int, str]]:
    """(time, event) of each arrival. One that two webhooks have stored is the same message at the same time; without a
    MessageID, the address at the same time."""
    found: dict[tuple[int, str | None], str] = {}
    for fact in facts:
        arrival = fact.at, fact.message
        found[arrival] = min(fact.event_id, found.get(arrival, fact.event_id))
    return [(at, event_id) for (at, _), event_id in found.items()]


def _manual(acts: Iterable[Act]) -> dict[Key, Entry]:
    found: dict[Key, Entry] = {}
    for act in sorted(acts):
        if act.is_lift:
            found = {key: entry for key, entry in found.items() if not act.lifts(key)}
        else:
            found.setdefault((SuppressionReason.MANUAL, act.list_id), Entry(act.at, None, act.comment))
    return found
