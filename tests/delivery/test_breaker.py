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
    breaker.succeeded()

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

    breaker.succeeded()

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
    breaker.succeeded()
    for _ in range(3):
        breaker.failed(now)
    assert breaker.reopens_at() == now + COOLDOWN  # short again after a success


def test_what_was_under_way_when_it_opened_does_not_lengthen_the_cool_down() -> None:
    breaker = opened()

    assert [breaker.failed(10.0) for _ in range(20)] == [False] * 20
    assert breaker.reopens_at() == COOLDOWN


def test_a_success_that_was_under_way_when_it_opened_closes_it() -> None:
    breaker = opened()

    breaker.succeeded()

    assert breaker.state(1.0) is BreakerState.CLOSED


def test_an_abandoned_probe_leaves_room_for_the_next() -> None:
    breaker = opened()
    probe(breaker, COOLDOWN)

    breaker.abandoned()

    probe(breaker, COOLDOWN + 5)
    breaker.reset()
    assert breaker.state(0.0) is BreakerState.CLOSED


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
        self.breaker.succeeded()
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
