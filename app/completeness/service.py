"""Asks Mailjet now and then what it counted, and keeps it beside what is stored.

One replica does it, for each connection that has keys: two calls every six hours, and none without keys. A failure is
kept and told once, and the next look comes at its time: nobody hurries because of a figure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta

import structlog
from sqlalchemy.engine import Connection

from app.clock import EPOCH, utc_now, wait_for_event
from app.completeness import queries
from app.completeness.figures import compare, date_of, day_of, days_to_ask, settled_days
from app.completeness.queries import Week
from app.connector.doors import Doors
from app.db import Database, is_outage
from app.errors import AppError
from app.mailjet.errors import MailjetError
from app.mailjet.statistics import count_days
from app.settings import Settings

log = structlog.get_logger(__name__)

LOOKED, FAILED, INCOMPLETE_FOUND = "completeness.looked", "completeness.failed", "completeness.incomplete"
POLL_SECONDS = 60.0

OnRatio = Callable[[str, str, float], None]
"""Called with connection, event type, and the ratio of the settled days of the last week."""


class CompletenessKeeper:
    """One for the process, on the event loop. `may_lead` asks for the lease of this duty."""

    def __init__(
        self, settings: Settings, database: Database, doors: Doors, may_lead: Callable[[], Awaitable[bool]], *,
        on_ratio: OnRatio = lambda connection, event_type, ratio: None, now: Callable[[], datetime] = utc_now,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._database = database
        self._doors = doors
        self._may_lead = may_lead
        self._on_ratio = on_ratio
        self._now = now
        self._every = timedelta(seconds=settings.completeness_every_seconds)
        self._due_at: dict[str, datetime] = {}
        self._names = [name for name, c in settings.effective_connections.items() if c.has_keys] if self._every else []

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; without a connection to ask there is nothing to do."""
        while self._names and not stop.is_set():
            try:
                if await self._may_lead():
                    await self.look_where_due()
                await self.show()
            except Exception as error:  # whatever it was, the next look may do better
                log.warning(FAILED, error=type(error).__name__, exc_info=not is_outage(error))
            await wait_for_event(stop, min(POLL_SECONDS, self._every.total_seconds()))

    async def look_where_due(self) -> None:
        for name in self._names:
            if self._now() < self._due_at.get(name, EPOCH):
                continue
            known = await self._database.run_read(lambda c, name=name: queries.find_look(c, name))  # type: ignore[misc]
            if known is None or known.looked_at + self._every <= self._now():
                await self.look(name)
            else:  # whoever looks meanwhile makes it later, and never sooner
                self._due_at[name] = known.looked_at + self._every

    async def look(self, name: str) -> None:
        """Ask and compare; what Mailjet refuses is written down."""
        now = self._now()
        webhooks = [w for w, found in self._settings.effective_webhooks.items() if found.connection == name]
        begun_on = await self._begun_on(name, webhooks, now)
        days = days_to_ask(now, begun_on)
        try:
            figures = await count_days(self._doors.get(name), date_of(days.start), date_of(days[-1]))
        except (MailjetError, AppError) as error:
            log.warning(FAILED, connection=name, error=str(error))
            told = str(error)
            await self._database.run_write(lambda c: queries.record_look(c, name, begun_on, now, told))
            return
        stored = await self._database.run_read(lambda c: queries.stored_by_day(c, webhooks, days))
        rows = list(compare(name, figures, stored, self._types(webhooks), days))
        oldest = day_of(now) - self._settings.stats_retention_days

        def write(connection: Connection) -> list[Week]:
            queries.record(connection, rows, now)
            queries.record_look(connection, name, begun_on, now, None)
            queries.drop_before(connection, oldest)
            return queries.weeks(connection, settled_days(now))

        for week in await self._database.run_write(write):
            if week.connection == name and week.is_incomplete:
                log.warning(INCOMPLETE_FOUND, connection=name, type=week.type, expected=week.expected,
                            stored=week.stored, since=date_of(week.first_day).isoformat())  # fmt: skip
        log.debug(LOOKED, connection=name, days=len(days))

    async def _begun_on(self, name: str, webhooks: Iterable[str], now: datetime) -> int:
        """Before the first event nothing was received, so nothing is missed; where there never was one, from now on."""
        known = await self._database.run_read(lambda c: queries.find_look(c, name))
        first = await self._database.run_read(lambda c: queries.first_day(c, list(webhooks)))
        begun: list[int | None] = [day_of(now), first, known.begun_on if known is not None else None]
        return min(day for day in begun if day is not None)

    def _types(self, webhooks: Iterable[str]) -> set[str]:
        return {t for name in webhooks for t in self._settings.effective_webhooks[name].events}

    async def show(self) -> None:
        days = settled_days(self._now())
        for week in await self._database.run_read(lambda c: queries.weeks(c, days)):
            if week.ratio is not None:
                self._on_ratio(week.connection, week.type, week.ratio)
