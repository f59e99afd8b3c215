from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mailjet.payloads import (
    LATEST_TIME,
    MAX_DEPTH,
    ExactNumber,
    MailjetEvent,
    MalformedPayload,
    Reject,
    decode,
    depth_of,
    parse_events,
)

PAYLOADS = Path(__file__).parents[1] / "payloads"
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
elements = st.dictionaries(st.text(), values, max_size=5).flatmap(
    lambda more: st.fixed_dictionaries({"event": st.text(min_size=1), "time": st.integers(0, LATEST_TIME)}).map(
        lambda needed: more | needed
    )
)
white = st.text(alphabet=" \t\r\n", max_size=3)


def one(body: str | bytes) -> MailjetEvent | Reject:
    (element,) = parse_events(body if isinstance(body, bytes) else body.encode())
    return element


def event(text: str) -> MailjetEvent:
    element = one(text)
    assert isinstance(element, MailjetEvent), element
    return element


def reason(body: str | bytes) -> str:
    element = one(body)
    assert isinstance(element, Reject), element
    assert element.body == (body if isinstance(body, bytes) else body.encode())
    return element.reason


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(PAYLOADS.glob("*.json")), ids=lambda file: file.stem)
def test_every_kept_payload_is_read_without_loss(file: Path) -> None:
    body = file.read_bytes()

    found = parse_events(body)

    for element in found:
        text = element.raw.encode() if isinstance(element, MailjetEvent) else element.body
        assert text in body
    if file.stem not in ("bounce_missing_comma", "mixed_good_and_bad", "odd_numbers"):
        assert all(isinstance(element, MailjetEvent) for element in found)
        whole = json.loads(body.decode("utf-8-sig"))
        assert [json.loads(e.raw) for e in found if isinstance(e, MailjetEvent)] == (
            whole if isinstance(whole, list) else [whole]
        )


def test_an_object_and_an_array_of_mixed_types() -> None:
    assert event('{"event":"open","time":5}').type == "open"
    found = parse_events(b'[{"event":"open","time":5},{"event":"click","time":"6"}]')
    assert [(e.type, e.time) for e in found if isinstance(e, MailjetEvent)] == [("open", 5), ("click", 6)]


@pytest.mark.parametrize("body", ["[]", " [ ] \n", "\ufeff[]"])
def test_an_empty_array_holds_nothing(body: str) -> None:
    assert parse_events(body.encode()) == []


@given(st.lists(elements, max_size=5), white, st.booleans())
def test_each_element_keeps_its_text_and_order(found: list[dict[str, Any]], space: str, ascii_only: bool) -> None:
    texts = [json.dumps(element, ensure_ascii=ascii_only) for element in found]
    body = f"{space}[{space}{f'{space},{space}'.join(texts)}{space}]{space}".encode("utf-8", "replace")

    parsed = parse_events(body)

    assert b"".join(e.raw.encode() for e in parsed if isinstance(e, MailjetEvent)) == "".join(texts).encode(
        "utf-8", "replace"
    )
    assert len(parsed) == len(texts)


@given(elements)
def test_what_was_kept_can_be_read_again(element: dict[str, Any]) -> None:
    kept = event(json.dumps(element))

    assert json.loads(kept.raw) == element
    assert decode(kept.raw).keys() == element.keys()
    assert (kept.type, kept.time) == (element["event"], element["time"])


# --- numbers and texts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["19421777835146490", "1152921509597813712", "18446744073709551616", "-7", "0"])
def test_integers_are_exact(number: str) -> None:
    assert event(f'{{"event":"x","time":1,"MessageID":{number}}}').payload["MessageID"] == int(number)


@pytest.mark.parametrize("number", ["1.0", "-0.0", "1e400", "1E-7", "0.1000000000000000055511151231"])
def test_other_numbers_keep_their_digits(number: str) -> None:
    value = event(f'{{"event":"x","time":1,"n":{number}}}').payload["n"]

    assert isinstance(value, ExactNumber)
    assert value.text == number


@pytest.mark.parametrize("digits", [999, 1000, 4300, 4301, 50_000])
def test_integers_of_any_length_are_kept(digits: int) -> None:
    number = "9" * digits
    kept = event(f'{{"event":"x","time":1,"n":{number},"m":[{number}]}}')

    for value in (kept.payload["n"], kept.payload["m"][0]):
        assert value.text == number if isinstance(value, ExactNumber) else value == int("9" * digits)
    assert number in kept.raw


def test_lone_surrogates_and_nul_survive_as_escapes() -> None:
    kept = event('{"event":"x","time":1,"s":"\\ud800\\u0000"}')

    assert kept.payload["s"] == "\ud800\0"
    assert kept.raw.isascii()


# --- what cannot be an event -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "told"),
    [
        ("5", "not an object"),
        ("null", "not an object"),
        ("[]", "not an object"),
        ("{}", "`event` is missing"),
        ('{"time":1}', "`event` is missing"),
        ('{"event":"","time":1}', "`event` is missing or not a text"),
        ('{"event":7,"time":1}', "`event` is missing or not a text"),
        ('{"event":null,"time":1}', "`event` is missing or not a text"),
        ('{"event":"x"}', "`time` is missing"),
        ('{"event":"x","time":null}', "`time` is not a whole number"),
        ('{"event":"x","time":true}', "`time` is not a whole number"),
        ('{"event":"x","time":1.0}', "`time` is not a whole number"),
        ('{"event":"x","time":-1}', "`time` is not a whole number"),
        ('{"event":"x","time":"-1"}', "`time` is not a whole number"),
        ('{"event":"x","time":" 1"}', "`time` is not a whole number"),
        ('{"event":"x","time":"１"}', "`time` is not a whole number"),
        ('{"event":"x","time":""}', "`time` is not a whole number"),
        (f'{{"event":"x","time":{LATEST_TIME + 1}}}', "`time` is not a whole number"),
        (f'{{"event":"x","time":{"9" * 5000}}}', "`time` is not a whole number"),
    ],
)
def test_a_faulty_element_is_rejected_alone_with_its_text(element: str, told: str) -> None:
    before, faulty, after = parse_events(f'[{{"event":"a","time":1}}, {element} ,{{"event":"b","time":2}}]'.encode())

    assert isinstance(faulty, Reject)
    assert faulty.body == element.encode()
    assert faulty.reason.startswith(told)
    assert [e.type for e in (before, after) if isinstance(e, MailjetEvent)] == ["a", "b"]


@pytest.mark.parametrize("time", ["0", str(LATEST_TIME), '"0"', '"00000000001777802400"'])
def test_times_that_are_taken(time: str) -> None:
    assert event(f'{{"event":"x","time":{time}}}').time == int(time.strip('"'))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "not JSON"),
        (b"   ", "not JSON"),
        (b"event=open", "not JSON"),
        (b"{", "not JSON"),
        (b'{"event":"open","time":1', "not JSON"),
        (b'{"event":"open","time":1}{"event":"open","time":2}', "not JSON: something follows"),
        (b'[{"event":"open","time":1}', "not JSON"),
        (b'[{"event":"open","time":1},]', "not JSON"),
        (b'[{"event":"open","time":1} {"event":"open","time":1}]', "not JSON"),
        (b'{"event":"open","time":NaN}', "not JSON: NaN"),
        (b'{"event":"open","time":1,"n":-Infinity}', "not JSON: -Infinity"),
        (b'{"event":"open","time":1,"s":"\n"}', "not JSON"),
        (b'{"event":"open","time":01}', "not JSON"),
        (b"5", "neither an object nor an array"),
        (b'"text"', "neither an object nor an array"),
        (b"null", "neither an object nor an array"),
        (b'{"event":"\xff","time":1}', "not UTF-8"),
        (b'{"event":"\xed\xa0\x80","time":1}', "not UTF-8"),
        ('{"event":"open","time":1}'.encode("utf-16"), "not UTF-8"),
        (b"\x1f\x8b\x08\x00", "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_body_that_cannot_be_read_is_one_reject_with_all_its_bytes(body: bytes, told: str) -> None:
    assert reason(body).startswith(told)


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:0123456789.eE+-tfn\\u ', max_size=60).map(str.encode))
def test_no_body_raises_and_none_is_lost(body: bytes) -> None:
    for element in parse_events(body):
        text = element.raw.encode() if isinstance(element, MailjetEvent) else element.body
        assert text in body


# --- depth -----------------------------------------------------------------------------------------------------------


def nested(depth: int) -> str:
    """An element that nests so deep, itself included."""
    return '{"event":"x","time":1,"d":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


def test_nesting_has_its_limit() -> None:
    assert event(nested(MAX_DEPTH)).type == "x"
    assert "nested deeper" in reason(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize("depth", [900, 5000, 100_000])
def test_an_element_too_deep_for_any_parser_is_rejected_alone(depth: int) -> None:
    deep = nested(depth)
    tricky = deep.replace('"x"', '"]}\\"]["')  # brackets in a text do not count

    found = parse_events(f'[{deep},{{"event":"b","time":2}},{tricky}]'.encode())

    assert [type(e) for e in found] == [Reject, MailjetEvent, Reject]
    assert [e.body for e in found if isinstance(e, Reject)] == [deep.encode(), tricky.encode()]


def test_a_huge_number_within_a_deep_element_is_no_fault_of_ours() -> None:
    deep = nested(5000)[:-1] + f',"n":{"9" * 5000}}}'

    assert "nested deeper" in reason(deep)


@pytest.mark.parametrize("letters", ["a" * 200_000, r"\n" * 100_000, r"\\" * 100_000, r"\"[" * 50_000])
def test_a_long_text_within_a_deep_element_takes_little_memory(letters: str) -> None:
    deep = f'{nested(2000)[:-1]},"t":"{letters}"}}'.encode()
    tracemalloc.start()
    try:
        (found,) = parse_events(deep)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert isinstance(found, Reject)
    assert found.body == deep
    assert most < 20 * len(deep)


@given(values)
def test_depth(value: Any) -> None:
    def measure(node: Any) -> int:
        if isinstance(node, dict):
            return 1 + max(map(measure, node.values()), default=0)
        return 1 + max(map(measure, node), default=0) if isinstance(node, list) else 0

    assert depth_of(value) == measure(value)


@pytest.mark.parametrize("text", ["", "{", "nope", "NaN"])
def test_decoding_what_is_no_json_says_so(text: str) -> None:
    with pytest.raises(MalformedPayload):
        decode(text)


flat = st.dictionaries(
    st.text(max_size=6) | st.sampled_from(["event", "time", "MessageID"]),
    st.none() | st.booleans() | st.integers() | st.integers(2**62, 2**66) | st.floats(allow_nan=False)
    | st.text(max_size=8) | st.lists(st.integers(), max_size=2),
    max_size=6,
)  # fmt: skip


@given(flat, st.booleans(), st.sampled_from(["", " ", "\n", "x"]))
def test_the_quick_way_reads_what_the_careful_way_reads(value: dict[str, Any], ascii_only: bool, tail: str) -> None:
    text = json.dumps({"event": "open", "time": 1433103519} | value, ensure_ascii=ascii_only) + tail

    quick = parse_events(text.encode("utf-8", "surrogatepass"))
    careful = parse_events(
        (" " + text).encode("utf-8", "surrogatepass")
    )  # a body that starts with a space is not quick

    assert len(quick) == len(careful) == 1
    if isinstance(quick[0], MailjetEvent):
        assert isinstance(careful[0], MailjetEvent)
        assert repr(_told(quick[0])) == repr(_told(careful[0]))
    else:
        assert isinstance(careful[0], Reject)


def _told(event: MailjetEvent) -> Any:
    numbers = {key: v.text if isinstance(v, ExactNumber) else v for key, v in event.payload.items()}
    return event.type, event.time, event.raw, list(numbers.items())


@pytest.mark.parametrize(
    "number", ["9223372036854775807", "18446744073709551615", "18446744073709551616", "-0", "1.0", "1e3"]
)
def test_numbers_at_the_edges_are_exact_on_both_ways(number: str) -> None:
    body = f'{{"event": "open", "time": 1, "MessageID": {number}}}'

    assert repr(_told(event(body))) == repr(_told(event(" " + body)))
