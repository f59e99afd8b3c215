"""The speeds a team of replicas is promised: `python -m tests.faults --speeds`.

Throughput is that of ingest in groups of 100 and one by one, each replica with `JETHOOK_ROLE=receive` and two sinks
configured, posted to by generators of their own, as in tests/benchmarks. PostgreSQL runs with fsync on, beside the
replicas and the generators on the same cores. Rounds alternate, and the median counts.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
import psycopg

from tests.benchmarks import subjects
from tests.benchmarks.corpus import write_corpus
from tests.benchmarks.load import LoadResult, LoadSpec
from tests.benchmarks.processes import free_port, run_json
from tests.benchmarks.subjects import Target
from tests.faults import backlog, table
from tests.faults.stage import Stage
from tests.postgres import PostgresServer, running_postgres

ROUNDS = 3
REPLICAS = 3
SECONDS = 4.0
WARM_EVENTS = 300
SHAPES = {"groups of 100": (100, 8, 30_000), "singles": (1, 32, 12_000)}  # group, connections, events for a replica
IDLE_SECONDS = 30.0
WAITING = 200_000
COUNTED = ("shared_preload_libraries=pg_stat_statements", "pg_stat_statements.track=top")


@dataclass(frozen=True, slots=True)
class Speed:
    """One promise: `measured` beside `wanted`, in words, and whether it holds."""

    name: str
    measured: str
    wanted: str
    holds: bool

    def line(self) -> str:
        return f"| {self.name} | {self.measured} | {self.wanted} | {'pass' if self.holds else 'FAIL'} |"


def main(*, readme: bool) -> int:
    speeds: list[Speed] = []
    with tempfile.TemporaryDirectory(prefix="jethook-speeds-") as name:
        for measure in (throughput, idle, restart):
            for speed in measure(Path(name)):
                speeds.append(speed)
                print(speed.line(), flush=True)
    if readme:
        head = "| speed | measured | wanted | |\n| --- | ---: | ---: | --- |\n"
        text = head + "\n".join(speed.line() for speed in speeds)
        table.write(text, begin=table.SPEEDS_BEGIN, end=table.SPEEDS_END)
    return 0 if all(speed.holds for speed in speeds) else 1


# --- throughput ------------------------------------------------------------------------------------------------------


def throughput(folder: Path) -> Iterator[Speed]:
    corpus = folder / "corpus.jsonl"
    write_corpus(corpus, max(events for _, _, events in SHAPES.values()) * REPLICAS + WARM_EVENTS)
    rates: dict[tuple[str, str], list[float]] = {}
    with running_postgres(["fsync=on", "autovacuum=on"]) as server:
        for _ in range(ROUNDS):
            for shape in SHAPES:
                for who, replicas in (("sqlite", 1), ("one", 1), ("three", REPLICAS)):
                    rate = _ingest(folder, corpus, shape, replicas, None if who == "sqlite" else server)
                    rates.setdefault((shape, who), []).append(rate)
    for shape in SHAPES:
        sqlite, one, three = (statistics.median(rates[shape, who]) for who in ("sqlite", "one", "three"))
        told = f"{one:,.0f} against {sqlite:,.0f} a second: {one / sqlite:.2f}"
        yield Speed(f"one replica on PostgreSQL / SQLite, {shape}", told, ">= 0.6", one / sqlite >= 0.6)
        told = f"{three:,.0f} against {one:,.0f} a second: {three / one:.2f}"
        yield Speed(f"three replicas / one, {shape}", told, ">= 1", three / one >= 1)


def _ingest(folder: Path, corpus: Path, shape: str, replicas: int, server: PostgresServer | None) -> float:
    """Events a second, of all replicas together, from the first post to the last answer."""
    extra = {} if server is None else {"JETHOOK_DATABASE_URL": _new_database(server)}
    nobody = [f"http://127.0.0.1:{free_port()}/" for _ in range(2)]
    with ExitStack() as stack:
        opened = [
            stack.enter_context(subjects.jethook(folder, role="receive", sinks=nobody, extra=extra))
            for _ in range(replicas)
        ]
        events = SHAPES[shape][2]
        for number, target in enumerate(opened):
            _load(corpus, shape, target, events=WARM_EVENTS // replicas, skip=events * REPLICAS + number * 100)
        with ThreadPoolExecutor(replicas) as threads:
            one = partial(_load, corpus, shape, events=events)
            results = list(threads.map(lambda n: one(opened[n], skip=events * n), range(replicas)))
    began = min(result.began for result in results)
    ended = max(result.began + result.seconds for result in results)
    return sum(result.acknowledged for result in results) / (ended - began)


def _load(corpus: Path, shape: str, target: Target, *, events: int, skip: int) -> LoadResult:
    group, connections, _ = SHAPES[shape]
    spec = LoadSpec(
        port=target.server.port, path=target.path, credentials=subjects.CREDENTIALS, corpus=str(corpus), events=events,
        group=group, connections=connections, seconds=SECONDS, skip=skip,
    )  # fmt: skip
    return LoadResult(**run_json(["-m", "tests.benchmarks.load", json.dumps(asdict(spec))], seconds=SECONDS + 60))


def _new_database(server: PostgresServer) -> str:
    name = f"speeds_{time.monotonic_ns()}"
    with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server.url}/{name}"


# --- idle ------------------------------------------------------------------------------------------------------------


def idle(folder: Path) -> Iterator[Speed]:
    """Everything on: a webhook registered at a stand-in Mailjet, a sink, nothing to do."""
    with running_postgres(COUNTED) as server:
        url = _new_database(server)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
        with _resting(folder, url, server) as pid:
            used, statements = _watched(pid, url)
    yield Speed("idle on PostgreSQL, CPU", f"{used:.2%}", "< 1 %", used < 0.01)
    yield Speed("idle on PostgreSQL, statements a second", f"{statements:.2f}", "<= 1", statements <= 1)
    with _resting(folder, f"sqlite:///{folder / 'idle.db'}", None) as pid:
        used = _cpu_share(pid)
    yield Speed("idle on SQLite, CPU", f"{used:.2%}", "< 1 %", used < 0.01)


@contextmanager
def _resting(folder: Path, url: str, server: PostgresServer | None) -> Iterator[int]:
    with Stage(folder, url, server) as stage:
        plain = {"FAULTS_DIE": "", "PYTHONPATH": str(subjects.__file__).partition("/tests/")[0]}
        service = stage.service({**stage.mailjet_environment(), **plain}).start()
        time.sleep(8)  # what a start does
        yield service.pid


def _watched(pid: int, url: str) -> tuple[float, float]:
    """(share of a core, statements a second), BEGIN and COMMIT among them."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_statements_reset()")
        used = _cpu_share(pid)
        asked = "SELECT query, calls FROM pg_stat_statements WHERE query !~ 'pg_stat_statements' ORDER BY calls DESC"
        rows = connection.execute(asked).fetchall()
    for query, calls in rows[:8]:
        print(f"    {calls:5} x {' '.join(query.split())[:100]}")
    work = sum(calls for query, calls in rows if query.partition(" ")[0].rstrip(";") not in ENVELOPE)
    return used, work / IDLE_SECONDS


ENVELOPE = ("BEGIN", "COMMIT", "ROLLBACK")


def _cpu_share(pid: int) -> float:
    process = psutil.Process(pid)
    before = process.cpu_times()
    time.sleep(IDLE_SECONDS)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / IDLE_SECONDS


# --- restart ---------------------------------------------------------------------------------------------------------


def restart(folder: Path) -> Iterator[Speed]:
    """With 200,000 deliveries due, for a sink that is not there."""
    with running_postgres() as server:
        for url in (f"sqlite:///{folder / 'restart.db'}", _new_database(server)):
            yield from _restart(folder, url)


def _restart(folder: Path, url: str) -> Sequence[Speed]:
    kind = "SQLite" if url.startswith("sqlite") else "PostgreSQL"
    backlog.add_waiting(url, WAITING)
    with Stage(folder, url) as stage:
        service = stage.service({"JETHOOK_SINKS__CRM__URL": f"http://127.0.0.1:{free_port()}/"})
        began = time.monotonic()
        service.start()
        ready = time.monotonic() - began
        time.sleep(10)
        peak = backlog.peak_mb(service.pid)
    name = f"restart with {WAITING:,} waiting on {kind}"
    return (
        Speed(f"{name}, ready", f"{ready:.1f} s", "< 10 s", ready < 10),
        Speed(f"{name}, memory", f"{peak:.0f} MB", "< 300 MB", peak < 300),
    )
