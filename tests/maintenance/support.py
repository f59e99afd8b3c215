"""A round of retention, at a time of the test's own and without pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app import ledger
from app.audit.service import audit
from app.db import Database
from app.ledger import Entry
from app.maintenance.pacing import Pace
from app.maintenance.retention import Report, Retention, Rules
from app.models import Attempt, Delivery, Event
from tests.factories import event_values, insert

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)  # a Friday
DAY = timedelta(days=1)


async def at_once(_: float) -> None:
    await asyncio.sleep(0)


async def always() -> None: ...


async def in_step() -> float:
    """The clocks agree, whatever day it is outside."""
    return 0.0


def retain(
    database: Database, rules: Rules, *, now: datetime = NOW, size: int = 100,
    go_on: Callable[[], Awaitable[None]] = always, ahead: Callable[[], Awaitable[float]] = in_step,
) -> Report:  # fmt: skip
    async def scenario() -> Report:
        pace = Pace(go_on, sleep=at_once)
        pace.size = size
        return await Retention(rules, database, now=lambda: now, sleep=at_once, ahead=ahead).round(pace)

    report = asyncio.run(scenario())
    with database.reading() as connection:
        assert audit(connection).is_clean  # what went is in the ledger
    return report


def store(
    database: Database, count: int = 1, *, days: float, state: str | None = "delivered", attempt: bool = False,
    **given: Any,
) -> list[str]:  # fmt: skip
    """Events that happened so many days before NOW, each with a delivery in that state, and their ids."""
    when = NOW - days * DAY
    rows = [event_values(occurred_at=when + timedelta(seconds=n % 1000), **given) for n in range(count)]
    insert(database, Event, rows)
    if state is not None:
        insert(database, Delivery, [_delivery(row, state) for row in rows])
    keys = [(row["id"], row["webhook"]) for row in rows]
    owed = [(*key, "crm") for key in keys] if state is not None else []
    database.write(lambda c: ledger.record(c, Entry.MADE, events=keys, deliveries=owed))
    if attempt:
        insert(database, Attempt, [_attempt(row) for row in rows])
    return [row["id"] for row in rows]


def _delivery(row: dict[str, Any], state: str) -> dict[str, Any]:
    settled = None if state == "pending" else row["received_at"]
    return {
        "event_id": row["id"], "sink": "crm", "webhook": row["webhook"], "type": row["type"], "state": state,
        "attempt_count": 1, "schedule_step": 0, "next_attempt_at": row["received_at"], "replay": False,
        "created_at": row["received_at"], "settled_at": settled, "order_key": row["email"], "priority": 0,
        "first_excerpt": f"got {row['email']}",
    }  # fmt: skip


def _attempt(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "event_id": row["id"], "sink": "crm", "number": 2, "at": row["received_at"], "status": 500,
        "outcome": "http_5xx", "duration_ms": 1.0, "response_excerpt": f"no {row['email']}", "replay": False,
    }  # fmt: skip


def stored_ids(database: Database) -> set[str]:
    with database.reading() as connection:
        return set(connection.execute(sa.select(Event.__table__.c.id)).scalars())  # type: ignore[attr-defined]


def count(database: Database, model: Any) -> int:
    with database.reading() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(model.__table__)).scalar_one())


def every_text(database: Database) -> list[tuple[str, str, str]]:
    """(table, column, text) of every value of every column of every table that is a text or bytes."""
    found = []
    with database.reading() as connection:
        inspector = sa.inspect(connection)
        for table in inspector.get_table_names():
            for row in connection.execute(sa.text(f"SELECT * FROM {table}")).mappings():
                for column, value in row.items():
                    if isinstance(value, bytes | memoryview):
                        found.append((table, column, bytes(value).decode("utf-8", "replace")))
                    elif isinstance(value, str):
                        found.append((table, column, value))
    return found
