"""A strip of time: what happened when, as places on a line. Pure; the template draws it.

Mail lives in seconds at first and in days later, so distances grow with the logarithm of the time since the beginning:
a delivery after two seconds, an open after ten minutes and a complaint after three weeks can all be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.dashboard.filters import duration

MOST_MARKS = 60
_TICKS = (1, 10, 60, 600, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400, 365 * 86_400)
LEFT, WIDTH = 2.0, 94.0  # percent


@dataclass(frozen=True, slots=True)
class Mark:
    """One event; `x` in percent of the strip."""

    x: float
    kind: str
    label: str


@dataclass(frozen=True, slots=True)
class Tick:
    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Strip:
    marks: Sequence[Mark]
    ticks: Sequence[Tick]


def strip_of(events: Sequence[tuple[datetime, str]]) -> Strip:
    """Marks of (time, type), in time order; of many the first `MOST_MARKS`."""
    if not events:
        return Strip((), ())
    start = events[0][0]
    since = [(max(0.0, (at - start).total_seconds()), kind) for at, kind in events[:MOST_MARKS]]
    span = max(seconds for seconds, _ in since)
    marks = [Mark(_place(seconds, span), kind, f"{kind} after {duration(seconds)}") for seconds, kind in since]
    return Strip(marks, list(_ticks(span)))


def _place(seconds: float, span: float) -> float:
    share = math.log1p(seconds) / math.log1p(span) if span else 0.0
    return round(LEFT + WIDTH * share, 2)


def _ticks(span: float) -> list[Tick]:
    """The start, and round times that do not crowd each other."""
    ticks = [Tick(LEFT, "start")]
    for seconds in _TICKS:
        x = _place(seconds, span) if seconds <= span else 0.0
        if x - ticks[-1].x >= 14:
            ticks.append(Tick(x, duration(seconds)))
    return ticks
