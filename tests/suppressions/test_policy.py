"""Which events suppress whom, why and since when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.models import SuppressionReason as Reason
from app.models import SuppressionScope as Scope
from app.suppressions.policy import Act, Entry, Fact, Policy, beginning, fact_of, fold, lifted_until
from app.views import EVENT_COLUMNS
from tests.suppressions.streams import DAY, EMAILS, START, payload, row_of, rows

SOFT = Policy(soft_bounces=3, soft_bounce_days=2)
MICROS = 10**6


def told(**fields: Any) -> Fact | None:
    row = row_of(payload(fields, fields.pop("email", "a@example.com"), START))
    return fact_of(dict(zip(EVENT_COLUMNS, row, strict=True)))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"event": "spam"}, (Reason.COMPLAINT, None)),
        ({"event": "unsub", "mj_list_id": 17}, (Reason.UNSUBSCRIBE, "17")),
        ({"event": "unsub", "mj_list_id": 0}, (Reason.UNSUBSCRIBE, None)),
        ({"event": "unsub"}, (Reason.UNSUBSCRIBE, None)),
        ({"event": "bounce", "hard_bounce": True}, (Reason.HARD_BOUNCE, None)),
        ({"event": "bounce", "hard_bounce": True, "error": "greylisted"}, (Reason.HARD_BOUNCE, None)),
        ({"event": "bounce", "hard_bounce": False}, (Reason.SOFT_BOUNCES, None)),
        ({"event": "bounce"}, (Reason.SOFT_BOUNCES, None)),
        ({"event": "bounce", "hard_bounce": False, "error": "greylisted"}, None),
        ({"event": "blocked", "error": "user unknown"}, (Reason.BLOCKED, None)),
        ({"event": "blocked", "error": "typofix"}, (Reason.BLOCKED, None)),
        ({"event": "blocked", "error": "Spam Reporter"}, (Reason.COMPLAINT, None)),
        ({"event": "blocked", "error": "preblocked"}, None),
        ({"event": "blocked", "error": "duplicate in campaign"}, None),
        ({"event": "blocked", "error": "sender blocked"}, None),
        ({"event": "blocked", "error": "content blocked"}, None),
        ({"event": "blocked", "error": "greylisted"}, None),
        ({"event": "blocked"}, None),
        ({"event": "sent"}, None),
        ({"event": "open"}, None),
        ({"event": "click"}, None),
        ({"event": "suppression.added", "reason": "complaint"}, None),
        ({"event": "spam", "email": ""}, None),
    ],
)
def test_what_an_event_says_against_mailing(fields, expected):
    fact = told(**fields)

    assert (fact.key if fact else None) == expected


def test_a_test_event_says_nothing():
    row = row_of({"event": "spam", "time": START, "MessageID": 0, "email": ""})

    assert fact_of(dict(zip(EVENT_COLUMNS, row, strict=True))) is None


def soft(*days: float, message: str | None = None) -> list[Fact]:
    times = [int(day * DAY) * MICROS for day in days]
    return [Fact("a", Reason.SOFT_BOUNCES, None, at, f"id{n}", message) for n, at in enumerate(times)]


def test_passing_bounces_suppress_by_their_number_within_the_days():
    assert beginning(Reason.SOFT_BOUNCES, soft(1, 2), SOFT) is None
    assert beginning(Reason.SOFT_BOUNCES, soft(1, 2, 3.01), SOFT) is None
    assert beginning(Reason.SOFT_BOUNCES, soft(1, 2, 3), SOFT) == Entry(3 * DAY * MICROS, "id2")
    assert beginning(Reason.SOFT_BOUNCES, soft(9, 1, 8.5, 2, 8), SOFT) == Entry(9 * DAY * MICROS, "id0")
    assert beginning(Reason.SOFT_BOUNCES, soft(1, 1, 1, message="m"), SOFT) is None  # copies of one arrival
    assert beginning(Reason.SOFT_BOUNCES, soft(1, 1, 1), SOFT) is None  # as copies are, without a MessageID


@pytest.mark.parametrize(
    ("switch", "gone"),
    [
        ({"hard_bounces": False}, {Reason.HARD_BOUNCE, Reason.BLOCKED}),
        ({"complaints": False}, {Reason.COMPLAINT}),
        ({"unsubscribes": False}, {Reason.UNSUBSCRIBE}),
        ({"soft_bounces": 0}, {Reason.SOFT_BOUNCES}),
    ],
)
def test_what_is_switched_off_does_not_suppress(switch, gone):
    facts = [Fact("a", reason, None, 1, reason) for reason in Reason if reason is not Reason.MANUAL]
    every = fold(facts, [], Policy(soft_bounces=1))

    left = fold(facts, [], Policy(**{"soft_bounces": 1} | switch))

    assert {reason for reason, _ in every.keys() - left.keys()} == gone


def lift(at: int, *, scope: Scope | None = None, list_id: str | None = None, reason: Reason | None = None) -> Act:
    return Act(at, True, scope, list_id, reason, "why", at, at)


def test_a_lift_clears_what_was_until_then_and_nothing_later():
    facts = [Fact("a", Reason.COMPLAINT, None, at, f"e{at}") for at in (5, 10, 11, 12)]

    assert fold(facts, [lift(10)], Policy()) == {(Reason.COMPLAINT, None): Entry(11, "e11")}
    assert fold(facts, [lift(12)], Policy()) == {}


@pytest.mark.parametrize(
    ("narrowed", "left"),
    [
        ({}, set()),
        ({"scope": Scope.ADDRESS}, {"l17", "l18"}),
        ({"scope": Scope.LIST, "list_id": "17"}, {"spam", "hard", "l18"}),
        ({"reason": Reason.HARD_BOUNCE}, {"spam", "l17", "l18"}),
        ({"reason": Reason.UNSUBSCRIBE}, {"spam", "hard"}),
        ({"scope": Scope.ADDRESS, "reason": Reason.UNSUBSCRIBE}, {"spam", "hard", "l17", "l18"}),
    ],
)
def test_a_lift_can_be_narrowed(narrowed, left):
    facts = [
        Fact("a", Reason.COMPLAINT, None, 1, "spam"),
        Fact("a", Reason.HARD_BOUNCE, None, 1, "hard"),
        Fact("a", Reason.UNSUBSCRIBE, "17", 1, "l17"),
        Fact("a", Reason.UNSUBSCRIBE, "18", 1, "l18"),
    ]

    assert {entry.event_id for entry in fold(facts, [lift(9, **narrowed)], Policy()).values()} == left


def test_what_people_add_counts_from_the_first_time_since_the_last_lift():
    def add(seq: int, list_id: str | None = None) -> Act:
        return Act(seq, False, None, list_id, None, f"why{seq}", seq * 100)

    acts = [add(1), lift(2), add(3), add(4), add(5, "17")]

    assert fold([], acts, Policy()) == {
        (Reason.MANUAL, None): Entry(300, None, "why3"),
        (Reason.MANUAL, "17"): Entry(500, None, "why5"),
    }
    assert fold([], reversed(acts), Policy()) == fold([], acts, Policy())
    # By the order of the acts, also where an event of the future has put a lift's end after the next add.
    assert fold([], [Act(1, True, None, None, None, "x", 1, 10**9), add(3)], Policy()).keys() == {(Reason.MANUAL, None)}


facts_of_rows = st.lists(rows, max_size=30).map(
    lambda many: [fact for row in many if (fact := fact_of(dict(zip(EVENT_COLUMNS, row, strict=True))))]
)
lifts = st.lists(
    st.builds(lift, st.integers(0, 60).map(lambda n: (START + n * DAY // 8) * MICROS), reason=st.none()), max_size=2
)


@given(facts=facts_of_rows, acts=lifts, data=st.data())
def test_neither_order_nor_repetition_matters(facts, acts, data):
    mine = [fact for fact in facts if fact.email == EMAILS[0]]
    again = data.draw(st.permutations(mine + mine[:5]))

    assert fold(again, acts, SOFT) == fold(mine, acts, SOFT)


@given(facts=facts_of_rows, acts=lifts)
def test_what_is_in_force_was_caused_by_an_event_after_the_last_lift_and_more_events_never_make_it_later(facts, acts):
    mine = {fact.event_id: fact for fact in facts if fact.email == EMAILS[0]}
    found = fold(mine.values(), acts, SOFT)

    for (reason, list_id), entry in found.items():
        cause = mine[entry.event_id or ""]
        assert cause.key == (reason, list_id)
        assert entry.since == cause.at > lifted_until(acts, (reason, list_id))
    fewer = fold(list(mine.values())[1:], acts, SOFT)
    assert all(key in found and found[key][:2] <= entry[:2] for key, entry in fewer.items())


@given(facts=facts_of_rows)
def test_an_address_is_suppressed_for_what_a_plain_reading_says(facts):
    mine = [fact for fact in facts if fact.email == EMAILS[0]]
    expected = {
        key: min((f.at, f.event_id) for f in mine if f.key == key)
        for key in {fact.key for fact in mine}
        if key[0] is not Reason.SOFT_BOUNCES
    }

    found = {key: entry[:2] for key, entry in fold(mine, [], Policy()).items()}

    assert found == expected
