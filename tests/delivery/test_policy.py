from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.delivery.policy import (
    CLIENT_ERROR_TRIES,
    JITTER_SHARE,
    LONGEST_WAIT_SECONDS,
    MAX_RETRY_AFTER_SECONDS,
    Decision,
    decide,
    outcome_of_status,
)
from app.models import AttemptOutcome, DeliveryState

DELIVERED, PENDING, DEAD = DeliveryState.DELIVERED, DeliveryState.PENDING, DeliveryState.DEAD
SUCCESS, TIMEOUT, DNS, CONNECT, TLS, INVALID, BLOCKED = (
    AttemptOutcome.SUCCESS, AttemptOutcome.TIMEOUT, AttemptOutcome.DNS, AttemptOutcome.CONNECT, AttemptOutcome.TLS,
    AttemptOutcome.INVALID, AttemptOutcome.BLOCKED,
)  # fmt: skip
SCHEDULE = (5.0, 30.0, 120.0, 7200.0)
ASKED_FOR_NO_MORE = "the sink asked for no more (webhook-delivery: disable)"
ABORTED = "the sink refused this message (webhook-delivery: abort-message)"

statuses = st.integers(100, 999)
answers = statuses.map(lambda status: (outcome_of_status(status), status))
silences = st.sampled_from([TIMEOUT, DNS, CONNECT, TLS, INVALID, BLOCKED]).map(lambda outcome: (outcome, None))
schedules = st.lists(st.floats(0, 1e6), max_size=12)
shares = st.floats(0, 1)
wishes = st.none() | st.sampled_from(["disable", "abort-message", "x"])


def answer(status: int, attempt: int = 1, **more: object) -> Decision:
    return decide(outcome_of_status(status), status, attempt=attempt, schedule=SCHEDULE, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "success"), (204, "success"), (299, "success"), (300, "http_3xx"), (302, "http_3xx"), (399, "http_3xx"),
        (400, "http_4xx"), (408, "http_4xx"), (410, "http_4xx"), (428, "http_4xx"), (429, "http_429"),
        (430, "http_4xx"), (499, "http_4xx"), (500, "http_5xx"), (503, "http_5xx"), (599, "http_5xx"),
        (101, "invalid"), (199, "invalid"), (600, "invalid"), (999, "invalid"),
    ],
)  # fmt: skip
def test_each_status_has_one_label(status: int, outcome: str) -> None:
    assert outcome_of_status(status) == outcome


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_is_delivered_even_after_the_last_retry(status: int) -> None:
    assert answer(status, attempt=99) == Decision(DELIVERED)


@pytest.mark.parametrize("attempt", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("outcome", "status"),
    [(DNS, None), (CONNECT, None), (TLS, None), (INVALID, None), (TIMEOUT, None),
     *((outcome_of_status(s), s) for s in (301, 302, 408, 425, 429, 500, 502, 503, 504, 600))],
)  # fmt: skip
def test_a_failure_that_may_pass_follows_the_schedule(
    outcome: AttemptOutcome, status: int | None, attempt: int
) -> None:
    decision = decide(outcome, status, attempt=attempt, schedule=SCHEDULE)

    assert decision == Decision(PENDING, retry_in_seconds=SCHEDULE[attempt - 1])


@pytest.mark.parametrize("attempt", [5, 6, 100])
def test_after_the_last_wait_of_the_schedule_it_is_dead(attempt: int) -> None:
    assert answer(503, attempt) == Decision(DEAD, reason="the retry schedule is used up")


def test_an_empty_schedule_means_one_try() -> None:
    assert decide(DNS, None, attempt=1, schedule=()) == Decision(DEAD, reason="the retry schedule is used up")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 413, 422, 499])
def test_a_sink_that_says_the_request_is_wrong_is_asked_three_times(status: int) -> None:
    decisions = [answer(status, attempt) for attempt in (1, 2, 3)]

    assert [d.state for d in decisions] == [PENDING, PENDING, DEAD]
    assert [d.retry_in_seconds for d in decisions] == [5.0, 30.0, None]
    assert decisions[2].reason == f"the sink answered {status} at try 3"
    assert CLIENT_ERROR_TRIES == 3


@pytest.mark.parametrize("attempt", [1, 3, 99])
def test_410_pauses_the_sink_and_uses_up_nothing(attempt: int) -> None:
    expected = Decision(PENDING, retry_in_seconds=0.0, pause_sink=True, counts=False, reason="the sink answered 410")

    assert answer(410, attempt) == expected
    assert answer(410, attempt, wish="abort-message") == expected


@pytest.mark.parametrize("status", [302, 400, 429, 500, 503])
def test_the_wish_for_no_more_pauses_the_sink(status: int) -> None:
    decision = answer(status, 99, wish="disable")

    assert decision == Decision(PENDING, retry_in_seconds=0.0, pause_sink=True, counts=False, reason=ASKED_FOR_NO_MORE)


def test_a_sink_that_takes_the_event_and_wants_no_more_has_this_one_delivered() -> None:
    assert answer(200, wish="disable") == Decision(DELIVERED, pause_sink=True, reason=ASKED_FOR_NO_MORE)


@pytest.mark.parametrize("status", [302, 400, 429, 500])
def test_the_wish_to_abort_ends_this_delivery_at_once(status: int) -> None:
    assert answer(status, wish="abort-message") == Decision(DEAD, reason=ABORTED)


def test_a_wish_to_abort_on_a_success_changes_nothing() -> None:
    assert answer(200, wish="abort-message") == Decision(DELIVERED)


def test_an_unknown_wish_changes_nothing() -> None:
    assert answer(500, wish="sing") == answer(500)


@pytest.mark.parametrize(("outcome", "status"), [(TIMEOUT, None), (AttemptOutcome.HTTP_429, 429)])
@pytest.mark.parametrize(("attempt", "wait"), [(1, 60.0), (2, 60.0), (3, 120.0), (4, 7200.0)])
def test_a_timeout_or_a_429_waits_at_least_the_least_backoff(
    outcome: AttemptOutcome, status: int | None, attempt: int, wait: float
) -> None:
    decision = decide(outcome, status, attempt=attempt, schedule=SCHEDULE, min_backoff=60)

    assert decision.retry_in_seconds == wait


@pytest.mark.parametrize(("outcome", "status"), [(DNS, None), (CONNECT, None), (AttemptOutcome.HTTP_5XX, 503)])
def test_other_failures_know_no_least_backoff(outcome: AttemptOutcome, status: int | None) -> None:
    assert decide(outcome, status, attempt=1, schedule=SCHEDULE, min_backoff=60).retry_in_seconds == 5.0


@pytest.mark.parametrize(
    ("attempt", "retry_after", "wait"),
    [
        pytest.param(1, 17.0, 17.0, id="lengthens"),
        pytest.param(3, 17.0, 120.0, id="never shortens"),
        pytest.param(1, 0.0, 5.0, id="zero"),
        pytest.param(1, 3600.0, 3600.0, id="an hour"),
        pytest.param(1, 3601.0, 3600.0, id="more than an hour is an hour"),
        pytest.param(1, float("inf"), 3600.0, id="endless is an hour"),
        pytest.param(4, 1e9, 7200.0, id="the hour does not shorten a longer schedule"),
    ],
)
@pytest.mark.parametrize("status", [302, 404, 429, 503])
def test_retry_after_is_a_floor_of_at_most_an_hour(status: int, attempt: int, retry_after: float, wait: float) -> None:
    if status == 404 and attempt >= CLIENT_ERROR_TRIES:
        assert answer(status, attempt, retry_after=retry_after).state is DEAD
    else:
        assert answer(status, attempt, retry_after=retry_after).retry_in_seconds == wait


@given(st.one_of(answers, silences), st.integers(1, 15), schedules, shares, st.floats(0, 1e4),
       st.none() | st.floats(0, allow_nan=False), wishes)  # fmt: skip
def test_whatever_comes_the_wait_is_never_less_than_promised_and_jitter_adds_a_fifth_at_most(
    result: tuple[AttemptOutcome, int | None], attempt: int, schedule: list[float], jitter: float,
    min_backoff: float, retry_after: float | None, wish: str | None,
) -> None:  # fmt: skip
    outcome, status = result

    decision = decide(
        outcome, status, attempt=attempt, schedule=schedule, min_backoff=min_backoff, retry_after=retry_after,
        wish=wish, jitter=jitter,
    )  # fmt: skip

    assert (decision.state is DELIVERED) == (outcome is SUCCESS)
    assert (decision.retry_in_seconds is not None) == (decision.state is PENDING)
    if decision.state is DEAD:
        assert decision.reason
    if decision.state is PENDING and not decision.pause_sink:
        assert attempt <= len(schedule)
        base = schedule[attempt - 1]
        if outcome in (TIMEOUT, AttemptOutcome.HTTP_429):
            base = max(base, min_backoff)
        floor = min(retry_after or 0.0, MAX_RETRY_AFTER_SECONDS)
        assert decision.retry_in_seconds is not None
        assert max(base, floor) <= decision.retry_in_seconds
        assert decision.retry_in_seconds <= max(base * (1 + JITTER_SHARE) * (1 + 1e-9), floor)


def test_a_wait_of_any_length_still_fits_a_column() -> None:
    decision = decide(CONNECT, None, attempt=1, schedule=(1.7e308,), jitter=1.0)

    assert decision.retry_in_seconds == LONGEST_WAIT_SECONDS
