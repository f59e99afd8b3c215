"""Event -> body and content type, in the shape the sink asked for. Pure.

`mailjet` is the object exactly as Mailjet sent it, so a handler written for Mailjet works unchanged. `cloudevents` is
CloudEvents 1.0 in structured mode. Source: cloudevents/spec:cloudevents/formats/json-format.md.
"""

from __future__ import annotations

from typing import Any, Literal

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


def cloud_event(view: dict[str, Any]) -> dict[str, Any]:
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": view["id"],
        "source": f"/webhooks/{view['webhook']}",
        "type": f"com.mailjet.email.{view['type']}",
        "time": view["occurred_at"],
        "datacontenttype": "application/json",
        "data": view,
    }
    if view["message_id"] is not None:
        event["subject"] = view["message_id"]
    return event
