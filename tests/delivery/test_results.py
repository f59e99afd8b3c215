"""What an attempt at a parcel leaves in the rows of its deliveries. The ways of ending have their own tests."""

from __future__ import annotations

import time

import pytest

from app.delivery.batching import Parcel, new_batch
from app.delivery.policy import Decision
from app.delivery.queue import Completion
from app.delivery.results import completions_of
from app.delivery.sender import AttemptResult
from app.models import AttemptOutcome, DeliveryState
from tests.delivery.test_batching import job


def told(parcel: Parcel, answer: str) -> list[Completion]:
    result = AttemptResult(AttemptOutcome.HTTP_4XX, 400, f"refused {answer}", 1.0, response_excerpt=answer)
    return completions_of(parcel, 1, 2, result, Decision(DeliveryState.DEAD), "token")


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ('[{"email":"ann@example.com","n":1}]', '[{"email":"(address)","n":1}]'),
        ("no Ann.B+c@EXAMPLE.com, o'b@x.ie: unknown", "no (address), (address): unknown"),
        (r'"ann\u0040example.com" "\u00e9t\u00e9@ex\u00e4mple.fr"', '"(address)" "(address)"'),
        ("/people?email=ann%40example.com&x=1", "/people?email=(address)&x=1"),
        ("a@b@c.example @dom.only user@ 5 @ 6", "(address) (address) user@ 5 @ 6"),
        ("slow down, 429", "slow down, 429"),
    ],
)
def test_what_is_said_of_a_batch_names_nobody(answer: str, kept: str) -> None:
    found = told(new_batch([job(1), job(2)]), answer)

    assert [c.attempt[8] for c in found if c.attempt] == [kept, kept]
    assert [c.last_error for c in found] == [f"refused {kept}"] * 2


def test_what_is_said_of_one_event_goes_with_it_and_stays_as_it_is() -> None:
    [alone] = told(Parcel([job(1)]), "no ann@example.com")

    assert alone.attempt is not None
    assert alone.attempt[8] == "no ann@example.com"


def test_an_answer_that_only_looks_like_addresses_takes_no_time() -> None:
    began = time.perf_counter()

    for answer in ("x%4" * 1400, "%" * 4096, "x " * 2048, "\\u004" * 700):
        told(new_batch([job(1), job(2)]), answer)

    assert time.perf_counter() - began < 0.5
