"""Sinks: how each is doing, pause, resume, test, and its dead deliveries."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from app.dashboard.desk import Desk
from app.dashboard.filters import segment
from app.dashboard.forms import parse_fields
from app.dashboard.pages import redirect
from app.dashboard.sessions import Session
from app.filters import DeliveryQuery
from app.query import queries
from app.query.cursor import decode_cursor, encode_cursor, scope_of
from app.sinks.shapes import TestResult
from app.views import delivery_view

LIST = "/dashboard/sinks"
DEAD_LISTED = 25


def add_routes(router: APIRouter, desk: Desk) -> None:
    viewer, actor = Depends(desk.access.viewer), Depends(desk.access.actor)

    @router.get(LIST)
    def list_sinks(request: Request, session: Annotated[Session, viewer]) -> Response:
        sinks = desk.sinks.list_all().data
        return desk.pages.answer(request, "sinks.html", session, sinks=sinks, rates=desk.pulse.deliveries_per_second())

    @router.get(LIST + "/{name}")
    def show_sink(
        request: Request, session: Annotated[Session, viewer], name: str, cursor: str | None = None
    ) -> Response:
        sink = desk.sinks.get(name)
        dead, following = _dead_of(desk, name, cursor)
        return desk.pages.answer(
            request, "sink.html", session, sink=sink, dead=dead, following=following, is_first=not cursor,
            rates=desk.pulse.deliveries_per_second(), config=desk.settings.sinks.get(name),
            webhooks=list(desk.settings.effective_webhooks),
        )  # fmt: skip

    @router.post(LIST + "/{name}/pause", dependencies=[actor])
    async def pause(name: str) -> Response:
        await desk.sinks.pause(name)
        return _back(name, f"{name} is paused: its deliveries wait.")

    @router.post(LIST + "/{name}/resume", dependencies=[actor])
    async def resume(name: str) -> Response:
        await desk.sinks.resume(name)
        return _back(name, f"{name} is resumed.")

    @router.post(LIST + "/{name}/test", dependencies=[actor])
    async def test(name: str) -> Response:
        result = await desk.sinks.test(name)
        return _back(name, *_told(result))


def _back(name: str, say: str, kind: str = "ok") -> Response:
    return redirect(f"{LIST}/{segment(name)}", say, kind=kind)


def _told(result: TestResult) -> tuple[str, str]:
    """(a sentence, is it good or bad?)"""
    took = f"in {result.duration_ms:.0f} ms"
    if result.outcome == "success":
        return f"The test event was taken: {result.status} {took}.", "ok"
    answer = f" with {result.status}" if result.status else ""
    excerpt = f" Answer: {result.response_excerpt[:200]}" if result.response_excerpt else ""
    return f"The test event failed{answer} {took}: {result.error or result.outcome}.{excerpt}", "bad"


def _dead_of(desk: Desk, name: str, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
    """(a page of dead deliveries, the cursor of the next one)."""
    query = parse_fields(DeliveryQuery, [("sink", name), ("state", "dead"), ("limit", str(DEAD_LISTED))])
    scope = scope_of("deliveries", query.normalised(), query.order)
    position = decode_cursor(cursor, scope, (str, str)) if cursor else None
    with desk.database.reading() as connection:
        page = queries.list_deliveries(connection, query, position)
    following = None if page.beyond is None else encode_cursor(scope, page.beyond)
    return [delivery_view(row) for row in page.rows], following
