"""Our receivers over REST: how each is doing; pause, resume, test."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from app.clock import rfc3339, utc_now
from app.db import Database
from app.dispatch import sink_states
from app.errors import SinkNotFound
from app.http import PROBLEM_RESPONSES, ApiKeys, problem_responses
from app.models import AttemptOutcome
from app.operator_events import NOBODY, SINK_PAUSED, SINK_RESUMED, Change, Herald
from app.settings import EVENT_TYPES, Settings, SinkSettings, mask_url

BY_HAND = "paused by hand"


class SinkControl(Protocol):
    """This process's worker, as far as sinks are shown and steered."""

    def snapshot(self, sink: str) -> Mapping[str, Any]: ...

    def paused(self, sink: str, reason: str | None) -> None: ...

    def resumed(self, sink: str) -> None: ...

    async def test(self, sink: str) -> Mapping[str, Any]: ...


class Sink(BaseModel):
    """A downstream receiver and how it is doing."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "crm", "url": "https://crm.example.com/mail-events", "state": "active", "paused_reason": None,
                "breaker": "closed", "webhooks": ["orders"], "events": ["bounce", "spam"], "envelope": "mailjet",
                "batch_size": 1, "backlog": 0, "oldest_overdue_seconds": 0.0, "dead": 0,
                "last_success_at": "2026-05-03T10:00:01.345678Z", "last_error": None,
            }
        }
    )  # fmt: skip

    name: str
    url: str | None = Field(description="credentials masked; null for a removed sink")
    state: Literal["active", "paused", "removed"] = Field(
        description="`removed`: not configured any more; its deliveries wait until it comes back or they are cancelled"
    )
    paused_reason: str | None
    breaker: Literal["closed", "open", "half_open"] = Field(description="as this replica sees it")
    webhooks: list[str]
    events: list[str]
    envelope: str | None
    batch_size: int
    backlog: int = Field(description="deliveries not settled yet")
    oldest_overdue_seconds: float
    dead: int
    last_success_at: str | None
    last_error: str | None


class SinkList(BaseModel):
    data: list[Sink]
    next_cursor: None = None
    has_more: Literal[False] = False


class TestResult(BaseModel):
    """One try with an event that is not real; nothing is stored."""

    outcome: AttemptOutcome
    status: int | None
    error: str | None
    duration_ms: float
    response_excerpt: str | None


SinkName = Annotated[str, Path(description="name of the sink, in small letters", examples=["crm"])]


def build_router(
    settings: Settings, database: Database, keys: ApiKeys, control: SinkControl, herald: Herald = NOBODY
) -> APIRouter:
    router = APIRouter(prefix="/v1/sinks", tags=["sinks"], responses=PROBLEM_RESPONSES)
    reading: dict[str, Any] = {"dependencies": [Depends(keys.reader)]}
    writing: dict[str, Any] = {"dependencies": [Depends(keys.writer)], "responses": problem_responses(404)}

    def view(connection: Connection, name: str, states: Mapping[str, Mapping[str, Any]]) -> Sink:
        configured = settings.sinks.get(name)
        shown = configured or SinkSettings(url="http://removed.invalid")
        here = control.snapshot(name) if configured else {}
        state = {**states.get(name, {}), **{k: v for k, v in here.items() if k != "paused"}}  # a pause is the table's
        succeeded = state.get("last_success_at")
        return Sink(
            name=name,
            url=mask_url(configured.url) if configured else None,
            state="removed" if configured is None else "paused" if state.get("paused") else "active",
            paused_reason=state.get("paused_reason"),
            breaker=state.get("breaker", "closed"),
            webhooks=list(shown.webhooks or settings.effective_webhooks),
            events=list(shown.events or EVENT_TYPES),
            envelope=shown.envelope if configured else None,
            batch_size=shown.batch_size,
            backlog=sink_states.count_pending(connection, name),
            oldest_overdue_seconds=sink_states.oldest_overdue_seconds(connection, name, utc_now()),
            dead=sink_states.count_dead(connection, name),
            last_success_at=rfc3339(succeeded) if succeeded else None,
            last_error=state.get("last_error"),
        )

    def get(name: str) -> Sink:
        with database.reading() as connection:
            states = sink_states.list_states(connection)
            if name not in settings.sinks and name not in states:
                raise SinkNotFound(f"sink {name[:63]!r} is not configured")
            return view(connection, name, states)

    def steer(name: str, *, paused: bool) -> Sink:
        if name not in settings.sinks:
            raise SinkNotFound(f"sink {name[:63]!r} is not configured")
        reason = BY_HAND if paused else None
        change = Change(SINK_PAUSED if paused else SINK_RESUMED, utc_now(), sink=name, error=reason)

        def store(connection: Connection) -> None:
            if sink_states.set_paused(connection, name, paused=paused, reason=reason):
                herald.store(connection, change)

        database.write(store)
        return get(name)

    @router.get(
        "",
        summary="List sinks",
        description="Every configured sink, and removed ones that are still owed something. Always one page.",
        **reading,
    )
    def list_sinks() -> SinkList:
        with database.reading() as connection:
            states = sink_states.list_states(connection)
            sinks = [view(connection, name, states) for name in sorted({*settings.sinks, *states})]
        return SinkList(data=[s for s in sinks if s.state != "removed" or s.backlog or s.dead])

    @router.get("/{name}", summary="Get a sink", responses=problem_responses(404), **reading)
    def get_sink(name: SinkName) -> Sink:
        return get(name)

    @router.post(
        "/{name}/pause",
        summary="Pause a sink",
        description="Its deliveries wait, on every replica and over restarts, until it is resumed; none is lost and"
        " none uses up an attempt.",
        **writing,
    )
    async def pause(name: SinkName) -> Sink:
        sink = await asyncio.to_thread(lambda: steer(name, paused=True))
        control.paused(name, BY_HAND)
        return sink

    @router.post(
        "/{name}/resume",
        summary="Resume a sink",
        description="Sends what waited, and closes its breaker.",
        **writing,
    )
    async def resume(name: SinkName) -> Sink:
        await asyncio.to_thread(lambda: steer(name, paused=False))
        control.resumed(name)
        return await asyncio.to_thread(lambda: get(name))

    @router.post(
        "/{name}/test",
        summary="Test a sink",
        description="Posts one test event to it now, as it would any other, and tells what came of it. Nothing is"
        " stored, and neither breaker nor pause matter.",
        **writing,
    )
    async def test(name: SinkName) -> TestResult:
        if name not in settings.sinks:
            raise SinkNotFound(f"sink {name[:63]!r} is not configured")
        return TestResult(**await control.test(name))

    return router
