"""Every way in which events and deliveries come into the tables is written down in the ledger."""

from __future__ import annotations

import asyncio
import io
import json
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from app.alerts.service import Alerts
from app.audit.service import Report, audit
from app.clock import to_micros
from app.db import Database
from app.dispatch.matching import Matcher
from app.dispatch.service import NoWorker
from app.group_commit import GroupCommit
from app.ingest.service import Ingest
from app.models import Delivery
from app.operator_events import SINK_OPENED, Change
from app.replay import queries, service
from app.replay.selection import EventSelection, recipients
from app.settings import SinkSettings, WebhookSettings
from app.simulator.traffic import make_events
from app.transfer.service import Importer
from tests.factories import NOON
from tests.transfer.test_lines import line_of, row_of

CRM = SinkSettings(url="http://crm.invalid")
BOUNCES = SinkSettings(url="http://bounces.invalid", events=("bounce", "spam"))
EVENTS = list(make_events(11, 60, 1_777_000_000))
BOUNCED = sum(event["event"] == "bounce" for event in EVENTS)  # each is one of the webhook `news` as well


def look(database: Database) -> Report:
    with database.reading() as connection:
        return audit(connection)


def owed(report: Report) -> dict[str, int]:
    return {sink["sink"]: sink["owed"] for sink in report.sinks}


def take_in(database: Database, sinks: dict[str, SinkSettings], *bodies: Any) -> None:
    """Posts that come at once, as far as one loop can."""

    async def story() -> None:
        commits = GroupCommit(database)
        webhooks = {"orders": WebhookSettings(), "news": WebhookSettings(events=("bounce",))}
        ingest = Ingest(webhooks, matcher=Matcher(sinks), commits=commits, worker=NoWorker())
        micros = to_micros(NOON)
        await asyncio.gather(*(ingest.accept("orders", json.dumps(b).encode(), now_micros=micros) for b in bodies))
        await commits.drain()

    asyncio.run(story())


def test_posts_with_repeats_test_events_and_two_webhooks(database: Database) -> None:
    test_event = {"event": "open", "time": 1_777_000_000, "MessageID": 0, "email": ""}

    take_in(database, {"crm": CRM, "bounces": BOUNCES}, EVENTS[:30], EVENTS[20:], EVENTS[5], test_event, "no event", [])

    report = look(database)
    assert report.is_clean, report.differences
    assert {w["webhook"]: w["accepted"] for w in report.webhooks} == {"news": BOUNCED, "orders": 62}
    assert report.events["quarantined"] == 1
    assert owed(report)["crm"] == 60 + BOUNCED


def test_imports_with_and_without_deliveries(database: Database) -> None:
    lines = [line_of(row_of(json.dumps(event))) for event in EVENTS]

    for matcher, some in ((None, lines[:20]), (Matcher({"crm": CRM}), lines[10:])):
        Importer(database, matcher=matcher, on_fault=lambda number, text: None).run(
            io.BytesIO(b"".join(some)), now_micros=to_micros(NOON)
        )

    report = look(database)
    assert report.is_clean, report.differences
    assert (report.events["accepted"], owed(report)) == (60, {"crm": 40})


def test_operator_events(database: Database) -> None:
    alerts = Alerts({"pager": SinkSettings(url="http://pager.invalid", events=("jethook.*",))}, database, instance="x")

    database.write(lambda c: [alerts.store(c, Change(SINK_OPENED, NOON, sink="crm")) for _ in range(2)])

    report = look(database)
    assert report.is_clean, report.differences
    assert (report.events["accepted"], owed(report)) == (1, {"pager": 1})


def test_a_replay_to_a_sink_that_came_later_adds_what_was_missing(database: Database) -> None:
    take_in(database, {"crm": CRM}, EVENTS)
    chosen = recipients({"crm": CRM, "late": CRM})
    deliveries: Any = Delivery.__table__  # type: ignore[attr-defined]
    database.write(lambda c: c.execute(sa.update(deliveries).values(state="delivered", settled_at=NOON)))

    for sink in ("crm", "late"):
        now, selection = NOON + timedelta(hours=1), EventSelection()

        def work(c: sa.Connection, sink: str = sink, now: Any = now, selection: Any = selection) -> None:
            found, last = service.count(c, chosen[sink], selection, now)
            row = queries.insert(c, service.new_replay(sink, selection, None, found=found, last_seq=last, now=now))
            part = queries.next_slice(c, row, selection, chosen[sink], 100)
            queries.take_up(c, row, part, [to_micros(now)] * 100, now, only_dead=False)

        database.write(work)

    report = look(database)
    assert report.is_clean, report.differences
    every = dict.fromkeys(("crm", "late"), 60 + BOUNCED)
    assert owed(report) == every
    assert {s["sink"]: s["pending"] for s in report.sinks} == every
