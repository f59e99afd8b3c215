"""`jethook export` and `jethook import` as a person meets them."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.db import Database, insert_missing
from app.migrate import migrate
from app.models import Event
from app.simulator.traffic import make_events
from app.views import EVENT_COLUMNS
from tests.transfer.test_lines import row_of

ROOT = Path(__file__).parent.parent.parent
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str, given: bytes = b"", **environ: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "app", *arguments],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"} | environ,
            input=given,
            capture_output=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def events(tmp_path: Path) -> int:
    rows = [row_of(json.dumps(payload)) for payload in make_events(3, 50, 1_777_000_000)]
    database = Database(f"sqlite:///{tmp_path / 'jethook.db'}")
    migrate(database)
    database.write(lambda c: insert_missing(c, Event.__table__, EVENT_COLUMNS, rows))
    database.close()
    return len(rows)


OTHER = {"JETHOOK_DATABASE_URL": "sqlite:///other.db"}


def test_an_export_comes_back_through_a_file_and_through_a_pipe(run: Run, events: int, tmp_path: Path):
    to_file = run("export", "--output", "events.ndjson.gz")
    to_pipe = run("export", "type=open", "--order", "desc")
    from_file = run("import", "events.ndjson.gz", **OTHER)
    from_pipe = run("import", "-", given=to_pipe.stdout, **OTHER)

    opens = to_pipe.stdout.count(b"\n")
    assert [done.returncode for done in (to_file, to_pipe, from_file, from_pipe)] == [0, 0, 0, 0]
    assert gzip.decompress((tmp_path / "events.ndjson.gz").read_bytes()).count(b"\n") == events
    assert to_file.stdout == b""
    assert to_file.stderr.endswith(b"%d events\n" % events)
    assert from_file.stdout == b"%d lines: %d stored, 0 there already, 0 faults; 0 deliveries owed\n" % (events, events)
    assert from_pipe.stdout.startswith(b"%d lines: 0 stored, %d there already" % (opens, opens))


def test_a_bad_line_is_told_by_its_number_and_ends_with_1(run: Run, events: int):
    body = run("export").stdout

    done = run("import", "-", given=b"{}\n" + body, **OTHER)

    assert done.returncode == 1
    assert b"line 1: `webhook` is missing or no name\n" in done.stderr
    assert b"%d stored" % events in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "emial=x"),
        ("export", "--format", "xml"),
        ("export", "after=yesterday"),
        ("import", "not-there.ndjson"),
        ("import",),
    ],
)
def test_wrong_usage_is_2(run: Run, arguments: tuple[str, ...]):
    done = run(*arguments)

    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr


def test_a_file_that_cannot_be_written_is_1(run: Run, events: int):
    done = run("export", "--output", "no/such/folder.csv", "--format", "csv")

    assert done.returncode == 1
    assert b"cannot write the export: No such file or directory" in done.stderr


def test_a_reader_that_has_enough_is_no_traceback(tmp_path: Path, events: int):
    done = subprocess.run(
        f"{sys.executable} -m app export | head -c 1", shell=True, cwd=tmp_path, capture_output=True, timeout=60,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip

    assert done.stdout == b"{"
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr
