from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mailjet.vocabulary import (
    ERRORS,
    EVENT_TYPES,
    GROUPS,
    OUTCOMES,
    as_bool,
    as_id,
    as_text,
    normal_email,
    outcome_of,
    permanent_of,
    reason_of,
)

values = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers(), max_size=2) | st.floats()
words = st.sampled_from([*ERRORS, *GROUPS, "Greylisted", " greylisted ", "something new", ""])
payloads = st.dictionaries(
    st.sampled_from(["error", "error_related_to", "hard_bounce", "blocked"]), words | values, max_size=4
)


@pytest.mark.parametrize(
    ("event_type", "outcome"),
    [("sent", "delivered"), ("open", "opened"), ("click", "clicked"), ("bounce", "bounced"), ("spam", "complained"),
     ("blocked", "rejected"), ("unsub", "unsubscribed"), ("typofix", "unknown"), ("SENT", "unknown"), ("", "unknown")],
)  # fmt: skip
def test_the_type_decides_the_outcome(event_type: str, outcome: str) -> None:
    assert outcome_of(event_type, {}) == outcome


@pytest.mark.parametrize("event_type", ["bounce", "blocked"])
@pytest.mark.parametrize(
    ("hard", "deferred"),
    [(False, True), ("", True), (None, True), ("false", True), (0, True), (True, False), ("true", False), (1, False),
     ("True", False), ("1", False)],
)  # fmt: skip
def test_greylisted_and_not_hard_is_deferred(event_type: str, hard: Any, deferred: bool) -> None:
    payload = {"error": "greylisted", "error_related_to": "domain", "hard_bounce": hard}

    assert (outcome_of(event_type, payload) == "deferred") is deferred


def test_a_greylisted_word_that_slid_is_deferred_too() -> None:
    assert outcome_of("bounce", {"error": "", "error_related_to": " Greylisted"}) == "deferred"


@pytest.mark.parametrize("event_type", ["sent", "open", "click", "spam", "unsub"])
def test_only_failures_are_deferred(event_type: str) -> None:
    assert outcome_of(event_type, {"error": "greylisted"}) == OUTCOMES[event_type]


@pytest.mark.parametrize(
    ("error", "related", "reason", "group"),
    [
        pytest.param("user unknown", "recipient", "user unknown", "recipient", id="as documented"),
        pytest.param("", "policy issue", "policy issue", "spam", id="the value slid (2023)"),
        pytest.param(None, "something new", "something new", None, id="an unknown value slid"),
        pytest.param("", "domain", None, "domain", id="a group alone is no value"),
        pytest.param("", " Spam ", None, " Spam ", id="nor however it is spelled"),
        pytest.param("user unknown", "", "user unknown", "recipient", id="the group from the table"),
        pytest.param("User Unknown ", None, "User Unknown ", "recipient", id="however it is spelled"),
        pytest.param("something new", "", "something new", None, id="unknown"),
        pytest.param("", "", None, None, id="empty"),
        pytest.param(None, None, None, None, id="null"),
        pytest.param(550, "recipient", "550", "recipient", id="a number"),
        pytest.param(True, ["x"], None, None, id="no text at all"),
    ],
)
def test_reason_and_group(error: Any, related: Any, reason: str | None, group: str | None) -> None:
    assert reason_of({"error": error, "error_related_to": related}) == (reason, group)


def test_missing_keys_are_like_empty_ones() -> None:
    assert reason_of({}) == (None, None)
    assert permanent_of("bounce", {}) is None
    assert permanent_of("blocked", {}) is None


@pytest.mark.parametrize(
    ("error", "lasting"),
    [("user unknown", True), ("mailbox inactive", True), ("quota exceeded", False), ("blacklisted", True),
     ("spam reporter", True), ("invalid domain", True), ("no mail host", None), ("relay/access denied", None),
     ("greylisted", False), ("typofix", True), ("bad or empty template", None), ("error in template language", None),
     ("sender blocked", None), ("content blocked", None), ("policy issue", False), ("system issue", False),
     ("protocol issue", False), ("connection issue", False), ("preblocked", False), ("spam preblocked", False),
     ("duplicate in campaign", False), ("something new", None)],
)  # fmt: skip
def test_the_table_decides_whether_a_block_is_lasting(error: str, lasting: bool | None) -> None:
    assert permanent_of("blocked", {"error": error, "hard_bounce": True}) is lasting
    assert permanent_of("blocked", {"error": "", "error_related_to": error.upper()}) is lasting


@pytest.mark.parametrize(("hard", "lasting"), [(True, True), (False, False), ("", None), (None, None), ("x", None)])
def test_the_flag_decides_whether_a_bounce_is_lasting(hard: Any, lasting: bool | None) -> None:
    assert permanent_of("bounce", {"error": "user unknown", "hard_bounce": hard}) is lasting


@pytest.mark.parametrize("event_type", ["sent", "open", "click", "spam", "unsub", "other"])
def test_other_events_are_neither(event_type: str) -> None:
    assert permanent_of(event_type, {"error": "user unknown", "hard_bounce": True}) is None


@pytest.mark.parametrize(
    ("value", "text", "identity"),
    [("", None, None), (None, None, None), ("a", "a", "a"), (0, "0", None), ("0", "0", None), ("000", "000", None),
     (5, "5", "5"), (-5, "-5", "-5"), (2**64 + 1, "18446744073709551617", "18446744073709551617"),
     ("95420017985181303", "95420017985181303", "95420017985181303"), (True, None, None), (False, None, None),
     ([], None, None), ({}, None, None), (1.5, None, None), ("100", "100", "100")],
)  # fmt: skip
def test_texts_and_ids(value: Any, text: str | None, identity: str | None) -> None:
    assert as_text(value) == text
    assert as_id(value) == identity


@pytest.mark.parametrize(
    ("value", "found"),
    [(True, True), (False, False), (1, True), (0, False), (2, None), ("TRUE", True), ("false", False), ("0", False),
     ("", None), ("yes", None), (None, None), ([], None)],
)  # fmt: skip
def test_booleans(value: Any, found: bool | None) -> None:
    assert as_bool(value) is found


@pytest.mark.parametrize(
    ("given_", "normal"),
    [("A.b@Example.COM", "A.b@example.com"), ("nobody", "nobody"), ("a@b@C", "a@b@c"), ("@X", "@x"), ("", "")],
)
def test_addresses(given_: str, normal: str) -> None:
    assert normal_email(given_) == normal


@given(st.sampled_from(EVENT_TYPES) | st.text(), payloads)
def test_nothing_is_refused(event_type: str, payload: dict[str, Any]) -> None:
    reason, group = reason_of(payload)

    assert outcome_of(event_type, payload) in {*OUTCOMES.values(), "deferred", "unknown"}
    assert permanent_of(event_type, payload) in (True, False, None)
    assert reason is None or reason
    assert group is None or group


@given(st.text())
def test_normal_addresses_stay(text: str) -> None:
    assert normal_email(normal_email(text)) == normal_email(text)
