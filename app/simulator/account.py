"""What one API key holds at the stand-in Mailjet: contacts, lists, drafts, campaigns, messages, SMS.

Tests read and fill the tables directly. Rows are objects as Mailjet answers with them, by their ids.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from app.simulator.replies import Object


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Account:
    first_id: int = 1
    now: Callable[[], datetime] = _now
    contacts: dict[int, Object] = field(default_factory=dict)
    properties: dict[int, Object] = field(default_factory=dict)  # by contact
    defined: set[str] = field(default_factory=lambda: {"firstname", "city", "age"})  # names of properties
    lists: dict[int, Object] = field(default_factory=dict)
    members: dict[tuple[int, int], Object] = field(default_factory=dict)  # by list and contact
    jobs: dict[int, Object] = field(default_factory=dict)
    drafts: dict[int, Object] = field(default_factory=dict)
    contents: dict[int, Object] = field(default_factory=dict)  # by draft
    campaigns: dict[int, Object] = field(default_factory=dict)
    messages: dict[int, Object] = field(default_factory=dict)
    histories: dict[int, list[Object]] = field(default_factory=dict)  # by message
    sms: list[Object] = field(default_factory=list)
    happened: deque[Object] = field(default_factory=lambda: deque(maxlen=10_000))  # events that nobody has posted yet
    has_counters: bool = True  # accounts from before April 2018 may have none
    _ids: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self._ids = itertools.count(self.first_id)

    def next_id(self) -> int:
        return next(self._ids)

    def time(self) -> str:
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")

    def add_contact(self, email: str, **more: Any) -> Object:
        """As if somebody else had made it."""
        row: Object = {
            "ID": self.next_id(), "Email": email, "Name": "", "IsExcludedFromCampaigns": False,
            "CreatedAt": self.time(), "DeliveredCount": 0, "ExclusionFromCampaignsUpdatedAt": "",
            "IsOptInPending": False, "IsSpamComplaining": False, "LastActivityAt": "", "LastUpdateAt": "",
            "UnsubscribedAt": "", "UnsubscribedBy": "",
        } | more  # fmt: skip
        self.contacts[row["ID"]] = row
        return row

    def find_contact(self, key: str) -> Object | None:
        if key.isdigit():
            return self.contacts.get(int(key))
        return next((row for row in self.contacts.values() if row["Email"].lower() == key.lower()), None)

    def change_contact(self, contact: Object, **changes: Any) -> None:
        contact |= changes | {"LastUpdateAt": self.time()}

    def add_list(self, name: str, **more: Any) -> Object:
        number = self.next_id()
        row: Object = {
            "ID": number, "Name": name, "Address": f"list{number}", "CreatedAt": self.time(), "IsDeleted": False,
            "SubscriberCount": 0,
        } | more  # fmt: skip
        self.lists[number] = row
        return row

    def add_message(self, **more: Any) -> Object:
        # Beyond 2^53, as Mailjet's own are.
        row: Object = {"ID": 2**60 + self.next_id(), "ArrivedAt": self.time(), "Status": "sent"} | more
        self.messages[row["ID"]] = row
        return row
