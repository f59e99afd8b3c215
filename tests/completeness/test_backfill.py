"""Missed events fetched from Mailjet, once, whatever happens; on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from app.audit.service import audit
from app.completeness.backfill import PATIENCE
from app.mailjet.histories import OFTEN, TOLERANCE_SECONDS, event_of, missing
from app.models import Event
from app.views import event_view
from tests.completeness.stage import DAY, Stage

SINKS = 1


def views(stage: Stage) -> list[dict[str, Any]]:
    table: sa.Table = Event.__table__  # type: ignore[attr-defined]
    with stage.database.reading() as connection:
        rows = connection.execute(sa.select(table).order_by(table.c.id)).mappings().all()
    return [event_view(row, include_raw=True) for row in rows]


def test_what_no_callback_brought_is_stored_marked_and_delivered(stage: Stage) -> None:
    message = stage.message(("sent", 1), ("opened", 60), CustomID="order-17")

    job = stage.backfill()

    assert (job["state"], job["messages"], job["stored"], job["known"], job["deliveries"]) == ("done", 1, 2, 0, 2)
    assert stage.stored() == [("orders", "sent", str(message)), ("orders", "open", str(message))]
    assert stage.owed() == 2
    sent, opened = views(stage)
    assert (sent["origin"], opened["origin"]) == ("backfill", "backfill")
    assert (sent["email"], sent["custom_id"], sent["details"]["smtp_reply"]) == (
        "a@example.com",
        "order-17",
        "said sent",
    )
    assert "jethook_origin" not in sent["details"]
    with stage.database.reading() as connection:
        assert audit(connection).is_clean


def test_the_same_request_again_stores_nothing_twice(stage: Stage) -> None:
    for _ in range(45):  # three pages
        stage.message(("sent", 1), ("opened", 60))
    first = stage.backfill()
    stage.account.messages[next(iter(stage.account.messages))]["CustomID"] = "changed meanwhile"

    again = stage.backfill()

    assert (first["stored"], first["messages"]) == (90, 45)
    assert (again["stored"], again["known"], again["messages"]) == (0, 90, 45)
    assert len(stage.stored()) == 90


def test_what_came_as_a_callback_is_not_doubled(stage: Stage) -> None:
    message = stage.message(("sent", 1), ("opened", 60), ("opened", 600))
    at = stage.now - DAY
    stage.come("sent", at + timedelta(seconds=5), message_id=str(message))
    stage.come("open", at + timedelta(seconds=61), message_id=str(message))

    job = stage.backfill()

    assert (job["stored"], job["known"]) == (1, 2)
    assert [view["occurred_at"] for view in views(stage) if view["origin"] == "backfill"] == [
        (at + timedelta(seconds=600)).isoformat().replace("+00:00", "Z")
    ]


def test_each_webhook_gets_what_it_lacks_of_the_types_it_watches(stage: Stage) -> None:
    stage.environment |= {"WEBHOOKS__NEWS__EVENTS": "open,click", "CONNECTIONS__OTHER__API_KEY": "other"}
    stage.environment |= {"WEBHOOKS__ELSEWHERE__CONNECTION": "other", "CONNECTIONS__OTHER__SECRET_KEY": "x"}
    message = stage.message(("sent", 1), ("opened", 60), ("spam", 90))
    stage.come("open", stage.now - DAY + timedelta(seconds=60), message_id=str(message))

    stage.backfill()

    assert sorted(stage.stored()) == [
        ("news", "open", str(message)), ("orders", "open", str(message)), ("orders", "sent", str(message)),
    ]  # fmt: skip


def test_only_the_types_asked_for_and_no_deliveries_where_none_are_wished(stage: Stage) -> None:
    stage.message(("sent", 1), ("opened", 60))

    job = stage.backfill(types=["open"], deliver=False)

    assert [event_type for _, event_type, _ in stage.stored()] == ["open"]
    assert (job["deliveries"], stage.owed()) == (0, 0)


def test_messages_of_another_time_are_left_alone(stage: Stage) -> None:
    for ago in (3, 2, 1):
        stage.message(("sent", 1), ago=ago * DAY)

    job = stage.backfill(since=stage.now - 2 * DAY, until=stage.now - DAY)

    assert (job["messages"], job["stored"]) == (1, 1)


def test_a_job_goes_on_with_another_replica_where_it_was(stage: Stage) -> None:
    for _ in range(45):
        stage.message(("sent", 1))
    cut_off = stage.backfill(rounds=1)
    assert (cut_off["state"], cut_off["messages"]) == ("running", 20)
    stage.now += timedelta(minutes=1)  # its lease has run out

    async def go_on(doors: Any) -> None:
        other = stage.backfills(doors, "other")
        for _ in range(5):
            await other.round()

    stage.with_doors(go_on)

    asked = [r.path for r in stage.mailjet.requests if "messagehistory" in r.path]
    assert len(asked) == len(set(asked)) == 45
    assert len(stage.stored()) == 45


def test_a_mailjet_that_is_down_is_waited_for_and_one_that_refuses_is_the_end(stage: Stage) -> None:
    stage.message(("sent", 1))
    stage.mailjet.fail_next(3, 503)
    assert stage.backfill()["state"] == "done"  # after another round

    stage.environment["CONNECTIONS__DEFAULT__SECRET_KEY"] = "wrong"
    job = stage.backfill()

    assert job["state"] == "failed"
    assert "401" in job["error"]
    assert "wrong" not in job["error"]


def test_a_history_that_lies_neither_stops_the_job_nor_leaves_what_nobody_can_show(stage: Stage) -> None:
    for at in (1_777_000_000_000, "9" * 20):
        row = stage.message(("sent", 1), CampaignID=str(2**65))
        stage.account.histories[row].append({"EventAt": at, "EventType": "opened"})

    assert stage.backfill()["state"] == "done"

    assert [view["type"] for view in views(stage)] == ["sent", "sent"]


def test_all_the_years_there_are_can_be_asked_for(stage: Stage) -> None:
    stage.message(("sent", 1))
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

    assert stage.backfill(since=first, until=last)["stored"] == 1


def test_a_job_that_fails_for_a_reason_of_ours_does_not_hold_up_the_others(stage: Stage) -> None:
    stage.message(("sent", 1))

    async def work(doors: Any) -> tuple[Any, Any, Any]:
        jobs = stage.backfills(doors)
        first = await jobs.begin("default", stage.now - 2 * DAY, stage.now, types=["sent"])
        second = await jobs.begin("default", stage.now - 2 * DAY, stage.now)
        look = jobs._look

        async def broken(door: Any, row: Any) -> Any:
            if row.id == first.id:
                raise OverflowError("nobody has thought of this")
            return await look(door, row)

        jobs._look = broken  # type: ignore[method-assign]
        await jobs.round()
        held_up = await jobs.find(second.id)
        stage.now += PATIENCE + DAY
        await jobs.round()
        return first, held_up, await jobs.find(first.id)

    _, second, first = stage.with_doors(work)

    assert second.state == "done"
    assert (first.state, first.error) == ("failed", "a fault of ours (OverflowError); the log has more")


def test_a_cancelled_job_looks_at_nothing_more(stage: Stage) -> None:
    for _ in range(45):
        stage.message(("sent", 1))

    async def work(doors: Any) -> None:
        jobs = stage.backfills(doors)
        row = await jobs.begin("default", stage.now - 2 * DAY, stage.now, rate_per_second=1e6)
        await jobs.round()
        assert await jobs.cancel(row.id)
        await jobs.round()
        assert not await jobs.cancel(row.id)

    stage.with_doors(work)

    assert len(stage.stored()) == 20


# --- pure ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "state", "expected"),
    [
        pytest.param("hardbounced", 1, ("bounce", True, "user unknown", "recipient"), id="hard, by number"),
        pytest.param("softbounced", "quota exceeded", ("bounce", False, "quota exceeded", "recipient"), id="by word"),
        pytest.param("bounced", "new reason", ("bounce", "", "new reason", ""), id="neither known"),
        pytest.param("blocked", 14, ("blocked", None, "preblocked", "mailjet"), id="blocked"),
    ],
)
def test_a_failure_says_why(kind: str, state: Any, expected: tuple[Any, ...]) -> None:
    event = event_of({"ID": 2**60}, {"EventType": kind, "EventAt": 1_777_000_000, "State": state})

    assert event is not None
    told = event.payload
    assert (event.type, told.get("hard_bounce"), told["error"], told["error_related_to"]) == expected
    assert orjson.loads(event.raw) == told


@pytest.mark.parametrize(
    "entry",
    [
        {"EventType": "workflowexit", "EventAt": 1},
        {"EventType": "sent"},
        {},
        pytest.param({"EventType": "sent", "EventAt": 1_777_000_000_000}, id="in milliseconds"),
        pytest.param({"EventType": "sent", "EventAt": "9" * 20}, id="more than a column holds"),
    ],
)
def test_what_has_no_callback_or_no_time_is_no_event(entry: dict[str, Any]) -> None:
    assert event_of({"ID": 1}, entry) is None


kinds = st.tuples(st.sampled_from(["sent", "open", "click"]), st.integers(0, 30))


@given(st.sets(kinds), st.sets(kinds))
def test_what_is_missing_is_what_nothing_stored_can_stand_for(entries: set[Any], stored: set[Any]) -> None:
    found = missing(entries, stored)

    assert found <= entries
    for event_type in ("sent", "open", "click"):
        asked, there = ([kind for kind in some if kind[0] == event_type] for some in (entries, stored))
        lacking = [kind for kind in found if kind[0] == event_type]
        assert len(lacking) >= len(asked) - len(there)
        if event_type not in OFTEN:
            assert len(lacking) == max(len(asked) - len(there), 0)
    assert missing(entries, stored | found) <= found
    assert missing(entries, entries | stored) == set()


@given(st.sets(kinds), st.integers(-TOLERANCE_SECONDS, TOLERANCE_SECONDS))
def test_times_that_differ_by_a_moment_are_the_same(entries: set[Any], shift: int) -> None:
    assert missing(entries, {(kind, second + shift) for kind, second in entries}) == set()


def test_the_moment_is_that_of_the_history() -> None:
    event = event_of({"ID": 1}, {"EventType": "opened", "EventAt": 1_777_000_000, "Useragent": "Mozilla"})

    assert event is not None
    assert datetime.fromtimestamp(event.time, UTC) == datetime(2026, 4, 24, 3, 6, 40, tzinfo=UTC)
    assert event.payload["agent"] == "Mozilla"
