"""One event stays one event, however it is written, grouped and ordered; two events stay two. As properties."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.ingest.identity import event_id
from app.mailjet.payloads import MailjetEvent, Reject, parse_events
from tests.ingest.conftest import Receiver
from tests.ingest.exact import Number, Object, exact, write

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["\0", "\ud800", "\udfff", "a\ud83dz", "\U0001f600", "/", '"\\', "\u2028", "é", ""]
)
DIGITS = st.integers(-(10**25), 10**25).map(str) | st.sampled_from(
    ["0", "-0", "-0.0", "1.10", "1.1", "1e5", "1E+5", "1e400", "9007199254740993", "18446744073709551616", "7" * 4400]
)
SCALARS = TEXTS | DIGITS.map(Number) | st.booleans() | st.none()
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3).map(lambda d: Object(tuple(d.items())))
    ),
    max_leaves=6,
)


@st.composite
def events(draw: st.DrawFn) -> Object:
    """Any JSON object with an `event` and a `time`."""
    fields = draw(st.dictionaries(TEXTS | st.sampled_from(["MessageID", "email"]), VALUES, max_size=5))
    seconds = str(draw(st.integers(0, 4_102_444_800)))
    time: Any = draw(st.sampled_from([Number(seconds), seconds]))
    kind = draw(st.sampled_from(["open", "click", "bounce"]) | TEXTS.filter(bool))
    pairs = [*((k, v) for k, v in fields.items() if k not in ("event", "time")), ("event", kind), ("time", time)]
    return Object(tuple(draw(st.permutations(pairs))))


BOUNDED = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@BOUNDED
@given(sent=st.lists(events(), min_size=1, max_size=4), seed=st.integers(0, 2**32))
def test_whatever_is_posted_again_in_other_words_is_the_same_event(
    sqlite_receiver: Receiver, sent: list[Object], seed: int
) -> None:
    rng = random.Random(seed)
    sqlite_receiver.news()
    first = write(sent)
    _, stored, duplicates, _ = sqlite_receiver.counts(first)
    assert stored + duplicates == len(sent)
    rows = sqlite_receiver.news().events
    assert len(rows) == stored
    assert {str(exact(row["raw"])) for row in rows} <= {str(exact(write(event))) for event in sent}

    # In one body, in another order, twice over, and each alone.
    regrouped = [*sent, *sent]
    rng.shuffle(regrouped)
    for body in (first, write(sent, rng), write(regrouped, rng), *(write(event, rng) for event in sent)):
        received, stored, _, quarantined = sqlite_receiver.counts(body)
        assert (received > 0, stored, quarantined) == (True, 0, 0)
    assert sqlite_receiver.news().nothing


@BOUNDED
@given(event=events(), seed=st.integers(0, 2**32))
def test_an_id_depends_on_the_value_alone(event: Object, seed: int) -> None:
    (parsed,) = parse_events(write(event).encode("utf-8", "surrogatepass"))
    (other,) = parse_events(write([event], random.Random(seed)).encode())
    assert isinstance(parsed, MailjetEvent)
    assert isinstance(other, MailjetEvent)

    assert id_of(parsed) == id_of(other)
    assert id_of(parsed, "orders") != id_of(parsed, "shop")
    assert id_of(parsed)[14] == "8"  # the version of the UUID
    assert int(id_of(parsed).replace("-", "")[:12], 16) == parsed.time * 1000


@BOUNDED
@given(one=events(), other=events())
def test_different_events_have_different_ids(one: Object, other: Object) -> None:
    first, second = parse_one(write(one)), parse_one(write(other))
    if first.payload != second.payload and str(comparable(one)) != str(comparable(other)):
        assert id_of(first) != id_of(second)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5", '{"\\u0000number":"1.5"}'),
        ("1.5", '{"number":"1.5"}'),
        ('{"number":"1.5"}', '{"object":{"number":"1.5"}}'),
        ('["\\ud800",1.5]', '["\\ud800",{"\\u0000number":"1.5"}]'),
        ('["\\ud800",1.5]', '["\\ud800",{"number":"1.5"}]'),
        ('["\\ud800",{"object":1}]', '["\\ud800",{"object":{"object":1}}]'),
        ('"1"', "1"),
        ("1", "1.0"),
        ("1", "true"),
        ("0", "false"),
        ("null", '"null"'),
        ('"\\ud800"', '"\\\\ud800"'),
        ('"\\ud800"', '"\\ufffd"'),
        ('"\\u0000"', '""'),
        ("[]", "{}"),
        ('"e\\u0301"', '"\\u00e9"'),
    ],
)
def test_values_that_only_look_alike_are_different_events(one: str, other: str) -> None:
    made = [parse_one(f'{{"event":"open","time":5,"x":{value}}}') for value in (one, other)]
    assert id_of(made[0]) != id_of(made[1])


@pytest.mark.parametrize("webhook", ["orders", "shop"])
def test_ids_do_not_change_between_releases(webhook: str) -> None:
    """An id is what sinks know an event by, and what keeps repeats apart from news over an upgrade."""
    texts = ['{"event":"open","time":1433103519,"MessageID":19421777396190490}', '{"event":"a","time":1,"x":[1.10,{}]}']
    expected = {
        "orders": ["014daba0-4d18-8d30-872f-06c392ef73af", "00000000-03e8-8609-a353-94690e718761"],
        "shop": ["014daba0-4d18-8dd5-b4bc-038cd3450234", "00000000-03e8-87c1-99ba-a2635550db16"],
    }
    assert [id_of(parse_one(text), webhook) for text in texts] == expected[webhook]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | VALUES.map(write).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_parsing_never_raises_and_loses_no_byte_it_rejects(body: bytes) -> None:
    for part in parse_events(body):
        if isinstance(part, Reject):
            assert part.body in body
            assert part.reason


def parse_one(text: str) -> MailjetEvent:
    (parsed,) = parse_events(text.encode("utf-8", "surrogatepass"))
    assert isinstance(parsed, MailjetEvent), parsed
    return parsed


def id_of(event: MailjetEvent, webhook: str = "orders") -> str:
    return event_id(webhook, event.time, event.payload)


def comparable(value: Any) -> Any:
    """Equal for what is one value: the order of keys does not count, and an integer has one spelling."""
    match value:
        case Object():
            return sorted((key, comparable(item)) for key, item in dict(value.pairs).items())
        case list():
            return [comparable(item) for item in value]
        case Number() if value.text.lstrip("-").isdigit():
            return ("number", value.text.lstrip("-") if value.text.lstrip("-") == "0" else value.text)
        case Number():
            return ("number", value.text)
    return value
