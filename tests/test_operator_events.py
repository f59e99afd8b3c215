from __future__ import annotations

import re

import pytest

from app.ingest.identity import event_id
from app.operator_events import MEANINGS, TURNS, WEBHOOK, Change, asked_for, is_operator_word, payload_of
from app.settings import EVENT_TYPES, HEARD
from tests.factories import NOON

OF_THE_SERVICE = tuple(name for name in MEANINGS if name.startswith("jethook."))


def test_every_type_has_its_form_and_a_meaning() -> None:
    for name, meaning in MEANINGS.items():
        assert re.fullmatch(r"jethook(\.[a-z]+){2}|suppression\.[a-z]+", name)
        assert meaning
    assert TURNS.keys() <= MEANINGS.keys()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ()),
        (["bounce"], ()),
        (["jethook.*"], OF_THE_SERVICE),
        (["bounce", "jethook.*", "jethook.sink.opened"], OF_THE_SERVICE),
        (["jethook.*", "suppression.*"], tuple(MEANINGS)),
        (["suppression.*"], ("suppression.added", "suppression.removed")),
        (["suppression.removed", "spam"], ("suppression.removed",)),
        (["jethook.sink.recovered", "open", "jethook.sink.opened"], ("jethook.sink.opened", "jethook.sink.recovered")),
    ],
)
def test_what_a_sink_asks_for(words: list[str], expected: tuple[str, ...]) -> None:
    assert asked_for(words) == expected


def test_no_type_of_mailjets_looks_like_one_of_ours() -> None:
    assert not any(map(is_operator_word, EVENT_TYPES))
    assert [word for word in HEARD if is_operator_word(word)] == ["jethook.*", "suppression.*", *MEANINGS]


def test_the_object_is_flat_and_leaves_out_what_is_not_known() -> None:
    change = Change("jethook.delivery.dead", NOON, sink="crm", count=3, details={"status": None, "first_event_id": "x"})

    payload = payload_of(change, time=7, at="then", since=None, told_by={"replica": "r"})

    assert payload == {
        "event": "jethook.delivery.dead", "time": 7, "at": "then", "replica": "r", "sink": "crm", "count": 3,
        "first_event_id": "x",
    }  # fmt: skip
    assert event_id(WEBHOOK, 7, payload) == event_id(WEBHOOK, 7, dict(reversed(payload.items())))
