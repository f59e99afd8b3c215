from collections import Counter

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.simulator.shaping import Shape, shape_events
from app.simulator.traffic import make_events

EVENTS = list(make_events(5, 300, 1_784_628_000))


def elements(body):
    value = orjson.loads(body.content)
    return value if isinstance(value, list) else [value]


def flat(bodies):
    return [element for body in bodies for element in elements(body)]


def test_alone_an_event_is_a_bare_object():
    bodies = list(shape_events(EVENTS, Shape()))

    assert [orjson.loads(body.content) for body in bodies] == EVENTS


def test_in_groups_every_body_is_an_array_also_the_last():
    bodies = list(shape_events(EVENTS[:7], Shape(group=3)))

    assert [orjson.loads(body.content) for body in bodies] == [EVENTS[:3], EVENTS[3:6], EVENTS[6:7]]
    assert [body.events for body in bodies] == [3, 3, 1]


def test_mixed_gives_objects_and_arrays():
    bodies = list(shape_events(EVENTS, Shape(group=4, mixed=True)))

    assert {body.content[:1] for body in bodies} == {b"{", b"["}
    assert flat(bodies) == EVENTS


def test_a_retry_is_the_same_bytes_later():
    bodies = list(shape_events(EVENTS, Shape(group=5, retries=0.5)))

    firsts = [body.content for body in bodies if not body.is_retry]
    again = [body.content for body in bodies if body.is_retry]
    assert len(firsts) == 60
    assert 15 < len(again) < 45
    assert set(again) <= set(firsts)
    assert len(set(again)) == len(again)


def test_a_duplicate_comes_in_another_body():
    bodies = list(shape_events(EVENTS, Shape(group=5, duplicates=0.5)))

    counts = Counter(orjson.dumps(element) for element in flat(bodies))
    assert len(counts) == 300
    assert set(counts.values()) == {1, 2}
    assert not any(body.is_retry for body in bodies)


def test_disorder_changes_the_order_and_nothing_else():
    came = flat(shape_events(EVENTS, Shape(disorder=0.3)))

    assert came != EVENTS
    assert sorted(map(orjson.dumps, came)) == sorted(map(orjson.dumps, EVENTS))


@given(
    group=st.integers(1, 40),
    mixed=st.booleans(),
    shares=st.tuples(*[st.floats(0, 1)] * 3),
    seed=st.integers(),
)
@settings(max_examples=50, deadline=None)
def test_no_event_is_ever_left_out(group, mixed, shares, seed):
    shape = Shape(group, mixed, *shares)

    bodies = list(shape_events(EVENTS, shape, seed))

    assert {orjson.dumps(element) for element in flat(bodies)} == {orjson.dumps(event) for event in EVENTS}
    assert all(len(elements(body)) == body.events <= group for body in bodies)
    assert bodies == list(shape_events(EVENTS, shape, seed))


@pytest.mark.parametrize("wrong", [{"group": 0}, {"retries": 1.1}, {"duplicates": -0.1}, {"disorder": 2}])
def test_a_shape_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Shape(**wrong)
