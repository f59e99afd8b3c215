"""What a person does to a single delivery: try it now, or give it up."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from collections.abc import Callable
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Path, Response
from sqlalchemy.engine import Connection

from app.clock import utc_now
from app.db import Database
from app.delivery import queue
from app.http import PROBLEM_RESPONSES, ApiKeys, problem_responses
from app.models import Delivery
from app.views import EVENT_ID, delivery_view, dump, parse_delivery_id

_deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]

DeliveryId = Annotated[str, Path(description="`{event_id}.{sink}`", examples=[f"{EVENT_ID}.crm"])]


def build_router(database: Database, keys: ApiKeys, look_again: Callable[[], None]) -> APIRouter:
    """`look_again` tells this process's worker that something may be due, and rings for the others."""
    router = APIRouter(
        prefix="/v1/deliveries",
        tags=["deliveries"],
        dependencies=[Depends(keys.writer)],
        responses=PROBLEM_RESPONSES | problem_responses(404, 409),
    )

    @router.post(
        "/{id}/retry",
        summary="Try a delivery now",
        description="Makes it due at once with a fresh schedule, whatever its state; attempt numbers go on. One that"
        " is being sent at this moment is left to it. Answers the delivery.",
    )
    def retry_delivery(id: DeliveryId) -> Response:
        answer = _change(database, id, queue.retry)
        look_again()
        return answer

    @router.post(
        "/{id}/cancel",
        summary="Give a delivery up",
        description="Ends a pending or dead delivery; a delivered one is a 409. Answers the delivery.",
    )
    def cancel_delivery(id: DeliveryId) -> Response:
        return _change(database, id, queue.cancel)

    return router


def _change(database: Database, id: str, change: Callable[..., None]) -> Response:
    event_id, sink = parse_delivery_id(id)

    def work(connection: Connection) -> dict[str, Any]:
        change(connection, event_id, sink, utc_now())
        mine = sa.select(_deliveries).where(_deliveries.c.event_id == event_id, _deliveries.c.sink == sink)
        return delivery_view({**connection.execute(mine).mappings().one()})

    return Response(dump(database.write(work)), media_type="application/json")
