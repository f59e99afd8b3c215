"""Watching contacts: looks at Mailjet now and then, and stores what is new as events, each once.

What was seen and the events it caused go into one transaction, under the watch's lease: whoever dies between two of
them repeats nothing and misses nothing. One replica looks at a time.

New contacts alone are read from the newest backwards, as far as there is something new. Changes can be anywhere, so for
them all contacts are read, by id.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, TypeVar

import orjson
import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

from app import ledger
from app.clock import EPOCH, to_micros, utc_now
from app.connector.doors import Doors
from app.connector.watching import Sighting, event_of, event_type_of, sighting_of
from app.db import Database, insert_missing, insert_new
from app.dispatch.matching import Matcher
from app.dispatch.service import DELIVERY_COLUMNS, NoWorker, delivery_key, fan_out
from app.ingest.identity import event_id
from app.ingest.rows import event_row
from app.mailjet import contacts as mailjet
from app.mailjet.door import Door
from app.maintenance.leader import LEASE_SECONDS, Leadership, keep_lead, try_lead
from app.models import Delivery, Event, WatchedContact, WatchMark
from app.settings import WatchSettings
from app.views import EVENT_COLUMNS

log = structlog.get_logger(__name__)

LOOKED = "watch.looked"
FAILED = "watch.failed"

PAGE = 1000
LATE_SECONDS = 60  # so late a contact may come to be seen among those of its second
T = TypeVar("T")
LEAD_SECONDS = 2.0  # between two questions whether this replica looks

_events: sa.Table = Event.__table__  # type: ignore[attr-defined]
_deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
_marks: sa.Table = WatchMark.__table__  # type: ignore[attr-defined]
_seen: sa.Table = WatchedContact.__table__  # type: ignore[attr-defined]


class LeaseLost(Exception):
    """Another replica looks now; nothing of this transaction was stored."""


@dataclass(frozen=True, slots=True)
class Found:
    """A page of contacts, and what was last seen of each."""

    sightings: Sequence[Sighting]
    known: Mapping[str, str]


class Watch:
    """One watch. `owner` must be unique among replicas and their restarts; `stored` is told how many events came."""

    def __init__(
        self, name: str, settings: WatchSettings, *, doors: Doors, database: Database, matcher: Matcher, owner: str,
        stored: Callable[[int], None] = lambda events: None, now: Callable[[], datetime] = utc_now, page: int = PAGE,
    ) -> None:  # fmt: skip
        self.name = name
        self.settings = settings
        self._doors = doors
        self._database = database
        self._matcher = matcher
        self._owner = owner
        self._lease = f"watch:{name}"
        self._stored = stored
        self._now = now
        self._page = page
        self.filters = _filters_of(settings)
        self._scope = blake2b(orjson.dumps([settings.connection, self.filters, settings.contacts]), digest_size=16)

    async def due_in(self) -> float:
        """Seconds until the next look is due, by what any replica did last."""
        mark = await self._mark()
        if mark is None:
            return 0.0
        looked_at: datetime = mark.looked_at
        return (looked_at + timedelta(seconds=self.settings.every_seconds) - self._now()).total_seconds()

    async def look(self) -> int:
        """One look; how many events it stored, at most `limit`. Raises MailjetError, AppError and LeaseLost."""
        door = self._doors.get(self.settings.connection)
        if not await self._database.run_write(
            lambda c: try_lead(c, self._lease, self._owner, self._now(), LEASE_SECONDS)
        ):
            raise LeaseLost
        mark = await self._mark() or await self._begin(door)
        if self.settings.contacts == "created":
            told, offset = await self._look_at_newest(door, mark)
        else:
            told, offset = await self._look_at_all(door, mark)
        values = {"looked_at": self._now(), "offset": offset}
        await self._write(lambda c: c.execute(_marks.update().where(_marks.c.watch == self.name).values(values)))
        log.info(LOOKED, watch=self.name, events=told)
        return told

    # --- beginning ---

    async def _mark(self) -> sa.Row[Any] | None:
        mark = await self._database.run_read(
            lambda c: c.execute(sa.select(_marks).where(_marks.c.watch == self.name)).one_or_none()
        )
        return mark if mark is not None and mark.scope == self._scope.hexdigest() else None

    async def _begin(self, door: Door) -> sa.Row[Any]:
        """From here on: the newest contact's second, and who was made in it; or from the beginning."""
        newest: list[Sighting] = []
        since: int | None = None
        if self.settings.begin == "now":
            async for page in self._pages(door, "CreatedAt DESC"):
                newest += page
                since = max((s.created for s in newest if s.created is not None), default=0)
                if any(s.created is not None and s.created < since for s in page):
                    break
            since = since or 0
        known = [(self.name, s.contact_id, s.signature) for s in newest if s.created is None or s.created == since]
        mark = {
            "watch": self.name, "scope": self._scope.hexdigest(), "since": since, "looked_at": EPOCH,
            "offset": (since or 0) if self.settings.contacts == "created" else 0,
        }  # fmt: skip

        def begin(connection: Connection) -> sa.Row[Any]:
            connection.execute(_marks.delete().where(_marks.c.watch == self.name))
            connection.execute(_seen.delete().where(_seen.c.watch == self.name))
            insert_missing(connection, _seen, ("watch", "contact_id", "signature"), known)
            return connection.execute(_marks.insert().values(mark).returning(_marks)).one()

        return await self._write(begin)

    # --- looking ---

    async def _look_at_newest(self, door: Door, mark: sa.Row[Any]) -> tuple[int, int]:
        """(events, the second of the newest contact at the last look that told all). Back to a page without anything
        new that ends before that second: those of one second come in any order. The oldest are told first, so that
        what exceeds the limit is still ahead of what is known at the next look."""
        news: deque[Sighting] = deque(maxlen=self.settings.limit)
        found_new, newest, settled = 0, mark.offset, mark.offset - LATE_SECONDS
        async for page in self._pages(door, "CreatedAt DESC"):
            found = await self._compare(page)
            new = [s for s in found.sightings if self._type(s, found, mark) is not None]
            news += new
            found_new += len(new)
            seconds = [s.created for s in page if s.created is not None]
            newest = max(newest, *seconds, 0)
            if not new and (not seconds or min(seconds) < settled):
                break
        told = 0
        waiting = list(reversed({s.contact_id: s for s in news}.values()))
        for start in range(0, len(waiting), self._page):
            told += await self._store(waiting[start : start + self._page], mark)
        return told, mark.offset if found_new > len(news) else newest

    async def _look_at_all(self, door: Door, mark: sa.Row[Any]) -> tuple[int, int]:
        """(events, where the next look begins): the end of the list is followed by its beginning."""
        told, offset = 0, mark.offset
        async for page in self._pages(door, "ID", offset):
            found = await self._compare(page)
            left = self.settings.limit - told
            news = [s for s in found.sightings if self._type(s, found, mark) is not None]
            late = {s.contact_id for s in news[left:]}
            changed = [s for s in found.sightings
                       if found.known.get(s.contact_id) != s.signature and s.contact_id not in late]  # fmt: skip
            if changed:
                told += await self._store(changed, mark)
            if late or told >= self.settings.limit:
                return told, offset if late else offset + len(page)
            offset += len(page)
        return told, 0

    async def _pages(self, door: Door, sort: str, offset: int = 0) -> AsyncIterator[list[Sighting]]:
        while True:
            query: dict[str, str | int] = {**self.filters, "Limit": self._page, "Sort": sort}
            answer = await door.ask("list_contacts", mailjet.RESOURCE, query | ({"Offset": offset} if offset else {}))
            items = answer.data()
            yield [sighting for item in items if (sighting := sighting_of(item)) is not None]
            if len(items) < self._page:
                return
            offset += len(items)

    async def _compare(self, page: Sequence[Sighting]) -> Found:
        return Found(page, await self._database.run_read(lambda c: self._known(c, page)))

    def _known(self, connection: Connection, page: Sequence[Sighting]) -> dict[str, str]:
        ids = [sighting.contact_id for sighting in page]
        here = (_seen.c.watch == self.name) & _seen.c.contact_id.in_(ids)
        rows = connection.execute(sa.select(_seen.c.contact_id, _seen.c.signature).where(here))
        return {row.contact_id: row.signature for row in rows}

    def _type(self, sighting: Sighting, found: Found, mark: sa.Row[Any]) -> str | None:
        known = found.known.get(sighting.contact_id)
        return event_type_of(sighting, known, mark.since, self.settings.contacts)

    # --- storing ---

    async def _store(self, sightings: Sequence[Sighting], mark: sa.Row[Any]) -> int:
        """What was seen and what it is news of, in one transaction; how many events it was."""

        def store(connection: Connection) -> int:
            found = Found(sightings, self._known(connection, sightings))  # a leader before us may have been here
            events, owed = self._rows(found, mark)
            new = insert_new(connection, _events, EVENT_COLUMNS, [events[key] for key in sorted(events)])
            rows = [row for key in sorted(new) for row in owed[key]]
            insert_missing(connection, _deliveries, DELIVERY_COLUMNS, rows)
            told = [events[key][:2] for key in new]
            ledger.record(connection, ledger.Entry.MADE, events=told, deliveries=map(delivery_key, rows))
            self._remember(connection, found)
            return len(new)

        count = await self._write(store)
        if count:
            self._stored(count)
        return count

    def _rows(self, found: Found, mark: sa.Row[Any]) -> tuple[dict[str, tuple[Any, ...]], dict[str, list[Any]]]:
        """Events and what the sinks are owed, by event id."""
        events: dict[str, tuple[Any, ...]] = {}
        owed: dict[str, list[Any]] = {}
        now = to_micros(self._now())
        for sighting in found.sightings:
            event_type = self._type(sighting, found, mark)
            if event_type is None:
                continue
            told = event_of(event_type, sighting, list_id=self.settings.contact_list_id, now=now // 1_000_000)
            identity = event_id(self.name, told.time, told.payload)
            row = event_row(identity, told, webhook=self.name, connection=self.settings.connection, received_micros=now)
            events[identity] = row
            owed[identity], _ = fan_out(
                event_id=identity, webhook=self.name, event_type=event_type, event=row,
                targets=self._matcher.targets(self.name, event_type, row), worker=NoWorker(), now_micros=now,
            )  # fmt: skip
        return events, owed

    def _remember(self, connection: Connection, found: Found) -> None:
        new = [(self.name, s.contact_id, s.signature) for s in found.sightings if s.contact_id not in found.known]
        insert_missing(connection, _seen, ("watch", "contact_id", "signature"), new)
        changed = [{"id": s.contact_id, "now": s.signature} for s in found.sightings
                   if found.known.get(s.contact_id, s.signature) != s.signature]  # fmt: skip
        if changed:
            here = (_seen.c.watch == self.name) & (_seen.c.contact_id == sa.bindparam("id"))
            connection.execute(_seen.update().where(here).values(signature=sa.bindparam("now")), changed)

    async def _write(self, work: Callable[[Connection], T]) -> T:
        """`work` in a transaction of who has held the lease all through this look: whoever stalled while another
        looked would tell what is no longer so. Raises LeaseLost."""

        def with_lease(connection: Connection) -> T:
            if not keep_lead(connection, self._lease, self._owner, self._now(), LEASE_SECONDS):
                raise LeaseLost
            return work(connection)

        return await self._database.run_write(with_lease)


async def keep_watching(watch: Watch, leadership: Leadership, stop: asyncio.Event) -> None:
    """Look whenever it is time, while this replica leads, until `stop`."""
    failed_at: datetime | None = None
    while not stop.is_set():
        try:
            pause = timedelta(seconds=min(watch.settings.every_seconds, 30.0))
            rests = failed_at is not None and utc_now() - failed_at < pause
            if not rests and await leadership.may_lead() and await watch.due_in() <= 0:
                await watch.look()
                failed_at = None
        except Exception as error:  # noqa: BLE001  Mailjet and the database come back; the next look goes on from there
            failed_at = utc_now()
            log.warning(FAILED, watch=watch.name, error=type(error).__name__)
        try:
            async with asyncio.timeout(min(LEAD_SECONDS, watch.settings.every_seconds)):
                await stop.wait()
        except TimeoutError:
            pass
    await leadership.release()


def _filters_of(settings: WatchSettings) -> dict[str, str | int]:
    filters = mailjet.ContactFilters(
        campaign_id=settings.campaign_id, contact_list_id=settings.contact_list_id, is_excluded=settings.is_excluded
    )
    return filters.query()
