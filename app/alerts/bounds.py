"""How often the same thing is told. Pure; the time comes in.

At most one event of a type about one subject in a minute, however fast a sink flaps and however many deliveries die
with it. What comes sooner is held and told when the minute is over: counts add up, and of a state that goes to and fro
only what it is in the end is told, with the number of changes that were not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from app.operator_events import TURNS, Change

QUIET = timedelta(minutes=1)


@dataclass(slots=True)
class _Topic:
    """One kind of thing about one subject."""

    told_at: dict[str, datetime] = field(default_factory=dict)
    last: str | None = None  # the type told last
    held: Change | None = None
    untold: int = 0  # changes of a state that nobody heard of


class Bounds:
    """Decides what of the changes offered is told now, and what later. Subjects are configured names, so few."""

    def __init__(self, quiet: timedelta = QUIET) -> None:
        self._quiet = quiet
        self._topics: dict[object, _Topic] = {}

    def offer(self, change: Change, now: datetime) -> Change | None:
        """The change to tell now, if any; one that must wait comes out of `due`."""
        topic = self._topics.setdefault((TURNS.get(change.type, change.type), change.subject), _Topic())
        if change.type in TURNS:
            topic.untold += topic.held is not None
            if change.type == topic.last:  # it went away and came back within the minute
                topic.untold += 1
                topic.held = None
                return None
        elif topic.held is not None:
            change = together(topic.held, change)
        topic.held = change
        return self._tell(topic, now) if self._ready_at(topic, now) <= now else None

    def due(self, now: datetime) -> Iterator[Change]:
        """What was held and may be told now."""
        for topic in self._topics.values():
            if topic.held is not None and self._ready_at(topic, now) <= now:
                yield self._tell(topic, now)

    def rest(self, now: datetime) -> Iterator[Change]:
        """All that is held, due or not: nobody comes back for it."""
        for topic in self._topics.values():
            if topic.held is not None:
                yield self._tell(topic, now)

    def next_at(self, now: datetime) -> datetime | None:
        """When something held is due; None while nothing is held."""
        return min((self._ready_at(t, now) for t in self._topics.values() if t.held is not None), default=None)

    def _ready_at(self, topic: _Topic, now: datetime) -> datetime:
        assert topic.held is not None
        told_at = topic.told_at.get(topic.held.type)
        return now if told_at is None else told_at + self._quiet

    def _tell(self, topic: _Topic, now: datetime) -> Change:
        change = topic.held
        assert change is not None
        if topic.untold:
            change = replace(change, details={**change.details, "untold_changes": topic.untold})
        topic.held, topic.untold = None, 0
        topic.last = change.type
        topic.told_at[change.type] = now
        return change


def together(first: Change, later: Change) -> Change:
    """Both as one: the later one with the counts of both, and the first one's beginning and first id."""
    firsts = {name: value for name, value in first.details.items() if name.startswith("first_")}
    return replace(
        later,
        count=(first.count or 0) + (later.count or 0),
        since=first.since or first.at,
        details={**later.details, **firsts},
    )
