from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.replay.pace import SECOND, TICK, due_at, gap_of, next_slots


@pytest.mark.parametrize(
    ("per_second", "gap"), [(1, SECOND), (3, 333_334), (0.5, 2 * SECOND), (1e-6, 10**12), (1e6, 1), (400_000, 3)]
)
def test_a_gap_is_rounded_up(per_second, gap):
    assert gap_of(per_second) == gap


def test_slots_lie_within_the_next_second_and_none_is_past():
    assert list(next_slots(0, 250_000, now=10 * SECOND, most=100)) == [
        10_000_000, 10_250_000, 10_500_000, 10_750_000
    ]  # fmt: skip
    assert list(next_slots(10_900_000, 250_000, now=10 * SECOND, most=100)) == [10_900_000]
    assert list(next_slots(11_000_000, 250_000, now=10 * SECOND, most=100)) == []
    assert len(next_slots(0, 1, now=0, most=7)) == 7
    assert len(next_slots(0, 1, now=0, most=-7)) == 0


@given(
    per_second=st.integers(1, 2000),
    looks=st.lists(st.integers(0, 2 * SECOND), min_size=1, max_size=30),
    most=st.integers(0, 300),
)
def test_no_second_holds_more_than_the_rate(per_second, looks, most):
    gap, now, first, due = gap_of(per_second), 10**15, 0, []
    for wait in looks:
        now += wait
        slots = next_slots(first, gap, now=now, most=most)
        due += [due_at(slot, gap) for slot in slots]
        first = slots[-1] + gap if slots else first
        assert all(now <= due_at(slot, gap) < now + SECOND + TICK for slot in slots)

    assert due == sorted(due)
    for n, start in enumerate(due):
        assert bisect_left(due, start + SECOND) - n <= per_second
