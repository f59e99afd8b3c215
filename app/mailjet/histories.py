"""A message and an entry of its history -> the event that the callback would have told; and which of them are missing.
Pure.

The history says less: no address of an opener, no link that was clicked, no list that was left. What it does not say is
`""`, as in Mailjet's own events. `jethook_origin` marks what was made here, for whoever gets it.

Times may differ by a moment from those of the callbacks, and identical clicks of one second are one event (see
`ingest.identity`), so entries are held against what is stored by type and second: nothing that is there is made twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from app.mailjet.answers import whole_number
from app.mailjet.messages import HISTORY_TYPES, STATES
from app.mailjet.payloads import LATEST_TIME, MailjetEvent
from app.mailjet.vocabulary import ERRORS, EVENT_TYPES, ORIGIN_KEY, as_bool, as_text

ORIGIN = "messagehistory"
OFTEN = frozenset({"open", "click"})  # the others happen to a message once, whatever the second
TOLERANCE_SECONDS = 2

Kind = tuple[str, int]
"""Type and Unix second."""

_STATE_WORDS = {number: word for word, number in STATES.items()}


def event_of(message: Mapping[str, Any], entry: Mapping[str, Any]) -> MailjetEvent | None:
    """Both as Mailjet sends them. None for what has no callback (a workflow's exit), or lacks a time as callbacks have
    it: in milliseconds, say, it would be a row that nobody can show."""
    word = (as_text(entry.get("EventType")) or "").lower()
    event_type, time = HISTORY_TYPES.get(word, word), whole_number(entry.get("EventAt"))
    if event_type not in EVENT_TYPES or time is None or time > LATEST_TIME:
        return None
    payload = {
        "event": event_type, "time": time, "MessageID": _id(message.get("ID")),
        "Message_GUID": as_text(message.get("UUID")) or "", "email": as_text(message.get("ContactAlt")) or "",
        "mj_campaign_id": _id(message.get("CampaignID")), "mj_contact_id": _id(message.get("ContactID")),
        "customcampaign": "",
        "CustomID": as_text(message.get("CustomID")) or "", "Payload": "",
        **_extras(event_type, word, message, entry), ORIGIN_KEY: ORIGIN,
    }  # fmt: skip
    return MailjetEvent(event_type, time, payload, orjson.dumps(payload).decode())


def _id(value: Any) -> int:
    """0 for none; Mailjet's have 64 bits, and no JSON writer of ours takes more."""
    number = whole_number(value)
    return number if number is not None and number < 2**64 else 0


def _extras(event_type: str, word: str, message: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    comment, agent = as_text(entry.get("Comment")) or "", as_text(entry.get("Useragent")) or ""
    reader = {"ip": "", "geo": "", "agent": agent}
    match event_type:
        case "sent":
            return {"smtp_reply": comment}
        case "open":
            return reader
        case "click":
            return {"url": "", **reader}
        case "unsub":
            return {"mj_list_id": 0, **reader}
        case "spam":
            return {"source": ""}
        case "bounce":
            return {"blocked": "", "hard_bounce": _is_hard(word, message), **_error(message, entry), "comment": comment}
        case _:
            return _error(message, entry)


def _is_hard(word: str, message: Mapping[str, Any]) -> bool | str:
    told = {"hardbounced": True, "softbounced": False}.get(word, as_bool(message.get("StatePermanent")))
    return "" if told is None else told


def _error(message: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, str]:
    """The entry's own state, or the message's; by its number or its word."""
    for state in (entry.get("State"), message.get("StateID")):
        number = whole_number(state)
        word = as_text(state) if number is None else _STATE_WORDS.get(number)
        if word:
            known = ERRORS.get(word.lower())
            return {"error_related_to": known[0] if known else "", "error": word}
    return {"error_related_to": "", "error": ""}


def missing(entries: Iterable[Kind], stored: Iterable[Kind]) -> set[Kind]:
    """Of one message's history, what is not stored for one webhook.

    What fits to the second is the same; then what is near. Where all times differ by the same moment, that would pair
    some with their neighbours: so it is also tried in order, and what leaves fewer counts.
    """
    wanted, there = set(entries), set(stored)
    exact = _unmatched(wanted - there, there - wanted)
    return min(exact, _unmatched(wanted, there), key=len)


def _unmatched(wanted: set[Kind], there: set[Kind]) -> set[Kind]:
    """Each of `wanted` takes the first that is near enough and not taken yet."""
    left, free = set(wanted), sorted(there)
    for event_type, second in sorted(wanted):
        reach = TOLERANCE_SECONDS if event_type in OFTEN else float("inf")
        near = next((kind for kind in free if kind[0] == event_type and abs(kind[1] - second) <= reach), None)
        if near is not None:
            free.remove(near)
            left.discard((event_type, second))
    return left
