"""What the audit says of a database that is whole, and of one that is not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from app import ledger
from app.audit.service import Report, audit
from app.db import Database
from app.ledger import Entry
from app.maintenance.expiry import delete_quarantine
from app.models import Delivery, Event, Quarantined
from app.query import queries
from tests.factories import make_delivery, make_event, make_quarantined

_events: sa.Table = Event.__table__  # type: ignore[attr-defined]
_deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
_quarantine: sa.Table = Quarantined.__table__  # type: ignore[attr-defined]
MAY = datetime(2026, 5, 3, 12, 0, tzinfo=UTC)
STATES = ("pending", "delivered", "dead", "cancelled")


def look(database: Database, **ends: Any) -> Report:
    with database.reading() as connection:
        return audit(connection, **ends)


def make(database: Database, number: int = 1, *, at: datetime = MAY, sinks: tuple[str, ...] = ("crm",)) -> list[str]:
    """Events with their deliveries, and their lines in the ledger; the ids."""
    ids = []
    for n in range(number):
        event = make_event(database, occurred_at=at + timedelta(seconds=n))
        for sink in sinks:
            make_delivery(database, event, sink=sink, state=STATES[n % 4])
        owed = [(event["id"], "orders", sink) for sink in sinks]
        key = (event["id"], "orders")
        database.write(
            lambda c, key=key, owed=owed: ledger.record(c, Entry.MADE, events=[key], deliveries=owed)  # type: ignore[misc]
        )
        ids.append(event["id"])
    return ids


def drop(database: Database, *statements: sa.Delete | sa.Update) -> None:
    database.write(lambda c: [c.execute(statement) for statement in statements])


def event_is(event_id: str) -> sa.Delete:
    return sa.delete(_events).where(_events.c.id == event_id)


def deliveries_of(event_id: str) -> sa.Delete:
    return sa.delete(_deliveries).where(_deliveries.c.event_id == event_id)


def test_an_empty_database_adds_up(database: Database) -> None:
    report = look(database)

    assert report.is_clean
    assert report.to_json()["events"]["accepted"] == 0


def test_a_whole_one_adds_up_and_is_told_by_webhook_and_sink(database: Database) -> None:
    make(database, 6, sinks=("crm", "bi"))

    report = look(database).to_json()

    nothing_else = {"erased": 0, "expired": 0, "missing": 0, "unaccounted": 0}
    assert report["ok"] is True
    assert report["differences"] == []
    assert report["webhooks"] == [{"webhook": "orders", "accepted": 6, "stored": 6, "quarantined": 0} | nothing_else]
    crm = {"owed": 6, "pending": 2, "delivered": 2, "dead": 1, "cancelled": 1} | nothing_else
    assert report["sinks"] == [{"sink": "bi"} | crm, {"sink": "crm"} | crm]
    assert report["deliveries"]["owed"] == 12


@pytest.mark.parametrize(
    ("harm", "kinds"),
    [
        pytest.param(lambda i: [event_is(i)], ["events_missing", "deliveries_orphaned"], id="an event is gone"),
        pytest.param(
            lambda i: [event_is(i), deliveries_of(i)], ["events_missing", "deliveries_missing"], id="all of it is gone"
        ),
        pytest.param(lambda i: [deliveries_of(i)], ["deliveries_missing"], id="its delivery is gone"),
        pytest.param(
            lambda i: [sa.update(_deliveries).where(_deliveries.c.event_id == i).values(state="lost")],
            ["deliveries_missing"],
            id="its delivery is in no state",
        ),
    ],
)
def test_what_is_missing_is_named(
    database: Database, harm: Callable[[str], list[sa.Delete | sa.Update]], kinds: list[str]
) -> None:
    ids = make(database, 3)

    drop(database, *harm(ids[1]))

    report = look(database)
    assert sorted(d.kind for d in report.differences) == sorted(kinds)
    assert not report.is_clean
    for difference in report.differences:
        assert difference.webhook == "orders"
        assert difference.first <= "2026-05-03T12:00:01Z" < difference.end
        if kinds != ["events_missing", "deliveries_missing"]:
            assert difference.event_ids == (ids[1],)
        assert str(difference)


def test_what_nobody_took_in_is_named(database: Database) -> None:
    event = make_event(database)
    make_delivery(database, event)

    report = look(database)

    assert [(d.kind, d.event_ids) for d in report.differences] == [
        ("events_unaccounted", (event["id"],)), ("deliveries_unaccounted", (event["id"],)),
    ]  # fmt: skip
    assert (report.events["unaccounted"], report.deliveries["unaccounted"]) == (1, 1)


def test_a_delivery_to_a_sink_that_is_owed_nothing_is_named_by_its_event(database: Database) -> None:
    known, other = make(database, 2)
    make_delivery(database, {"id": other, "webhook": "orders", "type": "open", "received_at": MAY}, sink="ghost")

    [difference] = look(database).differences

    assert (difference.kind, difference.sink, difference.event_ids) == ("deliveries_unaccounted", "ghost", (other,))
    assert known not in str(difference)


def test_one_too_many_does_not_make_good_one_that_is_missing_elsewhere(database: Database) -> None:
    [lost] = make(database)
    drop(database, event_is(lost), deliveries_of(lost))
    make_event(database, occurred_at=MAY + timedelta(days=1))

    report = look(database)

    assert report.events["accepted"] == report.events["stored"] == 1
    assert sorted(d.kind for d in report.differences) == ["deliveries_missing", "events_missing", "events_unaccounted"]


def test_what_was_deleted_on_purpose_adds_up(database: Database) -> None:
    erased, expired, _ = make(database, 3)
    for event_id, entry in ((erased, Entry.ERASED), (expired, Entry.EXPIRED)):
        owed = [(event_id, "orders", "crm")]
        database.write(
            lambda c, e=entry, i=event_id, o=owed: ledger.record(c, e, events=[(i, "orders")], deliveries=o)  # type: ignore[misc]
        )
        drop(database, event_is(event_id), deliveries_of(event_id))

    report = look(database)

    assert report.is_clean
    assert (report.events["accepted"], report.events["stored"]) == (3, 1)
    assert (report.events["erased"], report.deliveries["expired"]) == (1, 1)


def test_a_sink_added_later_owes_nothing_for_what_came_before(database: Database) -> None:
    make(database, 2, sinks=("crm",))
    make(database, 1, at=MAY + timedelta(hours=1), sinks=("crm", "late"))

    owed = {sink["sink"]: sink["owed"] for sink in look(database).sinks}

    assert owed == {"crm": 3, "late": 1}


def test_a_range_of_time_takes_whole_slots_and_tells_them(database: Database) -> None:
    make(database, 2)
    [later] = make(database, at=MAY + timedelta(hours=2))
    drop(database, event_is(later), deliveries_of(later))

    before = look(database, until=MAY + timedelta(hours=1))
    after = look(database, since=MAY + timedelta(hours=1))

    assert (before.events["accepted"], after.events["accepted"]) == (2, 1)
    assert before.is_clean
    assert not after.is_clean
    assert before.until is not None
    assert MAY + timedelta(hours=1) <= before.until < MAY + timedelta(hours=1, minutes=18)
    assert after.since is not None
    assert MAY + timedelta(minutes=42) < after.since <= MAY + timedelta(hours=1)


def test_the_counts_come_from_indexes(database: Database) -> None:
    """A million rows with what Mailjet sent would be a gigabyte to read."""
    if not database.is_sqlite:
        pytest.skip("PostgreSQL chooses by the size of the table")
    with database.reading() as connection:
        plan = connection.exec_driver_sql(
            "EXPLAIN QUERY PLAN SELECT substr(id, 1, 7), webhook, count(*) FROM events GROUP BY 1, 2"
        ).all()

    assert any("COVERING INDEX" in row[-1] for row in plan), plan


def test_what_could_not_be_read_was_accepted_and_is_in_quarantine_or_was_taken_out(database: Database) -> None:
    make(database, 2)
    kept, deleted, expired = (make_quarantined(database, received_at=MAY + timedelta(days=n)) for n in (2, 1, 0))
    assert database.write(lambda c: queries.delete_quarantined(c, deleted["id"]))
    assert database.write(lambda c: delete_quarantine(c, MAY + timedelta(hours=1), 10)) == 1

    report = look(database)

    assert report.is_clean
    told = report.events
    assert {name: told[name] for name in ("accepted", "stored", "quarantined", "erased", "expired")} == {
        "accepted": 5, "stored": 2, "quarantined": 1, "erased": 1, "expired": 1,
    }  # fmt: skip
    assert look(database, since=kept["received_at"]).events["accepted"] == 1
    assert expired["id"] != kept["id"]


def test_an_entry_of_quarantine_that_is_lost_is_a_difference(database: Database) -> None:
    lost = make_quarantined(database, received_at=MAY)
    drop(database, sa.delete(_quarantine).where(_quarantine.c.id == lost["id"]))

    (difference,) = look(database).differences

    assert (difference.kind, difference.webhook, difference.sink) == ("quarantined_missing", "orders", None)
    assert (difference.expected, difference.found) == (1, 0)
