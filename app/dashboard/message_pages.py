"""One message: what happened to it when, as a picture and as a list."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from app.dashboard.desk import Desk
from app.dashboard.filters import moment_of
from app.dashboard.sessions import Session
from app.dashboard.strip import strip_of
from app.errors import MessageNotFound
from app.query.messages import MessageQuery, find_message


def add_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/dashboard/messages")
    def show_message(
        request: Request, session: Annotated[Session, Depends(desk.access.viewer)], id: str = ""
    ) -> Response:
        with desk.database.reading() as connection:
            message = find_message(connection, id, MessageQuery(include=["deliveries"])) if id.strip() else None
        if message is None:
            raise MessageNotFound("no event of such a message is stored")
        times = [(moment_of(event["occurred_at"]), event["type"]) for event in message["events"]]
        return desk.pages.answer(
            request, "message.html", session, message=message, strip=strip_of(times), asked=id,
            events=_with_gaps(message["events"], times),
        )  # fmt: skip


def _with_gaps(events: list[dict[str, Any]], times: list[tuple[datetime, str]]) -> list[tuple[dict[str, Any], float]]:
    """Each event with the seconds since the first one."""
    return [(event, (at - times[0][0]).total_seconds()) for event, (at, _) in zip(events, times, strict=True)]
