"""`GET /v1/messages/{message_id}`, on both databases."""

import random
from datetime import timedelta
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from app.clock import rfc3339
from app.filters import Condition
from app.models import Delivery, Event
from app.query import messages
from app.query.messages import MAX_EVENTS, message_conditions
from tests.factories import NOON, event_values, insert, make_attempt, make_delivery, make_event, take_statistics

ID = "19421777835146490"
OUTCOMES = {"sent": "delivered", "open": "opened", "click": "clicked", "bounce": "bounced", "spam": "complained"}


def make(database, kind: str, second: int = 0, **given: Any) -> dict[str, Any]:
    given = {"outcome": OUTCOMES[kind], "occurred_at": NOON + timedelta(seconds=second)} | given
    return make_event(database, type=kind, **given)


def copy_of(event: dict[str, Any], webhook: str) -> dict[str, Any]:
    """The same arrival, stored for another webhook: another id, the same raw text."""
    return event | {"id": event_values(webhook=webhook, occurred_at=event["occurred_at"])["id"], "webhook": webhook}


def test_a_message_is_told_from_start_to_end(client, database):
    opened = make(database, "open", 65)
    clicked = make(database, "click", 70, email="a@example.com")
    again = make(database, "open", 90)
    sent = make(database, "sent", 5, message_guid="1ab23cd4-e567")
    make(database, "click", message_id="1")

    response = client.get(f"/v1/messages/{ID}")

    assert response.status_code == 200
    told = response.json()
    shown = told.pop("events")
    assert [event["id"] for event in shown] == [event["id"] for event in (sent, opened, clicked, again)]
    assert all("raw" not in event and "deliveries" not in event and event["copies"] == [] for event in shown)
    assert told == {
        "message_id": ID,
        "message_guid": "1ab23cd4-e567",
        "email": "a@example.com",
        "state": "clicked",
        "permanent": None,
        "counts": {"sent": 1, "open": 2, "click": 1},
        "first": {
            "sent": "2026-05-03T12:00:05Z",
            "open": "2026-05-03T12:01:05Z",
            "click": "2026-05-03T12:01:10Z",
        },
        "last": {"sent": "2026-05-03T12:00:05Z", "open": "2026-05-03T12:01:30Z", "click": "2026-05-03T12:01:10Z"},
        "seconds_to_open": 60,
        "seconds_to_click": 65,
        "events_truncated": False,
    }


def test_a_guid_finds_the_same_message_also_events_without_it(client, database):
    make(database, "sent", 1, message_guid="G-1")
    make(database, "open", 2)
    make(database, "sent", 1, message_guid="G-2", message_id="7")

    assert client.get("/v1/messages/G-1").json() == client.get(f"/v1/messages/{ID}").json()
    assert client.get("/v1/messages/G-1").json()["counts"] == {"sent": 1, "open": 1}


def test_a_guid_serves_alone_where_no_event_has_an_id(client, database):
    make(database, "sent", message_guid="G-1", message_id=None)

    told = client.get("/v1/messages/G-1").json()

    assert (told["message_id"], told["message_guid"], told["counts"]) == (None, "G-1", {"sent": 1})


@pytest.mark.parametrize("unknown", ["1", "x", "%00", "%ED%A0%80", "9" * 5000, "%25", "'%22;--"])
def test_an_unknown_message_is_a_404(client, database, unknown):
    make(database, "sent")

    response = client.get(f"/v1/messages/{unknown}")

    assert (response.status_code, response.json()["code"]) == (404, "message_not_found")


def test_an_arrival_at_two_webhooks_counts_once(client, database):
    rows = [event_values(type="click", outcome="clicked", occurred_at=NOON, webhook="orders") for _ in range(5)]
    copies = [copy_of(row, "archive") for row in rows]
    alone = event_values(type="open", outcome="opened", occurred_at=NOON, webhook="archive")
    insert(database, Event, [*rows, *copies, alone])

    told = client.get(f"/v1/messages/{ID}").json()

    assert told["counts"] == {"click": 5, "open": 1}
    assert told["state"] == "clicked"
    assert {event["webhook"] for event in told["events"]} == {"archive"}
    assert [event["id"] for event in told["events"]] == sorted(row["id"] for row in [*copies, alone])
    ids = {copy["id"]: row["id"] for row, copy in zip(rows, copies, strict=True)} | {alone["id"]: None}
    for event in told["events"]:
        other = ids[event["id"]]
        assert event["copies"] == ([] if other is None else [{"webhook": "orders", "id": other}])


def test_one_webhook_can_be_asked_for(client, database):
    event = make(database, "click", webhook="orders")
    insert(database, Event, [copy_of(event, "archive")])

    told = client.get(f"/v1/messages/{ID}?webhook=orders").json()

    assert [(shown["id"], shown["copies"]) for shown in told["events"]] == [(event["id"], [])]
    assert client.get(f"/v1/messages/{ID}?webhook=news").status_code == 404


def test_operator_events_never_appear(client, database):
    make_event(database, webhook="jethook", type="jethook.sink.opened", outcome="unknown", message_guid="G")

    for query in ("", "?webhook=jethook"):
        assert client.get(f"/v1/messages/{ID}{query}").status_code == 404
        assert client.get(f"/v1/messages/G{query}").status_code == 404


def test_raw_and_deliveries_are_shown_on_request(client, database):
    event = make(database, "open")
    copy = copy_of(event, "archive")
    insert(database, Event, [copy])
    make_attempt(database, make_delivery(database, event, sink="crm", state="dead", settled_at=NOON))
    make_delivery(database, event, sink="a")
    make_delivery(database, copy, sink="archive", state="delivered", settled_at=NOON)

    (shown,) = client.get(f"/v1/messages/{ID}?include=raw&include=deliveries").json()["events"]

    assert shown["raw"] == orjson.loads(event["raw"])
    states = {(row["event_id"], row["sink"]): row["state"] for row in shown["deliveries"]}
    assert states == {
        (copy["id"], "archive"): "delivered",
        (event["id"], "a"): "pending",
        (event["id"], "crm"): "dead",
    }


def test_the_events_have_an_end_and_the_counts_have_none(client, database):
    clicks = [
        event_values(type="click", outcome="clicked", occurred_at=NOON + timedelta(seconds=n // 7))
        for n in range(MAX_EVENTS + 500)
    ]
    last = NOON + timedelta(days=2)
    spam = event_values(type="spam", outcome="complained", occurred_at=last)
    both = [*clicks, *(copy_of(click, "archive") for click in clicks), spam]
    random.Random(3).shuffle(both)
    for start in range(0, len(both), 1000):
        insert(database, Event, both[start : start + 1000])

    told = client.get(f"/v1/messages/{ID}?webhook=orders").json()
    merged = client.get(f"/v1/messages/{ID}?include=deliveries").json()

    assert [event["id"] for event in told["events"]] == sorted(click["id"] for click in clicks)[:MAX_EVENTS]
    assert len(merged["events"]) == len({(e["occurred_at"], str(e["details"])) for e in merged["events"]}) == MAX_EVENTS
    for answer in (told, merged):
        assert answer["events_truncated"] is True
        assert answer["counts"] == {"click": MAX_EVENTS + 500, "spam": 1}
        assert (answer["state"], answer["last"]["spam"]) == ("complained", rfc3339(last))


def test_the_same_text_at_another_connection_is_no_copy(client, database):
    mine = make(database, "open", 1)
    theirs = copy_of(mine, "partner") | {"connection": "second"}
    insert(database, Event, [theirs])

    told = client.get(f"/v1/messages/{ID}").json()

    assert told["counts"] == {"open": 2}
    assert {event["id"] for event in told["events"]} == {mine["id"], theirs["id"]}
    assert [event["copies"] for event in told["events"]] == [[], []]


@pytest.mark.parametrize(
    ("query", "pointer"), [("include=x", "include"), ("limit=1", "limit"), ("wehbook=a", "wehbook")]
)
def test_what_does_not_fit_is_a_422(refusing, query, pointer):
    response = refusing.get(f"/v1/messages/1?{query}")

    assert response.status_code == 422
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]


# --- how the database finds them -------------------------------------------------------------------------------------


def plan(database, statement: sa.Select[Any]) -> str:
    text = statement.compile(dialect=database.reader.dialect, compile_kwargs={"literal_binds": True})
    explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    with database.reading() as connection:
        return "\n".join(str(row) for row in connection.exec_driver_sql(f"{explain} {text}"))


def statements(conditions: list[Condition]) -> dict[str, sa.Select[Any]]:
    return {
        "tallies": messages.tally_statement(conditions),
        "tallies of copies": messages.copied_tally_statement(conditions),
        "events": messages.events_statement(conditions, 1001),
    }


@pytest.mark.parametrize("name", ["message_id", "message_guid"])
def test_a_message_is_found_by_its_index(database, name):
    insert(database, Event, [event_values(message_id=str(n), message_guid=f"g{n}") for n in range(5000)])
    take_statistics(database)

    for webhooks in ([], ["orders"], ["orders", "archive"]):
        conditions = message_conditions(name, {"message_id": "77", "message_guid": "g77"}[name], webhooks)
        for what, statement in statements(conditions).items():
            assert f"ix_events_{name}" in plan(database, statement), (what, webhooks)


def test_deliveries_are_found_by_their_key(database):
    rows = [event_values() for _ in range(3000)]
    due = {"state": "pending", "next_attempt_at": NOON, "created_at": NOON}
    owed = {"sink": "crm", "priority": 0, "attempt_count": 0, "schedule_step": 0, "replay": False, **due}
    insert(
        database,
        Delivery,
        [{"event_id": row["id"], "webhook": row["webhook"], "type": row["type"], **owed} for row in rows],
    )
    take_statistics(database)

    told = plan(database, messages.deliveries_statement([row["id"] for row in rows[:3]]))

    assert ("USING PRIMARY KEY" if database.is_sqlite else "pk_deliveries") in told
