from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from app.delivery.signing import signature_header

NOW = int(datetime.now(UTC).timestamp())  # the standard's own package compares with the clock
OLD, NEW = b"o" * 24, b"n" * 64
ID = "019ded47-d100-8c4e-9a51-3f9c2b7d1e60"


def headers(body: bytes, *keys: bytes, timestamp: int = NOW) -> dict[str, str]:
    return {
        "webhook-id": ID,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature_header(keys, message_id=ID, timestamp=timestamp, body=body),
    }


def verify(key: bytes, body: bytes, given: dict[str, str]) -> object:
    return Webhook("whsec_" + base64.b64encode(key).decode()).verify(body, given)


def test_a_receiver_that_knows_only_the_old_or_only_the_new_secret_verifies() -> None:
    body = b'{"event": "open"}'
    signed = headers(body, OLD, NEW)

    assert verify(OLD, body, signed) == verify(NEW, body, signed) == {"event": "open"}
    assert len(signed["webhook-signature"].split(" ")) == 2


@pytest.mark.parametrize("change", ["body", "webhook-id", "webhook-timestamp", "key"])
def test_a_receiver_notices_any_change(change: str) -> None:
    body = b'{"event":"open"}'
    signed = headers(body, OLD)
    key = NEW if change == "key" else OLD
    if change in signed:
        signed[change] = str(NOW + 1) if change == "webhook-timestamp" else "other"

    with pytest.raises(WebhookVerificationError):
        verify(key, body + b" " if change == "body" else body, signed)


def test_without_keys_there_is_nothing() -> None:
    assert signature_header([], message_id=ID, timestamp=NOW, body=b"") == ""


@given(st.dictionaries(st.text(), st.text() | st.integers()), st.binary(min_size=24, max_size=64))
def test_any_body_and_any_key_verify(payload: dict[str, object], key: bytes) -> None:
    body = json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")

    assert verify(key, body, headers(body, key)) == json.loads(body)
