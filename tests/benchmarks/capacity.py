"""How far replicas and one PostgreSQL carry a load, by the measured costs of one event. Nothing needs installing:

    python3 -m tests.benchmarks.capacity
    python3 -m tests.benchmarks.capacity --events-per-day 50000000 --sinks 2 --batch 100 --retention-days 14
    python3 -m tests.benchmarks.capacity --burst 3000000 --burst-minutes 30 --sink-rate 800

It prints how full each part is in the busiest hour, which part is full first and at what rate, and how a mailing of
`--burst` events at once is worked off minute by minute. Costs are in `costs.json`; `costs.py` takes them anew on your
machine. The reckoning is linear: true while nothing waits for another, so plan with the headroom it leaves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

COSTS = Path(__file__).with_name("costs.json")
PAGE = Path(__file__).parents[2] / "deploy/capacity.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

HEADROOM = 0.7  # of a core or a disk: above it waiting times grow faster than the load
CONNECTIONS_OF_A_REPLICA = 24
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Plan:
    """A load and what is there to carry it; a field is an option of the command."""

    database: str = "postgresql"
    events_per_day: float = 10_000_000
    peak: float = 3.0  # the busiest hour, as a multiple of the mean
    group: int = 1  # events in one post at the peak: 1, or 100 where Mailjet groups
    sinks: int = 1  # that want each event
    batch: int = 1  # 1, or 100 and more: BATCH_SIZE
    replicas: int = 3
    database_cores: float = 4
    disk_megabytes_per_second: float = 100  # of writing that lasts
    disk_gigabytes: float = 2_000
    retention_days: float = 90
    max_connections: int = 200
    sink_rate: float = 0  # events a second that the slowest sink takes; 0: no limit
    burst: float = 0  # events of one mailing, beside the usual
    burst_minutes: float = 60

    @property
    def mean_rate(self) -> float:
        return self.events_per_day / DAY

    @property
    def peak_rate(self) -> float:
        return self.mean_rate * self.peak


@dataclass(frozen=True, slots=True)
class Part:
    """Something that can be full. `most` is the rate of events at which it is, its headroom kept."""

    name: str
    most: float
    remedy: str
    share: float = HEADROOM  # of it in use at that rate
    bounds_a_burst: bool = True  # space fills over weeks


Costs = dict[str, dict[str, float]]


def load_costs(path: Path = COSTS) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def of_event(costs: Costs, plan: Plan, what: str) -> float:
    """One event with all that follows from it: received, owed, counted, sent."""
    receiving = costs["received alone" if plan.group < 10 else "received in groups of 100"][what]
    sending = costs["sent alone" if plan.batch < 10 else "sent in batches of 100"][what]
    return receiving + costs["counted"][what] + plan.sinks * (costs["owed to a sink"][what] + sending)


def parts(costs: Costs, plan: Plan) -> list[Part]:
    """Each with the rate of events at which it is full, headroom kept; the fullest first."""
    written = of_event(costs, plan, "wal_bytes") + of_event(costs, plan, "bytes")
    kept = of_event(costs, plan, "bytes") * DAY * plan.retention_days  # at one event a second
    found = [
        Part("replicas", _rate(plan.replicas, of_event(costs, plan, "service_ms")), "more replicas, larger batches"),
        # One replica counts for all, beside its share of the rest.
        Part("statistics", _rate(1, costs["counted"]["service_ms"]), "a second installation for some of the webhooks"),
        Part("disk, writing", HEADROOM * plan.disk_megabytes_per_second * 1e6 / written, "a faster disk"),
        Part("disk, space", HEADROOM * plan.disk_gigabytes * 1e9 / kept * plan.peak,
             "a shorter JETHOOK_RETENTION_DAYS, a larger disk", bounds_a_burst=False),
    ]  # fmt: skip
    if plan.database == "postgresql":
        database = _rate(plan.database_cores, of_event(costs, plan, "database_ms"))
        found.append(Part("PostgreSQL's cores", database, "more cores, or a second installation"))
    if plan.sink_rate:
        found.append(Part("the slowest sink", plan.sink_rate, "CONCURRENCY, BATCH_SIZE, or a faster sink", share=1.0))
    return sorted(found, key=lambda part: part.most)


def _rate(cores: float, milliseconds: float) -> float:
    return HEADROOM * cores * 1000 / milliseconds if milliseconds else float("inf")


@dataclass(frozen=True, slots=True)
class Minute:
    """At its end; the rate is of what was worked off in it, in events a second."""

    number: int
    came: float
    done: float
    waiting: float


def worked_off(arrivals: Sequence[float], most: float) -> list[Minute]:
    """`arrivals` and `most` are events a second, one entry a minute; goes on until nothing waits, a week at most."""
    minutes: list[Minute] = []
    waiting = 0.0
    while len(minutes) < len(arrivals) or (waiting > 1e-6 and len(minutes) < 7 * 24 * 60):
        came = arrivals[len(minutes)] if len(minutes) < len(arrivals) else arrivals[-1]
        done = min(came + waiting / 60, most)
        waiting = max(waiting + (came - done) * 60, 0.0)
        minutes.append(Minute(len(minutes) + 1, came, done, waiting))
    return minutes


def arrivals_of(plan: Plan) -> list[float]:
    """The usual rate, with the mailing on top from the first minute; the last entry is what goes on coming."""
    during = plan.mean_rate + plan.burst / (plan.burst_minutes * 60)
    return [during] * max(round(plan.burst_minutes), 1) + [plan.mean_rate]


# --- telling ---------------------------------------------------------------------------------------------------------


def report(plan: Plan, costs: Costs) -> Iterator[str]:
    yield (
        f"{plan.events_per_day:,.0f} events a day are {plan.mean_rate:,.0f} a second, {plan.peak_rate:,.0f} in the"
        f" busiest hour; {plan.sinks} sinks, {plan.replicas} replicas on {plan.database}"
    )
    every = parts(costs, plan)
    for part in every:
        told = f"{plan.peak_rate / part.most * part.share:.0%} used at the peak"
        mark = ", TOO MUCH" if part.most < plan.peak_rate else ""
        yield f"  {part.name:18} {told:>21}; carries {part.most:,.0f} a second{mark}"
    first = every[0]
    yield f"first full: {first.name}, at {first.most:,.0f} events a second; then: {first.remedy}"
    size = of_event(costs, plan, "bytes") * plan.events_per_day
    kept = size * plan.retention_days
    yield f"disk: {size / 1e9:,.1f} GB a day, {kept / 1e9:,.0f} GB in {plan.retention_days:.0f} days"
    if plan.database == "postgresql":
        used = plan.replicas * CONNECTIONS_OF_A_REPLICA
        yield f"connections: at most {used} of {plan.max_connections}" + (
            ": put PgBouncer between, or raise max_connections" if used > plan.max_connections * 0.9 else ""
        )
    elif plan.replicas > 1:
        yield "SQLite is for one replica: more of them need --database postgresql"
    if plan.burst:
        yield from _burst(plan, next(part for part in every if part.bounds_a_burst))


def _burst(plan: Plan, first: Part) -> Iterator[str]:
    minutes = worked_off(arrivals_of(plan), first.most)
    most = max(minutes, key=lambda minute: minute.waiting)
    if minutes[-1].waiting > 1:
        yield f"a mailing of {plan.burst:,.0f} events is never worked off: {first.name} is full by the usual load alone"
        return
    yield (
        f"a mailing of {plan.burst:,.0f} events in {plan.burst_minutes:.0f} minutes: at most {most.waiting:,.0f} wait"
        f" ({most.waiting / first.most:,.0f} s of work), all done after {minutes[-1].number} minutes"
    )


def table(costs: dict[str, Any]) -> list[str]:
    """What the page shows; `costs` as in the file."""
    lines = [f"Taken {costs['taken']}.", ""]
    lines += ["| one event | service, CPU ms | PostgreSQL, CPU ms | statements | bytes kept | bytes of WAL |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for step, sqlite in costs["sqlite"].items():
        other = costs["postgresql"][step]
        lines.append(
            f"| {step} | {sqlite['service_ms']:.3f} / {other['service_ms']:.3f} | {other['database_ms']:.3f} |"
            f" {other['statements']:.3f} | {sqlite['bytes']:,.0f} / {other['bytes']:,.0f} | {other['wal_bytes']:,.0f} |"
        )
    lines += [
        "",
        "| carries, events a second | one replica, SQLite | one replica | PostgreSQL, a core | a disk of 100 MB/s |",
    ]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for told, plan in EXAMPLES.items():
        lines.append(f"| {told} | {' | '.join(_carried(costs, plan))} |")
    return lines


EXAMPLES = {
    "one by one, nobody to tell": Plan(sinks=0),
    "one by one, one sink": Plan(),
    "groups of 100, one sink": Plan(group=100),
    "groups of 100, one sink in batches of 100": Plan(group=100, batch=100),
    "groups of 100, three sinks in batches of 100": Plan(group=100, batch=100, sinks=3),
}


def _carried(costs: dict[str, Any], plan: Plan) -> Iterator[str]:
    one = replace(plan, replicas=1, database_cores=1)
    on_sqlite = {part.name: part.most for part in parts(costs["sqlite"], replace(one, database="sqlite"))}
    found = {part.name: part.most for part in parts(costs["postgresql"], one)}
    yield f"{on_sqlite['replicas']:,.0f}"
    for name in ("replicas", "PostgreSQL's cores", "disk, writing"):
        yield f"{found[name]:,.0f}"


def write_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n" + "\n".join(table(load_costs())) + f"\n{END}{tail}", encoding="utf-8")


def parsed(arguments: Sequence[str] | None = None) -> Plan:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for field in fields(Plan):
        option = "--" + field.name.replace("_", "-")
        choices = ("sqlite", "postgresql") if field.name == "database" else None
        kind = type(field.default)
        parser.add_argument(option, type=float if kind is int else kind, default=field.default, choices=choices)
    given = vars(parser.parse_args(arguments))
    return Plan(
        **{
            f.name: int(given[f.name]) if isinstance(f.default, int) and f.type == "int" else given[f.name]
            for f in fields(Plan)
        }
    )


def main(arguments: Sequence[str] | None = None) -> int:
    plan = parsed(arguments)
    print("\n".join(report(plan, load_costs()[plan.database])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
