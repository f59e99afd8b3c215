"""A replay from its request to its end, step by step, on both databases; the worker's part is played by the bench."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa

from app.clock import from_micros
from app.errors import Conflict
from app.models import Event, Lease, Priority
from app.replay import queries, service
from app.replay.queries import deliveries
from app.replay.selection import Recipient
from app.replay.service import Replays
from tests.factories import make_attempt, make_delivery
from tests.replay.conftest import replays, run

SECOND = timedelta(seconds=1)


def states(bench, *conditions):
    return [row["state"] for row in bench.deliveries(*conditions)]


def delete_events(bench, *ids):
    events = Event.__table__
    bench.database.write(lambda c: c.execute(sa.delete(events).where(events.c.id.in_(ids))))


def cancel(bench, replay_id):
    return bench.database.write(lambda c: queries.cancel(c, replay_id, bench.now))


def summary(bench, replay_id):
    row = bench.get(replay_id)
    return row.state, row.count, row.taken, row.done, row.failed


# --- what it does ----------------------------------------------------------------------------------------------------


def test_a_sink_added_today_is_given_what_was_stored_before(bench):
    events = bench.events(300)
    bench.events(5, test=True)
    replay = bench.ask()
    bench.events(5)  # came later, and had a delivery of its own

    run(bench.finish(bench.worker()))

    assert summary(bench, replay) == ("done", 300, 300, 300, 0)
    rows = bench.deliveries()
    assert [row["event_id"] for row in rows] == [event["id"] for event in events]
    assert {(row["priority"], row["replay"], row["replay_id"], row["sink"]) for row in rows} == {
        (Priority.REPLAY, True, replay, "crm")
    }
    assert bench.get(replay).finished_at == bench.now
    assert bench.woken >= 3


def test_nothing_to_replay_is_done_at_once(bench):
    replay = bench.ask()

    run(bench.finish(bench.worker(), rounds=1))

    assert summary(bench, replay) == ("done", 0, 0, 0, 0)


def test_a_sink_is_given_only_what_its_settings_match(bench):
    wanted = bench.events(3, type="bounce")
    bench.events(2, type="open")
    bench.events(2, type="bounce", webhook="news")
    replay = bench.ask("bounces")

    run(bench.finish(bench.worker()))

    assert summary(bench, replay) == ("done", 3, 3, 3, 0)
    assert [row["event_id"] for row in bench.deliveries()] == [event["id"] for event in wanted]


def test_settled_deliveries_are_reopened_with_a_fresh_schedule(bench):
    event = bench.events(1)[0]
    make_delivery(bench.database, event, state="delivered", attempt_count=4, schedule_step=3, settled_at=bench.now,
                  batch_id="b", last_status=200)  # fmt: skip
    replay = bench.ask()

    run(bench.worker().round())

    [row] = bench.deliveries()
    wanted = {
        "state": "pending", "priority": Priority.REPLAY, "replay": True, "replay_id": replay, "schedule_step": 0,
        "attempt_count": 4, "next_attempt_at": bench.now, "settled_at": None, "batch_id": None, "lease_token": None,
        "created_at": event["received_at"],
    }  # fmt: skip
    assert {name: row[name] for name in wanted} == wanted


def test_what_is_pending_already_is_only_marked_and_counted(bench):
    leased = {"lease_token": "x", "next_attempt_at": bench.now + 5 * SECOND}
    made = make_delivery(bench.database, bench.events(1)[0], attempt_count=1, schedule_step=1, priority=1, **leased)
    replay = bench.ask()
    worker = bench.worker()

    run(worker.round())

    [row] = bench.deliveries()
    assert {name: row[name] for name in made} == made
    assert (row["priority"], row["replay_id"]) == (1, replay)
    run(bench.finish(worker))
    assert summary(bench, replay) == ("done", 1, 1, 1, 0)


def test_dead_deliveries_alone_are_sent_again(bench):
    events = bench.events(6)
    died = bench.now - SECOND
    for event, state in zip(events, ("dead", "delivered", "dead", "cancelled", "dead", "dead"), strict=True):
        make_delivery(bench.database, event, state=state, settled_at=died, attempt_count=2)
    make_delivery(bench.database, bench.events(1)[0], sink="bounces", state="dead", settled_at=died)
    replay = bench.ask(dead=True, event_id=[event["id"] for event in events[:5]])
    worker = bench.worker()

    run(bench.finish(worker, settle=lambda: bench.settle(state="dead")))

    assert summary(bench, replay) == ("done", 3, 3, 0, 3)
    assert [row["attempt_count"] for row in bench.deliveries(deliveries.c.sink == "crm")] == [3, 2, 3, 2, 3, 2]
    assert states(bench, deliveries.c.sink == "crm") == ["dead", "delivered", "dead", "cancelled", "dead", "dead"]


def test_a_dead_delivery_that_was_delivered_meanwhile_is_left_alone(bench):
    made = make_delivery(bench.database, bench.events(1)[0], state="dead", settled_at=bench.now - SECOND)
    replay = bench.ask(dead=True)

    class Slow:
        """Delivers it between the moment it is found and the moment it would be reopened."""

        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            return getattr(self.real, name)

        async def run_read(self, work):
            found = await self.real.run_read(work)
            if isinstance(found, queries.Slice):
                change = sa.update(deliveries).values(state="delivered")
                await self.real.run_write(lambda c: c.execute(change))
            return found

    worker = bench.worker()
    worker._database = Slow(bench.database)
    run(bench.finish(worker, settle=lambda: None))

    assert summary(bench, replay) == ("done", 1, 1, 0, 0)
    assert bench.deliveries()[0]["attempt_count"] == made["attempt_count"]


def test_filters_choose_and_the_count_told_is_what_is_done(bench):
    wanted = bench.events(4, email="a@example.com", outcome="bounced")
    bench.events(3, email="b@example.com", outcome="bounced")
    bench.events(2, email="a@example.com")

    replay = bench.ask(email="a@EXAMPLE.com", outcome=["bounced", "deferred"])
    run(bench.finish(bench.worker()))

    assert summary(bench, replay) == ("done", 4, 4, 4, 0)
    assert [row["event_id"] for row in bench.deliveries()] == [event["id"] for event in wanted]


def test_a_further_condition_and_an_order_of_the_sink_are_heeded(bench, monkeypatch):
    monkeypatch.setattr(queries, "JUDGED_AT_ONCE", 7)
    monkeypatch.setattr(service, "SLICE", 2)
    bench.events(30)
    wanted = bench.events(3, email="odd@example.com")
    bench.events(30)
    bench.recipients["crm"] = Recipient(
        "crm", accepts=lambda values: values[8] == "odd@example.com", order_key=lambda values: values[10]
    )

    replay = bench.ask()
    run(bench.finish(bench.worker()))

    assert summary(bench, replay) == ("done", 3, 3, 3, 0)
    rows = bench.deliveries()
    assert [row["event_id"] for row in rows] == [event["id"] for event in wanted]
    assert {row["order_key"] for row in rows} == {wanted[0]["message_id"]}


# --- how it goes on --------------------------------------------------------------------------------------------------


def test_never_more_than_its_share_is_outstanding(bench):
    bench.events(1500)
    replay = bench.ask()
    worker, most = bench.worker(), 0

    def settle_some():
        nonlocal most
        most = max(most, len(states(bench, deliveries.c.state == "pending")))
        bench.settle(most=100)

    run(bench.finish(worker, settle=settle_some))

    assert summary(bench, replay) == ("done", 1500, 1500, 1500, 0)
    assert 400 < most <= service.MOST_OUTSTANDING


def test_progress_is_visible_while_it_runs(bench, monkeypatch):
    monkeypatch.setattr(service, "COUNT_SECONDS", 0)
    monkeypatch.setattr(service, "COUNTING_SHARE", 0)
    bench.events(600)
    replay = bench.ask()
    worker = bench.worker()

    async def some_rounds():
        for state in ("delivered", "dead"):
            for _ in range(8):
                await worker.round()
                bench.now += SECOND
            bench.settle(state=state, most=50)
        await worker.round()

    run(some_rounds())

    assert summary(bench, replay) == ("running", 600, 600, 50, 50)


def test_a_successor_goes_on_where_a_dead_replica_stopped(bench):
    events = bench.events(700)
    replay = bench.ask()

    async def interrupted():
        first = bench.worker("first")
        for _ in range(3):
            await first.round()
            bench.settle()
        second = bench.worker("second")
        assert await second.round() > 0
        assert bench.get(replay).taken == 384  # the lease is still the first one's
        bench.now += timedelta(seconds=11)
        await bench.finish(second)

    run(interrupted())

    assert summary(bench, replay) == ("done", 700, 700, 700, 0)
    rows = bench.deliveries()
    assert [row["event_id"] for row in rows] == [event["id"] for event in events]
    assert {row["attempt_count"] for row in rows} == {1}


def test_one_that_lost_its_lease_changes_nothing(bench):
    bench.events(300)
    replay = bench.ask()

    async def overtaken():
        late = bench.worker("late")
        await late.round()
        real, moved = late._database, False

        class Overtaken:
            def __getattr__(self, name):
                return getattr(real, name)

            async def run_read(self, work):
                nonlocal moved
                found = await real.run_read(work)
                if isinstance(found, queries.Slice) and not moved:
                    moved = True
                    await real.run_write(lambda c: queries.update(c, replay, cursor=found.cursor))
                return found

        late._database = Overtaken()
        await late.round()

    run(overtaken())

    assert bench.get(replay).taken == len(bench.deliveries()) == 128


def test_leases_are_given_back(bench):
    bench.events(1)
    waiting = bench.ask()
    stop, took = asyncio.Event(), asyncio.Event()
    worker = Replays(bench.recipients, bench.database, "a", took.set)

    async def stopped():
        task = asyncio.create_task(worker.run(stop))
        await took.wait()
        worker.look_again()
        stop.set()
        await task

    run(stopped())

    with bench.database.reading() as connection:
        assert connection.execute(sa.select(Lease.__table__)).all() == []
    assert bench.get(waiting).state == "running"
    worker.look_again()  # harmless where nothing runs


def test_a_database_that_is_away_is_waited_for(bench):
    bench.events(3)
    replay = bench.ask()
    worker = bench.worker()
    real, failures = bench.database, [ConnectionError(), ConnectionError()]

    class Flaky:
        def __getattr__(self, name):
            return getattr(real, name)

        async def run_write(self, work):
            if failures:
                raise failures.pop()
            return await real.run_write(work)

    worker._database = Flaky()
    run(bench.finish(worker))

    assert summary(bench, replay) == ("done", 3, 3, 3, 0)
    assert failures == []


def test_events_that_were_deleted_meanwhile_do_not_hang_it(bench, monkeypatch):
    monkeypatch.setattr(service, "SLICE", 4)
    events = bench.events(12)
    replay = bench.ask()
    worker = bench.worker()
    run(worker.round())
    # Two that are owed already, one that is yet to be taken up.
    delete_events(bench, events[0]["id"], events[1]["id"], events[9]["id"])

    run(bench.finish(worker))

    assert summary(bench, replay) == ("done", 12, 11, 9, 2)


def test_a_removed_sink_makes_its_replay_wait(bench):
    bench.events(3)
    replay = bench.ask()
    present = bench.recipients.pop("crm")

    async def later():
        for _ in range(5):
            bench.now += timedelta(seconds=await bench.worker("a").round())
        assert summary(bench, replay) == ("running", 3, 0, 0, 0)
        bench.recipients["crm"] = present
        await bench.finish(bench.worker("a"))

    run(later())

    assert summary(bench, replay) == ("done", 3, 3, 3, 0)


def test_a_paused_sink_makes_its_replay_wait(bench):
    bench.events(600)
    replay = bench.ask()
    worker = bench.worker()

    async def paused():
        for _ in range(50):
            bench.now += timedelta(seconds=await worker.round())
        assert summary(bench, replay) == ("running", 600, 512, 0, 0)
        await bench.finish(worker)

    run(paused())

    assert summary(bench, replay) == ("done", 600, 600, 600, 0)


def test_a_selection_that_cannot_be_read_fails_it(bench):
    replay = bench.ask()
    bench.database.write(lambda c: queries.update(c, replay, selection='{"filter": {"later": ["x"]}}'))
    other = bench.ask()

    run(bench.finish(bench.worker()))

    row = bench.get(replay)
    assert (row.state, row.error) == ("failed", "the stored selection cannot be read: ValidationError")
    assert bench.get(other).state == "done"
    with pytest.raises(Conflict):
        cancel(bench, replay)


# --- the rate --------------------------------------------------------------------------------------------------------


def due_times(bench, replay):
    return sorted(row["next_attempt_at"] for row in bench.deliveries(deliveries.c.replay_id == replay))


def most_in_a_second(times):
    return max(sum(start <= other < start + SECOND for other in times) for start in times)


@pytest.mark.parametrize(("rate", "count"), [(1.0, 12), (7.0, 40), (50.0, 300)])
def test_the_rate_holds_in_every_second(bench, rate, count):
    bench.events(count)
    replay = bench.ask(rate=rate)
    started = bench.now

    run(bench.finish(bench.worker()))

    times = due_times(bench, replay)
    assert summary(bench, replay) == ("done", count, count, count, 0)
    assert most_in_a_second(times) <= rate
    assert times[0] >= started
    assert (times[-1] - times[0]).total_seconds() == pytest.approx((count - 1) / rate, abs=0.5)


def test_the_rate_holds_over_restarts(bench):
    bench.events(60)
    replay = bench.ask(rate=5.0)

    async def restarted_often():
        for n in range(200):
            worker = bench.worker(str(n), lease_seconds=0.0)
            for _ in range(2):
                bench.now += timedelta(seconds=min(0.3, await worker.round()))
                bench.settle()
            if bench.get(replay).state == "done":
                return
        raise AssertionError("it goes on for ever")

    run(restarted_often())

    times = due_times(bench, replay)
    assert len(times) == 60
    assert most_in_a_second(times) <= 5


def test_a_paused_sink_does_not_pile_up_what_would_go_at_once_later(bench):
    bench.events(100)
    replay = bench.ask(rate=10.0)
    worker = bench.worker()

    async def paused():
        for _ in range(100):
            bench.now += timedelta(seconds=await worker.round())
        assert 10 <= bench.get(replay).taken <= 30
        await bench.finish(worker)

    run(paused())

    assert summary(bench, replay) == ("done", 100, 100, 100, 0)
    assert most_in_a_second(due_times(bench, replay)) <= 10


# --- two at once -----------------------------------------------------------------------------------------------------


def test_two_replays_of_one_sink_both_finish(bench):
    bench.events(200, type="open")
    bench.events(200, type="click")
    first = bench.ask(type="open")
    worker = bench.worker()

    async def both():
        await worker.round()
        bench.settle(most=30)
        await worker.round()
        second = bench.ask()
        await bench.finish(worker, settle=lambda: bench.settle(most=90))
        return second

    second = run(both())

    assert summary(bench, second) == ("done", 400, 400, 400, 0)
    state, count, taken, done, failed = summary(bench, first)
    assert (state, count, taken, failed) == ("done", 200, 200, 0)
    assert 0 <= done <= 200


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_a_cancelled_replay_gives_back_what_it_did_not_deliver(bench):
    events = bench.events(5)
    settled = bench.now - timedelta(days=1)
    never, delivered, dead, leased, owed = events
    for event, state in ((delivered, "delivered"), (dead, "dead"), (leased, "dead")):
        make_delivery(bench.database, event, state=state, attempt_count=1, settled_at=settled)
    make_attempt(bench.database, {"event_id": delivered["id"], "sink": "crm", "created_at": settled}, at=settled)
    for event in (dead, leased):
        failed = {"event_id": event["id"], "sink": "crm", "created_at": settled}
        make_attempt(bench.database, failed, at=settled, outcome="http_5xx", status=500)
    make_delivery(bench.database, owed)
    replay = bench.ask()
    worker = bench.worker()
    run(worker.round())
    lease = {"lease_token": "x", "next_attempt_at": bench.now + 5 * SECOND}
    of_leased = sa.update(deliveries).where(deliveries.c.event_id == leased["id"]).values(**lease)
    bench.database.write(lambda c: c.execute(of_leased))

    first, again = cancel(bench, replay), cancel(bench, replay)

    assert (first.state, first.finished_at) == (again.state, again.finished_at) == ("cancelled", None)
    rows = {row["event_id"]: row for row in bench.deliveries()}
    assert rows[never["id"]]["state"] == "cancelled"
    assert (rows[delivered["id"]]["state"], rows[delivered["id"]]["settled_at"]) == ("delivered", settled)
    assert (rows[dead["id"]]["state"], rows[dead["id"]]["replay"]) == ("dead", False)
    assert (rows[leased["id"]]["state"], rows[leased["id"]]["replay_id"]) == ("pending", replay)
    assert (rows[owed["id"]]["state"], rows[owed["id"]]["replay_id"]) == ("pending", None)

    bench.now += SECOND
    bench.settle(deliveries.c.event_id == owed["id"])
    assert run(worker.round()) > 0
    assert bench.get(replay).finished_at is None
    bench.now += 5 * SECOND  # whoever held it died
    run(bench.finish(worker, settle=lambda: None))
    assert summary(bench, replay) == ("cancelled", 5, 5, 0, 0)
    assert states(bench, deliveries.c.event_id == leased["id"]) == ["dead"]


def test_a_replay_cancelled_in_the_middle_takes_up_nothing_more(bench):
    bench.events(700)
    replay = bench.ask()
    worker = bench.worker()

    async def cancelled():
        await worker.round()
        bench.settle(most=100)
        await worker.round()
        assert cancel(bench, replay).finished_at == bench.now
        for _ in range(3):
            bench.now += timedelta(seconds=await worker.round())

    run(cancelled())

    assert summary(bench, replay) == ("cancelled", 700, 256, 100, 0)
    assert states(bench, deliveries.c.replay_id == replay) == ["delivered"] * 100
    assert states(bench, deliveries.c.replay_id.is_(None)) == ["cancelled"] * 156
    with bench.database.reading() as connection:
        assert connection.execute(sa.select(Lease.__table__)).all() == []


@pytest.mark.parametrize("rounds", [1, 3])
def test_what_another_replay_wants_too_is_not_taken_from_it(bench, rounds):
    opens = bench.events(20, type="open")
    bench.events(20, type="click")
    first = bench.ask(type="open")
    worker = bench.worker()

    async def second_cancelled():
        await worker.round()
        bench.now += SECOND
        second = bench.ask()
        for _ in range(rounds):
            await worker.round()
            bench.now += SECOND
        assert {row["replay_id"] for row in bench.deliveries()} == {second}
        cancel(bench, second)
        assert {row["event_id"] for row in bench.deliveries(deliveries.c.replay_id == first)} == {
            event["id"] for event in opens
        }
        bench.settle()
        await worker.round()

    run(second_cancelled())

    # One whose deliveries all bear another mark is done; they are sent all the same.
    assert summary(bench, first)[:4] == ("done", 20, 20, 20 if rounds == 1 else 0)
    assert sorted(states(bench)) == ["cancelled"] * 20 + ["delivered"] * 20


def test_what_another_replay_delivered_already_is_not_sent_again_for_it(bench):
    [event] = bench.events(1)
    first = bench.ask(rate=0.01)
    worker = bench.worker()

    async def second_cancelled():
        await worker.round()
        bench.settle()
        delivered = {"event_id": event["id"], "sink": "crm", "created_at": bench.now}
        make_attempt(bench.database, delivered, at=bench.now)
        bench.now += SECOND
        second = bench.ask()
        await worker.round()
        assert states(bench) == ["pending"]
        return cancel(bench, second)

    assert run(second_cancelled()).finished_at == bench.now

    assert states(bench) == ["delivered"]
    assert bench.get(first).taken == 1


def test_a_dead_delivery_of_two_replays_survives_the_cancelling_of_one(bench):
    made = make_delivery(
        bench.database, bench.events(1)[0], state="dead", attempt_count=3, settled_at=bench.now - SECOND
    )
    worker = bench.worker()
    first = bench.ask(dead=True, type=[made["type"]])
    run(worker.round())
    bench.now += SECOND
    second = bench.ask()
    run(worker.round())

    cancel(bench, second)
    run(bench.finish(worker))

    assert summary(bench, first) == ("done", 1, 1, 1, 0)


def test_what_has_ended_cannot_be_cancelled(bench):
    replay = bench.ask()
    run(bench.finish(bench.worker()))

    with pytest.raises(Conflict, match="it is done"):
        cancel(bench, replay)
    assert bench.get(replay).state == "done"


# --- ids -------------------------------------------------------------------------------------------------------------


def test_ids_are_in_the_order_of_their_times(bench):
    made = [service.new_id(from_micros(bench.now.microsecond + n * 1000)) for n in (0, 1, 255, 256, 10**9)]

    assert made == sorted(made)
    assert all(len(name) == 36 and name[14] == "7" and name[19] in "89ab" for name in made)
    assert replays.name == "replays"
