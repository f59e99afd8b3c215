"""Missed events fetched from Mailjet: the history of every message of a time, held against what is stored.

A durable job: some messages at a time are looked at, and what is missing of them is stored in one transaction with the
job's place, under the duty's lease. Whoever dies between two of them repeats nothing. One that is asked for again finds
everything stored, and stores nothing twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy.engine import Connection

from app.clock import to_micros, utc_now, wait_for_event
from app.completeness import backfill_queries as queries
from app.completeness.backfill_queries import Row
from app.connector.doors import Doors
from app.db import Database, is_outage
from app.dispatch.matching import Matcher
from app.errors import AppError
from app.ingest.identity import event_id
from app.ingest.rows import event_row
from app.mailjet.answers import whole_number
from app.mailjet.door import Door
from app.mailjet.errors import MailjetError
from app.mailjet.histories import event_of, missing
from app.mailjet.messages import list_history, list_messages
from app.mailjet.pages import Page, Place
from app.mailjet.payloads import MailjetEvent
from app.maintenance.leader import Leadership
from app.models import ReplayState
from app.settings import Settings
from app.suppressions.keeping import Keeper
from app.transfer.service import store_rows
from app.views import new_id

log = structlog.get_logger(__name__)

FINISHED, STEP_FAILED = "backfill.finished", "backfill.step_failed"
PAGE = 20  # messages of one step: at ten a second it lasts two, less than a third of a lease
LOOK_SECONDS = 10.0  # while another replica works on them
REST_SECONDS = 86_400.0  # while there are none: the lookout tells of those that others left
FAILED_SECONDS = 10.0
PATIENCE = timedelta(hours=24)  # of failures, then it is given up
RATE_PER_SECOND = 10.0


@dataclass(slots=True)
class Found:
    """A step: messages with the events of their histories."""

    events: list[tuple[str, list[MailjetEvent]]] = field(default_factory=list)
    page: Page | None = None


class Backfills:
    """The jobs of all connections. `owner` must be unique among replicas and their restarts; `stored` is told how many
    events came."""

    def __init__(
        self, settings: Settings, doors: Doors, database: Database, owner: str, *, keeper: Keeper | None = None,
        stored: Callable[[int], None] = lambda events: None, now: Callable[[], datetime] = utc_now,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._doors = doors
        self._database = database
        self._leadership = Leadership(database, "backfills", owner, now=now)
        self._matcher = Matcher(settings.sinks)
        self._keeper = keeper or Keeper()
        self._stored = stored
        self._now = now
        self._woken = asyncio.Event()

    async def begin(
        self, connection: str, since: datetime, until: datetime, *, types: Sequence[str] = (), deliver: bool = True,
        rate_per_second: float = RATE_PER_SECOND,
    ) -> Row:  # fmt: skip
        """Of messages that Mailjet got from `since` and before `until`; no types: all that somebody watches. Raises
        ConnectionNotFound, ConnectionIncomplete."""
        self._doors.get(connection)
        now = self._now()
        values = {
            "id": new_id(now), "connection": connection, "since": since, "until": until,
            "types": ",".join(types), "deliver": deliver, "rate_per_second": rate_per_second,
            "state": ReplayState.RUNNING.value, "offset": 0, "last_id": "", "messages": 0, "stored": 0, "known": 0,
            "deliveries": 0, "created_at": now,
        }  # fmt: skip
        row = await self._database.run_write(lambda c: queries.insert(c, values))
        self.wake()
        return row

    async def find(self, job_id: str) -> Row | None:
        return await self._database.run_read(lambda c: queries.find(c, job_id))

    async def cancel(self, job_id: str) -> bool:
        """False where it was no longer running. What is stored stays."""
        now = self._now()
        return await self._database.run_write(lambda c: queries.end(c, job_id, ReplayState.CANCELLED, now))

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`, which the caller follows with `wake`."""
        while not stop.is_set():
            self._woken.clear()
            try:
                seconds = await self.round()
            except Exception as error:  # noqa: BLE001  the database comes back; the loop must be there then
                log.warning(STEP_FAILED, error=type(error).__name__)
                seconds = FAILED_SECONDS
            if not stop.is_set():
                await wait_for_event(self._woken, seconds)
        await self.release()

    async def release(self) -> None:
        """Another may go on at once."""
        await self._leadership.release()

    def wake(self) -> None:
        self._woken.set()

    async def round(self) -> float:
        """One step of each job under way; seconds until the next round."""
        rows = await self._database.run_read(queries.list_running)
        if not rows:  # nothing to do is no reason to write
            return REST_SECONDS
        waits = []
        for row in rows:
            if not await self._leadership.may_lead():
                return LOOK_SECONDS
            waits.append(await self._safe_step(row))
        return min(waits)

    async def _safe_step(self, row: Row) -> float:
        """A job that cannot go on must not hold up the others."""
        try:
            return await self._step(row)
        except (MailjetError, AppError) as error:
            passing, told = isinstance(error, MailjetError) and error.retryable, str(error)
            log.warning(STEP_FAILED, job=row.id, error=type(error).__name__)
        except Exception as error:
            if is_outage(error):
                raise  # it is the same for all of them
            passing, told = True, f"a fault of ours ({type(error).__name__}); the log has more"
            log.exception(STEP_FAILED, job=row.id)
        if passing and self._now() - row.created_at <= PATIENCE:
            return FAILED_SECONDS
        await self._end(row, ReplayState.FAILED, told)
        return 0.0

    async def _step(self, row: Row) -> float:
        """Some messages; seconds to wait, so that Mailjet is not asked faster than wished."""
        began = time.monotonic()
        found = await self._look(self._doors.get(row.connection), row)
        events = await self._database.run_write(lambda c: self._store(c, row, found))
        if events:
            self._stored(events)
        assert found.page is not None
        if found.page.following is None:
            await self._end(row, ReplayState.DONE)
            return 0.0
        wanted: float = len(found.events) / row.rate_per_second
        return max(wanted - (time.monotonic() - began), 0.0)

    async def _look(self, door: Door, row: Row) -> Found:
        # Mailjet leaves the moment of `FromTS` out, and had no messages before 1970.
        span: dict[str, str | int] = {"FromTS": max(_seconds(row.since) - 1, 0), "ToTS": _seconds(row.until) + 1}
        found = Found(page=await list_messages(door, span, Place(row.offset, row.last_id), PAGE))
        messages = [item for item in found.page.items if _arrived_within(item, row)] if found.page else []
        histories = await asyncio.gather(*(list_history(door, str(item["ID"])) for item in messages))
        for item, entries in zip(messages, histories, strict=True):
            events = [event for entry in entries if (event := event_of(item, entry)) is not None]
            found.events.append((str(item["ID"]), events))
        return found

    def _store(self, connection: Connection, row: Row, found: Found) -> int:
        """What is missing, and how far the job is; nothing where it was cancelled meanwhile."""
        if not queries.advance(connection, row.id, {"messages": row.messages + len(found.events)}):
            return 0
        webhooks = self._webhooks(row)
        stored = queries.stored_kinds(connection, [message_id for message_id, _ in found.events], list(webhooks))
        now = to_micros(self._now())
        rows, known = [], 0
        for message_id, events in found.events:
            for webhook, types in webhooks.items():
                mine = {(event.type, event.time): event for event in events if event.type in types}
                lacking = missing(mine, stored.get((message_id, webhook), ()))
                known += len(mine) - len(lacking)
                rows += [self._row(mine[kind], webhook, row.connection, now) for kind in sorted(lacking)]
        new, owed = 0, 0
        if rows:
            matcher = self._matcher if row.deliver else None
            new, owed = store_rows(connection, rows, matcher=matcher, keeper=self._keeper, now_micros=now)
        following = found.page.following if found.page is not None else None
        place = {} if following is None else {"offset": following.offset, "last_id": following.last_id}
        counts = {"stored": row.stored + new, "known": row.known + known + len(rows) - new,
                  "deliveries": row.deliveries + owed}  # fmt: skip
        queries.advance(connection, row.id, {**place, **counts})
        return new

    def _webhooks(self, row: Row) -> Mapping[str, set[str]]:
        """Webhook of the connection -> the types that it watches and the job is about."""
        asked = set(row.types.split(",")) - {""}
        return {
            name: {event_type for event_type in webhook.events if not asked or event_type in asked}
            for name, webhook in self._settings.effective_webhooks.items()
            if webhook.connection == row.connection
        }

    def _row(self, event: MailjetEvent, webhook: str, connection: str, now: int) -> tuple[Any, ...]:
        identity = event_id(webhook, event.time, event.payload)
        return event_row(identity, event, webhook=webhook, connection=connection, received_micros=now)

    async def _end(self, row: Row, state: ReplayState, error: str | None = None) -> None:
        now = self._now()
        await self._database.run_write(lambda c: queries.end(c, row.id, state, now, error))
        log.info(FINISHED, job=row.id, connection=row.connection, state=state.value, error=error)


def _arrived_within(item: Mapping[str, Any], row: Row) -> bool:
    """Mailjet's own filters are near enough only. A message without a time was listed, so it belongs here."""
    if whole_number(item.get("ID")) is None:
        return False
    try:
        arrived = datetime.fromisoformat(str(item.get("ArrivedAt", "")))
    except ValueError:
        return True
    return bool(arrived.tzinfo is None or row.since <= arrived < row.until)


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
