from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, OperationalError

from app.db import WRITE_THREADS, Database
from app.group_commit import LINGER_SECONDS, MAX_ITEMS, GroupCommit
from tests.delivery.support import run, until


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """The log lines; drawing tracebacks would take longer than the tests."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def numbers(database_url: str) -> Iterator[Database]:
    """A database with nothing but a table of numbers that are not negative."""
    database = Database(database_url)
    database.write(lambda c: c.execute(sa.text("CREATE TABLE numbers (n BIGINT PRIMARY KEY CHECK (n >= 0))")))
    yield database
    database.close()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a transaction waits for; always open at the end, so that no thread stays behind."""
    event = threading.Event()
    yield event
    event.set()


def stored(database: Database) -> list[int]:
    with database.reading() as connection:
        return list(connection.execute(sa.text("SELECT n FROM numbers ORDER BY n")).scalars())


class Numbers:
    """Stores numbers; the answer to each is its double."""

    def __init__(self, before: Callable[[Sequence[int]], object] = lambda items: None) -> None:
        self.before = before
        self.transactions: list[list[int]] = []
        self.told_committed: list[int] = []
        self.told_failed: list[int] = []

    def execute(self, connection: Connection, items: Sequence[int]) -> list[int]:
        self.transactions.append(list(items))
        self.before(items)
        connection.execute(sa.text("INSERT INTO numbers (n) VALUES (:n)"), [{"n": n} for n in items])
        return [2 * n for n in items]

    def committed(self, items: Sequence[int], results: Sequence[int]) -> None:
        assert results == [2 * n for n in items]
        self.told_committed += items

    def failed(self, items: Sequence[int]) -> None:
        self.told_failed += items


def outage() -> OperationalError:
    return OperationalError("statement", {}, Exception("the server closed the connection"))


@contextmanager
def busy(database: Database) -> Iterator[None]:
    """Nothing is written until the block ends: what is submitted in it waits together."""
    gate = threading.Event()
    for _ in range(WRITE_THREADS):
        database.submit(lambda: gate.wait(10))
    yield
    gate.set()


async def submit(database: Database, lane: Any, *items: int) -> list[Any]:
    with busy(database):
        futures = [lane.submit(n) for n in items]
    return await asyncio.gather(*futures, return_exceptions=True)


def test_a_lone_item_is_committed_at_once_and_its_answer_comes_after_the_commit(numbers: Database) -> None:
    work = Numbers()

    async def scenario() -> int:
        answer = await GroupCommit(numbers).lane(work).submit(21)
        assert stored(numbers) == [21]
        return answer

    assert run(scenario()) == 42


def test_what_waits_while_a_commit_runs_shares_the_next_and_each_gets_its_own_answer(
    numbers: Database, gate: threading.Event
) -> None:
    work = Numbers(before=lambda items: gate.wait(10))

    async def scenario() -> list[int]:
        lane = GroupCommit(numbers).lane(work)
        first = lane.submit(0)
        await until(lambda: work.transactions, "the first transaction")
        rest = [lane.submit(n) for n in range(1, 100)]
        gate.set()
        return await asyncio.gather(first, *rest)

    assert run(scenario()) == [2 * n for n in range(100)]
    assert work.transactions == [[0], list(range(1, 100))]
    assert work.told_committed == list(range(100))
    assert work.told_failed == []


def test_a_transaction_has_its_limit(numbers: Database) -> None:
    work = Numbers()

    async def scenario() -> list[int]:
        lane = GroupCommit(numbers).lane(work)
        return await submit(numbers, lane, *range(2 * MAX_ITEMS + 1))

    assert run(scenario()) == [2 * n for n in range(2 * MAX_ITEMS + 1)]
    assert [len(t) for t in work.transactions] == [MAX_ITEMS, MAX_ITEMS, 1]


def test_lanes_share_a_transaction(numbers: Database) -> None:
    transactions: list[int] = []

    class Noting(Numbers):
        def execute(self, connection: Connection, items: Sequence[int]) -> list[int]:
            transactions.append(id(connection))
            return super().execute(connection, items)

    async def scenario() -> list[Any]:
        commits = GroupCommit(numbers)
        lanes = [commits.lane(Noting()) for _ in range(3)]
        with busy(numbers):
            futures = [lane.submit(n) for n, lane in enumerate(lanes)]
        return await asyncio.gather(*futures)

    assert run(scenario()) == [0, 2, 4]
    assert len(set(transactions)) == 1


def test_an_outage_fails_all_that_shared_it_and_the_next_is_written(numbers: Database) -> None:
    outages = [outage()]

    def away(_: Sequence[int]) -> None:
        if outages:
            raise outages.pop()

    work = Numbers(before=away)

    async def scenario() -> None:
        lane = GroupCommit(numbers).lane(work)
        results = await submit(numbers, lane, 1, 2, 3)
        assert [type(r) for r in results] == [OperationalError] * 3
        assert await lane.submit(4) == 8

    run(scenario())
    assert work.told_failed == [1, 2, 3]
    assert work.told_committed == [4]
    assert work.transactions == [[1, 2, 3], [4]]  # an outage is no reason to try them one by one
    assert stored(numbers) == [4]


def test_a_poisonous_item_fails_alone(numbers: Database) -> None:
    work, other = Numbers(), Numbers()

    async def scenario() -> list[Any]:
        commits = GroupCommit(numbers)
        lane, beside = commits.lane(work), commits.lane(other)
        with busy(numbers):
            futures = [*(lane.submit(n) for n in (1, -5, 3)), beside.submit(9)]
        return await asyncio.gather(*futures, return_exceptions=True)

    results = run(scenario())

    assert [results[0], results[2], results[3]] == [2, 6, 18]
    assert isinstance(results[1], IntegrityError)
    assert (work.told_committed, work.told_failed) == ([1, 3], [-5])
    assert stored(numbers) == [1, 3, 9]


def test_a_lane_that_answers_too_few_fails_alone(numbers: Database) -> None:
    class Forgetful(Numbers):
        def execute(self, connection: Connection, items: Sequence[int]) -> list[int]:
            return super().execute(connection, items)[1:]

    work, other = Forgetful(), Numbers()

    async def scenario() -> list[Any]:
        commits = GroupCommit(numbers)
        lane, beside = commits.lane(work), commits.lane(other)
        with busy(numbers):
            futures = [lane.submit(1), beside.submit(9)]
        results = await asyncio.gather(*futures, return_exceptions=True)
        await asyncio.wait_for(commits.drain(), 5)
        return results

    forgotten, told = run(scenario())

    assert isinstance(forgotten, RuntimeError)
    assert told == 18
    assert stored(numbers) == [9]


def test_an_outage_among_the_parts_fails_the_rest_at_once(numbers: Database) -> None:
    def before(items: Sequence[int]) -> None:
        if list(items) == [2]:
            raise outage()

    work = Numbers(before)

    async def scenario() -> list[Any]:
        return await submit(numbers, GroupCommit(numbers).lane(work), 1, -5, 2, *range(10, 400))

    results = run(scenario())

    assert results[0] == 2
    assert isinstance(results[1], IntegrityError)
    assert all(isinstance(r, OperationalError) for r in results[2:])
    assert len(work.transactions) == 4  # all, 1, -5, 2: nobody waits four hundred times for a dead database
    assert stored(numbers) == [1]


def test_a_caller_that_goes_away_does_not_take_the_write_with_it(numbers: Database, gate: threading.Event) -> None:
    work = Numbers(before=lambda items: gate.wait(10))

    async def scenario() -> None:
        commits = GroupCommit(numbers)
        lane = commits.lane(work)
        with busy(numbers):
            tasks = [asyncio.create_task(_await(lane.submit(n))) for n in range(3)]
            await asyncio.sleep(0)
        await until(lambda: work.transactions, "the transaction")
        waiting = asyncio.create_task(_await(lane.submit(9)))
        await asyncio.sleep(0)
        for task in (*tasks[:2], waiting):
            task.cancel()
        gate.set()
        assert await tasks[2] == 4
        await commits.drain()

    run(scenario())
    assert stored(numbers) == [0, 1, 2, 9]
    assert work.told_committed == [0, 1, 2, 9]


async def _await(future: asyncio.Future[Any]) -> Any:
    return await future


def test_drain_waits_for_all_that_waits(numbers: Database) -> None:
    work = Numbers()

    async def scenario() -> None:
        commits = GroupCommit(numbers)
        lane = commits.lane(work)
        await commits.drain()  # with nothing there
        futures = [lane.submit(n) for n in range(MAX_ITEMS + 10)]
        await commits.drain()
        assert all(f.done() for f in futures)

    run(scenario())
    assert len(stored(numbers)) == MAX_ITEMS + 10


def test_drain_survives_a_failure(numbers: Database) -> None:
    async def scenario() -> None:
        commits = GroupCommit(numbers)
        future = commits.lane(Numbers()).submit(-1)
        await commits.drain()
        assert isinstance(future.exception(), IntegrityError)

    run(scenario())


@pytest.mark.parametrize("hook", ["committed", "failed"])
def test_a_hook_that_breaks_costs_nobody_the_answer(numbers: Database, hook: str) -> None:
    work = Numbers()

    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    setattr(work, hook, broken)

    async def scenario() -> list[Any]:
        lane = GroupCommit(numbers).lane(work)
        return [*await submit(numbers, lane, 1, -5), await lane.submit(7)]

    one, poisonous, later = run(scenario())
    assert (one, later) == (2, 14)
    assert isinstance(poisonous, IntegrityError)


def test_a_serialization_failure_is_tried_once_more(numbers: Database) -> None:
    class Deadlock(Exception):
        sqlstate = "40P01"

    failures = [OperationalError("statement", {}, Deadlock())]

    def before(_: Sequence[int]) -> None:
        if failures:
            raise failures.pop()

    work = Numbers(before)

    async def scenario() -> list[Any]:
        return await submit(numbers, GroupCommit(numbers).lane(work), 1, 2)

    assert run(scenario()) == [2, 4]
    assert work.transactions == [[1, 2], [1, 2]]


def test_a_database_that_is_closed_fails_what_comes_later(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    database.close()

    async def scenario() -> list[Any]:
        lane = GroupCommit(database).lane(Numbers())
        return await asyncio.gather(lane.submit(1), lane.submit(2), return_exceptions=True)

    assert all(isinstance(r, Exception) for r in run(scenario()))


def test_nobody_waits_for_ever_for_a_database_that_hangs(numbers: Database, gate: threading.Event) -> None:
    work = Numbers(before=lambda items: gate.wait(10))

    async def scenario() -> None:
        commits = GroupCommit(numbers, patience_seconds=0.2)
        lane = commits.lane(work)
        first = lane.submit(1)
        await until(lambda: work.transactions, "the first transaction")
        results = await asyncio.gather(first, lane.submit(2), return_exceptions=True)
        assert [type(r) for r in results] == [TimeoutError] * 2
        gate.set()
        assert await lane.submit(3) == 6
        await commits.drain()

    run(scenario())
    assert stored(numbers) == [1, 3]  # what it had in hand was written all the same; what only waited was not
    assert work.told_failed == [2]


def test_what_nobody_waits_for_goes_with_what_others_write(numbers: Database, gate: threading.Event) -> None:
    work, beside = Numbers(before=lambda items: gate.wait(10)), Numbers()

    async def scenario() -> None:
        commits = GroupCommit(numbers)
        lane, other = commits.lane(work), commits.lane(beside)
        lane.post(1)
        assert await other.submit(2) == 4  # which does not wait the moment that the first one would have waited
        await commits.drain()

    gate.set()
    run(scenario())
    assert (work.transactions, beside.transactions) == ([[1]], [[2]])
    assert (work.told_committed, work.told_failed) == ([1], [])
    assert stored(numbers) == [1, 2]


def test_what_nobody_waits_for_is_written_all_the_same(numbers: Database) -> None:
    work = Numbers()

    async def scenario() -> None:
        commits = GroupCommit(numbers)
        lane = commits.lane(work)
        for n in range(3):
            lane.post(n)
        await until(lambda: work.told_committed, "the commit")
        for n in range(3, 6):
            lane.post(n)
        lane.post(-1)
        await commits.drain()

    run(scenario())
    assert stored(numbers) == [0, 1, 2, 3, 4, 5]
    assert work.told_failed == [-1]


def test_what_went_with_others_asks_for_no_turn_of_its_own(numbers: Database) -> None:
    turns: list[object] = []

    async def scenario() -> None:
        commits = GroupCommit(numbers)
        lane = commits.lane(Numbers())
        lane.post(1)
        alarm = asyncio.get_running_loop().time() + LINGER_SECONDS
        await lane.submit(2)
        await until(lambda: asyncio.get_running_loop().time() > alarm + LINGER_SECONDS, "the alarm")

    submit = numbers.submit
    numbers.submit = lambda turn: turns.append(turn) or submit(turn)  # type: ignore[method-assign, func-returns-value]
    run(scenario())
    assert len(turns) == 1
    assert stored(numbers) == [1, 2]


def test_draining_ends_whatever_alarm_is_set(numbers: Database) -> None:
    async def scenario() -> None:
        commits = GroupCommit(numbers)
        lane = commits.lane(Numbers())
        for n in range(0, 30, 3):
            lane.post(n)
            await lane.submit(n + 1)  # takes the other along; its alarm is still to ring
            lane.post(n + 2)
            await commits.drain()

    run(scenario())
    assert stored(numbers) == list(range(30))
