"""The SQL of retention: old events go, with their deliveries and attempts, a slice at a time.

Ranges of time are ranges of ids, since an id starts with its time. What is owed to a sink stays, and on PostgreSQL also
what somebody has locked at this moment: nobody waits for a slice, and it waits for nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app import ledger
from app.filters import Condition, Unindexed
from app.ledger import Entry
from app.models import Attempt, Delivery, DeliveryState, Event, EventTrace, Quarantined, Replay
from app.partitions import Week, first_id

events: sa.Table = Event.__table__  # type: ignore[attr-defined]
deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
attempts: sa.Table = Attempt.__table__  # type: ignore[attr-defined]
_quarantine: sa.Table = Quarantined.__table__  # type: ignore[attr-defined]
traces: sa.Table = EventTrace.__table__  # type: ignore[attr-defined]
_replays: sa.Table = Replay.__table__  # type: ignore[attr-defined]

Range = tuple[str, str]
"""The ids after the first and up to the second."""


def ranges_to_slice(waiting: Sequence[Week], cutoff: str) -> list[Range]:
    """All ids up to `cutoff` but those of the weeks `waiting` (oldest first), which will be dropped whole. Pure."""
    found: list[Range] = []
    start = ""
    for week in waiting:
        if week.first_id >= cutoff:
            break
        if start < week.first_id:
            found.append((start, week.first_id))
        start = week.beyond
    return [*found, (start, cutoff)] if start < cutoff else found


def due_ids(
    connection: Connection, rows: Range, size: int, *, before: datetime, though_owed: bool = False
) -> list[str]:
    """The first events of a range that may go: received before that time, and not owed to a sink. Reads on over those
    that stay without a lock on anything."""
    start, end = rows
    within = (events.c.id > start, events.c.id <= end, Unindexed(events.c.received_at) < before)
    statement = sa.select(events.c.id).where(*within).order_by(events.c.id).limit(size)
    if not though_owed:
        pending = deliveries.c.state == DeliveryState.PENDING.value
        statement = statement.where(sa.not_(sa.exists().where(deliveries.c.event_id == events.c.id, pending)))
    return list(connection.execute(statement).scalars())


def expire(connection: Connection, ids: Sequence[str], *, though_owed: bool = False) -> Counter[str]:
    """Delete these events, but those that have come into use; table -> rows deleted."""
    kept = set() if though_owed else _in_use(connection, ids)
    free = [event_id for event_id in ids if event_id not in kept]
    return delete_events(connection, lambda key: key.in_(free), Entry.EXPIRED)


def delete_events(
    connection: Connection, which: Callable[[sa.ColumnElement[str]], Condition], why: Entry
) -> Counter[str]:
    """Delete the events whose id `which` tells, with what belongs to them, and write it into the ledger; table -> rows
    deleted."""
    tried = connection.execute(sa.delete(attempts).where(which(attempts.c.event_id))).rowcount
    owed = sa.delete(deliveries).where(which(deliveries.c.event_id))
    owed = owed.returning(deliveries.c.event_id, deliveries.c.webhook, deliveries.c.sink)  # type: ignore[assignment]
    gone_deliveries = [tuple(row) for row in connection.execute(owed)]
    stored = sa.delete(events).where(which(events.c.id)).returning(events.c.id, events.c.webhook)
    gone_events = [tuple(row) for row in connection.execute(stored)]
    ledger.record(connection, why, events=gone_events, deliveries=gone_deliveries)
    return Counter(attempts=tried, deliveries=len(gone_deliveries), events=len(gone_events))


def _in_use(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Those with a delivery that is pending, or that somebody has locked."""
    key, state = deliveries.c.event_id, deliveries.c.state
    there = sa.select(key, deliveries.c.sink, state).where(key.in_(ids))
    if connection.dialect.name == "sqlite":
        pending = there.where(state == DeliveryState.PENDING.value)
        return {row.event_id for row in connection.execute(pending)}
    found = {(row.event_id, row.sink) for row in connection.execute(there)}
    free = {
        (row.event_id, row.sink)
        for row in connection.execute(there.with_for_update(skip_locked=True))
        if row.state != DeliveryState.PENDING
    }
    return {event_id for event_id, _ in found - free}


def oldest_event(connection: Connection) -> str | None:
    """Its id."""
    return connection.execute(sa.select(events.c.id).order_by(events.c.id).limit(1)).scalar_one_or_none()


class Beside(NamedTuple):
    """Is there anything to clear in these tables?"""

    traces: bool
    quarantine: bool
    replays: bool
    ledger: bool


def aged_beside(connection: Connection, traces_before: datetime, before: datetime | None, slot: str | None) -> Beside:
    """By one statement. `slot` is that before which lines of the ledger may be put together."""
    asked = [sa.exists().where(traces.c.event_id < first_id(traces_before))]
    if before is not None and slot is not None:
        asked.append(sa.exists().where(_quarantine.c.received_at < before))
        asked.append(sa.exists().where(_replays.c.finished_at < before))
        asked.append(ledger.lines_between_the_past_and(slot))
    found = [bool(answer) for answer in connection.execute(sa.select(*asked)).one()]
    return Beside(*found, *[False] * (len(Beside._fields) - len(found)))


def delete_quarantine(connection: Connection, before: datetime, most: int) -> int:
    """At most `most` entries received before that time, the oldest first; the number deleted."""
    old = sa.select(_quarantine.c.id).where(_quarantine.c.received_at < before)
    chosen = old.order_by(_quarantine.c.received_at, _quarantine.c.id).limit(most)
    return ledger.delete_quarantined(connection, _quarantine.c.id.in_(chosen), Entry.EXPIRED)


def delete_traces(connection: Connection, before: datetime, most: int) -> int:
    """Of events that happened before that time: nothing of them is sent any more."""
    old = sa.select(traces.c.event_id).where(traces.c.event_id < first_id(before))
    chosen = old.order_by(traces.c.event_id).limit(most)
    return connection.execute(sa.delete(traces).where(traces.c.event_id.in_(chosen))).rowcount


def delete_replays(connection: Connection, before: datetime) -> int:
    """Those finished before that time."""
    return connection.execute(sa.delete(_replays).where(_replays.c.finished_at < before)).rowcount
