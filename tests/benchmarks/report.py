"""The tables of a run: on the terminal, and as the last result in README.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.benchmarks.scenarios import Figure, Results
from tests.benchmarks.targets import Verdict

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- last result: begin -->", "<!-- last result: end -->"

TITLES = {
    ("singles", "empty"): "singles: empty FastAPI route",
    ("singles", "receive"): "singles: **Jethook**, delivery elsewhere",
    ("singles", "all"): "singles: **Jethook**, delivering to 2 sinks",
    ("singles", "anymail"): "singles: django-anymail",
    ("singles", "anymail_atomic"): "singles: django-anymail, one transaction a request",
    ("singles", "sqlite3"): "singles: plain sqlite3, one transaction an event",
    ("groups", "empty"): "groups of 100: empty FastAPI route",
    ("groups", "receive"): "groups of 100: **Jethook**, delivery elsewhere",
    ("groups", "all"): "groups of 100: **Jethook**, delivering to 2 sinks",
    ("groups", "anymail"): "groups of 100: django-anymail",
    ("groups", "anymail_atomic"): "groups of 100: django-anymail, one transaction a request",
    ("groups", "sqlite3"): "groups of 100: plain sqlite3, one transaction a group",
    ("e2e", "all"): "end to end: **Jethook**, singles, 1 sink",
    ("e2e", "batches"): "end to end: **Jethook**, groups of 100, 1 sink, batches of 100",
    ("paced", "alone"): "300 singles a second: **Jethook**, 1 sink, p99 from post to sink",
    ("paced", "beside"): "300 singles a second: **Jethook**, a hanging and a refusing sink beside it",
    ("memory", "idle"): "memory: **Jethook**, idle",
    ("memory", "waiting"): "memory: **Jethook**, most with 200,000 deliveries waiting",
    ("memory", "waiting_few"): "memory: **Jethook**, most with a quick run's deliveries waiting",
}
RATE_HEAD = ("figure", "events/s", "lowest - highest", "p50 / p99 ms", "server cores", "generator cores", "not 200")
VERDICT_HEAD = ("target", "measured", "wanted", "")
CLIENT_HEAD = ("client", "posts/s", "client CPU a post")
Rows = list[tuple[str, ...]]


def rate_rows(results: Results) -> Rows:
    return [
        (TITLES[key], *_cells(key[0], results.figures[key]))
        for key in TITLES
        if key in results.figures and results.figures[key].samples
    ]


def _cells(scenario: str, figure: Figure) -> tuple[str, ...]:
    unit = {"memory": " MB", "paced": " ms"}.get(scenario, "")
    spread = f"{min(figure.samples):,.0f} - {max(figure.samples):,.0f}" if len(figure.samples) > 1 else ""
    latency = f"{median(figure.p50_ms):.1f} / {median(figure.p99_ms):.1f}" if figure.p50_ms else ""
    cores = [f"{median(c):.2f}" if c else "" for c in (figure.server_cores, figure.generator_cores)]
    return (f"{figure.median:,.0f}{unit}", spread, latency, *cores, str(figure.refused or ""))


def verdict_rows(verdicts: Sequence[Verdict]) -> Rows:
    return [(v.name, v.value, v.wanted, "pass" if v.holds else "FAIL") for v in verdicts]


def client_rows(clients: dict[str, dict[str, float]]) -> Rows:
    return [(name, f"{m['rate']:,.0f}", f"{m['cpu_ms']:.3f} ms") for name, m in clients.items()]


def show(console: Console, head: Sequence[str], rows: Rows) -> None:
    """One table on the terminal; nothing for no rows."""
    if not rows:
        return
    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        style = {"pass": "green", "FAIL": "bold red"}.get(row[-1])
        table.add_row(*(cell.replace("**", "") for cell in row), style=style)
    console.print(table)
    console.print()


def write_readme(machine: dict[str, str], tables: Sequence[tuple[Sequence[str], Rows]]) -> None:
    """Put the result between the markers of README.md."""
    parts = ["\n".join(f"- {name}: {value}" for name, value in machine.items())]
    parts += [markdown(head, rows) for head, rows in tables if rows]
    write_between(BEGIN, END, parts)


def write_between(begin: str, end: str, parts: Sequence[str]) -> None:
    """Put the parts between two markers of README.md."""
    text = README.read_text()
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    README.write_text(f"{before}{begin}\n\n" + "\n\n".join(parts) + f"\n\n{end}{after}")


def markdown(head: Sequence[str], rows: Rows) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
