"""A database that is gone, full or busy: 503 with `Retry-After`, never 200 and never 4xx, and no restart needed."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from sqlalchemy.engine import Connection

from app.db import Database
from app.main import create_app
from app.settings import load_settings
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from tests.ingest.conftest import ENVIRONMENT, PASSWORD, Receiver, open_receiver
from tests.postgres import PostgresServer, running_postgres

_numbers = itertools.count(1)


def fresh() -> str:
    return json.dumps({"event": "open", "time": 1777802400, "MessageID": next(_numbers), "email": "a@example.com"})


def assert_refused(response: httpx2.Response) -> None:
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "unavailable"


def wait_for_200(receiver: Receiver, body: str) -> httpx2.Response:
    give_up = time.monotonic() + 20
    while True:
        response = receiver.post(body)
        if response.status_code == 200:
            return response
        assert_refused(response)
        assert time.monotonic() < give_up


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that may be stopped."""
    with running_postgres() as server:
        yield server


def test_a_postgresql_that_goes_and_comes_back_costs_no_event_and_no_restart(own_postgres: PostgresServer) -> None:
    with psycopg.connect(f"{own_postgres.url}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE gone")
    sink = SampleSink()
    with LocalServer(sink) as server:
        environment = {"JETHOOK_ROLE": "all", "JETHOOK_SINKS__CRM__URL": server.url}
        with open_receiver(f"{own_postgres.url}/gone", environment) as receiver:
            assert receiver.post(fresh()).status_code == 200
            sink.wait_for(1)

            own_postgres.stop()
            lost = fresh()
            for _ in range(3):
                assert_refused(receiver.post(lost))
            assert receiver.client.get("/readyz").status_code == 503
            assert receiver.client.get("/livez").status_code == 200
            assert_refused(receiver.client.get("/v1/events", headers={"authorization": "Bearer ingest-key"}))
            assert_refused(receiver.post("not even JSON"))
            assert receiver.post(lost, auth=None).status_code == 401
            assert receiver.post("[]").status_code == 200  # nothing to store

            own_postgres.start()
            assert wait_for_200(receiver, lost).json()["stored"] == 1
            sink.wait_for_ids(2)
            assert set(sink.counts.values()) == {1}
            assert receiver.client.get("/readyz").status_code == 200


def test_a_postgresql_that_crashes_while_attempts_are_recorded_does_not_repeat_them(
    own_postgres: PostgresServer,
) -> None:
    with psycopg.connect(f"{own_postgres.url}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE gone")
    gate = threading.Event()
    sink = SampleSink(on_request=lambda _: gate.wait(20))  # holds the answer, in the sink's own thread
    with LocalServer(sink) as server:
        environment = {"JETHOOK_ROLE": "all", "JETHOOK_SINKS__CRM__URL": server.url}
        with open_receiver(f"{own_postgres.url}/gone", environment) as receiver:
            receiver.post(fresh())
            sink.wait_for(1)
            own_postgres.stop()
            gate.set()  # the answer comes while there is nowhere to write it
            own_postgres.start()

            def settled() -> list[Any]:
                return receiver.get("/v1/deliveries?state=delivered").json()["data"]

            give_up = time.monotonic() + 20
            while not settled():
                assert time.monotonic() < give_up
                time.sleep(0.05)
            assert settled()[0]["attempt_count"] == 1
    assert sink.total == 1


@contextmanager
def impatient(url: str) -> Iterator[Receiver]:
    """A service on SQLite that waits 50 ms for the lock instead of 10 s."""
    with open_receiver(url) as receiver:
        receiver.service.database.write(lambda c: c.exec_driver_sql("PRAGMA busy_timeout=50"))
        yield receiver


def test_a_sqlite_file_that_another_process_locks_is_taken_again_once_it_is_free(sqlite_url: str) -> None:
    with impatient(sqlite_url) as receiver:
        assert receiver.post(fresh()).status_code == 200
        other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            lost = fresh()
            assert_refused(receiver.post(lost))
            assert receiver.client.get("/readyz").status_code == 503
            other.execute("ROLLBACK")
            assert receiver.counts(lost) == (1, 1, 0, 0)
            assert receiver.client.get("/readyz").status_code == 200
        finally:
            other.close()


def test_a_full_disk_is_a_503_and_later_posts_are_stored(sqlite_url: str) -> None:
    with open_receiver(sqlite_url) as receiver:
        database = receiver.service.database
        pages = database.write(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one())
        database.write(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages + 5}"))
        lost = json.dumps({"event": "open", "time": 5, "x": "x" * 200_000})
        receiver.news()

        for _ in range(2):
            assert_refused(receiver.post(lost))
        assert receiver.news().nothing

        database.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count=1073741823"))
        assert receiver.counts(lost) == (1, 1, 0, 0)


class Gate:
    """A lane's work that holds the transaction until it is opened."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def execute(self, connection: Connection, items: Sequence[Any]) -> list[None]:
        self.entered.set()
        assert self.opened.wait(20)
        return [None] * len(items)

    def committed(self, items: Sequence[Any], results: Sequence[Any]) -> None: ...

    def failed(self, items: Sequence[Any]) -> None: ...


def test_when_too_much_waits_for_the_database_posts_are_refused_until_it_is_committed(sqlite_url: str) -> None:
    asyncio.run(overload(sqlite_url))


async def overload(url: str) -> None:
    app = create_app(load_settings(ENVIRONMENT | {"JETHOOK_DATABASE_URL": url}, env_file=None))
    service, gate = app.state.service, Gate()
    client = httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://test", auth=("jethook", PASSWORD), timeout=30
    )

    async def post(body: str) -> httpx2.Response:
        return await client.post("/webhooks/orders", content=body)

    try:
        service.commits.lane(gate).submit(None)
        await asyncio.to_thread(gate.entered.wait, 20)
        # One post with more events than may wait; its memory is small, since they are all the same.
        first = asyncio.create_task(post("[" + ",".join(['{"event":"open","time":5}'] * 50_001) + "]"))
        while service.ingest.waiting_events <= 50_000:  # noqa: ASYNC110  it waits for no event of ours
            await asyncio.sleep(0)

        for _ in range(3):
            assert_refused(await post(fresh()))
        assert not first.done()
        gate.opened.set()

        assert (await first).json() == {"received": 50_001, "stored": 1, "duplicates": 50_000, "quarantined": 0}
        assert (await post(fresh())).json()["stored"] == 1
    finally:
        gate.opened.set()
        await client.aclose()
        await service.stop()


def test_a_service_that_stops_refuses_new_posts(sqlite_url: str) -> None:
    with open_receiver(sqlite_url) as receiver:
        receiver.news()
        receiver.service.stopping = True

        assert_refused(receiver.post(fresh()))
        assert receiver.post(fresh(), auth=None).status_code == 401
        assert receiver.client.get("/readyz").status_code == 503
        assert receiver.news().nothing


def test_a_service_starts_on_what_another_left_and_knows_its_events(sqlite_url: str, tmp_path: Path) -> None:
    body = fresh()
    for expected in ((1, 1, 0, 0), (1, 0, 1, 0)):
        with open_receiver(sqlite_url) as receiver:
            assert receiver.counts(body) == expected


def test_a_database_is_closed_only_after_its_last_read(database: Database) -> None:
    """Also one whose caller was cancelled: a connection that comes back to a pool that is gone stays open for ever."""
    asyncio.run(close_while_reading(database))


async def close_while_reading(database: Database) -> None:
    entered, opened = threading.Event(), threading.Event()

    def read(connection: Connection) -> None:
        entered.set()
        assert opened.wait(20)

    reading = asyncio.create_task(database.run_read(read))
    await asyncio.to_thread(entered.wait, 20)
    reading.cancel()
    closing = asyncio.create_task(asyncio.to_thread(database.close))
    done, _ = await asyncio.wait([closing], timeout=0.2)
    opened.set()
    await closing
    assert not done
