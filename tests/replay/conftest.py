"""What the tests of replays share: a clock that is set by hand, and a stand-in for the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import APIRouter
from fastapi.testclient import TestClient

from app.db import Database
from app.models import Delivery, Event, Replay
from app.replay import queries, service
from app.replay.routes import build_router
from app.replay.selection import DeadSelection, EventSelection, Recipient, recipients
from app.replay.service import Replays
from app.settings import SinkSettings
from tests.factories import NOON, event_values, insert
from tests.rest import KEYS, asking_of

SINKS = {
    "crm": SinkSettings(url="http://crm.invalid"),
    "bounces": SinkSettings(url="http://bounces.invalid", webhooks=("orders",), events=("bounce", "spam")),
}

deliveries = Delivery.__table__
replays = Replay.__table__


@dataclass
class Bench:
    """One database with replays on it, driven step by step."""

    database: Database
    now: datetime = NOON + timedelta(days=7)
    woken: int = 0
    recipients: dict[str, Recipient] = field(default_factory=lambda: recipients(SINKS))

    def events(self, count: int, **given: Any) -> list[dict[str, Any]]:
        rows = sorted((event_values(**given) for _ in range(count)), key=lambda row: row["id"])
        insert(self.database, Event, rows)
        return rows

    def ask(self, sink: str = "crm", *, rate: float | None = None, dead: bool = False, **filters: Any) -> str:
        """A new replay; its id."""
        selection = DeadSelection(state="dead", **filters) if dead else EventSelection(**filters)
        with self.database.reading() as connection:
            found, last_seq = service.count(connection, self.recipients[sink], selection, self.now)
        values = service.new_replay(sink, selection, rate, found=found, last_seq=last_seq, now=self.now)
        return self.database.write(lambda c: queries.insert(c, values)).id

    def worker(self, owner: str = "a", **options: Any) -> Replays:
        def wake() -> None:
            self.woken += 1

        return Replays(self.recipients, self.database, owner, wake, now=lambda: self.now, **options)

    def get(self, replay_id: str) -> Any:
        with self.database.reading() as connection:
            return queries.get(connection, replay_id)

    def deliveries(self, *conditions: Any) -> list[dict[str, Any]]:
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(deliveries).where(*conditions).order_by(deliveries.c.event_id))
            return [dict(row) for row in rows.mappings()]

    def settle(self, *conditions: Any, state: str = "delivered", most: int = 10**6) -> int:
        """What the worker would do with pending deliveries that are due; how many."""
        due = (deliveries.c.state == "pending", deliveries.c.next_attempt_at <= self.now, *conditions)
        keys = sa.select(deliveries.c.event_id).where(*due).order_by(deliveries.c.event_id).limit(most)

        def work(connection: Any) -> int:
            ids = list(connection.execute(keys).scalars())
            values = {"state": state, "settled_at": self.now, "attempt_count": deliveries.c.attempt_count + 1}
            connection.execute(sa.update(deliveries).where(*due, deliveries.c.event_id.in_(ids)).values(**values))
            return len(ids)

        return self.database.write(work)

    async def finish(self, worker: Replays, *, rounds: int = 300, settle: Callable[[], object] | None = None) -> int:
        """Rounds, with the clock going on by what each asks for, until nothing is unfinished; how many it took."""
        for number in range(rounds):
            self.now += timedelta(seconds=await worker.round())
            (settle or self.settle)()
            if not await self.database.run_read(queries.list_unfinished):
                return number
        raise AssertionError("replays are still running")


@pytest.fixture
def bench(database: Database) -> Bench:
    return Bench(database)


def run(main: Any) -> Any:
    return asyncio.run(main)


def routes(database: Any, look_again: Callable[[], None] = lambda: None) -> tuple[APIRouter, ...]:
    return (build_router(recipients(SINKS), database, KEYS, look_again),)


@pytest.fixture
def client(database: Database) -> Iterator[TestClient]:
    with asking_of(routes, database) as opened:
        yield opened


@pytest.fixture
def refusing() -> Iterator[TestClient]:
    """Without a database, for what must be refused before one is asked."""
    with asking_of(routes, None) as opened:
        yield opened
