"""Mailjet's words for what happened -> ours. Pure, and lenient: an unknown word is kept, never refused.

Sources: mailjet/api-documentation:guides/_event-api.md (types and the error table); anymail/django-anymail:
anymail/webhooks/mailjet.py (greylisted without hard_bounce is a delay, not a bounce); symfony/symfony: Mailjet bridge
fixtures (a real bounce whose value slid into `error_related_to`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVENT_TYPES = ("sent", "open", "click", "bounce", "spam", "blocked", "unsub")

ORIGIN_KEY = "jethook_origin"
"""Of ours, in the payload of an event that no callback brought: where it was fetched from."""

OUTCOMES = {
    "sent": "delivered",
    "open": "opened",
    "click": "clicked",
    "bounce": "bounced",
    "spam": "complained",
    "blocked": "rejected",
    "unsub": "unsubscribed",
}

GROUPS = frozenset({"recipient", "domain", "content", "spam", "system", "mailjet", "account"})

# error -> (its group, lasting?). None: Mailjet's explanation leaves it open, or somebody can mend it.
ERRORS: dict[str, tuple[str, bool | None]] = {
    "user unknown": ("recipient", True),
    "mailbox inactive": ("recipient", True),
    "quota exceeded": ("recipient", False),
    "blacklisted": ("recipient", True),
    "spam reporter": ("recipient", True),
    "invalid domain": ("domain", True),
    "no mail host": ("domain", None),
    "relay/access denied": ("domain", None),
    "greylisted": ("domain", False),
    "typofix": ("domain", True),
    "bad or empty template": ("content", None),
    "error in template language": ("content", None),
    "sender blocked": ("spam", None),
    "content blocked": ("spam", None),
    "policy issue": ("spam", False),
    "system issue": ("system", False),
    "protocol issue": ("system", False),
    "connection issue": ("system", False),
    "preblocked": ("mailjet", False),
    "spam preblocked": ("mailjet", False),
    "duplicate in campaign": ("mailjet", False),
}


def outcome_of(event_type: str, payload: Mapping[str, Any]) -> str:
    """Our word for the event; a greylisted bounce or block that is not hard is `deferred`: Mailjet tries again."""
    if event_type in ("bounce", "blocked") and as_bool(payload.get("hard_bounce")) is not True:
        reason, _ = reason_of(payload)
        if reason is not None and reason.strip().lower() == "greylisted":
            return "deferred"
    return OUTCOMES.get(event_type, "unknown")


def reason_of(payload: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(reason, group). An empty `error` with a value in `error_related_to` that is no group means the value slid."""
    if "error" not in payload and "error_related_to" not in payload:
        return None, None
    error, related = as_text(payload.get("error")), as_text(payload.get("error_related_to"))
    if error is not None:
        return error, related if related is not None else _group_of(error)
    if related is None or related.strip().lower() in GROUPS:
        # `spam` or `domain` alone is a group without a value, not a value.
        return None, related
    return related, _group_of(related)


def permanent_of(event_type: str, payload: Mapping[str, Any]) -> bool | None:
    """Is the failure lasting? `hard_bounce` decides for a bounce, the error table for a block, nothing otherwise."""
    if event_type == "bounce":
        return as_bool(payload.get("hard_bounce"))
    if event_type == "blocked":
        reason, _ = reason_of(payload)
        known = ERRORS.get(reason.strip().lower()) if reason is not None else None
        return known[1] if known else None
    return None


def _group_of(error: str) -> str | None:
    known = ERRORS.get(error.strip().lower())
    return known[0] if known else None


def as_text(value: Any) -> str | None:
    """Text that says something: an empty string, null and a missing key are all None; a number becomes its digits."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool) or value is None:
        return None
    return str(value) if isinstance(value, int) else None


def as_id(value: Any) -> str | None:
    """One of Mailjet's ids as text; 0 means there is none. Never through a float: ids exceed 2**53."""
    text = as_text(value)
    return None if text is None or text.strip("0") == "" else text


def as_bool(value: Any) -> bool | None:
    """Test events put "" where a boolean belongs; other tools have seen words and digits there."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return {0: False, 1: True}.get(value)
    return {"true": True, "1": True, "false": False, "0": False}.get(value.lower()) if isinstance(value, str) else None


def normal_email(text: str) -> str:
    """The address with its domain, what follows the last `@`, in lower case; anything without `@` as it is.

    Lenient: nothing is checked or stripped, and the local part keeps its case, since only its server may judge that.
    """
    local, at, domain = text.rpartition("@")
    return f"{local}{at}{domain.lower()}" if at else text
