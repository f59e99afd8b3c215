"""Some of the REST's routes in an app of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
    with TestClient(app_of(*routers), headers={"authorization": "Bearer full"}) as client:
        yield client
