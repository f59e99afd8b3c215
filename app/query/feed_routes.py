"""`GET /v1/feed` and `GET /v1/stream`."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from app.filters import FeedQuery, StreamQuery
from app.http import PROBLEM_RESPONSES, ApiKeys
from app.query.feed import Ask, Feed, FeedPage, parse_ask
from app.query.routes import next_url
from app.query.shapes import FeedList
from app.query.stream import HEARTBEAT_SECONDS, PAGE_EVENTS, EventStream
from app.views import EVENT_ID

FEED = (
    "For programs that poll: every event once, and none skipped, however many replicas write. Keep `next_cursor` and"
    " ask with it again, at once while `has_more` is true; `wait_seconds` holds the answer back until there is an"
    " event. The order is one and the same for all, but not that of the events' own times. A page can hold fewer events"
    " than `limit`. Cursors keep their meaning over restarts, on all replicas, and between feed and stream."
)
STREAM = (
    "The feed as server-sent events: `id` is the feed's cursor, `event` the type, `data` the event as JSON on one line."
    " Reconnect with `Last-Event-ID` and nothing is missed or repeated. Without a cursor the stream starts at the"
    " oldest event kept, with `cursor=latest` at now."
    f" After {HEARTBEAT_SECONDS:.0f} seconds without events a comment tells that it lives, with an `id` to resume from."
    " It ends with an event `error` when the service stops; a client that does not read is cut off."
)
_EXAMPLE = f"""id: AVt7mN2x
event: open
data: {{"id": "{EVENT_ID}", "webhook": "orders", "type": "open", "email": "a@example.com"}}

"""
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="the last `id` read; it goes before `cursor`")
]


def build_router(feed: Feed, keys: ApiKeys, on_stream_end: Callable[[str], None] = lambda reason: None) -> APIRouter:
    router = APIRouter(prefix="/v1", responses=PROBLEM_RESPONSES)
    options: dict[str, Any] = {"tags": ["feed"], "dependencies": [Depends(keys.reader)]}
    link = {"description": 'what follows: `<…>; rel="next"`', "schema": {"type": "string"}}

    @router.get(
        "/feed",
        summary="Follow the events",
        description=FEED,
        responses={200: {"model": FeedList, "headers": {"Link": link}}},
        **options,
    )
    async def read_feed(request: Request, query: Annotated[FeedQuery, Query()]) -> Response:
        ask = parse_ask(query, query.cursor, query.limit)
        page = await feed.first(ask)
        if query.wait_seconds and not page.events and not page.has_more and not feed.closed:
            with feed.client("poll"):
                page = await feed.more(ask, page, query.wait_seconds, request.is_disconnected)
        return _answer(request, ask, page)

    @router.get(
        "/stream",
        summary="Stream the events",
        description=STREAM,
        response_class=Response,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE}}}},
        **options,
    )
    async def stream_events(query: Annotated[StreamQuery, Query()], last_event_id: LastEventId = None) -> Response:
        ask = parse_ask(query, last_event_id or query.cursor, PAGE_EVENTS)
        return EventStream(feed, ask, on_end=on_stream_end)

    return router


def _answer(request: Request, ask: Ask, page: FeedPage) -> Response:
    cursor = ask.cursor(page.position)
    content = b'{"data":[%b],"next_cursor":"%b","has_more":%b}' % (
        b",".join(event.content for event in page.events),
        cursor.encode(),
        b"true" if page.has_more else b"false",
    )
    link = f'<{next_url(request, cursor)}>; rel="next"'
    return Response(content, media_type="application/json", headers={"link": link})
