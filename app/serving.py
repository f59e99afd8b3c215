"""Runs the service under uvicorn, and stops it so that nothing accepted is lost and nothing new is half accepted."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app import __version__
from app.db import Database
from app.errors import DatabaseFault
from app.main import Service, create_app, make_registrar
from app.migrate import migrate
from app.query.stream import DROP_EXTENSION
from app.registration.service import Registrar
from app.settings import Settings

log = structlog.get_logger(__name__)

DATABASE_PATIENCE_SECONDS = 60  # a PostgreSQL that starts together with us is not a fault yet
MAX_HEAD_BYTES = 64 * 1024
TOO_LARGE_HEAD = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
REFUSED_SECONDS = 1.0
DRAIN_SECONDS = 1.0  # after SIGTERM new posts still get their 503 while balancers learn of it
# A finished statement of the database's thread waits for a busy loop no longer than this, instead of 5 ms.
SWITCH_INTERVAL_SECONDS = 0.0002


class OneWrite:
    """A transport that writes at the end of the loop's round: uvicorn hands over head and body of an answer one by one,
    and each would be a system call and a packet of its own. Everything else goes to the transport it stands for."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size() + sum(map(len, self._parts))

    def _flush(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            if not self._transport.is_closing():
                self._transport.write(data)


class BoundedHead(HttpToolsProtocol):
    """uvicorn's protocol, which by itself takes request heads of any size from anybody.

    What comes before a head's end is counted by what arrives; the piece that ends one may hold part of a body too, and
    is not counted.
    """

    _in_head = True
    _ended = False
    _head_bytes = 0
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", OneWrite(transport, self.loop)))

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._ended = False
        super().data_received(data)
        if self._in_head and not self._ended:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refused = True
                self.transport.write(TOO_LARGE_HEAD)
                # Closed at once, with more on its way, the caller would see a reset and not the answer.
                self.loop.call_later(REFUSED_SECONDS, self.transport.close)

    def on_headers_complete(self) -> None:
        self._in_head, self._ended, self._head_bytes = False, True, 0
        self.scope["extensions"] = {DROP_EXTENSION: self.transport.abort}  # type: ignore[dict-item]
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = self._ended = True
        super().on_message_complete()


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
        app, host=settings.host, port=settings.port, loop="auto", http=BoundedHead, access_log=False, log_config=None,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=20, timeout_keep_alive=75, lifespan="on",
    )  # fmt: skip
    server = GracefulServer(config, app.state.service)
    log.info(
        "service.starting", version=__version__, role=settings.role, host=settings.host, port=settings.port,
        webhooks=list(settings.effective_webhooks), sinks=list(settings.sinks),
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
