from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.delivery.envelope import body_of
from app.dispatch.service import Job
from app.ingest.rows import event_row
from app.mailjet.payloads import MailjetEvent, parse_events
from app.views import event_view
from tests.delivery.support import make_job
from tests.factories import event_values

# What no writer of JSON would give back as it was: spaces, order, digits, escapes, a repeated key.
AWKWARD = (
    '{"event":"bounce" ,\t"time": 1777802400,"MessageID":19421777835146490, "b":1e400, "a":-0.0,'
    '"n":123456789012345678901234567890,"s":"\\ud800 \\u0000 é \\/","d":1,"d":2}'
)
CONTEXT_ATTRIBUTES = {"specversion", "id", "source", "type", "time", "datacontenttype", "subject", "data"}


def job_of(raw: str) -> Job:
    """As the receiving side would hand it over."""
    (element,) = parse_events(raw.encode())
    assert isinstance(element, MailjetEvent)
    row = event_row("019ded47-d100-8c4e-9a51-3f9c2b7d1e60", element, webhook="orders", connection="default",
                    received_micros=1_777_802_401_123_456)  # fmt: skip
    return Job(row[0], "crm", "orders", row[3], row)


@pytest.mark.parametrize("raw", [AWKWARD, '{"event":"open","time":0}', '{"event":"\\ud800","time":"7"}'])
def test_mailjet_is_the_text_byte_for_byte(raw: str) -> None:
    assert body_of(job_of(raw), "mailjet") == (raw.encode(), "application/json")


def test_jethook_is_the_event_as_rest_shows_it_with_its_raw() -> None:
    values = event_values()
    job = make_job(**values)

    body, content_type = body_of(job, "jethook")

    assert content_type == "application/json"
    shown = event_view(values, include_raw=True) | {"raw": None}
    assert json.loads(body) | {"raw": None} == shown
    assert json.loads(body)["raw"] == json.loads(values["raw"])


def test_jethook_loses_no_digit_and_is_valid_json() -> None:
    body, _ = body_of(job_of(AWKWARD), "jethook")

    text = body.decode()
    assert AWKWARD in text  # spliced in as it is
    seen = json.loads(text, parse_float=str)
    assert seen["message_id"] == "19421777835146490"
    assert seen["details"]["n"] == 123456789012345678901234567890
    assert seen["details"]["b"] == "1e400"
    assert seen["details"]["s"] == "\ufffd \ufffd é /"


def test_cloudevents_has_the_attributes_the_spec_requires() -> None:
    job = make_job(type="click", message_id="19421777835146490")

    body, content_type = body_of(job, "cloudevents")
    event = json.loads(body)

    assert content_type == "application/cloudevents+json"
    assert set(event) == CONTEXT_ATTRIBUTES
    assert event["specversion"] == "1.0"
    assert event["id"] == job.event_id
    assert event["source"] == "/webhooks/orders"
    assert event["type"] == "com.mailjet.email.click"
    assert event["subject"] == "19421777835146490"
    assert event["time"] == event["data"]["occurred_at"]
    assert event["data"] == json.loads(body_of(job, "jethook")[0])


def test_cloudevents_leaves_out_a_subject_that_is_not_there() -> None:
    event = json.loads(body_of(job_of('{"event":"open","time":5}'), "cloudevents")[0])

    assert "subject" not in event  # null is no value of an attribute
    assert event["time"] == "1970-01-01T00:00:05Z"


@pytest.mark.parametrize(
    ("raw", "subject"),
    [
        ('{"event":"jethook.sink.opened","time":5,"sink":"crm"}', "crm"),
        ('{"event":"jethook.registration.failed","time":5,"webhook":"orders"}', "orders"),
    ],
)
def test_cloudevents_of_operator_events_do_not_speak_of_mail(raw: str, subject: str) -> None:
    job = make_job(raw, webhook="jethook", type=json.loads(raw)["event"], message_id=None)

    event = json.loads(body_of(job, "cloudevents")[0])

    assert (event["type"], event["source"], event["subject"]) == (json.loads(raw)["event"], "/jethook", subject)
    assert body_of(job, "mailjet")[0] == raw.encode()


@pytest.mark.parametrize("event_type", ["open\n", "a\x7fb", "a\x85b", "a\ufdd0b", "a\ufffeb", "\U0001ffffx"])
def test_cloudevents_attributes_hold_only_characters_the_spec_allows(event_type: str) -> None:
    raw = json.dumps({"event": event_type, "time": 5, "MessageID": event_type})

    event = json.loads(body_of(job_of(raw), "cloudevents")[0])

    for name in ("type", "subject"):
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xFDD0 <= ord(c) <= 0xFDEF or ord(c) & 0xFFFE == 0xFFFE
                       for c in event[name])  # fmt: skip


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)
odd_texts = st.text(st.characters(), min_size=1)  # lone surrogates, controls and NUL among them


@given(odd_texts, st.dictionaries(odd_texts, scalars | st.lists(scalars, max_size=3), max_size=6),
       st.sampled_from(["mailjet", "jethook", "cloudevents"]))  # fmt: skip
def test_any_event_becomes_a_body_that_every_reader_takes(event_type: str, more: dict[str, Any], envelope: Any) -> None:
    raw = json.dumps({**more, "event": event_type, "time": 1_777_802_400}, allow_nan=False)

    body, _ = body_of(job_of(raw), envelope)

    seen = json.loads(body.decode("utf-8"))
    data = seen.get("data", seen)
    if envelope == "mailjet":
        assert body == raw.encode()
    else:
        assert data["raw"] == json.loads(raw)
        json.dumps(data | {"raw": None}, ensure_ascii=False).encode("utf-8")  # no lone surrogate outside of raw
