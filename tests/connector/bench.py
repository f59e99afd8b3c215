"""A Mailjet with contacts, and replicas that watch them, each look at a time of the test's choosing."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import orjson
import sqlalchemy as sa

from app.connector.doors import Doors
from app.connector.watches import Watch
from app.db import Database
from app.dispatch.matching import Matcher
from app.models import Event
from app.settings import SinkSettings, WatchSettings
from tests.connector.conftest import AT_ONCE, settings_for

SINKS = {"crm": SinkSettings(url="http://crm.invalid"), "opens": SinkSettings(url="http://x.invalid", events=("open",))}


class Bench:
    """A Mailjet with contacts, and replicas that watch them; a look is one round of one replica."""

    def __init__(self, server, database: Database, account, **watch) -> None:
        self.server, self.database, self.account = server, database, account
        self.watch = WatchSettings(**({"contacts": "both", "connection": "shop"} | watch))
        self.now = datetime(2026, 5, 3, 12, tzinfo=UTC)
        account.now = lambda: self.now

    def look(self, owner: str = "a", page: int = 50) -> int:
        """By a process that has just started."""
        return asyncio.run(self.look_of(owner, page))

    async def look_of(self, owner: str, page: int = 50, database: Database | None = None, kind: type = Watch) -> int:
        doors = Doors(settings_for(self.server.url).connections, retry=AT_ONCE)
        watch = kind("people", self.watch, doors=doors, database=database or self.database, matcher=Matcher(SINKS),
                     owner=owner, now=lambda: self.now, page=page)  # fmt: skip
        try:
            looked: int = await watch.look()
            return looked
        finally:
            await doors.aclose()

    def pass_time(self, seconds: float = 60) -> None:
        self.now += timedelta(seconds=seconds)

    def told(self) -> Counter:
        """(type, contact, name) of each event, and how often."""
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(Event.__table__)).all()
        assert {(row.webhook, row.connection, row.outcome) for row in rows} <= {("people", "shop", "unknown")}
        return Counter((row.type, row.contact_id, orjson.loads(row.raw)["Name"]) for row in rows)
