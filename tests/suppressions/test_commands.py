"""`jethook rebuild` and `jethook import` keep suppressions as ingest does."""

from __future__ import annotations

import io

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from app.cli import cli
from app.db import Database
from app.suppressions import queries
from app.suppressions.keeping import Keeper
from app.transfer.service import Importer
from app.views import dump
from tests.suppressions.streams import KINDS, START, payload, row_of
from tests.suppressions.support import in_force
from tests.suppressions.test_keeping import POLICY, from_nothing, store


@pytest.fixture
def rows() -> list[tuple[object, ...]]:
    return [row_of(payload(kind, f"P{n % 9}@example.com", START + n * 3600, n)) for n, kind in enumerate(KINDS * 12)]


def test_a_rebuild_by_the_command_gives_equal_rows_and_says_what_it_did(database: Database, rows, monkeypatch):
    store(database, rows)
    kept = in_force(database)
    monkeypatch.setenv("JETHOOK_DATABASE_URL", database.writer.url.render_as_string(hide_password=False))
    monkeypatch.setenv("JETHOOK_SUPPRESS_SOFT_BOUNCES", str(POLICY.soft_bounces))
    monkeypatch.setenv("JETHOOK_SUPPRESS_SOFT_BOUNCE_DAYS", str(POLICY.soft_bounce_days))

    same = CliRunner().invoke(cli, ["rebuild"])
    assert same.output.splitlines()[-1] == "9 addresses looked at: 0 suppressions added, 0 removed, 0 changed"
    assert in_force(database) == kept

    database.write(lambda c: c.execute(sa.delete(queries.suppressions)))
    again = CliRunner().invoke(cli, ["rebuild", "suppressions"])
    assert f"{len(kept)} suppressions added" in again.output
    assert in_force(database) == kept
    assert CliRunner().invoke(cli, ["rebuild", "everything"]).exit_code == 2


def test_imported_events_suppress_as_received_ones_do(database: Database, rows):
    lines = b"".join(
        dump({"id": row[0], "webhook": row[1], "connection": row[2], "received_at": "2026-05-03T10:00:00Z"})[:-1]
        + b',"raw":' + str(row[-1]).encode() + b"}\n"
        for row in rows
    )  # fmt: skip
    faults: list[str] = []
    importer = Importer(database, keeper=Keeper(POLICY), on_fault=lambda _, text: faults.append(text))

    report = importer.run(io.BytesIO(lines + lines), now_micros=START * 10**6)

    assert (report.stored, faults) == (len(rows), [])
    kept = in_force(database)
    assert kept
    assert from_nothing(database) == kept
