"""What deliveries, attempts and quarantine look like from outside, and the OpenAPI models of all lists."""

import base64
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.clock import rfc3339
from app.models import AttemptOutcome, DeliveryState, Outcome
from app.views import EVENT_ID


def quarantine_view(row: Mapping[str, Any]) -> dict[str, Any]:
    """`body` is text where it is UTF-8 without NUL, base64 otherwise, null where the row leaves it out."""
    body, encoding = _body_view(row["body"])
    return {
        "id": row["id"],
        "webhook": row["webhook"],
        "received_at": rfc3339(row["received_at"]),
        "reason": row["reason"],
        "bytes": row["bytes"],
        "body": body,
        "body_encoding": encoding,
    }


def _body_view(body: bytes | None) -> tuple[str | None, str | None]:
    if body is None:
        return None, None
    try:
        text = bytes(body).decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    return (base64.b64encode(body).decode(), "base64") if "\0" in text else (text, "text")


# --- OpenAPI ---------------------------------------------------------------------------------------------------------


class EventModel(BaseModel):
    """One thing Mailjet says happened to one message. Times are RFC 3339 in UTC, Mailjet's ids are strings."""

    model_config = ConfigDict(
        title="Event",
        json_schema_extra={
            "example": {
                "id": EVENT_ID,
                "webhook": "orders",
                "connection": "default",
                "type": "bounce",
                "outcome": "bounced",
                "occurred_at": "2026-05-03T10:00:00Z",
                "received_at": "2026-05-03T10:00:01.123456Z",
                "test": False,
                "email": "a@example.com",
                "message_id": "19421777835146490",
                "message_guid": "1ab23cd4-e567-8901-2345-6789f0gh1i2j",
                "campaign_id": "7257",
                "contact_id": "4",
                "list_id": None,
                "custom_id": "order-17",
                "custom_campaign": None,
                "payload": None,
                "permanent": True,
                "reason": "user unknown",
                "reason_group": "recipient",
                "automated": None,
                "automated_rule": None,
                "origin": None,
                "details": {"comment": "550 5.1.1 user unknown", "blocked": False},
                "raw": {"event": "bounce", "time": 1777802400, "MessageID": 19421777835146490},
            }
        },
    )

    id: str = Field(description="made from the webhook, the time and the content: the same event again has the same id")
    webhook: str
    connection: str
    type: str = Field(description="Mailjet's word; an unknown one is kept")
    outcome: Outcome
    occurred_at: str = Field(json_schema_extra={"format": "date-time"})
    received_at: str = Field(json_schema_extra={"format": "date-time"})
    test: bool
    email: str | None
    message_id: str | None
    message_guid: str | None
    campaign_id: str | None
    contact_id: str | None
    list_id: str | None
    custom_id: str | None
    custom_campaign: str | None
    payload: str | None = Field(description="the `EventPayload` set when sending")
    permanent: bool | None = Field(description="whether a bounce or block is lasting, where that is known")
    reason: str | None
    reason_group: str | None
    automated: bool | None = Field(
        description="of an open or a click: was it a machine's? By its agent and address when it comes in; by the time"
        " since the message's `sent` a few seconds later. Null for other types"
    )
    automated_rule: str | None = Field(
        description="the rule that decided; an image proxy that fetches for a person has one too. Null: none did"
    )
    origin: str | None = Field(
        None, description="`backfill` where no callback brought it and it was fetched from Mailjet; else null"
    )
    details: dict[str, Any] = Field(description="everything else Mailjet sent")
    raw: dict[str, Any] | None = Field(
        None, description="what Mailjet sent, every digit kept; in lists on request; null once it is redacted"
    )
    redacted: bool = Field(
        False, description="true, and only then present, once retention has removed the payload and what is personal"
    )


class DeliveryModel(BaseModel):
    """One event owed to one sink."""

    model_config = ConfigDict(
        title="Delivery",
        json_schema_extra={
            "example": {
                "id": f"{EVENT_ID}.crm",
                "sink": "crm",
                "event_id": EVENT_ID,
                "webhook": "orders",
                "type": "bounce",
                "state": "pending",
                "attempt_count": 1,
                "next_attempt_at": "2026-05-03T10:00:07Z",
                "last_status": 503,
                "last_error": "http_5xx",
                "created_at": "2026-05-03T10:00:01.123456Z",
                "settled_at": None,
            }
        },
    )

    id: str = Field(description="`{event_id}.{sink}`")
    sink: str
    event_id: str
    webhook: str
    type: str
    state: DeliveryState
    attempt_count: int
    next_attempt_at: str | None = Field(
        description="null once it is settled", json_schema_extra={"format": "date-time"}
    )
    last_status: int | None = Field(description="HTTP status of the last attempt; null when no answer came")
    last_error: str | None
    created_at: str = Field(json_schema_extra={"format": "date-time"})
    settled_at: str | None = Field(json_schema_extra={"format": "date-time"})


class AttemptModel(BaseModel):
    """One HTTP try of a delivery."""

    model_config = ConfigDict(title="Attempt")

    number: int = Field(description="from 1, going on over manual retries and replays")
    at: str = Field(json_schema_extra={"format": "date-time"})
    status: int | None = Field(description="HTTP status; null when no answer came")
    outcome: AttemptOutcome
    error: str | None
    duration_ms: float
    response_excerpt: str | None = Field(description="how the sink's answer begins")
    replay: bool


class DeliveryDetailModel(DeliveryModel):
    """One event owed to one sink, with every attempt."""

    model_config = ConfigDict(
        title="DeliveryDetail",
        json_schema_extra={
            "example": {
                **DeliveryModel.model_config["json_schema_extra"]["example"],  # type: ignore[index, dict-item]
                "attempts": [
                    {
                        "number": 1,
                        "at": "2026-05-03T10:00:02Z",
                        "status": 503,
                        "outcome": "http_5xx",
                        "error": "http_5xx",
                        "duration_ms": 41.7,
                        "response_excerpt": "try again later",
                        "replay": False,
                    }
                ],
            }
        },
    )

    attempts: list[AttemptModel]


class CopyModel(BaseModel):
    """The same arrival, stored for another webhook of the connection."""

    model_config = ConfigDict(title="EventCopy")

    webhook: str
    id: str


class TimelineEventModel(EventModel):
    """One event of a message's timeline."""

    model_config = ConfigDict(title="TimelineEvent", json_schema_extra={})

    copies: list[CopyModel] = Field(description="the same arrival at other webhooks, under ids of their own")
    deliveries: list[DeliveryModel] | None = Field(None, description="of all copies; with `include=deliveries`")


class MessageModel(BaseModel):
    """What became of one message: the email itself, by all events that tell of it."""

    model_config = ConfigDict(
        title="Message",
        json_schema_extra={
            "example": {
                "message_id": "19421777835146490",
                "message_guid": "1ab23cd4-e567-8901-2345-6789f0gh1i2j",
                "email": "a@example.com",
                "state": "opened",
                "permanent": None,
                "counts": {"sent": 1, "open": 2},
                "first": {"sent": "2026-05-03T10:00:00Z", "open": "2026-05-03T10:02:05Z"},
                "last": {"sent": "2026-05-03T10:00:00Z", "open": "2026-05-04T07:41:00Z"},
                "seconds_to_open": 125,
                "seconds_to_click": None,
                "events": [],
                "events_truncated": False,
            }
        },
    )

    message_id: str | None
    message_guid: str | None
    email: str | None
    state: Outcome = Field(description="the strongest that is known, whatever order the events came in")
    permanent: bool | None = Field(description="of the states bounced and rejected: is the failure lasting?")
    counts: dict[str, int] = Field(description="events by Mailjet's word; an arrival counts once")
    first: dict[str, str] = Field(description="when each type happened first")
    last: dict[str, str] = Field(description="when each type happened last")
    seconds_to_open: int | None = Field(description="from the first `sent` to the first `open`; never negative")
    seconds_to_click: int | None = Field(description="from the first `sent` to the first `click`; never negative")
    events: list[TimelineEventModel] = Field(description="in time order, the first thousand")
    events_truncated: bool = Field(description="there are more events than are shown")


class QuarantineModel(BaseModel):
    """What came with valid credentials and could not be read as an event."""

    model_config = ConfigDict(
        title="QuarantineEntry",
        json_schema_extra={
            "example": {
                "id": "00000000-0000-8c4e-9a51-3f9c2b7d1e60",
                "webhook": "orders",
                "received_at": "2026-05-03T10:00:01.123456Z",
                "reason": "`time` is missing",
                "bytes": 17,
                "body": '{"event": "open"}',
                "body_encoding": "text",
            }
        },
    )

    id: str
    webhook: str
    received_at: str = Field(json_schema_extra={"format": "date-time"})
    reason: str
    bytes: int = Field(description="length of the body as it came")
    body: str | None = Field(description="text, or base64 where it is no UTF-8 text; null in lists above 16384 bytes")
    body_encoding: Literal["text", "base64"] | None


class ListModel(BaseModel):
    next_cursor: str | None = Field(description="give it back as `cursor` for what follows; null: nothing follows")
    has_more: bool


class EventList(ListModel):
    """A page of events."""

    data: list[EventModel]


class FeedList(BaseModel):
    """Some events in the order they were committed."""

    data: list[EventModel]
    next_cursor: str = Field(description="give it back as `cursor` for what follows, now or later; never null")
    has_more: bool = Field(
        description="whether to ask again at once. With a rare filter a page can be empty and still have more"
    )


class DeliveryList(ListModel):
    """A page of deliveries."""

    data: list[DeliveryModel]


class DeliveryDetailList(ListModel):
    """All deliveries of one event."""

    data: list[DeliveryDetailModel]


class QuarantineList(ListModel):
    """A page of quarantine."""

    data: list[QuarantineModel]
