from __future__ import annotations

from datetime import timedelta

import pytest

from app.db import Database
from app.dispatch import sink_states
from app.models import Priority
from tests.factories import NOON, make_delivery

NOW = NOON + timedelta(hours=1)


def test_sinks_are_remembered_and_a_second_time_changes_nothing(database: Database) -> None:
    database.write(lambda c: sink_states.remember_sinks(c, ["b", "a"]))
    database.write(lambda c: sink_states.set_paused(c, "a", paused=True, reason="x"))
    database.write(lambda c: sink_states.remember_sinks(c, ["a", "c"]))

    with database.reading() as connection:
        states = sink_states.list_states(connection)
    assert {name: state["paused"] for name, state in states.items()} == {"a": True, "b": False, "c": False}


def test_a_pause_has_a_reason_and_a_resume_takes_it_away(database: Database) -> None:
    def paused() -> dict[str, str | None]:
        with database.reading() as connection:
            return sink_states.paused_sinks(connection)

    database.write(lambda c: sink_states.set_paused(c, "crm", paused=True, reason="by hand"))
    assert paused() == {"crm": "by hand"}
    database.write(lambda c: sink_states.set_paused(c, "crm", paused=True, reason="the sink answered 410"))
    assert paused() == {"crm": "the sink answered 410"}
    database.write(lambda c: sink_states.set_paused(c, "crm", paused=False, reason="whatever"))
    assert paused() == {}
    with database.reading() as connection:
        assert sink_states.list_states(connection)["crm"]["paused_reason"] is None


def test_results_are_written_column_by_column(database: Database) -> None:
    database.write(lambda c: sink_states.record_results(c, {"crm": {"last_success_at": NOW}}))
    failure = {"last_error": "it hung", "last_error_at": NOW}
    database.write(lambda c: sink_states.record_results(c, {"other": failure, "crm": failure}))

    with database.reading() as connection:
        states = sink_states.list_states(connection)
    assert (states["crm"]["last_success_at"], states["crm"]["last_error"]) == (NOW, "it hung")
    assert states["other"]["last_success_at"] is None


def test_what_waits_and_what_is_dead_is_counted_for_each_sink(database: Database) -> None:
    for state, count in (("pending", 3), ("dead", 2), ("delivered", 4), ("cancelled", 1)):
        for _ in range(count):
            make_delivery(database, state=state)
    make_delivery(database, sink="other")

    with database.reading() as connection:
        assert sink_states.count_pending(connection, "crm") == 3
        assert sink_states.count_dead(connection, "crm") == 2
        assert sink_states.count_pending(connection, "nobody") == 0
        assert sink_states.backlogs(connection, ["crm", "nobody", "other"], NOON) == {
            "crm": (3, 2, 0.0), "nobody": (0, 0, 0.0), "other": (1, 0, 0.0),
        }  # fmt: skip
        assert sink_states.backlogs(connection, [f"sink{n}" for n in range(300)], NOON)["sink299"] == (0, 0, 0.0)


@pytest.mark.parametrize("priority", list(Priority))
def test_the_longest_overdue_of_any_priority(database: Database, priority: Priority) -> None:
    def overdue() -> float:
        with database.reading() as connection:
            found = sink_states.oldest_overdue_seconds(connection, "crm", NOW)
            assert sink_states.backlogs(connection, ["crm"], NOW)["crm"].overdue_seconds == found
            return found

    assert overdue() == 0.0
    make_delivery(database, next_attempt_at=NOW + timedelta(seconds=50))
    assert overdue() == 0.0
    make_delivery(database, next_attempt_at=NOW - timedelta(seconds=2), priority=Priority.FIRST)
    make_delivery(database, next_attempt_at=NOW - timedelta(seconds=90.5), priority=priority)
    make_delivery(database, next_attempt_at=NOW - timedelta(seconds=500), state="dead")
    assert overdue() == 90.5
