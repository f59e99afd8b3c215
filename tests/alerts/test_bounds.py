from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.alerts.bounds import QUIET, Bounds, together
from app.operator_events import DELIVERY_DEAD, SINK_OPENED, SINK_RECOVERED, Change
from tests.factories import NOON


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def change(event_type: str, seconds: float, sink: str = "crm", **more: Any) -> Change:
    return Change(event_type, at(seconds), sink=sink, **more)


def dead(seconds: float, first: str, count: int = 1, sink: str = "crm") -> Change:
    return change(DELIVERY_DEAD, seconds, sink, count=count, details={"first_event_id": first})


def told(bounds: Bounds, *changes: Change) -> list[str]:
    """The types told at once."""
    return [given.type for one in changes if (given := bounds.offer(one, one.at)) is not None]


def test_the_first_is_told_at_once_and_thousands_after_it_are_one_a_minute_later() -> None:
    bounds = Bounds()

    assert bounds.offer(dead(0, "a"), at(0)) == dead(0, "a")
    assert all(bounds.offer(dead(1 + n / 100, f"b{n}"), at(1 + n / 100)) is None for n in range(3000))
    assert list(bounds.due(at(59.9))) == []
    assert bounds.next_at(at(40)) == at(60)
    (later,) = bounds.due(at(60))

    assert (later.count, later.since, later.details) == (3000, at(1), {"first_event_id": "b0"})
    assert bounds.next_at(at(60)) is None
    assert list(bounds.due(at(500))) == []


def test_one_that_comes_after_a_quiet_minute_takes_along_what_was_held() -> None:
    bounds = Bounds()
    told(bounds, dead(0, "a"), dead(10, "b"))

    found = bounds.offer(dead(60, "c", count=5), at(60))

    assert found is not None
    assert (found.count, found.details["first_event_id"]) == (6, "b")


def test_subjects_do_not_wait_for_each_other() -> None:
    assert len(told(Bounds(), dead(0, "a"), dead(1, "b", sink="erp"), change(SINK_OPENED, 2))) == 3


def test_opened_and_recovered_are_told_at_once_the_first_time() -> None:
    bounds = Bounds()

    assert told(bounds, change(SINK_OPENED, 0), change(SINK_RECOVERED, 1)) == [SINK_OPENED, SINK_RECOVERED]


def test_a_flapping_sink_is_told_as_it_is_in_the_end() -> None:
    bounds = Bounds()
    flaps = [change((SINK_OPENED, SINK_RECOVERED)[n % 2], n) for n in range(11)]  # the last one opens

    assert told(bounds, *flaps) == [SINK_OPENED, SINK_RECOVERED]
    (last,) = bounds.due(at(60))

    assert (last.type, last.at) == (SINK_OPENED, at(10))
    assert last.details == {"untold_changes": 8}


def test_what_went_back_to_where_it_was_is_not_told_but_counted() -> None:
    bounds = Bounds()
    told(bounds, *(change((SINK_OPENED, SINK_RECOVERED)[n % 2], n) for n in range(4)))

    assert list(bounds.due(at(200))) == []
    found = bounds.offer(change(SINK_OPENED, 200), at(200))

    assert found is not None
    assert found.details == {"untold_changes": 2}


def test_what_is_held_comes_out_at_the_end() -> None:
    bounds = Bounds()
    told(bounds, dead(0, "a"), dead(1, "b"), dead(2, "c"))

    (rest,) = bounds.rest(at(3))

    assert rest.count == 2
    assert list(bounds.rest(at(3))) == []


def test_two_of_a_kind_together() -> None:
    both = together(dead(0, "a", 2), dead(5, "b", 3))

    assert (both.at, both.since, both.count, both.details) == (at(5), at(0), 5, {"first_event_id": "a"})


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60))
def test_never_two_of_a_type_within_the_quiet_time_and_no_dead_delivery_uncounted(
    steps: list[tuple[float, bool]],
) -> None:
    bounds, now, offered, is_open = Bounds(), 0.0, 0, False
    came: list[tuple[str, datetime, int]] = []

    def hear(found: Change | None, moment: datetime) -> None:
        if found is not None:
            came.append((found.type, moment, found.count or 0))

    for wait, flaps in steps:
        now += wait
        for held in list(bounds.due(at(now))):
            hear(held, at(now))
        if flaps:
            is_open = not is_open
            hear(bounds.offer(change(SINK_OPENED if is_open else SINK_RECOVERED, now), at(now)), at(now))
        else:
            offered += 1
            hear(bounds.offer(dead(now, "x"), at(now)), at(now))
    for held in list(bounds.rest(at(now) + QUIET)):
        hear(held, at(now) + QUIET)

    for event_type in (DELIVERY_DEAD, SINK_OPENED, SINK_RECOVERED):
        moments = [moment for kind, moment, _ in came if kind == event_type]
        assert all(later - earlier >= QUIET for earlier, later in pairwise(moments))
    assert sum(count for _, _, count in came) == offered
    turns = [kind for kind, _, _ in came if kind != DELIVERY_DEAD]
    assert all(one != other for one, other in pairwise(turns))
    assert (turns[-1:] == [SINK_OPENED]) == is_open
