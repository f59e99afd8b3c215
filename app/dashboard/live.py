"""New events as they come, for pages: the feed's stream, sampled.

A page wants to show that something happens and the newest of it, not every event: frames come at most a few times a
second, each with counts by type and rows of the last few. A page that would fall behind skips to now and is told how
many it skipped. A stream ends after a while and the browser comes back, so that a session that is over ends there, too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson

from app.query.feed import Ask, Feed, FeedPage
from app.query.stream import EventStream, place_frame

PAGE_EVENTS = 1000  # read for one frame
ROWS = 12  # shown of one frame
PACE_SECONDS = 0.4
LIFE_SECONDS = 600.0

RenderRows = Callable[[Sequence[dict[str, Any]]], str]


class LiveStream(EventStream):
    """`ask` has no raw form; `render_rows` makes table rows of events of contract shape."""

    def __init__(
        self, feed: Feed, ask: Ask, render_rows: RenderRows, *, pace_seconds: float = PACE_SECONDS, **options: Any
    ) -> None:
        super().__init__(feed, replace(ask, limit=PAGE_EVENTS), **options)
        self._render_rows = render_rows
        self._pace_seconds = pace_seconds
        self._until = asyncio.get_running_loop().time() + LIFE_SECONDS
        self._skipped = 0

    def _frames(self, page: FeedPage) -> bytes:
        cursor = self._ask.cursor(page.position)
        if not page.events:
            return place_frame(cursor, "still here")
        newest = [orjson.loads(event.content) for event in reversed(page.events[-ROWS:])]
        data = {
            "total": len(page.events),
            "skipped": self._skipped,
            "counts": Counter(event.type for event in page.events),
            "rows": self._render_rows(newest),
        }
        return b"id: %b\nevent: batch\ndata: %b\n\n" % (cursor.encode(), orjson.dumps(data))

    async def _next(self, page: FeedPage, gone: asyncio.Task[None]) -> FeedPage | None:
        await asyncio.wait([gone], timeout=self._pace_seconds)
        if gone.done() or asyncio.get_running_loop().time() > self._until:
            return None
        following = await super()._next(page, gone)
        self._skipped = 0
        return await self._caught_up(following) if following is not None and following.has_more else following

    async def _caught_up(self, page: FeedPage) -> FeedPage:
        """The same events, and then on from now."""
        latest = await self._feed.first(replace(self._ask, start=None))
        self._skipped = max(0, latest.position - page.position)
        return replace(page, position=max(latest.position, page.position), has_more=False, bell=None)
