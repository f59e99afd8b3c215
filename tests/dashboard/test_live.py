"""The sampled stream of a page."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import orjson

from app.dashboard.live import ROWS, LiveStream
from app.dashboard.pulse import NewEvents
from app.db import Database
from app.filters import StreamQuery
from app.query.feed import Feed, FeedEvent, FeedPage, parse_ask
from tests.factories import make_event


class FeedAt:
    """A feed that has gone on to `position`."""

    def __init__(self, position: int) -> None:
        self.position = position

    async def first(self, ask: Any) -> FeedPage:
        assert ask.start is None
        return FeedPage((), self.position, has_more=False)


def stream_of(position: int) -> LiveStream:
    def rows(events: Any) -> str:
        return " ".join(event["id"] for event in events)

    return LiveStream(FeedAt(position), parse_ask(StreamQuery(), "latest", 100), rows)  # type: ignore[arg-type]


def test_a_frame_counts_all_and_shows_the_newest_first():
    async def frame() -> bytes:
        events = tuple(FeedEvent(n, "open" if n % 2 else "sent", b'{"id":"%d"}' % n) for n in range(1, 41))
        return stream_of(40)._frames(FeedPage(events, 40, has_more=False))

    lines = asyncio.run(frame()).decode().splitlines()
    data = orjson.loads(lines[2].removeprefix("data: "))

    assert lines[1] == "event: batch"
    assert (data["total"], data["skipped"], data["counts"]) == (40, 0, {"open": 20, "sent": 20})
    assert data["rows"].split() == [str(n) for n in range(40, 40 - ROWS, -1)]


def test_who_falls_behind_goes_on_from_now_and_is_told_how_much_is_missing():
    async def caught_up() -> tuple[FeedPage, int]:
        stream = stream_of(9000)
        page = await stream._caught_up(FeedPage((FeedEvent(1000, "open", b"{}"),), 1000, has_more=True))
        return page, stream._skipped

    page, skipped = asyncio.run(caught_up())

    assert (page.position, page.has_more, len(page.events), skipped) == (9000, False, 1, 8000)


def test_what_other_replicas_stored_is_counted_once_each(database: Database):
    feed = Feed(database)
    count_new = NewEvents(database, feed)

    async def looks() -> list[Counter[str]]:
        found = [await count_new()]
        for kinds in (("open", "open", "sent"), (), ("nonsense",)):
            for kind in kinds:
                make_event(database, type=kind)
            found.append(await count_new())
        feed.close()
        return found

    make_event(database)  # before anybody looked
    assert asyncio.run(looks()) == [{}, {"open": 2, "sent": 1}, {}, {"unknown": 1}]
