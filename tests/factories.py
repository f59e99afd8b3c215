"""Rows as the service would have left them, inserted directly."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app import ledger
from app.clock import from_micros, to_micros
from app.db import Database
from app.ingest.identity import content_id, event_id
from app.models import Attempt, Delivery, Event, Quarantined

NOON = datetime(2026, 5, 3, 12, 0, tzinfo=UTC)
_numbers = itertools.count(1)


def event_values(**given: Any) -> dict[str, Any]:
    """The columns of one event; what is not given is plausible and its content is unique. `occurred_at` has whole
    seconds, as Mailjet's times do."""
    number = next(_numbers)
    occurred_at = given.get("occurred_at", NOON + timedelta(seconds=number))
    webhook, kind, email = (
        given.get("webhook", "orders"),
        given.get("type", "open"),
        given.get("email", "a@example.com"),
    )
    payload = {"event": kind, "time": to_micros(occurred_at) // 10**6, "email": email, "MessageID": 19421777835146490,
               "n": number}  # fmt: skip
    values = {
        "id": event_id(webhook, payload["time"], payload),
        "webhook": webhook,
        "connection": "default",
        "type": kind,
        "outcome": "opened",
        "occurred_at": from_micros(payload["time"] * 10**6),
        "received_at": occurred_at + timedelta(seconds=1, microseconds=123456),
        "test": False,
        "email": email,
        "email_domain": email.rpartition("@")[2] if email else None,
        "message_id": "19421777835146490",
        **dict.fromkeys(
            ("message_guid", "campaign_id", "contact_id", "list_id", "custom_id", "custom_campaign", "permanent",
             "reason", "reason_group", "automated", "automated_rule")
        ),
        "raw": json.dumps(payload),
    }  # fmt: skip
    return values | given


def make_event(database: Database, **given: Any) -> dict[str, Any]:
    """One stored event, as its columns."""
    values = event_values(**given)
    insert(database, Event, [values])
    return values


def make_delivery(database: Database, event: Mapping[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    """One stored delivery of `event`, or of a new one, as its columns."""
    event = make_event(database) if event is None else event
    created_at = given.get("created_at", event["received_at"])
    values = {
        "event_id": event["id"],
        "sink": "crm",
        "webhook": event["webhook"],
        "type": event["type"],
        "state": "pending",
        "attempt_count": 0,
        "schedule_step": 0,
        "next_attempt_at": created_at,
        "lease_token": None,
        "replay": False,
        "last_status": None,
        "last_error": None,
        "created_at": created_at,
        "settled_at": None,
    } | given
    insert(database, Delivery, [values])
    return values


def make_attempt(database: Database, delivery: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """One stored attempt of `delivery`, as its columns."""
    values = {
        "event_id": delivery["event_id"],
        "sink": delivery["sink"],
        "number": 1,
        "at": delivery["created_at"] + timedelta(seconds=1),
        "status": 200,
        "outcome": "success",
        "error": None,
        "duration_ms": 12.5,
        "response_excerpt": "ok",
        "replay": False,
    } | given
    insert(database, Attempt, [values])
    return values


def make_quarantined(database: Database, **given: Any) -> dict[str, Any]:
    """One stored entry of quarantine, as its columns."""
    number = next(_numbers)
    body = given.get("body", b"broken %d" % number)
    webhook = given.get("webhook", "orders")
    values = {
        "id": content_id(webhook, body),
        "webhook": webhook,
        "received_at": NOON + timedelta(seconds=number, microseconds=5),
        "reason": "not JSON",
        "body": body,
    } | given
    insert(database, Quarantined, [values])
    came = (webhook, to_micros(values["received_at"]))
    database.write(lambda c: ledger.record(c, ledger.Entry.MADE, quarantined=[came]))
    return values


def insert(database: Database, model: Any, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows of one table, in one transaction."""
    database.write(lambda connection: connection.execute(sa.insert(model.__table__), [dict(row) for row in rows]))


def take_statistics(database: Database) -> None:
    """As PostgreSQL's autovacuum does: of the tables and partitions that hold something, never of all partitions."""
    filled = sa.text(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        " AND pg_relation_size(oid) > 0"
    )

    def analyze(connection: sa.Connection) -> None:
        names = connection.execute(filled).scalars().all()
        connection.execute(sa.text(f"ANALYZE {', '.join(names)}"))

    if not database.is_sqlite:
        database.write(analyze)


def newest_seq(database: Database) -> int:
    """Of the events; 0 where there are none."""
    with database.reading() as connection:
        return int(connection.execute(sa.select(sa.func.max(Event.__table__.c.seq))).scalar() or 0)  # type: ignore[attr-defined]
