"""`GET /v1/completeness`."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from datetime import date, datetime
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.clock import rfc3339
from app.completeness import queries
from app.completeness.figures import date_of, day_of, is_settled, ratio_of
from app.db import Database
from app.errors import BadCursor
from app.filters import Moments, Paging, Several, Texts
from app.http import PROBLEM_RESPONSES, ApiKeys
from app.query.cursor import decode_cursor, encode_cursor, scope_of
from app.query.routes import PAGING, next_url
from app.settings.values import EventType
from app.views import dump

_EXAMPLE: dict[str, Any] = {
    "day": "2026-05-03", "connection": "default", "type": "sent", "expected": 1200, "stored": 1194, "missing": 6,
    "ratio": 0.995, "settled": True, "checked_at": "2026-05-05T00:10:00Z",
}  # fmt: skip
_LINK = {"description": 'the next page: `<…>; rel="next"`', "schema": {"type": "string"}}


class CompletenessQuery(Paging):
    """`GET /v1/completeness`. A repeated filter means any of its values."""

    order: Literal["asc", "desc"] = Field("desc", description="by day; `desc`: newest first")
    connection: Texts = Field([], description="name of the connection", examples=[["default"]])
    type: Annotated[list[EventType], Several] = Field([], description="Mailjet's event type", examples=[["sent"]])
    after: Moments = Field([], description="days that end after that time (RFC 3339)")
    before: Moments = Field([], description="days that begin before that time (RFC 3339)")


class CompletenessModel(BaseModel):
    """One type of one connection on one day."""

    model_config = ConfigDict(title="Completeness", json_schema_extra={"example": _EXAMPLE})

    day: date = Field(description="in UTC")
    connection: str
    type: str
    expected: int = Field(
        description="what Mailjet counted: messages that were sent, bounced or blocked, by the day on which they were"
        " sent; opens, clicks, complaints and unsubscribes by their own day"
    )
    stored: int = Field(description="events of the day that are stored, however they came")
    missing: int = Field(description="`expected` less `stored`, and never below zero")
    ratio: float | None = Field(description="`stored` of `expected`, at most 1; null where Mailjet counted nothing")
    settled: bool = Field(description="the day was over for a day when it was looked at; until then both sides move")
    checked_at: datetime


class CompletenessList(BaseModel):
    """A page of days."""

    data: list[CompletenessModel]
    next_cursor: str | None
    has_more: bool


def build_router(database: Database, keys: ApiKeys) -> APIRouter:
    router = APIRouter(prefix="/v1/completeness", tags=["completeness"], responses=PROBLEM_RESPONSES)

    @router.get(
        "",
        summary="Compare with Mailjet",
        description="What Mailjet says it counted beside what is stored, by day, connection and type, newest first."
        " Mailjet is asked every `JETHOOK_COMPLETENESS_EVERY_SECONDS` for today and the week before, from the first"
        f" day with events on. Connections without keys are not in it. {PAGING}",
        responses={200: {"model": CompletenessList, "headers": {"Link": _LINK}}},
        dependencies=[Depends(keys.reader)],
    )
    def list_completeness(request: Request, query: Annotated[CompletenessQuery, Query()]) -> Response:
        scope = scope_of("completeness", query.normalised(), query.order)
        position = None if query.cursor is None else decode_cursor(query.cursor, scope, (int, str, str))
        if position is not None and not 0 <= int(position[0]) < 2**31:  # no day that the column could hold
            raise BadCursor("the cursor is broken; start again without it")
        with database.reading() as connection:
            rows, has_more = queries.page(
                connection, _conditions(query), position, descending=query.order == "desc", limit=query.limit
            )
        cursor = encode_cursor(scope, (rows[-1].day, rows[-1].connection, rows[-1].type)) if has_more else None
        headers = {"link": f'<{next_url(request, cursor)}>; rel="next"'} if cursor else {}
        content = {"data": [_view(row) for row in rows], "next_cursor": cursor, "has_more": has_more}
        return Response(dump(content), 200, headers, "application/json")

    return router


def _conditions(query: CompletenessQuery) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if query.connection:
        found.append(queries.found.c.connection.in_(query.connection))
    if query.type:
        found.append(queries.found.c.type.in_(query.type))
    if query.after:
        found.append(queries.found.c.day >= day_of(min(query.after)))
    if query.before:
        found.append(queries.found.c.day < day_of(max(query.before), rounded_up=True))
    return found


def _view(row: queries.Row) -> dict[str, Any]:
    return {
        "day": date_of(row.day).isoformat(), "connection": row.connection, "type": row.type,
        "expected": row.expected, "stored": row.stored, "missing": max(row.expected - row.stored, 0),
        "ratio": ratio_of(row.expected, row.stored), "settled": is_settled(row.day, row.checked_at),
        "checked_at": rfc3339(row.checked_at),
    }  # fmt: skip
