"""POST /webhooks/{webhook}: judges the credentials, hands the raw bytes on, answers 200 once they are durable.

The one route that is plain ASGI: FastAPI's own reading of a request costs more than everything done here. Anything but
200 makes Mailjet post the same again for a day, so 4xx is for callers that are not Mailjet and 503 for our own faults.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import structlog
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.clock import now_micros
from app.db import is_outage
from app.errors import AppError, BodyTooLarge, Unauthorized, Unavailable, WebhookNotFound
from app.http import RequestIdMiddleware, problem_response
from app.ingest.auth import CallbackAuth, Verdict
from app.ingest.service import Accepted, Ingest
from app.logs import SharedLines
from app.mailjet.vocabulary import EVENT_TYPES
from app.metrics import UNKNOWN, Metrics

if TYPE_CHECKING:  # an extra
    from app.tracing.tracer import Tracer

log = structlog.get_logger(__name__)

BODY_SECONDS = 60.0  # for a whole body to come
SWEEP_SECONDS = 1.0
DRAIN_BYTES = 64 * 1024 * 1024  # of a body that is too large, read on this far so that the caller sees the 413
PREFIX = "/webhooks/"
ANSWERED = "ingest.answered"
NOTHING_TAKEN: Mapping[str, int] = MappingProxyType({})
_JSON = (b"content-type", b"application/json")


class Disconnected(Exception):
    """The caller hung up before the whole body came: there is nothing to store."""


class ReceiveFirst:
    """Takes posts to `/webhooks/{webhook}` before FastAPI sees them: its layers cost half of a post.

    What FastAPI does for the others is done here too: the request has its id, and refusals the one shape of errors.
    """

    def __init__(self, app: ASGIApp, receiver: Receiver) -> None:
        self._app = app
        self._receiver = receiver
        self._named = RequestIdMiddleware(self._receive)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(PREFIX):
            webhook = scope["path"][len(PREFIX) :]
            if webhook and "/" not in webhook:
                scope["path_params"] = {"webhook": webhook}
                await self._named(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _receive(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._receiver(scope, receive, send)
        except AppError as error:
            await problem_response(Request(scope), error)(scope, receive, send)


class Receiver:
    """The ASGI endpoint behind `/webhooks/{webhook}`."""

    def __init__(
        self, ingest: Ingest, auth: CallbackAuth, metrics: Metrics, *, max_body_bytes: int,
        stopping: Callable[[], bool] = lambda: False, body_seconds: float = BODY_SECONDS,
        tracer: Tracer | None = None,
    ) -> None:  # fmt: skip
        self._tracer = tracer
        self._ingest = ingest
        self._auth = auth
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._stopping = stopping
        self._body_seconds = body_seconds
        self._sweep_seconds = min(SWEEP_SECONDS, body_seconds / 4)
        self.in_flight = 0
        self._reading: dict[asyncio.Task[Any], float] = {}  # -> until when its body has time to come
        self._sweeper: asyncio.TimerHandle | None = None
        self._late: set[asyncio.Task[Any]] = set()
        self._lines = SharedLines(ANSWERED, units="posts", ids="request_id")
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no post is in flight."""
        await self._idle.wait()
        self._lines.flush()

    def route(self) -> Route:
        return Route("/webhooks/{webhook}", self, methods=["POST", "GET", "HEAD"], name="receive")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            # Some providers probe the address with GET or HEAD before they post to it.
            await _answer(send, b"")
            return
        webhook = scope["path_params"]["webhook"]
        started = time.perf_counter()
        self.in_flight += 1
        self._idle.clear()
        code, numbers = "500", NOTHING_TAKEN
        try:
            accepted = await self._accept(webhook, scope, receive)
            code, numbers = "200", _numbers_of(accepted)
            await _answer(send, _body_of(accepted))
        except Unauthorized:
            code = "401"
            raise
        except WebhookNotFound:
            webhook, code = UNKNOWN, "404"
            raise
        except BodyTooLarge:
            code = "413"
            raise
        except Unavailable:
            code = "503"
            raise
        except Disconnected:
            code = "499"
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()
            known = webhook if webhook in self._ingest.webhooks else UNKNOWN
            seconds = time.perf_counter() - started
            self._metrics.request_answered(known, code, seconds)
            self._lines.add({"webhook": known, "status": int(code)}, _id_of(scope), seconds, numbers)

    async def _accept(self, webhook: str, scope: Scope, receive: Receive) -> Accepted:
        authorization, length, upgrades = _headers_of(scope)
        self._admit(webhook, authorization)
        if upgrades:  # then the server leaves the body unread
            raise Unavailable("post it without asking for an upgrade", closes=True)
        if self._stopping():
            raise Unavailable("the service is stopping", retry_after_seconds=2)
        body = await self._read(receive, length)
        now = now_micros()
        try:
            if self._tracer is None:
                accepted = await self._ingest.accept(webhook, body, now_micros=now)
            else:
                with self._tracer.post(webhook, scope["headers"]) as trace:
                    accepted = await self._ingest.accept(webhook, body, now_micros=now, trace=trace)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not self._stopping():
                raise
            task.uncancel()  # the server ends and waits no longer
            raise Unavailable("the service is stopping", retry_after_seconds=2) from None
        except TimeoutError:
            raise Unavailable("the database did not commit in time; see JETHOOK_DATABASE_URL") from None
        except Unavailable:
            raise
        except Exception as error:
            # Whatever it was, the event is not stored: Mailjet must try again, and a person must see it.
            if not is_outage(error):
                log.exception("ingest.failed", webhook=webhook)
            raise Unavailable("the database cannot commit; see JETHOOK_DATABASE_URL") from None
        self._count(webhook, accepted, now / 1_000_000)
        return accepted

    def _admit(self, webhook: str, authorization: bytes | None) -> None:
        verdict = self._auth.judge(webhook, authorization)
        if verdict is Verdict.UNAUTHORIZED:
            raise Unauthorized(
                "the callback's user or password is missing or wrong",
                headers={"www-authenticate": 'Basic realm="jethook", charset="UTF-8"'},
            )
        if verdict is Verdict.UNKNOWN_WEBHOOK:
            raise WebhookNotFound(f"no webhook {webhook[:63]!r} is configured")

    def cut_unfinished(self) -> None:
        """The service stops: bodies that are still on their way are not waited for."""
        for task in list(self._reading):
            self._cut(task)

    def _cut(self, task: asyncio.Task[Any]) -> None:
        self._late.add(task)
        task.cancel()

    async def _read(self, receive: Receive, length: int | None) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        self._reading[task] = loop.time() + self._body_seconds
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._sweep_seconds, self._sweep, loop)
        try:
            return await self._read_all(receive, length)
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            task.uncancel()
            raise Unavailable("the body did not come in time") from None
        finally:
            del self._reading[task]
            self._late.discard(task)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer for all bodies: one for each costs as much as reading a small one."""
        now = loop.time()
        for task in [task for task, until in self._reading.items() if until <= now]:
            self._cut(task)
        self._sweeper = loop.call_later(self._sweep_seconds, self._sweep, loop) if self._reading else None

    async def _read_all(self, receive: Receive, length: int | None) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            part: bytes = message.get("body", b"")
            size += len(part)
            if size <= self._max_body_bytes:
                parts.append(part)
            else:
                parts.clear()
            if not message.get("more_body") or size > DRAIN_BYTES or (length or 0) > DRAIN_BYTES:
                break
        if max(size, length or 0) > self._max_body_bytes:
            raise BodyTooLarge(f"a callback body holds at most {self._max_body_bytes} bytes (JETHOOK_MAX_BODY_BYTES)")
        if length is not None and size != length:
            raise Unavailable("the body did not come whole", closes=True)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _count(self, webhook: str, accepted: Accepted, now: float) -> None:
        for event_type, (stored, duplicates) in accepted.by_type.items():
            event = event_type if event_type in EVENT_TYPES else UNKNOWN
            self._metrics.events_received(webhook, event, stored=stored, duplicates=duplicates, now=now)
        if accepted.quarantined:
            self._metrics.ingest_events.labels(webhook, UNKNOWN, "quarantined").inc(accepted.quarantined)
            log.warning("ingest.quarantined", webhook=webhook, elements=accepted.quarantined)


def _headers_of(scope: Scope) -> tuple[bytes | None, int | None, bool]:
    """(authorization, content-length, does it ask for another protocol?)"""
    authorization: bytes | None = None
    length: int | None = None
    asks = 0  # of the two headers that make a request for another protocol
    for name, value in scope["headers"]:
        if name == b"authorization":
            # Two of them: a proxy before us may have judged the other one.
            authorization = value if authorization is None else b""
        elif name == b"content-length" and value.isdigit():
            length = int(value[:20])
        elif name == b"upgrade" or (name == b"connection" and b"upgrade" in value.lower()):
            asks |= 1 if name == b"upgrade" else 2
    return authorization, length, asks == 3


def _id_of(scope: Scope) -> str:
    return str(scope.get("state", {}).get("request_id", ""))


def _numbers_of(accepted: Accepted) -> Mapping[str, int]:
    return {
        "received": accepted.received, "stored": accepted.stored, "duplicates": accepted.duplicates,
        "quarantined": accepted.quarantined,
    }  # fmt: skip


def _body_of(accepted: Accepted) -> bytes:
    return (
        b'{"received":%d,"stored":%d,"duplicates":%d,"quarantined":%d}'
        % (accepted.received, accepted.stored, accepted.duplicates, accepted.quarantined)
    )  # fmt: skip


async def _answer(send: Send, body: bytes) -> None:
    headers = [_JSON, (b"content-length", b"%d" % len(body))] if body else [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def openapi_path() -> dict[str, Any]:
    """What `/openapi.json` says of this route, which FastAPI does not see."""
    counts = {name: {"type": "integer"} for name in ("received", "stored", "duplicates", "quarantined")}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    name = {"name": "webhook", "in": "path", "required": True, "schema": {"type": "string"}}
    anything: dict[str, Any] = {}
    example = [{"event": "open", "time": 1433103519, "MessageID": 19421777396190490}]
    probe = {
        "tags": ["receiving"],
        "summary": "Probe of a callback address",
        "parameters": [name],
        "responses": {"200": {"description": "Always, with no body"}},
    }
    return {
        "get": probe | {"operationId": "probe_webhook"},
        "post": {
            "operationId": "receive_events",
            "tags": ["receiving"],
            "summary": "Receive events from Mailjet",
            "description": "Mailjet posts here. 200 means that every event and what it causes is durably stored.",
            "security": [{"callback": []}],
            "parameters": [name],
            "requestBody": {
                "required": True,
                "description": "One event (Version 1) or an array of events (Version 2)",
                "content": {"application/json": {"schema": anything, "example": example}},
            },
            "responses": {
                "200": {
                    "description": "Stored; the counts are of the body's elements",
                    "content": {"application/json": {"schema": {"type": "object", "properties": counts}}},
                },
                "401": {"description": "Credentials are missing or wrong", "content": problem},
                "404": {"description": "No such webhook", "content": problem},
                "413": {"description": "The body is too large", "content": problem},
                "503": {"description": "Not stored; post it again", "content": problem},
            },
        },
    }
