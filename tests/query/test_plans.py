"""How the databases find what is asked for: every statement of every list, explained.

Each line is a request. The service answers it, and the statements that it ran are explained with their own values: all
of them read tables by an index, in its order or few rows that are then sorted. A list or a filter without a line fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.clock import rfc3339
from app.completeness.figures import day_of
from app.db import Database
from app.main import create_app
from app.models import Backfill, Completeness, Delivery, Erasure, Event, Quarantined, Replay, Suppression
from app.query import delivery_pages, event_pages
from app.query.pages import by_index
from app.settings import load_settings
from tests.conftest import MakeDatabase
from tests.factories import NOON, event_values, insert, take_statistics

EVENTS = 6000
FEW = 300  # of them: more than a page and fewer than are sorted
KEYED = {"deliveries", "attempts"}  # SQLite keeps their rows in the index of their key: a scan is a walk along it
BIG = {"events", "deliveries", "attempts", "quarantine", "replays"}
TIMES = f"after={rfc3339(NOON)}&before={rfc3339(NOON + timedelta(days=2))}"
RECEIVED = f"received_after={rfc3339(NOON)}&received_before={rfc3339(NOON + timedelta(days=9))}"


class Line(NamedTuple):
    """A request, the index that must serve it, and whether rows may be sorted: few ones, or merged ones."""

    url: str
    index: str
    sorts: bool = False


ID, PAIR, CAMPAIGN = "events.id", "ix_events_webhook_type", "ix_events_campaign_id"
KEY, DEAD, DUE = "deliveries.key", "ix_deliveries_dead", "ix_deliveries_due"
LINES = [
    Line("/v1/events", ID),
    Line(f"/v1/events?{TIMES}", ID),
    Line("/v1/events?webhook=orders", PAIR, sorts=True),
    Line("/v1/events?webhook=orders&webhook=news", PAIR, sorts=True),
    Line("/v1/events?type=open", PAIR, sorts=True),
    Line("/v1/events?type=spam&type=unsub", PAIR, sorts=True),
    Line("/v1/events?webhook=orders&type=open", PAIR),
    Line(f"/v1/events?webhook=orders&type=open&{TIMES}", PAIR),
    Line("/v1/events?webhook=orders&type=open&email_domain=x", PAIR),
    Line("/v1/events?type=open&email_domain=x", ID),
    Line("/v1/events?webhook=orders&outcome=complained", ID),
    Line("/v1/events?type=spam&outcome=opened", PAIR, sorts=True),
    Line("/v1/events?webhook=jethook", PAIR, sorts=True),
    Line("/v1/events?type=jethook.sink.opened", PAIR),
    Line("/v1/events?type=jethook.sink.opened&type=jethook.sink.recovered", PAIR, sorts=True),
    *(
        Line(f"/v1/events?{name}={value}{more}", f"ix_events_{name}", sorts=True)
        for name, value in (("email", "few@example.com"), ("message_id", "few"), ("message_guid", "few"),
                            ("custom_id", "few"))
        for more in ("", f"&{TIMES}", "&webhook=orders&type=open")
    ),
    Line("/v1/events?email=many@example.com", ID),
    Line("/v1/events?custom_id=many", ID),
    Line("/v1/events?email=many@example.com&webhook=orders&type=open", PAIR),
    Line("/v1/events?email=few@example.com&email=none@example.com", "ix_events_email", sorts=True),
    *(
        Line(f"/v1/events?campaign_id={campaign}{more}", CAMPAIGN)
        for campaign in ("old", "many", "none")
        for more in ("", f"&{TIMES}", "&type=open", "&email=many@example.com")
    ),
    Line("/v1/events?campaign_id=old&campaign_id=none", CAMPAIGN, sorts=True),
    Line("/v1/events?campaign_id=old&campaign_id=many", ID),
    *(
        Line(f"/v1/events?{asked}", ID)
        for asked in ("outcome=complained", "email_domain=x", "custom_campaign=x", "contact_id=x", "list_id=x",
                      "permanent=true", "test=true", RECEIVED, "include=raw")
    ),
    Line("/v1/events?automated=true", ID),
    Line("/v1/deliveries", KEY),
    Line("/v1/deliveries?event_id=EVENT", KEY, sorts=True),
    Line("/v1/deliveries?event_id=EVENT&state=delivered&sink=crm", KEY, sorts=True),
    Line("/v1/deliveries?sink=crm", KEY),
    Line("/v1/deliveries?webhook=orders&type=open", KEY),
    Line(f"/v1/deliveries?{TIMES}", KEY),
    Line("/v1/deliveries?state=delivered", KEY),
    Line("/v1/deliveries?state=dead&state=pending", KEY),
    Line("/v1/deliveries?state=pending", DUE, sorts=True),
    Line("/v1/deliveries?state=pending&sink=crm&type=open", DUE, sorts=True),
    Line("/v1/deliveries?state=dead&sink=few", DEAD, sorts=True),
    Line("/v1/deliveries?state=dead&sink=crm", DEAD, sorts=True),
    Line("/v1/deliveries?state=dead", DEAD, sorts=True),
    Line("/v1/deliveries?state=dead&webhook=orders", KEY),
    Line("/v1/quarantine", "ix_quarantine_received"),
    Line("/v1/quarantine?webhook=orders", "ix_quarantine_received"),
    Line(f"/v1/quarantine?{TIMES}", "ix_quarantine_received"),
    Line("/v1/replays", "replays.id"),
    Line("/v1/erasures", "erasures.id"),
    Line("/v1/backfills", "backfills.id"),
    Line("/v1/completeness", "completeness.key"),
    Line(f"/v1/completeness?{TIMES}&connection=default&type=open", "completeness.key"),
    Line("/v1/events/EVENT/deliveries", KEY, sorts=True),
    Line("/v1/suppressions", "ix_suppressions_since"),
    Line(f"/v1/suppressions?{TIMES}", "ix_suppressions_since"),
    Line("/v1/suppressions?email=7@example.com", "ix_suppressions_email", sorts=True),
    Line("/v1/suppressions?email_domain=7.com", "ix_suppressions_email_domain"),
    Line("/v1/suppressions?reason=complaint", "ix_suppressions_reason"),
    Line("/v1/suppressions?reason=complaint&reason=manual", "ix_suppressions_since"),
    Line("/v1/suppressions?scope=list", "ix_suppressions_scope"),
    Line("/v1/suppressions?list_id=7", "ix_suppressions_list_id"),
]  # fmt: skip
# Lists that hold what is configured, or whose plans have tests of their own beside what they ask.
ELSEWHERE = {"/v1/sinks", "/v1/webhooks", "/v1/feed"}
PAGING = {"order", "limit", "cursor"}
PRIMARY = {
    "events.id": ("sqlite_autoindex_events_1", "uq_events_id"),
    "deliveries.key": ("USING PRIMARY KEY", "pk_deliveries"),
    "backfills.id": ("sqlite_autoindex_backfills_1", "pk_backfills"),
    "completeness.key": ("USING PRIMARY KEY", "pk_completeness"),
    "erasures.id": ("sqlite_autoindex_erasures_1", "pk_erasures"),
    "replays.id": ("sqlite_autoindex_replays_1", "pk_replays"),
}


# --- what is stored --------------------------------------------------------------------------------------------------


def stored_events() -> list[dict[str, Any]]:
    """A minute apart; the few and the old are the oldest ones, where a walk from the newest would meet them last."""
    kinds = ["open", "click", "sent"]
    return [
        event_values(
            occurred_at=NOON + timedelta(minutes=n), webhook="news" if n % 9 == 0 else "orders",
            type="spam" if n % 50 == 7 else kinds[n % 3], campaign_id="old" if n < FEW else "many",
            **{name: "few" if n < FEW else str(n) for name in ("message_id", "message_guid")},
            email="few@example.com" if n < FEW else "many@example.com", custom_id="few" if n < FEW else "many",
        )
        for n in range(EVENTS)
    ]  # fmt: skip


def stored_deliveries(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every third one of `crm` is dead; the newest of `few` are dead or pending."""
    common = {
        "priority": 0, "attempt_count": 1, "schedule_step": 0, "replay": False, "next_attempt_at": NOON,
        "created_at": NOON,
    }  # fmt: skip
    rows = []
    for n, event in enumerate(events):
        states = {
            "crm": "dead" if n % 3 == 0 else "delivered",
            "few": ("dead", "pending")[n % 2] if n > 5900 else "delivered",
        }
        rows += [
            {**common, "event_id": event["id"], "sink": sink, "state": state, "webhook": event["webhook"],
             "type": event["type"]}
            for sink, state in states.items()
        ]  # fmt: skip
    return rows


def fill(database: Database) -> str:
    """The id of one event."""
    events = stored_events()
    insert(database, Event, events)
    insert(database, Delivery, stored_deliveries(events))
    ids = [f"{n:08x}-0000-8000-8000-000000000000" for n in range(3000)]
    insert(
        database,
        Quarantined,
        [
            {
                "id": id,
                "webhook": ("orders", "news")[n % 2],
                "reason": "x",
                "body": b"x",
                "received_at": NOON + timedelta(hours=n),
            }
            for n, id in enumerate(ids)
        ],
    )
    insert(database, Replay, [{"id": id, "sink": "crm", "selection": "{}", "state": "done", "count": 1, "last_seq": 1,
                               "taken": 1, "done": 1, "failed": 0, "created_at": NOON} for id in ids])  # fmt: skip
    insert(
        database,
        Suppression,
        [
            {"id": id, "email": f"{n}@example.com", "email_domain": f"{n % 50}.com", "since": NOON,
             "reason": "complaint" if n % 20 == 0 else "hard_bounce", "scope": "list" if n % 20 == 1 else "address",
             "list_id": str(n % 60)}
            for n, id in enumerate(ids)
        ],
    )  # fmt: skip
    insert(database, Erasure, [{"id": id, "state": "done", "email_hash": "x", "folded": False, "counts": "{}",
                                "keep_suppression": False, "requested_at": NOON} for id in ids])  # fmt: skip
    insert(database, Backfill, [{"id": id, "connection": "default", "since": NOON, "until": NOON, "types": "",
                                 "deliver": True, "rate_per_second": 1.0, "state": "done", "offset": 0, "last_id": "",
                                 "messages": 0, "stored": 0, "known": 0, "deliveries": 0, "created_at": NOON}
                                for id in ids])  # fmt: skip
    insert(database, Completeness, [{"day": day_of(NOON) - 900 + n // 3, "connection": "default", "expected": 1,
                                     "type": ("open", "sent", "click")[n % 3], "stored": 1, "checked_at": NOON}
                                    for n in range(3000)])  # fmt: skip
    take_statistics(database)
    return str(events[1]["id"])


# --- asking and explaining -------------------------------------------------------------------------------------------


class Stand(NamedTuple):
    app: FastAPI
    database: Database
    event_id: str


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def stand(request: pytest.FixtureRequest, make_database: MakeDatabase) -> Iterator[Stand]:
    """The whole service, not started, on a database in which every way is worth its while."""
    settings = {
        "JETHOOK_DATABASE_URL": make_database(request.param),
        "JETHOOK_API_KEYS": "full",
        "JETHOOK_SINKS__CRM__URL": "http://crm.invalid",
        "JETHOOK_SINKS__FEW__URL": "http://few.invalid",
    }
    app = create_app(load_settings(settings, env_file=None))
    database = app.state.service.database
    yield Stand(app, database, fill(database))
    database.close()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is many on a test's scale."""
    monkeypatch.setattr(event_pages, "MOST_SORTED", 400)
    monkeypatch.setattr(delivery_pages, "MOST_SORTED", 400)


@contextmanager
def recorded(engine: sa.Engine) -> Iterator[list[tuple[str, Any]]]:
    statements: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if statement.startswith(("SELECT", "WITH")) and "set_config" not in statement:
            statements.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def plans(stand: Stand, url: str) -> list[str]:
    """The plan of each statement that answers the request, and its next page in the other direction."""
    client = TestClient(stand.app, headers={"authorization": "Bearer full"})
    with recorded(stand.database.reader) as statements:
        for order in ("asc", "desc") if "/EVENT/" not in url else ("",):
            asked = url.replace("EVENT", stand.event_id)
            asked += f"{'&' if '?' in url else '?'}order={order}" if order else ""
            answer = client.get(asked.replace("+", "%2B"))
            assert answer.status_code == 200, answer.text
            if "next" in answer.links:
                assert client.get(answer.links["next"]["url"]).status_code == 200
    word = "EXPLAIN QUERY PLAN " if stand.database.is_sqlite else "EXPLAIN "
    with stand.database.reading() as connection:
        if not url.startswith("/v1/suppressions?email="):  # an address has few, which are sorted
            by_index(connection)
        return [
            "\n".join(str(row) for row in connection.exec_driver_sql(word + statement, parameters))
            for statement, parameters in statements
        ]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.url)
def test_a_list_is_read_by_an_index(stand: Stand, line: Line) -> None:
    told = plans(stand, line.url)

    assert told
    for plan in told:
        assert not whole_tables(plan, KEYED if line.index == KEY else set()), plan
        assert line.sorts or not sorting(plan), plan
    assert any(name in plan for plan in told for name in PRIMARY.get(line.index, (line.index,))), told


def whole_tables(plan: str, keyed: set[str]) -> list[str]:
    """Tables that are read as they lie; an index that is read in its order is none of them."""
    scanned = re.findall(r"SCAN (\w+)\b(?! USING)", plan) + re.findall(r"Seq Scan on (\w+?)(?:_rest|_w\d+)?\b", plan)
    return sorted(BIG & set(scanned) - (set() if sorting(plan) else keyed))


def sorting(plan: str) -> bool:
    # Not the key by which PostgreSQL merges partitions, each of them in order.
    return "TEMP B-TREE" in plan or re.search(r"\bSort +\(", plan) is not None


# --- nothing is left out ---------------------------------------------------------------------------------------------


def listed_parameters(app: FastAPI) -> dict[str, set[str]]:
    """The filters of every list in the OpenAPI document, by path."""
    document = app.openapi()
    found = {}
    for path, operations in document["paths"].items():
        content = operations.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
        name = content.get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
        if "has_more" in document["components"]["schemas"].get(name, {}).get("properties", {}):
            parameters = operations["get"].get("parameters", ())
            found[path] = {parameter["name"] for parameter in parameters if parameter["in"] == "query"} - PAGING
    return found


def test_every_list_and_every_filter_has_a_line(stand: Stand) -> None:
    asked: dict[str, set[str]] = {}
    for line in LINES:
        path, _, query = line.url.partition("?")
        asked.setdefault(path.replace("EVENT", "{id}"), set()).update(name for name, _ in parse_qsl(query))

    for path, names in listed_parameters(stand.app).items():
        if path not in ELSEWHERE and not path.startswith("/v1/connections/"):  # Mailjet's lists, not ours
            assert names <= asked.get(path, set()), f"a line is missing: {path}, {names - asked.get(path, set())}"
            assert path in asked, f"a line is missing: {path}"


def test_a_page_of_a_campaign_starts_where_the_last_one_ended(stand: Stand) -> None:
    """One bound on either side, and both of them of the index: a page costs the same however deep it is."""
    told = plans(stand, "/v1/events?campaign_id=many")[-1]

    if stand.database.is_sqlite:
        assert told.count("(campaign_id,id)>(?,?)") == told.count("(campaign_id,id)<(?,?)") == 1
    else:
        conditions = re.findall("Index Cond: .*", told)
        assert {condition.count("ROW(campaign_id, ") for condition in conditions} == {2}
