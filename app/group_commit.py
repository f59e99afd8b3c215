"""Many small writes, one transaction: whatever queued up while the last commit ran goes into the next one.

No timer and no window: an idle service commits a lone post at once, a busy one shares each fsync among all that wait.
Work is grouped in lanes (posts, finished attempts, claims); a lane gets all its waiting items at once, so that it can
write them with one statement, and answers each of them. An answer is given only after the commit.

The database's thread takes what waits by itself, without asking the event loop: a busy loop comes to a finished commit
milliseconds late, and the database would stand idle that long each time (a third of all time, as measured).
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import structlog
from sqlalchemy.engine import Connection

from app.db import Database, is_outage, sqlstate_of

log = structlog.get_logger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
In_contra = TypeVar("In_contra", contravariant=True)
Out = TypeVar("Out")
Entry = tuple[Any, asyncio.Future[Any] | None, float]  # what waits in a lane, who waits for its result, since when
LINGER_SECONDS = 0.005  # what nobody waits for joins others' commits, or makes one of its own so much later
MAX_ITEMS = 512  # a lane's items in one transaction: keeps a commit in the tens of milliseconds
PATIENCE_SECONDS = 15.0  # a database that hangs must not hold Mailjet's connections
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
        self.is_urgent = False  # somebody waits for a result
        self.waiting: deque[Entry] = deque()

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """The item's result once it is durable. A caller that goes away does not take the write with it."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future, time.monotonic()))
        self.is_urgent = True
        self._owner.wake()
        return future

    def post(self, item: Item, *, is_urgent: bool = False) -> None:
        """`submit` for an item whose result only the lane's work hears of. Not urgent, it goes with what others write,
        or by itself a little later."""
        self.waiting.append((item, None, time.monotonic()))
        if is_urgent:
            self.is_urgent = True
            self._owner.wake()
        else:
            self._owner.wake_later()

    def take(self) -> list[Entry]:
        self.is_urgent = len(self.waiting) > MAX_ITEMS
        return [self.waiting.popleft() for _ in range(min(len(self.waiting), MAX_ITEMS))]

    def take_since(self, moment: float) -> list[Entry]:
        """Those that have waited since `moment` or longer."""
        taken: list[Entry] = []
        while self.waiting and self.waiting[0][2] <= moment:
            taken.append(self.waiting.popleft())
        return taken

    def take_all(self) -> list[Entry]:
        return [self.waiting.popleft() for _ in range(len(self.waiting))]


class GroupCommit:
    """One transaction at a time, commits what its lanes hold. Bound to the event loop that first wakes it."""

    def __init__(self, database: Database, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._database = database
        self._patience = patience_seconds
        self._lanes: list[Lane[Any, Any]] = []
        self._lock = threading.Lock()  # of the two below and of taking from lanes: loop and database thread meet here
        self._active = False  # a turn waits for the database's thread, or runs on it
        self._in_hand: list[_Group] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watcher: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None  # of what nobody waits for
        self._idle: asyncio.Event = asyncio.Event()

    def lane(self, work: LaneWork[Item, Result]) -> Lane[Item, Result]:
        lane: Lane[Item, Result] = Lane(self, work)
        self._lanes.append(lane)
        return lane

    def wake(self) -> None:
        """On the event loop: something waits in a lane."""
        with self._lock:
            if self._active:
                return
            self._active = True
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._idle.clear()
        if self._watcher is None:
            self._watch(self._patience)
        self._ask_for_turn()

    def wake_later(self) -> None:
        """On the event loop: something waits in a lane, and nobody for it."""
        self._idle.clear()
        if self._active or self._alarm is not None:
            return  # the turn takes it along, or `_rest` sees it
        first = min((lane.waiting[0][2] for lane in self._lanes if lane.waiting), default=0.0)
        left = max(first + LINGER_SECONDS - time.monotonic(), 0.0)
        self._alarm = asyncio.get_running_loop().call_later(left, self._alarm_rang)

    def _alarm_rang(self) -> None:
        """What it was set for may have gone with others' commits meanwhile, and what waits now have come since."""
        self._alarm = None
        if self._active:
            return  # as in `wake_later`
        late = time.monotonic() - LINGER_SECONDS
        if any(lane.waiting and lane.waiting[0][2] <= late for lane in self._lanes):
            self.wake()
        else:
            self._rest()

    async def drain(self) -> None:
        """Wait until nothing waits any more."""
        while self._active or any(lane.waiting for lane in self._lanes):
            self._idle.clear()
            await self._idle.wait()

    # --- on the database's thread ---

    def _turn(self) -> None:
        """One transaction; then others who write have their turn before the next."""
        with self._lock:
            # Every lane, also an empty one: whoever submits sets the flag last, and one left over would turn for ever.
            groups = self._in_hand = [_Group(lane, taken) for lane in self._lanes if (taken := lane.take())]
        if groups:
            self._on_loop(self._tell, self._commit(groups))
        with self._lock:
            self._in_hand = []
            # Asked of the variable below: as soon as the lock is free, the loop may ask for a turn of its own.
            again = self._active = any(lane.is_urgent for lane in self._lanes)
        if again:
            self._ask_for_turn()
        else:
            self._on_loop(self._rest)

    def _ask_for_turn(self) -> None:
        try:
            self._database.submit(self._turn)
        except RuntimeError as error:  # the database is closed: the service has ended
            with self._lock:
                rest = [_Group(lane, lane.take_all()) for lane in self._lanes if lane.waiting]
                self._active = False
            self._on_loop(self._tell, [(group, error) for group in rest])
            self._on_loop(self._rest)

    def _commit(self, groups: list[_Group]) -> list[_Outcome]:
        """One poisonous item must not take the others with it: an outage fails all, anything else is tried in parts."""
        try:
            results = self._transaction(groups)
        except Exception as error:
            if is_outage(error):
                log.warning("commit.failed", error=type(error).__name__, items=sum(len(g.items) for g in groups))
            elif len(groups) > 1 or len(groups[0].items) > 1:
                return self._one_by_one([single for group in groups for single in group.singles()])
            else:
                log.error("commit.refused", exc_info=error)  # noqa: TRY400
            return [(group, error) for group in groups]
        return list(zip(groups, results, strict=True))

    def _transaction(self, groups: list[_Group]) -> list[Sequence[Any]]:
        def work(connection: Connection) -> list[Sequence[Any]]:
            return [group.execute(connection) for group in groups]

        try:
            return self._database.in_transaction(work)
        except Exception as error:
            if sqlstate_of(error) not in RETRIED_STATES:
                raise
            return self._database.in_transaction(work)

    def _one_by_one(self, parts: list[_Group]) -> list[_Outcome]:
        outcomes: list[_Outcome] = []
        for number, part in enumerate(parts, 1):
            [outcome] = self._commit([part])
            outcomes.append(outcome)
            error = outcome[1]
            if isinstance(error, Exception) and is_outage(error):
                # The database went away between: hundreds of parts must not wait for it one after the other.
                return outcomes + [(rest, error) for rest in parts[number:]]
        return outcomes

    def _on_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop has ended: nobody waits there any more
            log.warning("commit.nobody_waits")

    # --- on the event loop ---

    def _tell(self, outcomes: list[_Outcome]) -> None:
        for group, outcome in outcomes:
            if isinstance(outcome, Exception):
                group.fail(outcome)
            else:
                group.succeed(outcome)

    def _rest(self) -> None:
        if self._active:
            return
        if any(lane.waiting for lane in self._lanes):
            self.wake_later()
        else:
            self._idle.set()

    def _watch(self, seconds: float) -> None:
        assert self._loop is not None
        # In a context of its own: its log lines are not those of the request that happened to wake us.
        self._watcher = self._loop.call_later(seconds, self._look, context=contextvars.Context())

    def _look(self) -> None:
        """The database may hang: nobody waits longer than that for it."""
        self._watcher = None
        with self._lock:
            if not self._active:
                return
            late = time.monotonic() - self._patience
            groups = [group for group in self._in_hand if group.waiting[0][2] <= late]
            self._in_hand = [group for group in self._in_hand if group not in groups]
            rest = [_Group(lane, taken) for lane in self._lanes if (taken := lane.take_since(late))]
            waiting = [group.waiting[0][2] for group in self._in_hand]
            waiting += [lane.waiting[0][2] for lane in self._lanes if lane.waiting]
        self._lose_patience(groups, rest)
        self._watch(max(min(waiting, default=late + self._patience) - late, 0.05))

    def _lose_patience(self, groups: list[_Group], rest: list[_Group]) -> None:
        """What the database has in hand may still be written; the rest is not."""
        if not groups and not rest:
            return
        error = TimeoutError("the database did not commit in time")
        log.warning("commit.timed_out", seconds=self._patience, items=sum(len(g.items) for g in (*groups, *rest)))
        for group in groups:
            group.tell(error)
        for group in rest:
            group.fail(error)


class _Group:
    """The items of one lane in one transaction."""

    def __init__(self, lane: Lane[Any, Any], waiting: list[Entry]) -> None:
        self.lane = lane
        self.waiting = waiting
        self.items = [item for item, _, _ in waiting]

    def singles(self) -> list[_Group]:
        return [_Group(self.lane, [entry]) for entry in self.waiting]

    def execute(self, connection: Connection) -> Sequence[Any]:
        results = self.lane.work.execute(connection, self.items)
        if len(results) != len(self.items):  # a bug of ours must show here, and not leave the others without an answer
            raise RuntimeError(f"{len(self.items)} items, {len(results)} results")
        return results

    def succeed(self, results: Sequence[Any]) -> None:
        try:
            self.lane.work.committed(self.items, results)
        except Exception:
            log.exception("commit.hook_failed")  # it is durable: the callers hear so
        for (_, future, _), result in zip(self.waiting, results, strict=True):
            if future is not None and not future.done():
                future.set_result(result)

    def fail(self, error: Exception) -> None:
        try:
            self.lane.work.failed(self.items)
        except Exception:
            log.exception("commit.hook_failed")
        self.tell(error)

    def tell(self, error: Exception) -> None:
        for _, future, _ in self.waiting:
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()  # a caller that hung up never asks


_Outcome = tuple[_Group, Sequence[Any] | Exception]
