"""What was put off by a clock that was ahead is sent when the clock is right again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from app.clock import utc_now
from app.db import Database
from app.delivery.policy import decide
from app.delivery.stranded import BackWatch, longest_wait, recall
from app.delivery.worker import Relay
from app.group_commit import GroupCommit
from app.metrics import Metrics
from app.models import AttemptOutcome, Delivery
from app.settings import load_settings
from tests.delivery.support import run
from tests.factories import make_delivery, make_event

NOON = datetime(2026, 5, 3, 12, 0, tzinfo=UTC)
deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]


def test_only_a_clock_that_was_set_back_is_noticed_until_it_was_seen_to() -> None:
    wall, uptime = [NOON], [1000.0]
    watch = BackWatch(now=lambda: wall[0], uptime=lambda: uptime[0])

    def after(*, wall_seconds: float, passed: float) -> bool:
        wall[0] += timedelta(seconds=wall_seconds)
        uptime[0] += passed
        return watch.went_back()

    assert watch.went_back()  # before the start, perhaps
    watch.confirm()
    assert not after(wall_seconds=86_400, passed=86_400)
    assert not after(wall_seconds=8_640_000, passed=1)
    assert not after(wall_seconds=-30, passed=1)  # a correction
    assert after(wall_seconds=-8_640_000, passed=1)
    assert after(wall_seconds=1, passed=1)  # nobody has seen to it
    watch.confirm()
    assert not after(wall_seconds=1, passed=1)


@given(
    schedule=st.lists(st.floats(0, 1e7), max_size=4), backoff=st.floats(0, 1e5), attempt=st.integers(1, 5),
    after=st.none() | st.floats(0, 1e9), jitter=st.floats(0, 1), outcome=st.sampled_from(AttemptOutcome),
)  # fmt: skip
def test_no_schedule_puts_off_further_than_the_longest_wait(schedule, backoff, attempt, after, jitter, outcome) -> None:
    decision = decide(
        outcome, 503, attempt=attempt, schedule=schedule, min_backoff=backoff, retry_after=after, jitter=jitter
    )
    assert timedelta(seconds=decision.retry_in_seconds or 0) < longest_wait(schedule, backoff)


def test_those_too_far_ahead_are_recalled_some_at_a_time_and_no_others(database: Database) -> None:
    beyond, due_at = NOON + timedelta(days=2), NOON + timedelta(seconds=12)
    event = make_event(database)
    for sink, days, state in (("crm", 100, "pending"), ("crm2", 1, "pending"), ("crm3", 100, "delivered")):
        make_delivery(database, event, sink=sink, next_attempt_at=NOON + timedelta(days=days), state=state)

    done = [database.write(lambda c, s=s: recall(c, s, beyond=beyond, due_at=due_at)) for s in ("crm", "crm2", "crm3")]

    assert done == [1, 0, 0]
    with database.reading() as connection:
        found = dict(connection.execute(sa.select(deliveries.c.sink, deliveries.c.next_attempt_at)).all())
    assert found == {"crm": due_at, "crm2": NOON + timedelta(days=1), "crm3": NOON + timedelta(days=100)}


def test_the_worker_recalls_at_its_start(database: Database) -> None:
    event = make_event(database)
    make_delivery(database, event, sink="crm", next_attempt_at=utc_now() + timedelta(days=100))
    settings = load_settings({"JETHOOK_SINKS__CRM__URL": "http://127.0.0.1:1/"}, env_file=None)

    async def scenario() -> None:
        relay = Relay(
            settings.sinks, database=database, commits=GroupCommit(database),
            metrics=Metrics(webhooks=["orders"], sinks=["crm"]),
        )  # fmt: skip
        await relay._claim_round()

    run(scenario())

    with database.reading() as connection:
        due_at = connection.execute(sa.select(deliveries.c.next_attempt_at)).scalar_one()
    assert timedelta(0) < due_at - utc_now() < timedelta(seconds=13)
