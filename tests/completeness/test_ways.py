"""The ways in: REST, the command and the doctor."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from fastapi.testclient import TestClient
from rich.console import Console

from app.completeness import command
from app.completeness.backfill_routes import build_router
from app.doctor import arrivals
from app.doctor.findings import Level
from app.silence import queries as silence
from tests.completeness.stage import DAY, NOW, Stage
from tests.rest import KEYS, app_of

ROOT = Path(__file__).parents[2]


def test_a_backfill_is_asked_for_watched_and_cancelled_over_rest(stage: Stage) -> None:
    stage.message(("sent", 1))
    asked = {"since": "2026-11-18T00:00:00Z", "until": "2026-11-21T00:00:00Z", "types": ["sent"]}

    async def work(doors: Any) -> None:
        jobs = stage.backfills(doors)
        client = TestClient(app_of(build_router(jobs, stage.database, KEYS)), headers={"authorization": "Bearer full"})
        made = client.post("/v1/backfills", json=asked)
        assert (made.status_code, made.headers["location"]) == (202, f"/v1/backfills/{made.json()['id']}")
        assert made.json() | asked | {"state": "running", "deliver": True, "stored": 0} == made.json()
        await jobs.round()
        done = client.get(made.headers["location"]).json()
        assert (done["state"], done["stored"], done["deliveries"]) == ("done", 1, 1)

        second = client.post("/v1/backfills", json=asked).json()["id"]
        assert client.post(f"/v1/backfills/{second}/cancel").json()["state"] == "cancelled"
        assert client.post(f"/v1/backfills/{second}/cancel").status_code == 200
        assert client.post(f"/v1/backfills/{done['id']}/cancel").status_code == 409
        page = client.get("/v1/backfills", params={"limit": 1})
        assert page.json()["has_more"] is True
        assert 'rel="next"' in page.headers["link"]
        rest = client.get("/v1/backfills", params={"cursor": page.json()["next_cursor"]}).json()
        assert {row["id"] for row in page.json()["data"] + rest["data"]} == {done["id"], second}

    stage.with_doors(work)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param({}, 422, "invalid", id="no time"),
        pytest.param({"since": "2026-11-18T00:00:00Z", "until": "2026-11-18T00:00:00Z"}, 422, "invalid", id="no span"),
        pytest.param({"since": "2026-11-18T00:00:00Z", "types": ["opened"]}, 422, "invalid", id="no such type"),
        pytest.param({"since": "2026-11-18T00:00:00Z", "x": 1}, 422, "invalid", id="no such field"),
        pytest.param({"since": "2026-11-18T00:00:00Z", "connection": "none"}, 404, None, id="no such connection"),
        pytest.param({"since": "2026-11-18T00:00:00Z", "connection": "bare"}, 409, None, id="no keys"),
    ],
)
def test_what_cannot_be_fetched_is_refused(stage: Stage, body: dict[str, Any], status: int, code: str | None) -> None:
    stage.environment["CONNECTIONS__BARE__BASE_URL"] = stage.server.url

    async def work(doors: Any) -> None:
        jobs = stage.backfills(doors)
        client = TestClient(app_of(build_router(jobs, stage.database, KEYS)), headers={"authorization": "Bearer full"})
        answer = client.post("/v1/backfills", json=body)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert client.get("/v1/backfills/none").json()["code"] == "backfill_not_found"
        assert client.post("/v1/backfills", json=body, headers={"authorization": "Bearer read"}).status_code == 403

    stage.with_doors(work)


def test_the_command_carries_a_job_through_by_itself(stage: Stage) -> None:
    stage.message(("sent", 1), ("opened", 60))
    asked = command.Asked("default", NOW - 2 * DAY, NOW, (), deliver=False)

    job = asyncio.run(command.run(stage.settings, stage.database, asked, Console(stderr=True)))

    assert (job["state"], job["stored"], job["deliveries"]) == ("done", 2, 0)
    assert len(stage.stored()) == 2


def test_the_command_tells_in_json(stage: Stage, tmp_path: Path) -> None:
    stage.message(("sent", 1), ("opened", 60))
    url = stage.database.writer.url.render_as_string(hide_password=False).replace("postgresql+psycopg", "postgresql")
    if not url.startswith("sqlite"):
        pytest.skip("the same process; starting one takes seconds")
    environment = {f"JETHOOK_{name}": value for name, value in stage.environment.items()}

    done = subprocess.run(
        [sys.executable, "-m", "app", "backfill", "--since", "2026-11-18", "--until", "2026-11-21", "--json"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "JETHOOK_DATABASE_URL": url, **environment},
        cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert orjson.loads(done.stdout)["stored"] == 2


def test_the_doctor_tells_what_is_silent_and_what_is_lacking(stage: Stage) -> None:
    def found() -> dict[str, tuple[Level, str]]:
        findings = arrivals.examine(stage.settings, stage.database, stage.now)
        return {finding.about: (finding.level, finding.text) for finding in findings}

    assert {about: level for about, (level, _) in found().items()} == {
        "silence": Level.OK, "completeness": Level.SKIPPED,
    }  # fmt: skip

    stage.message(("sent", 1), ago=3 * DAY)
    stage.come("sent", NOW - 5 * DAY)
    stage.look()
    stage.database.write(lambda c: silence.make_rows(c, [("orders", "sent")]))
    stage.database.write(lambda c: silence.record(c, {("orders", "sent"): silence.Expected(NOW, NOW - DAY)}))

    level, text = found()["completeness"]
    assert (level, "jethook backfill --connection default" in text) == (Level.OK, False)  # one for one

    stage.message(("sent", 1), ago=2 * DAY)
    stage.now += DAY / 2
    stage.look()
    level, text = found()["completeness"]
    assert (level, text.partition(";")[0]) == (
        Level.WARNING, "sent: 1 stored of 2 that Mailjet counted since 2026-11-15",
    )  # fmt: skip
    assert found()["silence"] == (
        Level.WARNING,
        "no sent since 2026-11-19T12:00:00Z, though by now one should have come: does Mailjet send, and is the callback"
        " alive?",
    )
