"""The receiving side and the worker around one database, and sinks over real HTTP: for whole stories of delivery."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa

from app.addresses import ONLY_ALWAYS, AddressRules
from app.clock import to_micros, utc_now
from app.db import Database
from app.delivery.queue import BatchNote, Report
from app.delivery.worker import Relay
from app.dispatch.matching import Matcher
from app.group_commit import GroupCommit
from app.ingest.service import Ingest
from app.metrics import Metrics
from app.models import Delivery
from app.query.queries import all_attempts
from app.settings import SinkSettings, WebhookSettings
from app.simulator.sink import ReceivedRequest
from tests.e2e.service import id_of

deliveries = Delivery.__table__  # type: ignore[attr-defined]


class MortalRelay(Relay):
    """A worker that can die without a word: from then on nothing that it does reaches the table."""

    is_dead = False
    dies_when_noted = False

    def record(self, report: Report) -> None:
        if not self.is_dead:
            super().record(report)

    async def note_batch(self, note: BatchNote) -> None:
        await super().note_batch(note)
        if self.dies_when_noted:
            self.is_dead = True
            await asyncio.Event().wait()

    async def crash(self) -> None:
        self.is_dead = True
        for _ in range(3):  # what is cut off gives back, which leads nowhere
            tasks = [*self._tasks, *(task for runner in self.runners.values() for task in runner._tasks)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(runner.close() for runner in self.runners.values()))


class Stand:
    """One replica."""

    def __init__(
        self, database: Database, sinks: Mapping[str, SinkSettings], *, rules: AddressRules = ONLY_ALWAYS
    ) -> None:
        self.database = database
        self.commits = GroupCommit(database)
        self.metrics = Metrics(webhooks=["orders"], sinks=sinks)
        self.relay = MortalRelay(
            sinks, database=database, commits=self.commits, metrics=self.metrics, address_rules=rules
        )
        self.ingest = Ingest(
            {"orders": WebhookSettings()}, matcher=Matcher(sinks), commits=self.commits, worker=self.relay
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Stand]:
        await self.relay.start()
        try:
            yield self
        finally:
            if not self.relay.is_dead:
                await self.relay.stop(2)
            await self.commits.drain()

    async def post(self, *events: Mapping[str, Any]) -> list[str]:
        """One body; the ids of its events, in the body's order."""
        body = json.dumps(events).encode()
        accepted = await self.ingest.accept("orders", body, now_micros=to_micros(utc_now()))
        assert accepted.stored == len(events)
        return [id_of(event) for event in events]


def event(number: int, **more: Any) -> dict[str, Any]:
    """A second later for each number."""
    return {"event": "open", "time": 1_777_802_400 + number, "MessageID": 1000 + number, "n": number, **more}


def rows(database: Database, sink: str = "crm") -> dict[str, dict[str, Any]]:
    with database.reading() as connection:
        found = connection.execute(sa.select(deliveries).where(deliveries.c.sink == sink))
        return {row["event_id"]: dict(row) for row in found.mappings()}


def states(database: Database, sink: str = "crm") -> set[str]:
    return {str(row["state"]) for row in rows(database, sink).values()}


def attempts_of(database: Database, event_id: str, sink: str = "crm") -> list[dict[str, Any]]:
    made = all_attempts()
    mine = (made.c.event_id == event_id, made.c.sink == sink)
    with database.reading() as connection:
        found = connection.execute(sa.select(made).where(*mine).order_by(made.c.number))
        return [dict(row) for row in found.mappings()]


def make_due(database: Database) -> None:
    """As if waits and leases had run out."""
    pending = deliveries.c.state == "pending"
    database.write(lambda c: c.execute(sa.update(deliveries).where(pending).values(next_attempt_at=utc_now())))


def numbers(request: ReceivedRequest) -> list[int]:
    """The numbers of a request's events, in their order; a lone event or an array."""
    value = request.json()
    return [one["n"] for one in (value if isinstance(value, list) else [value])]
