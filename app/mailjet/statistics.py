"""What Mailjet itself counted, day by day: its `statcounters`, and for accounts without them its list of messages.

`CounterTiming=Message` files everything under the day on which the message was sent, `Event` opens, clicks, complaints
and unsubscribes under the day on which they happened; deliveries and failures only exist by message. Days are UTC, and
a day without anything is left out. The default limit is ten days, `FromTS` leaves its own moment out, and a misspelled
filter is ignored: so more is asked for than is wanted, and only the wanted days are read.

An account made before April 2018 and never migrated has no `statcounters`. Its messages are counted by their status
then, which tells of deliveries and failures only.

Source: mailjet/api-documentation:guides/_statistics.md; answers of the kind as exporters of metrics show them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from app.mailjet.answers import whole_number
from app.mailjet.door import Door, Query
from app.mailjet.errors import MailjetError, MailjetNotFound
from app.mailjet.messages import RESOURCE as MESSAGES
from app.mailjet.messages import STATUSES

RESOURCE = "/v3/REST/statcounters"
DAY = timedelta(days=1)

Figures = dict[date, Counter[str]]
"""Day -> the webhook's event type -> how many. A type that is not counted is not there."""

BY_MESSAGE = {
    "MessageSentCount": "sent", "MessageHardBouncedCount": "bounce", "MessageSoftBouncedCount": "bounce",
    "MessageBlockedCount": "blocked",
}  # fmt: skip
BY_EVENT = {
    "EventOpenedCount": "open", "EventClickedCount": "click", "EventSpamCount": "spam",
    "EventUnsubscribedCount": "unsub",
}  # fmt: skip
BY_STATUS = {
    "sent": "sent", "opened": "sent", "clicked": "sent", "spam": "sent", "unsub": "sent", "bounce": "bounce",
    "softbounced": "bounce", "hardbounced": "bounce", "blocked": "blocked",
}  # fmt: skip


async def count_days(door: Door, first: date, last: date) -> Figures:
    """Both days included. Raises MailjetError."""
    try:
        found = await _counters(door, "Message", BY_MESSAGE, first, last)
    except MailjetError as error:
        if not _is_unknown(error):
            raise
        return await _count_messages(door, first, last)
    for day, counted in (await _counters(door, "Event", BY_EVENT, first, last)).items():
        found[day].update(counted)
    return found


def _is_unknown(error: MailjetError) -> bool:
    """An unknown resource can be a 500 with this word."""
    return isinstance(error, MailjetNotFound) or "EFPWebError" in str(error)


async def _counters(door: Door, timing: str, names: Mapping[str, str], first: date, last: date) -> Figures:
    query: Query = {
        "CounterSource": "APIKey", "CounterTiming": timing, "CounterResolution": "Day", "Limit": 1000,
        "FromTS": _start(first - DAY), "ToTS": _start(last + DAY),
    }  # fmt: skip
    found = _nothing(first, last, names)
    for item in (await door.ask("count_events", RESOURCE, query)).data():
        day = _day_of(item)
        if day in found:
            for name, event_type in names.items():
                found[day][event_type] += whole_number(item.get(name)) or 0
    return found


def _nothing(first: date, last: date, names: Mapping[str, str]) -> Figures:
    """A day that Mailjet leaves out had nothing."""
    days = (first + n * DAY for n in range((last - first).days + 1))
    return {day: Counter(dict.fromkeys(names.values(), 0)) for day in days}


def _day_of(item: Mapping[str, Any]) -> date | None:
    try:
        return datetime.fromisoformat(str(item.get("Timeslice", ""))).date()
    except ValueError:
        return None


async def _count_messages(door: Door, first: date, last: date) -> Figures:
    found = _nothing(first, last, BY_STATUS)
    for day, counted in found.items():
        for status, event_type in BY_STATUS.items():
            query: Query = {
                # The second before is left out by itself.
                "FromTS": _seconds(day) - 1, "ToTS": _seconds(day + DAY) - 1, "MessageStatus": STATUSES[status],
                "countOnly": 1,
            }  # fmt: skip
            answer = await door.ask("count_events", MESSAGES, query)
            counted[event_type] += whole_number(answer.json_object().get("Total")) or 0
    return found


def _start(day: date) -> str:
    return f"{day.isoformat()}T00:00:00Z"


def _seconds(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())
