"""One stored event -> what each matching sink is owed.

A fresh delivery is born claimed when the process that stores it has room to send it at once: it goes over in memory
and nobody reads it back from the table. Where there is no room (or no worker here) it is simply due.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

from sqlalchemy.engine import Connection

from app.dispatch.matching import Target
from app.models import DeliveryState, Priority

DELIVERY_COLUMNS = (
    "event_id", "sink", "webhook", "type", "state", "priority", "attempt_count", "schedule_step", "next_attempt_at",
    "lease_token", "replay", "order_key", "created_at",
)  # fmt: skip


# Of a row in that order, what names a delivery: (the event's id, its webhook, the sink).
delivery_key: Callable[[tuple[Any, ...]], tuple[str, str, str]] = itemgetter(0, 2, 1)


@dataclass(slots=True)
class Job:
    """One claimed delivery with what is needed to send it. `event` is a row in the order of `EVENT_COLUMNS`."""

    event_id: str
    sink: str
    webhook: str
    type: str
    event: tuple[Any, ...]
    attempt_count: int = 0
    schedule_step: int = 0
    priority: int = Priority.FIRST
    replay: bool = False
    batch_id: str | None = None


class Handover(Protocol):
    """The worker's side of born-claimed deliveries; all calls on the event loop.

    Every `reserve` that said yes is followed by exactly one `accept` or `release`.
    """

    lease_token: str

    def reserve(self, sink: str) -> bool: ...

    def lease_until_micros(self, now_micros: int) -> int: ...

    def accept(self, job: Job) -> None: ...

    def release(self, sink: str) -> None: ...

    def paused_sinks(self, connection: Connection) -> dict[str, str | None]:
        """Paused sinks -> the reason, as the table has it; on a worker thread."""

    def follow(self, paused: Mapping[str, str | None]) -> None:
        """Another replica may have paused them just now."""

    def committed(self) -> None:
        """New events are in the table, and with them perhaps deliveries that nobody has reserved: one with a place in
        an order is claimed when its turn comes, one for which there was no room when there is."""


class NoWorker:
    """Stands where this process delivers nothing: every delivery is due in the table, for whoever does."""

    lease_token = ""

    def reserve(self, sink: str) -> bool:
        return False

    def lease_until_micros(self, now_micros: int) -> int:
        return now_micros

    def accept(self, job: Job) -> None:
        raise AssertionError("nothing was reserved")

    def release(self, sink: str) -> None:
        raise AssertionError("nothing was reserved")

    def paused_sinks(self, connection: Connection) -> dict[str, str | None]:
        return {}

    def follow(self, paused: Mapping[str, str | None]) -> None: ...

    def committed(self) -> None: ...


def fan_out(
    *, event_id: str, webhook: str, event_type: str, event: tuple[Any, ...], targets: Sequence[Target],
    worker: Handover, now_micros: int,
) -> tuple[list[tuple[Any, ...]], list[Job]]:  # fmt: skip
    """(delivery rows in the order of `DELIVERY_COLUMNS`, jobs reserved at the worker) for one event."""
    rows: list[tuple[Any, ...]] = []
    jobs: list[Job] = []
    for target in targets:
        sink = target.sink
        claimed = worker.reserve(sink)
        due = worker.lease_until_micros(now_micros) if claimed else now_micros
        rows.append(
            (event_id, sink, webhook, event_type, DeliveryState.PENDING.value, int(Priority.FIRST), 0, 0, due,
             worker.lease_token if claimed else None, False, target.order_key, now_micros)
        )  # fmt: skip
        if claimed:
            jobs.append(Job(event_id, sink, webhook, event_type, event))
    return rows, jobs
