"""The dashboard's routes: `GET /` and everything under `/dashboard/`. Not part of the API, so not in its document."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from contextlib import suppress

from fastapi import APIRouter, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from app.dashboard import (
    event_pages,
    message_pages,
    overview,
    quarantine_pages,
    recipient_pages,
    replay_pages,
    sign_in,
    sink_pages,
    stats_pages,
    webhook_pages,
)
from app.dashboard.assets import PREFIX, load_assets
from app.dashboard.desk import Desk
from app.dashboard.pages import page_route
from app.errors import DatabaseFault, NotFound

PAGES = (
    sign_in, overview, event_pages, message_pages, recipient_pages, stats_pages, sink_pages, replay_pages,
    webhook_pages, quarantine_pages,
)  # fmt: skip


def build_router(desk: Desk) -> APIRouter:
    router = APIRouter(route_class=page_route(desk.pages), include_in_schema=False)

    @router.get(PREFIX + "{name:path}")
    async def static(request: Request, name: str) -> Response:
        return load_assets().answer(request, name)

    for pages in PAGES:
        pages.add_routes(router, desk)

    @router.get("/dashboard/{rest:path}")
    def nothing(request: Request, rest: str) -> Response:
        desk.access.find(request)
        raise NotFound("there is no such page")  # told as a page, since a person typed it

    return router


def warm(desk: Desk) -> None:
    """Compiles the templates and asks the overview's questions once, so that the first person who looks waits as little
    as the second: half of a first answer was spent on it. Without a database there is nothing to get ready."""
    desk.pages.compile(overview.TEMPLATES)
    with suppress(SQLAlchemyError, DatabaseFault):
        overview.overview_values(desk, "live")
    desk.pages.compile()
