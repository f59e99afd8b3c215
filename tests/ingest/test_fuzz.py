"""Whatever bytes come with valid credentials: 200, counts that add up, and a repeat that changes nothing."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.ingest.conftest import PASSWORD, Receiver

BOUNDED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
# Words of Mailjet's, in places where they do not belong.
KEYS = st.sampled_from(
    ["event", "time", "MessageID", "email", "error", "error_related_to", "hard_bounce", "mj_campaign_id", "Payload",
     "customcampaign", "mj_list_id", "mj_message_id", "Message_GUID", "CustomID", "x"]
)  # fmt: skip
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(
        ["bounce", "blocked", "greylisted", "policy issue", "", "0", "true", "\ud800", "\0", 1777802400, 2**64, -1]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=6),
    max_leaves=20,
)  # fmt: skip
JSON_BODIES = (VALUES | st.lists(st.dictionaries(KEYS, VALUES, max_size=10), max_size=5)).map(
    lambda value: json.dumps(value).encode()
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A JSON body with a few bytes cut out, put in or turned over."""
    body = bytearray(draw(JSON_BODIES))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        put_in = draw(st.binary(max_size=3) | st.sampled_from([b'"', b"{", b"]", b","]))
        body[at : at + draw(st.integers(0, 3))] = put_in
    return bytes(body)


@BOUNDED
@given(st.binary(max_size=200) | JSON_BODIES | damaged())
@example(b"[" * 5000)
@example(b'[{"event":"open","time":1,"x":' + b"[" * 70 + b"]" * 70 + b"}]")
def test_any_body_with_valid_credentials_is_answered_200(sqlite_receiver: Receiver, body: bytes) -> None:
    received, _, _, quarantined = sqlite_receiver.counts(body)
    sqlite_receiver.news()

    assert sqlite_receiver.counts(body) == (received, 0, received - quarantined, quarantined)
    assert sqlite_receiver.news().nothing


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.text(max_size=30), user=st.text(max_size=10), password=st.text(max_size=20), body=st.binary(max_size=50))
def test_strangers_get_401_whatever_they_ask(
    sqlite_receiver: Receiver, path: str, user: str, password: str, body: bytes
) -> None:
    if (user, password) == ("jethook", PASSWORD):
        return
    name = quote(path.encode("utf-8", "replace"), safe="").replace(".", "%2E") or "x"
    credentials = (user.encode("utf-8", "replace").replace(b":", b"_"), password.encode("utf-8", "replace"))
    response = sqlite_receiver.post(body, name, auth=credentials)
    # A name with a slash in it is no webhook's address at all.
    assert response.status_code in ((401, 404) if "/" in path or path in (".", "..") else (401,))
    assert response.headers["content-type"] == "application/problem+json"
