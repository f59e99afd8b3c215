"""Exports and imports of whole databases, on both kinds."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.clock import from_micros, rfc3339
from app.db import Database, insert_missing
from app.dispatch.matching import Matcher
from app.models import Delivery, Event
from app.settings import load_settings
from app.simulator.traffic import make_events
from app.transfer import service
from app.transfer.files import BadFilters, export_events, parse_filters, whole_file
from app.transfer.service import Importer, Report
from app.views import EVENT_COLUMNS
from tests.transfer.test_lines import row_of

NOW = 1_777_900_000_000_000
TEST_EVENT = {"event": "open", "time": 1_777_000_000, "MessageID": 0, "email": ""}


@pytest.fixture
def stored(database: Database) -> list[tuple[Any, ...]]:
    """Every type, a test event, and two webhooks with the same arrivals."""
    payloads = [*make_events(3, 300, 1_777_000_000), TEST_EVENT]
    rows = [row_of(json.dumps(payload), webhook) for payload in payloads for webhook in ("orders", "archive")]
    database.write(lambda c: insert_missing(c, Event.__table__, EVENT_COLUMNS, rows))
    return everything(database)


def everything(database: Database) -> list[tuple[Any, ...]]:
    columns = [Event.__table__.c[name] for name in EVENT_COLUMNS]
    with database.reading() as connection:
        return [tuple(row) for row in connection.execute(sa.select(*columns).order_by(Event.__table__.c.id))]


def count(database: Database, model: Any) -> int:
    with database.reading() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(model.__table__)).scalar_one()


def empty(database: Database) -> None:
    database.write(lambda c: c.execute(sa.delete(Event.__table__)))


def exported(database: Database, *pairs: str, packed: bool = False) -> bytes:
    file = io.BytesIO()
    export_events(database, parse_filters(pairs), file, gzip=packed, on_progress=lambda n: None)
    return file.getvalue()


def imported(database: Database, body: bytes, **options: Any) -> tuple[Report, list[tuple[int, str]]]:
    faults: list[tuple[int, str]] = []
    importer = Importer(database, on_fault=lambda number, text: faults.append((number, text)), **options)
    file: Any = io.BufferedReader(io.BytesIO(body))  # type: ignore[arg-type]
    return importer.run(file, now_micros=NOW), faults


@pytest.mark.parametrize("packed", [False, True])
def test_what_was_exported_comes_back_as_it_was(database, stored, packed):
    body = exported(database, packed=packed)
    empty(database)

    report, faults = imported(database, body)
    again, _ = imported(database, body)

    assert everything(database) == stored
    assert faults == []
    assert report == Report(lines=len(stored), stored=len(stored))
    assert again == Report(lines=len(stored), duplicates=len(stored))
    assert count(database, Delivery) == 0


def test_filters_choose_what_is_exported(database, stored):
    lines = [json.loads(line) for line in exported(database, "type=open", "type=click", "webhook=orders").splitlines()]

    assert [line["id"] for line in lines] == [
        row[0] for row in stored if row[1] == "orders" and row[3] in ("open", "click")
    ]


def test_bad_lines_are_told_by_number_and_stop_nothing(database, stored, monkeypatch):
    monkeypatch.setattr(service, "BATCH_EVENTS", 100)
    monkeypatch.setattr(service, "MAX_LINE_BYTES", 20_000)
    lines = exported(database).splitlines(keepends=True)
    empty(database)
    lines[4:4] = [b"\n", b"{broken\n", b"x" * 50_000 + b"\n"]  # lines 5 to 7
    lines[-1] = lines[-1][:50]

    report, faults = imported(database, b"".join(lines))

    last = len(lines)
    assert [number for number, _ in faults] == [6, 7, last]
    assert faults[1][1] == "longer than 20000 bytes"
    assert everything(database) == stored[:-1]
    assert (report.lines, report.stored, report.faults) == (last - 1, len(stored) - 1, 3)


def test_a_line_given_twice_is_one_event(database, stored):
    body = exported(database)
    empty(database)

    report, _ = imported(database, body + body)

    assert (report.stored, report.duplicates) == (len(stored), len(stored))


def test_a_packed_file_that_was_cut_off_is_told_and_what_is_whole_is_stored(database, stored):
    body = exported(database, packed=True)
    empty(database)

    report, faults = imported(database, body[: len(body) // 2])

    assert "not whole" in faults[-1][1]
    assert 0 < report.stored < len(stored)
    assert set(everything(database)) < set(stored)


def test_on_demand_what_is_new_is_owed_to_the_sinks_and_test_events_never_are(database, stored):
    sinks = load_settings(
        {
            "JETHOOK_SINKS__CRM__URL": "http://crm.test",
            "JETHOOK_SINKS__CRM__EVENTS": "open",
            "JETHOOK_SINKS__CRM__WEBHOOKS": "orders",
            "JETHOOK_WEBHOOKS__ORDERS__EVENTS": "open",
        },
        env_file=None,
    ).sinks
    body = exported(database)
    opens = {row[0] for row in stored if row[1] == "orders" and row[3] == "open" and not row[7]}
    kept = min(opens)
    database.write(lambda c: c.execute(sa.delete(Event.__table__).where(Event.__table__.c.id != kept)))

    report, _ = imported(database, body, matcher=Matcher(sinks))

    table = Delivery.__table__
    with database.reading() as connection:
        owed = connection.execute(sa.select(table.c.event_id, table.c.sink, table.c.state, table.c.created_at)).all()
    assert {row.event_id for row in owed} == opens - {kept}
    assert {(row.sink, row.state, row.created_at) for row in owed} == {("crm", "pending", from_micros(NOW))}
    assert report.deliveries == len(opens) - 1


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path):
    path = tmp_path / "events.ndjson"
    path.write_bytes(b"before")

    def fail_half_way() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("events.ndjson", b"before")]

    with whole_file(path) as file:
        file.write(b"whole")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("events.ndjson", b"whole")]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (["emial=a"], "emial: there is no such filter"),
        (["type"], "type: there is no such filter"),
        (["order=asc"], "order: there is no such filter"),
        (["after=yesterday", "test=x"], "after: must be an RFC 3339 time"),
    ],
)
def test_filters_that_do_not_fit_are_told(pairs, says):
    with pytest.raises(BadFilters, match=says):
        parse_filters(pairs)


def test_values_may_hold_an_equals_sign_and_repeat():
    asked = parse_filters(["custom_id=a=b", "custom_id=c", "after=2026-05-03T10:00:00Z"], order="desc")

    assert (asked.custom_id, asked.order) == (["a=b", "c"], "desc")
    assert rfc3339(asked.after[0]) == "2026-05-03T10:00:00Z"


def test_gzip_is_told_by_its_first_bytes_even_of_an_empty_file(database):
    assert imported(database, gzip.compress(b""))[0] == Report()
    assert imported(database, b"")[0] == Report()
