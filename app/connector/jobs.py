"""Many subscriptions as a durable job: part after part goes to Mailjet, any replica may carry it on.

A part is one `managemanycontacts` job of Mailjet's. Its number is stored before it is waited for; a crash before that
sends the part again, which does no harm, since each action says how things shall be and not what to add to them.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, cast

import orjson
import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

from app.clock import rfc3339, utc_now, wait_for_event
from app.connector.doors import Doors
from app.db import Database
from app.errors import AppError
from app.mailjet import lists as mailjet
from app.mailjet.errors import MailjetError, MailjetNotFound
from app.mailjet.lists import Action
from app.maintenance.leader import Leadership
from app.models import SubscriptionJob, SubscriptionState

log = structlog.get_logger(__name__)

FINISHED = "subscription_job.finished"
STEP_FAILED = "subscription_job.step_failed"

PART = 500  # contacts of one job at Mailjet: progress is told in these
LOOK_SECONDS = 1.0  # at Mailjet's job, and at those of a replica that leads
REST_SECONDS = 86_400.0  # while there are none: the lookout tells of those that others left
FAILED_SECONDS = 10.0
PATIENCE = timedelta(hours=24)  # then a job is given up

_jobs: sa.Table = SubscriptionJob.__table__  # type: ignore[attr-defined]
Row = sa.Row[Any]


def view(row: Row) -> dict[str, Any]:
    """The job as REST shows it."""
    return {
        "id": row.id, "list_id": row.list_id, "action": row.action, "state": row.state, "count": row.count,
        "done": row.done, "failed": row.failed, "error": row.error, "created_at": rfc3339(row.created_at),
        "finished_at": None if row.finished_at is None else rfc3339(row.finished_at),
    }  # fmt: skip


class Subscriptions:
    """The jobs of all connections. `owner` must be unique among replicas and their restarts."""

    def __init__(self, doors: Doors, database: Database, owner: str, *, now: Callable[[], datetime] = utc_now) -> None:
        self._doors = doors
        self._database = database
        self._leadership = Leadership(database, "subscriptions", owner)
        self._now = now
        self._woken = asyncio.Event()

    async def begin(self, connection: str, list_id: str, action: str, contacts: Sequence[dict[str, Any]]) -> Row:
        now = self._now()
        values = {
            "id": str(uuid.uuid4()), "connection": connection, "list_id": list_id, "action": action,
            "contacts": orjson.dumps(contacts).decode(), "state": SubscriptionState.RUNNING.value,
            "count": len(contacts), "done": 0, "failed": 0, "mailjet_job": None, "error": None, "created_at": now,
            "finished_at": None,
        }  # fmt: skip
        row = await self._database.run_write(lambda c: c.execute(_jobs.insert().values(values).returning(_jobs)).one())
        self._woken.set()
        return row

    async def find(self, job_id: str) -> Row | None:
        return await self._database.run_read(
            lambda c: c.execute(sa.select(_jobs).where(_jobs.c.id == job_id)).one_or_none()
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`, which the caller follows with `wake`."""
        while not stop.is_set():
            self._woken.clear()
            seconds = await self._safe_round()
            if not stop.is_set():
                await wait_for_event(self._woken, seconds)
        await self._leadership.release()

    def wake(self) -> None:
        self._woken.set()

    async def _safe_round(self) -> float:
        try:
            return await self.round()
        except Exception as error:  # noqa: BLE001  the database comes back; the loop must be there then
            log.warning(STEP_FAILED, error=type(error).__name__)
            return FAILED_SECONDS

    async def round(self) -> float:
        """One step of each job under way; seconds until the next round."""
        rows = await self._database.run_read(_running)
        if not rows:  # nothing to do is no reason to write
            return REST_SECONDS
        if not await self._leadership.may_lead():
            return LOOK_SECONDS
        waits = [await self._safe_step(row) for row in rows]
        return min(waits, default=LOOK_SECONDS)

    async def _safe_step(self, row: Row) -> float:
        """A job that cannot go on must not hold up the others."""
        try:
            return await self._step(row)
        except (MailjetError, AppError) as error:
            lasting = isinstance(error, MailjetNotFound) or (isinstance(error, MailjetError) and not error.retryable)
            if lasting or self._now() - row.created_at > PATIENCE:
                await self._end(row, SubscriptionState.FAILED, error=_reason(error))
                return 0.0
            log.warning(STEP_FAILED, job=row.id, error=type(error).__name__)
            return FAILED_SECONDS

    async def _step(self, row: Row) -> float:
        door = self._doors.get(row.connection)
        contacts = orjson.loads(row.contacts)
        settled = row.done + row.failed
        part = contacts[settled : settled + PART]
        if row.mailjet_job is None:
            job = await mailjet.subscribe_many(door, row.list_id, part, cast("Action", row.action))
            await self._store(row, {"mailjet_job": job})
            return 0.0
        state = await mailjet.subscribe_status(door, row.list_id, row.mailjet_job)
        if state == "running":
            return LOOK_SECONDS
        column = "done" if state == "done" else "failed"
        await self._store(row, {"mailjet_job": None, column: getattr(row, column) + len(part)})
        if settled + len(part) >= row.count:
            failed = row.failed + (len(part) if state == "failed" else 0)
            await self._end(row, SubscriptionState.DONE, error="Mailjet reports failed contacts" if failed else None)
        return 0.0

    async def _end(self, row: Row, state: SubscriptionState, *, error: str | None = None) -> None:
        now = self._now()
        values = {"state": state.value, "error": error, "finished_at": now, "contacts": "[]", "mailjet_job": None}
        await self._store(row, values)
        log.info(FINISHED, job=row.id, connection=row.connection, state=state.value, count=row.count)

    async def _store(self, row: Row, values: dict[str, Any]) -> None:
        await self._database.run_write(lambda c: c.execute(_jobs.update().where(_jobs.c.id == row.id).values(values)))


def running_jobs() -> sa.Select[Any]:
    return sa.select(_jobs).where(_jobs.c.state == SubscriptionState.RUNNING)


def _running(connection: Connection) -> Sequence[Row]:
    return connection.execute(running_jobs().order_by(_jobs.c.created_at, _jobs.c.id).limit(100)).all()


def _reason(error: MailjetError | AppError) -> str:
    """Without Mailjet's own words, which may hold an address."""
    if isinstance(error, AppError):
        return error.title
    return type(error).__name__.removeprefix("Mailjet") + (f" ({error.status})" if error.status else "")
