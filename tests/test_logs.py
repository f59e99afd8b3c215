"""Log lines: one wide line for a unit of work, with its ids; those of a busy moment shared."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from app.logs import MOST_IDS, SHARED_SECONDS, SharedLines, configure_logs
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from tests.e2e.service import PASSWORD, ServiceProcess, until


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.INFO)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as captured:
        yield captured
    logging.getLogger().setLevel(level)


def told(shared: SharedLines, ids: list[str], place: dict[str, Any]) -> None:
    async def work() -> None:
        structlog.contextvars.bind_contextvars(request_id="of a request")
        for number, name in enumerate(ids):
            shared.add(place, name, number / 1000, {"stored": 2})
        await asyncio.sleep(SHARED_SECONDS * 2)

    asyncio.run(work())


def test_a_unit_of_work_alone_has_a_line_of_its_own(lines: list[Any]) -> None:
    told(SharedLines("ingest.answered", units="posts", ids="request_id"), ["a"], {"webhook": "orders", "status": 200})

    assert lines == [
        {"event": "ingest.answered", "log_level": "info", "webhook": "orders", "status": 200, "posts": 1, "stored": 2,
         "duration_ms": 0.0, "request_id": "a"},
    ]  # fmt: skip


def test_many_at_once_share_one_that_belongs_to_no_request(lines: list[Any]) -> None:
    ids = [f"r{n}" for n in range(MOST_IDS + 5)]

    told(SharedLines("ingest.answered", units="posts", ids="request_id"), ids, {"webhook": "orders", "status": 200})

    [line] = lines
    assert (line["posts"], line["stored"], line["duration_ms"]) == (25, 50, 24.0)
    assert line["request_ids"] == ids[:MOST_IDS]
    assert "request_id" not in line


def test_at_debug_each_has_its_own_again(lines: list[Any]) -> None:
    logging.getLogger().setLevel(logging.DEBUG)

    told(SharedLines("ingest.answered", units="posts", ids="request_id"), ["a", "b", "c"], {"status": 200})

    assert [line["request_id"] for line in lines] == ["a", "b", "c"]


def test_what_is_not_alike_shares_no_line(lines: list[Any]) -> None:
    async def work() -> None:
        shared = SharedLines("ingest.answered", units="posts", ids="request_id")
        for status in (200, 401, 200):
            shared.add({"status": status}, "x", 0.0, {})
        shared.flush()
        await asyncio.sleep(SHARED_SECONDS * 2)

    asyncio.run(work())

    assert [(line["status"], line["posts"]) for line in lines] == [(200, 2), (401, 1)]


def test_every_post_delivery_and_request_of_a_running_service_is_told(tmp_path: Path) -> None:
    event = {"event": "open", "time": 1433103519, "MessageID": 19421777396190490, "email": "somebody@example.com"}
    with LocalServer(SampleSink()) as sink:
        environment = {"JETHOOK_SINKS__CRM__URL": sink.url}
        with ServiceProcess(tmp_path, f"sqlite:///{tmp_path / 'test.db'}", environment) as service:
            named = {"x-request-id": "mailjet-17"}
            assert service.http.post(
                "/webhooks/orders", json=event, auth=("jethook", PASSWORD), headers=named
            ).is_success
            refused = {"x-request-id": "a stranger"}
            service.http.post("/webhooks/orders", json=event, auth=("jethook", "wrong"), headers=refused)
            [delivered] = until(lambda: service.log_lines("delivery.delivered"), "the delivery's line")
            service.get("/v1/recipients/somebody@example.com")
            service.get("/readyz")
            posts = until(
                lambda: [line for line in service.log_lines("ingest.answered") if line["status"] == 401], "both"
            )
            posts += [line for line in service.log_lines("ingest.answered") if line["status"] == 200]
            requests = until(lambda: service.log_lines("request.answered"), "the request's line")

            assert [(line["webhook"], line["stored"] if line["status"] == 200 else None) for line in posts] == [
                ("orders", None), ("orders", 1),
            ]  # fmt: skip
            assert posts[1]["request_id"] == "mailjet-17"
            assert posts[0]["request_id"] != refused["x-request-id"]
            assert (delivered["sink"], delivered["events"], delivered["status"]) == ("crm", 1, 200)
            assert [(line["route"], line["status"]) for line in requests] == [("/v1/recipients/{email:address}", 200)]
            assert all(line["request_id"] for line in requests)
            _hears_more_after_the_signal(service)
    assert "somebody@example.com" not in service.logs


def _hears_more_after_the_signal(service: ServiceProcess) -> None:

    os.kill(service.pid, signal.SIGUSR1)
    until(lambda: service.log_lines("log_level.changed"), "the level to change")
    service.get("/readyz")
    until(lambda: any(line["route"] == "/readyz" for line in service.log_lines("request.answered")), "a probe's line")


@pytest.mark.parametrize("shape", ["json", "console"])
def test_no_word_of_an_outsider_becomes_a_line_of_its_own(shape: Any, capfd: pytest.CaptureFixture[str]) -> None:
    forged = "x\n2026-11-28T00:00:00Z [info] forged.line\r\x1b[2J\u2028y"
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    try:
        configure_logs(shape, "info")
        structlog.get_logger("ours").info("sink.paused", reason=forged)
        logging.getLogger("a.library").error("bad host %s", forged)
    finally:
        root.handlers[:] = kept
        root.setLevel(level)
        structlog.reset_defaults()

    written = capfd.readouterr().err
    assert len(written.splitlines()) == 2, written
    assert not any(line.startswith("2026-11-28T00:00:00Z") for line in written.splitlines())
    assert "\x1b[2J" not in written
