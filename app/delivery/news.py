"""What a sink's runner tells the operators about its sink.

What becomes of an operator event is never told as another, or two sinks that fail would write to each other for ever:
everything told here has its cause in a delivery of Mailjet's.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from app import operator_events
from app.delivery.batching import Parcel
from app.delivery.breaker import Breaker
from app.delivery.policy import Decision
from app.delivery.sender import AttemptResult
from app.dispatch.service import Job
from app.operator_events import Change, Herald


class SinkNews:
    """Remembers of one sink what was told, so that it is told once."""

    def __init__(self, sink: str, breaker: Breaker, herald: Herald) -> None:
        self._sink = sink
        self._breaker = breaker
        self._herald = herald
        self._mail_fails_since: datetime | None = None  # the first failure in a row with mail events in it
        self._told_open_at: datetime | None = None  # the breaker is open, and the herald knows

    def failed(self, parcel: Parcel, result: AttemptResult, now: datetime, *, is_held_back: bool) -> None:
        """`is_held_back`: its breaker is open, and for that alone. Told once, if mail waits behind it."""
        if self._mail_fails_since is None and mail_in(parcel):
            self._mail_fails_since = now
        if not is_held_back or self._mail_fails_since is None or self._told_open_at is not None:
            return
        self._told_open_at = now
        self._tell(
            operator_events.SINK_OPENED, now, error=result.outcome.value, since=self._mail_fails_since,
            details={"status": result.status, "failures": self._breaker.opened_by},
        )  # fmt: skip

    def recovered(self, now: datetime, why: str | None = None) -> None:
        """`why`, where it was not the sink's own success."""
        self._mail_fails_since = None
        if self._told_open_at is not None:
            self._tell(operator_events.SINK_RECOVERED, now, error=why, since=self._told_open_at)
            self._told_open_at = None

    def dead(self, parcel: Parcel, result: AttemptResult, decision: Decision, now: datetime) -> None:
        mail = mail_in(parcel)
        if mail:
            details = {"status": result.status, "reason": decision.reason, "first_event_id": mail[0].event_id}
            error = result.outcome.value
            self._tell(operator_events.DELIVERY_DEAD, now, error=error, count=len(mail), details=details)

    def _tell(self, event_type: str, at: datetime, **more: Any) -> None:
        self._herald.tell(Change(event_type, at, sink=self._sink, **more))


def mail_in(parcel: Parcel) -> list[Job]:
    """The deliveries of Mailjet's events."""
    return [job for job in parcel.jobs if job.webhook != operator_events.WEBHOOK]
