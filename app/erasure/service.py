"""Erasing a person: a job in slices, each a short transaction, that any replica finishes when one breaks off.

While it runs its row holds the address; the last transaction takes that out, and what is left is the receipt. Events
that come in meanwhile go too, until a look finds none: what arrives after that is new, a late repeat as well.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import orjson
import structlog
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from app import partitions
from app.clock import utc_now, wait_for_event
from app.db import Database, sqlstate_of
from app.erasure import queries
from app.erasure.forget import Forgotten, forget
from app.erasure.queries import Row
from app.erasure.search import Finds, finder
from app.mailjet.vocabulary import normal_email
from app.maintenance.disk import truncate_log
from app.maintenance.leader import LEASE_SECONDS, release, try_lead
from app.maintenance.pacing import Pace
from app.models import ErasureState
from app.views import new_id

log = structlog.get_logger(__name__)
T = TypeVar("T")

ERASED = "recipient.erased"
FAILED = "erasure.failed"
VACUUM_FAILED = "erasure.vacuum_failed"
POLL_SECONDS = 3.0  # while another replica works on one
REST_SECONDS = 86_400.0  # while there are none: the lookout tells of those that others left
TRIES = 5
PASSING_STATES = frozenset({"40001", "40P01"})
QUARANTINE_ROWS, QUARANTINE_BYTES = 500, 4 * 1024 * 1024  # of bodies, read together

Forget = Callable[[Connection, Forgotten], Any]


class _LostLease(Exception):
    """Another replica goes on with it."""


class Erasures:
    """The erasures of this process, on the event loop. `owner` must be unique among replicas and their restarts."""

    def __init__(
        self, database: Database, digest: Callable[[str], str], owner: str, *, forget: Forget = forget,
        now: Callable[[], datetime] = utc_now, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._database = database
        self._digest = digest
        self._owner = owner
        self._forget = forget
        self._now = now
        self._sleep = sleep
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()

    # --- asking ---

    async def start(self, email: str, *, folded: bool, keep_suppression: bool) -> str:
        """Take the job down; its id."""
        email, now = normal_email(email), self._now()
        # All spellings are taken down at once: they are forgotten with the first events of each.
        addresses = await self._database.run_read(partial(queries.variants, email=email, folded=folded))
        values = {
            "id": new_id(now), "state": ErasureState.RUNNING.value, "addresses": orjson.dumps(addresses).decode(),
            "email_hash": self._digest(email), "folded": folded, "keep_suppression": keep_suppression, "counts": "{}",
            "requested_at": now,
        }  # fmt: skip
        await self._database.run_write(lambda c: queries.insert(c, values))
        return str(values["id"])

    async def wait(self, erasure_id: str, seconds: float) -> Row:
        """Work on it here, and answer when it is done or that time is over; it goes on in either case."""
        task = self._tasks.get(erasure_id)
        if task is None:
            task = self._tasks[erasure_id] = asyncio.create_task(self._work(erasure_id), name="erasure")
            task.add_done_callback(lambda _: self._tasks.pop(erasure_id, None))
        await asyncio.wait([task], timeout=seconds)
        return await self._database.run_read(lambda c: queries.get(c, erasure_id))

    async def run(self, stop: asyncio.Event) -> None:
        """Finish what another process, or this one before a restart, has left; until `stop`, which the caller follows
        with `look_again`."""
        while not stop.is_set():
            self._woken.clear()
            seconds = REST_SECONDS
            try:
                for row in await self._database.run_read(queries.list_unfinished):
                    await self.wait(row.id, POLL_SECONDS)
                    seconds = POLL_SECONDS
            except Exception as error:  # noqa: BLE001  the database comes back; the duty must be there then
                log.warning(FAILED, error=type(error).__name__)
                seconds = POLL_SECONDS
            if not stop.is_set():
                await wait_for_event(self._woken, seconds)

    def look_again(self) -> None:
        self._woken.set()

    async def stop(self) -> None:
        """Whoever runs next goes on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- working ---

    async def _work(self, erasure_id: str) -> None:
        started = time.monotonic()
        try:
            if not await self._leads(erasure_id):
                return
            row = await self._database.run_read(lambda c: queries.get(c, erasure_id))
            if row.state == ErasureState.RUNNING:
                await self.carry_out(row)
                log.info(ERASED, erasure=erasure_id, duration_ms=round((time.monotonic() - started) * 1000))
            await self._database.run_write(lambda c: release(c, f"erasure:{erasure_id}", self._owner))
        except _LostLease:
            return
        except Exception as error:  # noqa: BLE001  the next look finds all as it was
            log.warning(FAILED, erasure=erasure_id, error=type(error).__name__)

    async def _leads(self, erasure_id: str) -> bool:
        name = f"erasure:{erasure_id}"
        return await self._database.run_write(lambda c: try_lead(c, name, self._owner, self._now(), LEASE_SECONDS))

    async def carry_out(self, row: Row) -> None:
        """All of it, from wherever it is. Raises what the database raises; what was done by then stays done."""
        pace = Pace(self._goer(row.id), sleep=self._sleep)
        addresses: list[str] = orjson.loads(row.addresses)
        parts = await self._erase_events(row, addresses, pace)
        finds = finder(addresses[0], folded=row.folded)
        await self._erase_quarantine(row, finds, pace)

        def last(connection: Connection) -> None:
            counts: Counter[str] = Counter()
            for email in addresses:
                counts.update(self._forget(connection, Forgotten(email, self._digest(email), (), row.keep_suppression)))
            counts.update(replays=queries.erase_selections(connection, finds))
            counts.update(sinks=queries.erase_errors(connection, finds))
            ids = queries.operator_event_ids(connection, finds)
            counts.update(queries.erase_events(connection, ids) if ids else {})
            queries.add_counts(connection, row.id, counts)
            queries.finish(connection, row.id, self._now())

        await self._slice(last, pace)
        await self._leave_no_bytes(parts, pace)

    def _goer(self, erasure_id: str) -> Callable[[], Awaitable[None]]:
        renew_at = time.monotonic() + LEASE_SECONDS / 3

        async def go_on() -> None:
            nonlocal renew_at
            if time.monotonic() >= renew_at:
                if not await self._leads(erasure_id):
                    raise _LostLease
                renew_at = time.monotonic() + LEASE_SECONDS / 3

        return go_on

    async def _slice(self, work: Callable[[Connection], T], pace: Pace) -> T:
        for left in reversed(range(TRIES)):
            try:
                with pace.timed():
                    return await self._database.run_write(work)
            except DBAPIError as error:
                if left == 0 or sqlstate_of(error) not in PASSING_STATES:
                    raise
            await pace.rest()
        raise AssertionError

    async def _erase_events(self, row: Row, addresses: list[str], pace: Pace) -> set[str]:
        """The partitions that held some; none on SQLite."""
        touched: set[str] = set()
        weeks = [] if self._database.is_sqlite else await self._database.run_read(partitions.list_weeks)

        def work(connection: Connection) -> list[str]:
            ids = queries.event_ids(connection, addresses, pace.size)
            if ids:
                counts: Counter[str] = Counter()
                for email in addresses:
                    mine = ids if len(addresses) == 1 else queries.those_of(connection, ids, email)
                    if mine:
                        person = Forgotten(email, self._digest(email), mine, row.keep_suppression)
                        counts.update(self._forget(connection, person))
                queries.add_counts(connection, row.id, queries.erase_events(connection, ids) + counts)
            return ids

        while ids := await self._slice(work, pace):
            touched |= set() if self._database.is_sqlite else partitions.parts_holding(ids, weeks)
            await pace.rest()
        return touched

    async def _erase_quarantine(self, row: Row, finds: Finds, pace: Pace) -> None:
        after = ""
        while found := await self._database.run_read(
            partial(queries.quarantine_sizes, after=after, most=QUARANTINE_ROWS)
        ):
            ids = _first_bytes(found)
            after = ids[-1]
            naming = await self._database.run_read(partial(queries.quarantine_naming, ids=ids, finds=finds))
            if naming:
                await self._slice(lambda c, ids=naming: self._drop_quarantine(c, row, ids), pace)  # type: ignore[misc]
            await pace.rest()

    @staticmethod
    def _drop_quarantine(connection: Connection, row: Row, ids: list[str]) -> None:
        queries.add_counts(connection, row.id, Counter(quarantine=queries.delete_quarantine(connection, ids)))

    async def _leave_no_bytes(self, parts: set[str], pace: Pace) -> None:
        """Out of the files too: SQLite has written zeros over it and its log is cut off; PostgreSQL vacuums."""
        if self._database.is_sqlite:
            await truncate_log(self._database, pace)
            return
        try:
            for part in (*sorted(parts), *queries.BESIDE):
                await self._database.run_aside(lambda c, part=part: c.execute(f"VACUUM (SKIP_LOCKED) {part}"))  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001  autovacuum comes by itself, later
            log.warning(VACUUM_FAILED, error=type(error).__name__)


def _first_bytes(found: list[tuple[str, int]]) -> list[str]:
    """The first entries that fit into memory together; one at least."""
    ids: list[str] = []
    total = 0
    for entry, size in found:
        if ids and total + size > QUARANTINE_BYTES:
            break
        ids.append(entry)
        total += size
    return ids
