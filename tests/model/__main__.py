"""`python -m tests.model [--events N] [--database sqlite|postgresql|both] [--seed N] [--sample N]`

A random stream of so many events goes into the service and into the plain model; then every kind of question is asked
of both, before and after erasure and retention. Prints how many answers of each kind were compared.

Exit codes: 0 all agree, 1 something differs (the first differences are told).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import structlog
from rich.console import Console
from rich.table import Table

from tests.model.comparing import Comparison
from tests.model.service import running
from tests.model.story import FUTURE, PAST, Story
from tests.postgres import running_postgres

TOLD = 20
SPAN_SECONDS = 70 * 86_400  # of the whole stream, so that retention has something to take
console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    arguments = _arguments()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    kinds = ("sqlite", "postgresql") if arguments.database == "both" else (arguments.database,)
    found = [_run(kind, arguments) for kind in kinds]
    return 1 if any(compared.differences for compared in found) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description="Jethook beside a plain model of it.")
    parser.add_argument("--events", type=int, default=50_000, help="arrivals in the stream, repetitions counted")
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--seed", type=int, default=1, help="equal seeds give equal streams")
    parser.add_argument("--sample", type=int, default=1000, help="most messages and addresses asked about at a time")
    return parser.parse_args()


def _run(kind: str, arguments: argparse.Namespace) -> Comparison:
    began = time.monotonic()
    # A lift clears what happened until now: so some streams lie in the past, and some in a time that is yet to come.
    start = FUTURE if arguments.seed % 2 else PAST
    with _empty_database(kind) as url, running(url) as service:
        step = SPAN_SECONDS * 2 / arguments.events
        rng = random.Random(arguments.seed)
        story = Story(service, rng, start=start, sample=arguments.sample, step_seconds=step)
        story.tell(arguments.events, say=lambda text: console.print(f"{kind}: {text}", style="dim"))
    _print(kind, story.compared, time.monotonic() - began)
    return story.compared


@contextmanager
def _empty_database(kind: str) -> Iterator[str]:
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="jethook-model-") as folder:
            yield f"sqlite:///{Path(folder) / 'model.db'}"
        return
    with running_postgres() as server:
        with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE model")
        yield f"{server.url}/model"


def _print(kind: str, compared: Comparison, seconds: float) -> None:
    table = Table("compared", "how many", title=f"{kind}: {len(compared.differences)} differences in {seconds:.0f} s")
    for name, count in sorted(compared.counts.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(name, str(count))
    console.print(table)
    for text in compared.differences[:TOLD]:
        console.print(text, style="red")


if __name__ == "__main__":
    sys.exit(main())
