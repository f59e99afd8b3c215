"""What is known of each sink, from settings, tables and this process's worker; pause, resume, test."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy.engine import Connection

from app.clock import rfc3339, utc_now
from app.db import Database
from app.dispatch import sink_states
from app.errors import SinkNotFound
from app.operator_events import SINK_PAUSED, SINK_RESUMED, Change, Herald
from app.settings import EVENT_TYPES, Settings, SinkSettings, mask_url
from app.sinks.shapes import Sink, SinkList, TestResult

BY_HAND = "paused by hand"


class SinkControl(Protocol):
    """This process's worker, as far as sinks are shown and steered."""

    def snapshot(self, sink: str) -> Mapping[str, Any]: ...

    def paused(self, sink: str, reason: str | None) -> None: ...

    def resumed(self, sink: str) -> None: ...

    async def test(self, sink: str) -> Mapping[str, Any]: ...


class Sinks:
    """Every configured sink, and removed ones that something was ever known of."""

    def __init__(self, settings: Settings, database: Database, control: SinkControl, herald: Herald) -> None:
        self._settings = settings
        self._database = database
        self._control = control
        self._herald = herald

    def list_all(self, *, most: int | None = None) -> SinkList:
        """`most` bounds each count: somebody who only looks needs no exact millions."""
        with self._database.reading() as connection:
            states = sink_states.list_states(connection)
            names = sorted({*self._settings.sinks, *states})
            sinks = [self._view(connection, name, states, most) for name in names]
        return SinkList(data=[sink for sink in sinks if sink.state != "removed" or sink.backlog or sink.dead])

    def get(self, name: str) -> Sink:
        with self._database.reading() as connection:
            states = sink_states.list_states(connection)
            if name not in states:
                self._check(name)
            return self._view(connection, name, states)

    async def pause(self, name: str) -> Sink:
        sink = await asyncio.to_thread(lambda: self._steer(name, BY_HAND))
        self._control.paused(name, BY_HAND)
        return sink

    async def resume(self, name: str) -> Sink:
        await asyncio.to_thread(lambda: self._steer(name, None))
        self._control.resumed(name)  # before it is shown: the breaker closes
        return await asyncio.to_thread(lambda: self.get(name))

    async def test(self, name: str) -> TestResult:
        self._check(name)
        return TestResult(**await self._control.test(name))

    def _check(self, name: str) -> None:
        if name not in self._settings.sinks:
            raise SinkNotFound(f"sink {name[:63]!r} is not configured")

    def _steer(self, name: str, pause_reason: str | None) -> Sink:
        self._check(name)
        paused = pause_reason is not None
        change = Change(SINK_PAUSED if paused else SINK_RESUMED, utc_now(), sink=name, error=pause_reason)

        def store(connection: Connection) -> None:
            if sink_states.set_paused(connection, name, paused=paused, reason=pause_reason):
                self._herald.store(connection, change)

        self._database.write(store)
        return self.get(name)

    def _view(
        self, connection: Connection, name: str, states: Mapping[str, Mapping[str, Any]], most: int | None = None
    ) -> Sink:
        configured = self._settings.sinks.get(name)
        shown = configured or SinkSettings(url="http://removed.invalid")
        here = self._control.snapshot(name) if configured else {}
        state = {**states.get(name, {}), **{k: v for k, v in here.items() if k != "paused"}}  # a pause is the table's
        succeeded = state.get("last_success_at")
        return Sink(
            name=name,
            url=mask_url(configured.url) if configured else None,
            state="removed" if configured is None else "paused" if state.get("paused") else "active",
            paused_reason=state.get("paused_reason"),
            breaker=state.get("breaker", "closed"),
            webhooks=list(shown.webhooks or self._settings.effective_webhooks),
            events=list(shown.events or EVENT_TYPES),
            envelope=shown.envelope if configured else None,
            batch_size=shown.batch_size,
            backlog=sink_states.count_pending(connection, name, most),
            oldest_overdue_seconds=sink_states.oldest_overdue_seconds(connection, name, utc_now()),
            dead=sink_states.count_dead(connection, name, most),
            last_success_at=rfc3339(succeeded) if succeeded else None,
            last_error=state.get("last_error"),
        )
