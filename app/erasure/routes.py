"""Erasure over REST: erase a person; the receipts."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import orjson
from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.clock import rfc3339
from app.db import Database
from app.erasure import queries
from app.erasure.queries import Row
from app.erasure.service import Erasures
from app.errors import ErasureNotFound, FieldError, Invalid
from app.filters import Filters, Paging
from app.http import PROBLEM_RESPONSES, ApiKeys, problem_responses
from app.models import ErasureState
from app.query.cursor import decode_cursor, encode_cursor, scope_of
from app.query.suppression_shapes import MAX_TOLD_CHARS
from app.views import EVENT_ID_PATTERN, clean

WAIT_SECONDS = 20.0  # then the answer is 202, and it goes on
ERASURE_ID = "019ded47-d100-7c4e-9a51-3f9c2b7d1e60"  # the example of the documentation

_EXAMPLE: dict[str, Any] = {
    "id": ERASURE_ID, "state": "done", "email_hash": "kJ5v0Wq2Zr8uXh1nB3cT9yLdE7fGmA4sPoIiKjHgFdQ",
    "folded": False, "keep_suppression": False, "requested_at": "2026-05-10T08:00:00.123456Z",
    "erased_at": "2026-05-10T08:00:00.523456Z",
    "counts": {"events": 12, "deliveries": 24, "attempts": 3, "deliveries_cancelled": 1, "quarantine": 0},
}  # fmt: skip


class ErasureModel(BaseModel):
    """The receipt of an erasure. It tells nothing of whom."""

    model_config = ConfigDict(title="Erasure", json_schema_extra={"example": _EXAMPLE})

    id: str
    state: ErasureState
    email_hash: str = Field(description="keyed: only this installation can make it of an address")
    folded: bool
    keep_suppression: bool
    requested_at: str = Field(json_schema_extra={"format": "date-time"})
    erased_at: str | None = Field(json_schema_extra={"format": "date-time"})
    counts: dict[str, int] = Field(
        description="rows erased by table, and `deliveries_cancelled`, which of the deliveries were still pending"
    )


class ErasureList(BaseModel):
    """A page of erasures."""

    data: list[ErasureModel]
    next_cursor: str | None
    has_more: bool


_ONE: dict[int | str, dict[str, Any]] = {200: {"model": ErasureModel}}


class ErasureQuery(Paging):
    """`GET /v1/erasures`."""


class HowToErase(Filters):
    """`DELETE /v1/recipients/{email}`."""

    folded: bool = Field(False, description="also addresses that differ only in the case of what precedes the `@`")
    keep_suppression: bool = Field(False, description="the address stays suppressed, by a keyed hash of it")


def erasure_view(row: Row) -> dict[str, Any]:
    names = ("id", "state", "email_hash", "folded", "keep_suppression")
    tables = dict.fromkeys(("events", "deliveries", "attempts", queries.CANCELLED, "quarantine", "replays"), 0)
    return {name: getattr(row, name) for name in names} | {
        "requested_at": rfc3339(row.requested_at),
        "erased_at": None if row.erased_at is None else rfc3339(row.erased_at),
        "counts": tables | orjson.loads(row.counts),
    }


def build_router(erasures: Erasures, database: Database, keys: ApiKeys) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["erasure"], responses=PROBLEM_RESPONSES)
    _add_erasing(router, erasures, keys)
    _add_receipts(router, database, keys)
    return router


def _add_erasing(router: APIRouter, erasures: Erasures, keys: ApiKeys) -> None:
    location = {"Location": {"description": "where to watch it", "schema": {"type": "string"}}}

    @router.delete(
        "/recipients/{email:address}",
        summary="Erase a recipient",
        description="Deletes everything that tells of this address: its events with their deliveries and attempts,"
        " entries of quarantine that name it, and the address itself wherever else it is kept. The domain counts in any"
        " case, what precedes the `@` as it is written unless `folded` says otherwise. The answer is the receipt, which"
        f" is kept; where it takes longer than {WAIT_SECONDS:g} seconds it is a 202 and goes on, over restarts too."
        " What still was owed to sinks is cancelled; what was being sent at that moment may still arrive. What Mailjet"
        " posts about the address later, a late repeat as well, is stored anew.",
        dependencies=[Depends(keys.writer)],
        responses={
            200: {"model": ErasureModel, "description": "It is done"},
            202: {"model": ErasureModel, "description": "It goes on", "headers": location},
        },
        response_model=None,
    )
    async def erase_recipient(
        email: Annotated[str, Path(description="the address", examples=["a@example.com"])],
        query: Annotated[HowToErase, Query()],
    ) -> Response:
        _check_email(email)
        erasure_id = await erasures.start(email, folded=query.folded, keep_suppression=query.keep_suppression)
        row = await erasures.wait(erasure_id, WAIT_SECONDS)
        done = row.state == ErasureState.DONE
        return _json(erasure_view(row), 200 if done else 202, {"location": f"/v1/erasures/{erasure_id}"})


def _add_receipts(router: APIRouter, database: Database, keys: ApiKeys) -> None:
    options: dict[str, Any] = {"dependencies": [Depends(keys.reader)]}
    headers = {"Link": {"description": 'the next page: `<…>; rel="next"`', "schema": {"type": "string"}}}

    @router.get(
        "/erasures",
        summary="List erasures",
        description="The receipts of all erasures, the newest first.",
        responses={200: {"model": ErasureList, "headers": headers}},
        **options,
    )
    def list_erasures(query: Annotated[ErasureQuery, Query()]) -> Response:
        scope = scope_of("erasures", query.normalised(), query.order)
        beyond = None if query.cursor is None else str(decode_cursor(query.cursor, scope, (str,))[0])
        with database.reading() as connection:
            rows = queries.page(connection, beyond=beyond, descending=query.order == "desc", limit=query.limit + 1)
        shown = rows[: query.limit]
        cursor = encode_cursor(scope, (shown[-1].id,)) if len(rows) > query.limit else None
        answer = {"data": [erasure_view(row) for row in shown], "next_cursor": cursor, "has_more": cursor is not None}
        return _json(answer, headers=_link(query, cursor))

    @router.get(
        "/erasures/{id}",
        summary="Get an erasure",
        description="One receipt.",
        responses=_ONE | problem_responses(404),
        **options,
    )
    def get_erasure(id: Annotated[str, Path(description="id of the erasure", examples=[ERASURE_ID])]) -> Response:
        if not EVENT_ID_PATTERN.fullmatch(id):
            raise ErasureNotFound("there is no erasure with this id")
        with database.reading() as connection:
            return _json(erasure_view(queries.get(connection, id)))


def _check_email(email: str) -> None:
    """Raises Invalid for what no event can have as its address; Mailjet tells of some with a line break in them."""
    if not email.strip() or clean(email) != email:
        told = "must be an address"
    elif len(email) > MAX_TOLD_CHARS:
        told = f"must have at most {MAX_TOLD_CHARS} characters"
    else:
        return
    raise Invalid(f"email: {told}", errors=[FieldError("email", told, "email")])


def _link(query: ErasureQuery, cursor: str | None) -> dict[str, str]:
    if cursor is None:
        return {}
    kept = query.model_dump(include={"order", "limit"}, exclude_unset=True)
    return {"link": f'</v1/erasures?{urlencode({**kept, "cursor": cursor}, quote_via=quote)}>; rel="next"'}


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers or {}, "application/json")
