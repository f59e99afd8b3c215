"""How many SQL statements a delivery costs: what it comes to when many go at once, and when one goes alone."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event as sa_event

from app.db import Database
from app.delivery import queue
from app.models import Delivery
from app.settings import SinkSettings
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from tests.delivery.stand import Stand, event, states
from tests.delivery.support import run, until
from tests.delivery.test_queue import completion, delivery_of
from tests.factories import event_values, insert


class Statements:
    """Counts what every connection of a SQLite database runs, by its first word."""

    def __init__(self, database: Database) -> None:
        self.words: Counter[str] = Counter()
        for engine in (database.writer, database.reader):
            sa_event.listen(engine, "checkout", self._listen)

    def _listen(self, connection: object, *_: object) -> None:
        connection.set_trace_callback(self._ran)  # type: ignore[attr-defined]

    def _ran(self, sql: str) -> None:
        self.words[sql.split(maxsplit=1)[0].upper()] += 1


@pytest.fixture
def database(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "test.db"
    shutil.copyfile(migrated_sqlite, path)
    opened = Database(f"sqlite:///{path}")
    yield opened
    opened.close()


@pytest.fixture
def sink() -> SampleSink:
    return SampleSink()


def settings(server: LocalServer) -> dict[str, SinkSettings]:
    return {"crm": SinkSettings(url=server.url)}


def test_many_deliveries_share_their_statements(database: Database, sink: SampleSink) -> None:
    """Those of storing them, and those of what came of them while the database was busy with something else."""
    many = 900

    async def scenario(server: LocalServer) -> float:
        async with Stand(database, settings(server)).running() as here:
            statements = Statements(database)
            await here.post(*(event(n) for n in range(many)))
            gate = threading.Event()
            database.submit(lambda: gate.wait(30))
            await until(lambda: sink.total >= many, "all at the sink")
            gate.set()
            await here.commits.drain()
            return sum(statements.words.values()) / many

    with LocalServer(sink) as server:
        assert run(scenario(server)) < 0.2
    assert states(database) == {"delivered"}


def test_a_lone_delivery_that_succeeds_takes_one_statement(database: Database, sink: SampleSink) -> None:
    async def scenario(server: LocalServer) -> Counter[str]:
        async with Stand(database, settings(server)).running() as here:
            statements = Statements(database)
            await here.post(event(1))
            before = Counter(statements.words)
            await until(lambda: states(database) == {"delivered"}, "the delivery")
            return statements.words - before

    with LocalServer(sink) as server:
        words = run(scenario(server))
    # Its state, and the attempt in the same row; reading is the test's own look and the worker's poll.
    assert {word: n for word, n in words.items() if word in ("INSERT", "UPDATE", "DELETE")} == {"UPDATE": 1}


def test_results_of_first_attempts_take_one_statement_for_128_and_nothing_is_read_back(database: Database) -> None:
    events = [event_values() for _ in range(128)]
    insert(database, Delivery, [delivery_of(values, lease_token="me") for values in events])
    statements = Statements(database)

    database.write(lambda c: queue.record_completions(c, [completion(values["id"]) for values in events]))

    assert statements.words == {"BEGIN": 1, "UPDATE": 1, "COMMIT": 1}
    assert states(database) == {"delivered"}
