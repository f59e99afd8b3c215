"""The reckoning behind deploy/capacity.md: its page is that of the measured costs, and its sums are sums."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from tests.benchmarks import capacity
from tests.benchmarks.capacity import Plan, arrivals_of, of_event, parsed, parts, report, worked_off
from tests.e2e.service import ROOT

STEPS = (
    "received alone",
    "received in groups of 100",
    "owed to a sink",
    "counted",
    "sent alone",
    "sent in batches of 100",
)
STEP = {"service_ms": 1.0, "database_ms": 0.5, "statements": 1.0, "bytes": 100.0, "wal_bytes": 300.0}
COSTS = dict.fromkeys(STEPS, STEP)


def test_the_page_shows_what_was_measured() -> None:
    page = capacity.PAGE.read_text(encoding="utf-8")
    shown = page.partition(capacity.BEGIN)[2].partition(capacity.END)[0].strip().splitlines()

    assert shown == capacity.table(capacity.load_costs())


def test_every_cost_was_measured_on_both_databases() -> None:
    costs = capacity.load_costs()

    for kind in ("sqlite", "postgresql"):
        assert tuple(costs[kind]) == STEPS
        assert all(costs[kind][step]["service_ms"] > 0 for step in STEPS)
    assert all(step["database_ms"] > 0 and step["statements"] > 0 for step in costs["postgresql"].values())


def test_an_event_costs_its_way_in_its_count_and_each_sink() -> None:
    assert of_event(COSTS, Plan(sinks=0), "service_ms") == 2
    assert of_event(COSTS, Plan(sinks=3), "service_ms") == 2 + 3 * 2


def of(plan: Plan, name: str) -> float:
    [part] = [part for part in parts(COSTS, plan) if part.name == name]
    return part.most


def test_twice_the_replicas_carry_twice_as_much_and_the_leaders_part_stays() -> None:
    two, four = Plan(replicas=2), Plan(replicas=4)

    assert of(four, "replicas") == 2 * of(two, "replicas")
    assert of(four, "statistics") == of(two, "statistics")
    assert of(replace(two, database_cores=8), "PostgreSQL's cores") == 2 * of(two, "PostgreSQL's cores")


def test_the_part_that_is_full_first_comes_first_with_its_remedy() -> None:
    found = list(report(Plan(sink_rate=3, events_per_day=1_000_000), COSTS))

    assert parts(COSTS, Plan(sink_rate=3))[0].name == "the slowest sink"
    assert "TOO MUCH" in found[1]
    assert any(line.startswith("first full: the slowest sink, at 3 events a second") for line in found)


def test_a_disk_is_full_after_as_many_days_as_its_bytes_last() -> None:
    plan = Plan(disk_gigabytes=1, retention_days=10, peak=1)

    most = of(plan, "disk, space")

    assert most * of_event(COSTS, plan, "bytes") * 86_400 * 10 == pytest.approx(capacity.HEADROOM * 1e9)


def test_nothing_of_a_mailing_is_lost_on_the_way_and_it_ends() -> None:
    plan = Plan(events_per_day=864_000, burst=120_000, burst_minutes=10)  # 10 a second, and 200 more for ten minutes

    minutes = worked_off(arrivals_of(plan), most=100)

    assert sum(minute.came - minute.done for minute in minutes) == pytest.approx(0, abs=1e-6)
    assert max(minute.done for minute in minutes) <= 100
    assert max(minute.waiting for minute in minutes) == pytest.approx((210 - 100) * 600)
    assert minutes[-1].number == 10 + 13  # 66,000 waiting, 90 a second more than come


def test_a_load_that_is_too_much_by_itself_is_told_as_never_worked_off() -> None:
    told = list(report(Plan(events_per_day=864_000, sink_rate=5, burst=1000), COSTS))

    assert "never worked off" in told[-1]


def test_every_option_of_the_command_is_a_field_of_the_plan() -> None:
    plan = parsed(["--events-per-day", "5e7", "--sinks", "2", "--database", "sqlite", "--replicas", "1"])

    assert plan == Plan(events_per_day=5e7, sinks=2, database="sqlite", replicas=1)


def test_it_runs_with_nothing_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
         "from tests.benchmarks.capacity import main\nmain(['--burst', '3000000'])"],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "first full:" in done.stdout
    assert "a mailing of 3,000,000 events" in done.stdout
