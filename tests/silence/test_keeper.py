"""Silence noticed, told once and over; on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog
from sqlalchemy.engine import Connection

from app.db import Database
from app.models import Event
from app.operator_events import WEBHOOK_HEARD, WEBHOOK_SILENT, Change
from app.rollups.fold import fold_slice
from app.rollups.store import KnownCells
from app.settings import WebhookSettings
from app.silence import queries
from app.silence.keeper import SilenceKeeper
from app.silence.rhythm import HOUR
from tests.factories import NOON, event_values, insert, newest_seq

DAY = timedelta(days=1)
START = NOON.replace(minute=0, second=0, microsecond=0)


class Herald:
    def __init__(self) -> None:
        self.told: list[Change] = []

    def tell(self, change: Change) -> None:
        raise AssertionError("what a leader finds is stored")

    def store(self, connection: Connection, change: Change) -> None:
        self.told.append(change)

    def store_all(self, connection: Connection, changes: Any) -> None: ...


class Story:
    def __init__(self, database: Database, **settings: Any) -> None:
        self.database = database
        self.herald = Herald()
        self.now = START
        self.webhooks = {"orders": WebhookSettings(events=("sent", "open"), **settings)}
        self.shown: dict[tuple[str, str], bool] = {}
        self.stop = asyncio.Event()

    def keeper(self, leads: bool = True) -> SilenceKeeper:
        async def may_lead() -> bool:
            return leads

        def show(webhook: str, event_type: str, silent: bool) -> None:
            self.shown[webhook, event_type] = silent
            if len(self.shown) == 2:
                self.stop.set()

        return SilenceKeeper(
            self.webhooks, self.database, may_lead, herald=self.herald, on_silence=show, now=lambda: self.now
        )

    def come(self, *moments: datetime, event_type: str = "sent", **given: Any) -> None:
        rows = [event_values(occurred_at=moment, type=event_type, **given) for moment in moments]
        insert(self.database, Event, rows)
        known, newest = KnownCells(), newest_seq(self.database)
        while self.database.write(lambda c: fold_slice(c, newest, known, most=1000)):
            known.confirm()

    def look(self, keeper: SilenceKeeper, at: datetime) -> list[tuple[str, Any]]:
        """What this look told."""
        self.now, before = at, len(self.herald.told)
        asyncio.run(keeper.look())
        return [(change.type, change.details["types"]) for change in self.herald.told[before:]]


@pytest.fixture
def story(database: Database) -> Story:
    return Story(database)


def every_hour(days: float) -> Iterator[datetime]:
    hours = int(days * 24)
    return (START - n * HOUR for n in range(hours, -1, -1))


def test_silence_is_told_once_and_its_end_too_over_restarts(story: Story) -> None:
    story.come(*every_hour(10))

    assert story.look(story.keeper(), START + HOUR) == []
    assert story.look(story.keeper(), START + 20 * HOUR) == [(WEBHOOK_SILENT, "sent")]
    assert story.look(story.keeper(), START + 21 * HOUR) == []
    assert story.herald.told[0].since == START

    story.come(START + 22 * HOUR)
    assert story.look(story.keeper(), START + 23 * HOUR) == [(WEBHOOK_HEARD, "sent")]
    assert story.look(story.keeper(), START + 23 * HOUR) == []


def test_what_is_fetched_late_or_comes_from_a_wrong_clock_or_a_test_is_no_sign_of_life(story: Story) -> None:
    story.come(*every_hour(10))
    story.come(START - HOUR / 2, received_at=START + 19 * HOUR)
    story.come(START + 400 * DAY)
    story.come(START + 19 * HOUR, test=True)

    assert story.look(story.keeper(), START + 20 * HOUR) == [(WEBHOOK_SILENT, "sent")]


def test_a_limit_by_hand_goes_before_the_rhythm_type_by_type(database: Database) -> None:
    story = Story(database, silent_after_seconds={"sent": 0, "open": 900})
    story.come(*every_hour(10))
    story.come(START, event_type="open")

    assert story.look(story.keeper(), START + timedelta(minutes=14)) == []
    assert story.look(story.keeper(), START + timedelta(minutes=16)) == [(WEBHOOK_SILENT, "open")]
    assert story.look(story.keeper(), START + 40 * HOUR) == []


def test_what_is_watched_no_longer_is_forgotten(story: Story) -> None:
    story.come(*every_hour(10))
    story.look(story.keeper(), START + 20 * HOUR)
    story.webhooks = {"orders": WebhookSettings(events=("open",))}

    assert story.look(story.keeper(), START + 20 * HOUR) == []

    with story.database.reading() as connection:
        assert set(queries.list_expected(connection)) == {("orders", "open")}


@pytest.mark.parametrize("leads", [True, False])
def test_every_replica_shows_what_one_of_them_found(story: Story, leads: bool) -> None:
    story.come(*every_hour(10))
    story.look(story.keeper(), START + 20 * HOUR)

    with structlog.testing.capture_logs():
        asyncio.run(story.keeper(leads).run(story.stop))

    assert story.shown == {("orders", "sent"): True, ("orders", "open"): False}
