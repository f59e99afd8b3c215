"""What an attempt at a parcel means for each of its deliveries, as rows to be written. Pure."""

from __future__ import annotations

import re

from app.delivery.batching import Parcel, split
from app.delivery.policy import Decision
from app.delivery.queue import Completion
from app.delivery.sender import AttemptResult
from app.dispatch.service import Job
from app.models import AttemptOutcome, DeliveryState, Priority
from app.views import clean

# A batch that the sink found too large: its halves go out at once, as batches of their own.
SPLIT = Decision(DeliveryState.PENDING, retry_in_seconds=0.0, counts=False, reason="sent again in halves")

# However the answer writes it, escaped in JSON or in a URL too. A word is begun once, so that it takes no longer for a
# long answer without any.
_IN_WORD = r"""[^\s"<>,;:=&?(){}\[\]@]"""
_ADDRESS = re.compile(rf"(?<!{_IN_WORD}){_IN_WORD}*(?:@|%40|\\u0040)(?:[\w.\-@]|\\u[0-9a-fA-F]{{4}})+")
NO_ADDRESS = "(address)"


def completions_of(
    parcel: Parcel, at: int, now: int, result: AttemptResult, decision: Decision, lease_token: str
) -> list[Completion]:
    """Of an attempt that began at `at` and was judged at `now`, in microseconds."""
    if len(parcel.jobs) > 1:
        result = _of_nobody(result)
    parcels = split(parcel) if decision is SPLIT else [parcel]
    return [
        _completion(job, part.batch_id, at, now, result, decision, lease_token) for part in parcels for job in part.jobs
    ]


def _of_nobody(result: AttemptResult) -> AttemptResult:
    """What a sink said of a batch stands beside each of its events: without the addresses that it repeats, or an
    erasure of one person would leave them beside the others'."""
    said, error = (
        None if text is None else _ADDRESS.sub(NO_ADDRESS, text) for text in (result.response_excerpt, result.error)
    )
    return result._replace(response_excerpt=said, error=error)


def given_back(parcel: Parcel, now: int, lease_token: str) -> list[Completion]:
    """Due again at once, for whoever may send it; no attempt is used up."""
    return [
        Completion(
            event_id=job.event_id, sink=job.sink, lease_token=lease_token, state=DeliveryState.PENDING,
            priority=job.priority, attempt_count=job.attempt_count, schedule_step=job.schedule_step,
            next_attempt_micros=now, settled_micros=None, last_status=None, last_error=None,
            batch_id=parcel.batch_id if parcel.is_stored else None, attempt=None,
        )
        for job in parcel.jobs
    ]  # fmt: skip


def _completion(
    job: Job, batch_id: str | None, at: int, now: int, result: AttemptResult, decision: Decision, lease_token: str
) -> Completion:
    number = job.attempt_count + 1
    pending = decision.state is DeliveryState.PENDING
    wait = int((decision.retry_in_seconds or 0) * 1_000_000)
    # Cleaned whoever wrote it: a text that a database refuses would be offered to it for ever.
    told = clean(result.error)
    error = _sentence(told, decision.reason)
    return Completion(
        event_id=job.event_id, sink=job.sink, lease_token=lease_token, state=decision.state,
        priority=job.priority if job.priority == Priority.REPLAY else Priority.RETRY,
        attempt_count=number, schedule_step=job.schedule_step + decision.counts, next_attempt_micros=now + wait,
        settled_micros=None if pending else now, last_status=result.status,
        last_error=None if result.outcome is AttemptOutcome.SUCCESS else error, batch_id=batch_id,
        attempt=(
            job.event_id, job.sink, number, at, result.status, result.outcome.value, told,
            result.duration_ms, result.response_excerpt, job.replay,
        ),
    )  # fmt: skip


def _sentence(told: str | None, reason: str | None) -> str | None:
    """What happened and what came of it; where the second says the first again, it is enough."""
    if reason is None or told is None or reason.startswith(told):
        return reason or told
    return f"{told}; {reason}"
