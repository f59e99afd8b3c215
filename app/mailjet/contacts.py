"""Mailjet's `contact`, `contactdata` and the deletion of v4, in our words.

Source: mailjet/api-documentation:guides/_contacts.md and _gdpr-delete-contacts.md; mailjet-apiv3-nodejs, its types.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pydantic import Field

from app.mailjet.door import Door
from app.mailjet.errors import MailjetNotFound
from app.mailjet.fields import (
    Flag,
    Given,
    GivenFlag,
    GivenId,
    Id,
    Listed,
    Moment,
    Number,
    Shown,
    Text,
    mailjet,
    to_mailjet,
)
from app.mailjet.objects import create_unique, get_one, once
from app.mailjet.pages import Page, Place, get_page

RESOURCE = "/v3/REST/contact"
DATA = "/v3/REST/contactdata"

Value = str | int | float | bool


class Contact(Shown):
    """One person's address at Mailjet."""

    id: Id = mailjet("ID")
    email: Text = mailjet("Email")
    name: Text = mailjet("Name")
    is_excluded: Flag = mailjet("IsExcludedFromCampaigns")
    is_opt_in_pending: Flag = mailjet("IsOptInPending")
    is_spam_complaining: Flag = mailjet("IsSpamComplaining")
    delivered_count: Number = mailjet("DeliveredCount")
    created_at: Moment = mailjet("CreatedAt")
    updated_at: Moment = mailjet("LastUpdateAt")
    last_activity_at: Moment = mailjet("LastActivityAt")
    excluded_at: Moment = mailjet("ExclusionFromCampaignsUpdatedAt")
    unsubscribed_at: Moment = mailjet("UnsubscribedAt")
    unsubscribed_by: Text = mailjet("UnsubscribedBy")


class ContactFilters(Listed):
    """Which contacts."""

    campaign_id: GivenId | None = to_mailjet("Campaign", description="contacts of this campaign")
    contact_list_id: GivenId | None = to_mailjet("ContactsList", description="contacts on this list")
    is_excluded: GivenFlag | None = to_mailjet("IsExcludedFromCampaigns", description="excluded from campaigns")


class ContactChanges(Given):
    """What of a contact can be changed; what is left out stays as it is."""

    name: str = to_mailjet("Name", "", max_length=500)
    is_excluded: GivenFlag = to_mailjet("IsExcludedFromCampaigns", False, description="excluded from campaigns")
    properties: dict[str, Value] = Field(
        {}, description="values by name (`contactdata`); properties not named keep theirs. They must be defined before"
    )


class NewContact(ContactChanges):
    """A contact to be made."""

    email: str = Field(serialization_alias="Email", min_length=3, max_length=320, pattern="@", description="`Email`")


def contact_path(key: str, resource: str = RESOURCE) -> str:
    """By id or by address, which may hold anything."""
    return f"{resource}/{quote(key, safe='')}"


async def list_contacts(door: Door, filters: Mapping[str, str | int], place: Place, limit: int) -> Page:
    return await get_page(door, "list_contacts", RESOURCE, filters, place=place, limit=limit)


async def get_contact(door: Door, key: str) -> dict[str, Any]:
    """Raises MailjetNotFound."""
    return await get_one(door, "get_contact", contact_path(key), "contact")


async def get_properties(door: Door, key: str) -> dict[str, Any]:
    """The contact's own values by name, most of them texts; empty for a contact that has none."""
    try:
        found = (await door.ask("get_contact_data", contact_path(key, DATA))).first()
    except MailjetNotFound:
        return {}
    pairs = (found or {}).get("Data")
    if not isinstance(pairs, list):
        return {}
    return {str(pair["Name"]): pair.get("Value") for pair in pairs if isinstance(pair, dict) and "Name" in pair}


async def create_contact(door: Door, body: Mapping[str, Any]) -> dict[str, Any]:
    """Raises MailjetDuplicate for a known address, see `create_unique`."""
    return await create_unique(door, "create_contact", RESOURCE, body) or await get_contact(door, str(body["Email"]))


async def update_contact(door: Door, key: str, changes: Mapping[str, Any]) -> None:
    """Only what is in `changes`; 304 says that it was so already. Raises MailjetNotFound."""
    await door.change("update_contact", "PUT", contact_path(key), dict(changes))


async def update_properties(door: Door, key: str, values: Mapping[str, Value]) -> None:
    """PUT keeps the properties that are not named. A plain object instead of pairs would be refused."""
    body = {"Data": [{"Name": name, "Value": value} for name, value in values.items()]}
    await door.change("update_contact_data", "PUT", contact_path(key, DATA), body)


async def delete_contact(door: Door, contact_id: str) -> None:
    """Anonymised at once, gone after 30 days; needs the number. Raises MailjetNotFound."""
    path = contact_path(contact_id, "/v4/contacts")
    await once(door, lambda: door.send("delete_contact", "DELETE", path), MailjetNotFound)
