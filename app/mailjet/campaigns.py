"""Mailjet's `campaign` (sent campaigns), in our words.

Source: mailjet/api-documentation:guides/_send-campaigns.md; mailjet-apiv3-nodejs, its types.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from app.mailjet.door import Door
from app.mailjet.fields import (
    Choice,
    Decimal,
    Flag,
    GivenFlag,
    GivenId,
    GivenText,
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
from app.mailjet.messages import FROM_TYPES, GivenFromType
from app.mailjet.objects import get_one
from app.mailjet.pages import Page, Place, get_page

RESOURCE = "/v3/REST/campaign"
PERIODS = {"day": "Day", "week": "Week", "month": "Month", "year": "Year"}
SORTS = {"id": "ID", "-id": "ID DESC"}
# Of a draft; a sent campaign is `sent`.
STATUSES = {
    "draft": 0, "programmed": 1, "sent": 2, "archived": -1, "deleted": -2, "ax_cancelled": -3, "ax_tested": 3,
    "ax_selected": 4, "ax_sent_lost": 5, "ax_sent_won": 6,
}  # fmt: skip


class Campaign(Shown):
    """One campaign that was sent; transactional messages are grouped into such as well."""

    id: Id = mailjet("ID")
    from_type: Annotated[str | None, word_of(FROM_TYPES)] = mailjet("CampaignType")
    status: Annotated[str | None, word_of(STATUSES)] = mailjet("Status")
    subject: Text = mailjet("Subject")
    from_email: Text = mailjet("FromEmail")
    from_name: Text = mailjet("FromName")
    custom_campaign: Text = mailjet("CustomValue", description="as in events; `mj.nl=…` of a marketing campaign")
    contact_list_id: Id = mailjet("ListID")
    segmentation_id: Id = mailjet("SegmentationID")
    newsletter_id: Id = mailjet("NewsLetterID")
    first_message_id: Id = mailjet("FirstMessageID")
    is_deleted: Flag = mailjet("IsDeleted")
    is_starred: Flag = mailjet("IsStarred")
    open_tracked: Number = mailjet("OpenTracked")
    click_tracked: Number = mailjet("ClickTracked")
    unsubscribe_tracked: Number = mailjet("UnsubscribeTrackedCount")
    spam_score: Decimal = mailjet("SpamassScore")
    created_at: Moment = mailjet("CreatedAt")
    started_at: Moment = mailjet("SendStartAt")
    ended_at: Moment = mailjet("SendEndAt")


class CampaignFilters(Listed):
    """Which campaigns."""

    contact_list_id: GivenId | None = to_mailjet("ContactsListID", description="sent to this list")
    from_email: GivenText | None = to_mailjet("From", description="sent from this address")
    from_type: GivenFromType | None = to_mailjet("FromType")
    since: UnixTime | None = to_mailjet("FromTS", description="sent after this time; Mailjet leaves it out itself")
    until: UnixTime | None = to_mailjet("ToTS", description="sent until this time")
    is_deleted: GivenFlag | None = to_mailjet("IsDeleted")
    is_newsletter_tool: GivenFlag | None = to_mailjet("IsNewsletterTool", description="made in Mailjet's own editor")
    is_starred: GivenFlag | None = to_mailjet("IsStarred")
    period: Annotated[str, Choice(PERIODS)] | None = to_mailjet("Period")
    sort: Annotated[str, Choice(SORTS)] = to_mailjet("Sort", "id", description="`-id`: the newest first")


async def list_campaigns(door: Door, filters: Mapping[str, str | int], place: Place, limit: int) -> Page:
    """`filters` with `Sort`."""
    sort = str(filters.get("Sort", "ID"))
    return await get_page(door, "list_campaigns", RESOURCE, filters, place=place, limit=limit, sort=sort)


async def get_campaign(door: Door, campaign_id: str) -> dict[str, Any]:
    """Raises MailjetNotFound."""
    return await get_one(door, "get_campaign", f"{RESOURCE}/{campaign_id}", "campaign")
