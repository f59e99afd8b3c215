"""A body that does not come: not waited for for ever, nor when the service stops."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from app.db import Database
from app.dispatch.matching import Matcher
from app.dispatch.service import NoWorker
from app.errors import Unavailable
from app.group_commit import GroupCommit
from app.ingest.auth import CallbackAuth
from app.ingest.routes import Receiver
from app.ingest.service import Ingest
from app.metrics import Metrics
from app.settings import WebhookSettings
from tests.delivery.support import run, until

SCOPE: dict[str, Any] = {
    "type": "http", "method": "POST", "path": "/webhooks/orders", "path_params": {"webhook": "orders"},
    "headers": [(b"authorization", b"Basic " + base64.b64encode(b"jethook:pw"))],
}  # fmt: skip


def receiver(database: Database, body_seconds: float) -> Receiver:
    webhooks = {"orders": WebhookSettings()}
    ingest = Ingest(webhooks, matcher=Matcher({}), commits=GroupCommit(database), worker=NoWorker())
    auth = CallbackAuth("jethook", {"orders": ["pw"]})
    metrics = Metrics(webhooks=webhooks, sinks=[])
    return Receiver(ingest, auth, metrics, max_body_bytes=1000, body_seconds=body_seconds)


async def never() -> Any:
    await asyncio.Event().wait()


async def unheard(_: Any) -> None: ...


def test_a_body_that_does_not_come_is_not_waited_for_for_ever(database: Database) -> None:
    async def scenario() -> None:
        here = receiver(database, body_seconds=0.2)
        with pytest.raises(Unavailable):
            await here(dict(SCOPE), never, unheard)
        assert here.in_flight == 0

    run(scenario())


def test_when_the_service_stops_unfinished_bodies_are_cut_and_whole_ones_are_not(database: Database) -> None:
    parts = iter([{"type": "http.request", "body": b'{"event": "open", "time": 1}'}])
    sent: list[Any] = []

    async def whole() -> Any:
        return next(parts)

    async def send(message: Any) -> None:
        sent.append(message)

    async def scenario() -> None:
        here = receiver(database, body_seconds=60)
        unfinished = asyncio.create_task(here(dict(SCOPE), never, unheard))
        await until(lambda: here.in_flight == 1, "the unfinished post")
        finished = asyncio.create_task(here(dict(SCOPE), whole, send))
        await asyncio.sleep(0)
        here.cut_unfinished()
        with pytest.raises(Unavailable):
            await unfinished
        await finished
        await here.idle()

    run(scenario())
    assert sent[0]["status"] == 200
