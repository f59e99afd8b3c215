import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.clock import EARLIEST_MICROS, LATEST_MICROS
from app.errors import BadCursor
from app.query.cursor import Position, decode_cursor, encode_cursor, scope_of

SCOPE = scope_of("events", {"type": ["open"]}, "desc")
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=60)
positions = st.lists(texts | st.integers(EARLIEST_MICROS, LATEST_MICROS), max_size=3).map(tuple)


def kinds_of(position: Position) -> tuple[type[str] | type[int], ...]:
    return tuple(type(value) for value in position)


@given(positions)
def test_a_cursor_gives_back_its_position(position):
    cursor = encode_cursor(SCOPE, position)

    assert decode_cursor(cursor, SCOPE, kinds_of(position)) == position
    assert all(c.isalnum() or c in "-_" for c in cursor)


@given(
    st.text(max_size=200) | st.binary(max_size=80).map(lambda b: base64.urlsafe_b64encode(b"\1" + SCOPE + b).decode())
)
def test_nothing_else_is_taken_for_a_cursor(text):
    try:
        position = decode_cursor(text, SCOPE, (str,))
    except BadCursor:
        return
    assert decode_cursor(encode_cursor(SCOPE, position), SCOPE, (str,)) == position


@given(positions, st.data())
def test_a_changed_character_is_refused_or_still_a_position(position, data):
    cursor = encode_cursor(SCOPE, position)
    at = data.draw(st.integers(0, len(cursor) - 1))
    changed = cursor[:at] + data.draw(st.sampled_from("aZ0-_=.\0é")) + cursor[at + 1 :]

    try:
        decoded = decode_cursor(changed, SCOPE, kinds_of(position))
    except BadCursor:
        return
    assert kinds_of(decoded) == kinds_of(position)


@pytest.mark.parametrize(
    "other",
    [
        scope_of("deliveries", {"type": ["open"]}, "desc"),
        scope_of("events", {"type": ["open"]}, "asc"),
        scope_of("events", {"type": ["open", "click"]}, "desc"),
        scope_of("events", {}, "desc"),
        scope_of("events", {"webhook": ["open"]}, "desc"),
    ],
)
def test_a_cursor_of_another_walk_is_refused(other):
    with pytest.raises(BadCursor):
        decode_cursor(encode_cursor(other, ("x",)), SCOPE, (str,))


def test_the_order_of_filters_and_their_repetition_are_the_same_walk():
    one = scope_of("events", {"type": ["open", "click", "open"], "email": ["a@b"], "test": []}, "asc")
    other = scope_of("events", {"email": ["a@b"], "type": ["click", "open"]}, "asc")

    assert one == other


@pytest.mark.parametrize(
    ("position", "kinds"), [(("x",), (int,)), ((1,), (str,)), ((True,), (int,)), (("x", "y"), (str,)), ((), (str,))]
)
def test_a_position_of_another_shape_is_refused(position, kinds):
    with pytest.raises(BadCursor):
        decode_cursor(encode_cursor(SCOPE, position), SCOPE, kinds)


@pytest.mark.parametrize(
    "content",
    [
        b'["\\u0000"]',
        b"[18446744073709551615]",
        b"[9223372036854775807]",
        b"[-62135596800000001]",
        b'{"a":1}',
        b"[1.5]",
        b"[null]",
        b"[" * 500,
        b"",
        b"[",
    ],
)
def test_what_a_database_would_refuse_is_refused_before(content):
    cursor = base64.urlsafe_b64encode(b"\1" + SCOPE + content).decode()

    for kinds in ((str,), (int,)):
        with pytest.raises(BadCursor):
            decode_cursor(cursor, SCOPE, kinds)
