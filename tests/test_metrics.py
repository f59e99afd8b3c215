"""What /metrics shows of a service that has just started."""

from __future__ import annotations

import re

from fastapi.testclient import TestClient

from app.clock import utc_now
from app.main import create_app
from app.settings import load_settings
from tests.e2e.service import until

CONTRACT = (
    "ingest_requests_total", "ingest_events_total", "ingest_duration_seconds", "commit_batch_events",
    "last_event_timestamp_seconds", "delivery_attempts_total", "delivery_duration_seconds", "end_to_end_seconds",
    "deliveries", "oldest_overdue_seconds", "sink_circuit_state", "registration_ok", "mailjet_api_requests_total",
    "build_info",
)  # fmt: skip


def app_of(database_url: str):
    return create_app(
        load_settings(
            {
                "JETHOOK_DATABASE_URL": database_url,
                "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": "pw",
                "JETHOOK_SINKS__CRM__URL": "http://127.0.0.1:1/",
            },
            env_file=None,
        )
    )


def last_events(client: TestClient) -> dict[str, float]:
    text = client.get("/metrics").text
    found = re.findall(r'jethook_last_event_timestamp_seconds\{event="(\w+)",webhook="orders"\} (\S+)', text)
    return {event: float(at) for event, at in found}


def test_every_metric_of_the_contract_is_there_from_the_start(migrated_url: str) -> None:
    with TestClient(app_of(migrated_url)) as client:
        text = client.get("/metrics").text

    for name in CONTRACT:
        assert f"# TYPE jethook_{name} " in text, name


def test_a_restart_does_not_forget_when_the_last_event_came(migrated_url: str) -> None:
    at = int(utc_now().timestamp()) - 7200
    events = [
        {"event": "open", "time": at, "MessageID": 1, "email": "a@example.com"},
        {"event": "never heard of", "time": at, "MessageID": 1, "email": "a@example.com"},
    ]
    with TestClient(app_of(migrated_url)) as client:
        assert client.post("/webhooks/orders", json=events, auth=("jethook", "pw")).status_code == 200

    with TestClient(app_of(migrated_url)) as client:
        assert until(lambda: last_events(client), "the gauge") == {"open": at}
        newer = [{**events[0], "time": at + 60}]
        client.post("/webhooks/orders", json=newer, auth=("jethook", "pw"))
        assert last_events(client)["open"] > at + 60  # when it came in
