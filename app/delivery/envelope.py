"""Event -> body and content type, in the shape the sink asked for. Pure.

`mailjet` is the object exactly as Mailjet sent it, so a handler written for Mailjet works unchanged. `cloudevents` is
CloudEvents 1.0 in structured mode. Source: cloudevents/spec:cloudevents/formats/json-format.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from app import operator_events
from app.dispatch.service import Job
from app.views import dump, view_of_values

Envelope = Literal["mailjet", "jethook", "cloudevents"]


def body_of(job: Job, envelope: Envelope) -> tuple[bytes, str]:
    """(body, content type) of one delivery."""
    if envelope == "mailjet":
        return job.event[-1].encode(), "application/json"
    view = view_of_values(job.event)
    if envelope == "jethook":
        return dump(view), "application/json"
    return dump(cloud_event(view)), "application/cloudevents+json"


def batch_body_of(jobs: Sequence[Job], envelope: Envelope) -> tuple[bytes, str]:
    """(body, content type) of several deliveries in one request, in their order."""
    if envelope == "mailjet":
        return b"[" + b",".join(job.event[-1].encode() for job in jobs) + b"]", "application/json"
    views = [view_of_values(job.event) for job in jobs]
    if envelope == "jethook":
        return dump({"events": views}), "application/json"
    return dump([cloud_event(view) for view in views]), "application/cloudevents-batch+json"


def cloud_event(view: dict[str, Any]) -> dict[str, Any]:
    is_ours = view["webhook"] == operator_events.WEBHOOK
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": view["id"],
        "source": "/jethook" if is_ours else f"/webhooks/{view['webhook']}",
        "type": _attribute(view["type"] if is_ours else f"com.mailjet.email.{view['type']}"),
        "time": view["occurred_at"],
        "datacontenttype": "application/json",
        "data": view,
    }
    subject = (view["details"].get("sink") or view["details"].get("webhook")) if is_ours else view["message_id"]
    if subject is not None:
        event["subject"] = _attribute(subject)
    return event


def _attribute(text: str) -> str:
    """What the specification lets an attribute hold: no control characters and no noncharacters."""
    return "".join("\ufffd" if _is_forbidden(ord(c)) else c for c in text)


def _is_forbidden(code: int) -> bool:
    return code < 0x20 or 0x7F <= code <= 0x9F or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
