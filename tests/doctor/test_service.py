"""The doctor looks at a service that is well, and at ones that are not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.db import Database
from app.doctor import database as database_part
from app.doctor.findings import Finding, Level
from app.doctor.network import judge_clock
from app.doctor.service import examine
from app.main import create_app
from app.migrate import migrate
from app.models import Lease
from app.settings import load_settings
from app.simulator.mailjet import StandInMailjet
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from tests.ports import free_port

KEY, SECRET, PASSWORD = "doctor-key", "doctor-secret-1", "doctor-password-1"
WHSEC = "whsec_c2lnbmluZy1zZWNyZXQtb2YtdGhlLWUyZS10ZXN0cw=="
ROOT = Path(__file__).parents[2]


class Ward:
    """A running service between a stand-in Mailjet and a sink, and the settings it runs by."""

    def __init__(self, folder: Path) -> None:
        self.mailjet = StandInMailjet({KEY: SECRET})
        self.sink = SampleSink(secrets=[WHSEC])
        self.servers = [LocalServer(self.mailjet), LocalServer(self.sink)]
        for server in self.servers:
            server.start()
        port = free_port()
        self.environment = {
            "JETHOOK_DATABASE_URL": f"sqlite:///{folder / 'doctor.db'}",
            "JETHOOK_PUBLIC_URL": f"http://127.0.0.1:{port}",
            "JETHOOK_API_KEYS": "rest-key-1",
            "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": PASSWORD,
            "JETHOOK_CONNECTIONS__DEFAULT__API_KEY": KEY,
            "JETHOOK_CONNECTIONS__DEFAULT__SECRET_KEY": SECRET,
            "JETHOOK_CONNECTIONS__DEFAULT__BASE_URL": self.servers[0].url,
            "JETHOOK_SINKS__CRM__URL": self.servers[1].url,
            "JETHOOK_SINKS__CRM__SECRETS": WHSEC,
            "JETHOOK_ROLE": "receive",
        }
        settings = load_settings(self.environment, env_file=None)
        self.servers.append(LocalServer(create_app(settings), port=port))
        self.servers[-1].start()

    def examine(self, *, send_test: bool = False, **changes: str) -> list[Finding]:
        given = {name: value for name, value in (self.environment | changes).items() if value}
        return examine(load_settings(given, env_file=None), send_test=send_test)


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    made = Ward(tmp_path_factory.mktemp("ward"))
    yield made
    for server in reversed(made.servers):
        server.stop()


def failures(findings: list[Finding]) -> list[tuple[str, str | None]]:
    return [(finding.about, finding.setting) for finding in findings if finding.level is Level.FAILURE]


def texts(findings: list[Finding], about: str) -> str:
    return "\n".join(finding.text for finding in findings if finding.about == about)


def test_a_service_that_is_well_has_no_failure(ward: Ward) -> None:
    before = len(ward.sink.requests)

    findings = ward.examine()

    assert failures(findings) == []
    assert {f.about for f in findings} == {
        "settings",
        "silence",
        "completeness",
        "database",
        "disk",
        "public_url",
        "clock",
        "mailjet",
        "callback",
        "sink",
    }
    assert "takes posts" in texts(findings, "public_url")
    assert "takes writes" in texts(findings, "database")
    assert "nothing was sent" in texts(findings, "sink")
    assert len(ward.sink.requests) == before
    assert not any(request.method != "GET" for request in ward.mailjet.requests)
    told = " ".join(f"{f.text} {f.subject}" for f in findings)
    assert not any(secret in told for secret in (KEY, SECRET, PASSWORD, WHSEC))


def test_a_test_event_goes_out_only_when_asked_for(ward: Ward) -> None:
    before = len(ward.sink.requests)

    findings = ward.examine(send_test=True)

    assert failures(findings) == []
    assert "answered 200 to a test event" in texts(findings, "sink")
    assert len(ward.sink.requests) == before + 1


CLOSED = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"JETHOOK_PUBLIC_URL": CLOSED}, ("public_url", "JETHOOK_PUBLIC_URL"), id="nobody at the public URL"
        ),
        pytest.param(
            {"JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": "another"},
            ("public_url", "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS"),
            id="another password there",
        ),
        pytest.param(
            {"JETHOOK_CONNECTIONS__DEFAULT__SECRET_KEY": "wrong"},
            ("mailjet", "JETHOOK_CONNECTIONS__DEFAULT__API_KEY"),
            id="Mailjet refuses the keys",
        ),
        pytest.param(
            {"JETHOOK_SINKS__CRM__URL": CLOSED}, ("sink", "JETHOOK_SINKS__CRM__URL"), id="a sink that refuses"
        ),
        pytest.param(
            {"JETHOOK_SINKS__CRM__URL": "http://nowhere.invalid"},
            ("sink", "JETHOOK_SINKS__CRM__URL"),
            id="a sink without an address",
        ),
        pytest.param(
            {"JETHOOK_DATABASE_URL": "sqlite:////nowhere/x.db"}, ("database", "JETHOOK_DATABASE_URL"), id="no folder"
        ),
        pytest.param(
            {"JETHOOK_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"},
            ("database", "JETHOOK_DATABASE_URL"),
            id="no server",
        ),
    ],
)
def test_what_is_wrong_is_found_with_its_setting(
    ward: Ward, changes: dict[str, str], expected: tuple[str, str]
) -> None:
    assert expected in failures(ward.examine(**changes))


def test_something_else_at_the_public_url_is_found(ward: Ward) -> None:
    found = ward.examine(JETHOOK_PUBLIC_URL=ward.servers[1].url)

    assert ("public_url", "JETHOOK_PUBLIC_URL") in failures(found)


def test_a_sink_that_speaks_no_tls_is_found(ward: Ward) -> None:
    found = ward.examine(JETHOOK_SINKS__CRM__URL=ward.servers[1].url.replace("http://", "https://"))

    assert failures(found) == [("sink", "JETHOOK_SINKS__CRM__URL")]
    assert "TLS" in texts(found, "sink")


def test_what_is_not_set_is_a_warning(ward: Ward) -> None:
    found = ward.examine(
        JETHOOK_PUBLIC_URL="", JETHOOK_API_KEYS="", JETHOOK_SINKS__CRM__URL="", JETHOOK_SINKS__CRM__SECRETS=""
    )

    assert failures(found) == []
    warned = {finding.setting for finding in found if finding.level is Level.WARNING}
    assert {"JETHOOK_PUBLIC_URL", "JETHOOK_API_KEYS", "JETHOOK_SINKS__{N}__URL"} <= warned


def test_a_database_that_is_not_there_yet_is_no_failure_and_is_not_made(ward: Ward, tmp_path: Path) -> None:
    found = ward.examine(JETHOOK_DATABASE_URL=f"sqlite:///{tmp_path / 'new.db'}")

    assert not any(finding.about == "database" and finding.level is Level.FAILURE for finding in found)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_takes_no_writes_is_found_on_both(database_url: str) -> None:
    database = Database(database_url)
    migrate(database)
    assert [f.level for f in database_part.examine(database)].count(Level.FAILURE) == 0

    @sa.event.listens_for(database.writer, "begin")
    def _refuse(connection: sa.Connection) -> None:
        word = "PRAGMA query_only = 1" if database.is_sqlite else "SET TRANSACTION READ ONLY"
        connection.exec_driver_sql(word)

    found = list(database_part.examine(database))
    with database.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(Lease.__table__)).scalar_one() == 0  # type: ignore[attr-defined]
    database.close()
    assert [(f.level, f.setting) for f in found if f.level is Level.FAILURE] == [
        (Level.FAILURE, "JETHOOK_DATABASE_URL")
    ]


NOW = datetime(2026, 5, 3, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "level"),
    [
        (0, Level.OK),
        (-4, Level.OK),
        (-10, Level.WARNING),
        (30, Level.WARNING),
        (120, Level.FAILURE),
        (-120, Level.FAILURE),
    ],
)
def test_a_clock_is_judged_by_how_far_it_is_off(seconds: int, level: Level) -> None:
    assert judge_clock("mailjet", NOW, NOW + timedelta(seconds=seconds)).level is level


def run(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", "doctor", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"} | environ, check=False,
    )  # fmt: skip


def test_the_command_ends_with_1_on_a_failure_and_with_0_without(ward: Ward, tmp_path: Path) -> None:
    well = run("--json", cwd=tmp_path, **ward.environment)
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        broken = run(
            cwd=tmp_path, **ward.environment | {"JETHOOK_SINKS__CRM__URL": f"http://127.0.0.1:{taken.getsockname()[1]}"}
        )

    assert (well.returncode, well.stderr) == (0, "")
    report: dict[str, Any] = json.loads(well.stdout)
    assert report["ok"] is True
    assert set(report["findings"][0]) == {"level", "about", "text", "setting", "subject"}
    assert broken.returncode == 1
    assert "JETHOOK_SINKS__CRM__URL" in broken.stdout
    assert "Traceback" not in broken.stderr
