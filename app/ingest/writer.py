"""The write of posts: events, what they cause (deliveries, suppressions) and what was quarantined, in one transaction.

Runs as a lane of `app.group_commit`: all posts that wait are written with a few statements, each gets its own counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app import ledger
from app.bell import Bell
from app.db import insert_missing, insert_new, insert_returning
from app.dispatch.service import DELIVERY_COLUMNS, Handover, Job, delivery_key
from app.models import Delivery, Event, Quarantined
from app.suppressions.keeping import Keeper
from app.tracing.book import TraceBook
from app.views import EVENT_COLUMNS

_events: sa.Table = Event.__table__  # type: ignore[attr-defined]
_deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
_quarantine: sa.Table = Quarantined.__table__  # type: ignore[attr-defined]

_WEBHOOK = EVENT_COLUMNS.index("webhook")
QUARANTINE_COLUMNS = ("id", "webhook", "received_at", "reason", "body")


@dataclass(slots=True)
class Post:
    """What one POST asks to be written."""

    # One entry for each event of the body: the ids it is stored under, one for each webhook that hears of it.
    elements: list[tuple[str, ...]] = field(default_factory=list)
    events: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    deliveries: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    jobs: dict[str, list[Job]] = field(default_factory=dict)
    quarantined: list[tuple[Any, ...]] = field(default_factory=list)
    trace: str | None = None


class PostWriter:
    """The lane's work, see `LaneWork`; a post's result is the set of its event ids that were new."""

    def __init__(
        self, worker: Handover, observe: Callable[[int], None] = lambda events: None, keeper: Keeper | None = None,
        traces: TraceBook | None = None,
    ) -> None:  # fmt: skip
        self._traces = traces
        self._worker = worker
        self._keeper = keeper or Keeper()
        self._bell = None if worker.lease_token else Bell()  # nobody here sends what is stored
        self._paused: Mapping[str, str | None] = {}
        self._observe = observe  # told how many events shared a transaction

    def execute(self, connection: Connection, items: Sequence[Post]) -> list[set[str]]:
        rows = {event_id: row for post in items for event_id, row in post.events.items()}
        # In order of id: two replicas that store the same events never wait for each other in a circle.
        new = insert_new(connection, _events, EVENT_COLUMNS, [rows[event_id] for event_id in sorted(rows)])
        owners = _first_owner(items, new)
        owed = [row for event_id, post in owners.items() for row in post.deliveries.get(event_id, ())]
        insert_missing(connection, _deliveries, DELIVERY_COLUMNS, owed)
        ledger.record(
            connection, ledger.Entry.MADE, events=((event_id, rows[event_id][_WEBHOOK]) for event_id in new),
            deliveries=map(delivery_key, owed),
        )  # fmt: skip
        if connection.dialect.name != "sqlite" and any(post.jobs for post in items):
            self._paused = self._worker.paused_sinks(connection)  # a pause on another replica holds for these too
        if self._traces is not None:
            self._traces.store(connection, _traced(owners))
        self._quarantine(connection, [row for post in items for row in post.quarantined])
        if owed and self._bell is not None:
            self._bell.ring(connection)
        self._keeper.record(connection, [rows[event_id] for event_id in new])
        return [{event_id for event_id in post.events if owners.get(event_id) is post} for post in items]

    def _quarantine(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        by_id = {row[0]: row for row in rows}
        new = insert_returning(connection, _quarantine, QUARANTINE_COLUMNS, [by_id[key] for key in sorted(by_id)])
        ledger.record(connection, ledger.Entry.MADE, quarantined=[by_id[key][1:3] for key in new])

    def committed(self, items: Sequence[Post], results: Sequence[set[str]]) -> None:
        paused, self._paused = self._paused, {}
        self._worker.follow(paused)
        self._observe(sum(len(post.events) for post in items))
        for post, new in zip(items, results, strict=True):
            if self._traces is not None:
                self._traces.remember((event_id, post.trace) for event_id in new)
            for event_id, jobs in post.jobs.items():
                for job in jobs:
                    if event_id in new:
                        self._worker.accept(job)
                    else:
                        self._worker.release(job.sink)
        self._worker.committed()

    def failed(self, items: Sequence[Post]) -> None:
        for post in items:
            for jobs in post.jobs.values():
                for job in jobs:
                    self._worker.release(job.sink)


def _traced(owners: Mapping[str, Post]) -> Iterator[tuple[str, str]]:
    """(event's id, trace) of new events that are owed to somebody."""
    for event_id, post in owners.items():
        if post.trace is not None and event_id in post.deliveries:
            yield event_id, post.trace


def _first_owner(posts: Sequence[Post], new: set[str]) -> dict[str, Post]:
    """New event id -> the one post that counts it as stored; for the others in the group it is a duplicate."""
    owners: dict[str, Post] = {}
    for post in posts:
        for event_id in post.events:
            if event_id in new:
                owners.setdefault(event_id, post)
    return owners
