"""Random mail of few addresses, as a strategy and as rows: all types, few times, copies at two webhooks."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from app.ingest.identity import event_id
from app.ingest.rows import event_row
from app.mailjet.payloads import MailjetEvent
from app.views import dump

START = 1_777_000_000
DAY = 86_400
EMAILS = ("a@example.com", "B@example.com", "c@Example.org")
KINDS: tuple[dict[str, Any], ...] = (
    {"event": "sent"},
    {"event": "open"},
    {"event": "spam", "source": "JMRPP"},
    {"event": "unsub", "mj_list_id": 0},
    {"event": "unsub", "mj_list_id": 17},
    {"event": "unsub", "mj_list_id": 18},
    {"event": "bounce", "hard_bounce": True, "error": "user unknown"},
    {"event": "bounce", "hard_bounce": False, "error": "quota exceeded"},
    {"event": "bounce", "hard_bounce": False, "error": "mailbox inactive"},
    {"event": "bounce", "hard_bounce": False, "error": "greylisted"},
    {"event": "blocked", "error": "user unknown"},
    {"event": "blocked", "error": "spam reporter"},
    {"event": "blocked", "error": "preblocked"},
    {"event": "blocked", "error": "sender blocked"},
)


def payload(kind: dict[str, Any], email: str, time: int, message: int = 1) -> dict[str, Any]:
    return {**kind, "email": email, "time": time, "MessageID": message}


def row_of(told: dict[str, Any], webhook: str = "orders", connection: str = "default") -> tuple[Any, ...]:
    """As ingest stores it."""
    event = MailjetEvent(told["event"], told["time"], told, dump(told).decode())
    identity = event_id(webhook, event.time, told)
    return event_row(identity, event, webhook=webhook, connection=connection, received_micros=told["time"] * 10**6)


payloads = st.builds(
    payload,
    st.sampled_from(KINDS),
    st.sampled_from(EMAILS),
    st.integers(0, 60).map(lambda n: START + n * DAY // 8),
    st.integers(1, 3),
)
rows = st.builds(row_of, payloads, st.sampled_from(["orders", "archive"]))
