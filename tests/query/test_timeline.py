"""The state of a message: plain values, any order, any repetition."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.models import Outcome
from app.query.timeline import STRENGTH, State, Tally, state_of, summary
from tests.factories import NOON

KNOWN = st.lists(st.tuples(st.sampled_from([*map(str, Outcome), "surprise"]), st.sampled_from([True, False, None])))


@given(known=KNOWN, data=st.data())
def test_any_order_and_any_repetition_give_the_same_state(known, data):
    repeats = data.draw(st.lists(st.sampled_from(known)) if known else st.just([]))
    disordered = data.draw(st.permutations(known + repeats))

    assert state_of(disordered) == state_of(known)


@given(known=KNOWN, late=KNOWN)
def test_what_comes_late_never_weakens_what_was_known(known, late):
    def strength(state: State) -> int:
        return STRENGTH.index((Outcome(state.outcome), state.permanent is True))

    before, after = state_of(known), state_of(known + late)

    assert strength(after) == max(strength(before), strength(state_of(late)))
    assert state_of([(before.outcome, before.permanent), (state_of(late).outcome, state_of(late).permanent)]) == after


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        pytest.param([], State("unknown"), id="nothing is known"),
        pytest.param([("unknown", None)], State("unknown"), id="only types that nobody knows"),
        pytest.param([("opened", None), ("delivered", None)], State("opened"), id="a late sent undoes no open"),
        pytest.param([("clicked", None), ("opened", None)], State("clicked"), id="a click proves an open"),
        pytest.param([("deferred", False), ("delivered", None)], State("delivered"), id="greylisted, then accepted"),
        pytest.param([("deferred", False), ("bounced", True)], State("bounced", True), id="greylisted, then refused"),
        pytest.param([("bounced", False), ("delivered", None)], State("delivered"), id="a passing failure passed"),
        pytest.param([("delivered", None), ("bounced", True)], State("bounced", True), id="bounced after acceptance"),
        pytest.param([("clicked", None), ("bounced", True)], State("bounced", True), id="a scanner clicked before"),
        pytest.param([("bounced", None), ("opened", None)], State("opened"), id="nobody says that it is lasting"),
        pytest.param([("bounced", None), ("bounced", False)], State("bounced", False), id="what says more is told"),
        pytest.param([("rejected", True), ("bounced", True)], State("bounced", True), id="tried outweighs not sent"),
        pytest.param([("rejected", True), ("deferred", False)], State("rejected", True), id="blocked for good"),
        pytest.param([("bounced", True), ("unsubscribed", None)], State("unsubscribed"), id="a person acted"),
        pytest.param([("complained", None), ("unsubscribed", None)], State("complained"), id="the strongest"),
        pytest.param([("delivered", True)], State("delivered"), id="permanence is a word of failures"),
    ],
)
def test_state_of(known, expected):
    assert state_of(known) == state_of(known[::-1]) == expected


def test_every_outcome_has_its_strength():
    assert {outcome for outcome, _ in STRENGTH} == set(Outcome)


def tally(kind: str, first: int, last: int | None = None, *, count: int = 1, outcome: str = "unknown") -> Tally:
    at = NOON + timedelta(seconds=first)
    return Tally(kind, outcome, None, count, at, at if last is None else NOON + timedelta(seconds=last))


def test_kinds_of_one_type_are_added_up():
    told = summary([tally("bounce", 5, 9, count=2), tally("bounce", 1, 2, count=3), tally("sent", 0)])

    assert told["counts"] == {"sent": 1, "bounce": 5}
    assert told["first"] == {"sent": "2026-05-03T12:00:00Z", "bounce": "2026-05-03T12:00:01Z"}
    assert told["last"]["bounce"] == "2026-05-03T12:00:09Z"


@pytest.mark.parametrize(
    ("tallies", "to_open", "to_click"),
    [
        pytest.param([tally("sent", 10, 50), tally("open", 15, 99)], 5, None, id="first to first"),
        pytest.param([tally("open", 15), tally("click", 16)], None, None, id="nothing without sent"),
        pytest.param([tally("sent", 10), tally("open", 9), tally("click", 10)], 0, 0, id="never negative"),
    ],
)
def test_delays(tallies, to_open, to_click):
    told = summary(tallies)

    assert (told["seconds_to_open"], told["seconds_to_click"]) == (to_open, to_click)
