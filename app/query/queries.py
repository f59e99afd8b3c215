"""The SQL of reading back. Pages go by the key of the last row, never by OFFSET, and nothing is counted."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.clock import from_micros
from app.filters import (
    Condition,
    DeliveryQuery,
    EventQuery,
    Paging,
    QuarantineQuery,
    conditions_within_campaign,
    delivery_conditions,
    event_conditions,
    id_bounds,
    quarantine_conditions,
    walked_campaign,
)
from app.models import Attempt, AttemptOutcome, Delivery, Event, Quarantined
from app.query.cursor import Position
from app.views import VIEW_COLUMNS

Order = Literal["asc", "desc"]
Row = Mapping[str, Any]

events: sa.Table = Event.__table__  # type: ignore[attr-defined]
deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
attempts: sa.Table = Attempt.__table__  # type: ignore[attr-defined]
quarantine: sa.Table = Quarantined.__table__  # type: ignore[attr-defined]

EVENT_COLUMNS = tuple(events.c[name] for name in VIEW_COLUMNS)
DELIVERY_COLUMNS = tuple(
    column for column in deliveries.c if column.name not in ("schedule_step", "lease_token", "replay")
)
ATTEMPT_COLUMNS = tuple(attempts.c)
# A body can be as large as a callback may be; a list of a thousand holds the small ones only.
MAX_LISTED_BODY_BYTES = 16_384
QUARANTINE_SUMMARY = (
    quarantine.c.id,
    quarantine.c.webhook,
    quarantine.c.received_at,
    quarantine.c.reason,
    sa.func.length(quarantine.c.body).label("bytes"),
)


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a list, and whether more follow."""

    rows: Sequence[Row]
    has_more: bool


def event_page(query: EventQuery, position: Position | None) -> sa.Select[Any]:
    """The statement of one page of events after `position` (id,). An id starts with its time, so ids are the order."""
    if (campaign := walked_campaign(query)) is not None:
        return _campaign_page(campaign, query, position)
    conditions = event_conditions(query, events.c)
    return _page(sa.select(*EVENT_COLUMNS), (events.c.id,), conditions, query, position)


def _campaign_page(campaign: str, query: EventQuery, position: Position | None) -> sa.Select[Any]:
    """The same for one campaign: from end to end of its part of `ix_events_campaign_id`, in the order of that index.

    With `campaign_id = ... ORDER BY id` PostgreSQL takes a campaign's events for evenly spread over all times. Of one
    with 4 % of 500,000 events, all of them old, it sought the newest along the ids of everybody's: 114 ms, now 0.1.
    """
    first, beyond = id_bounds(query)
    after, before = operator.ge, operator.lt
    # One bound on either side: neither database would start from the nearer of two.
    if position is not None and query.order == "desc":
        beyond = min(beyond, str(position[0]))
    elif position is not None and str(position[0]) >= first:
        first, after = str(position[0]), operator.gt
    keys = (events.c.campaign_id, events.c.id)
    conditions = [
        events.c.campaign_id.is_not(None),  # what the partial index asks for
        after(sa.tuple_(*keys), sa.tuple_(*_literals(keys, (campaign, first)))),
        before(sa.tuple_(*keys), sa.tuple_(*_literals(keys, (campaign, beyond)))),
        *conditions_within_campaign(query, events.c),
    ]
    return _page(sa.select(*EVENT_COLUMNS), keys, conditions, query, None)


def list_events(connection: Connection, query: EventQuery, position: Position | None) -> Page:
    return _fetch(connection, event_page(query, position), query)


def find_event(connection: Connection, event_id: str) -> Row | None:
    return _first(connection, sa.select(*EVENT_COLUMNS).where(events.c.id == event_id))


def has_event(connection: Connection, event_id: str) -> bool:
    return connection.execute(sa.select(events.c.seq).where(events.c.id == event_id)).first() is not None


def delivery_page(query: DeliveryQuery, position: Position | None) -> sa.Select[Any]:
    """The statement of one page of deliveries after `position` (event_id, sink)."""
    keys = (deliveries.c.event_id, deliveries.c.sink)
    conditions = delivery_conditions(query, deliveries.c)
    return _page(sa.select(*DELIVERY_COLUMNS), keys, conditions, query, position)


def list_deliveries(connection: Connection, query: DeliveryQuery, position: Position | None) -> Page:
    return _fetch(connection, delivery_page(query, position), query)


def find_delivery(connection: Connection, event_id: str, sink: str) -> Row | None:
    wanted = sa.and_(deliveries.c.event_id == event_id, deliveries.c.sink == sink)
    return _first(connection, sa.select(*DELIVERY_COLUMNS).where(wanted))


def list_deliveries_of(connection: Connection, event_id: str) -> Sequence[Row]:
    """All deliveries of one event, by sink."""
    wanted = sa.select(*DELIVERY_COLUMNS).where(deliveries.c.event_id == event_id).order_by(deliveries.c.sink)
    return _rows(connection, wanted)


def list_attempts(connection: Connection, event_id: str, sink: str | None = None) -> dict[str, list[Row]]:
    """The attempts of one event's deliveries by sink, in the order they were made."""
    made = all_attempts()
    wanted = sa.select(made).where(made.c.event_id == event_id)
    if sink is not None:
        wanted = wanted.where(made.c.sink == sink)
    found: dict[str, list[Row]] = {}
    for row in _rows(connection, wanted.order_by(made.c.sink, made.c.number)):
        found.setdefault(row["sink"], []).append(row)
    return found


def all_attempts() -> sa.Subquery:
    """The table of attempts together with the first ones that stand in their deliveries' rows.

    Two replicas, one of which lost its lease, may both have made the first: one of them is told, as always.
    """
    other = attempts.alias("other")
    told = sa.exists().where(
        other.c.event_id == deliveries.c.event_id, other.c.sink == deliveries.c.sink, other.c.number == 1
    )
    first = sa.select(
        deliveries.c.event_id, deliveries.c.sink, sa.literal(1), deliveries.c.first_at, deliveries.c.first_status,
        sa.literal(AttemptOutcome.SUCCESS.value), sa.null(), deliveries.c.first_duration_ms, deliveries.c.first_excerpt,
        sa.false(),
    ).where(deliveries.c.first_at.is_not(None), sa.not_(told))  # fmt: skip
    return sa.union_all(sa.select(*ATTEMPT_COLUMNS), first).subquery("made")


def quarantine_page(query: QuarantineQuery, position: Position | None) -> sa.Select[Any]:
    """The statement of one page of quarantine after `position` (received_at in microseconds, id)."""
    body = sa.case((sa.func.length(quarantine.c.body) <= MAX_LISTED_BODY_BYTES, quarantine.c.body)).label("body")
    keys = (quarantine.c.received_at, quarantine.c.id)
    conditions = quarantine_conditions(query, quarantine.c)
    return _page(sa.select(*QUARANTINE_SUMMARY, body), keys, conditions, query, position)


def list_quarantine(connection: Connection, query: QuarantineQuery, position: Position | None) -> Page:
    return _fetch(connection, quarantine_page(query, position), query)


def find_quarantined(connection: Connection, quarantine_id: str) -> Row | None:
    wanted = sa.select(*QUARANTINE_SUMMARY, quarantine.c.body).where(quarantine.c.id == quarantine_id)
    return _first(connection, wanted)


def delete_quarantined(connection: Connection, quarantine_id: str) -> bool:
    """Whether there was one."""
    return connection.execute(sa.delete(quarantine).where(quarantine.c.id == quarantine_id)).rowcount > 0


def _page(
    select: sa.Select[Any],
    keys: tuple[sa.Column[Any], ...],
    conditions: Sequence[Condition],
    paging: Paging,
    position: Position | None,
) -> sa.Select[Any]:
    """One row more than the limit tells whether more follow."""
    wanted = select.where(*conditions)
    if position is not None:
        wanted = wanted.where(_beyond(keys, position, paging.order))
    ordered = [key.asc() if paging.order == "asc" else key.desc() for key in keys]
    return wanted.order_by(*ordered).limit(paging.limit + 1)


def _beyond(keys: tuple[sa.Column[Any], ...], position: Position, order: Order) -> Condition:
    values = _literals(keys, position)
    left, right = (sa.tuple_(*keys), sa.tuple_(*values)) if len(keys) > 1 else (keys[0], values[0])
    return left > right if order == "asc" else left < right


def _literals(keys: tuple[sa.Column[Any], ...], position: Position) -> list[sa.ColumnElement[Any]]:
    return [sa.literal(_typed(key, value), key.type) for key, value in zip(keys, position, strict=True)]


def _typed(key: sa.Column[Any], value: str | int) -> str | datetime:
    return from_micros(value) if isinstance(value, int) else value


def _fetch(connection: Connection, statement: sa.Select[Any], paging: Paging) -> Page:
    rows = _rows(connection, statement)
    return Page(rows[: paging.limit], has_more=len(rows) > paging.limit)


def _rows(connection: Connection, statement: sa.Select[Any]) -> Sequence[Row]:
    result = connection.execute(statement)
    names = tuple(result.keys())
    return [dict(zip(names, row, strict=True)) for row in result]


def _first(connection: Connection, statement: sa.Select[Any]) -> Row | None:
    return next(iter(_rows(connection, statement)), None)
