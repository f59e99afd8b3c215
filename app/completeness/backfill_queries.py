"""The SQL of backfills: the jobs, and what is stored of the messages that one looks at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.clock import to_micros
from app.mailjet.histories import Kind
from app.models import Backfill, Event, ReplayState

jobs: sa.Table = Backfill.__table__  # type: ignore[attr-defined]
_events: sa.Table = Event.__table__  # type: ignore[attr-defined]
Row = sa.Row[Any]


def insert(connection: Connection, values: dict[str, Any]) -> Row:
    return connection.execute(sa.insert(jobs).values(**values).returning(jobs)).one()


def find(connection: Connection, job_id: str) -> Row | None:
    wanted = sa.select(jobs).where(jobs.c.id == job_id)
    return connection.execute(wanted).one_or_none() if "\0" not in job_id else None


def page(connection: Connection, *, beyond: str | None, descending: bool, limit: int) -> Sequence[Row]:
    """Up to `limit` jobs after the id `beyond`; an id starts with its time."""
    key = jobs.c.id
    statement = sa.select(jobs).order_by(key.desc() if descending else key.asc()).limit(limit)
    if beyond is not None:
        statement = statement.where(key < beyond if descending else key > beyond)
    return connection.execute(statement).all()


def running() -> sa.Select[Any]:
    """There are never many backfills: the key is walked."""
    return sa.select(jobs).where(_is_running())


def list_running(connection: Connection) -> Sequence[Row]:
    """Oldest first."""
    return connection.execute(running().order_by(jobs.c.id)).all()


def advance(connection: Connection, job_id: str, values: dict[str, Any]) -> bool:
    """Write how far it is; False where it is no longer running."""
    return connection.execute(sa.update(jobs).where(jobs.c.id == job_id, _is_running()).values(**values)).rowcount > 0


def end(connection: Connection, job_id: str, state: ReplayState, now: datetime, error: str | None = None) -> bool:
    return advance(connection, job_id, {"state": state.value, "finished_at": now, "error": error})


def _is_running() -> sa.ColumnElement[bool]:
    return jobs.c.state == ReplayState.RUNNING.value


def stored_kinds(
    connection: Connection, message_ids: Collection[str], webhooks: Collection[str]
) -> dict[tuple[str, str], set[Kind]]:
    """(message id, webhook) -> what is stored of it."""
    columns = (_events.c.message_id, _events.c.webhook, _events.c.type, _events.c.occurred_at)
    mine = (_events.c.message_id.is_not(None), _events.c.message_id.in_(message_ids), _events.c.webhook.in_(webhooks))
    found: dict[tuple[str, str], set[Kind]] = defaultdict(set)
    for message_id, webhook, event_type, at in connection.execute(sa.select(*columns).where(*mine)):
        found[message_id, webhook].add((event_type, to_micros(at) // 1_000_000))
    return found
