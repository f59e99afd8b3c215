"""How much happens now: the counters of this process, looked at every few seconds and kept for an hour.

Nothing is read from the database for it, so a glance costs the same with a hundred events and with a hundred million.
What other replicas receive is not in it; the page says so where it matters.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import Counter

from app.clock import now_micros, wait_for_event
from app.metrics import Metrics

BIN_SECONDS = 5
KEPT_SECONDS = 3600

Counts = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Bin:
    """What came in `BIN_SECONDS` from `start` (Unix seconds) on: events by type, attempts by (sink, succeeded?)."""

    start: int
    events: Counts = field(default_factory=dict)
    attempts: Mapping[tuple[str, bool], float] = field(default_factory=dict)


class Pulse:
    """One for the process; `run` on its event loop, everything else from any thread."""

    def __init__(self, metrics: Metrics, now: Callable[[], float] = lambda: now_micros() / 1_000_000) -> None:
        self._metrics = metrics
        self._now = now
        self._bins: deque[Bin] = deque(maxlen=KEPT_SECONDS // BIN_SECONDS)
        self._events = _events(metrics)
        self._attempts = _attempts(metrics)

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await wait_for_event(stop, BIN_SECONDS - self._now() % BIN_SECONDS)
            self.tick()

    def tick(self) -> None:
        """The bin that has just ended."""
        events, attempts = _events(self._metrics), _attempts(self._metrics)
        start = int(self._now()) // BIN_SECONDS * BIN_SECONDS - BIN_SECONDS
        self.put(Bin(start, events - self._events, attempts - self._attempts))
        self._events, self._attempts = events, attempts

    def put(self, ended: Bin) -> None:
        self._bins.append(ended)

    def forget(self) -> None:
        self._bins.clear()

    @property
    def known_seconds(self) -> int:
        """How far back it knows."""
        first = next(iter(self._bins), None)
        return 0 if first is None else int(self._now()) - first.start

    def series(self, seconds: int, step_seconds: int) -> tuple[list[int], list[Tally[str]]]:
        """(starts, counts by type) of whole steps up to now; a step nothing is known of is empty."""
        last = int(self._now()) // step_seconds * step_seconds
        starts = list(range(last - seconds + step_seconds, last + 1, step_seconds))
        found: dict[int, Tally[str]] = {start: Tally() for start in starts}
        for known in list(self._bins):
            step = found.get(known.start // step_seconds * step_seconds)
            if step is not None:
                step.update(known.events)
        return starts, [found[start] for start in starts]

    def counts(self, seconds: int) -> Tally[str]:
        """Events by type of the last seconds."""
        total: Tally[str] = Tally()
        for known in self._since(seconds):
            total.update(known.events)
        return total

    def events_per_second(self, seconds: int = 60) -> float:
        return sum(self.counts(seconds).values()) / self._known_of(seconds)

    def deliveries_per_second(self, seconds: int = 60) -> dict[str, float]:
        """Successful attempts of each sink."""
        total: Tally[str] = Tally()
        for known in self._since(seconds):
            for (sink, succeeded), count in known.attempts.items():
                total[sink] += count if succeeded else 0  # type: ignore[assignment]
        return {sink: count / self._known_of(seconds) for sink, count in total.items()}

    def _known_of(self, seconds: int) -> int:
        """As many of these seconds as it can know of: a service that has just started is not slow."""
        return max(min(seconds, self.known_seconds), BIN_SECONDS)

    def _since(self, seconds: int) -> Iterator[Bin]:
        first = self._now() - seconds - BIN_SECONDS
        return (known for known in list(self._bins) if known.start > first)


def _events(metrics: Metrics) -> Tally[str]:
    found: Tally[str] = Tally()
    for labels, value in _samples(metrics.ingest_events):
        if labels["result"] == "stored":
            found[labels["event"]] += value  # type: ignore[assignment]
    return found


def _attempts(metrics: Metrics) -> Tally[tuple[str, bool]]:
    found: Tally[tuple[str, bool]] = Tally()
    for labels, value in _samples(metrics.delivery_attempts):
        found[labels["sink"], labels["outcome"] == "success"] += value  # type: ignore[assignment]
    return found


def _samples(counter: Counter) -> Iterator[tuple[Mapping[str, str], float]]:
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                yield sample.labels, sample.value
