"""`python -m tests.faults`: break it on purpose, and show that nothing acknowledged was lost."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psycopg

from tests.faults import backlog, clocks, kills, mailjet, outages, replicas, silence, table
from tests.faults.stage import Outcome, Skipped, Stage
from tests.postgres import PostgresServer, running_postgres

BOTH, POSTGRESQL, SQLITE = ("sqlite", "postgresql"), ("postgresql",), ("sqlite",)


@dataclass(frozen=True, slots=True)
class Fault:
    """`run` plays it on a stage and leaves what it measured there."""

    name: str
    run: Callable[[Stage], None]
    databases: tuple[str, ...] = BOTH
    in_short: str = ""
    is_alone: bool = False  # it needs a network of its own


FAULTS = (
    Fault("kill-commit", kills.commit, in_short="kill -9 while events are stored"),
    Fault("kill-claim", kills.claim, in_short="kill -9 while due deliveries are claimed"),
    Fault("kill-completion", kills.completion, in_short="kill -9 while what was delivered is written down"),
    Fault("kill-migration", kills.migration, in_short="kill -9 while the tables are made"),
    Fault("kill-replay", kills.replay, in_short="kill -9 while a replay takes deliveries up"),
    Fault("kill-retention", kills.retention, in_short="kill -9 while old events are deleted"),
    Fault("kill-erasure", kills.erasure, in_short="kill -9 while a person is erased"),
    Fault("kill-rebuild", kills.rebuild, in_short="kill -9 of `jethook rebuild stats` beside the service"),
    Fault("kill-roles", replicas.roles, POSTGRESQL, "kill -9 of a receiver and of two workers"),
    Fault("kill-replica", replicas.any_of_three, POSTGRESQL, "kill -9 of each of three replicas, the leader first"),
    Fault("database-crash", outages.database_crash, POSTGRESQL, "the server ends as by a crash, and comes back"),
    Fault("database-gone", outages.database_gone, POSTGRESQL, "the server is stopped for eight seconds"),
    Fault("network-cut", outages.network_cut, POSTGRESQL, "connections to the database are reset for eight seconds"),
    Fault("network-stall", outages.network_stall, POSTGRESQL, "nothing comes through to the database for 20 seconds"),
    Fault("network-silent", silence.network_silent, POSTGRESQL, "the network forgets open connections", is_alone=True),
    Fault("disk-full", outages.disk_full, SQLITE, "the file system of the database is full"),
    Fault("clock-jumps", clocks.jumps, in_short="the clock is set ahead by an hour and by 100 days, and back"),
    Fault("mailjet-down", mailjet.down, in_short="Mailjet's API answers 503"),
    Fault("mailjet-slow", mailjet.slow, in_short="Mailjet's API takes 30 seconds for a call"),
    Fault("mailjet-lying", mailjet.lying, in_short="Mailjet's API says what is not so"),
    Fault("backlog", backlog.backlog, in_short="100,000 deliveries are due at the start"),
)


def play(fault: Fault, database: str, server: PostgresServer | None) -> Outcome:
    """One fault on one new database. Raises Skipped."""
    with tempfile.TemporaryDirectory(prefix="jethook-faults-") as name:
        url = f"sqlite:///{Path(name) / 'faults.db'}" if server is None else _new_database(server, fault.name)
        with Stage(Path(name), url, server) as stage:
            try:
                fault.run(stage)
                stage.stop()
                return stage.outcome(fault.name)
            except (AssertionError, subprocess.TimeoutExpired, httpx2.TransportError) as error:
                traceback.print_exc()
                return Outcome(fault.name, database, told=stage.told, wrong=[*stage.wrong, str(error)[:300]])


def _new_database(server: PostgresServer, fault: str) -> str:
    name = f"{fault.replace('-', '_')}_{time.monotonic_ns()}"
    with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server.url}/{name}"


@contextmanager
def _server_of(database: str) -> Iterator[PostgresServer | None]:
    if database == "sqlite":
        yield None
        return
    with running_postgres() as server:
        yield server


def play_all(faults: Sequence[Fault], databases: Sequence[str]) -> tuple[list[Outcome], list[str]]:
    """The outcomes, and what this machine could not do."""
    outcomes: list[Outcome] = []
    skipped: list[str] = []
    for database in databases:
        with _server_of(database) as server:
            for fault in (one for one in faults if database in one.databases):
                try:
                    alone = fault.is_alone
                    outcomes.append(silence.play_alone(fault.name) if alone else play(fault, database, server))
                    print(table.line(outcomes[-1]), flush=True)
                except Skipped as why:
                    skipped.append(f"{fault.name} on {database}: {why}")
                    print(skipped[-1], flush=True)
    return outcomes, skipped


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="this fault; may be given again")
    parser.add_argument("--list", action="store_true", help="the faults there are")
    parser.add_argument("--database", choices=BOTH, help="this one only")
    parser.add_argument("--readme", action="store_true", help="write the table into tests/faults/README.md")
    parser.add_argument("--alone", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--speeds", action="store_true", help="measure replicas, idle and restart instead")
    options = parser.parse_args()
    if options.list:
        for fault in FAULTS:
            print(f"{fault.name:18} {', '.join(fault.databases):20} {fault.in_short}")
        return 0
    if options.alone:
        with running_postgres() as server:
            fault = next(fault for fault in FAULTS if fault.name == options.alone)
            print(silence.to_line(play(fault, "postgresql", server)))
        return 0
    if options.speeds:
        from tests.faults import speeds

        return speeds.main(readme=options.readme)
    if unknown := set(options.only or ()) - {fault.name for fault in FAULTS}:
        print(f"no such fault: {', '.join(sorted(unknown))}; see --list", file=sys.stderr)
        return 2
    chosen = [fault for fault in FAULTS if options.only is None or fault.name in options.only]
    outcomes, skipped = play_all(chosen, [options.database] if options.database else BOTH)
    if options.readme:
        table.write(table.markdown(outcomes, skipped, [fault.name for fault in FAULTS]))
    return 1 if any(one.wrong for one in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
