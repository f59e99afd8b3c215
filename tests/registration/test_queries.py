"""The statements of registration on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from app.db import Database
from app.registration import queries
from app.registration.plan import Original, SlotKey
from app.registration.queries import CallbackState, Checked
from tests.factories import make_event

NOON = datetime(2026, 5, 3, 12, 0, tzinfo=UTC)
OPEN = Checked("default", "open", False, CallbackState.OK, "orders", None, "90001", NOON, None)


def checked(database: Database, name: str = "default") -> list[Checked]:
    with database.reading() as connection:
        return list(queries.list_checked(connection, name).values())


def test_what_was_found_is_written_over_what_was_found_before(database):
    backup = replace(OPEN, backup=True, mailjet_id=None)
    shop = replace(OPEN, connection="shop")
    later = replace(OPEN, state=CallbackState.FOREIGN, held_by="https://h", checked_at=NOON + timedelta(minutes=5))
    database.write(lambda c: queries.record_checked(c, [OPEN, backup, shop]))
    database.write(lambda c: queries.record_checked(c, [later]))

    assert sorted(checked(database), key=lambda row: row.backup) == [later, backup]
    assert checked(database, "shop") == [shop]


def test_a_failed_look_keeps_what_was_known_of_the_callback(database):
    failed = replace(OPEN, state=CallbackState.ERROR, mailjet_id=None, error="down")
    database.write(lambda c: queries.record_failed_look(c, [failed]))
    assert checked(database) == [failed]

    database.write(lambda c: queries.record_checked(c, [OPEN]))
    database.write(lambda c: queries.record_failed_look(c, [failed]))
    assert checked(database) == [replace(failed, mailjet_id="90001")]


def test_slots_no_longer_wanted_are_dropped(database):
    shop = replace(OPEN, connection="shop")
    rows = [OPEN, replace(OPEN, backup=True), replace(OPEN, type="click"), shop]
    database.write(lambda c: queries.record_checked(c, rows))

    database.write(lambda c: queries.forget(c, "default", [SlotKey("open", True), SlotKey("click", False)]))

    assert checked(database) == [OPEN]
    assert checked(database, "shop") == [shop]


def test_originals_are_remembered_and_forgotten_by_slot(database):
    key, backup = SlotKey("open", False), SlotKey("open", True)
    first, second = Original("https://u:p@h/1", 1), Original("https://u:p@h/2", 2)

    def remember(connection):
        queries.remember_original(connection, "default", key, first, NOON)
        queries.remember_original(connection, "default", backup, first, NOON)
        queries.remember_original(connection, "default", key, second, NOON)

    database.write(remember)
    with database.reading() as connection:
        assert queries.list_originals(connection, "default") == {key: second, backup: first}
        assert queries.list_originals(connection, "shop") == {}

    database.write(lambda c: queries.forget_original(c, "default", key))
    with database.reading() as connection:
        assert queries.list_originals(connection, "default") == {backup: first}


def test_the_newest_event_of_a_type_is_found(database):
    for hours in (1, 3, 2):
        at = NOON + timedelta(hours=hours)
        make_event(database, webhook="orders", type="open", occurred_at=at, received_at=at + timedelta(seconds=1))
    make_event(database, webhook="other", type="open", occurred_at=NOON + timedelta(hours=9))

    with database.reading() as connection:
        assert queries.last_event_at(connection, "orders", "open") == NOON + timedelta(hours=3, seconds=1)
        assert queries.last_event_at(connection, "orders", "click") is None
