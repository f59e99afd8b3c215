"""`jethook move` as a person meets it: killed in the middle, started again, and whole in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.audit.service import audit
from app.clock import now_micros
from app.db import Database
from app.dispatch.matching import Matcher
from app.migrate import migrate
from app.settings import SinkSettings
from app.simulator.traffic import make_events
from app.transfer.service import Importer
from tests.conftest import MakeDatabase
from tests.e2e.service import ROOT, until
from tests.transfer.test_lines import line_of, row_of

EVENTS = 6000  # two batches


def start(folder: Path, source: str, goal: str) -> subprocess.Popen[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-m", "app", "move", "--to", goal, "--json"], cwd=folder, text=True,
        env={**kept, "PYTHONPATH": str(ROOT), "JETHOOK_DATABASE_URL": source},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def rows_there(goal: str) -> int:
    with psycopg.connect(goal) as connection:
        [found] = connection.execute("SELECT to_regclass('move_progress')").fetchone() or [None]
        if found is None:
            return 0
        [rows] = connection.execute("SELECT sum(rows) FROM move_progress").fetchone() or [0]
        return int(rows or 0)


@pytest.mark.timeout(150)
def test_a_move_that_was_killed_goes_on_and_is_whole_in_the_end(folder: Path, make_database: MakeDatabase) -> None:
    source, goal = f"sqlite:///{folder / 'old.db'}", make_database("postgresql")
    fill(source)

    first = start(folder, source, goal)
    until(lambda: rows_there(goal) > 0, "the first batch")
    first.kill()
    first.communicate()
    second = start(folder, source, goal)
    report, told = second.communicate(timeout=60)

    assert second.returncode == 0, told
    events = next(table for table in json.loads(report)["tables"] if table["table"] == "events")
    assert events["rows"] == EVENTS
    assert audited(source) == audited(goal)
    assert audited(goal)["ok"] is True


def audited(url: str) -> dict[str, Any]:
    database = Database(url)
    with database.reading() as connection:
        report = audit(connection).to_json()
    database.close()
    return report


def fill(source: str) -> None:
    database = Database(source)
    migrate(database)
    path = Path(str(database.writer.url.database)).with_suffix(".ndjson")
    path.write_bytes(b"".join(line_of(row_of(json.dumps(one))) for one in make_events(5, EVENTS, 1_777_000_000)))
    importer = Importer(
        database, matcher=Matcher({"crm": SinkSettings(url="http://127.0.0.1:9/")}), on_fault=lambda number, text: None
    )
    with path.open("rb") as file:
        assert importer.run(file, now_micros=now_micros()).stored == EVENTS
    database.close()
