"""May what is old be deleted by this machine's clock? Only while something else does not tell that it is ahead.

A clock that jumps ahead by a month makes a month of events look too old at once, and what was deleted stays so when the
clock is set right. On PostgreSQL the database tells the time too. SQLite's is our own: there the wall clock must not
have gone further since the start than the time that passed. A clock that is behind only lets things stay longer.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.clock import from_micros, uptime_seconds, utc_now
from app.db import Database

MAX_AHEAD_SECONDS = 300.0
ADVICE = "set the clock right (NTP) and restart; until then nothing is deleted for its age"


class ClockWatch:
    """One for the process, from its start on; `uptime` counts seconds that no change of the wall clock touches."""

    def __init__(
        self, database: Database, *, now: Callable[[], datetime] = utc_now,
        uptime: Callable[[], float] = uptime_seconds,
    ) -> None:  # fmt: skip
        self._database = database
        self._now = now
        self._uptime = uptime
        self._started = (now(), uptime())

    async def ahead_seconds(self) -> float:
        """Of this clock before the other one; negative where it is behind. Raises what the database raises."""
        if self._database.is_sqlite:
            wall, uptime = self._started
            return (self._now() - wall).total_seconds() - (self._uptime() - uptime)
        return (self._now() - await self._database.run_read(database_now)).total_seconds()


def database_now(connection: Connection) -> datetime:
    """PostgreSQL's clock: the moment of asking, not that of the transaction's start."""
    micros = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"
    return from_micros(connection.execute(sa.text(micros)).scalar_one())
