"""What goes out in one request: a lone delivery, or a batch of them. Pure.

A batch keeps its members, their order and its id over its retries; so it is written down before it is first sent, and
its id is made from its members. Members are in the order of their ids, which is the order of their events' times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from app.dispatch.service import Job


@dataclass(slots=True)
class Parcel:
    """One request's deliveries, all of one sink. `batch_id` is None for a lone delivery to a sink without batches."""

    jobs: list[Job]
    batch_id: str | None = None
    is_stored: bool = field(default=True)  # False: the batch's id is not in the table yet

    @property
    def webhook_id(self) -> str:
        return self.batch_id or self.jobs[0].event_id

    @property
    def priority(self) -> int:
        return self.jobs[0].priority

    @property
    def attempt_count(self) -> int:
        return max(job.attempt_count for job in self.jobs)

    @property
    def schedule_step(self) -> int:
        return max(job.schedule_step for job in self.jobs)


def new_batch(jobs: Sequence[Job]) -> Parcel:
    """A batch of deliveries that were in none."""
    ordered = sorted(jobs, key=lambda job: job.event_id)
    return Parcel(ordered, batch_id(job.event_id for job in ordered), is_stored=False)


def batch_id(event_ids: Iterable[str]) -> str:
    """The id of a batch of these events, in this order: the first one's time, then a digest; no dot in it."""
    ids = list(event_ids)
    digest = blake2b("\n".join(ids).encode(), digest_size=10, person=b"jethook-batch").hexdigest()
    return f"{ids[0][:13]}-8{digest[:3]}-{'89ab'[int(digest[3], 16) & 3]}{digest[4:7]}-{digest[7:19]}"


def stored_batches(jobs: Iterable[Job]) -> tuple[list[Parcel], list[Job]]:
    """(batches formed before, jobs that belong to none) of what was claimed."""
    batches: dict[str, list[Job]] = {}
    lone: list[Job] = []
    for job in jobs:
        if job.batch_id is None:
            lone.append(job)
        else:
            batches.setdefault(job.batch_id, []).append(job)
    return [Parcel(sorted(m, key=lambda job: job.event_id), name) for name, m in batches.items()], lone


def split(parcel: Parcel) -> list[Parcel]:
    """Two halves with ids of their own, for a sink that found the whole too large."""
    middle = len(parcel.jobs) // 2
    return [new_batch(half) for half in (parcel.jobs[:middle], parcel.jobs[middle:]) if half]
