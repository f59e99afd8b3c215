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


def markdown(outcomes: Sequence[Outcome], skipped: Sequence[str], order: Sequence[str]) -> str:
    """The rows of the table that stands there, with those that were played now in their places; faults in `order`."""
    rows = {tuple(row[:2]): row for row in _rows_there()}
    rows |= {cells(one)[:2]: (*cells(one)[:-1], _verdict(one)) for one in outcomes}
    found = sorted(rows.values(), key=lambda row: (order.index(row[0]) if row[0] in order else len(order), row[1]))
    table = "\n".join(
        "| " + " | ".join(row) + " |" for row in (HEAD, ("---", "---", *["---:"] * 7, "---", "---"), *found)
    )
    return table + "".join(f"\n- not run: {one}" for one in skipped)


def _verdict(outcome: Outcome) -> str:
    """With the day, since rows are of different runs."""
    return f"{cells(outcome)[-1]}, {datetime.now(UTC):%Y-%m-%d}"


def _rows_there() -> list[tuple[str, ...]]:
    inside = README.read_text().partition(BEGIN)[2].partition(END)[0]
    lines = [line.strip("| ") for line in inside.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.split("|")) for line in lines[2:]]


def write(text: str, *, begin: str = BEGIN, end: str = END) -> None:
    """Between the marks, and nowhere else."""
    old = README.read_text()
    head, _, rest = old.partition(begin)
    _, _, tail = rest.partition(end)
    README.write_text(f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}")
