"""Many small writes, one transaction: whatever queued up while the last commit ran goes into the next one.

No timer and no window: an idle service commits a lone post at once, a busy one shares each fsync among all that wait.
Work is grouped in lanes (posts, finished attempts, claims); a lane gets all its waiting items at once, so that it can
write them with one statement, and answers each of them. An answer is given only after the commit.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import structlog
from sqlalchemy.engine import Connection

from app.db import Database, is_outage, sqlstate_of

log = structlog.get_logger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
In_contra = TypeVar("In_contra", contravariant=True)
Out = TypeVar("Out")
MAX_ITEMS = 512  # a lane's items in one transaction: keeps a commit in the tens of milliseconds
PATIENCE_SECONDS = 20.0  # a database that hangs must not hold Mailjet's connections
RETRIED_STATES = frozenset({"40001", "40P01"})  # PostgreSQL: serialization failure, deadlock


class LaneWork(Protocol[In_contra, Out]):
    """What a lane does with its items. `execute` runs on a worker thread, the other two on the event loop."""

    def execute(self, connection: Connection, items: Sequence[In_contra]) -> Sequence[Out]: ...

    def committed(self, items: Sequence[In_contra], results: Sequence[Out]) -> None: ...

    def failed(self, items: Sequence[In_contra]) -> None: ...


class Lane(Generic[Item, Result]):
    """A queue of one kind of write; made by `GroupCommit.lane`."""

    def __init__(self, owner: GroupCommit, work: LaneWork[Item, Result]) -> None:
        self._owner = owner
        self.work = work
        self.waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """The item's result once it is durable. A caller that goes away does not take the write with it."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future))
        self._owner.wake()
        return future

    def take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        return [self.waiting.popleft() for _ in range(min(len(self.waiting), MAX_ITEMS))]


class GroupCommit:
    """One at a time, commits what its lanes hold. Bound to the event loop that first wakes it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lanes: list[Lane[Any, Any]] = []
        self._running: asyncio.Task[None] | None = None
        self.last_commit_items = 0

    def lane(self, work: LaneWork[Item, Result]) -> Lane[Item, Result]:
        lane: Lane[Item, Result] = Lane(self, work)
        self._lanes.append(lane)
        return lane

    def wake(self) -> None:
        if self._running is None:
            # In a context of its own: its log lines are not those of the request that happened to wake it.
            self._running = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())

    async def drain(self) -> None:
        """Wait until nothing waits any more."""
        while self._running is not None:
            await asyncio.shield(self._running)

    async def _run(self) -> None:
        try:
            while any(lane.waiting for lane in self._lanes):
                groups = [_Group(lane, lane.take()) for lane in self._lanes if lane.waiting]
                await self._commit(groups)
        finally:
            self._running = None
            if any(lane.waiting for lane in self._lanes):
                self.wake()

    async def _commit(self, groups: list[_Group]) -> Exception | None:
        """Every caller has its answer; None, or what went wrong with all of them."""
        timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._lose_patience, groups)
        try:
            results = await self._transaction(groups)
        except Exception as error:  # noqa: BLE001  every waiting caller must be told
            return await self._apart(groups, error)
        finally:
            timer.cancel()
        for group, result in zip(groups, results, strict=True):
            group.succeed(result)
        return None

    def _lose_patience(self, groups: list[_Group]) -> None:
        """The database hangs: nobody waits longer for it. What it has in hand may still be written; the rest is not."""
        late = TimeoutError("the database did not commit in time")
        log.warning("commit.timed_out", seconds=PATIENCE_SECONDS, items=sum(len(g.items) for g in groups))
        for group in groups:
            group.tell(late)
        for lane in self._lanes:
            if lane.waiting:
                rest = _Group(lane, list(lane.waiting))
                lane.waiting.clear()
                rest.fail(late)

    async def _transaction(self, groups: list[_Group]) -> list[Sequence[Any]]:
        def work(connection: Connection) -> list[Sequence[Any]]:
            return [group.lane.work.execute(connection, group.items) for group in groups]

        try:
            return await self._database.run_write(work)
        except Exception as error:
            if sqlstate_of(error) not in RETRIED_STATES:
                raise
            return await self._database.run_write(work)

    async def _apart(self, groups: list[_Group], error: Exception) -> Exception | None:
        """One poisonous item must not take the others with it: an outage fails all, anything else is tried in parts."""
        if is_outage(error):
            log.warning("commit.failed", error=type(error).__name__, items=sum(len(g.items) for g in groups))
        elif len(groups) > 1 or len(groups[0].items) > 1:
            return await self._one_by_one([single for group in groups for single in group.singles()])
        else:
            log.error("commit.refused", exc_info=error)
        for group in groups:
            group.fail(error)
        return error

    async def _one_by_one(self, parts: list[_Group]) -> Exception | None:
        for number, part in enumerate(parts, 1):
            error = await self._commit([part])
            if error is not None and is_outage(error):
                # The database went away between: hundreds of parts must not wait for it one after the other.
                for rest in parts[number:]:
                    rest.fail(error)
                return error
        return None


class _Group:
    """The items of one lane in one transaction."""

    def __init__(self, lane: Lane[Any, Any], waiting: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        self.lane = lane
        self.waiting = waiting
        self.items = [item for item, _ in waiting]

    def singles(self) -> list[_Group]:
        return [_Group(self.lane, [entry]) for entry in self.waiting]

    def succeed(self, results: Sequence[Any]) -> None:
        try:
            self.lane.work.committed(self.items, results)
        except Exception:
            log.exception("commit.hook_failed")  # it is durable: the callers hear so
        for (_, future), result in zip(self.waiting, results, strict=True):
            if not future.done():
                future.set_result(result)

    def fail(self, error: Exception) -> None:
        try:
            self.lane.work.failed(self.items)
        except Exception:
            log.exception("commit.hook_failed")
        self.tell(error)

    def tell(self, error: Exception) -> None:
        for _, future in self.waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # a caller that hung up never asks
