"""The SQL of retention: old events go, with their deliveries and attempts, a slice at a time.

A slice is a range of ids, since an id starts with its time. What is owed to a sink stays, and on PostgreSQL also what
somebody has locked at this moment: nobody waits for a slice, and it waits for nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app import ledger
from app.filters import Condition
from app.ledger import Entry
from app.models import Attempt, Delivery, DeliveryState, Event, Quarantined, Replay
from app.partitions import Week

events: sa.Table = Event.__table__  # type: ignore[attr-defined]
deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
attempts: sa.Table = Attempt.__table__  # type: ignore[attr-defined]
_quarantine: sa.Table = Quarantined.__table__  # type: ignore[attr-defined]
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


def end_of_slice(connection: Connection, rows: Range, size: int) -> str:
    """The id of the last of the first `size` events; the end of the range where there are fewer."""
    start, end = rows
    statement = sa.select(events.c.id).where(events.c.id > start, events.c.id <= end).order_by(events.c.id)
    return connection.execute(statement.offset(size - 1).limit(1)).scalar_one_or_none() or end


def expire(connection: Connection, rows: Range, *, though_owed: bool = False) -> Counter[str]:
    """Delete the events of a range, but those in use; table -> rows deleted."""
    start, end = rows
    kept = set() if though_owed else _in_use(connection, rows)

    def which(key: sa.ColumnElement[str]) -> Condition:
        within = sa.and_(key > start, key <= end)
        return sa.and_(within, key.not_in(sorted(kept))) if kept else within

    return delete_events(connection, which, Entry.EXPIRED)


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


def _in_use(connection: Connection, rows: Range) -> set[str]:
    """Events of the range with a delivery that is pending, or that somebody has locked."""
    key, state = deliveries.c.event_id, deliveries.c.state
    there = sa.select(key, state).where(key > rows[0], key <= rows[1])
    if connection.dialect.name == "sqlite":
        return set(connection.execute(there.where(state == DeliveryState.PENDING.value)).scalars())
    found = {(row.event_id, row.sink) for row in connection.execute(there.add_columns(deliveries.c.sink))}
    free = {
        (row.event_id, row.sink)
        for row in connection.execute(there.add_columns(deliveries.c.sink).with_for_update(skip_locked=True))
        if row.state != DeliveryState.PENDING
    }
    return {event_id for event_id, _ in found - free}


def oldest_event(connection: Connection) -> str | None:
    """Its id."""
    return connection.execute(sa.select(events.c.id).order_by(events.c.id).limit(1)).scalar_one_or_none()


def delete_quarantine(connection: Connection, before: datetime, most: int) -> int:
    """At most `most` entries received before that time, the oldest first; the number deleted."""
    old = sa.select(_quarantine.c.id).where(_quarantine.c.received_at < before)
    chosen = old.order_by(_quarantine.c.received_at, _quarantine.c.id).limit(most)
    return connection.execute(sa.delete(_quarantine).where(_quarantine.c.id.in_(chosen))).rowcount


def delete_replays(connection: Connection, before: datetime) -> int:
    """Those finished before that time."""
    return connection.execute(sa.delete(_replays).where(_replays.c.finished_at < before)).rowcount
