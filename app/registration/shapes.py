"""What a webhook looks like from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

from app.clock import rfc3339
from app.registration.plan import Slot, SlotKey, callback_url
from app.registration.queries import CallbackState, Checked
from app.settings import Settings, mask_url
from app.silence.queries import Expected

FINE = (CallbackState.OK, CallbackState.SHARED)

EXAMPLE: dict[str, Any] = {
    "name": "orders",
    "connection": "default",
    "events": ["bounce", "sent"],
    "callback_url": "https://jethook:***@hooks.example.com/webhooks/orders",
    "registration": "ok",
    "callbacks": [
        {
            "type": "sent",
            "backup": False,
            "state": "shared",
            "held_by": "newsletters",
            "mailjet_id": "90001",
            "last_event_at": "2026-05-03T10:00:01.123456Z",
            "rhythm": {"state": "heard", "expected_by": "2026-05-03T12:30:00Z", "silent_since": None},
            "checked_at": "2026-05-03T10:04:00Z",
            "error": None,
        },
        {
            "type": "bounce",
            "backup": False,
            "state": "ok",
            "held_by": None,
            "mailjet_id": "90002",
            "last_event_at": None,
            "rhythm": {"state": "learning", "expected_by": None, "silent_since": None},
            "checked_at": "2026-05-03T10:04:00Z",
            "error": None,
        },
    ],
}

Moment = Annotated[
    datetime,
    PlainSerializer(rfc3339, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
LastEventAt = Callable[[str, str], datetime | None]


class RhythmModel(BaseModel):
    """Whether events of a type come to a webhook as they used to."""

    model_config = ConfigDict(title="Rhythm")

    state: Literal["heard", "silent", "learning", "off"] = Field(
        description="`silent`: nothing came when something should have. `learning`: too little came so far to expect"
        " anything. `off`: the setting says never to tell"
    )
    expected_by: Moment | None = Field(description="by when something should come, by the past weeks or the setting")
    silent_since: Moment | None = Field(description="while `silent`, when the last event happened")


class CallbackModel(BaseModel):
    """One callback at Mailjet that this webhook depends on, as the last look found it."""

    model_config = ConfigDict(title="Callback")

    type: str = Field(description="Mailjet's event type")
    backup: bool = Field(description="Mailjet's backup slot, which takes over while the primary one is suspended")
    state: CallbackState = Field(
        description="`ok`: ours and alive. `shared`: held by another webhook of the connection, which hears for both."
        " `missing`: Mailjet has none. `dead`: Mailjet suspended it. `foreign`: somebody else's URL holds the slot."
        " `pending`: not looked at yet. `error`: the last look or change failed"
    )
    held_by: str | None = Field(
        description="of a `shared` one the webhook that holds it, of a `foreign` one its URL without the password"
    )
    mailjet_id: str | None = Field(description="Mailjet's id of the callback")
    last_event_at: Moment | None = Field(
        description="when the newest event of this type came to this webhook; null for a backup, which another"
        " installation receives"
    )
    rhythm: RhythmModel | None = Field(None, description="null for a backup")
    checked_at: Moment | None = Field(description="when this was last looked at")
    error: str | None = Field(description="what failed, for people")


class WebhookModel(BaseModel):
    """A name that watches event types on one connection, and the state of its callbacks at Mailjet."""

    model_config = ConfigDict(title="Webhook", json_schema_extra={"example": EXAMPLE})

    name: str
    connection: str = Field(description="the Mailjet API key whose events it watches")
    events: list[str] = Field(description="the event types it watches")
    callback_url: str | None = Field(
        description="where Mailjet posts, with the password masked; null while there is no public URL"
    )
    registration: Literal["off", "ok", "degraded"] = Field(
        description="`off`: no public URL, or no keys for the connection. `degraded`: a callback it depends on is not"
        " known to be ours and alive"
    )
    callbacks: list[CallbackModel]


class WebhookListModel(BaseModel):
    """All webhooks by name; always one page."""

    model_config = ConfigDict(
        title="WebhookList", json_schema_extra={"example": {"data": [EXAMPLE], "next_cursor": None, "has_more": False}}
    )

    data: list[WebhookModel]
    next_cursor: str | None = None
    has_more: bool = False


def webhook_view(
    settings: Settings,
    name: str,
    slots: Sequence[Slot],
    checked: Mapping[SlotKey, Checked],
    last_event_at: LastEventAt,
    expected: Mapping[tuple[str, str], Expected],
) -> WebhookModel:
    """The webhook of contract shape. `slots` are all of the settings, `checked` what its connection holds, `expected`
    by webhook and type."""
    webhook = settings.effective_webhooks[name]
    is_off = not settings.public_url or not settings.effective_connections[webhook.connection].has_keys
    watched = [slot for slot in slots if slot.connection == webhook.connection and name in slot.watchers]
    # What was found before registration was switched off, or under another holder's URL, says nothing about now.
    known = {
        slot.key: row
        for slot in watched
        if not is_off and (row := checked.get(slot.key)) is not None and row.holder == slot.holder
    }
    fine = all(slot.key in known and known[slot.key].state in FINE for slot in watched)
    rhythms: Mapping[str, RhythmModel] = {
        t: _rhythm(webhook.silent_after(t), expected.get((name, t))) for t in webhook.events
    }
    url = settings.public_url and mask_url(callback_url(settings.public_url, settings.instance, "***", name))
    return WebhookModel(
        name=name,
        connection=webhook.connection,
        events=list(webhook.events),
        callback_url=url,
        registration="off" if is_off else "ok" if fine else "degraded",
        callbacks=list(_callbacks(name, watched, known, last_event_at, rhythms)),
    )


def _callbacks(
    name: str, watched: Sequence[Slot], known: Mapping[SlotKey, Checked], last_event_at: LastEventAt,
    rhythms: Mapping[str, RhythmModel],
) -> Iterator[CallbackModel]:  # fmt: skip
    for slot in watched:
        row = known.get(slot.key)
        newest = None if slot.backup else last_event_at(name, slot.type)
        state, held_by, error = _found(name, slot, row)
        yield CallbackModel(
            type=slot.type,
            backup=slot.backup,
            state=state,
            held_by=held_by,
            mailjet_id=row.mailjet_id if row else None,
            last_event_at=newest,
            rhythm=None if slot.backup else rhythms[slot.type],
            checked_at=row.checked_at if row else None,
            error=error,
        )


def _rhythm(limit_seconds: float | None, expected: Expected | None) -> RhythmModel:
    if limit_seconds == 0:
        return RhythmModel(state="off", expected_by=None, silent_since=None)
    if expected is None or expected.expected_by is None:
        return RhythmModel(state="learning", expected_by=None, silent_since=None)
    state: Literal["silent", "heard"] = "heard" if expected.silent_since is None else "silent"
    return RhythmModel(state=state, expected_by=expected.expected_by, silent_since=expected.silent_since)


def _found(name: str, slot: Slot, row: Checked | None) -> tuple[CallbackState, str | None, str | None]:
    """(state, held_by, error) of a slot from the side of one of its watchers."""
    if slot.holder == name:
        return (CallbackState.PENDING, None, None) if row is None else (row.state, row.held_by, row.error)
    error = row.error if row else None
    if error is None and row is not None and row.state not in FINE:
        error = f"the callback of webhook {slot.holder!r} is {row.state.value}"
    return CallbackState.SHARED, slot.holder, error
