"""Suppressions over REST: list, check, add, lift."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from app.clock import rfc3339, to_micros, utc_now
from app.db import Database
from app.http import PROBLEM_RESPONSES, ApiKeys
from app.models import SuppressionScope
from app.query.cursor import decode_cursor, encode_cursor, scope_of
from app.query.recipients import Row, entry_view, suppression_view, suppressions_by_email, suppressions_of
from app.query.routes import PAGING, next_url
from app.query.suppression_lists import SuppressionQuery, list_suppressions
from app.query.suppression_shapes import (
    MAX_CHECKED,
    Check,
    CheckList,
    Lift,
    LiftResult,
    NewSuppression,
    SuppressionList,
    SuppressionModel,
)
from app.suppressions import service
from app.suppressions.keeping import Keeper
from app.views import dump

Digest = Callable[[str], str]

_LINK = {"description": 'the next page: `<…>; rel="next"`', "schema": {"type": "string"}}


def build_router(
    database: Database, keys: ApiKeys, keeper: Keeper, digest: Digest, look_again: Callable[[], None]
) -> APIRouter:
    """`digest` finds who was erased and stays suppressed; `look_again` tells the relay that news are due."""
    router = APIRouter(prefix="/v1/suppressions", tags=["suppressions"], responses=PROBLEM_RESPONSES)
    _add_reading(router, database, keys, digest)
    _add_changing(router, database, keys, keeper, digest, look_again)
    return router


def _add_reading(router: APIRouter, database: Database, keys: ApiKeys, digest: Digest) -> None:
    options: dict[str, Any] = {"dependencies": [Depends(keys.reader)]}

    @router.get(
        "",
        summary="List suppressions",
        description=f"What is in force, the latest first: one row for each reason, and list, of an address. {PAGING}",
        responses={200: {"model": SuppressionList, "headers": {"Link": _LINK}}},
        **options,
    )
    def list_all(request: Request, query: Annotated[SuppressionQuery, Query()]) -> Response:
        scope = scope_of("suppressions", query.normalised(), query.order)
        position = None if query.cursor is None else decode_cursor(query.cursor, scope, (int, str))
        with database.reading() as connection:
            rows, has_more = list_suppressions(connection, query, position)
        cursor = encode_cursor(scope, (to_micros(rows[-1]["since"]), rows[-1]["id"])) if has_more else None
        data = [suppression_view({**row}) for row in rows]
        answer = _json({"data": data, "next_cursor": cursor, "has_more": has_more})
        if cursor is not None:
            answer.headers["link"] = f'<{next_url(request, cursor)}>; rel="next"'
        return answer

    @router.post(
        "/check",
        summary="Check addresses",
        description=f"May these be mailed? Up to {MAX_CHECKED} addresses, one row each in the order asked, repetitions"
        " too. What concerns the address always counts, an unsubscribe from a list only for the `list_id` that is"
        " given; `suppressions` shows the others as well.",
        responses={200: {"model": CheckList}},
        **options,
    )
    def check(body: Check) -> Response:
        with database.reading() as connection:
            found = suppressions_by_email(connection, set(body.emails), digest)
        return _json({"data": [_checked(email, found.get(email, []), body.list_id) for email in body.emails]})


def _add_changing(
    router: APIRouter,
    database: Database,
    keys: ApiKeys,
    keeper: Keeper,
    digest: Digest,
    look_again: Callable[[], None],
) -> None:
    options: dict[str, Any] = {"dependencies": [Depends(keys.writer)]}

    @router.post(
        "",
        summary="Suppress an address",
        description="By hand, with the reason `manual`: the address, or with `list_id` only what goes to that list. One"
        " that is there already stays as it is and is answered with 200.",
        status_code=201,
        response_model=None,
        responses={
            200: {"model": SuppressionModel, "description": "It was there already"},
            201: {"model": SuppressionModel, "description": "It is new"},
        },
        **options,
    )
    def add(body: NewSuppression) -> Response:
        place, entry, is_new = database.write(lambda c: service.add(
            c, keeper, email=body.email, list_id=body.list_id, comment=body.comment, now=utc_now()
        ))  # fmt: skip
        look_again()
        return _json(entry_view(place, entry), 201 if is_new else 200)

    @router.post(
        "/lift",
        summary="Lift suppressions",
        description="Ends what is in force for an address: all of it, or what has this `scope`, `list_id` or `reason`."
        " What happened until now counts no more, also where it is told late; what happens from now on suppresses"
        " again. Where nothing is in force `lifted` is empty.",
        responses={200: {"model": LiftResult}},
        **options,
    )
    def lift(body: Lift) -> Response:
        scope = body.scope or (None if body.list_id is None else SuppressionScope.LIST)
        ended = database.write(lambda c: service.lift(
            c, keeper, email=body.email, digest=digest, comment=body.comment, now=utc_now(), scope=scope,
            list_id=body.list_id, reason=body.reason,
        ))  # fmt: skip
        look_again()
        with database.reading() as connection:
            left = suppressions_of(connection, [body.email], digest)
        views = [entry_view(place, entry) for place, entry in ended.items()]
        return _json({"email": body.email, "lifted": views, "suppressions": [suppression_view(row) for row in left]})


def _checked(email: str, rows: list[Row], list_id: str | None) -> dict[str, Any]:
    counting = [row for row in rows if row["list_id"] is None or row["list_id"] == list_id]
    return {
        "email": email,
        "suppressed": bool(counting),
        "reason": counting[0]["reason"] if counting else None,
        "suppressions": [_in_short(row) for row in rows],
    }


def _in_short(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("reason", "scope", "list_id")
    return {name: row[name] for name in names} | {"since": rfc3339(row["since"])}


def _json(value: Any, status: int = 200) -> Response:
    return Response(dump(value), status, media_type="application/json")
