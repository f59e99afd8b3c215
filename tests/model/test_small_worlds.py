"""Few people and many things that happen to them, in any order: the service answers what a plain model answers.

`python -m tests.model` does the same with tens of thousands of events.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.conftest import MakeDatabase
from tests.model.service import Running, running
from tests.model.story import FUTURE, PAST, Story

HOUR, DAY = 3600, 86_400
FEW = 5  # of each kind of question

# One rule for all: of several hypothesis leaves some out, and what matters here is how they meet.
HAPPENINGS = ("mail",) * 8 + ("age", "age", "rebuild", "rebuild", "fold", "suppress", "lift", "erase", "ask", "ask")
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
        self.story.post(20)

    @rule(what=st.sampled_from(HAPPENINGS), seed=seeds)
    def something_happens(self, what: str, seed: int) -> None:
        self.story.rng.seed(seed)
        getattr(self, what, getattr(self.story, what, None))()

    def mail(self) -> None:
        self.story.post(self.story.rng.randrange(1, 16))

    def age(self) -> None:
        """Time passes, and retention takes what is old."""
        choose = self.story.rng.choice
        self.story.stream.now += self.story.rng.randrange(12) * DAY
        self.story.retain(choose((None, 20)), choose((None, 3, 9)), though_owed=choose((True, False)))

    def ask(self) -> None:
        getattr(self.story.compared, self.story.rng.choice(("messages", "recipients", "suppressions", "stats")))()
        self.agree()

    def teardown(self) -> None:
        if hasattr(self, "story"):
            self.story.compared.all()
            self.agree()

    def agree(self) -> None:
        assert self.story.compared.differences == []


def test_whatever_happens_the_service_answers_what_the_model_answers(service: Running) -> None:
    some = settings(
        # What is found is told step by step as it is: making it smaller would take minutes.
        max_examples=4, stateful_step_count=20, deadline=None, phases=[Phase.reuse, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    run_state_machine_as_test(lambda: SmallWorld(service), settings=some)
