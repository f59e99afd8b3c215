"""A stand-in Mailjet with messages and histories, a database, and the duties between them at a time of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa

from app.completeness import queries
from app.completeness.backfill import Backfills
from app.completeness.service import CompletenessKeeper
from app.connector.doors import Doors
from app.db import Database
from app.models import Delivery, Event
from app.rollups.fold import fold_slice
from app.rollups.store import KnownCells
from app.settings import Settings, load_settings
from app.simulator.mailjet import StandInMailjet
from app.simulator.server import LocalServer
from tests.connector.conftest import AT_ONCE
from tests.factories import event_values, insert, newest_seq

KEY, SECRET = "key", "mailjet-secret"
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
T = TypeVar("T")


class Stage:
    def __init__(self, database: Database, server: LocalServer, mailjet: StandInMailjet) -> None:
        self.database, self.server, self.mailjet = database, server, mailjet
        self.account = mailjet.account
        self.now = NOW
        self.account.now = lambda: self.now
        self.ratios: dict[tuple[str, str], float] = {}
        self.environment = {
            "CONNECTIONS__DEFAULT__API_KEY": KEY, "CONNECTIONS__DEFAULT__SECRET_KEY": SECRET,
            "CONNECTIONS__DEFAULT__BASE_URL": server.url, "WEBHOOKS__ORDERS__EVENTS": "sent,open,bounce",
            "SINKS__CRM__URL": "http://127.0.0.1:9/",
        }  # fmt: skip

    @property
    def settings(self) -> Settings:
        return load_settings({f"JETHOOK_{n}": v for n, v in self.environment.items() if v}, env_file=None)

    # --- Mailjet's side ---

    def message(self, *history: tuple[str, float], ago: timedelta = DAY, **more: Any) -> int:
        """A message and what happened to it, each so many seconds after it was sent; its id."""
        at = self.now - ago
        row = self.account.add_message(
            ArrivedAt=at.strftime("%Y-%m-%dT%H:%M:%SZ"), ContactAlt="a@example.com", ContactID=4, UUID="guid", **more
        )
        self.account.histories[row["ID"]] = [
            {"EventAt": int(at.timestamp() + after), "EventType": kind, "State": "", "Comment": f"said {kind}",
             "Useragent": "Mozilla", "UseragentID": 1}
            for kind, after in history
        ]  # fmt: skip
        return int(row["ID"])

    # --- ours ---

    def come(self, event_type: str, *moments: datetime, **given: Any) -> None:
        insert(self.database, Event, [event_values(occurred_at=at, type=event_type, **given) for at in moments])

    def count(self) -> None:
        """Into the statistics."""
        known, newest = KnownCells(), newest_seq(self.database)
        while self.database.write(lambda c: fold_slice(c, newest, known, most=1000)):
            known.confirm()

    def look(self) -> dict[tuple[int, str], tuple[int, int]]:
        """(days ago, type) -> (expected, stored)."""
        self.count()

        async def work(doors: Doors) -> None:
            async def may_lead() -> bool:
                return True

            keeper = CompletenessKeeper(self.settings, self.database, doors, may_lead, now=lambda: self.now,
                                        on_ratio=lambda c, t, ratio: self.ratios.update({(c, t): ratio}))  # fmt: skip
            await keeper.look_where_due()
            await keeper.show()

        self.with_doors(work)
        today = (self.now - datetime(1970, 1, 1, tzinfo=UTC)) // DAY
        with self.database.reading() as connection:
            rows, _ = queries.page(connection, [], None, descending=False, limit=1000)
        return {(today - row.day, row.type): (row.expected, row.stored) for row in rows}

    def with_doors(self, work: Callable[[Doors], Awaitable[T]]) -> T:
        async def scenario() -> T:
            doors = Doors(self.settings.effective_connections, retry=AT_ONCE)
            try:
                return await work(doors)
            finally:
                await doors.aclose()

        return asyncio.run(scenario())

    def backfills(self, doors: Doors, owner: str = "me") -> Backfills:
        return Backfills(self.settings, doors, self.database, owner, now=lambda: self.now)

    def backfill(self, *, rounds: int = 100, owner: str = "me", **asked: Any) -> dict[str, Any]:
        """Ask for one of the last two days, or go on with what runs where `rounds` cut it off; the job's row."""

        async def work(doors: Doors) -> dict[str, Any]:
            jobs = self.backfills(doors, owner)
            given = {"connection": "default", "since": self.now - 2 * DAY, "until": self.now, "rate_per_second": 1e6}
            row = await jobs.begin(**(given | asked))
            for _ in range(rounds):
                await jobs.round()
            found = await jobs.find(row.id)
            assert found is not None
            return dict(found._mapping)

        return self.with_doors(work)

    def stored(self) -> list[tuple[str, str, str | None]]:
        """(webhook, type, message id) of every event, in order."""
        table: sa.Table = Event.__table__  # type: ignore[attr-defined]
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(table).order_by(table.c.id)).all()
        return [(row.webhook, row.type, row.message_id) for row in rows]

    def owed(self) -> int:
        table: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
        with self.database.reading() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
