"""The engine of `jethook simulate`: valid Mailjet traffic against any callback URL, at a rate or as fast as it goes."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from app.simulator.latency import Latencies
from app.simulator.posting import PostResult, Target, make_session, post
from app.simulator.shaping import Body, Shape, shape_events
from app.simulator.traffic import EVENT_TYPES, Event, make_events

GUESSED_RATE = 5000
"""Events a second that a run without rate and count will make: only their `time` depends on it."""

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """What `jethook simulate` is told.

    url: with the credentials as userinfo, as registered at Mailjet; never shown.
    rate: events a second; 0: as fast as the other side answers.
    count: different events; 0: until stopped.
    group, mixed, retries, duplicates, disorder: see Shape.
    start: Unix seconds of the first event; None: so that the last one has just happened.
    """

    url: str = field(repr=False)
    rate: float = 0.0
    count: int = 1000
    group: int = 1
    mixed: bool = False
    seed: int = 1
    types: Sequence[str] = EVENT_TYPES
    retries: float = 0.0
    duplicates: float = 0.0
    disorder: float = 0.0
    concurrency: int = 32
    timeout_seconds: float = 15.0
    start: int | None = None
    progress_seconds: float = 1.0


@dataclass(slots=True)
class SimulateReport:
    """What was posted and how it was answered; the same object grows during the run.

    events: elements posted, those posted again included. acknowledged: those in a body answered with 200.
    statuses: posts by HTTP status. failures: posts without an answer, by kind (timeout, connect, broken).
    """

    url: str
    events: int = 0
    acknowledged: int = 0
    posts: int = 0
    retries: int = 0
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies, repr=False)

    @property
    def is_clean(self) -> bool:
        """Every post was answered with 200."""
        return not self.failures and set(self.statuses) <= {200}

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds if self.seconds else 0.0

    @property
    def posts_per_second(self) -> float:
        return self.posts / self.seconds if self.seconds else 0.0

    def latency_ms(self) -> dict[str, float]:
        """Milliseconds from the request to the end of its answer: p50, p90, p95, p99 and max."""
        values = {name: self.latencies.percentile(share) for name, share in PERCENTILES.items()}
        values["max"] = self.latencies.longest_seconds
        return {name: round(seconds * 1000, 2) for name, seconds in values.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "events": self.events,
            "acknowledged": self.acknowledged,
            "posts": self.posts,
            "retries": self.retries,
            "seconds": round(self.seconds, 3),
            "events_per_second": round(self.events_per_second, 1),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "failures": dict(sorted(self.failures.items())),
            "latency_ms": self.latency_ms(),
        }


OnProgress = Callable[[SimulateReport], None]
OnAnswer = Callable[[Body, PostResult], None]


async def simulate(
    options: SimulateOptions,
    on_progress: OnProgress | None = None,
    *,
    stop: asyncio.Event | None = None,
    on_answer: OnAnswer | None = None,
) -> SimulateReport:
    """Post the traffic and return the report; `stop`, once set, ends it after the posts under way.

    `on_progress` is called about every `progress_seconds` and once at the end, `on_answer` after each post.
    Raises ValueError for a URL, shape or type that cannot be.
    """
    run = _Run(options, stop or asyncio.Event(), on_answer)
    ticker = asyncio.create_task(run.tick(on_progress)) if on_progress is not None else None
    try:
        await run.post_all()
    finally:
        if ticker is not None:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
    if on_progress is not None:
        on_progress(run.report)
    return run.report


class _Run:
    def __init__(self, options: SimulateOptions, stop: asyncio.Event, on_answer: OnAnswer | None) -> None:
        self._options = options
        self._stop = stop
        self._on_answer = on_answer
        self._target = Target.parse(options.url)
        self._bodies = _make_bodies(options)
        self._due_events = 0
        self._began = time.perf_counter()
        self.report = SimulateReport(self._target.url)

    async def post_all(self) -> None:
        async with make_session(self._options.concurrency, self._options.timeout_seconds) as session:
            self._began = time.perf_counter()
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._options.concurrency):
                    workers.create_task(self._work(session))
        self.report.seconds = time.perf_counter() - self._began

    async def tick(self, on_progress: OnProgress) -> None:
        while True:
            await asyncio.sleep(self._options.progress_seconds)
            self.report.seconds = time.perf_counter() - self._began
            on_progress(self.report)

    async def _work(self, session: aiohttp.ClientSession) -> None:
        """Post one body after the other from the stream that all workers share."""
        while not self._stop.is_set() and (body := next(self._bodies, None)) is not None:
            await self._pace(body)
            if self._stop.is_set():
                return
            began = time.perf_counter()
            result = await post(session, self._target, body.content)
            self._record(body, result, time.perf_counter() - began)

    async def _pace(self, body: Body) -> None:
        """Wait for this body's turn: at a rate, its last event is due when all before it had theirs."""
        self._due_events += body.events
        if not self._options.rate:
            return
        wait = self._began + self._due_events / self._options.rate - time.perf_counter()
        if wait > 0:
            # Not a plain sleep: with a low rate and many workers the run would not stop for minutes.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait)

    def _record(self, body: Body, result: PostResult, seconds: float) -> None:
        report = self.report
        report.posts += 1
        report.events += body.events
        report.retries += body.is_retry
        report.latencies.add(seconds)
        if result.status is None:
            report.failures[result.failure or "broken"] += 1
        else:
            report.statuses[result.status] += 1
        if result.is_acknowledged:
            report.acknowledged += body.events
        if self._on_answer is not None:
            self._on_answer(body, result)


def _make_bodies(options: SimulateOptions) -> Iterator[Body]:
    shape = Shape(options.group, options.mixed, options.retries, options.duplicates, options.disorder)
    return shape_events(_make_events(options), shape, options.seed)


def _make_events(options: SimulateOptions) -> Iterator[Event]:
    """Events that happen at the rate they are posted; without a rate, two a second up to now."""
    now = int(time.time())
    if options.rate:
        step_seconds, start = 1 / options.rate, now
    elif options.count:
        step_seconds, start = 0.5, now - options.count // 2
    else:
        step_seconds, start = 1 / GUESSED_RATE, now
    return make_events(
        options.seed,
        options.count or None,
        start if options.start is None else options.start,
        types=options.types,
        step_seconds=step_seconds,
    )
