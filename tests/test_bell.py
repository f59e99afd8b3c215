"""Who stores and does not deliver rings, and who delivers hears it without looking."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa

from app.bell import CHANNEL, QUIET_SECONDS, Bell, Listener
from app.clock import now_micros
from app.db import Database
from app.delivery import worker
from app.dispatch.matching import Matcher
from app.dispatch.service import NoWorker
from app.errors import DatabaseFault
from app.group_commit import GroupCommit
from app.ingest.service import Ingest
from app.settings import SinkSettings, WebhookSettings
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from tests.conftest import MakeDatabase
from tests.delivery.stand import Stand, event

SECONDS = 20  # a deadline; all of it takes milliseconds


@pytest.fixture
def postgres(make_migrated: MakeDatabase) -> Iterator[Database]:
    opened = Database(make_migrated("postgresql"))
    yield opened
    opened.close()


def test_what_one_replica_stores_another_sends_without_looking_by_itself(
    postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "POLL_SECONDS", 3600.0)
    monkeypatch.setattr(worker, "HEARD_POLL_SECONDS", 3600.0)
    sink = SampleSink()

    async def story(url: str) -> None:
        sinks = {"crm": SinkSettings(url=url)}
        commits = GroupCommit(postgres)
        receiver = Ingest({"orders": WebhookSettings()}, matcher=Matcher(sinks), commits=commits, worker=NoWorker())
        async with Stand(postgres, sinks).running():
            for number in range(3):
                body = json.dumps([event(number)]).encode()
                await receiver.accept("orders", body, now_micros=now_micros())
                async with asyncio.timeout(SECONDS):
                    await asyncio.to_thread(sink.wait_for_ids, number + 1, timeout=SECONDS)
                await asyncio.sleep(QUIET_SECONDS)
        await commits.drain()

    with LocalServer(sink) as server:
        asyncio.run(story(server.url))


def test_a_listener_whose_connection_is_cut_listens_again(postgres: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.bell.FIRST_WAIT_SECONDS", 0.01)

    async def story() -> None:
        heard = asyncio.Event()
        task = asyncio.create_task(Listener(postgres, heard.set).run())
        async with asyncio.timeout(SECONDS):
            await heard.wait()  # it listens
            heard.clear()
            await postgres.run_write(lambda c: c.execute(sa.text(CUT)))
            await heard.wait()  # it listens again
            heard.clear()
            await postgres.run_write(Bell().ring)
            await heard.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())


CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    " AND query ~ '^(LISTEN|NOTIFY) jethook_' AND pid <> pg_backend_pid()"
)


def test_rings_that_follow_closely_are_one(postgres: Database) -> None:
    now = [0.0]
    bell = Bell(lambda: now[0])

    with psycopg.connect(postgres.driver_url, autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}")
        for now[0] in (1.0, 1.0 + QUIET_SECONDS / 2, 1.0 + QUIET_SECONDS):
            postgres.write(bell.ring)

        assert len(list(listener.notifies(timeout=SECONDS, stop_after=2))) == 2
        assert list(listener.notifies(timeout=0.05)) == []


@pytest.mark.parametrize("given", ["none", "0", "7"])
def test_prepared_statements_can_be_left_out_by_the_url(postgres: Database, given: str) -> None:
    url = postgres.writer.url.update_query_dict({"prepare_threshold": given}).render_as_string(hide_password=False)
    opened = Database(url)
    try:
        with opened.reading() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            assert driver.prepare_threshold == (None if given == "none" else int(given))
    finally:
        opened.close()


def test_a_threshold_that_is_none_is_told() -> None:
    with pytest.raises(DatabaseFault, match="prepare_threshold"):
        Database("postgresql://x/y?prepare_threshold=often")


def test_a_listener_is_sure_while_its_own_ring_comes_back(postgres: Database) -> None:
    async def story() -> None:
        listener = Listener(postgres, lambda: None)
        assert not listener.is_sure
        task = asyncio.create_task(listener.run())
        async with asyncio.timeout(SECONDS):
            while not listener.is_sure:  # noqa: ASYNC110  it has no event for that
                await asyncio.sleep(0.01)
        await postgres.run_write(lambda c: c.execute(sa.text(CUT)))
        async with asyncio.timeout(SECONDS):
            while listener.is_sure:  # noqa: ASYNC110  it has no event for that
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())


def test_a_listener_that_hears_nothing_is_not_sure(postgres: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a PgBouncer that passes no notifications on."""
    monkeypatch.setattr("app.bell.ANSWER_SECONDS", 0.05)
    monkeypatch.setattr("app.bell.MOST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr("app.bell.PROOF_SECONDS", 0.01)

    class Deaf(Listener):
        def __init__(self) -> None:
            super().__init__(postgres, lambda: None)
            self.heard: list[bool] = []

        async def _hear(self, connection: psycopg.AsyncConnection[object], seconds: float) -> None:
            await connection.execute(f"UNLISTEN {self._own}")
            await super()._hear(connection, seconds)
            self.heard.append(self.is_sure)

    async def story() -> bool:
        deaf = Deaf()
        task = asyncio.create_task(deaf.run())
        async with asyncio.timeout(SECONDS):
            while len(deaf.heard) < 6:  # noqa: ASYNC110  it has no event for that
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return deaf.heard[-1]  # the first ring was on its way before

    assert not asyncio.run(story())
