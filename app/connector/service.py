"""The connector of one process: its doors to Mailjet, its jobs, and the routes of all modules."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import APIRouter

from app.connector import calls, campaigns, contacts, drafts, lists, messages, sms
from app.connector.doors import Doors
from app.connector.jobs import Subscriptions
from app.connector.sending import Sending
from app.connector.watches import Watch, keep_watching
from app.db import Database
from app.dispatch.matching import Matcher
from app.http import ApiKeys
from app.mailjet.door import Observe
from app.maintenance.leader import Leadership
from app.settings import Settings


class Connector:
    """`start` and `stop` on the event loop. `owner` must be unique among replicas and their restarts."""

    def __init__(
        self, settings: Settings, database: Database, *, owner: str, observe: Observe, doors: Doors | None = None,
        stored: Callable[[int], None] = lambda events: None,
    ) -> None:  # fmt: skip
        self.doors = doors or Doors(settings.effective_connections, observe=observe)
        self.subscriptions = Subscriptions(self.doors, database, owner)
        matcher = Matcher(settings.sinks)
        self.watches = [
            Watch(name, watch, doors=self.doors, database=database, matcher=matcher, owner=owner, stored=stored)
            for name, watch in settings.watches.items()
        ]
        self._owner = owner
        self._sending = Sending(database, owner)
        self._database = database
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """What runs in the background."""
        self._tasks.append(asyncio.create_task(self.subscriptions.run(self._stop), name="subscriptions"))
        for watch in self.watches:
            leadership = Leadership(self._database, f"watch:{watch.name}", self._owner)
            watching = keep_watching(watch, leadership, self._stop)
            self._tasks.append(asyncio.create_task(watching, name=f"watch {watch.name}"))

    async def stop(self) -> None:
        self._stop.set()
        self.subscriptions.wake()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.doors.aclose()

    def build_router(self, keys: ApiKeys) -> APIRouter:
        router = APIRouter()
        router.include_router(contacts.build_router(self.doors, keys))
        router.include_router(lists.build_router(self.doors, keys, self.subscriptions))
        router.include_router(messages.build_router(self.doors, keys, self._database, self._sending))
        router.include_router(campaigns.build_router(self.doors, keys))
        router.include_router(drafts.build_router(self.doors, keys))
        router.include_router(sms.build_router(self.doors, keys))
        router.include_router(calls.build_router(self.doors, keys))
        return router
