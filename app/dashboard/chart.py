"""The overview's chart: events by type over a span, as a browser draws them and as a reader hears them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import orjson

from app.dashboard.pulse import OTHER, Pulse
from app.settings import EVENT_TYPES

# name -> (what it is called, seconds, seconds of a bar): from this process's counters …
SPANS = {"live": ("10 min", 600, 5), "hour": ("Hour", 3600, 60)}
# … and from statistics.
LONG_SPANS = ("day", "week")
LEAST_SECONDS = 60  # of the first span, which grows from there: a service that has just started shows full bars


@dataclass(frozen=True, slots=True)
class Chart:
    """`points` is JSON for the script: starts, the step, and counts by type. `span` is what it is called."""

    span: str
    totals: dict[str, int]
    points: str

    @property
    def sentence(self) -> str:
        """For who cannot see it."""
        told = [f"{count:,} {name}" for name, count in self.totals.items() if count]
        return f"Events in the last {self.span}: {', '.join(told) or 'none'}."


def live_chart(pulse: Pulse, span: str) -> Chart:
    name, seconds, step_seconds = SPANS[span]
    shown = max(LEAST_SECONDS, min(seconds, pulse.known_seconds)) if span == "live" else seconds
    starts, counts = pulse.series(shown // step_seconds * step_seconds, step_seconds)
    return make_chart(name, step_seconds, starts, counts, most=seconds // step_seconds)


def make_chart(
    span: str, step_seconds: int, starts: list[int], counts: list[Counter[str]], *, most: int | None = None
) -> Chart:
    """`most` bars can become of it while somebody looks."""
    types = [*EVENT_TYPES, *([OTHER] if any(count[OTHER] for count in counts) else [])]
    series: dict[str, Any] = {name: [int(count[name]) for count in counts] for name in types}
    totals = {name: sum(values) for name, values in series.items()}
    points = {"starts": starts, "step": step_seconds, "most": most or len(starts), "series": series}
    return Chart(span, totals, orjson.dumps(points).decode())
