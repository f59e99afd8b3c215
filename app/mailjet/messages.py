"""Mailjet's `message`, `messagehistory` and Send API v3.1, in our words.

Source: mailjet/api-documentation:guides/_send-api-v31.md and _messages.md; mailjet-apiv3-nodejs, its types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from app.mailjet.door import Door
from app.mailjet.errors import MailjetNotFound
from app.mailjet.fields import (
    Choice,
    Flag,
    GivenId,
    Id,
    Listed,
    Moment,
    Number,
    Shown,
    Text,
    UnixTime,
    mailjet,
    to_mailjet,
    word_of,
)
from app.mailjet.objects import get_one
from app.mailjet.pages import Page, Place, get_page
from app.mailjet.vocabulary import as_text

RESOURCE = "/v3/REST/message"
# Without these the three are `""`.
SHOWING = {"ShowSubject": "true", "ShowContactAlt": "true", "ShowCustomID": "true"}

FROM_TYPES = {"transactional": 1, "marketing": 2, "unknown": 3}
STATUSES = {
    "processed": 0, "queued": 1, "sent": 2, "opened": 3, "clicked": 4, "bounce": 5, "spam": 6, "unsub": 7,
    "blocked": 8, "softbounced": 9, "hardbounced": 10, "deferred": 11,
}  # fmt: skip
STATES = {
    "user unknown": 1, "mailbox inactive": 2, "quota exceeded": 3, "invalid domain": 4, "no mail host": 5,
    "relay/access denied": 6, "sender blocked": 7, "content blocked": 8, "policy issue": 9, "system issue": 10,
    "protocol issue": 11, "connection issue": 12, "greylisted": 13, "preblocked": 14, "duplicate in campaign": 15,
    "spam preblocked": 16, "bad or empty template": 17, "error in template language": 18, "typofix": 19,
    "blacklisted": 20, "spam reporter": 21,
}  # fmt: skip
# The history's words -> those of the webhook, where they differ.
HISTORY_TYPES = {"opened": "open", "clicked": "click", "bounced": "bounce", "hardbounced": "bounce",
                 "softbounced": "bounce"}  # fmt: skip

GivenStatus = Annotated[str, Choice(STATUSES | {"soft bounce": 9, "hard bounce": 10}, documented=STATUSES)]
GivenState = Annotated[str, Choice(STATES)]
GivenFromType = Annotated[str, Choice(FROM_TYPES)]


class MailjetMessage(Shown):
    """One message to one recipient, as Mailjet keeps it."""

    id: Id = mailjet("ID")
    message_guid: Text = mailjet("UUID")
    arrived_at: Moment = mailjet("ArrivedAt")
    email: Text = mailjet("ContactAlt")
    subject: Text = mailjet("Subject")
    custom_id: Text = mailjet("CustomID")
    status: Annotated[str | None, word_of(STATUSES)] = mailjet("Status")
    state: Annotated[str | None, word_of(STATES)] = mailjet("StateID", description="why it failed")
    state_permanent: Flag = mailjet("StatePermanent")
    campaign_id: Id = mailjet("CampaignID")
    contact_id: Id = mailjet("ContactID")
    sender_id: Id = mailjet("SenderID")
    attempt_count: Number = mailjet("AttemptCount")
    attachment_count: Number = mailjet("AttachmentCount")
    size_bytes: Number = mailjet("MessageSize")
    is_open_tracked: Flag = mailjet("IsOpenTracked")
    is_click_tracked: Flag = mailjet("IsClickTracked")


class HistoryEntry(Shown):
    """One thing that happened to a message."""

    at: Moment = mailjet("EventAt")
    type: Text = mailjet("EventType", description="`sent`, `open`, `click`, `bounce`, …: the word of the webhook")
    state: Text = mailjet("State")
    comment: Text = mailjet("Comment")
    user_agent: Text = mailjet("Useragent")


class MessageFilters(Listed):
    """Which messages."""

    campaign_id: GivenId | None = to_mailjet("Campaign", description="of this campaign")
    contact_id: GivenId | None = to_mailjet("Contact", description="to this contact")
    since: UnixTime | None = to_mailjet("FromTS", description="arrived after this time; Mailjet leaves it out itself")
    until: UnixTime | None = to_mailjet("ToTS", description="arrived until this time")
    from_type: GivenFromType | None = to_mailjet("FromType")
    state: GivenState | None = to_mailjet("MessageState", description="why it failed")
    status: GivenStatus | None = to_mailjet("MessageStatus")


async def list_messages(door: Door, filters: Mapping[str, str | int], place: Place, limit: int) -> Page:
    return await get_page(door, "list_messages", RESOURCE, {**filters, **SHOWING}, place=place, limit=limit)


async def get_message(door: Door, message_id: str) -> dict[str, Any]:
    """Raises MailjetNotFound."""
    return await get_one(door, "get_message", f"{RESOURCE}/{message_id}", "message", SHOWING)


async def get_history(door: Door, message_id: str) -> list[HistoryEntry]:
    """In Mailjet's order; empty for an unknown message, which Mailjet does not tell from one without history."""
    return [_entry(item) for item in await list_history(door, message_id)]


async def list_history(door: Door, message_id: str) -> list[dict[str, Any]]:
    """The same as Mailjet sends it."""
    try:
        return (await door.ask("message_history", f"/v3/REST/messagehistory/{message_id}")).data()
    except MailjetNotFound:
        return []


def _entry(item: dict[str, Any]) -> HistoryEntry:
    kind = (as_text(item.get("EventType")) or "").lower()
    return HistoryEntry.model_validate({**item, "EventType": HISTORY_TYPES.get(kind, kind)})


async def find_by_custom_id(door: Door, custom_id: str) -> Sequence[MailjetMessage]:
    """Messages with this CustomID: up to 1000."""
    page = await list_messages(door, {"CustomID": custom_id}, Place(), 1000)
    found = [MailjetMessage.model_validate(item) for item in page.items]
    return [message for message in found if message.custom_id == custom_id]


async def send_messages(door: Door, messages: Sequence[Mapping[str, Any]], *, sandbox: bool) -> list[Any]:
    """One call of Send v3.1; Mailjet's result for each message, in order.

    Some may be accepted while others fail, whatever the status; repeated only where nothing can have happened. Raises
    MailjetError for a fault of the whole request.
    """
    body: dict[str, Any] = {"Messages": list(messages)} | ({"SandboxMode": True} if sandbox else {})

    async def send() -> list[Any]:
        answer = await door.post_json("send_messages", "/v3.1/send", body)
        results = answer.json_object().get("Messages")
        if isinstance(results, list) and answer.status < 500:
            return results
        if (fault := door.fault_of(answer)) is not None:
            raise fault
        raise answer.unreadable("it has no list `Messages`")

    return await door.repeat(send, if_ambiguous=False)
