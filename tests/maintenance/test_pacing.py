"""How large slices become."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.maintenance.pacing import LARGEST, SMALLEST, TARGET_SECONDS, next_size


@given(size=st.integers(SMALLEST, LARGEST), seconds=st.floats(0, 10))
def test_a_slice_stays_within_its_bounds_and_never_changes_by_more_than_two(size: int, seconds: float) -> None:
    found = next_size(size, seconds)

    assert SMALLEST <= found <= LARGEST
    assert size / 2 - 1 <= found <= size * 2 or found == SMALLEST


def test_a_slice_that_took_its_time_stays_and_one_that_took_longer_shrinks() -> None:
    assert next_size(100, TARGET_SECONDS) == 100
    assert next_size(100, TARGET_SECONDS * 1.5) == 67
    assert next_size(100, TARGET_SECONDS * 100) == 50
    assert next_size(100, 0) == 200
