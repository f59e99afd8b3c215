"""The feed: events in the order they were committed, and waiting for more of them.

`query.horizon` tells how far it may be read. All who wait share its looks: one is made when this process commits
events, and one every second for what other replicas commit. Nobody holds a thread or a database connection while it
waits, and at most a few read at a time, whatever their number.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.db import Database
from app.errors import BadCursor, Unavailable
from app.filters import FeedQuery, StreamQuery, event_conditions
from app.models import Event
from app.query.cursor import decode_cursor, encode_cursor, scope_of
from app.query.horizon import Horizon, Mark
from app.views import VIEW_COLUMNS, dump, event_view

events: sa.Table = Event.__table__  # type: ignore[attr-defined]

Kind = Literal["poll", "stream"]
Gone = Callable[[], Awaitable[bool]]

MAX_CLIENTS = {"poll": 200, "stream": 100}  # that wait or stream at the same time
RETRY_AFTER_SECONDS = 5
POLL_SECONDS = 1.0  # how late another replica's commit is heard of, at most
SETTLE_SECONDS = 0.1  # an answer waits that long for transactions under way; a usual one takes a tenth of it
COLD_SECONDS = 2.0  # and so long the first one of a process, which has nothing older to give
SETTLE_STEP_SECONDS = 0.005
# The first commit after a pause wakes at once; those that follow so closely are gathered, the longer the more clients
# there are. With 100 streams and 100 commits a second, reading and sending at each of them would leave nothing of two
# cores: each client woken costs some 0.2 ms of the loop that takes callbacks in, so all together are woken at most 500
# times a second.
GATHER_SECONDS = 0.05
GATHER_SECONDS_EACH = 0.002
MAX_READS = 3  # at a time, of the threads that the service's own reads need too
WINDOW = 10_000  # numbers looked through for one answer; a rare filter gets an empty page and goes on from there

LATEST = "latest"


@dataclass(frozen=True, slots=True)
class FeedEvent:
    seq: int
    type: str
    content: bytes
    """The event as JSON, of contract shape."""


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Some events, and where the feed goes on: `position` is the `seq` of the last one looked at."""

    events: tuple[FeedEvent, ...]
    position: int
    has_more: bool
    # Rings for what is committed after this page was read to its end; None: nobody has listened.
    bell: asyncio.Event | None = field(default=None, compare=False, repr=False)
    # What a stream has made of the events: at most one text, the same for all whose read this is.
    written: list[bytes] = field(default_factory=list, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Ask:
    """What one client wants to read. `start` is its cursor's position; None: from now on."""

    query: FeedQuery | StreamQuery
    scope: bytes
    start: int | None
    limit: int

    def cursor(self, position: int) -> str:
        return encode_cursor(self.scope, (position,))


def parse_ask(query: FeedQuery | StreamQuery, cursor: str | None, limit: int) -> Ask:
    """Raises BadCursor. Feed and stream take each other's cursors."""
    scope = scope_of("feed", query.normalised(), "commit")
    if cursor == LATEST:
        return Ask(query, scope, None, limit)
    if cursor is None:
        return Ask(query, scope, 0, limit)
    (position,) = decode_cursor(cursor, scope, (int,))
    return Ask(query, scope, int(position), limit)


# --- SQL -------------------------------------------------------------------------------------------------------------


def page_statement(ask: Ask, after: int, upto: int) -> sa.Select[Any]:
    """The events that match in (after, upto], and one more than the limit to tell whether more follow."""
    columns = (events.c[name] for name in VIEW_COLUMNS)
    return (
        sa.select(events.c.seq, *columns)
        .where(events.c.seq > after, events.c.seq <= upto, *event_conditions(ask.query, events.c, by_seq=True))
        .order_by(events.c.seq)
        .limit(ask.limit + 1)
    )


def next_statement(after: int) -> sa.Select[Any]:
    """The number of the event that follows `after`, whatever it holds."""
    return sa.select(events.c.seq).where(events.c.seq > after).order_by(events.c.seq).limit(1)


def read_page(connection: Connection, ask: Ask, after: int, settled: int) -> FeedPage:
    """The next events after `after`; `settled` is from a look that ended before this transaction began."""
    edge = settled
    if settled - after > WINDOW:
        # From the next event on: whole ranges of numbers can be missing, where old events were deleted.
        following = connection.execute(next_statement(after)).scalar()
        edge = settled if following is None else min(settled, following + WINDOW - 1)
    result = connection.execute(page_statement(ask, after, edge))
    names = tuple(result.keys())
    rows = [dict(zip(names, row, strict=True)) for row in result]
    raw = bool(ask.query.include)
    found = tuple(
        FeedEvent(row["seq"], row["type"], dump(event_view(row, include_raw=raw))) for row in rows[: ask.limit]
    )
    if len(rows) > ask.limit:
        return FeedPage(found, found[-1].seq, has_more=True)
    return FeedPage(found, edge, has_more=edge < settled)


def gather_seconds(clients: int) -> float:
    """How long after they were woken so many clients are not woken again."""
    return max(GATHER_SECONDS, clients * GATHER_SECONDS_EACH)


# --- waiting ---------------------------------------------------------------------------------------------------------


class Feed:
    """One for the process, on the event loop."""

    def __init__(
        self, database: Database, horizon: Horizon | None = None, *, poll_seconds: float = POLL_SECONDS,
        on_clients: Callable[[str, int], None] = lambda kind, clients: None,
    ) -> None:  # fmt: skip
        self._database = database
        self.horizon = horizon or Horizon()
        self._poll_seconds = poll_seconds
        self._on_clients = on_clients
        self.closed = False
        self._clients: Counter[str] = Counter()
        self.waiting = 0  # for the bell, at this moment
        self._bell = asyncio.Event()
        self._rang_at = 0.0
        self._next_ring: asyncio.TimerHandle | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._reads = asyncio.Semaphore(MAX_READS)
        self._reading: dict[tuple[object, ...], asyncio.Task[FeedPage]] = {}
        self._running: asyncio.Task[Mark] | None = None
        self._queued: asyncio.Task[Mark] | None = None

    def wake(self) -> None:
        """On the event loop: events were committed. Costs nothing while nobody waits."""
        if not self._clients.total() or self._next_ring is not None:
            return
        loop = asyncio.get_running_loop()
        ring_at = self._rang_at + gather_seconds(self._clients.total())
        if loop.time() >= ring_at:
            self._ring()
        else:
            self._next_ring = loop.call_at(ring_at, self._ring)

    def close(self) -> None:
        """On the event loop: whoever waits is answered now, and streams end."""
        self.closed = True
        self._ring()
        if self._ticker is not None:
            self._ticker.cancel()

    def snapshot(self) -> dict[str, Any]:
        """For `/healthz`: who waits, and for how long writers have held the feed back."""
        return {"clients": dict(self._clients), "held_seconds": round(self.horizon.held_seconds, 3)}

    @contextmanager
    def client(self, kind: Kind) -> Iterator[None]:
        """A place among those that wait. Raises Unavailable when all are taken, or the service stops."""
        if self.closed:
            raise Unavailable("the service is stopping", retry_after_seconds=RETRY_AFTER_SECONDS)
        if self._clients[kind] >= MAX_CLIENTS[kind]:
            told = "streams are open" if kind == "stream" else "clients wait for events"
            raise Unavailable(f"{MAX_CLIENTS[kind]} {told} already", retry_after_seconds=RETRY_AFTER_SECONDS)
        self._count(kind, 1)
        self._keep_ticking()
        try:
            yield
        finally:
            self._count(kind, -1)

    async def first(self, ask: Ask) -> FeedPage:
        """What there is now from the client's cursor on.

        Raises BadCursor for a cursor that this database cannot have given, Unavailable.
        """
        mark = await self._settle()
        if ask.start is None:
            return FeedPage((), _settled(mark), has_more=False)
        if ask.start > mark.given:
            raise BadCursor("the cursor is ahead of this database, which was put back or replaced; start again")
        return await self._read(ask, ask.start, mark)

    async def more(self, ask: Ask, page: FeedPage, seconds: float, gone: Gone | None = None) -> FeedPage:
        """What follows `page`, waited for up to `seconds`; less when the feed closes or the client is gone.

        For one who has a place as `client`. Raises Unavailable.
        """
        give_up = asyncio.get_running_loop().time() + seconds
        while True:
            if page.bell is not None and not await self._rings(page.bell, give_up):
                return replace(page, events=())
            bell = self._bell  # taken before the look: what is committed after it rings this one
            page = await self._read(ask, page.position, await self._settle())
            if page.has_more:
                return page
            page = replace(page, bell=bell)
            if page.events or self.closed or (gone is not None and await gone()):
                return page

    async def _read(self, ask: Ask, after: int, mark: Mark) -> FeedPage:
        settled = _settled(mark)
        if settled <= after:  # or another replica was ahead
            return FeedPage((), after, has_more=False)
        # Clients that want the same, as streams at the end of the feed do, share one read.
        key = (ask.scope, ask.limit, bool(ask.query.include), after, settled)
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.create_task(self._read_alone(ask, after, settled))
            reading.add_done_callback(_retrieve)
            reading.add_done_callback(lambda _: self._reading.pop(key))
        return await asyncio.shield(reading)

    async def _read_alone(self, ask: Ask, after: int, settled: int) -> FeedPage:
        async with self._reads:
            return await self._database.run_read(lambda connection: read_page(connection, ask, after, settled))

    async def _settle(self) -> Mark:
        """How far to read: past all that was committed before the call, unless a transaction takes long."""
        mark = await self._look()
        given = mark.given
        tries = round((COLD_SECONDS if mark.settled is None else SETTLE_SECONDS) / SETTLE_STEP_SECONDS)
        while tries and (mark.settled is None or mark.settled < given):
            await asyncio.sleep(SETTLE_STEP_SECONDS)
            mark = await self._look()
            tries -= 1
        return mark

    async def _look(self) -> Mark:
        """A look that begins after the call, shared with all who ask before it begins."""
        if self._queued is None:
            self._queued = asyncio.create_task(self._look_after(self._running))
            self._queued.add_done_callback(_retrieve)
        return await asyncio.shield(self._queued)

    async def _look_after(self, before: asyncio.Task[Mark] | None) -> Mark:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._queued = self._queued, None
        return await self._database.run_read(self.horizon.look)

    # --- the bell ---

    def _tick(self) -> None:
        self._ticker = None
        if self._clients.total():
            self._ring()
            self._keep_ticking()

    def _keep_ticking(self) -> None:
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().call_later(self._poll_seconds, self._tick)

    def _ring(self) -> None:
        if self._next_ring is not None:
            self._next_ring.cancel()
            self._next_ring = None
        self._rang_at = asyncio.get_running_loop().time()
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()

    async def _rings(self, bell: asyncio.Event, give_up: float) -> bool:
        self.waiting += 1
        try:
            async with asyncio.timeout_at(give_up):
                await bell.wait()
        except TimeoutError:
            return False
        finally:
            self.waiting -= 1
        return True

    def _count(self, kind: Kind, change: int) -> None:
        self._clients[kind] += change
        self._on_clients(kind, self._clients[kind])


def _settled(mark: Mark) -> int:
    if mark.settled is None:
        raise Unavailable(
            "a transaction that began before this process first looked still writes events", retry_after_seconds=1
        )
    return mark.settled


def _retrieve(task: asyncio.Task[Any]) -> None:
    """A look or a read whose askers have all gone may fail unheard."""
    if not task.cancelled():
        task.exception()
