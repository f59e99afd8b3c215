"""`GET /v1/feed`: cursors, filters, pages, waiting; on both databases."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from app.clock import LATEST_MICROS
from app.db import Database
from app.errors import BadCursor, Unavailable
from app.filters import EventFilters, FeedQuery, StreamQuery
from app.models import Event
from app.query import feed as feed_module
from app.query.feed import (
    Ask,
    Feed,
    FeedPage,
    Gone,
    gather_seconds,
    next_statement,
    page_statement,
    parse_ask,
    read_page,
)
from app.query.feed_routes import build_router
from app.query.horizon import Horizon
from tests.conftest import MakeDatabase
from tests.factories import NOON, event_values, insert, make_event, take_statistics
from tests.rest import KEYS, app_of, asking_of

Follow = Callable[..., list[dict[str, Any]]]


def routers(feed: Any) -> tuple[APIRouter, ...]:
    return (build_router(feed, KEYS),)


def build_app(feed: Feed) -> FastAPI:
    return app_of(*routers(feed))


@pytest.fixture
def client(database: Database) -> Iterator[TestClient]:
    with asking_of(routers, Feed(database)) as opened:
        opened.headers["authorization"] = "Bearer read"
        yield opened


@pytest.fixture
def follow(client: TestClient) -> Follow:
    """Every event from a cursor on, by following `next_cursor`; `between` runs after each page."""

    def walk(between: Callable[[], object] = lambda: None, **params: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            response = client.get("/v1/feed", params=params)
            assert response.status_code == 200, response.text
            page = response.json()
            found += page["data"]
            assert f"cursor={page['next_cursor']}" in response.links["next"]["url"]
            params["cursor"] = page["next_cursor"]
            if not page["has_more"]:
                return found
            between()

    return walk


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [event["id"] for event in found]


def test_an_empty_feed_has_a_cursor_to_ask_again_with(client, database):
    first = client.get("/v1/feed").json()
    event = make_event(database)
    second = client.get("/v1/feed", params={"cursor": first["next_cursor"]}).json()

    assert (first["data"], first["has_more"]) == ([], False)
    assert (ids(second["data"]), second["has_more"]) == ([event["id"]], False)


def test_events_come_in_the_order_they_were_stored_whatever_their_times(follow, database):
    times = [NOON + timedelta(hours=hour) for hour in (3, 1, 2)]
    stored = [make_event(database, occurred_at=time)["id"] for time in times]

    assert ids(follow()) == ids(follow(limit=1)) == ids(follow(limit=2)) == stored


def test_what_comes_while_one_follows_comes_last_and_once(follow, database):
    stored = [make_event(database)["id"] for _ in range(3)]
    late: list[str] = []

    def between() -> None:
        if len(late) < 2:
            late.append(make_event(database, occurred_at=NOON - timedelta(days=9))["id"])

    assert ids(follow(between, limit=2)) == stored + late


def test_latest_is_from_now_on(client, follow, database):
    make_event(database)
    begin = client.get("/v1/feed", params={"cursor": "latest"}).json()
    event = make_event(database)

    assert begin["data"] == []
    assert ids(follow(cursor=begin["next_cursor"])) == [event["id"]]


def test_filters_are_those_of_the_list(client, follow, database):
    rows = [
        event_values(type=kind, email=email, webhook=webhook, campaign_id=campaign)
        for kind in ("open", "bounce")
        for email in ("a@example.com", "b@example.org")
        for webhook in ("orders", "news")
        for campaign in ("1", "2")
    ]
    insert(database, Event, rows)
    asked: list[dict[str, Any]] = [
        {"type": "open"}, {"email": "A@Example.com"}, {"campaign_id": ["1", "3"]},
        {"webhook": "news", "type": "bounce"},
        {"email_domain": "example.org", "type": ["open", "click"]}, {"after": "2026-05-03T12:00:09Z"},
        {"received_before": "2026-05-03T12:00:00Z"}, {"type": "nothing"},
    ]  # fmt: skip

    for params in asked:
        wanted = {row["id"] for row in rows if matches(row, parsed(params))}
        assert set(ids(follow(**params))) == wanted, params
        assert ids(follow(**params, limit=1)) == ids(follow(**params)), params


def parsed(params: dict[str, Any]) -> EventFilters:
    return EventFilters(**{name: value if isinstance(value, list) else [value] for name, value in params.items()})


def matches(row: dict[str, Any], filters: EventFilters) -> bool:
    told = {name: values for name, values in filters.model_dump().items() if values}
    for name, values in told.items():
        if name == "after":
            fits = row["occurred_at"] >= min(values)
        elif name == "received_before":
            fits = row["received_at"] < max(values)
        else:
            fits = row[name] in values
        if not fits:
            return False
    return True


def test_operator_events_are_left_out_unless_asked_for(follow, database):
    mail = make_event(database)["id"]
    told = make_event(database, webhook="jethook", type="jethook.sink.opened")["id"]

    assert ids(follow()) == [mail]
    assert ids(follow(type="jethook.sink.opened")) == ids(follow(webhook="jethook")) == [told]
    assert ids(follow(webhook=["jethook", "orders"])) == [mail, told]


def test_raw_comes_on_request_with_every_digit(client, database):
    make_event(database, raw='{"event": "open",\n "time": 1, "big": 12345678901234567890123}')

    assert "raw" not in client.get("/v1/feed").json()["data"][0]
    response = client.get("/v1/feed", params={"include": "raw"})
    assert '"raw":{"event": "open",\n "time": 1, "big": 12345678901234567890123}' in response.text


@pytest.mark.parametrize(
    "given_with", [{"type": "open"}, {"webhook": "orders"}, {"after": "2026-05-03T12:00:00Z"}, {"test": "false"}]
)
def test_a_cursor_is_bound_to_its_filters(client, given_with):
    cursor = client.get("/v1/feed", params=given_with).json()["next_cursor"]

    for params in ({}, {"type": "bounce"}):
        response = client.get("/v1/feed", params={**params, "cursor": cursor})
        assert (response.status_code, response.json()["code"]) == (400, "bad_cursor")
    again = client.get("/v1/feed", params={**given_with, "cursor": cursor, "limit": 9, "include": "raw"})
    assert again.status_code == 200


def test_a_cursor_of_a_list_is_none_of_the_feed(client):
    other = "AQ" + client.get("/v1/feed").json()["next_cursor"][2:-4] + "abcd"
    for cursor in (other, "x", "", "AQ", "latest2"):
        response = client.get("/v1/feed", params={"cursor": cursor})
        assert (response.status_code, response.json()["code"]) == (400, "bad_cursor"), cursor


def test_a_cursor_ahead_of_the_database_is_refused_and_not_waited_for(client, database):
    make_event(database)
    ahead = parse_ask(FeedQuery(), None, 1).cursor(2)

    response = client.get("/v1/feed", params={"cursor": ahead, "wait_seconds": 30})

    assert (response.status_code, response.json()["code"]) == (400, "bad_cursor")


@pytest.mark.parametrize(
    "params",
    [{"limit": 0}, {"limit": 1001}, {"limit": "1.5"}, {"wait_seconds": 31}, {"wait_seconds": -1}, {"order": "desc"},
     {"wait_seconds": "1e1"}, {"include": "all"}, {"nothing": 1}, {"after": "yesterday"}],
)  # fmt: skip
def test_what_does_not_fit_is_refused(client, params):
    response = client.get("/v1/feed", params=params)

    assert (response.status_code, response.json()["code"]) == (422, "validation_failed")


@pytest.mark.parametrize("path", ["/v1/feed", "/v1/stream"])
def test_nobody_gets_in_without_a_key(client, path):
    response = client.get(path, headers={"authorization": "Bearer wrong"})

    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")


@given(st.integers(0, LATEST_MICROS), st.lists(st.text(st.characters(exclude_characters=","), max_size=5), max_size=3))
def test_a_cursor_gives_back_its_position_and_feed_and_stream_share_it(position, types):
    query = FeedQuery(type=types)
    cursor = parse_ask(query, None, 50).cursor(position)

    assert parse_ask(query, cursor, 50).start == position
    assert parse_ask(StreamQuery(type=types, include=["raw"]), cursor, 1).start == position
    with pytest.raises(BadCursor):
        parse_ask(FeedQuery(type=[*types, "x!"]), cursor, 50)


@given(st.text(max_size=60))
def test_nothing_else_is_taken_for_a_cursor(text):
    try:
        ask = parse_ask(FeedQuery(), text, 50)
    except BadCursor:
        return
    assert ask.start is None or parse_ask(FeedQuery(), ask.cursor(ask.start), 50).start == ask.start


# --- rare filters ----------------------------------------------------------------------------------------------------


def test_a_rare_filter_goes_through_a_bounded_window_for_each_answer(client, database, monkeypatch):
    monkeypatch.setattr(feed_module, "WINDOW", 10)
    insert(database, Event, [event_values(type="open") for _ in range(34)])
    rare = make_event(database, type="spam")["id"]
    database.write(lambda c: c.execute(sa.delete(Event.__table__).where(Event.__table__.c.seq.in_(range(1, 9)))))

    pages, cursor = [], None
    while not pages or pages[-1]["has_more"]:
        pages.append(client.get("/v1/feed", params={"type": "spam"} | ({"cursor": cursor} if cursor else {})).json())
        cursor = pages[-1]["next_cursor"]

    assert [len(page["data"]) for page in pages] == [0, 0, 1]  # 9 to 35 in windows of ten
    assert ids(pages[-1]["data"]) == [rare]


def test_windows_lose_nothing_whatever_their_size_and_the_gaps(follow, database, monkeypatch):
    rng = random.Random(11)
    insert(database, Event, [event_values(type=rng.choice(("open", "spam"))) for _ in range(80)])
    seq = Event.__table__.c.seq
    database.write(lambda c: c.execute(sa.delete(Event.__table__).where(seq.in_(rng.sample(range(1, 81), 30)))))
    with database.reading() as connection:
        wanted = connection.execute(sa.select(Event.__table__.c.id).where(Event.type == "spam").order_by(seq)).scalars()
        wanted = list(wanted)

    for window in (1, 2, 7, 50, 100):
        monkeypatch.setattr(feed_module, "WINDOW", window)
        for limit in (1, 3, 1000):
            assert ids(follow(type="spam", limit=limit)) == wanted


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def many(request: pytest.FixtureRequest, make_migrated: MakeDatabase) -> Iterator[Database]:
    """A database of each kind with thousands of events: who asks for plans changes nothing."""
    database = Database(make_migrated(request.param))
    insert(
        database,
        Event,
        [
            event_values(  # a day, with times of their own: what a plan thinks of a range depends on them
                email=f"{n}@example.com", message_id=str(n), campaign_id=str(n // 500), type=("open", "click")[n % 2],
                occurred_at=datetime(2026, 5, 3, 0, 0, tzinfo=UTC) + timedelta(seconds=n * 35),
            )
            for n in range(5000)
        ],
    )  # fmt: skip
    take_statistics(database)
    yield database
    database.close()


def plan(database: Database, statement: sa.Select[Any]) -> str:
    text = statement.compile(dialect=database.reader.dialect, compile_kwargs={"literal_binds": True})
    explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    with database.reading() as connection:
        return "\n".join(str(row) for row in connection.exec_driver_sql(f"{explain} {text}"))


@pytest.mark.parametrize(
    "filters",
    [{}, {"type": ["open"]}, {"webhook": ["orders"], "type": ["click"]}, {"campaign_id": ["3"]}, {"test": [False]},
     {"after": ["2026-05-03T06:00:00Z"], "before": ["2026-05-03T23:00:00Z"]}],
)  # fmt: skip
def test_the_feed_walks_along_its_numbers_and_sorts_nothing(many, filters):
    told = plan(many, page_statement(parse_ask(FeedQuery(**filters), None, 50), 100, 4900))

    assert "TEMP B-TREE" not in told
    if many.is_sqlite:
        assert "USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in told
    else:
        assert "Seq Scan" not in told
        assert "ix_events_seq" in told or "ix_events_campaign_id" in told


@pytest.mark.parametrize("name", ["email", "message_id"])
def test_a_selective_filter_uses_its_index(many, name):
    value = {"email": "77@example.com", "message_id": "77"}[name]
    told = plan(many, page_statement(parse_ask(FeedQuery(**{name: [value]}), None, 50), 0, 4900))

    assert f"ix_events_{name}" in told
    # An address's events are kept by their time there, so those of the window are sorted.
    assert "TEMP B-TREE" not in told or name == "email"


def test_where_a_window_begins_is_one_look_into_the_index(many):
    told = plan(many, next_statement(100))

    assert ("INTEGER PRIMARY KEY" if many.is_sqlite else "Index Only Scan using ix_events_seq") in told


# --- waiting ---------------------------------------------------------------------------------------------------------


NEVER = 3600.0  # a poll that only a test which hangs would meet


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


ASK = parse_ask(FeedQuery(), None, 50)
BEGIN = FeedPage((), 0, has_more=False)


async def more(
    feed: Feed, ask: Ask, page: FeedPage = BEGIN, *, seconds: float = NEVER, gone: Gone | None = None
) -> FeedPage:
    with feed.client("poll"):
        return await feed.more(ask, page, seconds, gone)


async def listening(feed: Feed, clients: int = 1) -> None:
    """Return once so many do nothing but wait."""
    while feed.waiting < clients:  # noqa: ASYNC110  the feed has no use for such an event
        await asyncio.sleep(0)


async def store(database: Database, **given_with: Any) -> str:
    event = event_values(**given_with)
    await asyncio.to_thread(insert, database, Event, [event])
    return event["id"]


def the_ids(page: FeedPage) -> list[str]:
    return [event.content.split(b'"')[3].decode() for event in page.events]


def test_a_waiting_client_is_woken_by_a_commit(database):
    async def story() -> None:
        feed = Feed(database, poll_seconds=NEVER)
        waiting = asyncio.create_task(more(feed, ASK))
        await listening(feed)
        event = await store(database)
        assert not waiting.done()
        feed.wake()
        assert the_ids(await waiting) == [event]

    run(story())


def test_a_commit_of_another_replica_is_heard_of_by_polling(database):
    async def story() -> None:
        feed = Feed(database, poll_seconds=0.05)
        waiting = asyncio.create_task(more(feed, ASK))
        await listening(feed)
        event = await store(database)
        assert the_ids(await waiting) == [event]

    run(story())


def test_a_commit_between_look_and_wait_is_not_missed(database):
    """The bell is taken before the look: whatever is committed after that rings it."""

    class Late(Horizon):
        def look(self, connection):
            mark = super().look(connection)
            if not seen:
                seen.append(event_values())
                loop.call_soon_threadsafe(commit)
            return mark

    seen: list[dict[str, Any]] = []

    def commit() -> None:
        insert(database, Event, seen)
        feed.wake()

    async def story() -> FeedPage:
        nonlocal loop, feed
        loop = asyncio.get_running_loop()
        feed = Feed(database, Late(), poll_seconds=NEVER)
        return await more(feed, ASK)

    loop: asyncio.AbstractEventLoop
    feed: Feed
    assert the_ids(run(story())) == [seen[0]["id"]]


def test_events_that_do_not_match_do_not_end_the_wait(database):
    async def story() -> None:
        feed = Feed(database, poll_seconds=NEVER)
        ask = parse_ask(FeedQuery(type=["spam"]), None, 50)
        waiting = asyncio.create_task(more(feed, ask))
        await listening(feed)
        await store(database, type="open")
        feed.wake()
        event = await store(database, type="spam")
        feed.wake()
        page = await waiting
        assert (the_ids(page), page.position) == ([event], 2)

    run(story())


def test_a_wait_that_ends_empty_moves_on_over_what_did_not_match(database):
    async def story() -> FeedPage:
        await store(database, type="open")
        ask = parse_ask(FeedQuery(type=["spam"]), None, 50)
        return await more(Feed(database, poll_seconds=NEVER), ask, seconds=0.01)

    assert run(story()) == FeedPage((), 1, has_more=False)


def test_a_closed_feed_answers_who_waits_and_takes_nobody_new(database):
    async def story() -> None:
        feed = Feed(database, poll_seconds=NEVER)
        waiting = asyncio.create_task(more(feed, ASK))
        await listening(feed)
        feed.close()
        assert await waiting == FeedPage((), 0, has_more=False)
        with pytest.raises(Unavailable), feed.client("poll"):
            pass

    run(story())


def test_a_client_that_left_is_not_waited_for(database):
    left = False

    async def gone() -> bool:
        return left

    async def story() -> None:
        nonlocal left
        feed = Feed(database, poll_seconds=NEVER)
        waiting = asyncio.create_task(more(feed, ASK, gone=gone))
        await listening(feed)
        left = True
        feed.wake()
        assert (await waiting).events == ()

    run(story())


def test_all_clients_together_are_woken_at_most_500_times_a_second():
    assert gather_seconds(1) == gather_seconds(25) == 0.05
    assert [clients / gather_seconds(clients) for clients in (25, 100, 300)] == pytest.approx([500] * 3)


def test_places_are_bounded_and_given_back(monkeypatch):
    monkeypatch.setattr(feed_module, "MAX_CLIENTS", {"poll": 1, "stream": 1})
    told: list[tuple[str, int]] = []

    async def story() -> None:
        feed = Feed(None, on_clients=lambda kind, clients: told.append((kind, clients)))
        with feed.client("poll"), feed.client("stream"):
            with pytest.raises(Unavailable) as refused, feed.client("poll"):
                pass
            assert feed.snapshot()["clients"] == {"poll": 1, "stream": 1}
        with feed.client("poll"):
            pass
        assert refused.value.headers == {"retry-after": "5"}

    run(story())
    assert told[-2:] == [("poll", 1), ("poll", 0)]


def test_commits_that_follow_closely_ring_together_and_the_last_one_is_heard(database):
    async def story() -> None:
        feed = Feed(database, poll_seconds=NEVER)
        found: list[str] = []
        with feed.client("stream"):
            page = await feed.more(ASK, BEGIN, 0)
            stored = []
            for _ in range(30):
                stored.append(await store(database))
                feed.wake()
            while len(found) < 30:
                page = await feed.more(ASK, page, NEVER)
                found += the_ids(page)
        assert found == stored

    run(story())


def test_what_is_committed_between_two_pages_is_not_waited_for(database):
    """As on a stream, which is busy sending when it happens."""

    async def story() -> None:
        feed = Feed(database, poll_seconds=NEVER)
        with feed.client("stream"):
            first = await store(database)
            page = await feed.more(ASK, BEGIN, NEVER)
            second = await store(database)
            feed.wake()
            assert the_ids(page) == [first]
            assert the_ids(await feed.more(ASK, page, NEVER)) == [second]

    run(story())


def test_who_asks_together_shares_looks_and_reads_and_none_is_older_than_its_question(database, monkeypatch):
    looks: list[int] = []
    reads: list[int] = []

    def counted(connection, ask, after, settled):
        reads.append(settled)
        return read_page(connection, ask, after, settled)

    monkeypatch.setattr(feed_module, "read_page", counted)

    class Counting(Horizon):
        def look(self, connection):
            mark = super().look(connection)
            looks.append(mark.given)
            return mark

    async def story() -> None:
        feed = Feed(database, Counting(), poll_seconds=NEVER)
        pages = await asyncio.gather(*(feed.first(ASK) for _ in range(50)))
        assert {page.position for page in pages} == {0}
        assert len(looks) == 1
        waiting = [asyncio.create_task(more(feed, ASK)) for _ in range(50)]
        await listening(feed, 50)
        event = await store(database)
        feed.wake()
        assert [the_ids(page) for page in await asyncio.gather(*waiting)] == [[event]] * 50
        assert len(looks) <= 4
        assert reads == [1]

    run(story())


def test_a_failed_look_is_told_to_all_who_asked_and_the_next_one_is_new(database):
    class Failing(Horizon):
        def look(self, connection):
            if not failed:
                failed.append(True)
                raise OSError("gone")
            return super().look(connection)

    failed: list[bool] = []

    async def story() -> None:
        feed = Feed(database, Failing())
        answers = await asyncio.gather(*(feed.first(ASK) for _ in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [OSError] * 3
        assert (await feed.first(ASK)).position == 0

    run(story())


def test_over_rest_a_wait_ends_with_the_event(database):
    feed = Feed(database, poll_seconds=0.05)
    with TestClient(build_app(feed), headers={"authorization": "Bearer read"}) as client:
        cursor = client.get("/v1/feed").json()["next_cursor"]
        with asyncio.Runner() as runner:
            asked = runner.get_loop().run_in_executor(
                None, lambda: client.get("/v1/feed", params={"cursor": cursor, "wait_seconds": 30})
            )
            event = make_event(database)
            response = runner.run(asyncio.wait_for(asked, 25))

    assert ids(response.json()["data"]) == [event["id"]]


def test_a_writer_that_does_not_end_holds_back_but_does_not_block(postgres_database, monkeypatch):
    monkeypatch.setattr(feed_module, "COLD_SECONDS", 0.1)
    event = event_values()
    with TestClient(build_app(Feed(postgres_database)), headers={"authorization": "Bearer read"}) as client:
        with postgres_database.writer.connect() as stuck, stuck.begin():
            stuck.execute(sa.insert(Event.__table__), event_values())
            cold = client.get("/v1/feed")
        assert (cold.status_code, cold.headers["retry-after"]) == (503, "1")
        make_event(postgres_database)
        with postgres_database.writer.connect() as stuck, stuck.begin():
            before = client.get("/v1/feed").json()
            stuck.execute(sa.insert(Event.__table__), event)
            make_event(postgres_database)
            held = client.get("/v1/feed", params={"cursor": before["next_cursor"]}).json()
        after = client.get("/v1/feed", params={"cursor": held["next_cursor"]}).json()

    assert [len(page["data"]) for page in (before, held, after)] == [2, 0, 2]
    assert after["data"][0]["id"] == event["id"]


@pytest.fixture
def postgres_database(make_migrated: Callable[[str], str]) -> Iterator[Database]:
    opened = Database(make_migrated("postgresql"))
    yield opened
    opened.close()
