"""The service under test, in this process and asked through its own routes; what is due in its background is done when
a test says so, at a time of the test's own."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlmodel import SQLModel

from app.clock import from_micros
from app.main import Service, create_app
from app.maintenance.pacing import Pace
from app.maintenance.retention import Retention, Rules
from app.query.horizon import Horizon
from app.rollups.fold import fold_slice
from app.rollups.rebuild import rebuild_stats
from app.rollups.store import KnownCells
from app.settings import load_settings
from app.suppressions.rebuild import rebuild
from tests.model.standing import SOFT_BOUNCES, SOFT_DAYS
from tests.model.stream import Post
from tests.model.world import OWED_TYPE, WEBHOOKS

ENVIRONMENT = {
    "JETHOOK_ROLE": "receive",
    "JETHOOK_API_KEYS": "full",
    "JETHOOK_CONNECTIONS__SECOND__API_KEY": "k",
    "JETHOOK_CONNECTIONS__SECOND__SECRET_KEY": "s",
    "JETHOOK_SINKS__CRM__URL": "http://127.0.0.1:9/never-asked",
    "JETHOOK_SINKS__CRM__EVENTS": OWED_TYPE,
    "JETHOOK_SUPPRESS_SOFT_BOUNCES": str(SOFT_BOUNCES),
    "JETHOOK_SUPPRESS_SOFT_BOUNCE_DAYS": str(SOFT_DAYS),
} | {
    f"JETHOOK_WEBHOOKS__{name.upper()}__{what}": told
    for name, (connection, types) in WEBHOOKS.items()
    for what, told in (("CONNECTION", connection), ("EVENTS", ",".join(types)))
}


async def at_once(_: float) -> None:
    await asyncio.sleep(0)


async def no_doubt() -> float:
    """The model's time is far from the database's."""
    return 0.0


async def always() -> None: ...


class Running:
    """One running service."""

    def __init__(self, client: TestClient, service: Service) -> None:
        self._client = client
        self._service = service
        self._known, self._horizon = KnownCells(), Horizon()

    def empty(self) -> None:
        """As if it had just been started. Numbers that were given out are not given again, as a feed expects."""

        def delete(connection: sa.Connection) -> None:
            for table in SQLModel.metadata.sorted_tables:
                connection.execute(table.delete())

        self._service.database.write(delete)
        self._known, self._horizon = KnownCells(), Horizon()

    # --- mail ---

    def post(self, post: Post) -> dict[str, int]:
        """As `POST /webhooks/{webhook}` does, but for the clock."""
        assert self._client.portal is not None
        accept = partial(self._service.ingest.accept, post.webhook, post.body, now_micros=post.received)
        return {name: value for name, value in self._client.portal.call(accept)._asdict().items() if name != "by_type"}

    # --- asking ---

    def get(self, path: str, **params: Any) -> Any:
        response = self._client.get(path, params=params)
        assert response.status_code in (200, 404), f"{path} {params}: {response.text}"
        return response.json()

    def send(self, path: str, **body: Any) -> Any:
        response = self._client.post(path, json=body)
        assert response.status_code in (200, 201), f"{path} {body}: {response.text}"
        return response.json()

    def walk(self, path: str, **params: Any) -> list[dict[str, Any]]:
        """All rows of a list, or of the feed up to now."""
        rows: list[dict[str, Any]] = []
        while True:
            page = self.get(path, **params)
            rows += page["data"]
            if not page["has_more"]:
                return rows
            params["cursor"] = page["next_cursor"]

    def export(self, **params: Any) -> list[dict[str, Any]]:
        """Lines of NDJSON as objects, or rows of CSV as texts."""
        response = self._client.get("/v1/exports/events", params=params)
        assert response.status_code == 200, response.text
        if params.get("format") == "csv":
            return list(csv.DictReader(io.StringIO(response.content.decode(), newline="")))
        return [json.loads(line) for line in response.content.split(b"\n") if line]

    def erase(self, email: str, **params: Any) -> Any:
        response = self._client.delete(f"/v1/recipients/{quote(email, safe='')}", params=params)
        assert response.status_code == 200, response.text
        return response.json()

    # --- what is due in the background ---

    def fold(self, most: int = 500) -> None:
        """Count all that is not counted yet into the statistics."""
        database = self._service.database
        with database.reading() as connection:
            settled = self._horizon.look(connection).settled
        assert settled is not None
        counted = most
        while counted >= most:
            counted = database.write(lambda connection: fold_slice(connection, settled, self._known, most=most))
            self._known.confirm()

    def retain(self, now: int, *, days: float | None, payload_days: float | None, though_owed: bool) -> None:
        """One round of retention."""
        assert self._client.portal is not None
        rules = Rules(days, payload_days, though_owed)
        retention = Retention(
            rules, self._service.database, now=lambda: from_micros(now), sleep=at_once, ahead=no_doubt
        )
        self._client.portal.call(retention.round, Pace(always, sleep=at_once))

    def rebuild(self) -> None:
        """`jethook rebuild`: suppressions and statistics."""
        rebuild(self._service.database, self._service.keeper)
        rebuild_stats(self._service.database)


@contextmanager
def running(database_url: str) -> Iterator[Running]:
    """On an empty database."""
    settings = load_settings(ENVIRONMENT | {"JETHOOK_DATABASE_URL": database_url}, env_file=None)
    app = create_app(settings)
    with TestClient(app, headers={"authorization": "Bearer full"}) as client:
        yield Running(client, app.state.service)
