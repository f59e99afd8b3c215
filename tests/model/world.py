"""What the service knows, as a plain model: a dictionary of events and a few loops over it. Times are microseconds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.clock import from_micros, rfc3339
from app.ingest.identity import event_id
from tests.model.counting import Counted, fact_of
from tests.model.reading import fields_of
from tests.model.standing import Standing, fact_against

DAY = 86_400_000_000
SECOND = 1_000_000

# webhook -> (its connection, the types it watches). `orders` watches all that `archive` does, so of one arrival the
# copies of `archive` are always among those of `orders`: recipients are counted by the webhook that has more.
ALL = ("sent", "open", "click", "bounce", "spam", "blocked", "unsub")
WEBHOOKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "archive": ("default", ("open", "click", "bounce", "blocked")),
    "orders": ("default", ALL),
    "partner": ("second", ALL),
}
OWED_TYPE = "spam"  # of these the one sink hears, and it never answers


@dataclass(slots=True, eq=False)
class Event:
    """One stored event. `post` numbers the post that brought it; `raw` is None once it is redacted."""

    id: str
    webhook: str
    connection: str
    occurred: int
    received: int
    raw: str | None
    post: int
    fields: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.fields[name]

    @property
    def is_owed(self) -> bool:
        return bool(self.fields["type"] == OWED_TYPE and not self.fields["test"])


@dataclass(slots=True)
class World:
    """`events` are the stored ones; `counted` what statistics hold, which outlives them."""

    standing: Standing = field(default_factory=Standing)
    events: dict[str, Event] = field(default_factory=dict)
    counted: dict[Event, Counted] = field(default_factory=dict)
    posts: int = 0
    _by_folded: dict[str, list[Event]] = field(default_factory=dict)

    # --- coming in ---

    def post(self, webhook: str, texts: Iterable[str], received: int) -> dict[str, int]:
        """One callback POST of these elements; the answer. An element that is no event goes to quarantine."""
        self.posts += 1
        answer = dict.fromkeys(("received", "stored", "duplicates", "quarantined"), 0)
        for text in texts:
            answer["received"] += 1
            payload = json.loads(text)
            if "time" not in payload:
                answer["quarantined"] += 1
            elif self._take(webhook, payload, text, received):
                answer["stored"] += 1
            else:
                answer["duplicates"] += 1
        return answer

    def _take(self, webhook: str, payload: dict[str, Any], text: str, received: int) -> bool:
        """True where it is new for any webhook that hears of it."""
        connection = WEBHOOKS[webhook][0]
        alike = {name for name, (of, types) in WEBHOOKS.items() if of == connection and payload["event"] in types}
        time = int(payload["time"])
        ids = {name: event_id(name, time, payload) for name in {webhook, *alike}}
        new = {id: name for name, id in ids.items() if id not in self.events}
        for id, name in new.items():
            event = Event(id, name, connection, time * SECOND, received, text, self.posts, fields_of(payload))
            self.events[id] = event
            self._by_folded.setdefault((event.email or "").lower(), []).append(event)
        self.standing.take([fact for id in new if (fact := fact_against(self.events[id]))], self.facts_of)
        return bool(new)

    def facts_of(self, email: str) -> list[Any]:
        """What the stored events say against mailing an address."""
        return [fact for event in self.events_of(email) if (fact := fact_against(event))]

    def events_of(self, email: str, *, folded: bool = False) -> list[Event]:
        """The stored events of an address; `folded`: also of those that differ in capitals only."""
        alike = self._by_folded.get(email.lower(), ())
        there = [event for event in alike if event.email is not None and self.events.get(event.id) is event]
        return there if folded else [event for event in there if event.email == email]

    # --- counting ---

    def fold(self) -> None:
        """Everything stored is counted; what machines opened or clicked too soon after `sent` is found out."""
        fresh = [event for event in self.events.values() if event not in self.counted]
        sent: dict[str, list[int]] = {}
        for event in self.events.values():
            if event.type == "sent" and event.message_id:
                sent.setdefault(event.message_id, []).append(event.occurred)
        concerned = {event.message_id for event in fresh if event.type == "sent" or event.automated is False}
        for event in self.events.values():
            if event.automated is False and event.message_id in concerned and event.raw is not None:
                self._judge(event, sent.get(event.message_id, ()))
        self.counted.update((event, fact_of(event)) for event in fresh)

    def _judge(self, event: Event, sent: Iterable[int]) -> None:
        if any(-60 * SECOND <= event.occurred - moment <= 2 * SECOND for moment in sent):
            event.fields |= {"automated": True, "automated_rule": "soon_after_sent"}
            if event in self.counted:
                self.counted[event] = fact_of(event)

    @property
    def uncounted(self) -> int:
        return sum(event not in self.counted for event in self.events.values())

    # --- going ---

    def erase(self, email: str, *, folded: bool, keep_suppression: bool) -> int:
        """Events erased."""

        def is_meant(address: str) -> bool:
            return address.lower() == email.lower() if folded else address == email

        gone = self.events_of(email, folded=folded)
        for event in gone:
            del self.events[event.id]
            self.counted.pop(event, None)
        self.standing.forget(is_meant, keep=keep_suppression)
        return len(gone)

    def retain(self, now: int, *, days: float | None, payload_days: float | None, though_owed: bool) -> None:
        for event in list(self.events.values()):
            if event.is_owed and not though_owed:
                continue
            if days is not None and max(event.occurred, event.received) < now - days * DAY:
                del self.events[event.id]
            elif payload_days is not None and event.occurred < now - payload_days * DAY:
                _redact(event)


def _redact(event: Event) -> None:
    """The payload and what is personal goes, and any text with an address in it."""
    event.raw = None
    event.fields |= dict.fromkeys(("email", "contact_id", "custom_id", "payload"))
    event.fields["details"] = {}
    for name in ("message_id", "message_guid", "campaign_id", "list_id", "custom_campaign", "reason", "reason_group"):
        if "@" in (event.fields[name] or ""):
            event.fields[name] = None


def view(event: Event) -> Mapping[str, Any]:
    """The event as REST shows it, without `raw`."""
    shown = {name: value for name, value in event.fields.items() if name != "email_domain"}
    told = {
        "id": event.id,
        "webhook": event.webhook,
        "connection": event.connection,
        "occurred_at": rfc3339(from_micros(event.occurred)),
        "received_at": rfc3339(from_micros(event.received)),
    }
    return told | shown | ({"redacted": True} if event.raw is None else {})
