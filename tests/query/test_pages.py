"""Pages of filters that no index serves: they end, and a walk over them misses nothing."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.db import Database
from app.filters import DeliveryQuery, EventQuery, QuarantineQuery
from app.models import Delivery, Event, Quarantined
from app.query import delivery_pages, event_pages, pages
from app.query.delivery_pages import read_deliveries
from app.query.event_pages import read_events
from app.query.pages import Page, read_walk
from app.query.queries import quarantine_walk
from app.query.walks import Bound, Walk
from tests.factories import NOON, event_values, insert
from tests.query.conftest import routers
from tests.query.test_plans import recorded
from tests.rest import asking

STEP = 7
COUNT = 150


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "FIRST_STEP", STEP)
    monkeypatch.setattr(pages, "LARGEST_STEP", STEP * 3)
    monkeypatch.setattr(event_pages, "MOST_SORTED", 5)
    monkeypatch.setattr(delivery_pages, "MOST_SORTED", 5)


def at_once() -> bool:
    """Enough after the first step."""
    return True


def never() -> bool:
    return False


def some_events(count: int = COUNT) -> list[dict[str, Any]]:
    randomly = random.Random(7)
    return [
        event_values(
            occurred_at=NOON + timedelta(seconds=randomly.randrange(count)),
            webhook=randomly.choice(["orders", "news"]), type=randomly.choice(["open", "click", "spam"]),
            email=randomly.choice(["a@x.org", "b@x.org"]),
            campaign_id=randomly.choice(["1", "2", None]), contact_id=randomly.choice([None] * 20 + ["4"]),
            custom_id=randomly.choice(["many"] * 30 + ["few"]),
        )
        for _ in range(count)
    ]  # fmt: skip


ASKED: list[dict[str, list[str]]] = [
    {},
    {"contact_id": ["4"]},
    {"contact_id": ["none"]},
    {"email": ["a@x.org"]},
    {"custom_id": ["few"], "type": ["open"]},
    {"custom_id": ["many"], "contact_id": ["4"]},
    {"campaign_id": ["1"], "contact_id": ["4"]},
    {"campaign_id": ["1", "2"], "type": ["open"]},
    {"type": ["open", "spam"]},
    {"webhook": ["orders"]},
    {"webhook": ["orders"], "type": ["spam"], "contact_id": ["4"]},
    {"webhook": ["orders"], "contact_id": ["4"]},
    {"type": ["unsub"], "contact_id": ["4"]},
]


def walked(read: Any, limit: int) -> list[dict[str, Any]]:
    """All rows; each page but the last has rows or has looked at some."""
    rows: list[dict[str, Any]] = []
    position, seen = None, set()
    while True:
        page: Page = read(position)
        assert len(page.rows) <= limit
        rows += page.rows
        if page.beyond is None:
            return rows
        assert page.beyond not in seen
        seen.add(page.beyond)
        position = page.beyond


@pytest.mark.parametrize("order", ["desc", "asc"])
@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_walk_over_pages_that_end_early_gives_each_event_once(
    database: Database, asked: dict[str, list[str]], order: str
) -> None:
    stored = some_events()
    insert(database, Event, stored)
    expected = [row["id"] for row in stored if all(row[name] in values for name, values in asked.items())]
    query = EventQuery(**asked, order=order, limit=4)  # type: ignore[arg-type]

    for enough in (at_once, never):
        with database.reading() as connection:
            found = walked(lambda position, e=enough, c=connection: read_events(c, query, position, e), 4)
        assert [row["id"] for row in found] == sorted(expected, reverse=order == "desc")


@pytest.mark.parametrize("order", ["desc", "asc"])
@pytest.mark.parametrize(
    "asked",
    [{}, {"sink": ["crm"]}, {"state": ["dead"]}, {"state": ["dead"], "sink": ["crm"]}, {"state": ["pending"]},
     {"state": ["dead"], "type": ["spam"]}, {"state": ["dead", "pending"], "sink": ["erp"]}, {"webhook": ["none"]}],
    ids=str,
)  # fmt: skip
def test_a_walk_over_deliveries_gives_each_once(database: Database, asked: dict[str, list[str]], order: str) -> None:
    randomly = random.Random(3)
    common = {"priority": 0, "attempt_count": 1, "schedule_step": 0, "replay": False, "next_attempt_at": NOON}
    stored = [
        {**common, "event_id": event["id"], "sink": sink, "webhook": event["webhook"], "type": event["type"],
         "state": randomly.choice(["dead", "pending", "delivered"]), "created_at": event["received_at"]}
        for event in some_events(60)
        for sink in ("crm", "erp")
    ]  # fmt: skip
    insert(database, Delivery, stored)
    fitting = [row for row in stored if all(row[name] in values for name, values in asked.items())]
    query = DeliveryQuery(**asked, order=order, limit=4)  # type: ignore[arg-type]

    with database.reading() as connection:
        found = walked(lambda position: read_deliveries(connection, query, position, at_once), 4)

    keys = sorted(((row["event_id"], row["sink"]) for row in fitting), reverse=order == "desc")
    assert [(row["event_id"], row["sink"]) for row in found] == keys


@pytest.mark.parametrize("state", ["dead", "pending"])
def test_where_nothing_is_in_a_state_no_delivery_is_looked_at(database: Database, state: str) -> None:
    with database.reading() as connection, recorded(database.reader) as statements:
        page = read_deliveries(connection, DeliveryQuery(state=[state]), None, never)

    assert (page.rows, page.beyond) == ((), None)
    assert [statement for statement, _ in statements if "created_at" in statement] == []


def test_a_walk_over_quarantine_gives_each_entry_once(database: Database) -> None:
    rows = [
        {"id": f"{n:08x}-0000-8000-8000-000000000000", "webhook": "rare" if n % 40 == 3 else "orders",
         "received_at": NOON + timedelta(microseconds=n // 2), "reason": "x", "body": b"x"}
        for n in range(120)
    ]  # fmt: skip
    insert(database, Quarantined, rows)
    query = QuarantineQuery(webhook=["rare"], order="asc", limit=2)

    with database.reading() as connection:
        found = walked(lambda p: read_walk(connection, quarantine_walk(query, p), 2, at_once), 2)

    assert [row["id"] for row in found] == [row["id"] for row in rows if row["webhook"] == "rare"]


def test_a_page_that_has_looked_long_enough_ends_and_tells_where_to_go_on(database: Database) -> None:
    insert(database, Event, [event_values(occurred_at=NOON + timedelta(seconds=n)) for n in range(STEP * 3)])
    insert(database, Event, [event_values(occurred_at=NOON - timedelta(days=1), contact_id="4")])

    with asking(*routers(database, page_seconds=0.0)) as client:
        pages_met = follow(client, "/v1/events?contact_id=4")

    assert [len(page["data"]) for page in pages_met] == [0, 0, 1]
    assert [page["has_more"] for page in pages_met] == [True, True, False]


def follow(client: TestClient, url: str) -> list[dict[str, Any]]:
    found = []
    response = client.get(url)
    while True:
        found.append(response.json())
        assert found[-1]["has_more"] == (found[-1]["next_cursor"] is not None) == ("next" in response.links)
        if not found[-1]["has_more"]:
            return found
        response = client.get(response.links["next"]["url"])


def test_what_is_stored_or_deleted_between_two_steps_hides_nothing(database: Database) -> None:
    rows = sorted((event_values(occurred_at=NOON + timedelta(seconds=n)) for n in range(40)), key=lambda row: row["id"])
    late = [event_values(occurred_at=NOON + timedelta(seconds=n)) for n in range(0, 40, 2)]
    wanted = {rows[2]["id"], rows[20]["id"], rows[38]["id"]}
    for row in rows:
        row["contact_id"] = "4" if row["id"] in wanted else None
    insert(database, Event, rows)
    query = EventQuery(contact_id=["4"], limit=1)

    found, position = [], None
    while True:
        with database.reading() as connection:
            page = read_events(connection, query, position, at_once)
        found += [row["id"] for row in page.rows]
        if page.beyond is None:
            break
        position = page.beyond
        insert(database, Event, [late.pop()])
        if (gone := rows.pop()["id"]) not in wanted:
            delete(database, gone)

    assert found == sorted(wanted, reverse=True)


def delete(database: Database, event_id: str) -> None:
    table = event_pages.events
    database.write(lambda connection: connection.execute(table.delete().where(table.c.id == event_id)))


def test_a_range_is_bounded_once_on_either_side() -> None:
    walk = Walk(event_pages.events.select(), event_pages.KEYS, descending=True, high=Bound(("m",), included=False))

    assert walk.after(("p",)).high == Bound(("m",), included=False)
    assert walk.after(("c",)).high == Bound(("c",), included=False)
    assert walk.after(("c",)).upto(("a",)).low == Bound(("a",), included=True)
    assert len(walk.after(("c",)).upto(("a",)).conditions) == 2
