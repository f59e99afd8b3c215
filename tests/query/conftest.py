from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient

from app.db import Database
from app.query.exports import Exports
from app.query.exports import build_router as build_export_router
from app.query.routes import build_router
from tests.rest import KEYS, asking_of

Walk = Callable[..., list[dict[str, Any]]]


def routers(database: Any, **options: Any) -> tuple[APIRouter, ...]:
    return build_router(database, KEYS, **options), build_export_router(Exports(database), KEYS)


@pytest.fixture
def client(database: Database) -> Iterator[TestClient]:
    """The reading routes, by a key that may do all."""
    with asking_of(routers, database) as opened:
        yield opened


@pytest.fixture
def refusing() -> Iterator[TestClient]:
    """The same without a database, for what must be refused before one is asked."""
    with asking_of(routers, None) as opened:
        yield opened


@pytest.fixture
def walk(client: TestClient) -> Walk:
    """Every row of a list, by following the `Link` header; `between` runs after each page."""

    def follow(path: str, between: Callable[[], object] = lambda: None, **params: Any) -> list[dict[str, Any]]:
        response = client.get(path, params=params)
        rows: list[dict[str, Any]] = []
        while True:
            assert response.status_code == 200, response.text
            page = response.json()
            rows += page["data"]
            assert page["has_more"] == (page["next_cursor"] is not None) == ("next" in response.links)
            if not page["has_more"]:
                return rows
            assert len(page["data"]) == int(params.get("limit", 50))
            assert f"cursor={page['next_cursor']}" in response.links["next"]["url"]
            between()
            response = client.get(response.links["next"]["url"])

    return follow
