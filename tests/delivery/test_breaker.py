from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.delivery.breaker import LONGEST_COOLDOWN, Breaker, BreakerState

COOLDOWN = 30.0


def opened(failures: int = 3) -> Breaker:
    breaker = Breaker(failures, COOLDOWN)
    results = [breaker.failed(0.0) for _ in range(failures)]
    assert results == [False] * (failures - 1) + [True]
    return breaker


def probe(breaker: Breaker, now: float) -> None:
    assert breaker.free_slots(now, 16) == 1
    breaker.started(now)
    assert breaker.state(now) is BreakerState.HALF_OPEN


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker(3, COOLDOWN)

    assert [breaker.failed(0.0), breaker.failed(0.0)] == [False, False]
    assert (breaker.state(0.0), breaker.free_slots(0.0, 16)) == (BreakerState.CLOSED, 16)
    assert breaker.failed(0.0) is True
    assert (breaker.state(0.0), breaker.free_slots(0.0, 16)) == (BreakerState.OPEN, 0)
    assert breaker.reopens_at() == COOLDOWN


def test_a_success_between_starts_the_count_again() -> None:
    breaker = Breaker(2, COOLDOWN)

    breaker.failed(0.0)
    breaker.succeeded(0.0)

    assert breaker.failed(0.0) is False


def test_one_probe_at_a_time_after_the_cool_down() -> None:
    breaker = opened()

    assert breaker.free_slots(COOLDOWN - 0.001, 16) == 0
    probe(breaker, COOLDOWN)
    assert breaker.free_slots(COOLDOWN + 1000, 16) == 0
    assert breaker.reopens_at() is None


def test_the_probe_closes_it() -> None:
    breaker = opened()
    probe(breaker, COOLDOWN)

    breaker.succeeded(COOLDOWN)

    assert (breaker.state(COOLDOWN), breaker.free_slots(COOLDOWN, 16)) == (BreakerState.CLOSED, 16)
    assert breaker.failed(COOLDOWN) is False  # the count starts again


def test_each_failed_probe_doubles_the_cool_down_up_to_ten_times_itself() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(8):
        until = breaker.reopens_at()
        assert until is not None
        waits.append(until - now)
        now = until
        probe(breaker, now)
        assert breaker.failed(now) is True

    assert waits == [COOLDOWN * factor for factor in (1, 2, 4, 8, 10, 10, 10, 10)]
    probe(breaker, now + COOLDOWN * 10)
    breaker.succeeded(now)
    for _ in range(3):
        breaker.failed(now)
    assert breaker.reopens_at() == now + COOLDOWN  # short again after a success


def test_what_was_under_way_when_it_opened_does_not_lengthen_the_cool_down() -> None:
    breaker = opened()

    assert [breaker.failed(10.0) for _ in range(20)] == [False] * 20
    assert breaker.reopens_at() == COOLDOWN


def test_a_success_that_was_under_way_when_it_opened_closes_it() -> None:
    breaker = opened()

    breaker.succeeded(1.0)

    assert breaker.state(1.0) is BreakerState.CLOSED


def test_an_abandoned_probe_leaves_room_for_the_next() -> None:
    breaker = opened()
    probe(breaker, COOLDOWN)

    breaker.abandoned()

    probe(breaker, COOLDOWN + 5)
    breaker.reset()
    assert breaker.state(0.0) is BreakerState.CLOSED


# --- by the share of failures ----------------------------------------------------------------------------------------


def by_share(share: float = 0.8) -> Breaker:
    return Breaker(10, COOLDOWN, share)


def fail_but_one_in(
    breaker: Breaker, every: int, requests: int, *, start: float = 0.0, apart: float = 0.1
) -> int | None:
    """The number of the request that opened it, None if none did."""
    for number in range(1, requests + 1):
        now = start + number * apart
        if number % every == 0:
            breaker.succeeded(now)
        elif breaker.failed(now):
            return number
    return None


def test_it_opens_when_more_than_the_share_of_the_last_requests_failed() -> None:
    breaker = by_share()

    assert fail_but_one_in(breaker, 8, 100) == 20  # never ten in a row
    assert (breaker.state(2.1), breaker.opened_by) == (BreakerState.OPEN, 18)


def test_a_smaller_share_does_not_open_it() -> None:
    assert fail_but_one_in(by_share(), 4, 1000) is None


def test_few_requests_say_nothing_of_a_share() -> None:
    assert fail_but_one_in(by_share(), 8, 19) is None
    assert fail_but_one_in(Breaker(1000, COOLDOWN, 0.8), 8, 1999) is None  # twice as many as it takes in a row
    assert fail_but_one_in(Breaker(1000, COOLDOWN, 0.8), 8, 2001, apart=0.001) == 2001


def test_what_is_older_than_a_minute_is_forgotten() -> None:
    breaker = by_share()
    for n in range(400):
        breaker.succeeded(n / 10)

    assert fail_but_one_in(breaker, 8, 19, start=101.0, apart=0.5) is None
    assert fail_but_one_in(breaker, 8, 10, start=111.0, apart=0.5) == 1


def test_a_share_of_one_never_opens_it() -> None:
    assert fail_but_one_in(by_share(1.0), 8, 1000) is None


def test_refusals_of_single_requests_count_in_a_row_and_not_in_the_share() -> None:
    breaker = by_share()
    opened = [breaker.succeeded(n) if n % 8 == 0 else not breaker.failed(n, is_answer=True) for n in range(100)]

    assert all(opened)
    assert [breaker.failed(100.0, is_answer=True) for _ in range(7)] == [False] * 6 + [True]


def test_a_success_that_was_under_way_does_not_close_what_a_share_opened() -> None:
    breaker = by_share()
    fail_but_one_in(breaker, 8, 100)

    assert breaker.succeeded(3.0) is False
    assert breaker.state(3.0) is BreakerState.OPEN
    at = breaker.reopens_at()
    assert at is not None
    probe(breaker, at)
    assert breaker.failed(at) is True
    assert breaker.succeeded(at + 1) is False
    again = breaker.reopens_at()
    assert again == at + 2 * COOLDOWN
    probe(breaker, again)
    assert breaker.succeeded(again) is True
    assert fail_but_one_in(breaker, 8, 19, start=again) is None  # the past is forgotten


class BreakerMachine(RuleBasedStateMachine):
    """A sink's life as the worker leads it: it starts only what there is a slot for."""

    SLOTS = 4

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(3, COOLDOWN)
        self.now = 0.0
        self.under_way = 0
        self.failures_in_a_row = 0
        self.was_open_at: float | None = None

    def may_start(self) -> bool:
        return self.under_way < self.breaker.free_slots(self.now, self.SLOTS)

    @rule(seconds=st.sampled_from([0.1, 29.9, 30.0, 60.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(may_start)
    @rule()
    def start(self) -> None:
        self.breaker.started(self.now)
        self.under_way += 1

    @precondition(lambda self: self.under_way > 0)
    @rule()
    def succeed(self) -> None:
        self.under_way -= 1
        assert self.breaker.succeeded(self.now)
        self.failures_in_a_row = 0
        assert self.breaker.state(self.now) is BreakerState.CLOSED

    @precondition(lambda self: self.under_way > 0)
    @rule()
    def fail(self) -> None:
        before = self.breaker.state(self.now)
        self.under_way -= 1
        self.failures_in_a_row += 1
        opened = self.breaker.failed(self.now)
        if opened:
            assert self.breaker.state(self.now) is BreakerState.OPEN
            until = self.breaker.reopens_at()
            assert until is not None
            assert self.now + COOLDOWN <= until <= self.now + COOLDOWN * LONGEST_COOLDOWN
        elif before is BreakerState.CLOSED:
            assert self.failures_in_a_row < 3

    @precondition(lambda self: self.under_way > 0)
    @rule()
    def cut_off(self) -> None:
        self.under_way -= 1
        self.breaker.abandoned()

    @rule()
    def resume(self) -> None:
        self.breaker.reset()
        self.failures_in_a_row = 0

    @invariant()
    def nothing_is_stuck(self) -> None:
        """With nothing under way a probe may always go, now or at a time that is told."""
        if self.under_way or self.breaker.free_slots(self.now, self.SLOTS):
            return
        at = self.breaker.reopens_at()
        assert at is not None
        assert self.breaker.free_slots(at, self.SLOTS) == 1

    @invariant()
    def slots_fit_the_state(self) -> None:
        slots = self.breaker.free_slots(self.now, self.SLOTS)
        match self.breaker.state(self.now):
            case BreakerState.CLOSED:
                assert slots == self.SLOTS
            case BreakerState.OPEN:
                assert slots == 0
            case BreakerState.HALF_OPEN:
                assert slots in (0, 1)

    @invariant()
    def the_past_is_forgotten_only_by_a_success(self) -> None:
        if self.breaker.state(self.now) is BreakerState.CLOSED:
            assert self.failures_in_a_row < 3


BreakerMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestBreakerMachine = BreakerMachine.TestCase
