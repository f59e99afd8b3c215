"""Mailjet's `contactslist` and the calls that put contacts on a list, in our words.

Source: mailjet/api-documentation:guides/_contacts.md, "Manage a contact's subscription" and "Bulk contact management".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from app.mailjet.answers import whole_number
from app.mailjet.contacts import Value
from app.mailjet.door import Door
from app.mailjet.fields import (
    Flag,
    Given,
    GivenText,
    Id,
    Listed,
    Moment,
    Number,
    Shown,
    Text,
    mailjet,
    to_mailjet,
)
from app.mailjet.objects import create_unique
from app.mailjet.pages import Page, Place, get_page

RESOURCE = "/v3/REST/contactslist"

Action = Literal["addforce", "addnoforce", "remove", "unsub"]
ACTIONS = (
    "`addforce`: add, and undo an earlier unsubscribe; `addnoforce`: add, and leave an unsubscribe as it is; `remove`:"
    " take off the list; `unsub`: stay on it, unsubscribed"
)


class ContactList(Shown):
    """One list of contacts."""

    id: Id = mailjet("ID")
    name: Text = mailjet("Name")
    address: Text = mailjet("Address", description="mail to it at `lists.mailjet.com` reaches the list")
    is_deleted: Flag = mailjet("IsDeleted")
    subscriber_count: Number = mailjet("SubscriberCount")
    created_at: Moment = mailjet("CreatedAt")


class ListFilters(Listed):
    """Which lists."""

    name: GivenText | None = to_mailjet("Name", description="lists of this name")


class NewList(Given):
    """A list to be made."""

    name: str = Field(serialization_alias="Name", min_length=1, max_length=500, description="`Name`")


class Subscriber(Given):
    """A contact for a list; it is made if it is not known."""

    email: str = Field(serialization_alias="Email", min_length=3, max_length=320, pattern="@", description="`Email`")
    name: str = to_mailjet("Name", "", max_length=500)
    properties: dict[str, Value] = to_mailjet("Properties", {}, description="values by name; defined before")


async def list_lists(door: Door, filters: Mapping[str, str | int], place: Place, limit: int) -> Page:
    return await get_page(door, "list_lists", RESOURCE, filters, place=place, limit=limit)


async def create_list(door: Door, name: str) -> dict[str, Any]:
    """Raises MailjetDuplicate for a name that is taken, see `create_unique`."""
    made = await create_unique(door, "create_list", RESOURCE, {"Name": name})
    if made is None:
        page = await list_lists(door, {"Name": name}, Place(), 1)
        made = page.items[0] if page.items else {"Name": name}
    return made


async def subscribe(door: Door, list_id: str, subscriber: Mapping[str, Any], action: Action) -> dict[str, Any]:
    """`managecontact`, which makes the contact if needed; asking twice does no more than once. Raises MailjetNotFound
    for a list that is not there."""
    path = f"{RESOURCE}/{list_id}/managecontact"
    answer = await door.change("subscribe", "POST", path, {**subscriber, "Action": action})
    return answer.first() or {}


async def subscribe_many(door: Door, list_id: str, subscribers: Sequence[Mapping[str, Any]], action: Action) -> str:
    """Mailjet's job for these contacts. Asking twice does no more than once. Raises MailjetUnreadable without a job."""
    path = f"{RESOURCE}/{list_id}/managemanycontacts"
    answer = await door.change("subscribe_many", "POST", path, {"Action": action, "Contacts": list(subscribers)})
    job = whole_number((answer.first() or {}).get("JobID"))
    if job is None:
        raise answer.unreadable("it names no JobID")
    return str(job)


async def subscribe_status(door: Door, list_id: str, job: str) -> Literal["running", "done", "failed"]:
    answer = await door.ask("subscribe_status", f"{RESOURCE}/{list_id}/managemanycontacts/{job}")
    status = str((answer.first() or {}).get("Status", "")).lower()
    return "done" if status == "completed" else "failed" if status in ("error", "abort", "aborted") else "running"
