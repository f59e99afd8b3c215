"""Our receivers over REST: how each is doing; pause, resume, test."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from app.db import Database
from app.http import PROBLEM_RESPONSES, ApiKeys, problem_responses
from app.operator_events import NOBODY, Herald
from app.settings import Settings
from app.sinks.service import SinkControl, Sinks
from app.sinks.shapes import Sink, SinkList, TestResult

SinkName = Annotated[str, Path(description="name of the sink, in small letters", examples=["crm"])]


def build_router(
    settings: Settings, database: Database, keys: ApiKeys, control: SinkControl, herald: Herald = NOBODY
) -> APIRouter:
    router = APIRouter(prefix="/v1/sinks", tags=["sinks"], responses=PROBLEM_RESPONSES)
    sinks = Sinks(settings, database, control, herald)
    reading: dict[str, Any] = {"dependencies": [Depends(keys.reader)]}
    writing: dict[str, Any] = {"dependencies": [Depends(keys.writer)], "responses": problem_responses(404)}

    @router.get(
        "",
        summary="List sinks",
        description="Every configured sink, and removed ones that are still owed something. Always one page.",
        **reading,
    )
    def list_sinks() -> SinkList:
        return sinks.list_all()

    @router.get("/{name}", summary="Get a sink", responses=problem_responses(404), **reading)
    def get_sink(name: SinkName) -> Sink:
        return sinks.get(name)

    @router.post(
        "/{name}/pause",
        summary="Pause a sink",
        description="Its deliveries wait, on every replica and over restarts, until it is resumed; none is lost and"
        " none uses up an attempt.",
        **writing,
    )
    async def pause_sink(name: SinkName) -> Sink:
        return await sinks.pause(name)

    @router.post(
        "/{name}/resume",
        summary="Resume a sink",
        description="Sends what waited, and closes its breaker.",
        **writing,
    )
    async def resume_sink(name: SinkName) -> Sink:
        return await sinks.resume(name)

    @router.post(
        "/{name}/test",
        summary="Test a sink",
        description="Posts one test event to it now, as it would any other, and tells what came of it. Nothing is"
        " stored, and neither breaker nor pause matter.",
        **writing,
    )
    async def test_sink(name: SinkName) -> TestResult:
        return await sinks.test(name)

    return router
