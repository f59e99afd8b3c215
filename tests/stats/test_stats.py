"""`GET /v1/stats` against a full count in plain Python, on both databases."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from app.clock import rfc3339
from app.models import Event, StatCount, StatMember
from app.rollups.store import drop_before, uncount
from app.stats import loose, scale, uniques
from tests.factories import event_values, insert
from tests.stats.model import START, full_count, random_event

QUESTIONS: list[dict[str, Any]] = [
    {},
    {"interval": "hour"},
    {"group_by": ("type",)},
    {"group_by": ("webhook", "type")},
    {"group_by": ("email_domain",)},
    {"group_by": ("campaign_id", "custom_campaign"), "interval": "hour"},
    {"group_by": ("reason",), "type": "bounce"},
    {"group_by": ("reason_group", "webhook")},
    {"group_by": ("email_domain", "campaign_id")},
    {"webhook": "orders", "interval": "hour"},
    {"email_domain": "example.com", "group_by": ("webhook",)},
    {"campaign_id": "7", "automated": True},
    {"outcome": "deferred"},
    {"test": True, "group_by": ("type",)},
    {"after": START + timedelta(hours=3), "before": START + timedelta(hours=51)},
    {"after": START + timedelta(hours=5, minutes=7), "before": START + timedelta(hours=30.01), "interval": "hour"},
    {"after": START + timedelta(minutes=7), "before": START + timedelta(minutes=50), "group_by": ("type",)},
    {"email": "a@example.com", "group_by": ("type",)},
    {"message_id": "7", "contact_id": "1"},
    {"campaign_id": "8", "contact_id": "2", "interval": "hour"},
    {"custom_campaign": "spring", "email_domain": "example.org", "after": START + timedelta(hours=9, seconds=5)},
]  # fmt: skip


def ask(client, **question: Any) -> dict[str, Any]:
    params = {name: rfc3339(v) if name in ("after", "before") else v for name, v in question.items()}
    if isinstance(question.get("group_by"), tuple):
        params["group_by"] = list(question["group_by"])
    response = client.get("/v1/stats", params=params)
    assert response.status_code == 200, response.text
    return dict(response.json())


def check(client, database, questions=QUESTIONS) -> None:
    with database.reading() as connection:
        stored = [dict(row) for row in connection.execute(sa.select(Event.__table__)).mappings()]
    for question in questions:
        told = ask(client, **question)
        rows = [{name: row[name] for name in row if name != "rates"} for row in told["data"]]
        for row in rows:
            row["counts"] = dict(row["counts"])
        assert rows == full_count(stored, **question), question
        assert (told["complete"], told["unique_exact"]) == (True, True)


def test_every_question_is_answered_as_by_a_full_count_however_far_it_is_counted(client, database, fold):
    rng = random.Random(1)
    events = [random_event(rng) for _ in range(600)]
    insert(database, Event, events[:400])
    check(client, database)  # nothing is counted
    assert fold(150) == 150
    check(client, database)  # a part
    insert(database, Event, events[400:])  # some of them late
    while fold(150):
        check(client, database, rng.sample(QUESTIONS, 4))
    check(client, database)  # all


def test_an_erased_event_leaves_whether_it_was_counted_or_not(client, database, fold):
    rng = random.Random(2)
    events = [random_event(rng) for _ in range(300)]
    insert(database, Event, events)
    fold(200)
    gone = [event["id"] for event in events if event["email"] in ("a@example.com", "b@example.org")]

    def erase(connection: sa.Connection) -> int:
        taken = uncount(connection, gone)
        connection.execute(sa.delete(Event.__table__).where(Event.__table__.c.id.in_(gone)))
        return taken

    taken = database.write(erase)

    assert 0 < taken < len(gone)
    check(client, database)
    fold()
    check(client, database)


def test_events_deleted_for_their_age_stay_counted_until_the_statistics_are_dropped(client, database, fold):
    rng = random.Random(3)
    insert(database, Event, [random_event(rng) for _ in range(200)])
    fold()
    before = [ask(client, **question) for question in QUESTIONS[:10]]
    database.write(lambda connection: connection.execute(sa.delete(Event.__table__)))

    assert [ask(client, **question)["data"] for question in QUESTIONS[:10]] == [told["data"] for told in before]

    database.write(lambda connection: drop_before(connection, START + timedelta(days=1, hours=5)))
    kept = ask(client)["data"]
    assert kept == [row for row in before[0]["data"] if row["start"] >= "2026-05-03"]

    database.write(lambda connection: drop_before(connection, START + timedelta(days=30)))
    with database.reading() as connection:
        assert not connection.execute(sa.select(StatCount.__table__)).first()
        assert not connection.execute(sa.select(StatMember.__table__)).first()


@pytest.mark.parametrize(
    ("question", "pointer"),
    [({"contact_id": "4"}, "contact_id"), ({"list_id": "4", "type": "open"}, "list_id"),
     ({"received_after": rfc3339(START)}, "received_after")],
)  # fmt: skip
def test_what_no_count_and_no_index_serves_is_refused(client, question, pointer):
    response = client.get("/v1/stats", params=question)

    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert (error["pointer"], error["code"]) == (pointer, "not_served")


@pytest.mark.parametrize("question", [{"group_by": "email"}, {"interval": "week"}, {"limit": 5}, {"automated": "x"}])
def test_what_is_unknown_is_refused(client, question):
    assert client.get("/v1/stats", params=question).status_code == 422


def test_rates_are_by_people_and_null_where_nothing_was_sent(client, database, fold):
    def some(count: int, kind: str, outcome: str, **given: Any) -> list[dict[str, Any]]:
        moment = START if kind == "sent" else START + timedelta(minutes=5)
        return [event_values(type=kind, outcome=outcome, occurred_at=moment, **given) for _ in range(count)]

    insert(database, Event, [
        *some(8, "sent", "delivered"), *some(1, "bounce", "bounced"), *some(1, "blocked", "rejected"),
        *some(2, "bounce", "deferred"), *some(3, "open", "opened", automated=False),
        *some(5, "open", "opened", automated=True), *some(2, "click", "clicked", automated=False),
        *some(1, "spam", "complained"), *some(1, "open", "opened", webhook="quiet", automated=False),
    ])  # fmt: skip
    fold()

    quiet, orders = sorted(
        ask(client, group_by=("webhook",))["data"], key=lambda row: row["group"]["webhook"] == "orders"
    )
    (by_type, *_) = ask(client, group_by=("type",))["data"]

    assert orders["rates"] == {
        "delivery": 0.8, "bounce": 0.1, "open": 0.375, "click": 0.25, "complaint": 0.125, "unsubscribe": 0.0,
    }  # fmt: skip
    assert orders["automated"] == {"open": 5, "click": 0}
    assert set(quiet["rates"].values()) == set(by_type["rates"].values()) == {None}


def test_domains_and_campaigns_come_by_volume(client, database, fold):
    rng = random.Random(4)
    events = [random_event(rng) for _ in range(300)]
    insert(database, Event, events)
    fold(200)

    domains = client.get("/v1/stats/domains", params={"limit": 2}).json()["data"]
    campaigns = client.get("/v1/stats/campaigns", params={"webhook": "news"}).json()["data"]

    wanted = {e["email_domain"]: 0 for e in events if e["email_domain"]}
    for event in events:
        if event["email_domain"] and not event["test"]:
            wanted[event["email_domain"]] += 1
    told = [(row["group"]["email_domain"], sum(row["counts"].values())) for row in domains]
    assert sorted(told, key=lambda pair: -pair[1]) == told
    assert told == sorted(wanted.items(), key=lambda pair: (-pair[1], pair[0]))[:2]
    in_campaigns = [
        e for e in events if e["webhook"] == "news" and not e["test"] and (e["campaign_id"] or e["custom_campaign"])
    ]
    assert sum(sum(row["counts"].values()) for row in campaigns) == len(in_campaigns)
    assert all("start" not in row and any(row["group"].values()) for row in campaigns)


def test_long_ranges_are_sampled_and_say_so_and_what_is_remembered_is_not_stale(client, database, fold, monkeypatch):
    for name, most in {"EXACT": 3000, "EXACT_LONG": 3000, "SAMPLE": 500}.items():
        monkeypatch.setattr(scale, name, most)
    rng = random.Random(8)
    moments = [START + timedelta(seconds=rng.randrange(6 * 3600)) for _ in range(4000)]
    events = [
        event_values(email=f"{n % 2000}@example.com", message_id=str(n), occurred_at=at, automated=False)
        for n, at in enumerate(moments)
    ]
    insert(database, Event, events)
    fold()

    told = ask(client)
    (day,) = ask(client, before=START + timedelta(hours=3))["data"]
    again = ask(client, before=START + timedelta(hours=3))
    gone = [event["id"] for event in events[:10]]
    database.write(lambda connection: uncount(connection, gone))
    (after,) = ask(client, before=START + timedelta(hours=3))["data"]

    assert (told["unique_exact"], told["unique_sample"]) == (False, 0.125)
    recipients = sum(row["unique"]["recipients"] for row in told["data"])
    assert 2000 < recipients < 4000 * 1.2
    early = [event for event in events if event["occurred_at"] < START + timedelta(hours=3)]
    assert day["unique"] == {"recipients": len({e["email"] for e in early}), "messages": len(early)}
    assert (again["data"], again["unique_exact"]) == ([day], True)
    assert after["unique"]["messages"] == len([event for event in early if event["id"] not in gone])


def test_a_sample_holds_what_is_not_counted_yet(client, database, fold, monkeypatch):
    for name, most in {"EXACT": 500, "EXACT_LONG": 500, "SAMPLE": 250}.items():
        monkeypatch.setattr(scale, name, most)

    def people(first: int, count: int) -> None:
        insert(database, Event, [
            event_values(email=f"{n}@example.com", message_id=str(n), occurred_at=START, automated=False)
            for n in range(first, first + count)
        ])  # fmt: skip

    def told() -> list[int]:
        (day,) = ask(client)["data"]
        (table,) = client.get("/v1/stats/domains").json()["data"]
        return [row["unique"]["recipients"] for row in (day, table)]

    people(0, 600)
    fold()
    before = told()
    people(600, 1200)

    assert all(400 < number < 800 for number in before)
    assert all(1300 < number < 2300 for number in told())


def test_of_a_row_that_is_mostly_not_counted_yet_the_sample_is_taken_from_that_too(client, database, fold, monkeypatch):
    """A day, and a domain, of which three events a message have just come: not as many messages as events, nor one."""
    for name, most in {"EXACT": 500, "EXACT_LONG": 500, "SAMPLE": 250}.items():
        monkeypatch.setattr(scale, name, most)

    def tell_of(domain: str, messages: int, times: int, at: datetime) -> None:
        insert(database, Event, [
            event_values(email=f"{n}@{domain}", message_id=f"{domain}{n}", occurred_at=at, automated=False)
            for n in range(messages) for _ in range(times)
        ])  # fmt: skip

    tell_of("example.com", 1000, 1, START)
    tell_of("example.org", 3, 1, START + timedelta(days=1))
    fold()
    tell_of("example.org", 400, 3, START + timedelta(days=1))
    days, domains = ask(client), client.get("/v1/stats/domains").json()

    assert (days["unique_exact"], domains["unique_exact"]) == (False, False)
    for told in (days["data"][1], domains["data"][0]):
        assert told["counts"] == {"open": 1203}
        assert all(250 < number < 600 for number in told["unique"].values())


def test_a_tail_that_is_too_long_is_told(client, database, fold, monkeypatch):
    monkeypatch.setattr(loose, "MOST_TAIL", 10)
    insert(database, Event, [event_values(occurred_at=START, automated=False) for _ in range(30)])

    fold(15)
    part = ask(client)
    fold(5)
    whole = ask(client)

    assert (part["complete"], part["data"][0]["counts"]) == (False, {"open": 25})
    assert (whole["complete"], whole["data"][0]["counts"]) == (True, {"open": 30})
    assert part["as_of"] < whole["as_of"]


def test_a_sampled_table_is_remembered_until_a_hundredth_more_is_counted(client, database, fold, monkeypatch):
    for name, most in {"EXACT": 300, "EXACT_LONG": 300, "SAMPLE": 100}.items():
        monkeypatch.setattr(scale, name, most)

    def add(count: int) -> None:
        insert(database, Event, [
            event_values(email=f"{n}@example.com", message_id=None, occurred_at=START, automated=False)
            for n in range(count)
        ])  # fmt: skip
        fold()

    looks = []
    look = uniques._look
    monkeypatch.setattr(uniques, "_look", lambda *given: looks.append(1) or look(*given))
    told = []
    for count in (3013, 5, 20, 30):  # up to 3042 is about the same
        add(count)
        (row,) = client.get("/v1/stats/domains").json()["data"]
        told.append((sum(row["counts"].values()), len(looks)))

    assert told == [(3013, 1), (3018, 1), (3038, 1), (3068, 2)]
