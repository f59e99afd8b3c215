"""Contacts at Mailjet -> events of ours. Pure: what is new of a contact, and the event that tells it.

Mailjet has no callbacks for contacts and no filter or sort by their last update. So contacts are polled and compared
with what was last seen of each: a `signature` of what a change would change. Seconds, clocks and the order in which
contacts become visible do not matter to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, Literal

import orjson

from app.mailjet.answers import whole_number
from app.mailjet.contacts import Contact
from app.mailjet.payloads import MailjetEvent

Kind = Literal["created", "updated", "both"]
CREATED, UPDATED = "contact_created", "contact_updated"

# Not what sending changes by itself: DeliveredCount and LastActivityAt.
COMPARED = ("Email", "Name", "IsExcludedFromCampaigns", "ExclusionFromCampaignsUpdatedAt", "IsOptInPending",
            "IsSpamComplaining", "LastUpdateAt", "UnsubscribedAt", "UnsubscribedBy")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sighting:
    """One contact as a look found it."""

    contact_id: str
    signature: str
    created: int | None
    """Unix seconds; None where Mailjet does not tell."""
    item: Mapping[str, Any]


def sighting_of(item: Mapping[str, Any]) -> Sighting | None:
    """None for what has no id."""
    number = whole_number(item.get("ID"))
    if not number:
        return None
    told = orjson.dumps([item.get(name) for name in COMPARED])
    signature = blake2b(told, digest_size=16).hexdigest()
    return Sighting(str(number), signature, _seconds(Contact.model_validate(item).created_at), item)


def event_type_of(sighting: Sighting, known: str | None, since: int | None, kind: Kind) -> str | None:
    """What this contact is news of; None for nothing.

    `known` is its signature of the last look, None for one not seen before. Then it is new, unless it was made before
    `since`: such a one was only not looked at yet.
    """
    if known is None:
        is_new = since is None or sighting.created is None or sighting.created >= since
        return CREATED if is_new and kind != "updated" else None
    return UPDATED if known != sighting.signature and kind != "created" else None


def event_of(event_type: str, sighting: Sighting, *, list_id: str | None, now: int) -> MailjetEvent:
    """In the form of Mailjet's own events: flat, its properties by their names.

    It happened when Mailjet says that the contact was made or changed; `now` (Unix seconds) where it does not say.
    """
    contact = Contact.model_validate(sighting.item)
    at = sighting.created if event_type == CREATED else _seconds(contact.updated_at)
    payload: dict[str, Any] = {
        "event": event_type, "time": now if at is None else at, "email": contact.email or "",
        "mj_contact_id": int(sighting.contact_id),
    } | ({"mj_list_id": int(list_id)} if list_id else {})  # fmt: skip
    payload |= {name: value for name, value in sighting.item.items() if name not in ("ID", "Email")}
    return MailjetEvent(event_type, payload["time"], payload, orjson.dumps(payload).decode())


def _seconds(moment: str | None) -> int | None:
    if moment is None:
        return None
    seconds = int(datetime.fromisoformat(moment).timestamp())
    return seconds if 0 <= seconds <= 4_102_444_800 else None
