"""What is learned from the hours of the past weeks, and by when something should come."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.clock import EPOCH
from app.silence.rhythm import HOUR, Rhythm, expected_by, hour_of, kind_of, learn

MONDAY = datetime(2026, 11, 2, tzinfo=UTC)
DAY = timedelta(days=1)


def hours_of(comes: Callable[[datetime], bool], *, days: int = 28, start: datetime = MONDAY) -> list[int]:
    moments = [start + n * HOUR for n in range(days * 24)]
    return [hour_of(moment) for moment in moments if comes(moment)]


def office(moment: datetime) -> bool:
    return moment.weekday() < 5 and 8 <= moment.hour < 18


def due(hours: list[int], last: datetime) -> datetime | None:
    rhythm = learn(hours)
    assert rhythm is not None
    return expected_by(rhythm, last)


def test_what_comes_all_day_is_missed_within_hours():
    by = due(hours_of(lambda moment: True), MONDAY + 28 * DAY + 10 * HOUR)

    assert by is not None
    assert 2 * HOUR < by - (MONDAY + 28 * DAY + 10 * HOUR) < 5 * HOUR


@pytest.mark.parametrize("days", [8, 14, 28])
def test_nights_and_weekends_that_are_always_quiet_are_no_silence(days: int):
    """From Friday evening until Monday, and then some hours."""
    hours = hours_of(office, days=days)
    friday = max(day for day in (MONDAY + n * DAY for n in range(days)) if day.weekday() == 4) + timedelta(hours=17.9)

    by = due(hours, friday)

    assert by is not None
    monday = (friday + 3 * DAY).replace(hour=8, minute=0)
    assert monday + 2 * HOUR < by < monday + 8 * HOUR


def test_the_clock_in_summer_moves_all_by_an_hour_and_nobody_cries():
    hours = hours_of(office)
    friday_by = due(hours, MONDAY + 25 * DAY + timedelta(hours=17.5))

    assert friday_by is not None
    assert friday_by > MONDAY + 28 * DAY + timedelta(hours=9.5)


def test_what_comes_once_a_day_may_miss_some_days():
    hours = hours_of(lambda moment: moment.hour == 9)
    last = MONDAY + 27 * DAY + timedelta(hours=9.5)

    by = due(hours, last)

    assert by is not None
    assert 3 * DAY < by - last < 10 * DAY


def test_one_long_gap_teaches_nothing_and_two_do():
    def without(*days: int) -> list[int]:
        return [hour for hour in hours_of(lambda moment: True) if (hour - hour_of(MONDAY)) // 24 not in days]

    last = MONDAY + 27 * DAY + 23 * HOUR
    never, once, twice = (due(without(*gaps), last) for gaps in ((), (8,), (8, 16)))

    assert never is not None
    assert once is not None
    assert twice is not None
    assert once - never < 3 * HOUR
    assert twice - last > DAY


@pytest.mark.parametrize(
    "hours",
    [
        pytest.param([], id="nothing"),
        pytest.param(hours_of(lambda moment: True, days=6), id="less than a week"),
        pytest.param(hours_of(lambda moment: moment.hour == 9 and moment.weekday() == 1), id="four hours in all"),
    ],
)
def test_too_little_shows_no_rhythm(hours: list[int]):
    assert learn(hours) is None


def test_where_nothing_ever_comes_nothing_is_expected():
    assert expected_by(Rhythm({}, 9.0), MONDAY) is None


active = st.sets(st.integers(0, 28 * 24 - 1), max_size=400).map(lambda found: {hour_of(MONDAY) + n for n in found})


@given(active)
def test_no_gap_of_the_past_but_the_longest_is_ever_silence(hours: set[int]):
    rhythm = learn(hours)
    if rhythm is None:
        return
    ordered = sorted(hours)
    early = 0
    for earlier, later in pairwise(ordered):
        by = expected_by(rhythm, EPOCH + (earlier + 1) * HOUR)
        early += by is not None and by < EPOCH + later * HOUR
    assert early <= 1


@given(active, st.integers(0, 10_000))
def test_more_events_are_never_expected_later_than_the_hours_between_allow(hours: set[int], minutes: int):
    rhythm = learn(hours)
    if rhythm is None:
        return
    last = EPOCH + max(hours) * HOUR + timedelta(minutes=minutes)
    first, second = expected_by(rhythm, last), expected_by(rhythm, last + HOUR)

    assert first is None or first > last
    if first is not None and second is not None:
        assert second >= first


def test_a_week_knows_working_days_saturday_and_sunday():
    kinds = [kind_of(hour_of(MONDAY + n * DAY + 7 * HOUR)) for n in range(7)]

    assert kinds == [(0, 7)] * 5 + [(1, 7), (2, 7)]
