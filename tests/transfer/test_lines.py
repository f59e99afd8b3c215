"""One line of an export and back: pure."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.clock import from_micros
from app.ingest.identity import event_id
from app.ingest.rows import event_row
from app.mailjet.payloads import MailjetEvent, MalformedPayload, parse_events, parse_members
from app.query.exporting import ndjson_line
from app.transfer.lines import BadLine, parse_line
from app.views import EVENT_COLUMNS

RECEIVED = 1_777_802_401_123_456


def row_of(raw: str, webhook: str = "orders") -> tuple[Any, ...]:
    """As ingest stores it."""
    (event,) = parse_events(raw.encode("utf-8", "surrogatepass"))
    assert isinstance(event, MailjetEvent)
    identity = event_id(webhook, event.time, event.payload)
    return event_row(identity, event, webhook=webhook, connection="default", received_micros=RECEIVED)


def line_of(row: tuple[Any, ...]) -> bytes:
    """As an export tells it."""
    values = dict(zip(EVENT_COLUMNS, row, strict=True))
    return ndjson_line(values | {name: from_micros(values[name]) for name in ("occurred_at", "received_at")})


TEXT = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NAMES = TEXT | st.sampled_from(["email", "MessageID", "hard_bounce", "error", "CustomID", "mj_message_id", "Payload"])


@given(
    payload=st.dictionaries(NAMES, VALUES, max_size=6),
    kind=st.sampled_from(["open", "bounce", "surprise"]),
    time=st.integers(0, 4_102_444_800),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_a_line_becomes_the_row_it_came_from(payload, kind, time, ascii_only, indent):
    raw = json.dumps({**payload, "event": kind, "time": time}, ensure_ascii=ascii_only, indent=indent)
    row = row_of(raw)

    line = line_of(row)

    assert line.count(b"\n") == 1
    assert parse_line(line) == (*row[:-1], raw.replace("\n", " "))


@pytest.mark.parametrize(
    "raw",
    [
        '{"event":"open","time":1777802400,"z":1.10,"a":123456789012345678901234567890,"b":1E5}',
        '{"event":"open","time":1777802400,"u":"\\ud800\\u0000","é":"\\u00e9"}',
        '{"event":"open","time":"1777802400","time":1777802401,"raw":{"id":1}}',
        '{"event":"open",\r\n\t"time":1777802400}',
    ],
)
def test_every_digit_and_escape_survives(raw):
    assert parse_line(line_of(row_of(raw)))[-1] == raw.replace("\r", " ").replace("\n", " ")


RAW = '{"event":"open","time":1777802400,"email":"a@example.com"}'
LINE: dict[str, Any] = {
    "id": row_of(RAW)[0],
    "webhook": "orders",
    "connection": "default",
    "received_at": "2026-05-03T10:00:01Z",
    "raw": json.loads(RAW),
}


def test_only_what_the_content_does_not_tell_is_taken_from_the_line():
    told = LINE | {"type": "bounce", "email": "x@example.com", "outcome": "bounced", "permanent": True, "new": [1]}

    row = dict(zip(EVENT_COLUMNS, parse_line(json.dumps(told).encode()), strict=True))

    assert (row["type"], row["email"], row["outcome"], row["permanent"]) == ("open", "a@example.com", "opened", None)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        pytest.param(b"\xff", "not UTF-8", id="bytes"),
        pytest.param(b"[]", "not a whole JSON object", id="an array"),
        pytest.param(json.dumps(LINE).encode()[:-9], "not a whole JSON object", id="cut off"),
        pytest.param(json.dumps(LINE).encode() + b" x", "not a whole JSON object", id="something follows"),
        pytest.param(LINE | {"id": "019ded47-d100-8c4e-9a51-3f9c2b7d1e60"}, "id does not fit", id="another id"),
        pytest.param(LINE | {"id": None}, "id does not fit", id="no id"),
        pytest.param(LINE | {"webhook": "news"}, "id does not fit", id="another webhook"),
        pytest.param(LINE | {"raw": {**LINE["raw"], "email": "b@example.com"}}, "id does not fit", id="edited"),
        pytest.param(LINE | {"webhook": "A b"}, "`webhook`", id="no name"),
        pytest.param(LINE | {"connection": 5}, "`connection`", id="no connection"),
        pytest.param(LINE | {"received_at": "yesterday"}, "`received_at`", id="no time"),
        pytest.param(LINE | {"raw": None}, "`raw`", id="nothing of Mailjet's"),
        pytest.param(LINE | {"raw": {"event": "open"}}, "`raw` is no event: `time` is missing", id="no event"),
        pytest.param({}, "`webhook`", id="nothing"),
    ],
)
def test_a_line_that_does_not_fit_says_why(line, says):
    with pytest.raises(BadLine, match=says):
        parse_line(line if isinstance(line, bytes) else json.dumps(line).encode())


@given(value=st.dictionaries(TEXT, VALUES, max_size=5), indent=st.sampled_from([None, 2]))
def test_members_are_told_with_their_text(value, indent):
    members = parse_members(json.dumps(value, indent=indent))

    assert {name: json.loads(text) for name, (_, text) in members.items()} == value


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a"}', '{"a":}', '{"a":1,}', '{"a":1', '{"a":1}}', "{1:2}", "{,}"])
def test_what_is_no_object_has_no_members(text):
    with pytest.raises(MalformedPayload):
        parse_members(text)
