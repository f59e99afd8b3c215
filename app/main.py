"""create_app(settings): the one place where the parts meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI

from app import __version__
from app.credentials import callback_passwords, load_secret_key, made_api_key
from app.db import Database
from app.delivery.worker import Relay
from app.dispatch.matching import Matcher
from app.dispatch.service import Handover, NoWorker
from app.group_commit import GroupCommit
from app.http import ApiKeys, install_problem_handlers
from app.ingest.auth import CallbackAuth
from app.ingest.routes import Receiver
from app.ingest.service import Ingest
from app.metrics import Metrics
from app.migrate import migrate
from app.query import routes as query_routes
from app.settings import Settings

log = structlog.get_logger(__name__)


class Service:
    """Everything one process runs, made from the settings; `start` and `stop` on the event loop.

    Opens and migrates the database. Raises DatabaseFault when that cannot be done.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database_url.get_secret_value())
        migrate(self.database)
        secret_key = load_secret_key(settings, self.database)
        self.passwords = callback_passwords(settings, secret_key)
        self.made_api_key = made_api_key(settings, secret_key)
        self.stopping = False
        self.metrics = Metrics(webhooks=settings.effective_webhooks, sinks=settings.sinks)
        self.commits = GroupCommit(self.database)
        self.relay: Relay | None = None
        if settings.role != "receive":
            self.relay = Relay(
                settings.sinks, database=self.database, commits=self.commits, metrics=self.metrics
            )
        worker: Handover = self.relay or NoWorker()
        ingest = Ingest(
            settings.effective_webhooks, matcher=Matcher(settings.sinks), commits=self.commits, worker=worker,
            observe=self.metrics.commit_items.observe,
        )  # fmt: skip
        self.receiver = Receiver(
            ingest, CallbackAuth(settings.instance, self.passwords), self.metrics,
            max_body_bytes=settings.max_body_bytes, stopping=lambda: self.stopping,
        )  # fmt: skip

    @property
    def keys(self) -> ApiKeys:
        full = [key.get_secret_value() for key in self.settings.api_keys]
        read = [key.get_secret_value() for key in self.settings.read_api_keys]
        return ApiKeys(full + ([self.made_api_key] if self.made_api_key else []), read)

    async def start(self) -> None:
        if self.relay is not None:
            await self.relay.start()

    async def stop(self) -> None:
        """Answer what is in flight, finish what is being sent, give the rest back, close the database."""
        self.stopping = True
        while self.receiver.in_flight:
            await asyncio.sleep(0.01)
        if self.relay is not None:
            await self.relay.stop()
        await self.commits.drain()
        await asyncio.to_thread(self.database.close)


def create_app(settings: Settings) -> FastAPI:
    """The whole service as an ASGI app; its lifespan starts and stops the background work."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="Jethook",
        version=__version__,
        summary="Keeps, relays and answers questions about what Mailjet says happened to every message.",
        lifespan=lifespan,
    )
    app.state.service = service
    app.router.routes.insert(0, service.receiver.route())
    keys = service.keys
    app.include_router(query_routes.build_router(service.database, keys))
    install_problem_handlers(app)
    return app
