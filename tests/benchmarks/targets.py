"""What must hold: ratios of figures of one run; absolute only where a person waits or memory is bought."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tests.benchmarks.scenarios import Results

Key = tuple[str, str]


@dataclass(frozen=True)
class Target:
    """`figure / floor` must be at least `least`, or at most `most`; without a floor the figure itself is under `most`.

    `of` tells which figure: the samples themselves, or what a poster waits for its answer.
    """

    name: str
    figure: Key
    floor: Key | None = None
    least: float = 0.0
    most: float | None = None
    unit: str = "MB"
    of: Literal["samples", "p99_ms", "p99_of_seconds_ms"] = "samples"


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
    Target("end to end / empty route, singles", ("e2e", "all"), ("singles", "empty"), 0.20),
    Target("end to end / empty route, events in batches of 100", ("e2e", "batches"), ("singles", "empty"), 0.70),
    Target("300 a second: p99 of the answer", ("paced", "alone"), most=25, unit="ms", of="p99_ms"),
    Target("300 a second: p99 from post to sink", ("paced", "alone"), most=100, unit="ms"),
    Target(
        "p99 of a second beside a hanging and a refusing sink / alone",
        ("paced", "beside"),
        ("paced", "alone"),
        most=1.2,
        of="p99_of_seconds_ms",
    ),
    Target("memory, idle", ("memory", "idle"), most=150),
    Target("memory, 200,000 deliveries waiting", ("memory", "waiting"), most=300),
)


def judge(results: Results) -> Iterator[Verdict]:
    """A verdict for each target whose figures were measured."""
    for target in TARGETS:
        figure = results.median(*target.figure, of=target.of)
        floor_of = target.of if target.of == "p99_of_seconds_ms" else "samples"
        floor = results.median(*target.floor, of=floor_of) if target.floor else None
        if figure is None or (target.floor and not floor):
            continue
        if floor:
            yield _verdict_of_ratio(target, figure / floor)
        elif target.most is not None:
            unit = target.unit
            yield Verdict(target.name, f"{figure:.0f} {unit}", f"< {target.most:.0f} {unit}", figure < target.most)


def _verdict_of_ratio(target: Target, ratio: float) -> Verdict:
    if target.most is not None:
        return Verdict(target.name, f"{ratio:.2f}", f"<= {target.most:.2f}", ratio <= target.most)
    return Verdict(target.name, f"{ratio:.2f}", f">= {target.least:.2f}", ratio >= target.least)
