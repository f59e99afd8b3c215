"""A healthy, a hanging and a refusing sink under load: what the bad ones cost the healthy one, and if they get all.

`python -m tests.e2e.sinks_under_load --seconds 60` prints a table and exits 1 on a loss, on a repeat, or on more
requests at once than a sink's CONCURRENCY. First the healthy sink is alone for a third of the time, at most 20 s; then
all three; then the refusing one recovers and must drain; then the hanging one too.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

from app.clock import to_micros
from app.db import Database
from app.models import Delivery, Event
from app.simulator.server import LocalServer
from app.simulator.simulate import SimulateOptions, SimulateReport, simulate
from app.simulator.sink import Answer, ReceivedRequest, SampleSink
from tests.e2e.service import ServiceProcess, audit_differences, until
from tests.postgres import running_postgres

CONCURRENCY = 8
NAMES = ("healthy", "hanging", "refusing")
DRAIN_SECONDS = 90.0

events: sa.Table = Event.__table__  # type: ignore[attr-defined]
deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]


class CountingSink:
    """A sample sink that knows how many requests it has in hand, and which ids it answered with 200."""

    def __init__(self) -> None:
        self.sink = SampleSink(keep=0)
        self.answer = Answer()
        self.accepted: Counter[str] = Counter()
        self.arrived: dict[str, float] = {}
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.sink.answer_with(self._choose)

    def _choose(self, request: ReceivedRequest) -> Answer:
        """The answer is the one of this moment, and so is what it counts for."""
        name = request.webhook_id or ""
        self.arrived.setdefault(name, request.at)
        if self.answer.status == 200 and not self.answer.hang:
            self.accepted[name] += 1
        return self.answer

    def recover(self) -> None:
        """From now on each answer takes a moment, so that requests overlap as far as they may."""
        self.most_at_once = 0
        self.answer = Answer.delayed(0.005)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        is_request = scope["type"] == "http"
        with self._lock:
            self._at_once += is_request
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await self.sink(scope, receive, send)
        finally:
            with self._lock:
                self._at_once -= is_request


@dataclass(slots=True)
class Report:
    posted: int = 0
    stored: int = 0
    latencies_ms: dict[str, tuple[float, float]] = field(default_factory=dict)  # phase -> p50, p99
    at_sink: dict[str, tuple[int, int]] = field(default_factory=dict)  # sink -> different ids accepted, repeats
    most_at_once: dict[str, int] = field(default_factory=dict)
    drained_in: dict[str, float] = field(default_factory=dict)
    audits: list[tuple[str, int, dict[str, int]]] = field(default_factory=list)  # when, owed, state -> number
    faults: list[str] = field(default_factory=list)


def run(database_url: str, folder: Path, *, seconds: float, rate: float) -> Report:
    report = Report()
    alone = CountingSink()
    with LocalServer(alone) as server:
        environment = {"JETHOOK_SINKS__HEALTHY__URL": server.url, "JETHOOK_LOG_LEVEL": "error"}
        url = f"sqlite:///{folder / 'alone.db'}"
        with ServiceProcess(folder, url, environment) as service:
            posted = _load(service, min(20.0, seconds / 3), rate, seed=1)
            until(lambda: len(alone.accepted) >= _stored(url), "all at the lone sink", seconds=DRAIN_SECONDS)
            service.terminate()
        report.latencies_ms["alone"] = _latencies(url, alone)
    if not posted.is_clean:
        report.faults.append(f"posts alone: {dict(posted.statuses)} {dict(posted.failures)}")
    _three(report, database_url, folder, seconds, rate)
    return report


def _three(report: Report, database_url: str, folder: Path, seconds: float, rate: float) -> None:
    sinks = {name: CountingSink() for name in NAMES}
    sinks["hanging"].answer = Answer.hanging()
    sinks["refusing"].answer = Answer(503)
    servers = {name: LocalServer(sink) for name, sink in sinks.items()}
    environment = {"JETHOOK_LOG_LEVEL": "error"}
    for name, server in servers.items():
        server.start()
        options = {
            "URL": server.url, "CONCURRENCY": str(CONCURRENCY), "TIMEOUT_SECONDS": "2", "MIN_BACKOFF_SECONDS": "0",
            "RETRY_SCHEDULE_SECONDS": ",".join(["1"] * 200), "BREAKER_FAILURES": "10", "BREAKER_COOLDOWN_SECONDS": "1",
        }  # fmt: skip
        environment |= {f"JETHOOK_SINKS__{name.upper()}__{key}": value for key, value in options.items()}
    try:
        with ServiceProcess(folder, database_url, environment) as service:
            posted = _load(service, seconds, rate, seed=2)
            report.posted, report.stored = posted.events, _stored(database_url)
            if not posted.is_clean:
                report.faults.append(f"posts: {dict(posted.statuses)} {dict(posted.failures)}")
            _wait(service, report, sinks, "healthy")
            report.latencies_ms["beside"] = _latencies(database_url, sinks["healthy"])
            _audit(report, database_url, "two are bad")
            for name in ("refusing", "hanging"):
                sinks[name].recover()
                _wait(service, report, sinks, name)
                _audit(report, database_url, f"{name} recovered")
            service.terminate()
    finally:
        for server in servers.values():
            server.stop()
    _judge(report, sinks)


def _load(service: ServiceProcess, seconds: float, rate: float, *, seed: int) -> SimulateReport:
    options = SimulateOptions(url=service.callback_url(), rate=rate, count=int(rate * seconds), seed=seed)
    return asyncio.run(simulate(options))


def _wait(service: ServiceProcess, report: Report, sinks: dict[str, CountingSink], name: str) -> None:
    """Until nothing is owed to the sink any more."""
    began = time.monotonic()

    def drained() -> bool:
        return bool(service.get(f"/v1/sinks/{name}")["backlog"] == 0)

    until(drained, f"{name} to drain", seconds=DRAIN_SECONDS, detail=lambda: service.get(f"/v1/sinks/{name}"))
    report.drained_in[name] = time.monotonic() - began
    accepted = sinks[name].accepted
    report.at_sink[name] = (len(accepted), sum(accepted.values()) - len(accepted))
    report.most_at_once[name] = sinks[name].most_at_once


def _stored(database_url: str) -> int:
    with _opened(database_url) as connection:
        counting = sa.select(sa.func.count()).select_from(events).where(events.c.test == sa.false())
        return int(connection.execute(counting).scalar_one())


def _latencies(database_url: str, sink: CountingSink) -> tuple[float, float]:
    """Milliseconds from the post's arrival to the sink's, p50 and p99; both clocks are this machine's."""
    with _opened(database_url) as connection:
        rows = connection.execute(sa.select(events.c.id, events.c.received_at)).all()
    found = sorted(
        sink.arrived[row.id] * 1000 - to_micros(row.received_at) / 1000 for row in rows if row.id in sink.arrived
    )
    return found[len(found) // 2], found[int(len(found) * 0.99)]


def _audit(report: Report, database_url: str, when: str) -> None:
    """Stored events x matching sinks = delivered + pending + dead + cancelled."""
    with _opened(database_url) as connection:
        counting = sa.select(deliveries.c.state, sa.func.count()).group_by(deliveries.c.state)
        states = {str(state): int(number) for state, number in connection.execute(counting)}
    owed = _stored(database_url) * len(NAMES)
    report.audits.append((when, owed, states))
    report.faults += [f"audit ({when}): {difference}" for difference in audit_differences(database_url)]
    if owed != sum(states.values()):
        report.faults.append(f"audit ({when}): {owed} owed, {states}")


class _opened:  # noqa: N801  a context manager, read like a function
    def __init__(self, url: str) -> None:
        self._database = Database(url)

    def __enter__(self) -> sa.Connection:
        self._reading = self._database.reading()
        return self._reading.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._reading.__exit__(*error)
        self._database.close()


def _judge(report: Report, sinks: dict[str, CountingSink]) -> None:
    for name in NAMES:
        accepted, repeats = report.at_sink[name]
        if accepted != report.stored or repeats:
            report.faults.append(f"{name}: {accepted} of {report.stored} accepted, {repeats} repeats")
        if report.most_at_once[name] > CONCURRENCY:
            report.faults.append(f"{name}: {report.most_at_once[name]} requests at once")
    when, owed, states = report.audits[-1]
    if states != {"delivered": owed}:
        report.faults.append(f"at the end ({when}): {states} of {owed}")


def show(report: Report) -> None:
    print(f"posted {report.posted}, stored {report.stored}")
    print("healthy sink    p50 ms    p99 ms")
    for phase, (p50, p99) in report.latencies_ms.items():
        print(f"{phase:12}  {p50:8.1f}  {p99:8.1f}")
    ratio = report.latencies_ms["beside"][1] / report.latencies_ms["alone"][1]
    print(f"p99 beside the bad ones is {ratio:.2f} times what it is alone")
    print(f"sink        accepted  repeats  most at once (of {CONCURRENCY})  drained in s")
    for name in NAMES:
        accepted, repeats = report.at_sink[name]
        print(f"{name:10}  {accepted:8}  {repeats:7}  {report.most_at_once[name]:19}  {report.drained_in[name]:12.1f}")
    for when, owed, states in report.audits:
        told = " + ".join(f"{number} {state}" for state, number in sorted(states.items()))
        print(f"audit, {when}: {owed} owed = {told}")
    print("clean" if not report.faults else "FAULTS: " + "; ".join(report.faults))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=100.0, help="events a second")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jethook-sinks-") as name:
        folder = Path(name)
        if options.database == "sqlite":
            report = run(f"sqlite:///{folder / 'sinks.db'}", folder, seconds=options.seconds, rate=options.rate)
        else:
            with running_postgres() as server:
                with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
                    connection.execute("CREATE DATABASE sinks")
                report = run(f"{server.url}/sinks", folder, seconds=options.seconds, rate=options.rate)
    show(report)
    return 1 if report.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
