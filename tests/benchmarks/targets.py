"""What must hold, as ratios of figures of one run (issue 2, "Speed and memory to reach"); never absolute times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.benchmarks.scenarios import Results

Key = tuple[str, str]


@dataclass(frozen=True)
class Target:
    """`figure / floor` must be at least `least`; without a floor the figure must stay under `most` (MB)."""

    name: str
    figure: Key
    floor: Key | None = None
    least: float = 0.0
    most: float | None = None


@dataclass(frozen=True)
class Verdict:
    name: str
    value: str
    wanted: str
    holds: bool


TARGETS = (
    Target("singles / empty route", ("singles", "receive"), ("singles", "empty"), 0.30),
    Target("singles / anymail", ("singles", "receive"), ("singles", "anymail"), 3.0),
    Target("groups / plain sqlite3", ("groups", "receive"), ("groups", "sqlite3"), 0.35),
    Target("groups / anymail", ("groups", "receive"), ("groups", "anymail"), 3.5),
    Target("groups / anymail, one transaction a request", ("groups", "receive"), ("groups", "anymail_atomic"), 1.0),
    Target("end to end / empty route, singles", ("e2e", "all"), ("singles", "empty"), 0.15),
    Target("memory, idle", ("memory", "idle"), most=150),
    Target("memory, 200,000 deliveries waiting", ("memory", "waiting"), most=300),
)


def judge(results: Results) -> Iterator[Verdict]:
    """A verdict for each target whose figures were measured."""
    for target in TARGETS:
        figure = results.median(*target.figure)
        floor = results.median(*target.floor) if target.floor else None
        if figure is None:
            continue
        if target.most is not None:
            yield Verdict(target.name, f"{figure:.0f} MB", f"< {target.most:.0f} MB", figure < target.most)
        elif floor:
            ratio = figure / floor
            yield Verdict(target.name, f"{ratio:.2f}", f">= {target.least:.2f}", ratio >= target.least)
