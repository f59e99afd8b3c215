"""Should this sink hear of this event? Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from app import operator_events
from app.conditions import parse_condition
from app.mailjet.payloads import decode
from app.settings import SinkSettings
from app.views import EVENT_COLUMNS, view_of_values

_EMAIL, _MESSAGE_ID, _MESSAGE_GUID = (EVENT_COLUMNS.index(name) for name in ("email", "message_id", "message_guid"))


def matches(sink: SinkSettings, *, webhook: str, event_type: str) -> bool:
    """An unset list means all of Mailjet's, unknown types too. Operator events reach only sinks that ask for them,
    whatever webhooks those name: they are of none."""
    if webhook == operator_events.WEBHOOK:
        return event_type in operator_events.asked_for(sink.events)
    if sink.webhooks and webhook not in sink.webhooks:
        return False
    # A sender's own word that looks like one of ours is an unknown type, and none of ours.
    return not sink.events or (event_type in sink.events and not operator_events.is_operator_word(event_type))


@dataclass(frozen=True, slots=True)
class Target:
    """A sink that should hear of an event; `order_key` names those that must reach it one after the other."""

    sink: str
    order_key: str | None = None


class Matcher:
    """Which sinks hear of an event. `matches` is remembered for each (webhook, type), since it does not change while we
    run; a sink's further condition is asked for each event."""

    MOST_REMEMBERED = 1000  # unknown types are the sender's own words; they must not fill the memory

    def __init__(self, sinks: Mapping[str, SinkSettings]) -> None:
        self._sinks = dict(sinks)
        self._conditions = {name: parse_condition(s.filter) for name, s in sinks.items() if s.filter is not None}
        self._known: dict[tuple[str, str], tuple[str, ...]] = {}

    def sinks_for(self, webhook: str, event_type: str) -> tuple[str, ...]:
        key = (webhook, event_type)
        found = self._known.get(key)
        if found is None:
            found = tuple(n for n, s in self._sinks.items() if matches(s, webhook=webhook, event_type=event_type))
            if len(self._known) < self.MOST_REMEMBERED:
                self._known[key] = found
        return found

    def targets(self, webhook: str, event_type: str, event: tuple[Any, ...]) -> list[Target]:
        """The sinks to owe `event` to, a row in the order of `EVENT_COLUMNS`."""
        names: Sequence[str] = self.sinks_for(webhook, event_type)
        if webhook == operator_events.WEBHOOK:
            names = [name for name in names if name != about(event)]
        if self._conditions and not self._conditions.keys().isdisjoint(names):
            view = filterable(event)
            names = [name for name in names if name not in self._conditions or self._conditions[name](view)]
        return [Target(name, order_key(event, self._sinks[name].ordered_by)) for name in names]


def about(event: tuple[Any, ...]) -> str | None:
    """The sink that an operator event is about. It must never be owed to that one: its failing would be news again."""
    return cast("str | None", decode(event[-1]).get("sink"))


def order_key(event: tuple[Any, ...], ordered_by: str | None) -> str | None:
    """What an event has in common with those it must not overtake; None where it has nothing."""
    if ordered_by is None:
        return None
    if ordered_by == "recipient":
        return cast("str | None", event[_EMAIL])
    return cast("str | None", event[_MESSAGE_ID] or event[_MESSAGE_GUID])


def accepting(condition: str) -> Callable[[tuple[Any, ...]], bool]:
    """The condition as a function of an event's values."""
    compiled = parse_condition(condition)
    return lambda event: compiled(filterable(event))


def filterable(event: tuple[Any, ...]) -> dict[str, Any]:
    """The event as a condition sees it: as REST shows it, with `raw` as a value."""
    return view_of_values(event) | {"raw": decode(event[-1])}
