"""How much happens now, looked at every few seconds and kept for an hour.

Events come from this process's counters while it is the only one, else from the few that were committed since the last
look; deliveries are this process's, and the page says so where there can be others. So a glance costs the same with a
hundred events and with a hundred million. While nothing comes the database is asked for every third bin only: what
another replica receives first after a rest is shown up to ten seconds late.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa
import structlog
from prometheus_client import Counter
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from app.clock import now_micros, wait_for_event
from app.db import Database
from app.errors import AppError
from app.filters import StreamQuery
from app.metrics import Metrics
from app.models import Event
from app.query.feed import LATEST, Feed, parse_ask
from app.query.horizon import last_given
from app.settings import EVENT_TYPES

log = structlog.get_logger(__name__)

BIN_SECONDS = 5
KEPT_SECONDS = 3600
BINS_AT_REST = 3  # asked for at once

OTHER = "unknown"

Counts = Mapping[str, float]
CountNew = Callable[[], Awaitable[Tally[str]]]

_events_table: sa.Table = Event.__table__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Bin:
    """What came in `BIN_SECONDS` from `start` (Unix seconds) on: events by type, attempts by (sink, succeeded?)."""

    start: int
    events: Counts = field(default_factory=dict)
    attempts: Mapping[tuple[str, bool], float] = field(default_factory=dict)


class Pulse:
    """One for the process; `run` on its event loop, everything else from any thread. `count_new` counts what came since
    it was asked last, where not all of it comes through this process."""

    def __init__(
        self, metrics: Metrics, now: Callable[[], float] = lambda: now_micros() / 1_000_000,
        count_new: CountNew | None = None,
    ) -> None:  # fmt: skip
        self._metrics = metrics
        self._now = now
        self._count_new = count_new
        self._bins: deque[Bin] = deque(maxlen=KEPT_SECONDS // BIN_SECONDS)
        self._events = _events(metrics)
        self._attempts = _attempts(metrics)
        self._skips = 0  # of the bins to come, while nothing comes here

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await wait_for_event(stop, BIN_SECONDS - self._now() % BIN_SECONDS)
            await self.look()

    async def look(self) -> None:
        """The bin that has just ended."""
        if self._count_new is None:
            return self.tick()
        if self._skips and _events(self._metrics) == self._events:
            self._skips -= 1
            return self.tick(Tally())
        try:
            found = await self._count_new()
            self._skips = 0 if found else BINS_AT_REST - 1
            self.tick(found)
        except (AppError, SQLAlchemyError) as error:  # they are counted when the database is back
            log.warning("dashboard.pulse_missed", error=type(error).__name__)
            self.tick(Tally())

    def tick(self, found: Tally[str] | None = None) -> None:
        """The same with the events that were `found`, else with those that were counted here."""
        events, attempts = _events(self._metrics), _attempts(self._metrics)
        start = int(self._now()) // BIN_SECONDS * BIN_SECONDS - BIN_SECONDS
        self.put(Bin(start, events - self._events if found is None else found, attempts - self._attempts))
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
        for known in [*self._bins, *self._open()]:
            step = found.get(known.start // step_seconds * step_seconds)
            if step is not None:
                step.update(known.events)
        return starts, [found[start] for start in starts]

    def _open(self) -> Iterator[Bin]:
        """What came since the last look, without which a page that is opened now would show a gap for ever."""
        if self._bins and self._count_new is None:
            yield Bin(self._bins[-1].start + BIN_SECONDS, _events(self._metrics) - self._events)

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


class NewEvents:
    """Counts by type what was committed since the last call, through whichever replica; at first nothing."""

    def __init__(self, database: Database, feed: Feed) -> None:
        self._database = database
        self._feed = feed
        self._position: int | None = None

    async def __call__(self) -> Tally[str]:
        """Raises AppError or SQLAlchemyError where the database is away; then the next call counts more."""
        if self._position is not None and await self._database.run_glance(last_given) == self._position:
            return Tally()  # nearly always, by one statement: no number was given since
        upto = (await self._feed.first(parse_ask(StreamQuery(), LATEST, 1))).position
        after = upto if self._position is None else self._position
        found = await self._database.run_read(lambda c: _count(c, after, upto)) if upto > after else Tally()
        self._position = upto
        return found


def _count(connection: Connection, after: int, upto: int) -> Tally[str]:
    """One step along the index of the commit order."""
    seq, kind = _events_table.c.seq, _events_table.c.type
    statement = sa.select(kind, sa.func.count()).where(seq > after, seq <= upto).group_by(kind)
    found: Tally[str] = Tally()
    for name, count in connection.execute(statement):
        found[name if name in EVENT_TYPES else OTHER] += count
    return found


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
