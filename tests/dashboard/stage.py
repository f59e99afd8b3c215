"""A service on a port with everything around it, for browsers: a Mailjet, three sinks, and something in every table."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from pydantic import SecretStr

from app.dashboard.pulse import Bin
from app.main import Service, create_app
from app.settings import ConnectionSettings, Settings, SinkSettings, WebhookSettings
from app.simulator.mailjet import DEFAULT_KEYS, StandInMailjet
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from app.simulator.traffic import make_events
from tests.e2e.service import SinkFarm, until
from tests.ports import free_port

FULL, READ, PASSWORD = "full-key-3vT9qL", "read-key-8Zb2mK", "callback-password-5hJ"


@dataclass
class Stage:
    """What a test does around the browser."""

    url: str
    service: Service
    mailjet: StandInMailjet
    farm: SinkFarm

    def sink(self, name: str) -> SampleSink:
        return self.farm[name]

    def post(self, body: Any, webhook: str = "orders") -> dict[str, Any]:
        """One POST as Mailjet makes it."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with httpx2.Client(base_url=self.url, timeout=30) as http:
            response = http.post(f"/webhooks/{webhook}", content=content, auth=("jethook", PASSWORD))
        assert response.status_code == 200, response.text
        return dict(response.json())

    def get(self, path: str) -> Any:
        with httpx2.Client(base_url=self.url, headers={"authorization": f"Bearer {FULL}"}, timeout=30) as http:
            return http.get(path).json()

    def wait_for_registration(self) -> None:
        until(lambda: self.service.registration_state()["state"] != "pending", "the first look at Mailjet")

    def remember(self, bins: Sequence[tuple[int, Counter[str], int]]) -> None:
        """What came before now, in place of what did: (seconds ago, events by type, deliveries to the CRM)."""
        self.service.pulse.tick()
        self.service.pulse.forget()
        now = int(time.time()) // 5 * 5
        for seconds, events, delivered in sorted(bins, reverse=True):
            self.service.pulse.put(Bin(now - seconds, events, {("crm", True): delivered}))


def event(kind: str = "open", **fields: Any) -> dict[str, Any]:
    """One event as Mailjet sends it, of a message of its own."""
    moment = int(time.time())
    number = time.time_ns()
    return {"event": kind, "time": moment, "MessageID": number, "email": f"someone{number % 1000}@example.com"} | fields


def traffic(count: int, *, seed: int = 7, hours: float = 3.0) -> list[dict[str, Any]]:
    """Events of the last hours."""
    start = int(time.time() - hours * 3600)
    return list(make_events(seed, count, start, step_seconds=hours * 3600 / count))


@contextmanager
def staged(
    folder: Path, *, sinks: Sequence[str] = ("crm", "pager", "warehouse"), breaker_failures: int = 10_000, **given: Any
) -> Iterator[Stage]:
    port = free_port()
    mailjet = StandInMailjet()
    api_key, secret_key = next(iter(DEFAULT_KEYS.items()))
    with LocalServer(mailjet) as mailjet_server, SinkFarm(sinks or ["none"]) as farm:
        settings = Settings(**{
            "host": "127.0.0.1", "port": port, "public_url": f"http://127.0.0.1:{port}",
            "database_url": SecretStr(f"sqlite:///{folder / 'stage.db'}"),
            "api_keys": (SecretStr(FULL),), "read_api_keys": (SecretStr(READ),), "register_every_seconds": 1,
            "connections": {"default": ConnectionSettings(
                api_key=api_key, secret_key=SecretStr(secret_key), base_url=mailjet_server.url)},
            "webhooks": {"orders": WebhookSettings(passwords=(SecretStr(PASSWORD),))},
            "sinks": {name: SinkSettings(
                url=farm.url(name), retry_schedule_seconds=(), min_backoff_seconds=0, breaker_failures=breaker_failures,

            ) for name in sinks},
        } | given)  # fmt: skip
        app = create_app(settings)
        with LocalServer(app, port=port) as server:
            yield Stage(server.url, app.state.service, mailjet, farm)
