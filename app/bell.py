"""PostgreSQL's LISTEN and NOTIFY between replicas: who stores without delivering, or changes what others go by, rings,
and who delivers looks at once.

It only saves waiting for the next poll. Nothing depends on it: a listener rings for itself now and then, and where that
is not heard (PgBouncer in transaction mode passes no notifications on, a connection may be away) polls are a second
apart; where it is, a replica at rest asks its database seldom.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any

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
ANSWER_SECONDS = 5.0  # for our own ring to come back
PROOF_SECONDS = 30.0  # between two proofs


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


class Listener:
    """The hearing side: calls `heard` for every ring; one for each process, on the event loop.

    `is_sure` while a ring of its own came back when it last tried: then none of another is missed.
    """

    def __init__(self, database: Database, heard: Callable[[], None]) -> None:
        self.is_sure = False
        self._database = database
        self._heard = heard
        self._own = f"jethook_proof_{secrets.token_hex(8)}"
        self._came_back = False

    async def run(self) -> None:
        """Until cancelled; a connection that is lost is made again."""
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                url = self._database.driver_url
                async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    await connection.execute(f"LISTEN {self._own}")
                    log.debug(LISTENING)
                    wait = FIRST_WAIT_SECONDS
                    self._heard()  # what was rung meanwhile
                    await self._listen(connection)
            except psycopg.Error as error:
                log.debug(LOST, error=type(error).__name__, retry_in_seconds=wait)
            finally:
                self.is_sure = False
            await asyncio.sleep(wait)
            wait = min(wait * 2, MOST_WAIT_SECONDS)

    async def _listen(self, connection: psycopg.AsyncConnection[Any]) -> None:
        while True:
            self._came_back = False
            await connection.execute(f"NOTIFY {self._own}")
            await self._hear(connection, ANSWER_SECONDS)
            self.is_sure = self._came_back
            await self._hear(connection, PROOF_SECONDS if self.is_sure else MOST_WAIT_SECONDS)

    async def _hear(self, connection: psycopg.AsyncConnection[Any], seconds: float) -> None:
        async for ring in connection.notifies(timeout=seconds):
            if ring.channel == CHANNEL:
                self._heard()
            else:
                self.is_sure = self._came_back = True
