"""Outcomes as the lines of a table, for a terminal and for the README beside this file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.stage import Outcome

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
SPEEDS_BEGIN, SPEEDS_END = "<!-- speeds: begin -->", "<!-- speeds: end -->"
HEAD = (
    "fault", "database", "acknowledged", "stored", "delivered", "repeats", "posted again", "taking again s", "well s",
    "told", "",
)  # fmt: skip


def cells(outcome: Outcome) -> tuple[str, ...]:
    return (
        outcome.fault, outcome.database, f"{outcome.acknowledged:,}", f"{outcome.stored:,}", f"{outcome.delivered:,}",
        f"{outcome.repeats:,}", f"{outcome.posted_again:,}", f"{outcome.again_seconds:.1f}",
        f"{outcome.well_seconds:.1f}", "; ".join(outcome.told), "; ".join(outcome.wrong) or "well",
    )  # fmt: skip


def line(outcome: Outcome) -> str:
    fault, database, *figures, told, verdict = cells(outcome)
    numbers = ", ".join(f"{name} {value}" for name, value in zip(HEAD[2:9], figures, strict=True))
    return f"{fault:18} {database:10} {numbers}" + (f"; {told}" if told else "") + f": {verdict}"


def markdown(outcomes: Sequence[Outcome], skipped: Sequence[str]) -> str:
    rows = [HEAD, ("---", "---", *["---:"] * 7, "---", "---"), *(cells(one) for one in outcomes)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    left_out = "".join(f"\n- not run: {one}" for one in skipped)
    return f"Run on {datetime.now(UTC):%Y-%m-%d}.\n\n{table}\n{left_out}"


def write(text: str, *, begin: str = BEGIN, end: str = END) -> None:
    """Between the marks, and nowhere else."""
    old = README.read_text()
    head, _, rest = old.partition(begin)
    _, _, tail = rest.partition(end)
    README.write_text(f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}")
