"""What an event looks like from outside: one shape for REST, the feed and the `jethook` envelope.

Columns hold what can be asked for; `payload` and `details` are read from the raw text when somebody looks.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from app.clock import rfc3339, rfc3339_of_micros, to_micros
from app.errors import DeliveryNotFound
from app.mailjet.payloads import ExactNumber, MalformedPayload, decode, decode_quickly, is_plain
from app.mailjet.vocabulary import ORIGIN_KEY, as_text
from app.models import DeliveryState

# Keys of Mailjet's that have a field of their own; all others, known or not, are `details`.
NAMED = frozenset(
    {"event", "time", "MessageID", "mj_message_id", "Message_GUID", "email", "mj_campaign_id", "mj_contact_id",
     "mj_list_id", "customcampaign", "CustomID", "Payload", "hard_bounce", "error", "error_related_to", ORIGIN_KEY}
)  # fmt: skip

VIEW_COLUMNS = (
    "id", "webhook", "connection", "type", "outcome", "occurred_at", "received_at", "test", "email", "message_id",
    "message_guid", "campaign_id", "contact_id", "list_id", "custom_id", "custom_campaign", "permanent", "reason",
    "reason_group", "automated", "automated_rule", "raw",
)  # fmt: skip


# The order of an event's values wherever they travel as a tuple: into the table and over to the worker.
EVENT_COLUMNS = (
    "id", "webhook", "connection", "type", "outcome", "occurred_at", "received_at", "test", "email", "email_domain",
    "message_id", "message_guid", "campaign_id", "contact_id", "list_id", "custom_id", "custom_campaign", "permanent",
    "reason", "reason_group", "automated", "automated_rule", "raw",
)  # fmt: skip


def view_of_values(values: tuple[Any, ...]) -> dict[str, Any]:
    """`event_view` with raw, from values in the order of `EVENT_COLUMNS` (times in microseconds since 1970)."""
    return event_view(dict(zip(EVENT_COLUMNS, values, strict=True)), include_raw=True)


def event_view(row: Mapping[str, Any], *, include_raw: bool) -> dict[str, Any]:
    """The event of contract shape from a row with `VIEW_COLUMNS`, its times as `datetime` or in microseconds; dump it
    with `orjson.dumps(…, default=exact)`.

    `raw` is spliced in as the stored text, so every digit and the order of its keys survive.
    """
    raw_text: str | None = row["raw"]
    payload, details = _told_in(raw_text)
    view: dict[str, Any] = {
        "id": row["id"],
        "webhook": row["webhook"],
        "connection": row["connection"],
        "type": row["type"],
        "outcome": row["outcome"],
        "occurred_at": _time_text(row["occurred_at"]),
        "received_at": _time_text(row["received_at"]),
        "test": bool(row["test"]),
        "email": row["email"],
        "message_id": row["message_id"],
        "message_guid": row["message_guid"],
        "campaign_id": row["campaign_id"],
        "contact_id": row["contact_id"],
        "list_id": row["list_id"],
        "custom_id": row["custom_id"],
        "custom_campaign": row["custom_campaign"],
        "payload": as_text(payload.get("Payload")),
        "permanent": None if row["permanent"] is None else bool(row["permanent"]),
        "reason": row["reason"],
        "reason_group": row["reason_group"],
        "automated": None if row["automated"] is None else bool(row["automated"]),
        "automated_rule": row["automated_rule"],
        "origin": "backfill" if ORIGIN_KEY in payload else None,
        "details": details,
    }
    if raw_text is None:
        view["redacted"] = True  # retention took the payload and what is personal
    if include_raw:
        view["raw"] = None if raw_text is None else orjson.Fragment(raw_text)
    return view


def dump(value: Any) -> bytes:
    return orjson.dumps(value, default=exact)


def exact(value: Any) -> Any:
    """`default` for orjson: numbers it has no type for keep their digits."""
    if isinstance(value, ExactNumber):
        return orjson.Fragment(value.text)
    raise TypeError(type(value).__name__)


MAX_COLUMN_CHARS = 500
MAX_INDEXED_BYTES = 800  # two of them share an entry


def short(text: str) -> str:
    """The start of a clean text that fits beside another one into an index entry: PostgreSQL refuses one over 2,700
    bytes, and with it whatever else was to be written. No address and no type of Mailjet's comes near."""
    if len(text) * 4 <= MAX_INDEXED_BYTES:
        return text
    cut = text[:MAX_COLUMN_CHARS]
    encoded = cut.encode()
    return cut if len(encoded) <= MAX_INDEXED_BYTES else encoded[:MAX_INDEXED_BYTES].decode("utf-8", "ignore")


def clean(text: str | None) -> str | None:
    """Text that PostgreSQL and UTF-8 can carry: NUL and lone surrogates become U+FFFD. The raw text keeps them."""
    if text is None:
        return None
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _time_text(moment: datetime | int) -> str:
    return rfc3339_of_micros(moment) if isinstance(moment, int) else rfc3339(moment)


def _told_in(raw: str | None) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """(the members of an event, those that have no field of their own), as any JSON writer and PostgreSQL can carry
    them."""
    if raw is None:
        return {}, {}
    members = decode_quickly(raw)
    if members is not None:
        details = {key: value for key, value in members.items() if key not in NAMED}
        if is_plain((members.get("Payload"), *details.values())):
            return members, details
    members = _decode_with_care(raw)
    return members, {key: value for key, value in members.items() if key not in NAMED}


def _decode_with_care(raw: str) -> dict[str, Any]:
    try:
        value = decode(raw)
    except MalformedPayload:
        return {}
    if not isinstance(value, dict):
        return {}
    tidy: dict[Any, Any] = {clean(key): _clean_value(item) for key, item in value.items()}
    # Not of the tidy ones: there a number with too many digits for JSON's writer is wrapped.
    return tidy | {"Payload": clean(as_text(value.get("Payload")))}


def _clean_value(value: Any) -> Any:
    """The same JSON value without lone surrogates, which no JSON writer accepts. Depth is bounded at the edge."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return ExactNumber(str(value))  # orjson refuses it without asking
    if isinstance(value, list):
        return [_clean_value(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): _clean_value(item) for key, item in value.items()}
    return value


def new_id(now: datetime) -> str:
    """A UUID of version 7: ids sort by the millisecond they were made in."""
    millis = to_micros(now) // 1000
    text = f"{millis:012x}7{secrets.randbits(12):03x}{secrets.randbits(62) | 1 << 63:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


# --- deliveries ------------------------------------------------------------------------------------------------------

EVENT_ID = "019ded47-d100-8c4e-9a51-3f9c2b7d1e60"  # the example of the documentation
EVENT_ID_PATTERN = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_DELIVERY_ID = re.compile(rf"({EVENT_ID_PATTERN.pattern})\.([a-z0-9_]{{1,63}})", re.ASCII)


def delivery_id(event_id: str, sink: str) -> str:
    """A delivery's id in REST: it is named by what it joins. Neither part holds a dot."""
    return f"{event_id}.{sink}"


def delivery_view(row: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """The delivery of contract shape; with `attempts` where they are given. A settled one has no next attempt."""
    pending = row["state"] == DeliveryState.PENDING
    view = {
        "id": delivery_id(row["event_id"], row["sink"]),
        "sink": row["sink"],
        "event_id": row["event_id"],
        "webhook": row["webhook"],
        "type": row["type"],
        "state": row["state"],
        "attempt_count": row["attempt_count"],
        "next_attempt_at": _time_text(row["next_attempt_at"]) if pending else None,
        "last_status": row["last_status"],
        "last_error": row["last_error"],
        "created_at": _time_text(row["created_at"]),
        "settled_at": None if row["settled_at"] is None else _time_text(row["settled_at"]),
    }
    return view if attempts is None else view | {"attempts": [attempt_view(attempt) for attempt in attempts]}


def attempt_view(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("number", "at", "status", "outcome", "error", "duration_ms", "response_excerpt", "replay")
    return {name: row[name] for name in names} | {"at": rfc3339(row["at"]), "replay": bool(row["replay"])}


def parse_delivery_id(text: str) -> tuple[str, str]:
    """`{event_id}.{sink}` -> both. Raises DeliveryNotFound."""
    match = _DELIVERY_ID.fullmatch(text)
    if match is None:
        raise DeliveryNotFound("there is no delivery with this id")
    return match[1], match[2]
