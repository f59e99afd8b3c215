"""Changes of the service -> operator events, stored like any other and owed to the sinks that ask for them.

What has a transaction of its own (a pause, what registration found) is stored in that one. What is noticed on the event
loop (a breaker, dead deliveries) is taken down there, bounded, and stored by a task that tries again while the database
is away; it holds so much and no more, since what it would hold up is the relay itself.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import orjson
import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

from app import ledger, operator_events
from app.alerts.bounds import Bounds
from app.clock import rfc3339, to_micros, utc_now
from app.db import Database, after_commit, insert_missing, insert_new, is_outage
from app.dispatch import sink_states
from app.dispatch.matching import Matcher
from app.dispatch.service import DELIVERY_COLUMNS, NoWorker, delivery_key, fan_out
from app.ingest.identity import event_id
from app.ingest.rows import event_row
from app.mailjet.payloads import MailjetEvent
from app.models import Delivery, Event
from app.operator_events import Change, payload_of
from app.settings import SinkSettings
from app.views import EVENT_COLUMNS, clean

log = structlog.get_logger(__name__)

DROPPED = "operator_event.dropped"
STORE_FAILED = "operator_event.store_failed"

MOST_WAITING = 1000  # a day's worth for any sensible number of sinks
STOP_SECONDS = 2.0  # for what is left when the service stops
FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 0.1, 5.0
WITH_BACKLOG = frozenset({operator_events.SINK_OPENED, operator_events.SINK_RECOVERED, operator_events.DELIVERY_DEAD})

_events: sa.Table = Event.__table__  # type: ignore[attr-defined]
_deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]


def is_wanted(sinks: Mapping[str, SinkSettings]) -> bool:
    """Does any sink ask for operator events?"""
    return any(operator_events.asked_for(sink.events) for sink in sinks.values())


def replica_name() -> str:
    """Names this process to a person: the host (a container's or pod's name) and the process on it."""
    return f"{socket.gethostname()[:63]}-{os.getpid()}"


class Alerts:
    """The herald of a service with sinks that ask for operator events; `tell` belongs on the event loop."""

    def __init__(
        self, sinks: Mapping[str, SinkSettings], database: Database, *, instance: str, replica: str | None = None,
        bounds: Bounds | None = None, now: Callable[[], datetime] = utc_now, stored: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """`stored` hears on the event loop that what was told is due."""
        self._matcher = Matcher(sinks)
        asked = [name for sink in sinks.values() for name in operator_events.asked_for(sink.events)]
        self._families = frozenset(map(operator_events.family_of, asked))
        self._database = database
        self._told_by = {"instance": instance, "replica": replica or replica_name()}
        self._bounds = bounds or Bounds()
        self._now = now
        self._stored = stored
        self._waiting: deque[Change] = deque()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- Herald ---

    def tell(self, change: Change) -> None:
        told = self._bounds.offer(change, self._now())
        if told is not None:
            self._take_down(told)
        self._news.set()  # also for what is held: it has a time to be told at

    def store(self, connection: Connection, change: Change) -> None:
        self.store_all(connection, [change])

    def store_all(self, connection: Connection, changes: Sequence[Change]) -> None:
        wanted = [change for change in changes if operator_events.family_of(change.type) in self._families]
        rows = {event[0]: (event, deliveries) for event, deliveries in self._rows_of(wanted)}
        new = insert_new(connection, _events, EVENT_COLUMNS, [rows[event_id][0] for event_id in sorted(rows)])
        owed = [delivery for event_id in sorted(new) for delivery in rows[event_id][1]]
        insert_missing(connection, _deliveries, DELIVERY_COLUMNS, owed)
        told = [rows[event_id][0][:2] for event_id in new]
        ledger.record(connection, ledger.Entry.MADE, events=told, deliveries=map(delivery_key, owed))
        if owed:
            after_commit(connection, self._call_stored)

    def _call_stored(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stored)

    def _rows_of(self, changes: Iterable[Change]) -> Iterator[tuple[tuple[Any, ...], list[tuple[Any, ...]]]]:
        for change in changes:
            try:
                yield self._rows(change)
            except Exception as error:  # noqa: BLE001  a fault in a message must not undo what it tells of
                log.error(DROPPED, type=change.type, error=type(error).__name__)  # noqa: TRY400

    def _rows(self, change: Change) -> tuple[tuple[Any, ...], list[tuple[Any, ...]]]:
        """The event in the order of `EVENT_COLUMNS`, and what the sinks are owed: due at once, for any replica."""
        now, webhook = to_micros(self._now()), operator_events.WEBHOOK
        payload = self._payload(change)
        identity = event_id(webhook, payload["time"], payload)
        told = MailjetEvent(change.type, payload["time"], payload, orjson.dumps(payload).decode())
        row = event_row(identity, told, webhook=webhook, connection=change.connection or webhook, received_micros=now)
        deliveries, _ = fan_out(
            event_id=identity, webhook=webhook, event_type=change.type, event=row,
            targets=self._matcher.targets(webhook, change.type, row), worker=NoWorker(), now_micros=now,
        )  # fmt: skip
        return row, deliveries

    def _payload(self, change: Change) -> dict[str, Any]:
        since = None if change.since is None else rfc3339(change.since)
        at = to_micros(change.at)
        plain = payload_of(change, time=at // 1_000_000, at=rfc3339(change.at), since=since, told_by=self._told_by)
        return {name: clean(value) if isinstance(value, str) else value for name, value in plain.items()}

    # --- life ---

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name="alerts")

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Store what is left, what was held as well; what the database does not take by then is dropped."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for change in list(self._bounds.rest(self._now())):
            self._take_down(change)
        try:
            async with asyncio.timeout(seconds):
                await self._store_waiting()
        except TimeoutError:
            log.warning(DROPPED, events=len(self._waiting), error="the service stops and the database is away")

    async def _run(self) -> None:
        while True:
            self._news.clear()
            now = self._now()
            for change in list(self._bounds.due(now)):
                self._take_down(change)
            await self._store_waiting()
            next_at = self._bounds.next_at(now)
            await _wait(self._news, None if next_at is None else (next_at - self._now()).total_seconds())

    def _take_down(self, change: Change) -> None:
        if len(self._waiting) >= MOST_WAITING:
            log.warning(DROPPED, type=change.type, sink=change.sink, error="too many wait for the database")
            return
        self._waiting.append(change)

    async def _store_waiting(self) -> None:
        wait = FIRST_WAIT_SECONDS
        while self._waiting:
            change = self._waiting[0]
            try:
                if change.type in WITH_BACKLOG and "backlog" not in change.details:
                    # Looked up once: told again after a failure, it must be the same event.
                    self._waiting[0] = change = await self._with_backlog(change)
                await self._database.run_write(lambda c, change=change: self.store(c, change))  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001  whatever it was, the relay goes on
                lasting = not is_outage(error)
                name = DROPPED if lasting else STORE_FAILED
                log.warning(name, type=change.type, sink=change.sink, error=type(error).__name__)
                if not lasting:
                    await asyncio.sleep(wait)
                    wait = min(wait * 2, MOST_WAIT_SECONDS)
                    continue
            self._waiting.popleft()
            wait = FIRST_WAIT_SECONDS

    async def _with_backlog(self, change: Change) -> Change:
        assert change.sink is not None
        sink = change.sink
        backlog = await self._database.run_read(lambda c: sink_states.count_pending(c, sink))
        return replace(change, details={**change.details, "backlog": backlog})


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds if seconds is None else max(seconds, 0)):
            await event.wait()
    except TimeoutError:
        pass
