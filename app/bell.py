"""PostgreSQL's LISTEN and NOTIFY between replicas: who stores without delivering rings, and who delivers looks at once.

It only saves waiting for the next poll. Nothing depends on it: where it cannot be had (PgBouncer in transaction mode
passes no notifications on), or while its connection is away, the polls find everything within a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import psycopg
import structlog
from sqlalchemy.engine import Connection

from app.db import Database, run_driver_sql

log = structlog.get_logger(__name__)

CHANNEL = "jethook_due"
LISTENING, LOST = "bell.listening", "bell.lost"
# A commit that notifies waits for others that do. Whoever heard the last ring is still looking for a moment.
QUIET_SECONDS = 0.05
FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 1.0, 60.0


class Bell:
    """The ringing side, on the database's thread; one for each process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_until = 0.0

    def ring(self, connection: Connection) -> None:
        """With the commit of this transaction, who listens looks for what is due. SQLite has one process."""
        if connection.dialect.name == "sqlite" or self._clock() < self._quiet_until:
            return
        run_driver_sql(connection, f"NOTIFY {CHANNEL}", ()).close()
        self._quiet_until = self._clock() + QUIET_SECONDS


async def listen(database: Database, heard: Callable[[], None]) -> None:
    """Call `heard` for every ring, until cancelled; a connection that is lost is made again."""
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(database.driver_url, autocommit=True) as connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                log.debug(LISTENING)
                wait = FIRST_WAIT_SECONDS
                heard()  # what was rung meanwhile
                async for _ in connection.notifies():
                    heard()
        except psycopg.Error as error:
            log.debug(LOST, error=type(error).__name__, retry_in_seconds=wait)
        await asyncio.sleep(wait)
        wait = min(wait * 2, MOST_WAIT_SECONDS)
