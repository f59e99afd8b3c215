"""Some of the REST's routes in an app of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from app.http import ApiKeys, install_problem_handlers

KEYS = ApiKeys(["full"], ["read"])


def app_of(*routers: APIRouter) -> FastAPI:
    app = FastAPI()
    for router in routers:
        app.include_router(router)
    install_problem_handlers(app)
    return app


@contextmanager
def asking(*routers: APIRouter) -> Iterator[TestClient]:
    """By the key that may do all."""
    with _client(app_of(*routers)) as client:
        yield client


class OfTheTest:
    """Stands for something of the test that runs, in routes that are built once."""

    def __init__(self) -> None:
        self._one: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._one, name)


@contextmanager
def asking_of(build: Callable[..., tuple[APIRouter, ...]], *parts: Any) -> Iterator[TestClient]:
    """The routes that `build` makes of these parts, called once only: building takes longer than most tests do."""
    app, places = _built(build, len(parts))
    for place, part in zip(places, parts, strict=True):
        place._one = part
    with _client(app) as client:
        yield client


@cache
def _built(build: Callable[..., tuple[APIRouter, ...]], parts: int) -> tuple[FastAPI, tuple[OfTheTest, ...]]:
    places = tuple(OfTheTest() for _ in range(parts))
    return app_of(*build(*places)), places


def _client(app: FastAPI) -> TestClient:
    return TestClient(app, headers={"authorization": "Bearer full"})
