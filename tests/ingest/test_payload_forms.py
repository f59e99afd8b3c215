"""Every form in which Mailjet's events have been seen, and forms nobody should send: each is answered 200 and kept.

`tests/payloads` holds bodies as they come; forms that are no text worth a file are made here. Sources: mailjet.md 1.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from app.simulator.traffic import EVENT_TYPES
from app.simulator.trials import make_test_event
from tests.ingest.conftest import Receiver
from tests.ingest.exact import Object, elements, exact, write

PAYLOADS = Path(__file__).parents[1] / "payloads"
# File -> how many of its elements (received, stored, duplicates, quarantined) the first post.
SPECIAL = {
    "empty_array": (0, 0, 0, 0),
    "bounce_missing_comma": (1, 0, 0, 1),
    "mixed_good_and_bad": (11, 3, 0, 8),
    "twice_in_one_body": (3, 2, 1, 0),
}
FILES = sorted(path.stem for path in PAYLOADS.glob("*.json"))


def payload(name: str) -> bytes:
    return (PAYLOADS / f"{name}.json").read_bytes()


def is_event(element: Any) -> bool:
    """Written out for the files at hand: an object with a text in `event` and a `time`."""
    if not isinstance(element, Object) or not {"event", "time"} <= set(element.keys):
        return False
    return isinstance(element["event"], str) and element["event"] != ""


# --- what comes as an event ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_form_is_stored_as_it_came_and_only_once(receiver: Receiver, name: str) -> None:
    body = payload(name)
    number = len(elements(body)) if name not in SPECIAL else SPECIAL[name][0]

    assert receiver.counts(body) == SPECIAL.get(name, (number, number, 0, 0))

    stored = receiver.news()
    if name == "bounce_missing_comma":
        assert [row["body"] for row in stored.quarantined] == [body]
        assert (stored.events, stored.deliveries) == ([], [])
    else:
        sent = [element for element in elements(body) if is_event(element)]
        kept = [exact(row["raw"]) for row in stored.events]
        assert len(set(map(str, kept))) == len(kept) == SPECIAL.get(name, (0, number))[1]
        assert all(value in sent for value in kept)
        for row in stored.events:  # and REST shows the same value
            assert exact(receiver.get(f"/v1/events/{row['id']}").content)["raw"] == exact(row["raw"])
        assert {d["event_id"] for d in stored.deliveries} == {e["id"] for e in stored.events if not e["test"]}

    # The same bytes again, as Mailjet repeats them.
    received, _, _, quarantined = SPECIAL.get(name, (number, number, 0, 0))
    assert receiver.counts(body) == (received, 0, received - quarantined, quarantined)
    assert receiver.news().nothing


@pytest.mark.parametrize("name", [name for name in FILES if name != "bounce_missing_comma"])
def test_a_form_posted_again_in_other_words_is_a_duplicate(receiver: Receiver, name: str) -> None:
    """Each alone, all the other way round, keys in another order, texts escaped otherwise."""
    receiver.post(payload(name))
    receiver.news()
    events = [element for element in elements(payload(name)) if is_event(element)]
    rng = random.Random(name)

    for event in events:
        assert receiver.counts(write(event)) == (1, 0, 1, 0)
    for _ in range(5):
        other = list(events)
        rng.shuffle(other)
        assert receiver.counts(write(other, rng)) == (len(events), 0, len(events), 0)
    assert receiver.news().nothing


@pytest.mark.parametrize("year", [2018, 2022, 2025])
@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_the_test_button_of_mailjet_works_and_bothers_no_sink(receiver: Receiver, kind: str, year: Any) -> None:
    body = json.dumps(make_test_event(kind, year, at=year))

    for text in (body, f"[{body}]"):
        assert receiver.post(text).status_code == 200

    stored = receiver.news()
    assert [(row["type"], row["test"], row["message_id"], row["email"]) for row in stored.events] == [
        (kind, True, None, None)
    ]
    assert stored.deliveries == []


@pytest.mark.parametrize(
    ("time", "fits"),
    [
        ("0", True),
        ('"12"', True),
        ('"0"', True),
        ("4102444800", True),
        ('"00000000000000000012"', True),
        ("4102444801", False),
        ('"4102444801"', False),
        ("-1", False),
        ('"-1"', False),
        ("1.5", False),
        ('"12.5"', False),
        ("true", False),
        ('""', False),
        ('" 12"', False),
        ('"12\\n"', False),
        ('"١٢"', False),
        ("null", False),
        ("[12]", False),
        ("{}", False),
        ("1" * 30, False),
        ("1" * 5000, False),
    ],
)
def test_time_is_a_whole_number_of_seconds_up_to_2100(receiver: Receiver, time: str, fits: bool) -> None:
    body = f'{{"event":"open","time":{time},"MessageID":4711}}'

    assert receiver.counts(body) == (1, fits, 0, not fits)

    stored = receiver.news()
    assert [row["raw"] for row in stored.events] == [body] * fits
    assert [row["body"].decode() for row in stored.quarantined] == [body] * (not fits)
    assert all("`time`" in row["reason"] for row in stored.quarantined)


@pytest.mark.parametrize("event", ["null", "5", "true", '""', "[]", "{}"])
def test_an_event_type_that_is_no_text_goes_to_quarantine(receiver: Receiver, event: str) -> None:
    body = f'{{"event":{event},"time":5}}'
    assert receiver.counts(f"[{body}]") == (1, 0, 0, 1)
    assert [row["body"].decode() for row in receiver.news().quarantined] == [body]


def test_only_the_bad_elements_of_a_body_go_to_quarantine_each_with_its_reason(receiver: Receiver) -> None:
    good, marker = '{"event":"open","time":1777900000}', '"n":"only the bad ones"'
    objects = [f"{{{marker}}}", f'{{"event":"x",{marker}}}', f'{{"event":1,"time":1,{marker}}}']
    bad = ["1", '"text"', "null", "[]", *objects]

    assert receiver.counts(f"[{good},{','.join(bad)}]") == (8, 1, 0, 7)

    stored = receiver.news()
    assert [row["raw"] for row in stored.events] == [good]
    # `1`, "text", null and [] may be known from another body of this module.
    assert {row["body"].decode(): row["reason"] for row in stored.quarantined if marker in row["body"].decode()} == {
        objects[0]: "`event` is missing",
        objects[1]: "`time` is missing",
        objects[2]: "`event` is missing or not a text",
    }


# --- what is no JSON, or more of it than anybody reads ---------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b" \n", id="white space"),
        pytest.param(b"\xef\xbb\xbf", id="a byte order mark alone"),
        pytest.param(b'{"event":"open","time":1', id="cut off"),
        pytest.param(b'{"event":"open","time":1}{"event":"open","time":2}', id="two values"),
        pytest.param(b'[{"event":"open","time":1},]', id="a comma too many"),
        pytest.param(b"{'event':'open','time':1}", id="single quotes"),
        pytest.param(b'{"event":"open","time":1,"x":NaN}', id="NaN"),
        pytest.param(b'{"event":"open","time":1,"x":Infinity}', id="Infinity"),
        pytest.param(b'[{"event":"open","time":-Infinity}]', id="-Infinity"),
        pytest.param(b"NaN", id="NaN alone"),
        pytest.param(b'{"event":"open","time":01}', id="a leading zero"),
        pytest.param(b'{"event":"o\npen","time":1}', id="a line break in a text"),
        pytest.param(b'{"event":"o\0pen","time":1}', id="NUL in a text"),
        pytest.param(b'{"event":"open","time":1}\0', id="NUL at the end"),
        pytest.param(b'"a text"', id="a text"),
        pytest.param(b"18", id="a number"),
        pytest.param(b"true", id="true"),
        pytest.param(b" null", id="null"),
        pytest.param(b"event=open&time=1", id="a form"),
        pytest.param('{"event":"open","time":1,"email":"é"}'.encode("latin-1"), id="Latin-1"),
        pytest.param('{"event":"open","time":1}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"event":"open","time":1,"x":"\xed\xa0\x80"}', id="a surrogate in bytes"),
        pytest.param(bytes(range(256)), id="all bytes"),
        pytest.param(b"[" * 100_000, id="very many brackets"),
        pytest.param(b'{"a":' * 100_000 + b"1", id="very many braces"),
        pytest.param(b'{"event":"open","time":1,"n":' + b"9" * 5000 + b",broken}", id="broken after a long number"),
        pytest.param(b'{"event":"open","time":1,"n":' + b"9" * 5000, id="cut off after a long number"),
        pytest.param(b'{"event":"open","time":1,"n":' + b"9" * 5000 + b',"m":NaN}', id="NaN after a long number"),
        pytest.param(b'[{"event":"open","time":1,"n":' + b"9" * 5000 + b',"m":}]', id="no value after a long number"),
    ],
)
def test_bytes_that_are_no_callback_are_kept_as_they_are_in_one_row(receiver: Receiver, body: bytes) -> None:
    assert receiver.counts(body) == (1, 0, 0, 1)
    (row,) = receiver.news().quarantined
    assert row["body"] == body
    assert receiver.get(f"/v1/quarantine/{row['id']}").json()["bytes"] == len(body)

    assert receiver.counts(body) == (1, 0, 0, 1)
    assert receiver.news().nothing


@pytest.mark.parametrize("levels", [65, 255, 2000, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_an_element_nested_deeper_than_we_read_goes_to_quarantine_and_its_neighbours_do_not(
    receiver: Receiver, levels: int, brackets: str
) -> None:
    inner = levels - 1  # the element itself is the first level
    deep = "[" * inner + "]" * inner if brackets == "[]" else '{"a":' * inner + "1" + "}" * inner
    element = f'{{"event":"open","time":1777900100,"x":{deep}}}'
    neighbours = [f'{{"event":"open","time":1777900100,"n":"{levels}{brackets}{n}"}}' for n in "ab"]

    assert receiver.counts(f"[{neighbours[0]}, {element} ,{neighbours[1]}]") == (3, 2, 0, 1)

    stored = receiver.news()
    assert [row["body"].decode() for row in stored.quarantined] == [element]
    assert {row["raw"] for row in stored.events} == set(neighbours)
    assert receiver.counts(element) == (1, 0, 0, 1)
    assert receiver.news().nothing


def test_an_element_nested_as_deep_as_we_read_is_stored_and_shown(receiver: Receiver) -> None:
    element = f'{{"event":"open","time":1777900200,"x":{"[" * 63}{"]" * 63}}}'

    assert receiver.counts(element) == (1, 1, 0, 0)

    (row,) = receiver.news().events
    assert exact(receiver.get(f"/v1/events/{row['id']}").content)["raw"] == exact(element)


@pytest.mark.parametrize("digits", [999, 1000, 4300, 4301, 20_000])
@pytest.mark.parametrize("form", ["{}", "-{}", "{}.5", "1e{}", '{{"n":{}}}', '[{},{{"x":[[]]}}]'])
def test_numbers_of_thousands_of_digits_are_kept_whole(receiver: Receiver, digits: int, form: str) -> None:
    value = form.format("7" * digits)
    element = f'{{"event":"open","time":1777900300,"MessageID":{value},"mj_campaign_id":5}}'

    assert receiver.counts(element) == (1, 1, 0, 0)
    (row,) = receiver.news().events
    assert row["raw"] == element
    assert exact(receiver.get(f"/v1/events/{row['id']}").content)["raw"] == exact(element)
    assert receiver.counts(write(exact(element), random.Random(1))) == (1, 0, 1, 0)


def test_a_long_number_beside_a_deep_nest_is_quarantined_with_the_rest_stored(receiver: Receiver) -> None:
    deep = "[" * 50_000 + "]" * 50_000
    element = f'{{"event":"open","time":1777900400,"n":{"7" * 5000},"x":{deep}}}'

    assert receiver.counts(f'[{element},{{"event":"open","time":1777900400}}]') == (2, 1, 0, 1)


def test_numbers_that_differ_in_a_digit_are_different_events(receiver: Receiver) -> None:
    numbers = ["1.1", "1.10", "1.100", "1", "1.0", "1e0", "-0", "0", "-0.0", "18446744073709551616",
               "18446744073709551617", "7" * 5000, "7" * 4999 + "8"]  # fmt: skip
    body = ",".join(f'{{"event":"open","time":1777900500,"n":{number}}}' for number in numbers)

    _, stored, _, _ = receiver.counts(f"[{body}]")

    # `-0` and `0` are one integer; nothing else here is the same.
    assert stored == len(numbers) - 1


def test_a_body_of_very_many_events_is_one_transaction(receiver: Receiver) -> None:
    body = "[" + ",".join(f'{{"event":"sent","time":1777901000,"MessageID":{n}}}' for n in range(5000)) + "]"

    assert receiver.counts(body) == (5000, 5000, 0, 0)
    assert receiver.counts(body) == (5000, 0, 5000, 0)


def test_long_values_are_kept_whole_and_do_not_break_an_index(receiver: Receiver) -> None:
    long = "é" * 20_000
    element = json.dumps({"event": long, "time": 1777901100, "email": f"{long}@{long}", "MessageID": long,
                          "CustomID": long, "Message_GUID": long, "mj_campaign_id": long})  # fmt: skip

    assert receiver.counts(element) == (1, 1, 0, 0)
    assert [row["raw"] for row in receiver.news().events] == [element]


# --- what it means ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v1_sent", {"type": "sent", "outcome": "delivered", "message_id": "19421777835146490", "campaign_id": "7257",
                     "contact_id": "4", "custom_id": "helloworld", "payload": None, "custom_campaign": None,
                     "occurred_at": "2015-06-03T12:19:09Z", "test": False, "permanent": None}),
        ("v1_open", {"outcome": "opened"}),
        ("v1_click", {"outcome": "clicked"}),
        ("v1_spam", {"outcome": "complained", "contact_id": None, "campaign_id": "1898"}),
        ("v1_blocked", {"outcome": "rejected", "reason": "preblocked", "reason_group": "mailjet", "permanent": False,
                        "campaign_id": None, "payload": '{"order": 17, "tags": ["a"]}'}),
        ("v1_unsub", {"outcome": "unsubscribed", "list_id": "10371052", "custom_campaign": "mj.nl=10203",
                      "payload": None}),
        ("v1_bounce_hard", {"outcome": "bounced", "permanent": True, "reason": "user unknown",
                            "reason_group": "recipient"}),
        ("bounce_greylisted_soft", {"outcome": "deferred", "permanent": False, "reason": "greylisted"}),
        ("bounce_greylisted_hard", {"outcome": "bounced", "permanent": True, "reason": "greylisted"}),
        ("bounce_value_slid_2023", {"outcome": "bounced", "reason": "policy issue", "permanent": False,
                                    "contact_id": "2847931267", "message_id": "104427216766056450"}),
        ("strings_for_numbers", {"type": "unsub", "occurred_at": "2026-05-03T10:01:50Z", "list_id": "10371052",
                                 "message_id": "19421777835146494", "custom_id": "17", "custom_campaign": "18"}),
        ("test_event_2022", {"type": "bounce", "test": True, "permanent": None, "reason": None, "reason_group": None,
                             "email": None, "message_id": None}),
        ("duplicate_keys", {"type": "click", "email": "second@example.com", "message_id": "4"}),
    ],
)  # fmt: skip
def test_a_form_is_understood(receiver: Receiver, name: str, expected: dict[str, Any]) -> None:
    receiver.post(payload(name))
    receiver.news()
    raw = exact(payload(name))
    ids = [row["id"] for row in receiver.all_events() if exact(row["raw"]) == raw]

    (shown,) = (receiver.get(f"/v1/events/{id}").json() for id in ids)
    assert {key: shown[key] for key in expected} == expected


def test_events_of_2015_are_known_by_their_other_message_id(receiver: Receiver) -> None:
    receiver.post(payload("grouped_2015_without_message_id"))

    for message_id, kind in (("19421777835146490", "sent"), ("20547674933128000", "unsub")):
        found = receiver.get(f"/v1/events?message_id={message_id}&type={kind}").json()["data"]
        assert message_id in {event["message_id"] for event in found}


def test_an_unknown_type_is_stored_with_the_outcome_unknown(receiver: Receiver) -> None:
    receiver.post(payload("unknown_type_and_fields"))

    (event,) = receiver.get("/v1/events?type=typofix").json()["data"]
    assert (event["outcome"], event["message_id"]) == ("unknown", "19421777835146495")
    assert event["details"]["nested"] == {"a": [1, {"b": None}], "": True}


def test_ids_beyond_2_to_the_64_keep_every_digit(receiver: Receiver) -> None:
    receiver.post(payload("large_ids"))

    for message_id in ("9007199254740993", "18446744073709551615", "18446744073709551617", "-9223372036854775809"):
        (event,) = receiver.get(f"/v1/events?message_id={message_id}").json()["data"]
        assert event["message_id"] == message_id


def test_what_no_database_takes_is_replaced_in_the_columns_and_kept_in_raw(receiver: Receiver) -> None:
    receiver.post(payload("nul_and_surrogates"))

    (event,) = receiver.get("/v1/events?custom_id=\ufffd&include=raw").json()["data"]
    assert (event["email"], event["custom_campaign"]) == ("a\ufffdb@example.com", "\ufffd")
    assert event["payload"] == "\ufffd\ufffd \U0001f600"
