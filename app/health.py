"""Is the process alive, can it do its work, and how is each part: for containers, balancers and people. No key needed.

Ready means that an event sent now could be stored: the database takes writes and has the schema this code knows, and
the service is not stopping. Sinks that are down and registration that fails are told, and never make it unready: a
balancer that took us out for them would lose the events instead.
"""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa
import structlog
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy.engine import Connection

from app.clock import to_micros, utc_now
from app.db import Database, insert_missing
from app.errors import PROBLEM_CONTENT_TYPE, Unavailable, problem_body
from app.http import problem_responses, request_id_of
from app.migrate import is_current
from app.models import Lease

log = structlog.get_logger(__name__)

PROBE = "readiness"  # the row of the leases table that a probe writes
CHECK_FAILED = "health.check_failed"
CHECK_TIMEOUT_SECONDS = 3.0
RETRY_AFTER_SECONDS = 5

_leases: sa.Table = Lease.__table__  # type: ignore[attr-defined]


def build_router(
    database: Database,
    registry: CollectorRegistry,
    *,
    registration_state: Callable[[], dict[str, Any]],
    stopping: Callable[[], bool],
    components: Callable[[], dict[str, Any]],
) -> APIRouter:
    """`/livez`, `/readyz`, `/healthz` and `/metrics`, each by GET and HEAD.

    The callables must be quick and need no database: they run on the event loop, for every probe. What one of them
    raises is logged and told as an error, and changes nothing else.
    """
    router = APIRouter(tags=["health"])
    readiness = Readiness(database, stopping)

    @router.head("/livez", include_in_schema=False)
    @router.get("/livez", summary="Is the process alive?", description="Asks nothing but the process itself.")
    async def livez() -> Response:
        return _json({"status": "ok"})

    @router.head("/readyz", include_in_schema=False)
    @router.get(
        "/readyz",
        summary="Can it take events now?",
        description="The database takes writes and has the right schema, and the service is not stopping."
        " Tells the state of registration, which never makes it unready.",
        responses=problem_responses(503),
    )
    async def readyz(request: Request) -> Response:
        state = await readiness.look()
        return _answer(request, state, {"registration": _told("registration", registration_state)})

    @router.head("/healthz", include_in_schema=False)
    @router.get(
        "/healthz",
        summary="How is each part?",
        description="The detail of every part; 200 unless it is not ready, whatever the parts say.",
        responses=problem_responses(503),
    )
    async def healthz(request: Request) -> Response:
        state = await readiness.look()
        parts = {"registration": _told("registration", registration_state), "components": _told("parts", components)}
        return _answer(request, state, parts)

    _add_metrics(router, registry)
    return router


def _add_metrics(router: APIRouter, registry: CollectorRegistry) -> None:
    @router.head("/metrics", include_in_schema=False)
    @router.get(
        "/metrics",
        summary="Metrics",
        description="Prometheus text format.",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def metrics() -> Response:
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})


@dataclass(frozen=True, slots=True)
class State:
    """What a look found; each part is `ok`, or says in a word what is wrong."""

    database: str
    schema: str
    stopping: bool

    @property
    def fault(self) -> str | None:
        """Why it is not ready, in a sentence."""
        if self.stopping:
            return "the service is stopping"
        if self.database != "ok":
            return "the database does not take writes"
        return None if self.schema == "ok" else "the database has an older schema; run `jethook migrate`"


class Readiness:
    """Looks whether the service could store an event now; probes that come together share one look.

    Sharing keeps a database that hangs from collecting one waiting write for every probe.
    """

    def __init__(
        self, database: Database, stopping: Callable[[], bool], *, timeout_seconds: float = CHECK_TIMEOUT_SECONDS
    ) -> None:
        self._database = database
        self._stopping = stopping
        self._timeout_seconds = timeout_seconds
        self._schema_seen = False
        self._look: asyncio.Task[str] | None = None

    async def look(self) -> State:
        """Never raises, and takes no longer than the timeout."""
        stopping = self._stopping()
        schema = "unknown"
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._database.run_write(self._probe))
            self._look.add_done_callback(_note_failure)
        done, _ = await asyncio.wait([self._look], timeout=self._timeout_seconds)
        if not done:
            database = "timeout"
        elif self._look.cancelled() or self._look.exception() is not None:
            database = "error"
        else:
            database, schema = "ok", self._look.result()
        return State(database, schema, stopping)

    def _probe(self, connection: Connection) -> str:
        """A write that changes no row, on the way every event goes: read-only and locked databases refuse it."""
        # Asked before anything else, since a database without tables is no broken one. Once current it stays so.
        if not self._schema_seen:
            self._schema_seen = is_current(connection)
        if not self._schema_seen:
            return "outdated"
        if self._database.write_failed:
            # A full disk lets a change of nothing pass. What failed is proved to work again by writing.
            row = (PROBE, PROBE, to_micros(utc_now()))
            connection.execute(sa.delete(_leases).where(_leases.c.name == PROBE))
            insert_missing(connection, _leases, ("name", "owner", "expires_at"), [row])
            return "ok"
        connection.execute(sa.update(_leases).where(sa.false()).values(owner=_leases.c.owner))
        connection.rollback()
        return "ok"


def _note_failure(look: "asyncio.Task[str]") -> None:
    if not look.cancelled() and (error := look.exception()) is not None:
        log.warning(CHECK_FAILED, part="database", error=type(error).__name__)


def _told(part: str, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return ask()
    except Exception as error:  # a part that cannot tell its state is news, not an outage
        log.warning(CHECK_FAILED, part=part, error=type(error).__name__, exc_info=error)
        return {"state": "error"}


def _answer(request: Request, state: State, parts: dict[str, Any]) -> Response:
    checks = {"database": state.database, "schema": state.schema, "stopping": state.stopping}
    fault = state.fault
    if fault is None:
        return _json({"status": "ok", "checks": checks, **parts})
    error = Unavailable(fault, retry_after_seconds=RETRY_AFTER_SECONDS)
    problem = problem_body(error, instance=request.url.path, request_id=request_id_of(request))
    content = orjson.dumps({**orjson.loads(problem), "checks": checks, **parts}, default=str)
    return Response(content, error.status_code, headers=error.headers, media_type=PROBLEM_CONTENT_TYPE)


def _json(value: dict[str, Any]) -> Response:
    return Response(orjson.dumps(value, default=str), media_type="application/json")
