"""The token bucket, and a worker that heeds it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.db import Database
from app.delivery.rate import TokenBucket
from app.settings import SinkSettings
from tests.delivery.stand import Stand, attempts_of, event, rows, states
from tests.delivery.support import run, until
from tests.e2e.service import SinkFarm


def test_a_seconds_worth_at_once_and_then_one_by_one() -> None:
    bucket = TokenBucket(4)

    assert [bucket.take(100.0) for _ in range(6)] == [True] * 4 + [False] * 2
    assert bucket.wait(100.0) == pytest.approx(0.25)
    assert not bucket.take(100.24)
    assert bucket.take(100.26)
    assert not bucket.take(100.26)


def test_a_long_rest_saves_up_no_more_than_a_second() -> None:
    bucket = TokenBucket(3)
    assert bucket.take(0.0)

    assert sum(bucket.take(10_000.0) for _ in range(100)) == 3


def test_less_than_one_a_second_is_one_at_first() -> None:
    bucket = TokenBucket(0.1)

    assert [bucket.take(0.0), bucket.take(9.9), bucket.take(10.1), bucket.take(10.2)] == [True, False, True, False]


RATES = st.one_of(st.integers(1, 1000).map(float), st.floats(0.01, 1000.0, allow_nan=False))
STEPS = st.lists(st.one_of(st.just(0.0), st.floats(0.0, 3.0), st.floats(-0.5, 0.0)), max_size=150)


@given(RATES, STEPS)
def test_no_window_holds_more_than_the_rate_and_the_burst(rate: float, steps: list[float]) -> None:
    bucket, now, taken = TokenBucket(rate), 1000.0, []
    clock = -math.inf
    for step in steps:
        now += step
        clock = max(clock, now)
        if bucket.take(now):
            taken.append(clock)

    burst = max(1.0, rate)
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= rate * (taken[last] - start) + burst + 1e-6


@given(RATES, STEPS)
def test_who_waits_as_told_goes(rate: float, steps: list[float]) -> None:
    bucket, now = TokenBucket(rate), 0.0
    for step in steps:
        now += abs(step)
        if not bucket.take(now):
            now += bucket.wait(now) + 1e-9 * max(1.0, now)
            assert bucket.take(now)


def test_a_limited_sink_gets_everything_within_its_rate_and_slows_no_other(database: Database) -> None:
    with SinkFarm(["slow", "quick", "batched"]) as farm:
        sinks = {
            "slow": SinkSettings(url=farm.url("slow"), rate_per_second=20),
            "quick": SinkSettings(url=farm.url("quick")),
            "batched": SinkSettings(
                url=farm.url("batched"), rate_per_second=5, batch_size=10, batch_linger_seconds=0.01
            ),
        }

        async def main() -> None:
            async with Stand(database, sinks).running() as stand:
                await stand.post(*map(event, range(45)))
                for name in sinks:
                    await until(lambda name=name: states(database, name) == {"delivered"}, f"all at {name}")

        run(main())

        # By our own note of when each was sent: what lay on the way longer than the next comes close before it.
        slow = sorted(
            one["at"].timestamp() for key in rows(database, "slow") for one in attempts_of(database, key, "slow")
        )
        assert farm["slow"].distinct == farm["quick"].distinct == farm["slow"].total == len(slow) == 45
        for first, start in enumerate(slow):
            for last in range(first, len(slow)):
                # A third of a second for what was allowed and then waited for the event loop.
                assert last - first + 1 <= 20 * (slow[last] - start + 0.33) + 20
        assert max(r.at for r in farm["quick"].requests) < max(r.at for r in farm["slow"].requests)
        assert farm["batched"].total == 5  # the rate is of requests, not of events
