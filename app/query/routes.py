"""Reading back over REST: events, deliveries and quarantine.

Routes are plain functions, which FastAPI runs on its worker threads: reading blocks. Answers are written by orjson
straight from rows, so the models named here document them and cost nothing.
"""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from app.db import Database
from app.errors import DeliveryNotFound, EventNotFound, MessageNotFound, QuarantineNotFound
from app.filters import DeliveryQuery, EventQuery, Paging, QuarantineQuery
from app.http import PROBLEM_RESPONSES, ApiKeys, problem_responses
from app.query import queries
from app.query.cursor import Position, decode_cursor, encode_cursor, scope_of
from app.query.messages import MAX_EVENTS, MessageQuery, find_message
from app.query.pages import DEFAULT_SECONDS, Page, Row
from app.query.shapes import (
    DeliveryDetailList,
    DeliveryDetailModel,
    DeliveryList,
    EventList,
    EventModel,
    MessageModel,
    QuarantineList,
    QuarantineModel,
    quarantine_view,
)
from app.views import EVENT_ID, EVENT_ID_PATTERN, delivery_view, dump, event_view, parse_delivery_id

EventId = Annotated[str, Path(description="id of the event", examples=[EVENT_ID])]
MessageId = Annotated[str, Path(description="Mailjet's MessageID or GUID", examples=["19421777835146490"])]
DeliveryId = Annotated[str, Path(description="`{event_id}.{sink}`", examples=[f"{EVENT_ID}.crm"])]
QuarantineId = Annotated[str, Path(description="id of the entry", examples=["00000000-0000-8c4e-9a51-3f9c2b7d1e60"])]

PAGING = (
    "Walk a list by giving `next_cursor` back as `cursor`, or by following the `Link` header; what arrives meanwhile"
    " never makes a walk miss or repeat what was there. Where a rare filter has no index, a page ends after"
    " `JETHOOK_PAGE_SECONDS` with what was found: it can hold fewer rows than `limit`, or none, and still have more. A"
    " parameter that is not listed is refused."
)


def build_router(database: Database, keys: ApiKeys, page_seconds: float = DEFAULT_SECONDS) -> APIRouter:
    """The reading part of `/v1`; deleting from quarantine asks for a key that may write."""
    router = APIRouter(prefix="/v1", responses=PROBLEM_RESPONSES)
    _add_events(router, database, keys, page_seconds)
    _add_messages(router, database, keys)
    _add_deliveries(router, database, keys, page_seconds)
    _add_quarantine(router, database, keys, page_seconds)
    return router


def _add_events(router: APIRouter, database: Database, keys: ApiKeys, page_seconds: float) -> None:
    options: dict[str, Any] = {"tags": ["events"], "dependencies": [Depends(keys.reader)]}

    @router.get(
        "/events",
        summary="List events",
        description=f"Events by the time they happened, the newest first. {PAGING}",
        responses=_a_list(EventList),
        **options,
    )
    def list_events(request: Request, query: Annotated[EventQuery, Query()]) -> Response:
        position, scope = _start(query, "events", (str,))
        with database.reading() as connection:
            page = queries.list_events(connection, query, position, page_seconds)
        raw = bool(query.include)
        return _list(request, page, scope, lambda row: event_view(row, include_raw=raw))

    @router.get(
        "/events/{id}",
        summary="Get an event",
        description="One event, with what Mailjet sent in `raw`.",
        responses=_one(EventModel),
        **options,
    )
    def get_event(id: EventId) -> Response:
        with database.reading() as connection:
            row = queries.find_event(connection, id) if EVENT_ID_PATTERN.fullmatch(id) else None
        if row is None:
            raise EventNotFound("there is no event with this id")
        return _json(event_view(row, include_raw=True))

    @router.get(
        "/events/{id}/deliveries",
        summary="List an event's deliveries",
        description="Every delivery of one event, by sink, with its attempts. It is always one page.",
        responses=_one(DeliveryDetailList),
        **options,
    )
    def list_event_deliveries(id: EventId) -> Response:
        with database.reading() as connection:
            if not (EVENT_ID_PATTERN.fullmatch(id) and queries.has_event(connection, id)):
                raise EventNotFound("there is no event with this id")
            rows = queries.list_deliveries_of(connection, id)
            attempts = queries.list_attempts(connection, id)
        data = [delivery_view(row, attempts.get(row["sink"], ())) for row in rows]
        return _json({"data": data, "next_cursor": None, "has_more": False})


def _add_messages(router: APIRouter, database: Database, keys: ApiKeys) -> None:
    @router.get(
        "/messages/{message_id}",
        summary="Get a message's timeline",
        description="What became of one message, found by Mailjet's MessageID or by its GUID. The events come in time"
        f" order, the first {MAX_EVENTS} of them; where `events_truncated` is true, read on at `/v1/events` with"
        " `message_id`. Counts, times and state are of all events. An arrival that several webhooks have stored counts"
        " once. The state is the strongest that is known, whatever order the events came in: complained, unsubscribed,"
        " then a lasting failure (bounced, rejected), clicked, opened, delivered, then a passing failure, deferred.",
        responses=_one(MessageModel),
        tags=["messages"],
        dependencies=[Depends(keys.reader)],
    )
    def get_message(message_id: MessageId, query: Annotated[MessageQuery, Query()]) -> Response:
        with database.reading() as connection:
            message = find_message(connection, message_id, query)
        if message is None:
            raise MessageNotFound("no event of such a message is stored")
        return _json(message)


def _add_deliveries(router: APIRouter, database: Database, keys: ApiKeys, page_seconds: float) -> None:
    options: dict[str, Any] = {"tags": ["deliveries"], "dependencies": [Depends(keys.reader)]}

    @router.get(
        "/deliveries",
        summary="List deliveries",
        description=f"Deliveries by the time of their event, the newest first; without their attempts. {PAGING}",
        responses=_a_list(DeliveryList),
        **options,
    )
    def list_deliveries(request: Request, query: Annotated[DeliveryQuery, Query()]) -> Response:
        position, scope = _start(query, "deliveries", (str, str))
        with database.reading() as connection:
            page = queries.list_deliveries(connection, query, position, page_seconds)
        return _list(request, page, scope, delivery_view)

    @router.get(
        "/deliveries/{id}",
        summary="Get a delivery",
        description="One delivery with its attempts, the first one first.",
        responses=_one(DeliveryDetailModel),
        **options,
    )
    def get_delivery(id: DeliveryId) -> Response:
        event_id, sink = parse_delivery_id(id)
        with database.reading() as connection:
            row = queries.find_delivery(connection, event_id, sink)
            attempts = queries.list_attempts(connection, event_id, sink)
        if row is None:
            raise DeliveryNotFound("there is no delivery with this id")
        return _json(delivery_view(row, attempts.get(sink, ())))


def _add_quarantine(router: APIRouter, database: Database, keys: ApiKeys, page_seconds: float) -> None:
    reading: dict[str, Any] = {"tags": ["quarantine"], "dependencies": [Depends(keys.reader)]}
    writing: dict[str, Any] = {"tags": ["quarantine"], "dependencies": [Depends(keys.writer)]}

    @router.get(
        "/quarantine",
        summary="List quarantine",
        description="What came with valid credentials and could not be read as an event, the newest first. Bodies"
        f" above {queries.MAX_LISTED_BODY_BYTES} bytes are null here; ask for the single entry. {PAGING}",
        responses=_a_list(QuarantineList),
        **reading,
    )
    def list_quarantine(request: Request, query: Annotated[QuarantineQuery, Query()]) -> Response:
        position, scope = _start(query, "quarantine", (int, str))
        with database.reading() as connection:
            page = queries.list_quarantine(connection, query, position, page_seconds)
        return _list(request, page, scope, quarantine_view)

    @router.get(
        "/quarantine/{id}",
        summary="Get a quarantine entry",
        description="One entry with its whole body: as text where it is UTF-8 without NUL, in base64 otherwise.",
        responses=_one(QuarantineModel),
        **reading,
    )
    def get_quarantined(id: QuarantineId) -> Response:
        with database.reading() as connection:
            row = queries.find_quarantined(connection, id) if EVENT_ID_PATTERN.fullmatch(id) else None
        if row is None:
            raise QuarantineNotFound("there is no quarantine entry with this id")
        return _json(quarantine_view(row))

    @router.delete(
        "/quarantine/{id}",
        summary="Delete a quarantine entry",
        description="Removes one entry for good.",
        status_code=204,
        responses=problem_responses(404),
        **writing,
    )
    def delete_quarantined(id: QuarantineId) -> Response:
        found = EVENT_ID_PATTERN.fullmatch(id) and database.write(
            lambda connection: queries.delete_quarantined(connection, id)
        )
        if not found:
            raise QuarantineNotFound("there is no quarantine entry with this id")
        return Response(status_code=204)


# --- lists -----------------------------------------------------------------------------------------------------------


def _start(query: Paging, name: str, kinds: tuple[type[str] | type[int], ...]) -> tuple[Position | None, bytes]:
    """(where to go on, the scope of this walk). Raises BadCursor."""
    scope = scope_of(name, query.normalised(), query.order)
    return (None if query.cursor is None else decode_cursor(query.cursor, scope, kinds)), scope


def _list(
    request: Request,
    page: Page,
    scope: bytes,
    view: Callable[[Row], dict[str, Any]],
) -> Response:
    cursor = encode_cursor(scope, page.beyond) if page.beyond is not None else None
    response = _json({"data": [view(row) for row in page.rows], "next_cursor": cursor, "has_more": page.has_more})
    if cursor is not None:
        response.headers["link"] = f'<{next_url(request, cursor)}>; rel="next"'
    return response


def next_url(request: Request, cursor: str) -> str:
    """The same question with the next cursor (RFC 8288), without scheme and host: a proxy may have changed both."""
    kept = [(k, v) for k, v in parse_qsl(request.url.query, keep_blank_values=True) if k != "cursor"]
    return f"{quote(request.url.path)}?{urlencode([*kept, ('cursor', cursor)])}"


def _json(value: Any) -> Response:
    return Response(dump(value), media_type="application/json")


def _one(model: type) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model}} | problem_responses(404)


def _a_list(model: type) -> dict[int | str, dict[str, Any]]:
    link = {"description": 'the next page: `<…>; rel="next"`', "schema": {"type": "string"}}
    return {200: {"model": model, "headers": {"Link": link}}}
