import random
from datetime import timedelta

import pytest

from app.clock import rfc3339
from tests.factories import NOON, make_attempt, make_delivery, make_event


def test_a_delivery_is_told_with_its_attempts(client, database):
    event = make_event(database)
    delivery = make_delivery(
        database, event, state="delivered", attempt_count=2, last_status=200, settled_at=NOON + timedelta(hours=1)
    )
    make_attempt(database, delivery, number=2, at=NOON)
    make_attempt(
        database,
        delivery,
        status=None,
        outcome="timeout",
        error="no answer",
        response_excerpt=None,
        at=NOON,
        replay=True,
    )
    make_attempt(database, make_delivery(database, event, sink="audit"))

    body = client.get(f"/v1/deliveries/{event['id']}.crm").json()

    first, second = body.pop("attempts")
    assert body == {
        "id": f"{event['id']}.crm",
        "sink": "crm",
        "event_id": event["id"],
        "webhook": "orders",
        "type": "open",
        "state": "delivered",
        "attempt_count": 2,
        "next_attempt_at": None,
        "last_status": 200,
        "last_error": None,
        "created_at": rfc3339(event["received_at"]),
        "settled_at": "2026-05-03T13:00:00Z",
    }
    assert first == {
        "number": 1,
        "at": "2026-05-03T12:00:00Z",
        "status": None,
        "outcome": "timeout",
        "error": "no answer",
        "duration_ms": 12.5,
        "response_excerpt": None,
        "replay": True,
    }
    assert (second["number"], second["status"], second["replay"]) == (2, 200, False)


def test_an_event_tells_all_its_deliveries(client, database):
    event = make_event(database)
    make_attempt(database, make_delivery(database, event, sink="crm"))
    make_delivery(database, event, sink="audit", next_attempt_at=NOON)
    make_delivery(database)

    body = client.get(f"/v1/events/{event['id']}/deliveries").json()

    assert [(d["sink"], d["next_attempt_at"], len(d["attempts"])) for d in body["data"]] == [
        ("audit", "2026-05-03T12:00:00Z", 0),
        ("crm", rfc3339(event["received_at"]), 1),
    ]
    assert (body["next_cursor"], body["has_more"]) == (None, False)


def test_an_event_without_deliveries_has_an_empty_list(client, database):
    event = make_event(database)

    assert client.get(f"/v1/events/{event['id']}/deliveries").json()["data"] == []


@pytest.mark.parametrize(
    "unknown",
    ["019ded47-d100-8c4e-9a51-3f9c2b7d1e60.crm", "x", "%00", ".x", "019ded47-d100-8c4e-9a51-3f9c2b7d1e60",
     "019ded47-d100-8c4e-9a51-3f9c2b7d1e60.", "019ded47-d100-8c4e-9a51-3f9c2b7d1e60.c%00m", "0" * 5000],
)  # fmt: skip
def test_an_unknown_delivery_is_a_404(client, unknown):
    response = client.get(f"/v1/deliveries/{unknown}")

    assert (response.status_code, response.json()["code"]) == (404, "delivery_not_found")


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_walk_gives_what_was_there_once_while_writes_go_on(walk, database, order):
    randomly = random.Random(3)

    def some(number: int) -> list[str]:
        made = []
        for _ in range(number):
            event = make_event(database, occurred_at=NOON + timedelta(seconds=randomly.randrange(5)))
            made += [make_delivery(database, event, sink=sink) for sink in ("crm", "audit", "bi")]
        return [f"{delivery['event_id']}.{delivery['sink']}" for delivery in made]

    there = some(8)

    walked = [row["id"] for row in walk("/v1/deliveries", lambda: some(1), order=order, limit=5)]

    assert len(walked) == len(set(walked))
    assert set(there) <= set(walked)
    assert walked == sorted(walked, reverse=order == "desc")


def test_filters_choose_deliveries(client, database):
    news = make_event(database, webhook="news", type="click")
    orders = make_event(database)
    make_delivery(database, news, sink="crm", state="dead", created_at=NOON)
    make_delivery(database, news, sink="audit", state="pending", created_at=NOON + timedelta(seconds=1))
    make_delivery(database, orders, sink="crm", state="cancelled", created_at=NOON + timedelta(seconds=2))

    def found(**asked) -> set[tuple[str, str]]:
        data = client.get("/v1/deliveries", params=asked).json()["data"]
        return {(row["webhook"], row["sink"]) for row in data}

    everything = {("news", "crm"), ("news", "audit"), ("orders", "crm")}
    assert found() == everything
    assert found(sink="crm") == {("news", "crm"), ("orders", "crm")}
    assert found(sink=["crm", "audit"]) == everything
    assert found(state="dead") == {("news", "crm")}
    assert found(state=["dead", "cancelled"]) == {("news", "crm"), ("orders", "crm")}
    assert found(event_id=orders["id"]) == {("orders", "crm")}
    assert found(webhook="news", type="click", state="pending") == {("news", "audit")}
    assert found(type="surprise") == found(event_id="\0") == set()
    assert found(after="2026-05-03T12:00:01Z", before="2026-05-03T12:00:02Z") == {("news", "audit")}


@pytest.mark.parametrize(
    "query", ["state=exploded", "sinks=crm", "limit=0", "email=a", "after=x", "order=up", "include=raw"]
)
def test_what_does_not_fit_is_a_422(refusing, query):
    assert refusing.get(f"/v1/deliveries?{query}").status_code == 422
