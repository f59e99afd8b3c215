"""What may be replayed, and the SQL conditions it becomes. Pure: no connection, no clock.

A replay gives a sink either events, by the filters of `GET /v1/events`, or its dead deliveries. Events are held against
the sink's own settings as well: a receiver that was set up for bounces is not sent opens because a filter was empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Literal, Self

import orjson
import sqlalchemy as sa
from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from app import operator_events
from app.clock import rfc3339
from app.dispatch.matching import accepting, order_key
from app.filters import (
    Condition,
    DeliveryQuery,
    EventFilters,
    Filters,
    Moments,
    Texts,
    Unindexed,
    delivery_conditions,
    event_conditions,
)
from app.models import Delivery, DeliveryState, Event
from app.settings import SinkSettings

EventValues = tuple[Any, ...]
"""One event in the order of `views.EVENT_COLUMNS`, times in microseconds since 1970."""

events: sa.Table = Event.__table__  # type: ignore[attr-defined]
deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
_sendable = events.c.raw.is_not(None)  # retention has not taken what would be sent
_webhook, _type = Unindexed(events.c.webhook), Unindexed(events.c.type)


# --- the sink's side -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recipient:
    """What of a sink's settings a replay heeds; an empty tuple means all, as in `dispatch.matching.matches`.

    `accepts` is a further condition that only Python can judge; with it, every candidate is read. `order_key` gives
    the deliveries that a replay inserts their place in the order the sink asks for.
    """

    name: str
    webhooks: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    accepts: Callable[[EventValues], bool] | None = None
    order_key: Callable[[EventValues], str | None] | None = None

    @property
    def conditions(self) -> list[Condition]:
        """On the events table, and never by an index: the selection knows better which rows are few."""
        mail = [_webhook != operator_events.WEBHOOK]
        if self.webhooks:
            mail.append(_webhook.in_(sorted(self.webhooks)))
        if self.events:
            mail.append(_type.in_(sorted(t for t in self.events if not operator_events.is_operator_word(t))))
        ours = operator_events.asked_for(self.events)
        return [sa.or_(sa.and_(*mail), self._operator_events(ours)) if ours else sa.and_(*mail)]

    def _operator_events(self, types: tuple[str, ...]) -> Condition:
        # The text is our own writing; a quote within one of its values would be escaped, so this is the field itself.
        about_itself = events.c.raw.contains(f'"sink":"{self.name}"', autoescape=True)
        return sa.and_(_webhook == operator_events.WEBHOOK, _type.in_(sorted(types)), sa.not_(about_itself))


def recipients(sinks: Mapping[str, SinkSettings]) -> dict[str, Recipient]:
    """Every configured sink as replays see it."""
    return {
        name: Recipient(
            name, tuple(sink.webhooks), tuple(sink.events),
            accepts=accepting(sink.filter) if sink.filter is not None else None,
            order_key=partial(order_key, ordered_by=sink.ordered_by) if sink.ordered_by is not None else None,
        )
        for name, sink in sinks.items()
    }  # fmt: skip


# --- what a caller asks for ------------------------------------------------------------------------------------------


def _either(schema: dict[str, Any]) -> None:
    """In OpenAPI: one value, or a list of at least one."""
    for name, told in schema["properties"].items():
        if told.get("type") == "array":
            kept = {key: told[key] for key in ("description", "title") if key in told}
            several = {"type": "array", "items": told["items"], "minItems": 1, "maxItems": told["maxItems"]}
            schema["properties"][name] = {"anyOf": [told["items"], several]} | kept


class _InBody(Filters):
    """Filters in a JSON body: a single value or a list of them, which means any."""

    @model_validator(mode="wrap")
    @classmethod
    def _lists(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, dict):
            return handler(value)
        several = cls.model_fields.keys() - {"state"}
        # "Any of none" would have to find nothing, and is more likely a mistake than meant.
        empty = [name for name in several if value.get(name) == []]
        if empty:
            raise _refused([_fault("too_short", "must name at least one value", (name,)) for name in sorted(empty)])
        single = {name for name in several & value.keys() if not isinstance(value[name], list)}
        try:
            return handler({name: [given] if name in single else given for name, given in value.items()})
        except ValidationError as error:
            raise _refused([_placed(fault, single) for fault in error.errors(include_url=False)]) from None


def _placed(fault: Any, single: set[str]) -> InitErrorDetails:
    """The fault at the place the caller knows: what came as one value has no index."""
    place = fault["loc"]
    return _fault(fault["type"], fault["msg"], place[:1] if place and place[0] in single else place)


def _fault(code: str, message: str, place: tuple[int | str, ...]) -> InitErrorDetails:
    return {"type": PydanticCustomError(code, "{told}", {"told": message}), "loc": place, "input": None}  # type: ignore[arg-type, unused-ignore]


def _refused(faults: list[InitErrorDetails]) -> ValidationError:
    return ValidationError.from_exception_data("filters", faults)


class EventSelection(_InBody, EventFilters):
    """Which events; `{}` means all that the sink's own settings let through. Test events are never delivered."""

    model_config = ConfigDict(json_schema_extra=_either)


class DeadSelection(_InBody):
    """Which of the sink's dead deliveries."""

    model_config = ConfigDict(json_schema_extra=_either)

    state: Literal["dead"] = Field(description="only dead deliveries can be replayed; others by their events")
    webhook: Texts = Field([], description="name of the webhook", examples=[["orders"]])
    type: Texts = Field([], description="Mailjet's word for the event", examples=[["bounce"]])
    event_id: Texts = Field([], description="id of the event")
    after: Moments = Field([], description="created at that time or later (RFC 3339)")
    before: Moments = Field([], description="created before that time (RFC 3339)")


Selection = EventSelection | DeadSelection


class UnreadableSelection(ValueError):
    """A stored selection that this release does not understand."""


def selection_text(selection: Selection) -> str:
    """JSON as the table keeps it: {"filter": {…}} or {"deliveries": {…}}, only what was given."""
    told = selection.model_dump(mode="json", exclude_unset=True)
    told |= {
        name: [rfc3339(moment) for moment in getattr(selection, name)]
        for name in ("after", "before", "received_after", "received_before")
        if name in told
    }
    return orjson.dumps({"filter" if isinstance(selection, EventSelection) else "deliveries": told}).decode()


def parse_selection(text: str) -> Selection:
    """The inverse of `selection_text`. Raises UnreadableSelection."""
    try:
        told = orjson.loads(text)
        if "filter" in told:
            return EventSelection.model_validate(told["filter"])
        return DeadSelection.model_validate(told["deliveries"])
    except (ValueError, KeyError, TypeError) as error:  # both orjson's and pydantic's errors are ValueErrors
        raise UnreadableSelection(f"the stored selection cannot be read: {type(error).__name__}") from None


# --- conditions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidates:
    """Where a replay takes its deliveries from; `key`, the id of the event, is the order it does so in."""

    rows: sa.FromClause
    key: sa.ColumnElement[str]
    conditions: list[Condition]


def candidates(selection: Selection, recipient: Recipient, *, last_seq: int, made_at: datetime) -> Candidates:
    """What a replay made at `made_at` takes up.

    Events stored after it (`last_seq`) and deliveries that died after it are none of its business: so it ends, and
    never takes up again what it gave up itself.
    """
    if isinstance(selection, EventSelection):
        real = [events.c.test == sa.false(), Unindexed(events.c.seq) <= last_seq, _sendable]
        return Candidates(events, events.c.id, event_conditions(selection, events.c) + recipient.conditions + real)
    settled = deliveries.c.settled_at
    conditions = delivery_conditions(_delivery_query(selection, recipient.name), deliveries.c)
    conditions += [sa.or_(settled.is_(None), settled <= made_at), _sendable]
    both = deliveries.join(events, events.c.id == deliveries.c.event_id)
    return Candidates(both, deliveries.c.event_id, conditions)


def covering(selection: Selection, sink: str) -> Condition:
    """A condition on the deliveries table: this one is (for dead ones: may have been) part of the selection."""
    if isinstance(selection, EventSelection):
        mine = [events.c.id == deliveries.c.event_id, *event_conditions(selection, events.c)]
        return sa.exists().where(*mine)
    query = _delivery_query(selection, sink).model_copy(update={"state": []})
    return sa.and_(*delivery_conditions(query, deliveries.c))


def _delivery_query(selection: DeadSelection, sink: str) -> DeliveryQuery:
    return DeliveryQuery(sink=[sink], state=[DeliveryState.DEAD]).model_copy(
        update={name: getattr(selection, name) for name in ("webhook", "type", "event_id", "after", "before")}
    )
