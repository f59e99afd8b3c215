"""One of Mailjet's objects -> what an event of it says, by the contract. Shares Mailjet's own tables with the service:
the words of errors, and the rules by which a machine is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.mailjet.machines import judge
from app.mailjet.vocabulary import ERRORS, GROUPS

OUTCOMES = {"sent": "delivered", "open": "opened", "click": "clicked", "bounce": "bounced", "blocked": "rejected",
            "spam": "complained", "unsub": "unsubscribed"}  # fmt: skip
OWN_FIELDS = {"event", "time", "MessageID", "mj_message_id", "Message_GUID", "email", "mj_campaign_id", "mj_contact_id",
              "mj_list_id", "customcampaign", "CustomID", "Payload", "hard_bounce", "error",
              "error_related_to"}  # fmt: skip


def fields_of(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The event's fields that come from the payload, by the names of REST; and `email_domain`."""
    kind = payload["event"]
    reason, group = _reason(payload)
    email = _address(_text(payload.get("email")))
    verdict = judge(kind, payload)
    return {
        "type": kind,
        "outcome": _outcome(kind, reason, payload),
        "test": payload.get("MessageID") in (0, "0") and payload.get("email") in ("", None),
        "email": email,
        "email_domain": email.rpartition("@")[2] if email and "@" in email else None,
        "message_id": _id(payload.get("MessageID")) or _id(payload.get("mj_message_id")),
        "message_guid": _text(payload.get("Message_GUID")),
        "campaign_id": _id(payload.get("mj_campaign_id")),
        "contact_id": _id(payload.get("mj_contact_id")),
        "list_id": _id(payload.get("mj_list_id")),
        "custom_id": _text(payload.get("CustomID")),
        "custom_campaign": _text(payload.get("customcampaign")),
        "payload": _text(payload.get("Payload")),
        "origin": None,  # a callback brought all of these
        "permanent": _permanent(kind, reason, payload),
        "reason": reason,
        "reason_group": group,
        "automated": verdict.automated,
        "automated_rule": verdict.rule,
        "details": {name: value for name, value in payload.items() if name not in OWN_FIELDS},
    }


def _text(value: Any) -> str | None:
    if value in ("", None):
        return None
    return str(value)


def _id(value: Any) -> str | None:
    return None if value in (0, "0") else _text(value)


def _address(text: str | None) -> str | None:
    if text is None or "@" not in text:
        return text
    local, _, domain = text.rpartition("@")
    return f"{local}@{domain.lower()}"


def _reason(payload: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(reason, its group); a value that slid into `error_related_to` is the reason."""
    error, related = _text(payload.get("error")), _text(payload.get("error_related_to"))
    if error is None and related is not None and related not in GROUPS:
        error, related = related, None
    if error is not None and related is None and error in ERRORS:
        related = ERRORS[error][0]
    return error, related


def _outcome(kind: str, reason: str | None, payload: Mapping[str, Any]) -> str:
    if kind in ("bounce", "blocked") and reason == "greylisted" and payload.get("hard_bounce") is not True:
        return "deferred"
    return OUTCOMES.get(kind, "unknown")


def _permanent(kind: str, reason: str | None, payload: Mapping[str, Any]) -> bool | None:
    if kind == "bounce":
        told = payload.get("hard_bounce")
        return told if isinstance(told, bool) else None
    if kind == "blocked" and reason in ERRORS:
        return ERRORS[reason][1]
    return None
