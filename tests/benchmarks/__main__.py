"""`python -m tests.benchmarks [--quick] [--only NAME] [--rounds N]`: see README.md beside this file.

Exit codes: 0 every target measured holds, 1 one does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
from rich.console import Console

from tests.benchmarks import machine, report
from tests.benchmarks.scenarios import QUICK, Bench, Results, Sizes
from tests.benchmarks.targets import judge

NAMES = ("singles", "groups", "e2e", "paced", "memory", "clients")
console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 160  # a table in a log must not be folded


def main() -> int:
    arguments = _arguments()
    sizes = QUICK if arguments.quick else Sizes()
    if arguments.rounds:
        sizes = replace(sizes, rounds=arguments.rounds)
    busy = psutil.cpu_percent(interval=2) / 100
    described = machine.describe(busy)
    for name, value in described.items():
        console.print(f"{name}: {value}", style="dim")
    if busy > 0.1:
        console.print("Others use this machine now: take the figures again when it is quiet.", style="yellow")
    began = time.monotonic()
    results, clients = _measure(sizes, arguments.only)
    verdicts = list(judge(results))
    tables = (
        (report.RATE_HEAD, report.rate_rows(results)),
        (report.VERDICT_HEAD, report.verdict_rows(verdicts)),
        (report.CLIENT_HEAD, report.client_rows(clients)),
    )
    console.print()
    for head, rows in tables:
        report.show(console, head, rows)
    console.print(f"{time.monotonic() - began:.0f} s", style="dim")
    if not arguments.quick and arguments.only is None and not arguments.keep_readme:
        report.write_readme(described | {"Rounds": f"{sizes.rounds}, medians shown"}, tables)
    return 0 if all(verdict.holds for verdict in verdicts) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Jethook beside its floors.")
    parser.add_argument("--quick", action="store_true", help="one short round, under a minute, README left alone")
    parser.add_argument("--only", choices=NAMES, help="one scenario with its floors, README left alone")
    parser.add_argument("--rounds", type=int, help="how often each rate is measured, interleaved")
    parser.add_argument("--keep-readme", action="store_true", help="a whole run that does not write README.md")
    return parser.parse_args()


def _measure(sizes: Sizes, only: str | None) -> tuple[Results, dict[str, dict[str, float]]]:
    results = Results()
    clients: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="jethook-benchmarks-") as folder:
        bench = Bench(Path(folder), sizes)
        for number in range(1, sizes.rounds + 1):
            for step in bench.steps(only):
                figure = results.figure(step.scenario, step.subject)
                step.run(figure)
                console.print(f"round {number}: {step.scenario} {step.subject}: {figure.samples[-1]:,.0f}", style="dim")
        if only in (None, "memory"):
            bench.memory(results)
        if only in (None, "clients"):
            clients = bench.clients()
    return results, clients


if __name__ == "__main__":
    sys.exit(main())
