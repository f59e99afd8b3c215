"""Mailjet's figures beside ours: how complete a day is, and from when on that can be judged. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from app.clock import EPOCH
from app.mailjet.statistics import Figures

DAY = timedelta(days=1)
DAYS_ASKED = 8  # today and a week: a soft bounce may come days after the message, and Mailjet's own figures move
SETTLED_AFTER = DAY  # after a day's end: until then retries, Mailjet's counting and our own are under way
INCOMPLETE = 0.98  # below it a person should know; what falls into the day before or after makes up for less


@dataclass(frozen=True, slots=True)
class Compared:
    """One type of one connection on one day (since 1970, UTC)."""

    day: int
    connection: str
    type: str
    expected: int
    stored: int

    @property
    def ratio(self) -> float | None:
        return ratio_of(self.expected, self.stored)


def ratio_of(expected: int, stored: int) -> float | None:
    """From 0 to 1; None where Mailjet counted nothing. More than Mailjet counted is complete: a message that bounces
    twice is counted once there."""
    return min(stored / expected, 1.0) if expected else None


def day_of(moment: datetime, *, rounded_up: bool = False) -> int:
    """Days since 1970; the one it lies in, or `rounded_up` the first that begins then or later."""
    return -((EPOCH - moment) // DAY) if rounded_up else (moment - EPOCH) // DAY


def date_of(day: int) -> date:
    return (EPOCH + day * DAY).date()


def days_to_ask(now: datetime, begun_on: int) -> range:
    """Today and the week before, as far as events were received then."""
    today = day_of(now)
    return range(max(today - DAYS_ASKED + 1, min(begun_on, today)), today + 1)


def is_settled(day: int, checked_at: datetime) -> bool:
    return EPOCH + (day + 1) * DAY + SETTLED_AFTER <= checked_at


def settled_days(now: datetime) -> range:
    """Of the days that are asked for, those that can be judged."""
    today = day_of(now)
    return range(today - DAYS_ASKED + 1, today - SETTLED_AFTER // DAY)


def compare(
    connection: str, figures: Figures, stored: Mapping[tuple[int, str], int], types: Iterable[str], days: range
) -> Iterator[Compared]:
    """`stored` by day and type. Only of `types` that somebody watches; others are not missed."""
    watched = set(types)
    for day in days:
        for event_type, expected in sorted(figures.get(date_of(day), {}).items()):
            if event_type in watched:
                yield Compared(day, connection, event_type, expected, stored.get((day, event_type), 0))
