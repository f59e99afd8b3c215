"""Replays over REST: ask for one, watch it, cancel it."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlencode

import orjson
from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field, Strict, StrictBool, model_validator
from pydantic_core import PydanticCustomError

from app.clock import rfc3339, utc_now
from app.db import Database
from app.errors import FieldError, Invalid, ReplayNotFound
from app.filters import Paging
from app.http import PROBLEM_RESPONSES, ApiKeys, problem_responses
from app.models import ReplayState
from app.query.cursor import decode_cursor, encode_cursor, scope_of
from app.replay import queries, service
from app.replay.queries import Row
from app.replay.selection import DeadSelection, EventSelection, Recipient, Selection
from app.views import EVENT_ID_PATTERN

REPLAY_ID = "019ded47-d100-7c4e-9a51-3f9c2b7d1e60"  # the example of the documentation
# One in about twelve days is surely a mistake; more than a million a second are no limit.
Rate = Annotated[float, Strict(), Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
ReplayId = Annotated[str, Path(description="id of the replay", examples=[REPLAY_ID])]

_EXAMPLE: dict[str, Any] = {
    "id": REPLAY_ID, "sink": "crm", "state": "running", "count": 1200, "taken": 640, "done": 128, "failed": 0,
    "rate_per_second": 50.0, "filter": {"type": ["bounce"], "after": ["2026-05-03T10:00:00Z"]}, "deliveries": None,
    "error": None, "created_at": "2026-05-10T08:00:00.123456Z", "finished_at": None,
}  # fmt: skip


class ReplayRequest(BaseModel):
    """What to give a sink again: events by `filter`, or its dead `deliveries`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"sink": "crm", "filter": {"type": "bounce", "after": "2026-05-03T10:00:00Z"}, "dry_run": True}
        },
    )

    sink: str = Field(description="name of a configured sink", examples=["crm"])
    dry_run: StrictBool = Field(False, description="only count")
    rate_per_second: Rate | None = Field(
        None,
        description="most first tries a second; null: as fast as the sink takes them",
    )
    filter: EventSelection | None = Field(
        None, description="events by the filters of `GET /v1/events`, each one value or a list; `{}`: all of them"
    )
    deliveries: DeadSelection | None = Field(None, description="the sink's dead deliveries")

    @model_validator(mode="after")
    def _one_selection(self) -> Self:
        if (self.filter is None) == (self.deliveries is None):
            raise PydanticCustomError("one_selection", "give exactly one of `filter` and `deliveries`")
        return self

    @property
    def selection(self) -> Selection:
        found = self.filter if self.filter is not None else self.deliveries
        assert found is not None
        return found


class DryRun(BaseModel):
    """What a replay would do now."""

    dry_run: Literal[True]
    count: int


class ReplayModel(BaseModel):
    """Events or dead deliveries given to one sink again."""

    model_config = ConfigDict(title="Replay", json_schema_extra={"example": _EXAMPLE})

    id: str
    sink: str
    state: ReplayState
    count: int = Field(description="deliveries found when it was made")
    taken: int = Field(description="deliveries taken up so far")
    done: int = Field(description="of these, delivered; one that a later replay took up as well counts there")
    failed: int = Field(description="of these, dead or cancelled")
    rate_per_second: float | None
    filter: dict[str, Any] | None = Field(description="as asked for; null for a replay of deliveries")
    deliveries: dict[str, Any] | None = Field(description="as asked for; null for a replay of events")
    error: str | None = Field(description="why it failed")
    created_at: str = Field(json_schema_extra={"format": "date-time"})
    finished_at: str | None = Field(
        description="when nothing of it was left to be sent; a cancelled one may have some under way",
        json_schema_extra={"format": "date-time"},
    )


class ReplayList(BaseModel):
    """A page of replays."""

    data: list[ReplayModel]
    next_cursor: str | None
    has_more: bool


class ReplayQuery(Paging):
    """`GET /v1/replays`."""


_ANSWERS: dict[int | str, dict[str, Any]] = {200: {"model": ReplayModel}}


def replay_view(row: Row) -> dict[str, Any]:
    selection = orjson.loads(row.selection)
    return {
        "id": row.id, "sink": row.sink, "state": row.state, "count": row.count, "taken": row.taken, "done": row.done,
        "failed": row.failed, "rate_per_second": row.rate_per_second, "filter": selection.get("filter"),
        "deliveries": selection.get("deliveries"), "error": row.error, "created_at": rfc3339(row.created_at),
        "finished_at": None if row.finished_at is None else rfc3339(row.finished_at),
    }  # fmt: skip


def build_router(
    recipients: Mapping[str, Recipient], database: Database, keys: ApiKeys, look_again: Callable[[], None]
) -> APIRouter:
    """`look_again` tells this process's `Replays` that something changed; others see it within a few seconds."""
    router = APIRouter(prefix="/v1/replays", tags=["replays"], responses=PROBLEM_RESPONSES)
    _add_asking(router, recipients, database, keys, look_again)
    _add_watching(router, database, keys)
    _add_cancelling(router, database, keys, look_again)
    return router


def _add_asking(
    router: APIRouter,
    recipients: Mapping[str, Recipient],
    database: Database,
    keys: ApiKeys,
    look_again: Callable[[], None],
) -> None:
    @router.post(
        "",
        summary="Replay events or dead deliveries",
        description="Gives a sink again what it had, or what it never had: events by `filter`, of those that the sink's"
        " own webhooks and event types let through, or its dead `deliveries`. Each comes with the same `webhook-id` and"
        " `x-jethook-replay: true`, after everything more urgent. It survives restarts and waits for a paused sink."
        " What is stored or dies after this call is none of its business, and test events never are. With `dry_run`"
        " it is counted and nothing else happens.",
        status_code=202,
        response_model=None,
        dependencies=[Depends(keys.writer)],
        responses={
            200: {"model": DryRun, "description": "With `dry_run`: the count"},
            202: {
                "model": ReplayModel,
                "description": "It runs",
                "headers": {"Location": {"description": "where to watch it", "schema": {"type": "string"}}},
            },
        },
    )
    def create_replay(body: ReplayRequest) -> Response:
        recipient = recipients.get(body.sink)
        if recipient is None:
            told = f"sink {body.sink[:63]!r} is not configured"
            raise Invalid(f"/sink: {told}", errors=[FieldError("/sink", told, "sink_not_found")])
        now = utc_now()
        with database.reading() as connection:
            found, last_seq = service.count(connection, recipient, body.selection, now)
        if body.dry_run:
            return _json({"dry_run": True, "count": found})
        values = service.new_replay(
            recipient.name, body.selection, body.rate_per_second, found=found, last_seq=last_seq, now=now
        )
        row = database.write(lambda c: queries.insert(c, values))
        look_again()
        return _json(replay_view(row), 202, {"location": f"/v1/replays/{row.id}"})


def _add_watching(router: APIRouter, database: Database, keys: ApiKeys) -> None:
    options: dict[str, Any] = {"dependencies": [Depends(keys.reader)]}

    @router.get(
        "",
        summary="List replays",
        description="Replays, the newest first. Walk the list by giving `next_cursor` back as `cursor`, or by following"
        " the `Link` header.",
        responses={
            200: {
                "model": ReplayList,
                "headers": {"Link": {"description": 'the next page: `<…>; rel="next"`', "schema": {"type": "string"}}},
            }
        },
        **options,
    )
    def list_replays(query: Annotated[ReplayQuery, Query()]) -> Response:
        scope = scope_of("replays", query.normalised(), query.order)
        beyond = None if query.cursor is None else str(decode_cursor(query.cursor, scope, (str,))[0])
        with database.reading() as connection:
            rows = queries.page(connection, beyond=beyond, descending=query.order == "desc", limit=query.limit + 1)
        shown = rows[: query.limit]
        cursor = encode_cursor(scope, (shown[-1].id,)) if len(rows) > query.limit else None
        answer = {"data": [replay_view(row) for row in shown], "next_cursor": cursor, "has_more": cursor is not None}
        return _json(answer, headers=_link(query, cursor))

    @router.get(
        "/{id}",
        summary="Get a replay",
        description="One replay and how far it is. While it runs, `done` and `failed` may be some seconds old.",
        responses=_ANSWERS | problem_responses(404),
        **options,
    )
    def get_replay(id: ReplayId) -> Response:
        _check_id(id)
        with database.reading() as connection:
            return _json(replay_view(queries.get(connection, id)))


def _add_cancelling(router: APIRouter, database: Database, keys: ApiKeys, look_again: Callable[[], None]) -> None:
    @router.post(
        "/{id}/cancel",
        summary="Cancel a replay",
        description="It takes up nothing more, and what it did not deliver yet becomes what it was: delivered where an"
        " attempt succeeded once, dead where all failed, cancelled where none was made. What is being sent at this"
        " moment is finished, and what was owed before the replay stays owed. A cancelled replay stays so; one that"
        " has ended is a 409.",
        dependencies=[Depends(keys.writer)],
        responses=_ANSWERS | problem_responses(404, 409),
    )
    def cancel_replay(id: ReplayId) -> Response:
        _check_id(id)
        row = database.write(lambda c: queries.cancel(c, id, utc_now()))
        look_again()
        return _json(replay_view(row))


def _check_id(replay_id: str) -> None:
    """Raises ReplayNotFound for what no id looks like, and what PostgreSQL would refuse."""
    if not EVENT_ID_PATTERN.fullmatch(replay_id):
        raise ReplayNotFound("there is no replay with this id")


def _link(query: ReplayQuery, cursor: str | None) -> dict[str, str]:
    if cursor is None:
        return {}
    kept = query.model_dump(include={"order", "limit"}, exclude_unset=True)
    return {"link": f'</v1/replays?{urlencode({**kept, "cursor": cursor}, quote_via=quote)}>; rel="next"'}


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, dict(headers or {}), "application/json")
