"""Few people and many things that happen to them, in any order: the service answers what a plain model answers.

`python -m tests.model` does the same with tens of thousands of events.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.conftest import MakeDatabase
from tests.model.service import Running, running
from tests.model.story import FUTURE, PAST, Story

HOUR, DAY = 3600, 86_400
FEW = 5  # of each kind of question

seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def service(request: pytest.FixtureRequest, make_migrated: MakeDatabase) -> Iterator[Running]:
    with running(make_migrated(request.param)) as opened:
        yield opened


class SmallWorld(RuleBasedStateMachine):
    """Each step makes its choices by a seed of its own: so steps can be left out where a fault is narrowed down."""

    def __init__(self, service: Running) -> None:
        super().__init__()
        self.service = service

    @initialize(seed=seeds, start=st.sampled_from([PAST, FUTURE]))
    def begin(self, seed: int, start: int) -> None:
        self.service.empty()
        how = {"people": 5, "window": 4, "step_seconds": 3 * HOUR}
        self.story = Story(self.service, random.Random(seed), start=start, sample=FEW, **how)

    def by(self, seed: int) -> Story:
        self.story.rng.seed(seed)
        return self.story

    @rule(seed=seeds, size=st.integers(1, 12))
    def mail_comes_in(self, seed: int, size: int) -> None:
        self.by(seed).post(size)

    @rule(days=st.integers(1, 10))
    def time_passes(self, days: int) -> None:
        self.story.stream.now += days * DAY

    @rule(seed=seeds, step=st.sampled_from(["fold", "suppress", "lift", "lift", "erase", "rebuild"]))
    def something_is_done(self, seed: int, step: str) -> None:
        getattr(self.by(seed), step)()

    @rule(days=st.sampled_from([None, 5, 20]), payload_days=st.sampled_from([None, 3, 9]), owed=st.booleans())
    def what_is_old_goes(self, days: int | None, payload_days: int | None, owed: bool) -> None:
        self.story.retain(days, payload_days, though_owed=owed)

    @rule(seed=seeds, what=st.sampled_from(["messages", "recipients", "suppressions", "stats"]))
    def somebody_asks(self, seed: int, what: str) -> None:
        getattr(self.by(seed).compared, what)()
        self.agree()

    def teardown(self) -> None:
        if hasattr(self, "story"):
            self.story.compared.all()
            self.agree()

    def agree(self) -> None:
        assert self.story.compared.differences == []


def test_whatever_happens_the_service_answers_what_the_model_answers(service: Running) -> None:
    some = settings(
        max_examples=10, stateful_step_count=25, deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    run_state_machine_as_test(lambda: SmallWorld(service), settings=some)
