"""Which trace an event came with, for as long as it may still be sent.

Kept in memory for the deliveries that go out at once, and in a table of its own for retries, for other replicas and for
whatever a restart leaves: rows that are written only while tracing is on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.db import Database, insert_missing
from app.models import EventTrace

MOST_REMEMBERED = 50_000  # events

_traces: sa.Table = EventTrace.__table__  # type: ignore[attr-defined]


class TraceBook:
    """`remember` and `find` on the event loop. Traces are `traceparent` headers of W3C Trace Context."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: OrderedDict[str, str | None] = OrderedDict()

    def store(self, connection: Connection, traces: Iterable[tuple[str, str]]) -> None:
        """(event's id, trace) of new events, in their transaction."""
        insert_missing(connection, _traces, ("event_id", "traceparent"), sorted(traces))

    def remember(self, traces: Iterable[tuple[str, str | None]]) -> None:
        for event_id, trace in traces:
            self._known[event_id] = trace
        while len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)

    async def find(self, event_ids: Sequence[str]) -> list[str]:
        """The different traces of these events."""
        strange = [event_id for event_id in event_ids if event_id not in self._known]
        if strange:
            stored = await self._database.run_read(lambda c: _stored(c, strange))
            self.remember((event_id, stored.get(event_id)) for event_id in strange)
        found = (self._known.get(event_id) for event_id in event_ids)
        return list(dict.fromkeys(trace for trace in found if trace is not None))


def _stored(connection: Connection, event_ids: Sequence[str]) -> dict[str, str]:
    rows = connection.execute(
        sa.select(_traces.c.event_id, _traces.c.traceparent).where(_traces.c.event_id.in_(event_ids))
    )
    return {row.event_id: row.traceparent for row in rows}
