from __future__ import annotations

import json
from typing import Any
from unittest import mock

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import DeliveryNotFound
from app.views import (
    EVENT_COLUMNS,
    EVENT_ID,
    NAMED,
    VIEW_COLUMNS,
    attempt_view,
    clean,
    delivery_id,
    delivery_view,
    dump,
    event_view,
    parse_delivery_id,
    view_of_values,
)
from tests.delivery.support import event_tuple
from tests.factories import NOON, event_values

odd = st.text(st.characters())  # lone surrogates and NUL among them
names = st.from_regex(r"[a-z0-9_]{1,63}", fullmatch=True)


def view(raw: str | None, **given_: Any) -> dict[str, Any]:
    return event_view(event_values(**given_) | {"raw": raw}, include_raw=True)


@given(odd)
def test_clean_text_fits_everywhere_and_good_text_stays(text: str) -> None:
    cleaned = clean(text)

    assert cleaned is not None
    assert "\0" not in cleaned
    assert orjson.loads(orjson.dumps(cleaned)) == cleaned
    assert clean(cleaned) == cleaned
    if "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text):
        assert cleaned == text


values = st.none() | st.booleans() | st.integers() | st.integers(2**62, 2**70) | st.floats(allow_nan=False) | odd


@given(st.dictionaries(odd | st.sampled_from(["Payload", "event"]), values | st.lists(values)), st.booleans())
def test_a_flat_event_is_shown_alike_quickly_and_carefully(payload: dict[str, Any], ascii_only: bool) -> None:
    row = event_values() | {"raw": json.dumps(payload, ensure_ascii=ascii_only)}

    quick = dump(event_view(row, include_raw=False))
    with mock.patch("app.views.decode_quickly", return_value=None):
        careful = dump(event_view(row, include_raw=False))

    assert quick == careful


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [(None, None), ("", ""), ("a\0b", "a\ufffdb"), ("\ud800", "\ufffd"), ("a\udc00b", "a\ufffdb"), ("😀", "😀"),
     ("\ud83d\ude00", "😀")],
)  # fmt: skip
def test_what_cannot_be_carried_becomes_a_replacement(text: str | None, cleaned: str | None) -> None:
    assert clean(text) == cleaned


def test_details_are_all_keys_without_a_field_of_their_own() -> None:
    payload = dict.fromkeys(NAMED, "x") | {"comment": "550", "blocked": False, "new": {"a": [1]}}

    assert view(json.dumps(payload))["details"] == {"comment": "550", "blocked": False, "new": {"a": [1]}}


@pytest.mark.parametrize(
    ("given_", "shown"), [('"text"', "text"), ('""', None), ("null", None), ("5", "5"), ("{}", None), ("true", None)]
)
def test_the_payload_is_a_text_or_nothing(given_: str, shown: str | None) -> None:
    assert view(f'{{"Payload":{given_}}}')["payload"] == shown


@pytest.mark.parametrize("raw", [None, "not JSON", "[1]", "5"])
def test_an_event_whose_payload_is_gone_or_odd_is_shown_all_the_same(raw: str | None) -> None:
    shown = event_view(event_values() | {"raw": raw}, include_raw=False)

    assert (shown["payload"], shown["details"]) == (None, {})
    assert "raw" not in shown


def test_every_digit_survives() -> None:
    raw = '{"a":123456789012345678901234567890,"b":1e400,"c":[18446744073709551616,-9223372036854775809],"d":1.10}'

    text = dump(view(raw)).decode()

    assert f'"raw":{raw}' in text
    details = json.loads(text, parse_int=str, parse_float=str)["details"]
    assert details == {
        "a": "123456789012345678901234567890", "b": "1e400", "c": ["18446744073709551616", "-9223372036854775809"],
        "d": "1.10",
    }  # fmt: skip


@given(st.dictionaries(odd, odd | st.integers() | st.lists(odd, max_size=2), max_size=5))
def test_any_payload_can_be_written(payload: dict[str, Any]) -> None:
    raw = json.dumps(payload)

    assert json.loads(dump(view(raw)))["raw"] == json.loads(raw)


def test_values_in_the_order_of_the_columns_are_the_same_view() -> None:
    values = event_values()

    assert dump(view_of_values(event_tuple(**values))) == dump(event_view(values, include_raw=True))
    assert set(VIEW_COLUMNS) | {"email_domain"} == set(EVENT_COLUMNS)


def test_dump_knows_what_it_does_not_know() -> None:
    with pytest.raises(TypeError):
        dump({"x": object()})


@given(names)
def test_a_delivery_id_names_both_parts(sink: str) -> None:
    assert parse_delivery_id(delivery_id(EVENT_ID, sink)) == (EVENT_ID, sink)


@pytest.mark.parametrize(
    "text",
    ["", ".", "crm", EVENT_ID, f"{EVENT_ID}.", f".{EVENT_ID}", f"{EVENT_ID}.CRM", f"{EVENT_ID}.crm\n",
     f"{EVENT_ID}.a.b", f"{EVENT_ID.upper()}.crm", f"{EVENT_ID}.{'a' * 64}", f"{EVENT_ID}.crm\0", f"{EVENT_ID}.é"],
)  # fmt: skip
def test_other_texts_name_no_delivery(text: str) -> None:
    with pytest.raises(DeliveryNotFound):
        parse_delivery_id(text)


@given(st.text())
def test_any_text_is_an_id_or_not_found(text: str) -> None:
    try:
        event, sink = parse_delivery_id(text)
    except DeliveryNotFound:
        return
    assert delivery_id(event, sink) == text


@pytest.mark.parametrize("state", ["pending", "delivered", "dead", "cancelled"])
def test_only_a_pending_delivery_has_a_next_attempt(state: str) -> None:
    row = {
        "event_id": EVENT_ID, "sink": "crm", "webhook": "orders", "type": "open", "state": state, "attempt_count": 1,
        "next_attempt_at": NOON, "last_status": 500, "last_error": "x", "created_at": NOON,
        "settled_at": None if state == "pending" else NOON,
    }  # fmt: skip

    shown = delivery_view(row)

    assert shown["id"] == f"{EVENT_ID}.crm"
    assert (shown["next_attempt_at"] is not None) == (state == "pending")
    assert (shown["settled_at"] is None) == (state == "pending")
    assert "attempts" not in shown
    assert delivery_view(row, [])["attempts"] == []


def test_an_attempt_as_it_is_shown() -> None:
    row = {
        "event_id": EVENT_ID, "sink": "crm", "number": 2, "at": NOON, "status": None, "outcome": "dns", "error": "x",
        "duration_ms": 1.5, "response_excerpt": None, "replay": 1,
    }  # fmt: skip

    assert attempt_view(row) == {
        "number": 2, "at": "2026-05-03T12:00:00Z", "status": None, "outcome": "dns", "error": "x", "duration_ms": 1.5,
        "response_excerpt": None, "replay": True,
    }  # fmt: skip
