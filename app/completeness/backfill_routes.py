"""Backfills over REST: ask for one, watch it, cancel it."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Self

import orjson
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, StrictBool, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from app.clock import rfc3339, utc_now
from app.completeness import backfill_queries as queries
from app.completeness.backfill import RATE_PER_SECOND, Backfills
from app.db import Database
from app.errors import BackfillNotFound, Conflict
from app.filters import Paging, parse_moment
from app.http import PROBLEM_RESPONSES, ApiKeys, problem_responses
from app.models import ReplayState
from app.query.cursor import decode_cursor, encode_cursor, scope_of
from app.query.routes import next_url
from app.settings.values import EventType

BACKFILL_ID = "019ded47-d100-7c4e-9a51-3f9c2b7d1e60"  # the example of the documentation
BackfillId = Annotated[str, Path(description="id of the backfill", examples=[BACKFILL_ID])]
Moment = Annotated[
    datetime, BeforeValidator(parse_moment), WithJsonSchema({"type": "string", "format": "date-time"})
]  # fmt: skip

_EXAMPLE: dict[str, Any] = {
    "id": BACKFILL_ID, "connection": "default", "since": "2026-05-03T00:00:00Z", "until": "2026-05-04T00:00:00Z",
    "types": [], "deliver": True, "rate_per_second": 10.0, "state": "running", "messages": 640, "stored": 12,
    "known": 1288, "deliveries": 24, "error": None, "created_at": "2026-05-10T08:00:00.123456Z", "finished_at": None,
}  # fmt: skip


class BackfillRequest(BaseModel):
    """Which messages to look at."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"connection": "default", "since": "2026-05-03T00:00:00Z"}}
    )

    connection: str = Field("default", description="name of the connection")
    since: Moment = Field(description="messages that Mailjet got at that time or later (RFC 3339)")
    until: Moment | None = Field(None, description="and before that time; null: until now")
    types: list[EventType] = Field([], max_length=7, description="only these event types; none: all that are watched")
    deliver: StrictBool = Field(True, description="owe what is found to the sinks, as if it had come by itself")
    rate_per_second: Annotated[float, Strict(), Field(gt=0, le=100, allow_inf_nan=False)] = Field(
        RATE_PER_SECOND, description="messages a second, of which each is one call of Mailjet's API"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.until is not None and self.until <= self.since:
            raise PydanticCustomError("order", "`since` must be before `until`")
        return self


class BackfillModel(BaseModel):
    """Missed events fetched from Mailjet."""

    model_config = ConfigDict(title="Backfill", json_schema_extra={"example": _EXAMPLE})

    id: str
    connection: str
    since: datetime
    until: datetime
    types: list[str]
    deliver: bool
    rate_per_second: float
    state: ReplayState
    messages: int = Field(description="messages looked at so far")
    stored: int = Field(description="events that were missing and are stored now, one for each webhook that lacked it")
    known: int = Field(description="events that were there already")
    deliveries: int = Field(description="deliveries that the sinks are owed by it")
    error: str | None = Field(description="why it failed")
    created_at: datetime
    finished_at: datetime | None


class BackfillList(BaseModel):
    """A page of backfills."""

    data: list[BackfillModel]
    next_cursor: str | None
    has_more: bool


class BackfillQuery(Paging):
    """`GET /v1/backfills`."""


_ANSWERS: dict[int | str, dict[str, Any]] = {200: {"model": BackfillModel}}
_LINK = {"description": 'the next page: `<…>; rel="next"`', "schema": {"type": "string"}}


def backfill_view(row: queries.Row) -> dict[str, Any]:
    return {
        "id": row.id, "connection": row.connection, "since": rfc3339(row.since), "until": rfc3339(row.until),
        "types": row.types.split(",") if row.types else [], "deliver": bool(row.deliver),
        "rate_per_second": row.rate_per_second, "state": row.state, "messages": row.messages, "stored": row.stored,
        "known": row.known, "deliveries": row.deliveries, "error": row.error, "created_at": rfc3339(row.created_at),
        "finished_at": None if row.finished_at is None else rfc3339(row.finished_at),
    }  # fmt: skip


def build_router(backfills: Backfills, database: Database, keys: ApiKeys) -> APIRouter:
    router = APIRouter(prefix="/v1/backfills", tags=["completeness"], responses=PROBLEM_RESPONSES)
    _add_asking(router, backfills, keys)
    _add_watching(router, backfills, database, keys)
    return router


def _add_asking(router: APIRouter, backfills: Backfills, keys: ApiKeys) -> None:
    writer = [Depends(keys.writer)]

    @router.post(
        "",
        summary="Fetch missed events",
        description="Asks Mailjet for the history of every message of a time and stores what is missing, for each"
        " webhook of the connection that watches its type. What came as a callback, or was fetched before, is not"
        " stored again. Such an event has the `origin` `backfill`, and knows less: no link, address or country."
        " It survives restarts. While Mailjet still repeats posts that failed, some of these may come afterwards and"
        " are further events: ask for what is a day old.",
        status_code=202,
        response_model=None,
        responses={
            202: {
                "model": BackfillModel,
                "description": "It runs",
                "headers": {"Location": {"description": "where to watch it", "schema": {"type": "string"}}},
            },
            **problem_responses(404, 409),
        },
        dependencies=writer,
    )
    async def create_backfill(body: BackfillRequest) -> Response:
        until = body.until or utc_now()
        row = await backfills.begin(
            body.connection, body.since, until, types=body.types, deliver=body.deliver,
            rate_per_second=body.rate_per_second,
        )  # fmt: skip
        return _json(backfill_view(row), 202, {"location": f"/v1/backfills/{row.id}"})

    @router.post(
        "/{id}/cancel",
        summary="Cancel a backfill",
        description="It looks at no further message; what it stored stays. One that has ended is a 409.",
        responses=_ANSWERS | problem_responses(404, 409),
        dependencies=writer,
    )
    async def cancel_backfill(id: BackfillId) -> Response:
        if not await backfills.cancel(id):
            found = _found(await backfills.find(id))
            if found.state != ReplayState.CANCELLED:
                raise Conflict("the backfill has ended")
        return _json(backfill_view(_found(await backfills.find(id))))


def _add_watching(router: APIRouter, backfills: Backfills, database: Database, keys: ApiKeys) -> None:
    options: dict[str, Any] = {"dependencies": [Depends(keys.reader)]}

    @router.get(
        "",
        summary="List backfills",
        description="Backfills, the newest first. Walk the list by giving `next_cursor` back as `cursor`, or by"
        " following the `Link` header.",
        responses={200: {"model": BackfillList, "headers": {"Link": _LINK}}},
        **options,
    )
    def list_backfills(request: Request, query: Annotated[BackfillQuery, Query()]) -> Response:
        scope = scope_of("backfills", query.normalised(), query.order)
        beyond = None if query.cursor is None else str(decode_cursor(query.cursor, scope, (str,))[0])
        with database.reading() as connection:
            rows = queries.page(connection, beyond=beyond, descending=query.order == "desc", limit=query.limit + 1)
        shown = rows[: query.limit]
        cursor = encode_cursor(scope, (shown[-1].id,)) if len(rows) > query.limit else None
        answer = {"data": [backfill_view(row) for row in shown], "next_cursor": cursor, "has_more": cursor is not None}
        return _json(answer, headers={"link": f'<{next_url(request, cursor)}>; rel="next"'} if cursor else {})

    @router.get(
        "/{id}",
        summary="Get a backfill",
        description="One backfill and how far it is.",
        responses=_ANSWERS | problem_responses(404),
        **options,
    )
    async def get_backfill(id: BackfillId) -> Response:
        return _json(backfill_view(_found(await backfills.find(id))))


def _found(row: queries.Row | None) -> queries.Row:
    if row is None:
        raise BackfillNotFound("there is no backfill with this id")
    return row


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, dict(headers or {}), "application/json")
