"""What each question ought to be answered, by the model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.clock import from_micros, rfc3339
from tests.model.counting import HOUR, fact_of, rows_of
from tests.model.standing import REASONS, Entry, Place, Standing
from tests.model.world import SECOND, Event, World, view

LATEST = 50
COLUMNS = (
    "id", "webhook", "connection", "type", "outcome", "occurred_at", "received_at", "test", "email", "message_id",
    "message_guid", "campaign_id", "contact_id", "list_id", "custom_id", "custom_campaign", "permanent", "reason",
    "reason_group", "automated", "automated_rule", "payload", "origin",
)  # fmt: skip


def moment(micros: int) -> str:
    return rfc3339(from_micros(micros))


# --- exports ---------------------------------------------------------------------------------------------------------


def exported(event: Event) -> dict[str, Any]:
    return {**view(event), "raw": None if event.raw is None else json.loads(event.raw)}


def csv_row(event: Event) -> dict[str, Any]:
    """Texts; null is nothing. `details` is compact JSON, `raw` as it came."""
    told = view(event)
    shown = {name: _cell(told[name]) for name in COLUMNS}
    details = json.dumps(told["details"], ensure_ascii=False, separators=(",", ":"))
    return shown | {"details": details, "raw": event.raw or ""}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- messages --------------------------------------------------------------------------------------------------------


def arrivals_of(events: Iterable[Event]) -> list[list[Event]]:
    """Copies together: the same text at another webhook of the connection. That of the first webhook by name leads."""
    found: dict[tuple[Any, ...], list[Event]] = {}
    for event in sorted(events, key=lambda event: event.webhook):
        found.setdefault((event.connection, event.raw or event.id), []).append(event)
    return sorted(found.values(), key=lambda copies: copies[0].id)


def message(events: list[Event]) -> dict[str, Any]:
    arrivals = arrivals_of(events)
    leading = [copies[0] for copies in arrivals]
    times: dict[str, list[int]] = {}
    for event in leading:
        times.setdefault(event.type, []).append(event.occurred)
    state, permanent = _state(leading)
    return {
        **{name: _first(leading, name) for name in ("message_id", "message_guid", "email")},
        "state": state,
        "permanent": permanent,
        "counts": {kind: len(found) for kind, found in times.items()},
        "first": {kind: moment(min(found)) for kind, found in times.items()},
        "last": {kind: moment(max(found)) for kind, found in times.items()},
        "seconds_to_open": _delay(times, "open"),
        "seconds_to_click": _delay(times, "click"),
        "events": [_timeline_event(copies) for copies in arrivals],
        "events_truncated": False,
    }


def _first(events: Iterable[Event], name: str) -> Any:
    return next((getattr(event, name) for event in events if getattr(event, name) is not None), None)


def _timeline_event(copies: Sequence[Event]) -> dict[str, Any]:
    return {**view(copies[0]), "copies": [{"webhook": copy.webhook, "id": copy.id} for copy in copies[1:]]}


def _delay(times: Mapping[str, list[int]], kind: str) -> int | None:
    if kind not in times or "sent" not in times:
        return None
    return max((min(times[kind]) - min(times["sent"])) // SECOND, 0)


def _state(events: Iterable[Event]) -> tuple[str, bool | None]:
    """The strongest of what is known; of two failures alike that which says whether it lasts."""
    told = {(e.outcome, e.permanent if e.outcome in ("bounced", "rejected") else None) for e in events}
    order: list[tuple[str, bool | None]] = [
        ("complained", None), ("unsubscribed", None), ("bounced", True), ("rejected", True), ("clicked", None),
        ("opened", None), ("delivered", None), ("bounced", False), ("bounced", None), ("rejected", False),
        ("rejected", None), ("deferred", None),
    ]  # fmt: skip
    return next((state for state in order if state in told), ("unknown", None))


# --- recipients ------------------------------------------------------------------------------------------------------


def recipient(world: World, email: str, *, folded: bool) -> tuple[dict[str, Any], list[list[Event]]]:
    """(all but the events, which are: arrivals, each with its copies)."""

    def is_meant(address: str) -> bool:
        return address == email or (folded and address.lower() == email.lower())

    mine = world.events_of(email, folded=folded)
    places = {**world.standing.entries, **hidden(world.standing)}
    standing = [entry(place, told) for place, told in places.items() if is_meant(place[0].removeprefix(HIDDEN))]
    history = [act for act in reversed(world.standing.acts) if is_meant(act.email)]
    # A redacted event has no address, so none of these is one.
    contents = {(event.connection, event.type, _content(event)) for event in mine}
    return {
        "email": email,
        "known": bool(mine or history or any(row["email"] for row in standing)),
        "spellings": sorted({email, *(event.email for event in mine)}),
        "counts": dict(Counter(kind for _, kind, _ in contents)),
        "first_event_at": moment(min(event.occurred for event in mine)) if mine else None,
        "last_event_at": moment(max(event.occurred for event in mine)) if mine else None,
        "suppressed": any(row["scope"] == "address" for row in standing),
        "suppressions": sorted(standing, key=str),
        "history": [
            {name: getattr(act, name) for name in ("act", "email", "scope", "list_id", "reason", "comment")}
            for act in history[:LATEST]
        ],
    }, arrivals_of(mine)


def _content(event: Event) -> str:
    return json.dumps(json.loads(event.raw or ""), sort_keys=True)


def latest_fault(shown: Sequence[Mapping[str, Any]], arrivals: Sequence[Sequence[Event]]) -> str | None:
    """What is wrong with the latest events that were told; of one second any may come first."""
    leading = {copies[0].id: copies[0] for copies in arrivals}
    times = sorted((event.occurred for event in leading.values()), reverse=True)[:LATEST]
    if [row["occurred_at"] for row in shown] != [moment(at) for at in times]:
        return "the times differ"
    if len({row["id"] for row in shown}) != len(shown):
        return "one is told twice"
    wrong = [row["id"] for row in shown if row["id"] not in leading or row != view(leading[row["id"]])]
    return f"{wrong} differ" if wrong else None


# --- suppressions ----------------------------------------------------------------------------------------------------

HIDDEN = "\0"


def hidden(standing: Standing) -> dict[Place, Entry]:
    """Those of erased people, under addresses that are marked."""
    return {(HIDDEN + place[0], *place[1:]): Entry(since, None) for place, since in standing.hidden.items()}


def entry(place: Place, told: Entry) -> dict[str, Any]:
    email, reason, list_id = place
    return {
        "email": None if email.startswith(HIDDEN) else email, "reason": reason,
        "scope": "address" if list_id is None else "list", "list_id": list_id, "event_id": told.event_id,
        "since": moment(told.since), "comment": told.comment,
    }  # fmt: skip


def check(standing: Standing, email: str, list_id: str | None) -> dict[str, Any]:
    found = [*standing.entries.items(), *((place, Entry(at, None)) for place, at in standing.hidden.items())]
    mine = [entry(place, told) for place, told in found if place[0] == email]
    counting = [row["reason"] for row in mine if row["list_id"] in (None, list_id)]
    rows = [{name: row[name] for name in ("reason", "scope", "list_id", "since")} for row in mine]
    return {
        "email": email,
        "suppressed": bool(counting),
        "reason": min(counting, key=REASONS.index, default=None),
        "suppressions": sorted(rows, key=str),
    }


# --- statistics ------------------------------------------------------------------------------------------------------


def stats(
    world: World, *, interval: str | None, group_by: tuple[str, ...], filters: Mapping[str, Any],
    span: tuple[int, int] | None, from_events: bool,
) -> dict[tuple[Any, ...], Any]:  # fmt: skip
    """(start, grouped values …) -> row. Whole hours are counted once and for all; the rest is read from the events."""
    if from_events:
        facts = [fact_of(event) for event in world.events.values()]
    else:
        first, beyond = span or (0, 2**62)
        whole = range(-(-first // HOUR), beyond // HOUR)
        facts = [fact for fact in world.counted.values() if fact.occurred // HOUR in whole]
        facts += [
            fact_of(event) for event in world.events.values()
            if event not in world.counted or event.occurred // HOUR not in whole
        ]  # fmt: skip
    within = [fact for fact in facts if span is None or span[0] <= fact.occurred < span[1]]
    rows = rows_of(within, interval=interval, group_by=group_by, filters=filters)
    return {(None if interval is None else moment(key[0]), *key[1:]): row for key, row in rows.items()}
