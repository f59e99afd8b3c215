"""Events: search and live tail by the filters of REST, and one event with all that became of it."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

import orjson
from fastapi import APIRouter, Depends, Header, Request, Response
from sqlalchemy.engine import Connection

from app.clock import utc_now
from app.dashboard.desk import Desk
from app.dashboard.filters import address
from app.dashboard.forms import given_fields, parse_fields, whole_times
from app.dashboard.live import LiveStream
from app.dashboard.pages import redirect
from app.dashboard.sessions import Session
from app.delivery import queue
from app.errors import EventNotFound, Invalid
from app.filters import EventQuery, StreamQuery
from app.mailjet.payloads import MalformedPayload, decode
from app.query import queries
from app.query.cursor import decode_cursor, encode_cursor, scope_of
from app.query.feed import LATEST, parse_ask
from app.query.pages import Page
from app.query.stream import PAGE_EVENTS
from app.settings import mask_url
from app.views import EVENT_ID_PATTERN, delivery_view, event_view, exact, parse_delivery_id

LIST = "/dashboard/events"
# Filters of REST that the form has a field for; of those, and of repeated values, an address can hold more.
FIELDS = frozenset({
    "email", "type", "message_id", "custom_id", "campaign_id", "after", "before", "webhook", "outcome", "email_domain",
    "custom_campaign", "message_guid", "contact_id", "list_id", "permanent", "automated", "test", "order",
})  # fmt: skip


def add_routes(router: APIRouter, desk: Desk) -> None:
    _add_reading(router, desk)
    _add_acting(router, desk)


def _add_reading(router: APIRouter, desk: Desk) -> None:
    viewer = Depends(desk.access.viewer)

    @router.get(LIST)
    def list_events(request: Request, session: Annotated[Session, viewer]) -> Response:
        pairs = request.query_params.multi_items()
        if (whole := whole_times(pairs)) != pairs:  # the address holds what REST takes, so that it can be shared
            return redirect(f"{LIST}?{urlencode(whole)}")
        try:
            query, fault = parse_fields(EventQuery, pairs), None
        except Invalid as error:
            query, fault = EventQuery(), error
        page, next_cursor = _page_of(desk, query) if fault is None else (Page((), None), None)
        return desk.pages.answer(
            request, "events.html", session, status=200 if fault is None else 422, fault=fault,
            given=given_fields(request), events=[event_view(row, include_raw=False) for row in page.rows],
            **_links(request, query, next_cursor), **_filters(given_fields(request)),
            webhooks=list(desk.settings.effective_webhooks),
        )  # fmt: skip

    @router.get("/dashboard/stream", dependencies=[viewer])
    async def stream(
        request: Request, last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None
    ) -> Response:
        query = parse_fields(StreamQuery, request.query_params.multi_items())
        ask = parse_ask(query, last_event_id or query.cursor or LATEST, PAGE_EVENTS)
        return LiveStream(desk.feed, ask, rows, on_end=desk.on_stream_end)

    def rows(events: Sequence[dict[str, Any]]) -> str:
        return desk.pages.fragment("event_rows.html", events=events)

    @router.get(LIST + "/{id}")
    def show_event(request: Request, session: Annotated[Session, viewer], id: str) -> Response:
        with desk.database.reading() as connection:
            row = queries.find_event(connection, id) if EVENT_ID_PATTERN.fullmatch(id) else None
            if row is None:
                raise EventNotFound("there is no event with this id")
            deliveries = _deliveries_of(connection, id)
        urls = {name: mask_url(sink.url) for name, sink in desk.settings.sinks.items()}
        return desk.pages.answer(
            request, "event.html", session, event=event_view(row, include_raw=False), raw=readable(row["raw"]),
            deliveries=deliveries, sinks=desk.settings.sinks, urls=urls,
        )  # fmt: skip


def _add_acting(router: APIRouter, desk: Desk) -> None:
    actor = Depends(desk.access.actor)

    @router.post("/dashboard/deliveries/{id}/retry", dependencies=[actor])
    def retry(id: str) -> Response:
        event_id, sink = parse_delivery_id(id)
        desk.database.write(lambda c: queue.retry(c, event_id, sink, utc_now()))
        desk.look_again()
        return redirect(f"{LIST}/{event_id}", f"The delivery to {sink} is due now.")

    @router.post("/dashboard/deliveries/{id}/cancel", dependencies=[actor])
    def cancel(id: str) -> Response:
        event_id, sink = parse_delivery_id(id)
        desk.database.write(lambda c: queue.cancel(c, event_id, sink, utc_now()))
        return redirect(f"{LIST}/{event_id}", f"The delivery to {sink} is given up.")


def _page_of(desk: Desk, query: EventQuery) -> tuple[Page, str | None]:
    """(a page, the cursor of the next one). The cursors are those of `GET /v1/events`."""
    scope = scope_of("events", query.normalised(), query.order)
    position = None if query.cursor is None else decode_cursor(query.cursor, scope, (str,))
    with desk.database.reading() as connection:
        page = queries.list_events(connection, query, position)
    return page, None if page.beyond is None else encode_cursor(scope, page.beyond)


def _filters(given: dict[str, list[str]]) -> dict[str, Any]:
    """`chips`: (name, value, the list without it); `kept`: what the form has no place for and must not forget."""
    pairs = [(name, value) for name, values in given.items() for value in dict.fromkeys(values)]
    kept = [(n, v) for n, v in pairs if n not in FIELDS or v != given[n][-1]]
    chips = [
        (name, value, address(LIST, **given | {name: [v for v in given[name] if v != value]})) for name, value in pairs
    ]
    return {"chips": chips, "kept": kept}


def _links(request: Request, query: EventQuery, next_cursor: str | None) -> dict[str, Any]:
    """`stream` is where new events come from: only for a list whose top is now."""
    given = given_fields(request)
    is_now = query.cursor is None and query.order == "desc" and not (query.before or query.received_before)
    asked = {name: value for name, value in given.items() if name not in ("order", "limit", "include")}
    following = address(LIST, **given, cursor=next_cursor) if next_cursor else None
    return {
        "stream": address("/dashboard/stream", **asked) if is_now else None,
        "following": following,
        "is_first": query.cursor is None,
        "start": address(LIST, **given),
    }


def _deliveries_of(connection: Connection, id: str) -> list[dict[str, Any]]:
    attempts = queries.list_attempts(connection, id)
    rows = queries.list_deliveries_of(connection, id)
    return [delivery_view(row, attempts.get(row["sink"], ())) for row in rows]


def readable(raw: str | None) -> str:
    """JSON text with line breaks, every digit kept; what cannot be read stays as it is."""
    if raw is None:
        return ""
    try:
        return orjson.dumps(decode(raw), default=exact, option=orjson.OPT_INDENT_2).decode()
    except (MalformedPayload, TypeError):
        return raw
