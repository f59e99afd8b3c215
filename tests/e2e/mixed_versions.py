"""A rolling restart of two versions: the release before works on the schema that this one has made.

`python -m tests.e2e.mixed_versions v0.1.0` (any commit or tag of this repository) takes that version's code out of git
and runs both on one PostgreSQL: the older one starts, this one migrates beside it, both take load, the older one is
started again on the newer schema, this one goes. Exit code 1 where an acknowledged event was lost or the audit finds
something.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import threading
from pathlib import Path

import psycopg

from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from tests.e2e.kill9 import Load
from tests.e2e.service import ROOT, ServiceProcess, audit_differences, closing_all, ids_in, until
from tests.postgres import running_postgres

RATE = 200.0
SECONDS = 1.5  # of load on each pair


def last_release() -> str | None:
    """The newest tag `v…` before this commit; None without git, or where nothing is released yet."""
    done = subprocess.run(
        ["git", "describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout.strip() or None if done.returncode == 0 else None


def code_of(ref: str, folder: Path) -> Path:
    """That version's package and migrations, below `folder`."""
    packed = subprocess.run(["git", "archive", ref, "app", "migrations"], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def run(older: Path, database_url: str, folder: Path) -> list[str]:
    """What was wrong, in words. `older` is a folder with the other version's `app`."""
    sink = SampleSink(keep=0, keep_ids=1_000_000)
    with LocalServer(sink) as server:
        ours = {
            "JETHOOK_SINKS__CRM__URL": server.url,
            "JETHOOK_SINKS__CRM__RETRY_SCHEDULE_SECONDS": ",".join(["0.3"] * 99),
        }
        before = ServiceProcess(folder, database_url, {**ours, "PYTHONPATH": str(older)})
        after = ServiceProcess(folder, database_url, ours)
        with closing_all([before, after]):
            before.start()
            after.start()  # migrates beside it
            acknowledged = _loaded(before, after, seed=1)
            codes = [before.terminate()]
            before.start()  # on the newer schema from its first statement
            acknowledged |= _loaded(before, after, seed=3)
            codes.append(after.terminate())
            acknowledged |= _loaded(before, seed=5)
            until(
                lambda: before.get("/v1/sinks/crm")["backlog"] == 0 and acknowledged <= sink.counts.keys(),
                "everything at the sink", seconds=40, detail=lambda: before.logs[-2000:],
            )  # fmt: skip
            codes.append(before.terminate())
    errors = [line for service in (before, after) for line in service.logs.splitlines() if '"level": "error"' in line]
    wrong = [f"errors in the log: {errors[:2]}"] if errors else []
    wrong += [f"ended with {codes}"] if any(codes) else []
    return wrong + [f"audit: {difference}" for difference in audit_differences(database_url)]


def _loaded(*services: ServiceProcess, seed: int) -> set[str]:
    """Ids of what was acknowledged while all of them took load."""
    loads = [Load(service.callback_url(), seed + n, RATE) for n, service in enumerate(services)]
    for load in loads:
        load.__enter__()
    for load in loads:
        assert load.first_answer.wait(20), load.statuses
    threading.Event().wait(SECONDS)
    for load in loads:
        load.__exit__()
        assert set(load.statuses) == {200}, load.statuses
    return set().union(*(ids_in(body) for load in loads for body in load.acknowledged))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("ref", nargs="?", default=last_release(), help="the version before; default: the newest tag v…")
    ref = parser.parse_args().ref
    if ref is None:
        parser.error("nothing is released yet: name a commit")
    with tempfile.TemporaryDirectory() as folder, running_postgres() as server:
        with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE mixed")
        older = code_of(ref, Path(folder) / "older")
        wrong = run(older, f"{server.url}/mixed", Path(folder))
    print("\n".join(wrong) or f"{ref} and this version, on one database: nothing lost, the audit is clean")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
