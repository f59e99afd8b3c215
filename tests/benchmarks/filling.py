"""A database as the service would have left it after months: events spread over 90 days, each delivered to one sink,
with the suppressions and the statistics that come of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import orjson
import sqlalchemy as sa

from app.db import Database, insert_missing
from app.dispatch.service import DELIVERY_COLUMNS
from app.ingest.identity import event_id
from app.ingest.rows import event_row
from app.mailjet.payloads import MailjetEvent, parse_events
from app.migrate import migrate
from app.models import Delivery, DeliveryState, Event
from app.rollups.fold import fold_slice
from app.rollups.store import KnownCells
from app.simulator.traffic import make_events
from app.suppressions.keeping import Keeper
from app.suppressions.rebuild import rebuild
from app.views import EVENT_COLUMNS

SINK, WEBHOOK = "crm", "default"
DAYS = 90
BATCH = 5_000
EVENTS_A_PERSON = 20
SETTLED = ("settled_at", "last_status", "first_at", "first_status", "first_duration_ms")

Rows = list[tuple[Any, ...]]


def fill(database: Database, events: int) -> None:
    """Makes the tables and `events` events, the same for the same number on the same day."""
    migrate(database)
    for event_rows, delivery_rows in batches(events):
        database.write(lambda connection, e=event_rows, d=delivery_rows: _insert(connection, e, d))  # type: ignore[misc]
    _analyze(database)
    rebuild(database, Keeper())
    count(database, events)
    _analyze(database)


def _analyze(database: Database) -> None:
    """As autovacuum would have done long before."""
    if not database.is_sqlite:
        with database.writer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def count(database: Database, events: int) -> None:
    """The statistics of all of them."""
    known = KnownCells()
    while database.write(lambda connection: fold_slice(connection, events, known, most=BATCH)):
        known.confirm()


def _insert(connection: sa.Connection, event_rows: Rows, delivery_rows: Rows) -> None:
    insert_missing(connection, Event.__table__, EVENT_COLUMNS, event_rows)  # type: ignore[attr-defined]
    insert_missing(connection, Delivery.__table__, (*DELIVERY_COLUMNS, *SETTLED), delivery_rows)  # type: ignore[attr-defined]


def batches(events: int) -> Iterator[tuple[Rows, Rows]]:
    start = int(time.time()) // 86_400 * 86_400 - DAYS * 86_400
    step = DAYS * 86_400 / events
    traffic = make_events(1, events, start, people=max(10, events // EVENTS_A_PERSON), step_seconds=step)
    while part := list(islice(traffic, BATCH)):
        yield rows_of(part)


def rows_of(part: Sequence[Any]) -> tuple[Rows, Rows]:
    event_rows: Rows = []
    delivery_rows: Rows = []
    for event in parse_events(orjson.dumps(part)):
        assert isinstance(event, MailjetEvent)
        identity, micros = event_id(WEBHOOK, event.time, event.payload), event.time * 1_000_000
        event_rows.append(
            event_row(identity, event, webhook=WEBHOOK, connection="default", received_micros=micros + 900_000)
        )
        owed = (identity, SINK, WEBHOOK, event.type, DeliveryState.DELIVERED.value, 0, 1, 0, micros, None, False, None)
        delivery_rows.append((*owed, micros, micros + 5_000, 200, micros + 1_000, 200, 4.2))
    return event_rows, delivery_rows


def stored_bytes(database: Database) -> int:
    """Of the whole database, indexes included."""
    sql = (
        "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        if database.is_sqlite
        else "SELECT pg_database_size(current_database())"
    )
    with database.reading() as connection:
        return int(connection.exec_driver_sql(sql).scalar_one())
