"""What is past its time goes, in slices, and what is owed stays; on both databases."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog
from hypothesis import given
from hypothesis import strategies as st

from app.audit.service import audit
from app.db import Database
from app.maintenance.expiry import ranges_to_slice
from app.maintenance.pacing import Pace
from app.maintenance.retention import Retention, Rules
from app.migrate import migrate
from app.models import Attempt, Delivery, Event, LedgerEntry, Quarantined, Replay
from app.partitions import first_id, list_weeks, week_of
from tests.factories import insert, make_event, make_quarantined
from tests.maintenance.support import DAY, NOW, always, at_once, count, every_text, in_step, retain, store, stored_ids

NINETY = Rules(90)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_finished_events_past_retention_go_with_their_deliveries_and_attempts(database: Database, size: int) -> None:
    kept = [*store(database, 4, days=89.9), *store(database, 1, days=-1)]
    store(database, 5, days=90.1, attempt=True)
    store(database, 2, days=400, state="dead")
    store(database, 1, days=400, state="cancelled")
    store(database, 1, days=400, state=None)

    found = retain(database, NINETY, size=size)

    assert stored_ids(database) == set(kept)
    assert {name: found.rows[name] for name in ("events", "deliveries", "attempts")} == {
        "events": 9, "deliveries": 8, "attempts": 5,
    }  # fmt: skip
    assert (count(database, Delivery), count(database, Attempt)) == (5, 0)
    assert retain(database, NINETY).rows.total() == 0


def test_what_is_owed_to_a_sink_stays_until_it_is_settled_or_the_setting_says_otherwise(database: Database) -> None:
    owed = store(database, 3, days=200, state="pending")
    store(database, 3, days=200)

    retain(database, NINETY, size=2)
    assert stored_ids(database) == set(owed)

    _set(database, owed[0], state="delivered")
    retain(database, NINETY, size=2)
    assert stored_ids(database) == set(owed[1:])

    retain(database, Rules(90, though_owed=True), size=2)
    assert stored_ids(database) == set()
    assert count(database, Delivery) == 0


def test_what_came_in_late_stays_as_long_from_then_on(database: Database) -> None:
    late = store(database, 3, days=400, received_at=NOW - 89 * DAY)
    store(database, 3, days=400)

    retain(database, NINETY, size=2)
    assert stored_ids(database) == set(late)

    retain(database, NINETY, size=2, now=NOW + 2 * DAY)
    assert stored_ids(database) == set()


def test_without_days_nothing_goes(database: Database) -> None:
    kept = store(database, 2, days=20_000)

    assert retain(database, Rules(None)).rows.total() == 0
    assert stored_ids(database) == set(kept)


def test_a_round_that_finds_nothing_asks_few_questions_and_deletes_nothing(database: Database) -> None:
    """A service at rest is promised to make no more than a statement a second, also while a round is on."""
    store(database, 3, days=10)
    retain(database, NINETY)  # PostgreSQL has its weeks from now on
    asked: list[str] = []

    def note(*found: object) -> None:
        asked.append(str(found[2]))

    engines = {database.writer, database.reader} if database.is_sqlite else {database.writer}
    for engine in engines:
        sa.event.listen(engine, "before_cursor_execute", note)
    retention = Retention(NINETY, database, now=lambda: NOW, sleep=at_once, ahead=in_step)
    asyncio.run(retention.round(Pace(always, sleep=at_once)))

    work = [sql for sql in asked if not sql.startswith(("BEGIN", "PRAGMA"))]
    assert 2 <= len(work) <= 3, work  # the weeks, the oldest event, what else is old
    assert not any(sql.startswith("DELETE") for sql in work)


def test_quarantine_and_finished_replays_go_by_the_same_days(database: Database) -> None:
    make_quarantined(database, received_at=NOW - 91 * DAY)
    young = make_quarantined(database, received_at=NOW - 89 * DAY)
    insert(database, Replay, [_replay("a", NOW - 91 * DAY), _replay("b", NOW - 89 * DAY), _replay("c", None)])

    found = retain(database, NINETY)

    assert (found.rows["quarantine"], found.rows["replays"]) == (1, 1)
    assert _ids(database, Quarantined) == {young["id"]}
    assert {id[-1] for id in _ids(database, Replay)} == {"b", "c"}


def test_a_round_that_breaks_off_is_gone_on_with_by_the_next(database: Database) -> None:
    store(database, 40, days=100)
    slices = iter(range(3))

    async def crash() -> None:
        if next(slices, None) is None:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        retain(database, NINETY, size=20, go_on=crash)
    assert retain(database, NINETY).rows["events"] < 40
    assert stored_ids(database) == set()


def test_events_that_come_in_meanwhile_are_neither_lost_nor_kept_from_coming(database: Database) -> None:
    store(database, 60, days=100)
    pending = store(database, 5, days=100, state="pending")
    fresh: list[str] = []

    async def beside() -> None:
        fresh.extend(store(database, 1, days=1, state="pending"))

    retain(database, NINETY, size=20, go_on=beside)

    assert fresh
    assert stored_ids(database) == {*fresh, *pending}


def test_the_numbers_of_deleted_events_are_not_given_out_again(database: Database) -> None:
    store(database, 3, days=100)
    with database.reading() as connection:
        newest = connection.execute(sa.select(sa.func.max(Event.__table__.c.seq))).scalar_one()  # type: ignore[attr-defined]

    retain(database, NINETY)
    make_event(database)

    with database.reading() as connection:
        assert connection.execute(sa.select(sa.func.min(Event.__table__.c.seq))).scalar_one() > newest  # type: ignore[attr-defined]


# --- payloads --------------------------------------------------------------------------------------------------------

EARLY = Rules(90, payload_days=30)


def test_payloads_and_what_is_personal_go_earlier_and_the_rest_stays(database: Database) -> None:
    address = "someone@example.com"
    store(
        database, 3, days=31, attempt=True, email=address, custom_id="u-1", contact_id="77",
        reason=f"550 {address} unknown", campaign_id="7", message_id="123",
    )  # fmt: skip
    young = store(database, 1, days=29, email="b@example.com")

    found = retain(database, EARLY, size=2)

    assert found.rows["payloads"] == 3
    assert not [place for place in every_text(database) if "someone@" in place[2]]
    row = next(row for row in _rows(database, Event) if row["id"] not in young)
    assert (row["email"], row["raw"], row["custom_id"], row["contact_id"], row["reason"]) == (None,) * 5
    assert (row["email_domain"], row["campaign_id"], row["message_id"]) == ("example.com", "7", "123")
    assert [row["id"] for row in _rows(database, Event) if row["raw"] is not None] == young
    assert retain(database, EARLY).rows.total() == 0


def test_a_payload_that_is_owed_stays_until_it_is_settled(database: Database) -> None:
    (owed,) = store(database, 1, days=40, state="pending")
    store(database, 4, days=40)

    assert retain(database, EARLY).rows["payloads"] == 4
    assert retain(database, EARLY).rows["payloads"] == 0
    _set(database, owed, state="delivered")
    assert retain(database, EARLY).rows["payloads"] == 1
    assert retain(database, EARLY).rows["payloads"] == 0


def test_an_event_stored_late_with_an_older_time_loses_its_payload_too(database: Database) -> None:
    store(database, 4, days=31)
    retain(database, EARLY)

    for _ in range(3):
        store(database, 2, days=50)
        assert retain(database, EARLY).rows["payloads"] == 2


def test_once_payloads_stay_longer_what_comes_late_or_was_owed_stays_as_long(database: Database) -> None:
    store(database, 1, days=15)
    (owed,) = store(database, 1, days=16, state="pending")
    retain(database, Rules(90, payload_days=10))
    late = store(database, 2, days=20)
    _set(database, owed, state="delivered")

    def with_payload() -> set[str]:
        return {row["id"] for row in _rows(database, Event) if row["raw"] is not None}

    for _ in range(3):  # until all is seen
        assert retain(database, EARLY).rows["payloads"] == 0
    assert with_payload() == {owed, *late}
    retain(database, EARLY, now=NOW + 11 * DAY)
    assert with_payload() == {owed}
    retain(database, EARLY, now=NOW + 15 * DAY)
    assert with_payload() == set()


def test_a_round_changes_nothing_where_nothing_is_new(database: Database) -> None:
    store(database, 30, days=40)
    retain(database, EARLY)
    retain(database, EARLY)
    looked: list[int] = []
    sa.event.listen(database.writer, "before_cursor_execute", lambda *a: looked.append("UPDATE events" in a[2]))

    retain(database, EARLY)

    assert sum(looked) == 0


# --- weeks of PostgreSQL ---------------------------------------------------------------------------------------------


@given(
    cutoff=st.integers(0, 60).map(lambda n: first_id(NOW + n * DAY)),
    waiting=st.lists(st.integers(0, 9), unique=True).map(
        lambda found: [week_of(NOW + 7 * n * DAY) for n in sorted(found)]
    ),
)
def test_the_ranges_are_all_ids_up_to_the_cutoff_but_the_waiting_weeks(cutoff, waiting):
    ranges = ranges_to_slice(waiting, cutoff)

    for days in range(-10, 75):
        probe = first_id(NOW + days * DAY + timedelta(hours=1))
        waits = any(week.first_id < probe < week.beyond for week in waiting)
        inside = [r for r in ranges if r[0] < probe <= r[1]]
        if waits:
            assert not inside
        else:
            assert len(inside) == (probe <= cutoff)


@pytest.fixture
def weekly(make_database) -> Iterator[Database]:
    """A database of its own, of which retention makes and drops partitions."""
    opened = Database(make_database("postgresql"))
    migrate(opened)
    yield opened
    opened.close()


def _weeks(database: Database) -> list[str]:
    with database.reading() as connection:
        return [f"{week.start:%Y-%m-%d}" for week in list_weeks(connection)]


def _part_of(database: Database, event_id: str) -> str:
    with database.reading() as connection:
        statement = sa.text("SELECT tableoid::regclass::text FROM events WHERE id = :id")
        return str(connection.execute(statement, {"id": event_id}).scalar_one())


def test_weeks_are_made_ahead_dropped_whole_and_take_what_lay_in_the_default_partition(weekly: Database) -> None:
    start = NOW - 100 * DAY
    (ahead,) = store(weekly, 1, days=93)  # of a clock that is ahead: its week has no partition yet
    assert _part_of(weekly, ahead) == "events_rest"

    retain(weekly, NINETY, now=start)  # makes its own week and two more
    assert _part_of(weekly, ahead).startswith("events_w2026")
    old = store(weekly, 7, days=100, attempt=True)
    assert {_part_of(weekly, id) for id in old} == {f"events_w{week_of(start).start:%Y%m%d}"}

    found = retain(weekly, NINETY)

    assert found.weeks_dropped >= 1
    assert f"{week_of(start).start:%Y-%m-%d}" not in _weeks(weekly)
    assert not stored_ids(weekly) & set(old)
    assert found.rows["events"] == 8 - len(stored_ids(weekly))
    assert retain(weekly, NINETY, now=NOW + 10 * DAY).weeks_dropped >= 1
    assert stored_ids(weekly) == set()


def test_a_week_in_which_something_is_owed_is_sliced_and_not_dropped(weekly: Database) -> None:
    retain(weekly, NINETY, now=NOW - 100 * DAY)
    (owed,) = store(weekly, 1, days=100, state="pending")
    store(weekly, 5, days=100)

    retain(weekly, NINETY)
    assert stored_ids(weekly) == {owed}

    _set(weekly, owed, state="dead")
    retain(weekly, NINETY)
    assert stored_ids(weekly) == set()
    assert f"{week_of(NOW - 100 * DAY).start:%Y-%m-%d}" not in _weeks(weekly)


def test_a_week_into_which_something_came_late_is_not_dropped(weekly: Database) -> None:
    retain(weekly, NINETY, now=NOW - 100 * DAY)
    late = store(weekly, 1, days=100, received_at=NOW)
    store(weekly, 5, days=100)

    assert retain(weekly, NINETY).weeks_dropped == 0
    assert stored_ids(weekly) == set(late)


def test_a_reader_that_takes_long_keeps_a_week_and_holds_nobody_up(weekly: Database) -> None:
    retain(weekly, NINETY, now=NOW - 100 * DAY)
    old = store(weekly, 3, days=100)
    with weekly.reading() as reader:
        reader.execute(sa.text("SELECT count(*) FROM events")).scalar_one()

        found = retain(weekly, NINETY)
        fresh = store(weekly, 2, days=1)

        assert found.weeks_dropped == 0
    assert stored_ids(weekly) == {*old, *fresh}
    assert retain(weekly, NINETY).weeks_dropped >= 1
    assert stored_ids(weekly) == set(fresh)


# --- disk ------------------------------------------------------------------------------------------------------------


def test_the_file_shrinks_and_its_bytes_hold_nothing_of_what_went(tmp_path: Path, migrated_sqlite: Path) -> None:
    path = tmp_path / "test.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    database = Database(f"sqlite:///{path}")
    store(database, 3000, days=100, email="gone@example.com")
    kept = store(database, 20, days=1)
    asyncio.run(database.run_aside(lambda c: c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()))
    before = path.stat().st_size

    found = retain(database, NINETY, size=500)

    assert found.pages_freed > 0
    assert path.stat().st_size < before / 3
    files = b"".join(file.read_bytes() for file in tmp_path.glob("test.db*"))
    assert b"gone@" not in files
    assert stored_ids(database) == set(kept)
    database.close()


def test_a_file_that_cannot_shrink_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as old:
        old.execute("PRAGMA auto_vacuum=NONE")
        old.execute("PRAGMA journal_mode=WAL")
    old.close()
    database = Database(f"sqlite:///{path}")
    migrate(database)
    with structlog.testing.capture_logs() as logs:
        stop = asyncio.Event()
        stop.set()
        asyncio.run(Retention(NINETY, database).run(stop, _no))
    assert [line["event"] for line in logs] == ["retention.file_cannot_shrink"]
    database.close()


async def _no() -> bool:
    return False


# --- support ---------------------------------------------------------------------------------------------------------


def _set(database: Database, event_id: str, **values: object) -> None:
    table = Delivery.__table__  # type: ignore[attr-defined]
    database.write(lambda c: c.execute(sa.update(table).where(table.c.event_id == event_id).values(**values)))


def _rows(database: Database, model) -> list[dict]:
    with database.reading() as connection:
        return [dict(row) for row in connection.execute(sa.select(model.__table__)).mappings()]


def _ids(database: Database, model) -> set[str]:
    return {row["id"] for row in _rows(database, model)}


def _replay(name: str, finished_at) -> dict:
    return {
        "id": f"019ded47-d100-7c4e-9a51-3f9c2b7d1e6{name}", "sink": "crm", "selection": '{"filter":{}}',
        "state": "running" if finished_at is None else "done", "count": 0, "last_seq": 0, "created_at": NOW - 99 * DAY,
        "finished_at": finished_at,
    }  # fmt: skip


def test_the_ledger_of_what_is_long_gone_is_one_line_and_the_audit_stays_exact(database: Database) -> None:
    store(database, 3, days=120)
    store(database, 2, days=91)
    make_quarantined(database, received_at=NOW - 120 * DAY)
    kept = store(database, 2, days=10)

    found = retain(database, NINETY)  # which audits

    assert found.rows["ledger"] == 3  # events, deliveries and quarantine of that day
    with database.reading() as connection:
        report = audit(connection)
    assert {name: report.events[name] for name in ("accepted", "stored", "expired")} == {
        "accepted": 8, "stored": len(kept), "expired": 6,
    }  # fmt: skip
    assert count(database, LedgerEntry) == 3 + 4
