"""The second reader of an answer."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta

import orjson

from app.models import Event
from app.rollups.store import read_progress
from app.stats.asking import StatsQuery, question_of
from app.stats.beside import MOST, Beside
from app.stats.memory import Memory
from app.stats.telling import tell
from tests.factories import event_values, insert
from tests.stats.model import START


def store(database, count: int) -> None:
    insert(database, Event, [
        event_values(email=f"{n % 7}@example.com", message_id=str(n % 11), occurred_at=START + timedelta(minutes=n),
                     webhook=("orders", "news")[n % 2], automated=False)
        for n in range(count)
    ])  # fmt: skip


def test_what_it_finds_counts_only_where_as_much_is_counted_as_in_the_answers_own_transaction(database, fold):
    store(database, 10)
    fold(5)
    beside = Beside(database)
    with database.reading() as connection:
        progress = read_progress(connection)

    alike = beside.read(progress, lambda connection: "found")
    assert alike is not None
    assert alike.result() == "found"
    fold(5)
    differing = beside.read(progress, lambda connection: "found")
    assert differing is not None
    assert differing.result() is None


def test_few_answers_have_one_at_once_and_a_failure_gives_it_back(database):
    beside, go_on = Beside(database), threading.Event()
    with database.reading() as connection:
        progress = read_progress(connection)

    busy = [beside.read(progress, lambda connection: go_on.wait(10)) for _ in range(MOST)]
    refused = beside.read(progress, lambda connection: True)
    go_on.set()
    done = [reading.result() for reading in busy if reading is not None]
    failing = beside.read(progress, lambda connection: 1 / 0)
    assert failing is not None
    assert isinstance(failing.exception(), ZeroDivisionError)

    assert (refused, done) == (None, [True] * MOST)
    again = [beside.read(progress, lambda connection: True) for _ in range(MOST)]
    assert [reading is not None and reading.result() for reading in again] == [True] * MOST


def test_the_answer_is_the_same_with_it_without_it_and_where_it_came_too_late(database, fold):
    store(database, 400)
    fold(300)
    question = question_of(StatsQuery(interval="hour", group_by=["webhook"]))

    class Late(Beside):
        def read(self, progress, work):
            return super().read(replace(progress, changes=progress.changes + 1), work)

    told = []
    for beside in (None, Beside(database), Late(database)):
        with database.reading() as connection:
            told.append(orjson.loads(tell(connection, question, Memory(), beside).data))

    assert told[0] == told[1] == told[2]
    assert sum(row["counts"]["open"] for row in told[0]) == 400
