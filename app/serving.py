"""Runs the service under uvicorn, and stops it so that nothing accepted is lost and nothing new is half accepted."""

from __future__ import annotations

import gc
import itertools
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from app import __version__
from app.db import Database
from app.errors import DatabaseFault
from app.logs import set_level
from app.main import Service, create_app, make_registrar
from app.migrate import migrate
from app.registration.service import Registrar
from app.settings import Settings
from app.wire import BoundedProtocol, most_connections

log = structlog.get_logger(__name__)

DATABASE_PATIENCE_SECONDS = 60  # a PostgreSQL that starts together with us is not a fault yet
DRAIN_SECONDS = 1.0  # after SIGTERM new posts still get their 503 while balancers learn of it
# A finished statement of the database's thread waits for a busy loop no longer than this, instead of 5 ms.
SWITCH_INTERVAL_SECONDS = 0.0004
GC_THRESHOLDS = (5_000, 20, 100)  # of net allocations, and of looks at younger objects


class GracefulServer(uvicorn.Server):
    """On SIGTERM or SIGINT: new posts get 503, those in flight are committed and answered, then the server ends."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        service.on_stop_request = lambda: self.handle_exit(0, None)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What the start has built stays for good. Looked through again and again, it stopped everything for 100 ms at a
        # time; left out, ingest of single events is a half faster.
        gc.collect()
        gc.freeze()
        # Looking through all that came since took 10 to 50 ms, once or twice a second while many rows are read.
        gc.set_threshold(*GC_THRESHOLDS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.stopping:  # asked twice: now
            self.should_exit = True
            self.force_exit = True
            return
        self._service.stopping = True
        log.info("service.stopping", signal=sig, in_flight=self._service.receiver.in_flight)
        loop = self._service.loop
        if loop is None:
            self.should_exit = True
        else:
            loop.call_soon_threadsafe(lambda: loop.call_later(DRAIN_SECONDS, self._end))

    def _end(self) -> None:
        self._service.receiver.cut_unfinished()
        self._service.feed.close()
        self.should_exit = True


def serve(settings: Settings) -> int:
    """Run until asked to stop; the exit code. Raises DatabaseFault when the database stays away."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    app = _app_with_patience(settings)
    service: Service = app.state.service
    if service.made_api_key is not None:
        print(f"No JETHOOK_API_KEYS set; REST key of this installation: {service.made_api_key}", flush=True)  # noqa: T201
    return run(app, settings)


def run(app: FastAPI, settings: Settings) -> int:
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, loop="auto", http=BoundedProtocol, access_log=False,
        log_config=None, server_header=False, proxy_headers=False, timeout_graceful_shutdown=20, timeout_keep_alive=75,
        lifespan="on",
    )  # fmt: skip
    server = GracefulServer(config, app.state.service)
    _listen_for_log_level(app.state.service, settings.log_level)
    log.info(
        "service.starting", version=__version__, role=settings.role, host=settings.host, port=settings.port,
        webhooks=list(settings.effective_webhooks), sinks=list(settings.sinks), most_connections=most_connections(),
    )  # fmt: skip
    try:
        server.run()
    except SystemExit as end:  # uvicorn's way to say that it could not start
        if not server.started:
            raise DatabaseFault(
                f"cannot listen on {settings.host}:{settings.port}; see JETHOOK_HOST and JETHOOK_PORT"
            ) from None
        return int(end.code or 0)
    log.info("service.stopped")
    return 0 if server.started else 1


def _listen_for_log_level(service: Service, configured: str) -> None:
    """SIGUSR1: every line there is; again: back to what the settings say. A signal reaches one replica, where a request
    would reach whichever the proxy chooses."""
    if not hasattr(signal, "SIGUSR1"):
        return
    levels = itertools.cycle(("debug", configured))

    def change() -> None:
        level = next(levels)
        set_level(level)
        log.warning("log_level.changed", log_level=level)

    def heard(_: int, __: FrameType | None) -> None:
        if service.loop is not None:  # a line must not be written in the middle of another
            service.loop.call_soon_threadsafe(change)

    signal.signal(signal.SIGUSR1, heard)


def _app_with_patience(settings: Settings) -> FastAPI:
    give_up = time.monotonic() + DATABASE_PATIENCE_SECONDS
    wait = 0.5
    while True:
        try:
            return create_app(settings)
        except DatabaseFault as fault:
            url = settings.database_url.get_secret_value()
            if url.startswith("sqlite") or time.monotonic() > give_up:
                raise
            log.warning("database.waiting", error=str(fault), retry_in_seconds=wait)
            time.sleep(wait)
            wait = min(wait * 2, 5)


@contextmanager
def one_registrar(settings: Settings) -> Iterator[Registrar]:
    """A registrar for one command, on the installation's own database and with its passwords."""
    database = Database(settings.database_url.get_secret_value())
    try:
        migrate(database)
        yield make_registrar(settings, database)
    finally:
        database.close()
