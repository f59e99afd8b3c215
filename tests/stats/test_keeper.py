"""The duty that counts, and one process with all of it, on both databases."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import sqlalchemy as sa

from app.models import Event, StatCount
from app.query.horizon import Horizon
from app.rollups.store import read_progress
from app.stats.keeper import StatsKeeper
from tests.factories import event_values, insert
from tests.stats.model import START


def keeper(
    database,
    *,
    leads: bool = True,
    now=START,
    days: int = 10,
    lags: list[float] | None = None,
    ahead_seconds: float = 0,
) -> StatsKeeper:
    async def may_lead() -> bool:
        return leads

    told = lags if lags is not None else []

    async def ahead() -> float:
        return ahead_seconds

    return StatsKeeper(
        database, Horizon(), may_lead, retention_days=days, on_lag=told.append, now=lambda: now, ahead=ahead
    )


def counted(database) -> int:
    with database.reading() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(StatCount.__table__)).scalar_one())


def test_the_leader_counts_and_tells_how_long_events_have_waited(database):
    insert(database, Event, [event_values(occurred_at=START, received_at=START - timedelta(seconds=7))])
    lags: list[float] = []
    leader = keeper(database, lags=lags)

    asyncio.run(leader.step())
    asyncio.run(leader.step())

    assert counted(database) == 8
    assert lags == [7.0, 0.0]


def test_who_does_not_lead_leaves_it(database):
    insert(database, Event, [event_values(occurred_at=START)])

    asyncio.run(keeper(database, leads=False).step())

    assert counted(database) == 0
    with database.reading() as connection:
        assert read_progress(connection).seq == 0


def test_days_beyond_the_retention_are_dropped(database):
    insert(database, Event, [event_values(occurred_at=START), event_values(occurred_at=START + timedelta(days=5))])
    asyncio.run(keeper(database).step())
    assert counted(database) == 16

    later = START + timedelta(days=14, hours=6)
    asyncio.run(keeper(database, now=later, ahead_seconds=86_400).step())
    assert counted(database) == 16  # the clock is in doubt

    asyncio.run(keeper(database, now=later).step())

    assert counted(database) == 8


def test_it_stops_when_told_and_survives_a_failure(database):
    async def run() -> None:
        async def may_lead() -> bool:
            stop.set()
            raise OSError

        stop = asyncio.Event()
        await StatsKeeper(database, Horizon(), may_lead, retention_days=1).run(stop)

    asyncio.run(run())
