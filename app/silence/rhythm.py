"""When something should have come by now: what the past weeks say, hour by hour. Pure; times come in.

A week has quiet nights and quiet weekends, so hours are learned apart: by the hour of the day, and by whether it is a
working day, a Saturday or a Sunday (all in UTC; a change of the clock moves one hour, which is not enough to cry). An
hour that brought something on most of its days is a surprise when it brings nothing, one that never did is none. The
surprises since the last event add up; beyond what one gap in ten thousand has, it is silence. A type that comes once a
week is so given weeks, and one that comes all day some hours.

Only whether something came in an hour counts, not how much: a campaign is no promise of another. The longest gap but
one is known to be possible, so that a single outage teaches nothing and a second one like it does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from app.clock import EPOCH

HOUR = timedelta(hours=1)
WINDOW_HOURS = 28 * 24  # what is learned from: four of each day of the week
LEAST_HOURS = 7 * 24  # known for a shorter time, there are days of which nothing is known
LEAST_ACTIVE = 20  # hours in which something came; fewer show no rhythm
SURPRISE = math.log(10_000)
SLACK = 1.5  # times the gaps that there were already
LONGEST = timedelta(days=60)  # with nothing to expect for so long, nothing is expected

Kind = tuple[int, int]
"""0 for a working day, 1 for Saturday, 2 for Sunday; and the hour."""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How surprising an hour without events is, by its kind; and how much of that is too much."""

    surprises: Mapping[Kind, float]
    limit: float


def hour_of(moment: datetime) -> int:
    """Hours since 1970."""
    return (moment - EPOCH) // HOUR


def kind_of(hour: int) -> Kind:
    weekday = (hour // 24 + 3) % 7  # 1970 began with a Thursday
    return max(weekday - 4, 0), hour % 24


def learn(active: Collection[int]) -> Rhythm | None:
    """The rhythm of hours since 1970 that brought something; of the four weeks up to the last of them. None where too
    little is known."""
    last = max(active, default=0)
    hours = sorted({hour for hour in active if hour > last - WINDOW_HOURS})
    if len(hours) < LEAST_ACTIVE or last - hours[0] < LEAST_HOURS:
        return None
    passed = Counter(kind_of(hour) for hour in range(hours[0], last + 1))
    brought = Counter(kind_of(hour) for hour in hours)
    # Of n days of a kind all brought something: the next may not, with a chance of 1 in n + 1.
    surprises = {kind: -math.log(1 - brought[kind] / (number + 1)) for kind, number in passed.items()}
    gaps = sorted(_surprise_between(hours, surprises), reverse=True)
    return Rhythm(surprises, max(SURPRISE, SLACK * gaps[1]))


def _surprise_between(hours: list[int], surprises: Mapping[Kind, float]) -> Iterator[float]:
    for earlier, later in pairwise(hours):
        yield sum(surprises[kind_of(hour)] for hour in range(earlier + 1, later))


def expected_by(rhythm: Rhythm, last_event_at: datetime) -> datetime | None:
    """By when the next event should have come; None where none is expected any more."""
    moment, total = last_event_at, 0.0
    while moment - last_event_at < LONGEST:
        hour = hour_of(moment)
        end = EPOCH + (hour + 1) * HOUR
        surprise = rhythm.surprises.get(kind_of(hour), 0.0)
        whole = surprise * ((end - moment) / HOUR)
        if total + whole >= rhythm.limit:
            return moment + HOUR * ((rhythm.limit - total) / surprise)
        total += whole
        moment = end
    return None
