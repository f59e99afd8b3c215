"""Many waiting writes, one transaction; each gets its own answer, and a poisonous one takes no other with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from app.db import Database
from app.group_commit import MAX_ITEMS, GroupCommit
from app.models import Secret

secrets: sa.Table = Secret.__table__  # type: ignore[attr-defined]


class Writing:
    """A lane's work: each item becomes a row; `poison` in an item makes the whole statement fail."""

    def __init__(self, fault: Callable[[], Exception] = lambda: ValueError("poison")) -> None:
        self.groups: list[list[str]] = []
        self.answered: list[tuple[str, int]] = []
        self.refused: list[str] = []
        self._fault = fault

    def execute(self, connection: Connection, items: Sequence[str]) -> list[int]:
        self.groups.append(list(items))
        connection.execute(sa.insert(secrets), [{"name": item, "value": "x"} for item in items])
        if any("poison" in item for item in items):
            raise self._fault()
        return [len(item) for item in items]

    def committed(self, items: Sequence[str], results: Sequence[int]) -> None:
        self.answered += zip(items, results, strict=True)

    def failed(self, items: Sequence[str]) -> None:
        self.refused += items


def names(database: Database) -> set[str]:
    with database.reading() as connection:
        return set(connection.execute(sa.select(secrets.c.name)).scalars())


async def settle(futures: list[asyncio.Future[Any]]) -> list[Any]:
    return await asyncio.gather(*futures, return_exceptions=True)


def test_what_waits_together_is_one_transaction_with_an_answer_for_each(database: Database) -> None:
    work = Writing()

    async def run() -> list[Any]:
        lane = GroupCommit(database).lane(work)
        return await settle([lane.submit(item) for item in ("a", "bb", "ccc")])

    assert asyncio.run(run()) == [1, 2, 3]
    assert work.groups == [["a", "bb", "ccc"]]
    assert names(database) == {"a", "bb", "ccc"}


def test_a_poisonous_item_fails_alone(database: Database) -> None:
    work, beside = Writing(), Writing()

    async def run() -> list[Any]:
        commits = GroupCommit(database)
        lane, other = commits.lane(work), commits.lane(beside)
        return await settle([*(lane.submit(i) for i in ("a", "poison", "bb")), other.submit("ccc")])

    a, poison, bb, ccc = asyncio.run(run())

    assert (a, bb, ccc) == (1, 2, 3)
    assert isinstance(poison, ValueError)
    assert names(database) == {"a", "bb", "ccc"}
    assert work.refused == ["poison"]
    assert sorted(work.answered) == [("a", 1), ("bb", 2)]


def test_an_item_the_database_itself_refuses_fails_alone(database: Database) -> None:
    """Here a key that is there already: a real error of each database, in the middle of a group."""
    work = Writing()

    async def run() -> list[Any]:
        lane = GroupCommit(database).lane(work)
        await lane.submit("taken")
        return await settle([lane.submit(item) for item in ("a", "taken", "bb")])

    a, taken, bb = asyncio.run(run())

    assert (a, bb) == (1, 2)
    assert isinstance(taken, sa.exc.IntegrityError)
    assert names(database) == {"taken", "a", "bb"}


def test_an_outage_fails_all_at_once_and_is_not_tried_one_by_one(database: Database) -> None:
    work = Writing(lambda: OperationalError("select", {}, Exception("gone")))

    async def run() -> list[Any]:
        lane = GroupCommit(database).lane(work)
        failed = await settle([lane.submit(item) for item in ("a", "poison", "bb")])
        return [*failed, await lane.submit("after")]

    *failed, after = asyncio.run(run())

    assert all(isinstance(error, OperationalError) for error in failed)
    assert after == 5
    assert work.groups == [["a", "poison", "bb"], ["after"]]
    assert names(database) == {"after"}


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_a_deadlock_is_tried_once_more(database: Database, state: str) -> None:
    class Deadlock(Exception):
        sqlstate = state

    faults = iter([OperationalError("select", {}, Deadlock())])

    class Unlucky(Writing):
        def execute(self, connection: Connection, items: Sequence[str]) -> list[int]:
            for fault in faults:
                raise fault
            return super().execute(connection, items)

    async def run() -> int:
        return await GroupCommit(database).lane(Unlucky()).submit("a")

    assert asyncio.run(run()) == 1
    assert names(database) == {"a"}


def test_a_caller_that_goes_away_does_not_take_the_write_with_it(database: Database) -> None:
    work = Writing()

    async def run() -> None:
        commits = GroupCommit(database)
        lane = commits.lane(work)
        lane.submit("abandoned").cancel()
        assert await lane.submit("kept") == 4
        await commits.drain()

    asyncio.run(run())

    assert names(database) == {"abandoned", "kept"}


def test_nothing_waits_behind_a_group_of_the_largest_size(database: Database) -> None:
    work = Writing()

    async def run() -> list[Any]:
        lane = GroupCommit(database).lane(work)
        return await settle([lane.submit(f"n{n}") for n in range(MAX_ITEMS + 3)])

    assert len(asyncio.run(run())) == MAX_ITEMS + 3
    assert [len(group) for group in work.groups] == [MAX_ITEMS, 3]
    assert len(names(database)) == MAX_ITEMS + 3
