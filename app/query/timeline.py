"""What became of one message, from what is known of its events. Pure: no clock, no database.

Mailjet promises no order and repeats itself, so nothing here asks which event came first or how often: the state is
the strongest thing that is known, and `state_of` is a maximum. Any order and any repetition give the same answer, and a
late `sent` never undoes an `open`.

The order of strength, and why:

1. `complained`, `unsubscribed`: a person did that on purpose, which needs an answer, and proves that the message came.
2. `bounced`, `rejected`, where the failure is lasting: the server's (or Mailjet's) own last word. It outweighs an open
   or a click, since scanners fetch images and follow links before a server refuses; who opened is still in the counts.
   It outweighs `delivered` because a server may accept first and bounce afterwards.
3. `clicked`, `opened`, `delivered`: each proves the next.
4. `bounced`, `rejected`, where the failure is not lasting or nobody says: a later try can succeed, so any proof of
   arrival outweighs it.
5. `deferred`: Mailjet tries again by itself, so any other news is newer.
6. `unknown`: only events whose type says nothing.

`bounced` outweighs `rejected` of the same kind: the first was tried, the second not even sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.clock import rfc3339
from app.models import Outcome

# From the weakest to the strongest: (outcome, is it a lasting failure).
STRENGTH: tuple[tuple[Outcome, bool], ...] = (
    (Outcome.UNKNOWN, False),
    (Outcome.DEFERRED, False),
    (Outcome.REJECTED, False),
    (Outcome.BOUNCED, False),
    (Outcome.DELIVERED, False),
    (Outcome.OPENED, False),
    (Outcome.CLICKED, False),
    (Outcome.REJECTED, True),
    (Outcome.BOUNCED, True),
    (Outcome.UNSUBSCRIBED, False),
    (Outcome.COMPLAINED, False),
)
_STRENGTH = {kind: strength for strength, kind in enumerate(STRENGTH)}
FAILURES = (Outcome.BOUNCED, Outcome.REJECTED)


@dataclass(frozen=True, slots=True)
class State:
    """Where a message stands. `permanent` is of a failure, whether it is lasting; null where nobody says."""

    outcome: str
    permanent: bool | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """The events of one message that are alike in type and meaning: how many, the first and the last time."""

    type: str
    outcome: str
    permanent: bool | None
    count: int
    first: datetime
    last: datetime


def state_of(known: Iterable[tuple[str, bool | None]]) -> State:
    """The strongest of some (outcome, permanent), in whatever order and however often they are told."""
    return max((_state(outcome, permanent) for outcome, permanent in known), key=_weight, default=_NOTHING)


def _state(outcome: str, permanent: bool | None) -> State:
    return State(outcome, permanent if outcome in FAILURES else None) if outcome in set(Outcome) else _NOTHING


def _weight(state: State) -> tuple[int, bool]:
    strength = _STRENGTH[Outcome(state.outcome), state.permanent is True]
    return strength, state.permanent is not None  # a failure that says it will pass outweighs one that says nothing


_NOTHING = State(Outcome.UNKNOWN)


def summary(tallies: Iterable[Tally]) -> dict[str, Any]:
    """State, counts, times and delays of contract shape; the types by the time of their first event."""
    alike = list(tallies)
    state = state_of((tally.outcome, tally.permanent) for tally in alike)
    first: dict[str, datetime] = {}
    last: dict[str, datetime] = {}
    counts: dict[str, int] = {}
    for tally in sorted(alike, key=lambda tally: (tally.first, tally.type)):
        first.setdefault(tally.type, tally.first)
        last[tally.type] = max(last.get(tally.type, tally.last), tally.last)
        counts[tally.type] = counts.get(tally.type, 0) + tally.count
    return {
        "state": str(state.outcome),
        "permanent": state.permanent,
        "counts": counts,
        "first": {name: rfc3339(moment) for name, moment in first.items()},
        "last": {name: rfc3339(moment) for name, moment in last.items()},
        "seconds_to_open": seconds_between(first, "sent", "open"),
        "seconds_to_click": seconds_between(first, "sent", "click"),
    }


def seconds_between(first: Mapping[str, datetime], start: str, end: str) -> int | None:
    """Seconds from the first `start` to the first `end`; null without either.

    Never negative: Mailjet's machines tell the time for themselves, in whole seconds, so an open that seems to come
    before `sent` came at once.
    """
    if start not in first or end not in first:
        return None
    return max(int((first[end] - first[start]).total_seconds()), 0)
