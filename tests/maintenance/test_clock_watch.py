"""Nothing is deleted by a clock that is ahead of the database's, or of the time that passed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import pytest
from structlog.testing import capture_logs

from app.clock import uptime_seconds, utc_now
from app.db import Database
from app.doctor import database as doctor
from app.doctor.findings import Level
from app.maintenance.clock_watch import MAX_AHEAD_SECONDS, ClockWatch
from app.maintenance.retention import HELD, RESUMED, Report, Retention, Rules
from tests.maintenance.support import NOW, at_once, retain, store, stored_ids


class Clocks:
    """A wall clock that can be set, and the time that passes all the same."""

    def __init__(self, wall: datetime) -> None:
        self.wall = wall
        self.uptime = 50_000.0

    def pass_by(self, seconds: float) -> None:
        self.uptime += seconds
        self.wall += timedelta(seconds=seconds)


def test_time_that_passes_is_no_jump_and_a_clock_that_is_set_is_one(database: Database) -> None:
    clocks = Clocks(utc_now())
    watch = ClockWatch(database, now=lambda: clocks.wall, uptime=lambda: clocks.uptime)
    if database.is_sqlite:  # a server's own clock goes by without us
        clocks.pass_by(86_400 * 400)
    assert abs(asyncio.run(watch.ahead_seconds())) < MAX_AHEAD_SECONDS / 2

    clocks.wall += timedelta(days=100)
    assert asyncio.run(watch.ahead_seconds()) == pytest.approx(8_640_000, abs=60)

    clocks.wall -= timedelta(days=101)
    assert asyncio.run(watch.ahead_seconds()) == pytest.approx(-86_400, abs=60)


def test_uptime_only_grows() -> None:
    first, second = uptime_seconds(), uptime_seconds()
    assert 0 < first <= second


@pytest.mark.parametrize(("seconds", "stay"), [(MAX_AHEAD_SECONDS + 1, 3), (MAX_AHEAD_SECONDS, 0), (-86_400, 0)])
def test_a_clock_in_doubt_deletes_nothing(database: Database, seconds: float, stay: int) -> None:
    store(database, 3, days=200)

    found = retain(database, Rules(90, 30), ahead=_ahead(seconds))

    assert len(stored_ids(database)) == stay
    assert found.is_held == bool(stay)
    assert found.oldest is None or found.oldest < NOW
    assert not found.has_deleted or not stay


def test_it_is_told_once_that_nothing_is_deleted_and_once_that_it_goes_on(database: Database) -> None:
    told = [1e6, 2e6, 0.0, 1.0]
    found: list[Report] = []

    async def ahead() -> float:
        return told[len(found)]

    async def may_lead() -> bool:
        return True

    async def scenario() -> None:
        retention = Retention(
            Rules(90), database, now=lambda: NOW, sleep=at_once, ahead=ahead, report=lambda one, at: found.append(one)
        )
        for _ in told:
            await retention._safe_round(lambda: asyncio.sleep(0))

    with capture_logs() as lines:
        asyncio.run(scenario())

    assert [line["event"] for line in lines if line["event"] in (HELD, RESUMED)] == [HELD, RESUMED]
    assert [one.ahead_seconds for one in found] == told


def test_the_doctor_tells_of_a_clock_ahead_of_the_databases(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.is_sqlite:
        pytest.skip("a file has no clock of its own")
    assert [f.level for f in doctor.examine(database) if f.about == "clock"] == [Level.OK]

    monkeypatch.setattr(doctor, "utc_now", lambda: utc_now() + timedelta(hours=1))

    said = [f for f in doctor.examine(database) if f.about == "clock"]
    assert {f.level for f in said} == {Level.FAILURE}
    assert any("deletes nothing" in f.text for f in said)


def _ahead(seconds: float) -> Callable[[], Awaitable[float]]:
    async def ahead() -> float:
        return seconds

    return ahead
