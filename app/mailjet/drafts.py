"""Mailjet's `campaigndraft`, its content and what can be done with it, in our words.

Source: mailjet/api-documentation:guides/_send-campaigns.md; mailjet-apiv3-php#81 and #226 for templates, whose content
a draft does not take over by being linked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from app.mailjet.campaigns import STATUSES
from app.mailjet.door import Door
from app.mailjet.errors import MailjetDuplicate, MailjetError, MailjetNotFound, MailjetRefused
from app.mailjet.fields import (
    Choice,
    Flag,
    Given,
    GivenFlag,
    GivenId,
    GivenNumber,
    GivenText,
    Id,
    IsoTime,
    Listed,
    Moment,
    Shown,
    Text,
    mailjet,
    to_mailjet,
    word_of,
)
from app.mailjet.objects import get_one
from app.mailjet.pages import Page, Place, get_page
from app.mailjet.vocabulary import as_id

RESOURCE = "/v3/REST/campaigndraft"
EDIT_MODES = {"tool2": "tool2", "html2": "html2", "mjml": "mjml"}
PARTS = {"html": "Html-part", "text": "Text-part", "mjml": "MJMLContent"}
UNDER_WAY = ("programmed", "sent")

EditMode = Annotated[str, Choice(EDIT_MODES)]


class Draft(Shown):
    """One draft campaign, without its content."""

    id: Id = mailjet("ID")
    title: Text = mailjet("Title")
    subject: Text = mailjet("Subject")
    locale: Text = mailjet("Locale")
    status: Annotated[str | None, word_of(STATUSES)] = mailjet("Status")
    sender_name: Text = mailjet("SenderName")
    sender_email: Text = mailjet("SenderEmail")
    reply_email: Text = mailjet("ReplyEmail")
    contact_list_id: Id = mailjet("ContactsListID")
    segmentation_id: Id = mailjet("SegmentationID")
    template_id: Id = mailjet("TemplateID")
    campaign_id: Id = mailjet("CampaignID")
    edit_mode: Text = mailjet("EditMode")
    is_starred: Flag = mailjet("IsStarred")
    created_at: Moment = mailjet("CreatedAt")
    modified_at: Moment = mailjet("ModifiedAt")
    delivered_at: Moment = mailjet("DeliveredAt")


class Content(Shown):
    """What a draft says."""

    html: Text = mailjet("Html-part")
    text: Text = mailjet("Text-part")
    mjml: Text = mailjet("MJMLContent")


class DraftFilters(Listed):
    """Which drafts."""

    contact_list_id: GivenId | None = to_mailjet("ContactsList", description="for this list")
    delivered_after: IsoTime | None = to_mailjet("DeliveredAt", description="delivered after this time, not at it")
    edit_mode: EditMode | None = to_mailjet("EditMode")
    is_archived: GivenFlag | None = to_mailjet("IsArchived")
    is_campaign: GivenFlag | None = to_mailjet("IsCampaign")
    is_deleted: GivenFlag | None = to_mailjet("IsDeleted")
    is_handled: GivenFlag | None = to_mailjet("IsHandled")
    is_starred: GivenFlag | None = to_mailjet("IsStarred")
    is_modified: GivenFlag | None = to_mailjet("Modified")
    status: list[Annotated[str, Choice(STATUSES)]] = to_mailjet(
        "Status", [], max_length=20, description="any of these, where it is repeated"
    )
    subject: GivenText | None = to_mailjet("Subject")
    template_id: GivenId | None = to_mailjet("Template")


class DraftChanges(Given):
    """What of a draft can be written; what is left out stays as it is, parts of the content too."""

    title: str = to_mailjet("Title", "", max_length=500)
    subject: str = to_mailjet("Subject", "", min_length=1, max_length=500)
    locale: str = to_mailjet("Locale", "", pattern="^[a-z]{2}(_[A-Z]{2})?$", examples=["en_US"])
    sender_name: str = to_mailjet("SenderName", "", max_length=500)
    sender_email: str = to_mailjet("SenderEmail", "", max_length=320, pattern="@", description="a validated sender")
    reply_email: str = to_mailjet("ReplyEmail", "", max_length=320, pattern="@")
    contact_list_id: GivenNumber = to_mailjet("ContactsListID", "0")
    segmentation_id: GivenNumber = to_mailjet("SegmentationID", "0")
    template_id: GivenNumber = to_mailjet("TemplateID", "0", description="linked; its content is not taken over")
    edit_mode: EditMode = to_mailjet("EditMode", "html2")
    is_starred: GivenFlag = to_mailjet("IsStarred", False)
    html: str = to_mailjet("Html-part", "")
    text: str = to_mailjet("Text-part", "")
    mjml: str = to_mailjet("MJMLContent", "", description="changing it does not rebuild the HTML")

    @property
    def properties(self) -> dict[str, Any]:
        """What the draft itself gets. `Sender` must not be empty when it is sent: it is the name."""
        given = self.to_mailjet(*(name for name in type(self).model_fields if name not in PARTS))
        return given | ({"Sender": given["SenderName"]} if given.get("SenderName") else {})

    @property
    def content(self) -> dict[str, str]:
        return self.to_mailjet(*PARTS)


class NewDraft(DraftChanges):
    """A draft to be made."""

    subject: str = Field(serialization_alias="Subject", min_length=1, max_length=500, description="`Subject`")
    locale: str = Field(
        serialization_alias="Locale", pattern="^[a-z]{2}(_[A-Z]{2})?$", examples=["en_US"], description="`Locale`"
    )

    @property
    def properties(self) -> dict[str, Any]:
        """The same, with the address in place of a name that is left out."""
        given = super().properties
        return ({"Sender": given["SenderEmail"]} if given.get("SenderEmail") else {}) | given


def draft_path(draft_id: str, action: str = "") -> str:
    return f"{RESOURCE}/{draft_id}" + (f"/{action}" if action else "")


async def list_drafts(door: Door, filters: Mapping[str, str | int], place: Place, limit: int) -> Page:
    return await get_page(door, "list_drafts", RESOURCE, filters, place=place, limit=limit)


async def get_draft(door: Door, draft_id: str) -> dict[str, Any]:
    """Raises MailjetNotFound."""
    return await get_one(door, "get_draft", draft_path(draft_id), "draft")


async def get_content(door: Door, draft_id: str) -> dict[str, Any]:
    """Empty for a draft that has none."""
    try:
        return (await door.ask("get_draft_content", draft_path(draft_id, "detailcontent"))).first() or {}
    except MailjetNotFound:
        return {}


async def create_draft(door: Door, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Not repeated where it may have been made: nothing would tell the two apart."""
    answer = await door.change("create_draft", "POST", RESOURCE, dict(properties), again=False)
    made = answer.first()
    if made is None or as_id(made.get("ID")) is None:
        raise answer.unreadable("it shows no draft with an ID")
    return made


async def update_draft(door: Door, draft_id: str, changes: Mapping[str, Any]) -> None:
    """304 says that it was so already. `Sender` goes with a new address where it was the old one, and no name."""
    if "SenderEmail" in changes and "Sender" not in changes:
        held = await get_draft(door, draft_id)
        if held.get("Sender") in (None, "", held.get("SenderEmail")):
            changes = {**changes, "Sender": changes["SenderEmail"]}
    await door.change("update_draft", "PUT", draft_path(draft_id), dict(changes))


async def create_content(door: Door, draft_id: str, parts: Mapping[str, str]) -> None:
    """The first content of a draft: POST, which would empty what is left out, has nothing to empty."""
    await door.change("write_draft_content", "POST", draft_path(draft_id, "detailcontent"), dict(parts))


async def write_content(door: Door, draft_id: str, parts: Mapping[str, str]) -> None:
    """PUT keeps a part that is left out and POST empties it. Mailjet's metadata do not know the PUT: where it is not
    offered, what is there is read and written again."""
    path = draft_path(draft_id, "detailcontent")
    try:
        await door.change("write_draft_content", "PUT", path, dict(parts))
    except MailjetRefused as error:
        if error.status != 405:
            raise
        held = await get_content(door, draft_id)
        kept = {name: held[name] for name in (*PARTS.values(), "Headers") if held.get(name)}
        await door.change("write_draft_content", "POST", path, kept | dict(parts))


async def send_test(door: Door, draft_id: str, recipients: Sequence[Mapping[str, Any]]) -> None:
    body = {"Recipients": list(recipients)}
    await door.change("test_draft", "POST", draft_path(draft_id, "test"), body, again=False)


async def schedule(door: Door, draft_id: str, moment: str) -> None:
    """`moment`: ISO 8601 or `NOW`. Saying it twice does no harm."""
    path = draft_path(draft_id, "schedule")
    try:
        await door.change("schedule_draft", "POST", path, {"Date": moment})
    except MailjetDuplicate:
        await door.change("schedule_draft", "PUT", path, {"Date": moment})


async def unschedule(door: Door, draft_id: str) -> None:
    await door.change("unschedule_draft", "DELETE", draft_path(draft_id, "schedule"))


async def send_now(door: Door, draft_id: str) -> None:
    """Not repeated in doubt: then the draft's own status tells whether it went. Raises the doubt where it does not."""
    try:
        await door.change("send_draft", "POST", draft_path(draft_id, "send"), again=False)
    except MailjetError as error:
        if not error.ambiguous:
            raise
        try:
            found = Draft.model_validate(await get_draft(door, draft_id))
        except MailjetError:
            raise error from None
        if found.status not in UNDER_WAY:
            raise
