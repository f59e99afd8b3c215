"""The measurements: which load meets which subject, and what is written down."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import subjects
from tests.benchmarks.corpus import write_corpus
from tests.benchmarks.load import LoadResult, LoadSpec
from tests.benchmarks.processes import Server, free_port, run_json
from tests.benchmarks.subjects import Sink, Target

WARM_POSTS = 300  # lazy imports, first connections, prepared statements
E2E_SECONDS = 60.0
PACED_RATE = 300.0  # posts a second
Open = Callable[[Path], AbstractContextManager[Target]]


@dataclass(frozen=True)
class Sizes:
    """How much is measured. A rate's run ends after its events or its seconds, whichever comes first."""

    rounds: int = 3
    seconds: float = 3.0
    singles: int = 12_000
    grouped: int = 40_000
    end_to_end: int = 6_000
    waiting: int = 200_000
    client_seconds: float = 2.0
    paced_seconds: float = 15.0

    @property
    def corpus(self) -> int:
        return max(self.waiting, self.grouped, self.singles, self.end_to_end) + WARM_POSTS * 100


QUICK = Sizes(
    rounds=1,
    seconds=1.2,
    singles=6_000,
    grouped=15_000,
    end_to_end=2_500,
    waiting=40_000,
    client_seconds=0.7,
    paced_seconds=5.0,
)


@dataclass
class Figure:
    """One figure's samples, one a round, and what else the last rounds told."""

    samples: list[float] = field(default_factory=list)
    generator_cores: list[float] = field(default_factory=list)
    server_cores: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    p99_of_seconds_ms: list[float] = field(default_factory=list)  # the middle one of the seconds' p99
    refused: int = 0  # posts not answered with 200

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


@dataclass
class Results:
    """Everything measured, by (scenario, subject)."""

    figures: dict[tuple[str, str], Figure] = field(default_factory=dict)

    def figure(self, scenario: str, subject: str) -> Figure:
        return self.figures.setdefault((scenario, subject), Figure())

    def median(self, scenario: str, subject: str, *, of: str = "samples") -> float | None:
        found = self.figures.get((scenario, subject))
        values: list[float] = getattr(found, of) if found else []
        return statistics.median(values) if values else None


@dataclass(frozen=True)
class Step:
    """One measurement of a round; `run` writes its figure."""

    scenario: str
    subject: str
    run: Callable[[Figure], None]


class Bench:
    """A folder with the corpus in it, and the steps that can be measured there."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder = folder
        self.sizes = sizes
        self.corpus = folder / "corpus.jsonl"
        write_corpus(self.corpus, sizes.corpus)

    def steps(self, only: str | None) -> list[Step]:
        """Those of a round, floors next to what they are the floor of."""
        chosen = [s for s in self._all_steps() if only in (None, s.scenario)]
        if only == "e2e":
            chosen.insert(0, next(s for s in self._all_steps() if (s.scenario, s.subject) == ("singles", "empty")))
        return chosen

    def _all_steps(self) -> Iterator[Step]:
        for scenario in ("singles", "groups"):
            for subject, open_it in _SUBJECTS.items():
                yield Step(scenario, subject, partial(self._ingest, scenario, open_it))
            yield Step(scenario, "sqlite3", partial(self._sqlite, scenario))
        yield Step("e2e", "all", partial(self._end_to_end, "singles"))
        yield Step("e2e", "batches", partial(self._end_to_end, "groups"))
        for subject in ("alone", "beside"):
            yield Step("paced", subject, partial(self._paced, subject))

    # --- ingest ---

    def _load(
        self, target: Target, scenario: str, *, events: int, seconds: float, skip: int = 0, rate: float | None = None
    ) -> LoadResult:
        group, connections = (1, 32) if scenario == "singles" else (100, 8)
        spec = LoadSpec(
            port=target.server.port, path=target.path, credentials=subjects.CREDENTIALS, corpus=str(self.corpus),
            events=events, group=group, connections=connections, seconds=seconds, skip=skip, repeat=not target.keeps,
            rate=rate,
        )  # fmt: skip
        measured = run_json(["-m", "tests.benchmarks.load", json.dumps(asdict(spec))], seconds=seconds + 60)
        return LoadResult(**measured)

    def _warm(self, target: Target) -> None:
        """The first requests, of events that no measurement uses."""
        skip = self.sizes.corpus - WARM_POSTS * 100
        self._load(target, "singles", events=WARM_POSTS, seconds=2.0, skip=skip)

    def _ingest(self, scenario: str, open_it: Open, figure: Figure) -> None:
        events = self.sizes.singles if scenario == "singles" else self.sizes.grouped
        with open_it(self.folder) as target:
            self._warm(target)
            cpu = target.server.cpu_seconds()
            result = self._load(target, scenario, events=events, seconds=self.sizes.seconds)
            cpu = target.server.cpu_seconds() - cpu
        figure.samples.append(result.acknowledged / result.seconds)
        _note(figure, result, cpu)

    def _sqlite(self, scenario: str, figure: Figure) -> None:
        events, group = (self.sizes.singles, 1) if scenario == "singles" else (self.sizes.grouped, 100)
        command = ["-m", "tests.benchmarks.sqlite_floor", str(self.corpus), "--events", str(events)]
        command += ["--group", str(group), "--seconds", str(self.sizes.seconds)]
        measured = run_json(command, seconds=self.sizes.seconds + 60)
        figure.samples.append(measured["events"] / measured["seconds"])

    # --- end to end ---

    def _end_to_end(self, scenario: str, figure: Figure) -> None:
        """From the first post to the last event the sink received; groups go out in batches of 100."""
        events = self.sizes.end_to_end if scenario == "singles" else self.sizes.grouped
        extra = {} if scenario == "singles" else {"JETHOOK_SINKS__SINK0__BATCH_SIZE": "100"}
        with (
            subjects.sink(self.folder) as sink,
            subjects.jethook(self.folder, role="all", sinks=[sink.url], extra=extra) as target,
        ):
            self._warm(target)
            _wait_for(sink, WARM_POSTS)
            cpu = target.server.cpu_seconds()
            result = self._load(target, scenario, events=events, seconds=E2E_SECONDS)
            received = _wait_for(sink, WARM_POSTS + events)
            cpu = target.server.cpu_seconds() - cpu
        figure.samples.append(events / (received["last_at"] - result.began))
        _note(figure, result, cpu)

    # --- at an even pace ---

    def _paced(self, subject: str, figure: Figure) -> None:
        """The healthy sink's p99 from a post's time to its arrival, in ms; `beside` a hanging and a refusing one."""
        manners = ["ok"] if subject == "alone" else ["ok", "hang", "refuse"]
        with ExitStack() as stack:
            sinks = [stack.enter_context(subjects.sink(self.folder, manner)) for manner in manners]
            target = stack.enter_context(subjects.jethook(self.folder, role="all", sinks=[sink.url for sink in sinks]))
            self._warm(target)
            _wait_for(sinks[0], WARM_POSTS)
            cpu = target.server.cpu_seconds()
            events = int(PACED_RATE * self.sizes.paced_seconds)
            result = self._load(target, "singles", events=events, seconds=E2E_SECONDS, rate=PACED_RATE)
            _wait_for(sinks[0], WARM_POSTS + events)
            cpu = target.server.cpu_seconds() - cpu
            arrivals = sinks[0].arrivals()
        waits = [(sent, (arrivals[digest] - sent) * 1000) for digest, sent in result.sent.items()]
        figure.samples.append(_p99([wait for _, wait in waits]))
        figure.p99_of_seconds_ms.append(_p99_of_seconds(waits))
        _note(figure, result, cpu)

    # --- memory ---

    def memory(self, results: Results) -> None:
        """MB resident: idle, and the most while and after so many events were posted for a sink that refuses."""
        nobody = f"http://127.0.0.1:{free_port()}/"
        with subjects.jethook(self.folder, role="all", sinks=[nobody]) as target:
            time.sleep(2)
            results.figure("memory", "idle").samples.append(target.server.rss_bytes() / 1e6)
            with _peak_of(target.server) as peak:
                result = self._load(target, "groups", events=self.sizes.waiting, seconds=120)
                time.sleep(3)
        if result.acknowledged < self.sizes.waiting:
            raise RuntimeError(f"only {result.acknowledged} of {self.sizes.waiting} events were taken")
        # The target is about the whole number; a quick run shows its figure without a verdict.
        waiting = results.figure("memory", "waiting" if self.sizes.waiting >= Sizes.waiting else "waiting_few")
        waiting.samples.append(peak.bytes / 1e6)
        waiting.refused = _refused(result)

    # --- clients ---

    def clients(self) -> dict[str, dict[str, float]]:
        with subjects.sink(self.folder) as sink:
            command = ["-m", "tests.benchmarks.clients", str(sink.server.port), str(self.sizes.client_seconds)]
            measured: dict[str, dict[str, float]] = run_json(command, seconds=60)
            return measured


# --- subjects by name ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _receiving(folder: Path) -> Iterator[Target]:
    """Two sinks configured, nobody delivers: their deliveries are written all the same."""
    nobody = [f"http://127.0.0.1:{free_port()}/" for _ in range(2)]
    with subjects.jethook(folder, role="receive", sinks=nobody) as target:
        yield target


@contextlib.contextmanager
def _delivering(folder: Path) -> Iterator[Target]:
    """Two sinks that take everything at once."""
    with ExitStack() as stack:
        sinks = [stack.enter_context(subjects.sink(folder)) for _ in range(2)]
        yield stack.enter_context(subjects.jethook(folder, role="all", sinks=[s.url for s in sinks]))


_SUBJECTS: dict[str, Open] = {
    "empty": subjects.empty_route,
    "receive": _receiving,
    "all": _delivering,
    "anymail": partial(subjects.anymail, atomic=False),
    "anymail_atomic": partial(subjects.anymail, atomic=True),
}


# --- helpers ---------------------------------------------------------------------------------------------------------


def _p99(waits: Sequence[float]) -> float:
    return sorted(waits)[int(len(waits) * 0.99)]


def _p99_of_seconds(waits: Sequence[tuple[float, float]]) -> float:
    """The middle one of the p99 of each whole second, from (time of the post in seconds, its wait).

    One stall of the disk for a third of a second decides the p99 of half a minute, whoever the sinks are.
    """
    start, end = min(at for at, _ in waits), max(at for at, _ in waits)
    seconds: dict[int, list[float]] = {}
    for at, wait in waits:
        seconds.setdefault(int(at - start), []).append(wait)
    return statistics.median(_p99(found) for number, found in seconds.items() if number + 1 <= end - start)


def _note(figure: Figure, result: LoadResult, server_cpu: float) -> None:
    figure.generator_cores.append(result.cpu_seconds / result.seconds)
    figure.server_cores.append(server_cpu / result.seconds)
    figure.p50_ms.append(result.p50_ms)
    figure.p99_ms.append(result.p99_ms)
    figure.refused += _refused(result)


def _refused(result: LoadResult) -> int:
    return sum(count for status, count in result.statuses.items() if status != "200")


def _wait_for(sink: Sink, distinct: int) -> dict[str, Any]:
    """What the sink received, once that many different events came. Raises TimeoutError."""
    until = time.monotonic() + E2E_SECONDS
    while time.monotonic() < until:
        received = sink.received()
        if received["events"] >= distinct:
            return received
        time.sleep(0.1)
    raise TimeoutError(f"the sink got {received['events']} of {distinct} events")


@dataclass
class _Peak:
    bytes: int = 0


@contextlib.contextmanager
def _peak_of(server: Server) -> Iterator[_Peak]:
    """The most resident memory of the server during the block, by the kernel's own high-water mark."""
    peak = _Peak()
    yield peak
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    high_water = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    peak.bytes = int(high_water.split()[1]) * 1024
