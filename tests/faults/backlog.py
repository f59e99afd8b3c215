"""A long outage of a sink left 100,000 deliveries waiting; the service starts, and they all become due."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from app import ledger
from app.clock import now_micros
from app.db import Database, insert_missing
from app.dispatch.service import DELIVERY_COLUMNS
from app.ledger import Entry
from app.migrate import migrate
from app.models import Delivery, DeliveryState, Event
from app.simulator.traffic import make_events
from app.views import EVENT_COLUMNS
from tests.benchmarks import filling
from tests.e2e.service import ids_in, until
from tests.faults.stage import Stage

WAITING = 100_000
MOST_MB = 300
DRAIN_SECONDS = 300.0


def backlog(stage: Stage) -> None:
    stage.acknowledged = add_waiting(stage.database_url, WAITING)
    stage.sink.batches = []
    batches = {"JETHOOK_SINKS__CRM__BATCH_SIZE": "100", "JETHOOK_WEBHOOKS__DEFAULT__PASSWORDS": "p-1234567890"}
    service = stage.service(batches)
    began = time.monotonic()
    service.start()
    ready = time.monotonic() - began
    stage.fault_ended()
    until(
        lambda: service.get("/v1/sinks/crm")["backlog"] == 0,
        "the backlog to drain",
        seconds=DRAIN_SECONDS,
        detail=lambda: (service.get("/v1/sinks/crm"), len(stage.sink.batches or ()), service.logs[-1500:]),
    )
    stage.well_seconds = time.monotonic() - stage._ended_at
    peak = peak_mb(service.pid)
    stage.told.append(
        f"ready in {ready:.1f} s, {WAITING / stage.well_seconds:,.0f} a second in batches of 100, at most {peak:.0f} MB"
    )
    stage.wrong += [f"{peak:.0f} MB"] if peak > MOST_MB else []
    for body in stage.sink.batches:
        stage.sink.accepted.update(ids_in(body, filling.WEBHOOK))


def add_waiting(database_url: str, count: int) -> set[str]:
    """Makes the tables, and events of the last hours that are due now; their ids."""
    found: set[str] = set()
    database = Database(database_url)
    try:
        migrate(database)
        for event_rows, delivery_rows in _batches(count):
            ids = [row[0] for row in event_rows]
            database.write(lambda c, e=event_rows, d=delivery_rows: _insert(c, e, d))  # type: ignore[misc]
            found.update(ids)
        if not database.is_sqlite:  # as autovacuum would have done meanwhile
            with database.writer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM ANALYZE")
    finally:
        database.close()
    return found


def _insert(connection, event_rows: filling.Rows, delivery_rows: filling.Rows) -> None:
    insert_missing(connection, Event.__table__, EVENT_COLUMNS, event_rows)  # type: ignore[attr-defined]
    insert_missing(connection, Delivery.__table__, DELIVERY_COLUMNS, delivery_rows)  # type: ignore[attr-defined]
    ids = [row[0] for row in event_rows]
    ledger.record(
        connection, Entry.MADE, events=[(event_id, filling.WEBHOOK) for event_id in ids],
        deliveries=[(event_id, filling.WEBHOOK, filling.SINK) for event_id in ids],
    )  # fmt: skip


def _batches(count: int) -> Iterator[tuple[filling.Rows, filling.Rows]]:
    traffic = make_events(3, count, int(time.time()) - count // 10, step_seconds=0.1)
    now = now_micros()
    while part := list(islice(traffic, filling.BATCH)):
        event_rows, delivered = filling.rows_of(part)
        # Of a delivered row: whose it is; the rest as ingest writes it for a worker that is full.
        owed = [(*row[:4], DeliveryState.PENDING.value, 0, 0, 0, now, None, False, None, now) for row in delivered]
        yield event_rows, owed


def peak_mb(pid: int) -> float:
    """The most resident memory there ever was, by the kernel's own high-water mark."""
    status = Path(f"/proc/{pid}/status").read_text()
    high_water = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(high_water.split()[1]) * 1024 / 1e6
