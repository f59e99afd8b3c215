"""Operator events as they are stored, on both databases."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

from app.alerts import service
from app.alerts.service import Alerts, is_wanted
from app.db import Database
from app.models import Delivery, Event
from app.operator_events import (
    DELIVERY_DEAD,
    MEANINGS,
    REGISTRATION_FAILED,
    SINK_OPENED,
    SINK_PAUSED,
    SINK_RECOVERED,
    Change,
)
from tests.delivery.support import run, sink, until
from tests.factories import NOON, make_delivery

SINKS = {
    "crm": sink(events=["jethook.*"]),
    "pager": sink(events=["bounce", "jethook.*"], webhooks=["orders"]),
    "picky": sink(events=["jethook.delivery.dead"]),
    "plain": sink(),
    "bounces": sink(events=["bounce"]),
}
EVENTS, DELIVERIES = Event.__table__, Delivery.__table__
OPENED = Change(
    SINK_OPENED, NOON + timedelta(microseconds=5), sink="crm", error="http_5xx", since=NOON, details={"status": 503}
)
on_one_database = pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)  # where it makes no difference


def make(database: Any, **options: Any) -> Alerts:
    return Alerts(SINKS, database, instance="mail", **{"replica": "here-1", "now": lambda: NOON, **options})


def store(database: Database, *changes: Change, **options: Any) -> None:
    alerts = make(database, **options)
    database.write(lambda c: [alerts.store(c, change) for change in changes])


def events(database: Database) -> list[dict[str, Any]]:
    with database.reading() as connection:
        return [dict(row) for row in connection.execute(sa.select(EVENTS).order_by(EVENTS.c.seq)).mappings()]


def raws(database: Database) -> list[dict[str, Any]]:
    return [json.loads(row["raw"]) for row in events(database)]


def owed(database: Database, event_id: str) -> list[str]:
    with database.reading() as connection:
        found = connection.execute(sa.select(DELIVERIES.c.sink).where(DELIVERIES.c.event_id == event_id))
        return sorted(found.scalars())


def test_it_is_an_event_like_others_in_the_form_of_mailjets(database: Database) -> None:
    store(database, OPENED)

    (row,) = events(database)
    assert (row["webhook"], row["connection"], row["type"], row["outcome"]) == (
        "jethook", "jethook", "jethook.sink.opened", "unknown",
    )  # fmt: skip
    assert (row["occurred_at"], row["received_at"], row["test"], row["reason"]) == (NOON, NOON, False, "http_5xx")
    assert re.fullmatch(r"019ded[0-9a-f]{2}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", row["id"])
    assert raws(database) == [
        {
            "event": "jethook.sink.opened", "time": 1777809600, "at": "2026-05-03T12:00:00.000005Z",
            "instance": "mail", "replica": "here-1", "sink": "crm", "error": "http_5xx",
            "since": "2026-05-03T12:00:00Z", "status": 503,
        }
    ]  # fmt: skip


def test_it_is_owed_to_those_who_ask_for_it_and_never_to_the_sink_it_is_about(database: Database) -> None:
    dead = Change(DELIVERY_DEAD, NOON, sink="bounces", count=1)
    store(database, OPENED, dead, Change(DELIVERY_DEAD, NOON, sink="pager", count=1))

    assert [owed(database, row["id"]) for row in events(database)] == [
        ["pager"], ["crm", "pager", "picky"], ["crm", "picky"],
    ]  # fmt: skip


def test_the_same_change_told_twice_is_one_event_and_another_replicas_is_another(database: Database) -> None:
    store(database, OPENED, OPENED)
    store(database, OPENED, now=lambda: NOON + timedelta(seconds=9))
    assert len(events(database)) == 1

    store(database, OPENED, replica=None)
    assert len(events(database)) == 2


def test_it_is_stored_with_its_cause_or_not_at_all(database: Database) -> None:
    alerts = make(database)

    def work(connection: Connection) -> None:
        alerts.store(connection, OPENED)
        raise RuntimeError("the cause failed")

    with pytest.raises(RuntimeError):
        database.write(work)
    assert events(database) == []


def test_a_text_that_no_database_takes_does_not_undo_what_it_tells_of(database: Database) -> None:
    store(database, Change(SINK_PAUSED, NOON, sink="bounces", error="a\0b\ud800"))
    with structlog.testing.capture_logs() as lines:
        store(database, Change(SINK_PAUSED, NOON, sink="bounces", details={"odd": 2**80}))

    assert [raw["error"] for raw in raws(database)] == ["a\ufffdb\ufffd"]
    assert [(line["event"], line["type"]) for line in lines] == [(service.DROPPED, SINK_PAUSED)]


@on_one_database
def test_every_type_can_be_stored_and_asked_for(database: Database) -> None:
    store(database, *(Change(name, NOON, webhook="orders", connection="shop") for name in MEANINGS))

    # All of the kind that a sink asks for, and none of the other: nobody here wants to know of suppressions.
    assert [row["type"] for row in events(database)] == [name for name in MEANINGS if name.startswith("jethook.")]
    assert {row["connection"] for row in events(database)} == {"shop"}
    assert all(owed(database, row["id"])[:2] == ["crm", "pager"] for row in events(database))


@pytest.mark.parametrize(
    ("asks", "expected"),
    [([], False), (["bounce"], False), (["jethook.*"], True), (["bounce", "jethook.sink.opened"], True)],
)
def test_without_anybody_who_asks_there_is_no_herald(asks: list[str], expected: bool) -> None:
    assert is_wanted({"plain": sink(), "one": sink(events=asks)}) is expected


# --- what is told from the event loop --------------------------------------------------------------------------------


class Away:
    """A database that is away for so many writes, or refuses some for good."""

    def __init__(self, database: Database, fail: Callable[[], Exception | None]) -> None:
        self._database = database
        self._fail = fail

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def run_write(self, work: Callable[[Connection], Any]) -> Any:
        error = self._fail()
        if error is not None:
            raise error
        return await self._database.run_write(work)


def dead(first: str) -> Change:
    return Change(DELIVERY_DEAD, NOON, sink="bounces", count=1, details={"first_event_id": first})


def test_what_is_told_is_stored_with_the_backlog_and_what_is_held_at_the_stop(database: Database) -> None:
    for _ in range(3):
        make_delivery(database, sink="bounces")
    before = len(events(database))

    async def scenario() -> None:
        alerts = make(database)
        await alerts.start()
        for number in range(500):
            alerts.tell(dead(f"e{number}"))
        await until(lambda: len(events(database)) == before + 1, "the first")
        await alerts.stop()

    run(scenario())
    found = raws(database)[before:]
    assert [(raw["count"], raw["first_event_id"], raw["backlog"]) for raw in found] == [(1, "e0", 3), (499, "e1", 3)]


@on_one_database
def test_whoever_delivers_hears_of_what_was_stored_and_of_nothing_else(database: Database) -> None:
    errors = iter([sqlite3.OperationalError("gone"), None, ValueError("a bug")])
    heard: list[int] = []

    async def scenario() -> None:
        alerts = make(Away(database, lambda: next(errors, None)), stored=lambda: heard.append(len(events(database))))
        await alerts.start()
        alerts.tell(OPENED)
        await until(lambda: heard and not alerts._waiting, "the first")  # it is heard of before it is crossed out
        alerts.tell(Change(SINK_RECOVERED, NOON, sink="crm", since=NOON))
        await asyncio.sleep(0)
        await alerts.stop()

    run(scenario())
    assert heard == [1]


@on_one_database
def test_whoever_delivers_hears_of_what_came_with_another_change_once_that_is_committed(database: Database) -> None:
    heard: list[int] = []

    async def scenario() -> None:
        alerts = make(database, stored=lambda: heard.append(len(events(database))))
        await alerts.start()

        def undone(connection: Connection) -> None:
            alerts.store(connection, Change(SINK_RECOVERED, NOON, sink="crm", since=NOON))
            raise ValueError("the other change failed")

        with pytest.raises(ValueError, match="failed"):
            await database.run_write(undone)
        await database.run_write(lambda c: alerts.store(c, OPENED))
        await until(lambda: heard, "what was stored")
        await database.run_write(lambda c: alerts.store(c, OPENED))  # is there already
        await alerts.stop()

    run(scenario())
    assert heard == [1]


def test_while_the_database_is_away_it_is_tried_again(database: Database) -> None:
    errors = iter([sqlite3.OperationalError("gone")] * 3)

    async def scenario() -> None:
        alerts = make(Away(database, lambda: next(errors, None)))
        await alerts.start()
        alerts.tell(OPENED)
        alerts.tell(Change(SINK_RECOVERED, NOON, sink="crm", since=NOON))
        await until(lambda: len(events(database)) == 2, "both")
        await alerts.stop()

    run(scenario())
    assert [row["type"] for row in events(database)] == [SINK_OPENED, SINK_RECOVERED]


@on_one_database
def test_what_the_database_refuses_for_good_does_not_hold_up_the_rest(database: Database) -> None:
    errors = iter([ValueError("a bug")])

    async def scenario() -> None:
        alerts = make(Away(database, lambda: next(errors, None)))
        await alerts.start()
        alerts.tell(OPENED)
        alerts.tell(dead("e"))
        await until(lambda: events(database), "the second")
        await alerts.stop()

    with structlog.testing.capture_logs() as lines:
        run(scenario())
    assert [row["type"] for row in events(database)] == [DELIVERY_DEAD]
    assert [(line["event"], line["type"]) for line in lines] == [(service.DROPPED, SINK_OPENED)]


@on_one_database
def test_so_many_may_wait_and_no_more_and_the_stop_does_not_wait_for_a_database(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MOST_WAITING", 3)

    async def scenario() -> None:
        alerts = make(Away(database, lambda: sqlite3.OperationalError("gone")))
        await alerts.start()
        for number in range(5):
            alerts.tell(Change(REGISTRATION_FAILED, NOON, webhook=f"w{number}"))
        await asyncio.sleep(0)
        await alerts.stop(0.2)

    with structlog.testing.capture_logs() as lines:
        run(scenario())
    assert events(database) == []
    dropped = [line for line in lines if line["event"] == service.DROPPED]
    assert len(dropped) == 3
    assert dropped[-1]["events"] == 3
