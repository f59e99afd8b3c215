"""What a finished attempt means for its delivery. Pure: no clock, no database, no network, no dice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.models import AttemptOutcome, DeliveryState

MAX_RETRY_AFTER_SECONDS = 3600.0
JITTER_SHARE = 0.2  # added, never taken off: a schedule is a promise of the least wait
LONGEST_WAIT_SECONDS = 10 * 365 * 86_400.0  # what a schedule may ask for and a database column still holds
CLIENT_ERROR_TRIES = 3  # a sink that says the request is wrong is mended by people, not by a day of repeats
RETRYABLE_4XX = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Decision:
    """The delivery's next state; `retry_in_seconds` with `pending` only."""

    state: DeliveryState
    retry_in_seconds: float | None = None
    pause_sink: bool = False
    counts: bool = True  # does this attempt use up a step of the schedule?
    reason: str | None = None


DELIVERED = Decision(DeliveryState.DELIVERED)


def decide(
    outcome: AttemptOutcome,
    status: int | None,
    *,
    attempt: int,
    schedule: Sequence[float],
    min_backoff: float = 0.0,
    retry_after: float | None = None,
    wish: str | None = None,
    client_error_tries: int = CLIENT_ERROR_TRIES,
    jitter: float = 0.0,
) -> Decision:
    """Choose the next state after attempt number `attempt` of the schedule, counted from 1.

    `schedule[n - 1]` is the wait after attempt n, so a delivery is tried at most `len(schedule) + 1` times. `jitter`
    is a share from 0 to 1 of the jitter allowed. `retry_after` (seconds) lengthens a wait, at most to one hour, and
    never shortens it. `wish` is the answer's `webhook-delivery` header (Standard Webhooks): `disable` and a 410 pause
    the sink, whose deliveries wait (one that it took with a 2xx is delivered all the same); `abort-message` ends this
    one.
    """
    no_more = "the sink asked for no more (webhook-delivery: disable)" if wish == "disable" else None
    if outcome is AttemptOutcome.SUCCESS:
        return DELIVERED if no_more is None else Decision(DeliveryState.DELIVERED, pause_sink=True, reason=no_more)
    if status == 410 or no_more is not None:
        reason = "the sink answered 410" if status == 410 else no_more
        return Decision(DeliveryState.PENDING, retry_in_seconds=0.0, pause_sink=True, counts=False, reason=reason)
    if wish == "abort-message":
        return Decision(DeliveryState.DEAD, reason="the sink refused this message (webhook-delivery: abort-message)")
    if is_client_error(status) and attempt >= client_error_tries:
        return Decision(DeliveryState.DEAD, reason=f"the sink answered {status} at try {attempt}")
    if attempt > len(schedule):
        return Decision(DeliveryState.DEAD, reason="the retry schedule is used up")
    wait = schedule[attempt - 1]
    if outcome in (AttemptOutcome.TIMEOUT, AttemptOutcome.HTTP_429):
        wait = max(wait, min_backoff)
    wait *= 1 + JITTER_SHARE * jitter
    if retry_after is not None:
        wait = max(wait, min(retry_after, MAX_RETRY_AFTER_SECONDS))
    return Decision(DeliveryState.PENDING, retry_in_seconds=min(wait, LONGEST_WAIT_SECONDS))


def is_client_error(status: int | None) -> bool:
    """Did the sink refuse this very request, being well itself?"""
    return status is not None and 400 <= status < 500 and status not in RETRYABLE_4XX


def outcome_of_status(status: int) -> AttemptOutcome:
    if 200 <= status < 300:
        return AttemptOutcome.SUCCESS
    if 300 <= status < 400:
        return AttemptOutcome.HTTP_3XX
    if status == 429:
        return AttemptOutcome.HTTP_429
    if 400 <= status < 500:
        return AttemptOutcome.HTTP_4XX
    return AttemptOutcome.HTTP_5XX if 500 <= status < 600 else AttemptOutcome.INVALID
