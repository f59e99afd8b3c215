"""The SQL of reading back. Pages go by the key of the last row looked at, never by OFFSET, and nothing is counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app import ledger
from app.filters import DeliveryQuery, EventQuery, QuarantineQuery, quarantine_conditions
from app.models import Attempt, AttemptOutcome, Quarantined
from app.query.cursor import Position
from app.query.delivery_pages import DELIVERY_COLUMNS, deliveries, read_deliveries
from app.query.event_pages import EVENT_COLUMNS, events, read_events
from app.query.pages import DEFAULT_SECONDS, Page, Row, by_index, fetch, read_walk, within
from app.query.walks import Walk

attempts: sa.Table = Attempt.__table__  # type: ignore[attr-defined]
quarantine: sa.Table = Quarantined.__table__  # type: ignore[attr-defined]

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


def list_events(
    connection: Connection, query: EventQuery, position: Position | None, seconds: float = DEFAULT_SECONDS
) -> Page:
    """A page of events after `position` (id,), sought for about so many seconds at most."""
    return read_events(connection, query, position, within(seconds))


def find_event(connection: Connection, event_id: str) -> Row | None:
    return _first(connection, sa.select(*EVENT_COLUMNS).where(events.c.id == event_id))


def has_event(connection: Connection, event_id: str) -> bool:
    return connection.execute(sa.select(events.c.seq).where(events.c.id == event_id)).first() is not None


def list_deliveries(
    connection: Connection, query: DeliveryQuery, position: Position | None, seconds: float = DEFAULT_SECONDS
) -> Page:
    """A page of deliveries after `position` (event_id, sink)."""
    return read_deliveries(connection, query, position, within(seconds))


def find_delivery(connection: Connection, event_id: str, sink: str) -> Row | None:
    wanted = sa.and_(deliveries.c.event_id == event_id, deliveries.c.sink == sink)
    return _first(connection, sa.select(*DELIVERY_COLUMNS).where(wanted))


def list_deliveries_of(connection: Connection, event_id: str) -> Sequence[Row]:
    """All deliveries of one event, by sink."""
    wanted = sa.select(*DELIVERY_COLUMNS).where(deliveries.c.event_id == event_id).order_by(deliveries.c.sink)
    return fetch(connection, wanted)


def list_attempts(connection: Connection, event_id: str, sink: str | None = None) -> dict[str, list[Row]]:
    """The attempts of one event's deliveries by sink, in the order they were made."""
    made = all_attempts()
    wanted = sa.select(made).where(made.c.event_id == event_id)
    if sink is not None:
        wanted = wanted.where(made.c.sink == sink)
    found: dict[str, list[Row]] = {}
    for row in fetch(connection, wanted.order_by(made.c.sink, made.c.number)):
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


def quarantine_walk(query: QuarantineQuery, position: Position | None) -> Walk:
    body = sa.case((sa.func.length(quarantine.c.body) <= MAX_LISTED_BODY_BYTES, quarantine.c.body)).label("body")
    conditions = quarantine_conditions(query, quarantine.c)
    keys = (quarantine.c.received_at, quarantine.c.id)
    return Walk(sa.select(*QUARANTINE_SUMMARY, body), keys, query.order == "desc", conditions).after(position)


def list_quarantine(
    connection: Connection, query: QuarantineQuery, position: Position | None, seconds: float = DEFAULT_SECONDS
) -> Page:
    """A page of quarantine after `position` (received_at in microseconds, id)."""
    by_index(connection)
    return read_walk(connection, quarantine_walk(query, position), query.limit, within(seconds))


def find_quarantined(connection: Connection, quarantine_id: str) -> Row | None:
    wanted = sa.select(*QUARANTINE_SUMMARY, quarantine.c.body).where(quarantine.c.id == quarantine_id)
    return _first(connection, wanted)


def delete_quarantined(connection: Connection, quarantine_id: str) -> bool:
    """Whether there was one."""
    return ledger.delete_quarantined(connection, quarantine.c.id == quarantine_id, ledger.Entry.ERASED) > 0


def _first(connection: Connection, statement: sa.Select[Any]) -> Row | None:
    return next(iter(fetch(connection, statement)), None)
