"""The stand-in's `statcounters`: what its messages and their histories add up to, as Mailjet files it.

Source: mailjet/api-documentation:guides/_statistics.md, "Event-based vs Message-based Stats Timing".
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response

from app.simulator.account import Account
from app.simulator.callbacks import CallbackError
from app.simulator.replies import envelope, not_offered, number

NAMES = (
    "EventClickDelay", "EventClickedCount", "EventOpenDelay", "EventOpenedCount", "EventSpamCount",
    "EventUnsubscribedCount", "EventWorkflowExitedCount", "MessageBlockedCount", "MessageClickedCount",
    "MessageDeferredCount", "MessageHardBouncedCount", "MessageOpenedCount", "MessageQueuedCount", "MessageSentCount",
    "MessageSoftBouncedCount", "MessageSpamCount", "MessageUnsubscribedCount", "MessageWorkFlowExitedCount", "Total",
)  # fmt: skip
OF_MESSAGES = {
    "sent": "MessageSentCount", "opened": "MessageOpenedCount", "clicked": "MessageClickedCount",
    "spam": "MessageSpamCount", "unsub": "MessageUnsubscribedCount", "blocked": "MessageBlockedCount",
    "bounced": "MessageHardBouncedCount", "hardbounced": "MessageHardBouncedCount",
    "softbounced": "MessageSoftBouncedCount",
}  # fmt: skip
OF_EVENTS = {
    "opened": "EventOpenedCount", "clicked": "EventClickedCount", "spam": "EventSpamCount",
    "unsub": "EventUnsubscribedCount",
}  # fmt: skip
CHOICES = {
    "CounterSource": ("apikey", "campaign", "list", "sender"), "CounterTiming": ("message", "event"),
    "CounterResolution": ("highest", "hour", "day", "lifetime"),
}  # fmt: skip
SLICES = {"highest": "%Y-%m-%dT%H:%M:00Z", "hour": "%Y-%m-%dT%H:00:00Z", "day": "%Y-%m-%dT00:00:00Z", "lifetime": ""}
MAX_LIMIT = 1000


def counters(account: Account, method: str, path: list[str], query: Mapping[str, str], body: Any) -> Response:
    """Slices without anything are left out, and ten of them are the default."""
    if method != "GET" or path:
        raise not_offered()
    if not account.has_counters:
        raise CallbackError(500, 'Could not determine HTTP module for request "statcounters"', info="EFPWebError")
    for name, choices in CHOICES.items():
        if query.get(name, "").lower() not in choices:
            raise CallbackError(400, f'Invalid or missing value for filter "{name}"')
    found = _counted(account, query)
    rows = [_row(name, found[name]) for name in sorted(found)]
    limit = min(number(query, "Limit", 10), MAX_LIMIT) or MAX_LIMIT
    offset = number(query, "Offset", 0)
    return envelope(rows[offset : offset + limit])


def _counted(account: Account, query: Mapping[str, str]) -> dict[str, Counter[str]]:
    form = SLICES[query["CounterResolution"].lower()]
    first, last = _seconds(query.get("FromTS", "0")), _seconds(query.get("ToTS", "9999999999"))
    found: dict[str, Counter[str]] = defaultdict(Counter)
    by_event = query["CounterTiming"].lower() == "event"
    for when, name in _by_event(account) if by_event else _by_message(account):
        if not form or first < when <= last:
            found[datetime.fromtimestamp(when, UTC).strftime(form)][name] += 1
    return found


def _by_event(account: Account) -> Iterator[tuple[float, str]]:
    for entries in account.histories.values():
        for entry in entries:
            if entry["EventType"] in OF_EVENTS:
                yield entry["EventAt"], OF_EVENTS[entry["EventType"]]


def _by_message(account: Account) -> Iterator[tuple[float, str]]:
    """Everything at the time when its message was sent."""
    for number_, message in account.messages.items():
        when = _seconds(message["ArrivedAt"])
        kinds = [entry["EventType"] for entry in account.histories.get(number_, [])]
        yield when, "Total"
        yield from ((when, OF_MESSAGES[kind]) for kind in set(kinds) if kind in OF_MESSAGES)
        yield from ((when, OF_EVENTS[kind]) for kind in kinds if kind in OF_EVENTS)


def _row(timeslice: str, counted: Counter[str]) -> dict[str, Any]:
    return {"APIKeyID": 5001, "SourceID": 0, "Timeslice": timeslice} | {name: counted[name] for name in NAMES}


def _seconds(value: str) -> float:
    return float(value) if value.isdigit() else datetime.fromisoformat(value).timestamp()
