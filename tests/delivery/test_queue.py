from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from app.clock import to_micros
from app.db import Database
from app.delivery import queue
from app.delivery.queue import ClaimRequest, Completion
from app.dispatch import sink_states
from app.dispatch.service import Job
from app.errors import Conflict, DeliveryNotFound
from app.models import Delivery, DeliveryState, Event, Priority
from app.query.queries import all_attempts
from tests.conftest import MakeDatabase
from tests.factories import NOON, event_values, insert, make_delivery, make_event, take_statistics

NOW = NOON + timedelta(hours=1)
LATER = NOW + timedelta(seconds=12)
DELIVERED, PENDING, DEAD = DeliveryState.DELIVERED, DeliveryState.PENDING, DeliveryState.DEAD


def due(database: Database, seconds: float = -60, **given: Any) -> str:
    """A delivery that is due so many seconds after NOW; its event's id."""
    return str(make_delivery(database, **{"next_attempt_at": NOW + timedelta(seconds=seconds), **given})["event_id"])


def claim(
    database: Database, limit: int = 10, *, priority: int = Priority.FIRST, token: str = "me", now: datetime = NOW,
    sink: str = "crm",
) -> list[Job]:  # fmt: skip
    request = ClaimRequest(sink, priority, limit, now, now + timedelta(seconds=12), token)
    return database.write(lambda c: queue.claim_due(c, request))


def row(database: Database, event_id: str, sink: str = "crm") -> dict[str, Any]:
    table = Delivery.__table__  # type: ignore[attr-defined]
    with database.reading() as connection:
        found = connection.execute(sa.select(table).where(table.c.event_id == event_id, table.c.sink == sink))
        return {**found.mappings().one()}


def attempts(database: Database) -> list[dict[str, Any]]:
    made = all_attempts()
    with database.reading() as connection:
        return [{**r} for r in connection.execute(sa.select(made).order_by(made.c.event_id, made.c.number)).mappings()]


def completion(event_id: str, **given: Any) -> Completion:
    values: dict[str, Any] = {
        "event_id": event_id, "sink": "crm", "lease_token": "me", "state": DELIVERED, "priority": Priority.RETRY,
        "attempt_count": 1, "schedule_step": 1, "next_attempt_micros": to_micros(NOW), "settled_micros": to_micros(NOW),
        "last_status": 200, "last_error": None, "batch_id": None, "attempt": attempt(event_id),
    } | given  # fmt: skip
    return Completion(**values)


def attempt(event_id: str, number: int = 1, **given: Any) -> tuple[Any, ...]:
    values = {
        "event_id": event_id, "sink": "crm", "number": number, "at": to_micros(NOW), "status": 200,
        "outcome": "success", "error": None, "duration_ms": 1.5, "response_excerpt": None, "replay": False,
    } | given  # fmt: skip
    return tuple(values[name] for name in queue.ATTEMPT_COLUMNS)


def record(database: Database, *completions: Completion) -> None:
    database.write(lambda c: queue.record_completions(c, completions))


# --- claiming --------------------------------------------------------------------------------------------------------


def test_a_claim_takes_the_longest_due_first_and_no_more_than_its_limit(database: Database) -> None:
    seconds = [-5, -50, -20, -40, -1]
    ids = {s: due(database, s) for s in seconds}

    first, second, none = claim(database, 2), claim(database, 10), claim(database, 10)

    assert {job.event_id for job in first} == {ids[-50], ids[-40]}
    assert {job.event_id for job in second} == {ids[-20], ids[-5], ids[-1]}
    assert none == []


def test_what_is_claimed_comes_in_the_order_of_its_events(database: Database) -> None:
    for seconds in (-3, -9, -6, -1):
        due(database, seconds)

    ids = [job.event_id for job in claim(database)]

    assert ids == sorted(ids)


def test_a_claim_takes_only_what_is_asked_for(database: Database) -> None:
    wanted = due(database, 0)  # due at this very moment
    due(database, 0.000001)
    due(database, sink="other")
    due(database, priority=Priority.RETRY)
    for state in (DELIVERED, DEAD, DeliveryState.CANCELLED):
        due(database, state=state.value, settled_at=NOON)

    assert [job.event_id for job in claim(database)] == [wanted]
    assert len(claim(database, priority=Priority.RETRY)) == 1


def test_a_claim_is_a_lease_that_runs_out(database: Database) -> None:
    event = due(database)

    claim(database, token="dead")
    leased = row(database, event)

    assert (leased["lease_token"], leased["next_attempt_at"], leased["state"]) == ("dead", LATER, "pending")
    assert claim(database, now=LATER - timedelta(microseconds=1)) == []
    assert [job.event_id for job in claim(database, now=LATER)] == [event]


def test_a_job_has_all_that_is_needed_to_send_it(database: Database) -> None:
    values = make_event(database, type="click", webhook="orders", raw='{"event": "click",  "n":1}')
    make_delivery(
        database, values, next_attempt_at=NOW, attempt_count=3, schedule_step=2, priority=Priority.REPLAY, replay=True
    )

    (job,) = claim(database, priority=Priority.REPLAY)

    assert (job.event_id, job.sink, job.webhook, job.type) == (values["id"], "crm", "orders", "click")
    assert (job.attempt_count, job.schedule_step, job.priority, job.replay) == (3, 2, Priority.REPLAY, True)
    assert job.event[-1] == values["raw"]
    assert job.event[5:7] == (to_micros(values["occurred_at"]), to_micros(values["received_at"]))


def test_a_delivery_whose_event_is_gone_is_not_handed_out(database: Database) -> None:
    make_delivery(database, event_values(), next_attempt_at=NOW)
    event = due(database)

    assert [job.event_id for job in claim(database)] == [event]


def test_claimers_at_the_same_time_never_claim_the_same(database: Database) -> None:
    total, claimers = 400, 8
    events = [event_values() for _ in range(total)]
    insert(database, Event, events)
    insert(database, Delivery, [delivery_of(e) for e in events])
    start = threading.Barrier(claimers)

    def take(number: int) -> list[str]:
        start.wait()
        mine: list[str] = []
        while found := claim(database, 7, token=f"claimer{number}"):
            assert len(found) <= 7
            mine += [job.event_id for job in found]
        return mine

    with ThreadPoolExecutor(claimers) as threads:
        taken = [event_id for mine in threads.map(take, range(claimers)) for event_id in mine]

    assert len(taken) == len(set(taken))
    assert set(taken) == {e["id"] for e in events}


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)  # SQLite has a single writer
def test_a_claim_passes_over_what_another_holds_at_this_moment(database: Database) -> None:
    locked, free = due(database, -90), due(database, -60)
    table = Delivery.__table__  # type: ignore[attr-defined]
    with database.writer.begin() as other:
        other.execute(sa.select(table).where(table.c.event_id == locked).with_for_update())
        assert [job.event_id for job in claim(database)] == [free]  # and does not wait
    assert [job.event_id for job in claim(database)] == [locked]


def delivery_of(event: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    return {
        "event_id": event["id"], "sink": "crm", "webhook": event["webhook"], "type": event["type"],
        "state": "pending", "priority": 0, "attempt_count": 0, "schedule_step": 0,
        "next_attempt_at": NOW - timedelta(seconds=60), "lease_token": None, "replay": False, "last_status": None,
        "last_error": None, "created_at": NOON, "settled_at": None,
    } | given  # fmt: skip


# --- leases ----------------------------------------------------------------------------------------------------------


def test_renewing_prolongs_only_what_is_held_by_us(database: Database) -> None:
    mine, dropped = due(database, -60), due(database, -50)
    claim(database, token="me")
    theirs = due(database, -40)
    claim(database, token="them")
    free, elsewhere = due(database, -30), due(database, -20, sink="other", lease_token="me")
    until = LATER + timedelta(seconds=12)

    held = {"crm": {mine, theirs, free, "not there"}}
    renewed = database.write(lambda c: queue.renew(c, held=held, lease_token="me", until=until))

    assert renewed == 1
    assert row(database, mine)["next_attempt_at"] == until
    # `dropped` bears our token and is in nobody's hand: it must become due.
    assert row(database, dropped)["next_attempt_at"] == row(database, theirs)["next_attempt_at"] == LATER
    assert row(database, free)["lease_token"] is None
    assert row(database, elsewhere, "other")["next_attempt_at"] == NOW - timedelta(seconds=20)


def test_renewing_many_takes_all(database: Database) -> None:
    events = [event_values() for _ in range(700)]
    insert(database, Event, events)
    insert(database, Delivery, [delivery_of(e, lease_token="me") for e in events])
    held = {"crm": frozenset(e["id"] for e in events)}

    assert database.write(lambda c: queue.renew(c, held=held, lease_token="me", until=LATER)) == 700
    assert claim(database) == []


def test_renewing_nothing_does_nothing(database: Database) -> None:
    assert database.write(lambda c: queue.renew(c, held={}, lease_token="me", until=LATER)) == 0


def test_a_settled_delivery_is_not_revived_by_renewing(database: Database) -> None:
    event = due(database, lease_token="me", state="cancelled", settled_at=NOON)

    database.write(lambda c: queue.renew(c, held={"crm": {event}}, lease_token="me", until=LATER))

    assert row(database, event)["next_attempt_at"] != LATER


# --- when ------------------------------------------------------------------------------------------------------------


def test_the_next_due_of_each_sink_and_priority(database: Database) -> None:
    due(database, 30)
    due(database, 10)
    due(database, -500, state="dead", settled_at=NOON)
    due(database, 77, priority=Priority.RETRY)
    due(database, -5, sink="other", priority=Priority.REPLAY)
    due(database, -5, sink="unasked")

    with database.reading() as connection:
        found = queue.look(connection, ["crm", "other", "empty"]).due

    assert found == {
        ("crm", Priority.FIRST): NOW + timedelta(seconds=10),
        ("crm", Priority.RETRY): NOW + timedelta(seconds=77),
        ("other", Priority.REPLAY): NOW - timedelta(seconds=5),
    }


def test_nothing_is_due_without_sinks(database: Database) -> None:
    with database.reading() as connection:
        assert queue.look(connection, []) == ({}, {})


def test_a_paused_sink_has_nothing_due_and_a_reason(database: Database) -> None:
    due(database, 10)
    due(database, 10, sink="other")
    database.write(lambda c: sink_states.set_paused(c, "crm", paused=True, reason="sink answered 410"))
    database.write(lambda c: sink_states.set_paused(c, "unasked", paused=True, reason="by hand"))

    with database.reading() as connection:
        found = queue.look(connection, ["crm", "other", "empty"])

    assert found.paused == {"crm": "sink answered 410"}
    assert found.due.keys() == {("other", Priority.FIRST)}


def test_hundreds_of_sinks_can_be_asked_about(database: Database) -> None:
    due(database, 3, sink="sink399")

    with database.reading() as connection:
        found = queue.look(connection, [f"sink{n}" for n in range(400)]).due

    assert found == {("sink399", Priority.FIRST): NOW + timedelta(seconds=3)}


# --- recording -------------------------------------------------------------------------------------------------------


def test_results_of_all_kinds_are_written_together(database: Database) -> None:
    delivered, retried, dead, returned = (due(database) for _ in range(4))
    claim(database)
    later = NOW + timedelta(minutes=5)

    record(
        database,
        completion(delivered),
        completion(
            retried, state=PENDING, next_attempt_micros=to_micros(later), settled_micros=None, last_status=None,
            last_error="it hung", attempt=attempt(retried, status=None, outcome="timeout", error="it hung"),
        ),
        completion(dead, state=DEAD, last_status=400, last_error="no; never", schedule_step=3, attempt_count=7,
                   attempt=attempt(dead, 7, status=400, outcome="http_4xx", response_excerpt="née")),
        completion(returned, state=PENDING, priority=Priority.FIRST, attempt_count=0, schedule_step=0,
                   settled_micros=None, last_status=None, attempt=None),
    )  # fmt: skip

    rows = [row(database, e) for e in (delivered, retried, dead, returned)]
    assert [r["state"] for r in rows] == ["delivered", "pending", "dead", "pending"]
    assert [r["lease_token"] for r in rows] == [None] * 4
    assert [r["settled_at"] for r in rows] == [NOW, None, NOW, None]
    assert [(r["last_status"], r["last_error"]) for r in rows] == [
        (200, None), (None, "it hung"), (400, "no; never"), (None, None),
    ]  # fmt: skip
    assert [(r["priority"], r["attempt_count"], r["schedule_step"]) for r in rows] == [
        (1, 1, 1), (1, 1, 1), (1, 7, 3), (0, 0, 0),
    ]  # fmt: skip
    assert rows[1]["next_attempt_at"] == later
    assert {(a["event_id"], a["number"], a["outcome"]) for a in attempts(database)} == {
        (delivered, 1, "success"), (retried, 1, "timeout"), (dead, 7, "http_4xx"),
    }  # fmt: skip
    assert [job.event_id for job in claim(database)] == [returned]


def test_columns_that_are_null_in_every_row_are_written_too(database: Database) -> None:
    events = [due(database) for _ in range(5)]
    claim(database)

    record(database, *[
        completion(e, state=PENDING, settled_micros=None, last_status=None, attempt=None) for e in events
    ])  # fmt: skip

    assert {row(database, e)["lease_token"] for e in events} == {None}
    assert attempts(database) == []


@pytest.mark.parametrize("number", [1, 127, 128, 129, 300])
def test_any_number_of_results_is_written(database: Database, number: int) -> None:
    events = [event_values() for _ in range(number)]
    insert(database, Delivery, [delivery_of(e, lease_token="me") for e in events])

    record(database, *[completion(e["id"]) for e in events])

    table = Delivery.__table__  # type: ignore[attr-defined]
    with database.reading() as connection:
        states = connection.execute(sa.select(table.c.state, sa.func.count()).group_by(table.c.state)).all()
    assert [tuple(s) for s in states] == [("delivered", number)]
    assert len(attempts(database)) == number


def test_a_late_result_whose_lease_is_lost_changes_nothing_but_the_attempt_is_kept(database: Database) -> None:
    event = due(database)
    claim(database, token="slow")
    claim(database, token="quick", now=LATER)
    before = row(database, event)

    record(database, completion(event, lease_token="slow"))

    assert row(database, event) == before
    assert before["lease_token"] == "quick"
    assert [(a["event_id"], a["number"]) for a in attempts(database)] == [(event, 1)]


def test_first_successes_stand_in_their_deliveries_and_those_without_a_lease_beside_them(database: Database) -> None:
    kept, cancelled, retaken = due(database), due(database), due(database)
    claim(database)
    database.write(lambda c: queue.cancel(c, cancelled, "crm", NOW))
    with_text = completion(kept, attempt=attempt(kept, response_excerpt="thanks"))

    record(database, with_text, completion(cancelled), completion(retaken, lease_token="another"))

    assert (row(database, kept)["first_at"], row(database, kept)["first_excerpt"]) == (NOW, "thanks")
    assert [row(database, e)["first_at"] for e in (cancelled, retaken)] == [None, None]
    assert {(a["event_id"], a["number"], a["response_excerpt"]) for a in attempts(database)} == {
        (kept, 1, "thanks"), (cancelled, 1, None), (retaken, 1, None),
    }  # fmt: skip


def test_two_replicas_that_both_made_the_first_attempt_tell_of_one(database: Database) -> None:
    event = due(database)
    claim(database, token="slow")
    claim(database, token="quick", now=LATER)

    record(database, completion(event, lease_token="slow"))
    record(database, completion(event, lease_token="quick"))
    record(database, completion(event, lease_token="slow"))

    assert row(database, event)["state"] == "delivered"
    assert [(a["event_id"], a["number"]) for a in attempts(database)] == [(event, 1)]


def test_a_cancelled_delivery_stays_cancelled_whatever_became_of_the_request(database: Database) -> None:
    event = due(database)
    claim(database)
    database.write(lambda c: queue.cancel(c, event, "crm", NOW))

    record(database, completion(event))

    after = row(database, event)
    assert (after["state"], after["settled_at"], after["attempt_count"]) == ("cancelled", NOW, 0)
    assert len(attempts(database)) == 1


def test_the_same_result_written_twice_is_written_once(database: Database) -> None:
    """As after a commit whose answer got lost on its way."""
    event = due(database)
    claim(database)
    result = completion(event, state=PENDING, next_attempt_micros=to_micros(LATER), settled_micros=None)

    record(database, result)
    before = row(database, event)
    record(database, result)

    assert row(database, event) == before
    assert len(attempts(database)) == 1


def test_another_sink_of_the_same_event_is_not_touched(database: Database) -> None:
    values = make_event(database)
    for name in ("crm", "other"):
        make_delivery(database, values, sink=name, next_attempt_at=NOW, lease_token="me")

    record(database, completion(values["id"]))

    assert row(database, values["id"], "other")["state"] == "pending"


# --- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["pending", "delivered", "dead", "cancelled"])
def test_a_retry_by_hand_makes_any_delivery_due_with_a_fresh_schedule(database: Database, state: str) -> None:
    event = due(
        database, 86_400, state=state, attempt_count=5, schedule_step=5, last_error="x",
        settled_at=None if state == "pending" else NOON,
    )  # fmt: skip

    database.write(lambda c: queue.retry(c, event, "crm", NOW))

    (job,) = claim(database, priority=Priority.RETRY)
    assert (job.event_id, job.attempt_count, job.schedule_step) == (event, 5, 0)
    assert row(database, event)["settled_at"] is None


def test_a_retry_by_hand_leaves_one_that_is_being_sent_to_it(database: Database) -> None:
    event = due(database)
    claim(database)
    before = row(database, event)

    database.write(lambda c: queue.retry(c, event, "crm", NOW))

    assert row(database, event) == before


def test_a_retry_by_hand_takes_over_from_a_holder_that_died(database: Database) -> None:
    event = due(database)
    claim(database)

    database.write(lambda c: queue.retry(c, event, "crm", LATER))

    assert row(database, event)["lease_token"] is None


@pytest.mark.parametrize(
    ("state", "after"), [("pending", "cancelled"), ("dead", "cancelled"), ("cancelled", "cancelled")]
)
def test_cancelling(database: Database, state: str, after: str) -> None:
    event = due(database, state=state, settled_at=None if state == "pending" else NOON)

    database.write(lambda c: queue.cancel(c, event, "crm", NOW))

    changed = row(database, event)
    assert changed["state"] == "cancelled"
    assert changed["settled_at"] == (NOON if state == "cancelled" else NOW)
    assert claim(database) == []


def test_what_was_delivered_cannot_be_cancelled(database: Database) -> None:
    event = due(database, state="delivered", settled_at=NOON)

    with pytest.raises(Conflict):
        database.write(lambda c: queue.cancel(c, event, "crm", NOW))


@pytest.mark.parametrize("change", [queue.retry, queue.cancel])
def test_there_must_be_such_a_delivery(database: Database, change: Any) -> None:
    event = due(database)

    with pytest.raises(DeliveryNotFound):
        database.write(lambda c: change(c, event, "other", NOW))
    assert row(database, event)["state"] == "pending"


# --- plans -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def crowded(request: pytest.FixtureRequest, make_migrated: MakeDatabase) -> Iterator[Database]:
    """Thousands of settled deliveries, some due: a plan that scans would show."""
    database = Database(make_migrated(request.param))
    events = [event_values() for _ in range(20_000)]
    insert(database, Event, events[::100])
    rows = [
        delivery_of(e) if n % 100 == 0 else delivery_of(e, state="delivered", settled_at=NOON)
        for n, e in enumerate(events)
    ]
    insert(database, Delivery, rows)
    if database.is_sqlite:
        database.write(lambda c: c.exec_driver_sql("ANALYZE"))
    take_statistics(database)
    yield database
    database.close()


def plan_of(database: Database, work: Any) -> str:
    """The plans of the statements over deliveries that `work` runs, by running them explained."""
    statements: list[tuple[str, Any]] = []

    class Seen(Exception):
        pass

    def note(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        statements.append((statement, parameters))

    sa.event.listen(database.writer, "before_cursor_execute", note)
    try:
        database.write(work)
    finally:
        sa.event.remove(database.writer, "before_cursor_execute", note)
    word = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
    plans: list[str] = []
    with database.reading() as connection:
        for statement, parameters in statements:
            if "deliveries" in statement and not statement.startswith(word):
                found = connection.exec_driver_sql(word + statement, parameters).all()
                plans.append("\n".join(str(line[-1]) for line in found))
    assert plans
    return "\n".join(plans)


def some_ids(database: Database, count: int) -> list[str]:
    with database.reading() as connection:
        statement = sa.select(Delivery.__table__.c.event_id).limit(count)  # type: ignore[attr-defined]
        return list(connection.execute(statement).scalars())


def assert_no_scan_of_deliveries(plan: str) -> None:
    assert "SCAN deliveries" not in plan
    assert "Seq Scan on deliveries" not in plan


def test_a_claim_uses_the_index_of_what_is_due(crowded: Database) -> None:
    request = ClaimRequest("crm", Priority.FIRST, 50, NOW, LATER, "me")

    plan = plan_of(crowded, lambda c: queue.claim_due(c, request))

    assert "ix_deliveries_due" in plan
    assert "TEMP B-TREE FOR ORDER BY" not in plan
    assert not re.search(r"\bSort +\(", plan)  # partitions, each in order, are merged by their key
    assert_no_scan_of_deliveries(plan)


def test_asking_for_the_next_due_uses_the_index_of_what_is_due(crowded: Database) -> None:
    plan = plan_of(crowded, lambda c: queue.look(c, ["crm", "other"]))

    assert "ix_deliveries_due" in plan
    assert_no_scan_of_deliveries(plan)


def test_renewing_goes_by_the_key(crowded: Database) -> None:
    ids = set(some_ids(crowded, 100))

    plan = plan_of(crowded, lambda c: queue.renew(c, held={"crm": ids}, lease_token="me", until=LATER))

    assert_no_scan_of_deliveries(plan)


@pytest.mark.parametrize("rows", [1, 64, 128])
def test_writing_results_goes_by_the_key(crowded: Database, rows: int) -> None:
    ids = some_ids(crowded, rows)
    sql = queue._completion_sql(rows, "sqlite" if crowded.is_sqlite else "postgresql")
    values = tuple(value for e in ids for value in queue._values_of(completion(e)))
    word = "EXPLAIN QUERY PLAN " if crowded.is_sqlite else "EXPLAIN "

    with crowded.reading() as connection:
        plan = "\n".join(str(line[-1]) for line in connection.exec_driver_sql(word + sql, values).all())

    assert_no_scan_of_deliveries(plan)
