"""What one duty would look for is asked with what the others would, and who has something is called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from app.completeness.backfill_queries import running as running_backfills
from app.connector.jobs import running_jobs
from app.db import Database
from app.erasure.queries import unfinished as unfinished_erasures
from app.lookout import Lookout
from app.replay.queries import unfinished as unfinished_replays
from app.rollups.store import uncounted
from tests.conftest import MakeDatabase
from tests.factories import make_event

DUTIES = {
    "replays": unfinished_replays, "erasures": unfinished_erasures, "subscriptions": running_jobs,
    "backfills": running_backfills, "stats": uncounted,
}  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, make_migrated: MakeDatabase) -> Iterator[Database]:
    opened = Database(make_migrated(request.param))
    yield opened
    opened.close()


def called(database: Database) -> tuple[list[str], int]:
    """(who is called at one look, how many statements that took)."""
    names: list[str] = []
    lookout = Lookout(database)
    for duty, wanted in DUTIES.items():
        lookout.add(duty, wanted(), lambda duty=duty: names.append(duty))
    statements: list[str] = []

    def note(*found: Any) -> None:
        statements.append(found[2])

    sa.event.listen(database._glancer, "before_cursor_execute", note)
    asyncio.run(lookout.look())
    sa.event.remove(database._glancer, "before_cursor_execute", note)
    return names, len([sql for sql in statements if sql != "BEGIN"])


@asynccontextmanager
async def looking(database: Database, wanted: sa.Select[Any]) -> AsyncIterator[tuple[Lookout, asyncio.Event]]:
    """A lookout that runs until it is told to stop, and what is set once it has found a row of `wanted`."""
    stop, found = asyncio.Event(), asyncio.Event()
    lookout = Lookout(database)
    lookout.add("stats", wanted, found.set)
    async with asyncio.timeout(20):
        task = asyncio.create_task(lookout.run(stop))
        yield lookout, found
        stop.set()
        lookout.look_soon()
        await task


def test_who_has_nothing_to_do_is_not_called(database: Database) -> None:
    assert called(database) == ([], 1)


def test_who_has_something_to_do_is_called(database: Database) -> None:
    make_event(database)

    assert called(database) == (["stats"], 1)


def test_it_looks_at_once_when_told_and_ends_when_told(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.lookout.SOON_SECONDS", 0.0)
    monkeypatch.setattr("app.lookout.LOOK_SECONDS", 3600.0)

    async def story() -> None:
        async with looking(database, uncounted()) as (lookout, found):
            await asyncio.to_thread(make_event, database)
            while not found.is_set():
                lookout.look_soon()
                await asyncio.sleep(0)

    asyncio.run(story())


def test_a_database_that_is_away_does_not_end_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.lookout.SOON_SECONDS", 0.0)
    monkeypatch.setattr("app.lookout.LOOK_SECONDS", 0.0)

    async def story() -> None:
        missing = sa.select(sa.column("word")).select_from(sa.table("nowhere"))
        async with looking(database, missing) as (_, found):
            await database.run_write(lambda c: c.execute(sa.text("CREATE TABLE nowhere (word INTEGER)")))
            await database.run_write(lambda c: c.execute(sa.text("INSERT INTO nowhere VALUES (1)")))
            await found.wait()

    asyncio.run(story())
