"""What one event costs: CPU, statements and bytes, as `deploy/capacity.md` tells and `capacity.py` reckons with.

`python -m tests.benchmarks.costs` measures on both databases and rewrites `costs.json` and the page, in about three
minutes. Costs are CPU time and not seconds, so a machine that others keep busy spoils them little. Each step is the
difference of two runs that differ in it alone: received one by one or in groups, owed to a sink or not, counted into
the statistics or not yet, sent one by one or in batches.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

from app.db import Database
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from app.simulator.traffic import make_events
from tests.benchmarks import capacity
from tests.e2e.service import PASSWORD, ServiceProcess, until
from tests.postgres import PostgresServer, running_postgres

EVENTS = {1: 4_000, 100: 20_000}  # by size of the group
CONNECTIONS = 8
TICKS = os.sysconf("SC_CLK_TCK")
OPTIONS = ("shared_preload_libraries=pg_stat_statements", "fsync=on", "autovacuum=on")
COUNTERS = """SELECT
    (SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query !~* '^(begin|commit|rollback)'),
    pg_database_size(current_database()), pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"""


@dataclass(frozen=True, slots=True)
class Run:
    """One service, what it does and what is posted to it."""

    group: int = 100
    role: str = "receive"
    sinks: int = 0
    batch: int = 1

    def environment(self, sink_url: str) -> dict[str, str]:
        sink = {"JETHOOK_SINKS__CRM__URL": sink_url, "JETHOOK_SINKS__CRM__BATCH_SIZE": str(self.batch)}
        return {"JETHOOK_ROLE": self.role, "JETHOOK_LOG_LEVEL": "warning", **(sink if self.sinks else {})}


RECEIVED_ALONE, RECEIVED, OWED = Run(group=1), Run(), Run(sinks=1)
COUNTED, SENT, SENT_BATCHED = Run(role="all"), Run(role="all", sinks=1), Run(role="all", sinks=1, batch=100)
Spent = dict[str, float]


def main() -> int:
    found = {}
    with tempfile.TemporaryDirectory(prefix="jethook-costs-") as name:
        found["sqlite"] = steps(lambda run: measure(run, Path(name), None))
        print(json.dumps(found["sqlite"], indent=1), flush=True)
        with running_postgres(OPTIONS) as server:
            found["postgresql"] = steps(lambda run: measure(run, Path(name), server))
        print(json.dumps(found["postgresql"], indent=1), flush=True)
    costs = {"taken": f"{datetime.now(UTC):%Y-%m-%d}, {cpu()}, Python {platform.python_version()}", **found}
    capacity.COSTS.write_text(json.dumps(costs, indent=2) + "\n")
    capacity.write_page()
    return 0


def steps(spent_on: Callable[[Run], Spent]) -> dict[str, Spent]:
    received, owed, counted = spent_on(RECEIVED), spent_on(OWED), spent_on(COUNTED)
    counting = less(counted, received)
    return {
        "received alone": rounded(spent_on(RECEIVED_ALONE)),
        "received in groups of 100": rounded(received),
        "owed to a sink": rounded(less(owed, received)),
        "counted": rounded(counting),
        "sent alone": rounded(less(less(spent_on(SENT), owed), counting)),
        "sent in batches of 100": rounded(less(less(spent_on(SENT_BATCHED), owed), counting)),
    }


def less(one: Spent, other: Spent) -> Spent:
    return {name: max(value - other[name], 0.0) for name, value in one.items()}


def rounded(spent: Spent) -> Spent:
    return {name: round(value, 0 if name.endswith("bytes") else 3) for name, value in spent.items()}


def measure(run: Run, folder: Path, server: PostgresServer | None) -> Spent:
    """Of one event, from its post until nothing is left to be done about it."""
    number = EVENTS[run.group]
    place = Path(tempfile.mkdtemp(dir=folder))
    url = f"sqlite:///{place / 'costs.db'}" if server is None else made_database(server)
    with (
        LocalServer(SampleSink(keep=0, keep_ids=1)) as sink,
        ServiceProcess(place, url, run.environment(sink.url)) as service,
    ):
        before = read(service, url, server)
        post_all(service, bodies_of(number, run.group))
        if run.role == "all":
            until(lambda: is_done(url), "all sent and counted", seconds=150)
        after = read(service, url, server)
    return {name: (after[name] - before[name]) / number for name in after}


def read(service: ServiceProcess, url: str, server: PostgresServer | None) -> Spent:
    spent = {"service_ms": cpu_ms(service.pid), "database_ms": 0.0, "statements": 0.0, "wal_bytes": 0.0}
    if server is None:
        path = url.removeprefix("sqlite:///")
        checkpoint(path)
        return {**spent, "bytes": float(os.path.getsize(path))}
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(COUNTERS).fetchone()
    assert row is not None
    statements, size, wal = (float(value) for value in row)
    return {**spent, "database_ms": postgres_ms(server), "statements": statements, "bytes": size, "wal_bytes": wal}


def checkpoint(path: str) -> None:
    """What is in the log of writes goes into the file, so that its size tells something."""
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
    engine.dispose()


def cpu_ms(pid: int) -> float:
    """User and system time of a process, and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) * 1000 / TICKS


def postgres_ms(server: PostgresServer) -> float:
    assert server._process is not None
    postmaster = server._process.pid
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    used = 0.0
    for pid in (postmaster, *map(int, children)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a worker of autovacuum that has just ended
            used += cpu_ms(pid)
    return used


def made_database(server: PostgresServer) -> str:
    url = f"{server.url}/costs_{time.monotonic_ns()}"
    with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {url.rpartition('/')[2]}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION pg_stat_statements")
        connection.execute("SELECT pg_stat_statements_reset()")
    return url


def bodies_of(number: int, group: int) -> list[bytes]:
    events: list[Any] = list(make_events(1, number, int(time.time()) - 3600))
    if group == 1:
        return [json.dumps(event).encode() for event in events]
    return [json.dumps(events[n : n + group]).encode() for n in range(0, number, group)]


def post_all(service: ServiceProcess, bodies: list[bytes]) -> None:
    def post(mine: list[bytes]) -> None:
        connection = HTTPConnection("127.0.0.1", service.port, timeout=30)
        target = service.callback_url().rpartition("@")[0].rpartition("//")[2]
        headers = {"authorization": basic(target), "content-type": "application/json"}
        for body in mine:
            connection.request("POST", "/webhooks/orders", body, headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
        connection.close()

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(post, (bodies[n::CONNECTIONS] for n in range(CONNECTIONS))))


def basic(user_and_password: str) -> str:
    from base64 import b64encode

    assert user_and_password.endswith(PASSWORD)
    return "Basic " + b64encode(user_and_password.encode()).decode()


def is_done(url: str) -> bool:
    time.sleep(0.3)
    opened = Database(url)
    try:
        with opened.reading() as connection:
            left = connection.execute(sa.text("SELECT count(*) FROM deliveries WHERE state = 'pending'")).scalar_one()
            counted = connection.execute(
                sa.text("SELECT (SELECT max(seq) FROM events) - (SELECT max(seq) FROM stat_progress)")
            ).scalar_one()
    finally:
        opened.close()
    return left == 0 and counted == 0


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{model}, {os.cpu_count()} cores"


if __name__ == "__main__":
    raise SystemExit(main())
