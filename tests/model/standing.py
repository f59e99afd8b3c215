"""Who is suppressed and why, as a plain model: all facts and all acts of an address are looked at each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

DAY = 86_400_000_000
SOFT_BOUNCES, SOFT_DAYS = 3, 2  # as the service under test is set
REASONS = ("complaint", "unsubscribe", "manual", "hard_bounce", "blocked", "soft_bounces")  # the strongest first

Place = tuple[str, str, str | None]
"""(address, reason, list it is for)"""


class Against(NamedTuple):
    """What one event says against mailing an address."""

    at: int
    event_id: str
    place: Place
    message: str | None


class Entry(NamedTuple):
    since: int
    event_id: str | None
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Act:
    """What a person did; a lift is of all that it does not narrow, up to `until`."""

    act: str
    email: str
    comment: str
    scope: str | None = None
    list_id: str | None = None
    reason: str | None = None
    until: int = 0

    def lifts(self, place: Place) -> bool:
        email, reason, list_id = place
        scope = "address" if list_id is None else "list"
        return (
            self.act == "lift" and self.email == email and self.reason in (None, reason)
            and (self.scope is None or (self.scope, self.list_id) == (scope, list_id))
        )  # fmt: skip


def fact_against(event: Any) -> Against | None:
    found = _reason(event)
    if found is None or event.test or not event.email:
        return None
    return Against(event.occurred, event.id, (event.email, *found), event.message_id)


def _reason(event: Any) -> tuple[str, str | None] | None:
    if event.outcome == "deferred":
        return None
    if event.type == "spam" or (event.type == "blocked" and event.reason == "spam reporter"):
        return "complaint", None
    if event.type == "unsub":
        return "unsubscribe", event.list_id
    if event.type == "bounce":
        return ("hard_bounce" if event.permanent else "soft_bounces"), None
    return ("blocked", None) if event.type == "blocked" and event.permanent else None


@dataclass(slots=True)
class Standing:
    """`hidden` are suppressions of people who were erased: the place, told by nobody, and since when."""

    entries: dict[Place, Entry] = field(default_factory=dict)
    hidden: dict[Place, int] = field(default_factory=dict)
    acts: list[Act] = field(default_factory=list)

    def take(self, facts: Iterable[Against], facts_of: Callable[[str], list[Against]]) -> None:
        """New facts: the earliest cause since the last lift is what counts."""
        for place in {fact.place for fact in facts}:
            alike = [fact for fact in facts_of(place[0]) if fact.place == place and fact.at > self._lifted(place)]
            begins = _beginning(place[1], alike)
            known = self.entries.get(place)
            if begins and (known is None or begins < (known.since, known.event_id)):
                self.entries[place] = Entry(*begins)

    def _lifted(self, place: Place) -> int:
        return max((act.until for act in self.acts if act.lifts(place)), default=-1)

    def add(self, email: str, list_id: str | None, comment: str, now: int) -> bool:
        """False where it is there already."""
        place = email, "manual", list_id
        if place in self.entries:
            return False
        scope = "address" if list_id is None else "list"
        self.acts.append(Act("add", email, comment, scope, list_id))
        self.entries[place] = Entry(now, None, comment)
        return True

    def lift(self, act: Act, now: int, newest: int) -> set[Place]:
        """What it ended. `newest` is the time of the address's latest fact, should it lie ahead of `now`."""
        mine = [entry.since for place, entry in self.entries.items() if place[0] == act.email]
        ended = {place for place in self.entries if act.lifts(place)}
        if ended:
            told = (act.act, act.email, act.comment, act.scope, act.list_id, act.reason)
            self.acts.append(Act(*told, until=max(now, newest, *mine)))
        ended |= {place for place in self.hidden if act.lifts(place)}
        for place in ended:
            self.entries.pop(place, None)
            self.hidden.pop(place, None)
        return ended

    def rebuild(self, facts_of: Callable[[str], list[Against]]) -> None:
        """All stays, but what takes several events is told anew by those that are left, while its own still is."""
        for place in [place for place in self.entries if place[1] == "soft_bounces"]:
            facts = facts_of(place[0])
            if self.entries[place].event_id in {fact.event_id for fact in facts}:
                del self.entries[place]
                self.take([fact for fact in facts if fact.place == place], facts_of)

    def forget(self, is_meant: Callable[[str], bool], *, keep: bool) -> None:
        for place in [place for place in self.entries if is_meant(place[0])]:
            entry = self.entries.pop(place)
            if keep:
                self.hidden.setdefault(place, entry.since)
        if not keep:
            self.hidden = {place: since for place, since in self.hidden.items() if not is_meant(place[0])}
        self.acts = [act for act in self.acts if not is_meant(act.email)]


def _beginning(reason: str, facts: Iterable[Against]) -> tuple[int, str] | None:
    """(since, event): the first fact; of passing bounces the one that was too many."""
    arrivals: dict[tuple[int, str | None], str] = {}
    for fact in facts:
        key = fact.at, fact.message  # two webhooks' copies of a bounce are one
        arrivals[key] = min(arrivals.get(key, fact.event_id), fact.event_id)
    marks = sorted((at, event_id) for (at, _), event_id in arrivals.items())
    needed = SOFT_BOUNCES if reason == "soft_bounces" else 1
    runs = zip(marks, marks[needed - 1 :], strict=False)
    return next((end for first, end in runs if end[0] - first[0] <= SOFT_DAYS * DAY), None)
