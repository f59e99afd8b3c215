"""One look at the database every few seconds, for all duties that may find something left for them.

A job is begun by a request to any replica, or left behind by one that died; events are stored by all of them. A duty
that asked for itself would find nothing nearly always, and a handful of them were eight statements a second of a
service at rest. Here each says in SQL what it would look for, one statement asks for all of it, and who has something
is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

from app.clock import wait_for_event
from app.db import Database

log = structlog.get_logger(__name__)

LOOK_SECONDS = 12.0  # how late a duty hears of what another process left; its own it is told of at once
SOON_SECONDS = 1.0  # between two looks, however often others ring
FAILED = "lookout.failed"


class Lookout:
    """One for the process, on the event loop; who sets the `stop` of `run` calls `look_soon`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wanted: dict[str, sa.Select[Any]] = {}
        self._found: dict[str, Callable[[], None]] = {}
        self._woken = asyncio.Event()

    def add(self, duty: str, wanted: sa.Select[Any], found: Callable[[], None]) -> None:
        """Call `found` at each look at which `wanted` has a row; it is to be answered by an index."""
        self._wanted[duty] = wanted
        self._found[duty] = found

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. A database that is away is waited for."""
        while self._wanted and not stop.is_set():
            self._woken.clear()
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001  the database comes back; the lookout must be there then
                log.warning(FAILED, error=type(error).__name__)
            await wait_for_event(stop, SOON_SECONDS)
            if not stop.is_set():
                await wait_for_event(self._woken, LOOK_SECONDS - SOON_SECONDS)

    def look_soon(self) -> None:
        """Another replica rang; or it is time to stop."""
        self._woken.set()

    async def look(self) -> None:
        for duty in await self._database.run_glance(self._ask):
            self._found[duty]()

    def _ask(self, connection: Connection) -> list[str]:
        asked = sa.select(*(wanted.exists().label(duty) for duty, wanted in self._wanted.items()))
        return [duty for duty, is_there in connection.execute(asked).one()._mapping.items() if is_there]
