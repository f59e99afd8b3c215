from __future__ import annotations

import io
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from app.cli import cli as commands
from app.db import Database
from app.models import Event
from app.query import exporting, parquet
from app.query.exporting import Export, ExportFilters
from tests.factories import NOON, event_values, insert, make_event

pq = pytest.importorskip("pyarrow.parquet")


def test_an_export_as_parquet_holds_every_event_with_its_types(client: TestClient, database: Database) -> None:
    stored = sorted(
        (event_values(occurred_at=NOON + timedelta(seconds=n), permanent=(True, None)[n % 2]) for n in range(20)),
        key=lambda row: row["id"],
    )
    insert(database, Event, stored)

    answer = client.get("/v1/exports/events?format=parquet", headers={"accept-encoding": "gzip"})

    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    assert answer.headers["content-disposition"].endswith('.parquet"')
    assert "content-encoding" not in answer.headers  # it is compressed already
    table = pq.read_table(io.BytesIO(answer.content))
    assert table.column_names == list(parquet.COLUMNS)
    for name in ("id", "webhook", "email", "occurred_at", "received_at", "permanent", "test", "list_id", "raw"):
        assert table.column(name).to_pylist() == [row[name] for row in stored]
    assert [text[:1] for text in table.column("details").to_pylist()] == ["{"] * 20


def test_no_event_is_a_parquet_file_too(client: TestClient) -> None:
    table = pq.read_table(io.BytesIO(client.get("/v1/exports/events?format=parquet&type=none").content))

    assert (table.num_rows, table.column_names) == (0, list(parquet.COLUMNS))


def test_opens_by_machines_and_by_people_are_told_apart(client: TestClient, database: Database) -> None:
    told = [True, False, None]
    insert(database, Event, [event_values(type="open", automated=verdict) for verdict in told])

    table = pq.read_table(io.BytesIO(client.get("/v1/exports/events?format=parquet&order=asc").content))

    assert sorted(map(str, table.column("automated").to_pylist())) == sorted(map(str, told))


def test_a_row_group_is_all_that_is_held(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", 10)
    monkeypatch.setattr(exporting, "MOST_ROWS", 5)
    monkeypatch.setattr(exporting, "FIRST_ROWS", 5)
    insert(database, Event, [event_values() for _ in range(33)])
    export = Export(ExportFilters(format="parquet"))

    parts = []
    while not export.done:
        with database.reading() as connection:
            parts.append(export.next_part(connection))

    # The mark of the format, a group with every second page, and the end.
    assert [bool(part) for part in parts] == [True, True, False, True, False, True, True]
    told = pq.ParquetFile(io.BytesIO(b"".join(parts))).metadata
    assert [told.row_group(n).num_rows for n in range(told.num_row_groups)] == [10, 10, 10, 3]


def test_large_events_make_small_groups(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_BYTES", 1000)
    form = parquet.ParquetForm()
    event = event_values(raw='{"event": "open", "x": "' + "y" * 600 + '"}')

    sizes = [len(form.add([event])[0]) for _ in range(4)]

    assert [size > 1 for size in sizes[1:]] == [True, False, True]
    assert pq.read_table(io.BytesIO(_whole(event))).num_rows == 1


def _whole(event: dict[str, object]) -> bytes:
    form = parquet.ParquetForm()
    return form.add([event])[0] + form.end()


def test_gzip_around_parquet_is_refused(client: TestClient) -> None:
    answer = client.get("/v1/exports/events?format=parquet&gzip=true")

    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "gzip")


@pytest.fixture
def _absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)


@pytest.mark.usefixtures("_absent")
def test_without_the_extra_the_answer_names_it(client: TestClient) -> None:
    answer = client.get("/v1/exports/events?format=parquet")

    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.json()["detail"] == "format: parquet needs an extra: install `jethook[parquet]`"
    assert client.get("/v1/exports/events?format=csv").status_code == 200


@pytest.mark.usefixtures("_absent")
def test_without_the_extra_the_command_names_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(commands, ["export", "--format", "parquet", "--output", str(tmp_path / "x.parquet")])

    assert done.exit_code == 2
    assert "jethook[parquet]" in done.output
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_parquet(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JETHOOK_DATABASE_URL", sqlite_url)
    assert CliRunner().invoke(commands, ["migrate"]).exit_code == 0
    database = Database(sqlite_url)
    event = make_event(database)
    database.close()

    done = CliRunner().invoke(commands, ["export", "--format", "parquet", "--output", "x.parquet"])

    assert done.exit_code == 0, done.output
    assert pq.read_table(tmp_path / "x.parquet").column("id").to_pylist() == [event["id"]]
