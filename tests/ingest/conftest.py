"""The service in this process, asked through its ASGI app, over a real database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from app.main import Service, create_app
from app.models import Delivery, Event, Quarantined
from app.settings import load_settings
from tests.conftest import MakeDatabase

API_KEY = "ingest-key"
PASSWORD = "ingest-password"
ENVIRONMENT = {
    "JETHOOK_ROLE": "receive",
    "JETHOOK_API_KEYS": API_KEY,
    "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": PASSWORD,
    "JETHOOK_SINKS__CRM__URL": "http://127.0.0.1:9/never-asked",
}

events: sa.Table = Event.__table__  # type: ignore[attr-defined]
deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
quarantine: sa.Table = Quarantined.__table__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Stored:
    """Rows that were not there before, in the order they were stored."""

    events: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]
    deliveries: list[dict[str, Any]]

    @property
    def nothing(self) -> bool:
        return not (self.events or self.quarantined or self.deliveries)


class Receiver:
    """Posts as Mailjet does, and looks into the tables."""

    def __init__(self, client: TestClient, service: Service) -> None:
        self.client = client
        self.service = service
        self._last_seq = 0
        self._seen: dict[str, set[tuple[Any, ...]]] = {}
        self.news()

    def post(
        self, body: Any, webhook: str = "orders", *, auth: Any = ("jethook", PASSWORD), **options: Any
    ) -> httpx2.Response:
        content = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
        return self.client.post(f"/webhooks/{webhook}", content=content, auth=auth, **options)

    def counts(self, body: Any, webhook: str = "orders") -> tuple[int, int, int, int]:
        """(received, stored, duplicates, quarantined) of a post that must be answered 200."""
        response = self.post(body, webhook)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/json"
        answer = response.json()
        assert list(answer) == ["received", "stored", "duplicates", "quarantined"]
        received, stored, duplicates, quarantined = answer.values()
        assert received == stored + duplicates + quarantined
        return received, stored, duplicates, quarantined

    def get(self, path: str) -> httpx2.Response:
        response = self.client.get(path, headers={"authorization": f"Bearer {API_KEY}"})
        assert response.status_code == 200, response.text
        return response

    def forget(self) -> None:
        """As if nothing had been posted yet."""

        def empty(connection: sa.Connection) -> None:
            for table in (deliveries, events, quarantine):
                connection.execute(table.delete())

        self.service.database.write(empty)
        self._seen.clear()

    def news(self) -> Stored:
        """What was stored since the last look."""
        fresh = self._new(events.c.seq > self._last_seq, events, "seq")
        self._last_seq = max([self._last_seq, *(row["seq"] for row in fresh)])
        # Deliveries of older events would make the numbers differ below.
        owed = deliveries.c.event_id.in_([row["id"] for row in fresh][-30_000:])
        return Stored(fresh, self._new(sa.true(), quarantine, "id"), self._new(owed, deliveries, "event_id", "sink"))

    def all_events(self) -> list[dict[str, Any]]:
        with self.service.database.reading() as connection:
            return [{**row} for row in connection.execute(sa.select(events).order_by(events.c.seq)).mappings()]

    def _new(self, where: sa.ColumnElement[bool], table: sa.Table, *key: str) -> list[dict[str, Any]]:
        seen = self._seen.setdefault(table.name, set())
        with self.service.database.reading() as connection:
            number = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            if number == len(seen):
                return []
            rows = connection.execute(sa.select(table).where(where).order_by(table.c[key[0]])).mappings()
            new = [{**row} for row in rows if tuple(row[part] for part in key) not in seen]
        seen.update(tuple(row[part] for part in key) for row in new)
        assert len(seen) == number, f"{table.name}: rows that belong to nothing new"
        return new


OpenReceiver = Callable[..., AbstractContextManager[Receiver]]


@contextmanager
def open_receiver(database_url: str, environment: Mapping[str, str] | None = None) -> Iterator[Receiver]:
    """A running service on this database, for a `with` block."""
    settings = load_settings(
        ENVIRONMENT | {"JETHOOK_DATABASE_URL": database_url} | dict(environment or {}), env_file=None
    )
    app = create_app(settings)
    with TestClient(app) as client:
        yield Receiver(client, app.state.service)


@pytest.fixture
def make_receiver(sqlite_url: str) -> Callable[[Mapping[str, str]], AbstractContextManager[Receiver]]:
    """Opens a receiver with settings of its own, on SQLite."""
    return lambda environment: open_receiver(sqlite_url, environment)


@pytest.fixture
def receiver(module_receiver: Receiver) -> Receiver:
    """The module's service on each kind of database, with nothing stored yet."""
    module_receiver.forget()
    return module_receiver


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def module_receiver(request: pytest.FixtureRequest, make_database: MakeDatabase) -> Iterator[Receiver]:
    """One running service for the module, on each kind of database."""
    with open_receiver(make_database(request.param)) as opened:
        yield opened


@pytest.fixture(scope="module")
def sqlite_receiver(make_database: MakeDatabase) -> Iterator[Receiver]:
    """One running service for the module, on SQLite alone."""
    with open_receiver(make_database("sqlite")) as opened:
        yield opened
