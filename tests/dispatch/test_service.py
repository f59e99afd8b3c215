from __future__ import annotations

import pytest

from app.dispatch.matching import Target
from app.dispatch.service import DELIVERY_COLUMNS, Job, NoWorker, fan_out
from app.models import Delivery, Priority
from tests.delivery.support import event_tuple

NOW = 1_777_802_400_000_000
EVENT = event_tuple()


class Worker:
    """Has room for some sinks."""

    lease_token = "mine"

    def __init__(self, *room: str) -> None:
        self.room = room
        self.asked: list[str] = []

    def reserve(self, sink: str) -> bool:
        self.asked.append(sink)
        return sink in self.room

    def lease_until_micros(self, now_micros: int) -> int:
        return now_micros + 5

    def accept(self, job: Job) -> None:
        raise AssertionError("not before the commit")

    def release(self, sink: str) -> None:
        raise AssertionError("nothing went wrong")


def test_each_sink_is_owed_one_delivery_and_those_with_room_are_born_claimed() -> None:
    worker = Worker("quick")

    rows, jobs = fan_out(
        event_id=EVENT[0], webhook="orders", event_type="open", event=EVENT,
        targets=[Target("quick"), Target("full", "a@x.org")], worker=worker, now_micros=NOW,
    )  # fmt: skip

    quick, full = (dict(zip(DELIVERY_COLUMNS, row, strict=True)) for row in rows)
    assert (quick["sink"], quick["lease_token"], quick["next_attempt_at"]) == ("quick", "mine", NOW + 5)
    assert (full["sink"], full["lease_token"], full["next_attempt_at"]) == ("full", None, NOW)
    assert (quick["order_key"], full["order_key"]) == (None, "a@x.org")
    for row in (quick, full):
        assert (row["state"], row["priority"], row["attempt_count"], row["created_at"]) == ("pending", 0, 0, NOW)
    assert jobs == [Job(EVENT[0], "quick", "orders", "open", EVENT)]
    assert worker.asked == ["quick", "full"]


def test_an_event_nobody_wants_owes_nothing() -> None:
    worker = Worker()

    found = fan_out(
        event_id=EVENT[0], webhook="orders", event_type="open", event=EVENT, targets=[], worker=worker, now_micros=NOW
    )

    assert found == ([], [])


def test_a_process_that_delivers_nothing_leaves_all_to_others() -> None:
    worker = NoWorker()

    rows, jobs = fan_out(
        event_id=EVENT[0], webhook="orders", event_type="open", event=EVENT, targets=[Target("crm")], worker=worker,
        now_micros=NOW,
    )  # fmt: skip

    row = dict(zip(DELIVERY_COLUMNS, rows[0], strict=True))
    assert (row["lease_token"], row["next_attempt_at"]) == (None, NOW)
    assert jobs == []
    with pytest.raises(AssertionError):
        worker.accept(Job(EVENT[0], "crm", "orders", "open", EVENT))
    with pytest.raises(AssertionError):
        worker.release("crm")


def test_the_columns_are_those_of_the_table() -> None:
    columns = Delivery.__table__.columns  # type: ignore[attr-defined]

    assert set(DELIVERY_COLUMNS) <= {c.name for c in columns}
    needed = {c.name for c in columns if not c.nullable and c.default is None}
    assert needed <= set(DELIVERY_COLUMNS)


def test_first_attempts_go_before_retries_and_those_before_replays() -> None:
    assert Priority.FIRST < Priority.RETRY < Priority.REPLAY
    assert Job(EVENT[0], "crm", "orders", "open", EVENT).priority is Priority.FIRST
