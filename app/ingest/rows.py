"""One Mailjet event -> the row that keeps it. Pure.

Columns hold what can be searched for, cleaned and cut so that both databases and their indexes take them; the raw text
keeps everything as sent.
"""

from __future__ import annotations

from typing import Any

from app.mailjet.machines import judge
from app.mailjet.payloads import MailjetEvent
from app.mailjet.vocabulary import as_id, as_text, normal_email, outcome_of, permanent_of, reason_of
from app.views import MAX_COLUMN_CHARS, clean, short


def event_row(
    event_id: str, event: MailjetEvent, *, webhook: str, connection: str, received_micros: int
) -> tuple[Any, ...]:
    """A tuple in the order of `EVENT_COLUMNS`; times are microseconds since 1970."""
    payload = event.payload
    email = _column(payload.get("email"))
    email = normal_email(short(email)) if email else None
    reason, group = reason_of(payload)
    return (
        event_id,
        webhook,
        connection,
        short(_column(event.type) or event.type),
        outcome_of(event.type, payload),
        event.time * 1_000_000,
        received_micros,
        is_test(payload),
        email,
        email.rpartition("@")[2] if email and "@" in email else None,
        _id(payload.get("MessageID")) or _id(payload.get("mj_message_id")),
        _column(payload.get("Message_GUID")),
        _id(payload.get("mj_campaign_id")),
        _id(payload.get("mj_contact_id")),
        _id(payload.get("mj_list_id")),
        _column(payload.get("CustomID")),
        _column(payload.get("customcampaign")),
        permanent_of(event.type, payload),
        _column(reason),
        _column(group),
        *judge(event.type, payload),
        event.raw,
    )


def is_test(payload: dict[str, Any]) -> bool:
    """What the web interface's test button sends: `MessageID` 0 and no address. Either alone is a real event."""
    message_id = payload.get("MessageID")
    zero = message_id == "0" or (message_id == 0 and isinstance(message_id, int) and not isinstance(message_id, bool))
    return zero and payload.get("email") in ("", None)


def _column(value: Any) -> str | None:
    if type(value) is str and value.isascii() and "\0" not in value:  # nearly all that comes
        return value[:MAX_COLUMN_CHARS] or None
    text = as_text(value)
    if text is None:
        return None
    if not text.isascii() or "\0" in text:
        text = clean(text) or ""
    return text[:MAX_COLUMN_CHARS]


def _id(value: Any) -> str | None:
    if type(value) is int and 0 < value < 2**64:
        return str(value)
    text = as_id(value)
    return None if text is None else _column(text)
