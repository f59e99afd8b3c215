"""One address over REST."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from app.db import Database
from app.http import PROBLEM_RESPONSES, ApiKeys
from app.query.recipients import RecipientQuery, find_recipient
from app.query.suppression_shapes import RecipientModel
from app.views import dump

Email = Annotated[str, Path(description="the address; its domain in any case", examples=["a@example.com"])]


def build_router(database: Database, keys: ApiKeys, digest: Callable[[str], str]) -> APIRouter:
    """`digest` finds who was erased and stays suppressed."""
    router = APIRouter(prefix="/v1/recipients", tags=["recipients"], responses=PROBLEM_RESPONSES)

    @router.get(
        "/{email:address}",
        summary="Get a recipient",
        description="What happened to one address, the latest 50 events, and whether it is suppressed, why and by which"
        " event. `suppressed` is about the address; an unsubscribe from a list stands in `suppressions` alone. An"
        " arrival that several webhooks have stored counts once. An address that was never seen is `known` false.",
        responses={200: {"model": RecipientModel}},
        dependencies=[Depends(keys.reader)],
    )
    def get_recipient(email: Email, query: Annotated[RecipientQuery, Query()]) -> Response:
        with database.reading() as connection:
            found = find_recipient(connection, email, query, digest)
        return Response(dump(found), media_type="application/json")

    return router
