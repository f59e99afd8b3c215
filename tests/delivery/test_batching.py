"""Parcels: ids, order, what belongs together, halves."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.delivery.batching import Parcel, batch_id, new_batch, split, stored_batches
from app.dispatch.service import Job
from app.views import EVENT_ID_PATTERN


def job(number: int, batch: str | None = None, **more: int) -> Job:
    return Job(f"{number:08x}-d100-8c4e-9a51-3f9c2b7d1e60", "crm", "orders", "open", (), batch_id=batch, **more)


NUMBERS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40, unique=True)


@given(NUMBERS, st.randoms())
def test_a_batch_is_its_members_in_the_order_of_their_times_however_they_came(
    numbers: list[int], rng: random.Random
) -> None:
    shuffled = numbers[:]
    rng.shuffle(shuffled)

    one, other = new_batch([job(n) for n in numbers]), new_batch([job(n) for n in shuffled])

    assert [j.event_id for j in one.jobs] == [job(n).event_id for n in sorted(numbers)]
    assert one.webhook_id == other.webhook_id == batch_id(j.event_id for j in one.jobs)
    assert re.fullmatch(EVENT_ID_PATTERN, one.webhook_id)
    assert one.webhook_id[:13] == one.jobs[0].event_id[:13]
    assert not one.is_stored


@given(NUMBERS, NUMBERS)
def test_other_members_are_another_id(one: list[int], other: list[int]) -> None:
    same = sorted(one) == sorted(other)
    ids = [new_batch([job(n) for n in numbers]).webhook_id for numbers in (one, other)]

    assert (ids[0] == ids[1]) is same


def test_a_batch_of_one_is_not_called_like_its_event() -> None:
    assert new_batch([job(1)]).webhook_id != Parcel([job(1)]).webhook_id == job(1).event_id


@given(NUMBERS)
def test_halves_hold_everything_once_in_order_under_ids_of_their_own(numbers: list[int]) -> None:
    whole = new_batch([job(n) for n in numbers])

    parts = split(whole)

    assert [j for part in parts for j in part.jobs] == whole.jobs
    assert all(part.jobs for part in parts)
    if len(numbers) > 1:
        assert len(parts) == 2
        assert abs(len(parts[0].jobs) - len(parts[1].jobs)) <= 1
        assert len({whole.webhook_id, *(part.webhook_id for part in parts)}) == 3


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from([None, "x", "y"])), unique_by=lambda pair: pair[0]))
def test_what_was_claimed_falls_into_its_batches_and_the_lone(pairs: list[tuple[int, str | None]]) -> None:
    jobs = [job(number, batch) for number, batch in pairs]

    batches, lone = stored_batches(jobs)

    assert lone == [j for j in jobs if j.batch_id is None]
    assert {parcel.batch_id for parcel in batches} == {j.batch_id for j in jobs} - {None}
    for parcel in batches:
        assert parcel.is_stored
        assert parcel.jobs == sorted((j for j in jobs if j.batch_id == parcel.batch_id), key=lambda j: j.event_id)


@pytest.mark.parametrize(("counts", "expected"), [((0, 0), 0), ((0, 3), 3), ((5, 1), 5)])
def test_a_parcel_is_tried_as_often_as_its_most_tried_member(counts: tuple[int, ...], expected: int) -> None:
    parcel = Parcel([job(n, attempt_count=c, schedule_step=c) for n, c in enumerate(counts)])

    assert (parcel.attempt_count, parcel.schedule_step) == (expected, expected)
