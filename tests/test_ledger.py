"""The ledger on both databases: lines add up whoever writes them, and whoever writes at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from app import ledger
from app.db import Database
from app.ingest.identity import event_id
from app.ledger import Entry
from app.models import Delivery, Event, LedgerEntry
from tests.factories import make_delivery, make_event

_ledger: sa.Table = LedgerEntry.__table__  # type: ignore[attr-defined]


def lines(database: Database) -> dict[tuple[str, str, str], tuple[int, int, int]]:
    keys = (_ledger.c.slot, _ledger.c.webhook, _ledger.c.sink)
    sums = (sa.func.sum(_ledger.c[entry]) for entry in Entry)
    with database.reading() as connection:
        rows = connection.execute(sa.select(*keys, *sums).group_by(*keys)).all()
    return {(slot, webhook, sink): (int(m), int(e), int(x)) for slot, webhook, sink, m, e, x in rows}


@given(st.datetimes(datetime(1970, 1, 1), datetime(2099, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_an_events_id_begins_with_the_slot_of_its_time(moment: datetime) -> None:
    identity = event_id("orders", int(moment.timestamp()), {})

    slot = identity[: ledger.SLOT_DIGITS]

    whole_second = datetime.fromtimestamp(int(moment.timestamp()), UTC)
    assert slot == ledger.slot_of(whole_second)
    assert ledger.slot_start(slot) <= whole_second < ledger.slot_start(ledger.next_slot(slot))
    assert slot < ledger.next_slot(slot)


def test_what_is_made_and_deleted_is_added_up_by_slot_webhook_and_sink(database: Database) -> None:
    early, late = "01a00000-rest", "01a00010-rest"

    def work(connection: sa.Connection) -> None:
        ledger.record(connection, Entry.MADE, events=[(early, "orders"), (late, "orders"), (early + "x", "orders")])
        ledger.record(connection, Entry.MADE, deliveries=[(early, "orders", "crm")])
        ledger.record(connection, Entry.ERASED, events=[(early, "orders")], deliveries=[(early, "orders", "crm")])
        ledger.record(connection, Entry.EXPIRED, events=[(late, "orders")])
        ledger.record(connection, Entry.MADE)

    database.write(work)

    assert lines(database) == {
        ("01a0000", "orders", ""): (2, 1, 0),
        ("01a0001", "orders", ""): (1, 0, 1),
        ("01a0000", "orders", "crm"): (1, 1, 0),
    }


def test_writers_at_once_lose_nothing(database: Database) -> None:
    ids = [(f"{number:07x}0-0000", "orders") for number in range(40)]

    def work(_: int) -> None:
        database.write(lambda connection: ledger.record(connection, Entry.MADE, events=ids))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(24)))

    assert set(lines(database).values()) == {(24, 0, 0)}


def test_all_of_a_table_can_be_written_off_before_it_is_dropped(database: Database) -> None:
    events: Any = Event.__table__  # type: ignore[attr-defined]
    deliveries: Any = Delivery.__table__  # type: ignore[attr-defined]
    event = make_event(database, webhook="orders")
    make_event(database, webhook="news", occurred_at=event["occurred_at"] + timedelta(hours=5))
    make_delivery(database, event, sink="crm")
    orders = sa.select(events).where(events.c.webhook == "orders").subquery()

    database.write(lambda c: ledger.add(c, Entry.EXPIRED, ledger.count_all_of(c, events=orders, deliveries=deliveries)))

    slot = event["id"][:7]
    assert lines(database) == {(slot, "orders", ""): (0, 0, 1), (slot, "orders", "crm"): (0, 0, 1)}


def test_lines_of_which_nothing_is_left_become_one_and_the_others_stay(database: Database) -> None:
    past, gone, owed, young = ledger.THE_PAST, "01a0000", "01a0001", "01a0009"

    def work(connection: sa.Connection) -> None:
        for slot in (gone, owed, young):
            ledger.record(connection, Entry.MADE, events=[(f"{slot}{n}", "orders") for n in range(3)])
        ledger.record(connection, Entry.MADE, deliveries=[(f"{gone}0", "orders", "crm")])
        ledger.record(connection, Entry.ERASED, events=[(f"{gone}0", "orders")])
        ledger.record(connection, Entry.EXPIRED, events=[(f"{gone}{n}", "orders") for n in (1, 2)])
        ledger.record(connection, Entry.EXPIRED, events=[(f"{owed}1", "orders")])
        ledger.record(connection, Entry.EXPIRED, events=[(f"{young}{n}", "orders") for n in range(3)])

    database.write(work)
    before = lines(database)

    assert database.write(lambda c: ledger.put_together(c, "01a0008", 10)) == 1
    assert database.write(lambda c: ledger.put_together(c, "01a0008", 10)) == 0

    assert lines(database) == {
        line: numbers for line, numbers in before.items() if line != (gone, "orders", "")
    } | {(past, "orders", ""): (3, 1, 2)}  # fmt: skip


def test_a_line_in_which_something_is_stored_again_counts_anew(database: Database) -> None:
    def once(connection: sa.Connection) -> None:
        ledger.record(connection, Entry.MADE, events=[("01a00000", "orders")])
        ledger.record(connection, Entry.EXPIRED, events=[("01a00000", "orders")])

    for _ in range(2):
        database.write(once)
        database.write(lambda c: ledger.put_together(c, "01a0008", 10))
    database.write(lambda c: ledger.record(c, Entry.MADE, events=[("01a00001", "orders")]))

    assert lines(database) == {(ledger.THE_PAST, "orders", ""): (2, 0, 2), ("01a0000", "orders", ""): (1, 0, 0)}
