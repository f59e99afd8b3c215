"""The overview's chart: events by type over a span, as a browser draws them and as a reader hears them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import orjson

from app.dashboard.pulse import Pulse
from app.settings import EVENT_TYPES

# name -> (what it is called, seconds, seconds of a bar)
SPANS = {"live": ("10 min", 600, 5), "hour": ("Hour", 3600, 60)}
OTHER = "unknown"
LEAST_SECONDS = 120  # of the first span, which grows from there: a service that has just started shows full bars


@dataclass(frozen=True, slots=True)
class Chart:
    """`points` is JSON for the script: starts, the step, and counts by type."""

    span: str
    step_seconds: int
    totals: dict[str, int]
    points: str

    @property
    def sentence(self) -> str:
        """For who cannot see it."""
        told = [f"{count:,} {name}" for name, count in self.totals.items() if count]
        return f"Events in the last {SPANS[self.span][0]}: {', '.join(told) or 'none'}."


def chart_of(pulse: Pulse, span: str) -> Chart:
    _, seconds, step_seconds = SPANS[span]
    shown = max(LEAST_SECONDS, min(seconds, pulse.known_seconds)) if span == "live" else seconds
    starts, counts = pulse.series(shown // step_seconds * step_seconds, step_seconds)
    return make_chart(span, starts, counts)


def make_chart(span: str, starts: list[int], counts: list[Counter[str]]) -> Chart:
    _, seconds, step_seconds = SPANS[span]
    types = [*EVENT_TYPES, *([OTHER] if any(count[OTHER] for count in counts) else [])]
    series: dict[str, Any] = {name: [int(count[name]) for count in counts] for name in types}
    totals = {name: sum(values) for name, values in series.items()}
    points = {"starts": starts, "step": step_seconds, "most": seconds // step_seconds, "series": series}
    return Chart(span, step_seconds, totals, orjson.dumps(points).decode())
