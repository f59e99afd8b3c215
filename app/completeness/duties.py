"""Completeness in one process: the comparison and the backfills, with their routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import APIRouter

from app.completeness import backfill_routes, routes
from app.completeness.backfill import Backfills
from app.completeness.service import CompletenessKeeper, OnRatio
from app.connector.doors import Doors
from app.db import Database
from app.http import ApiKeys
from app.maintenance.leader import Leadership
from app.settings import Settings
from app.suppressions.keeping import Keeper

STOP_SECONDS = 2.0


class CompletenessDuties:
    """`start` and `stop` on the event loop. `owner` must be unique among replicas and their restarts."""

    def __init__(
        self, settings: Settings, doors: Doors, database: Database, leadership: Leadership, owner: str, *,
        keeper: Keeper, stored: Callable[[int], None], on_ratio: OnRatio,
    ) -> None:  # fmt: skip
        """`leadership` decides who compares."""
        self.backfills = Backfills(settings, doors, database, owner, keeper=keeper, stored=stored)
        self._comparison = CompletenessKeeper(settings, database, doors, leadership.may_lead, on_ratio=on_ratio)
        self._database = database
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks.append(asyncio.create_task(self._comparison.run(self._stop), name="completeness"))
        self._tasks.append(asyncio.create_task(self.backfills.run(self._stop), name="backfills"))

    async def stop(self) -> None:
        """A call that is under way is not waited for long: what it asks for is asked again."""
        self._stop.set()
        self.backfills.wake()
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def build_router(self, keys: ApiKeys) -> APIRouter:
        router = APIRouter()
        router.include_router(routes.build_router(self._database, keys))
        router.include_router(backfill_routes.build_router(self.backfills, self._database, keys))
        return router
