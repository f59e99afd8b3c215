"""Mailjet's figures beside ours, day by day; on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from app.completeness import queries
from app.completeness.figures import DAYS_ASKED, day_of, days_to_ask, is_settled, ratio_of, settled_days
from app.completeness.routes import build_router
from tests.completeness.stage import DAY, NOW, Stage
from tests.rest import KEYS, app_of


def test_what_mailjet_counted_is_held_against_what_is_stored(stage: Stage) -> None:
    for _ in range(3):
        stage.message(("sent", 1), ("opened", 60), ago=3 * DAY)
    stage.message(("sent", 1), ("opened", 60), ("opened", 90), ago=2 * DAY)
    stage.message(("hardbounced", 1), ago=3 * DAY)
    stage.come("sent", *[NOW - 3 * DAY + timedelta(seconds=n) for n in range(2)])
    stage.come("open", NOW - 2 * DAY, NOW - 2 * DAY + timedelta(seconds=9))
    stage.come("open", NOW - 3 * DAY, test=True)

    found = stage.look()

    assert {key: pair for key, pair in found.items() if any(pair)} == {
        (3, "sent"): (3, 2), (3, "open"): (3, 0), (3, "bounce"): (1, 0), (2, "sent"): (1, 0), (2, "open"): (2, 2),
    }  # fmt: skip
    assert stage.ratios == {("default", "sent"): 0.5, ("default", "open"): 0.4, ("default", "bounce"): 0.0}


def test_opens_count_on_their_own_day_and_deliveries_on_that_of_their_message(stage: Stage) -> None:
    stage.message(("sent", 90_000), ("opened", 2 * 86_400), ago=4 * DAY)
    stage.come("open", NOW - 4 * DAY)

    found = stage.look()

    assert (found[4, "sent"], found[3, "sent"]) == ((1, 0), (0, 0))
    assert (found[4, "open"], found[2, "open"]) == ((0, 1), (1, 0))


def test_mailjet_is_asked_twice_and_not_again_before_its_time(stage: Stage) -> None:
    stage.come("open", NOW - 3 * DAY)
    stage.look()
    stage.now += timedelta(hours=5)
    stage.look()

    assert [request.query["CounterTiming"] for request in stage.mailjet.requests] == ["Message", "Event"]
    assert all(request.query["Limit"] == "1000" for request in stage.mailjet.requests)

    stage.now += timedelta(hours=2)
    stage.look()
    assert len(stage.mailjet.requests) == 4


@pytest.mark.parametrize("off", ["CONNECTIONS__DEFAULT__SECRET_KEY", "never"])
def test_without_keys_or_with_an_interval_of_zero_nobody_is_asked(stage: Stage, off: str) -> None:
    stage.environment |= {"COMPLETENESS_EVERY_SECONDS": "0"} if off == "never" else {off: ""}

    assert stage.look() == {}
    assert stage.mailjet.requests == []


def test_an_account_without_counters_is_counted_by_its_messages(stage: Stage) -> None:
    stage.account.has_counters = False
    stage.message(ago=3 * DAY, Status="clicked")
    stage.message(ago=3 * DAY, Status="softbounced")
    stage.come("sent", NOW - 3 * DAY)

    found = stage.look()

    assert (found[3, "sent"], found[3, "bounce"]) == ((1, 1), (1, 0))
    assert not any(event_type == "open" for _, event_type in found)


def test_before_the_first_event_nothing_is_missed(stage: Stage) -> None:
    stage.message(("sent", 1), ago=5 * DAY)

    assert {days for days, _ in stage.look()} == {0}

    stage.now += timedelta(hours=7)
    stage.come("sent", NOW - 2 * DAY)
    assert {days for days, _ in stage.look()} == {0, 1, 2}


def test_what_fails_is_kept_and_what_was_known_stays(stage: Stage) -> None:
    stage.come("sent", NOW - 3 * DAY)
    before = stage.look()
    stage.now += timedelta(hours=7)
    stage.mailjet.set_down(True)

    assert stage.look() == before
    with stage.database.reading() as connection:
        look = queries.find_look(connection, "default")
    assert look is not None
    assert look.looked_at == stage.now
    assert "503" in (look.error or "")


def test_two_webhooks_of_one_connection_store_the_same_and_count_once(stage: Stage) -> None:
    stage.environment["WEBHOOKS__NEWS__EVENTS"] = "sent"
    stage.message(("sent", 1), ago=3 * DAY)
    stage.come("sent", NOW - 3 * DAY)
    stage.come("sent", NOW - 3 * DAY, webhook="news")

    assert stage.look()[3, "sent"] == (1, 1)


# --- REST ------------------------------------------------------------------------------------------------------------


def test_the_days_are_listed_newest_first_page_by_page(stage: Stage) -> None:
    for days in (5, 2, 0):
        stage.message(("sent", 1), ago=days * DAY)
        stage.come("sent", NOW - days * DAY - timedelta(seconds=1))
    stage.look()
    client = TestClient(app_of(build_router(stage.database, KEYS)), headers={"authorization": "Bearer read"})

    pages, answer = [], client.get("/v1/completeness", params={"type": "sent", "limit": 4}).json()
    while True:
        pages.append(answer["data"])
        if not answer["has_more"]:
            break
        answer = client.get("/v1/completeness", params={"type": "sent", "cursor": answer["next_cursor"]}).json()

    rows = [row for page in pages for row in page]
    assert [row["day"] for row in rows] == [(NOW - n * DAY).date().isoformat() for n in range(6)]
    assert rows[2] == {
        "day": "2026-11-18", "connection": "default", "type": "sent", "expected": 1, "stored": 1, "missing": 0,
        "ratio": 1.0, "settled": True, "checked_at": "2026-11-20T12:00:00Z",
    }  # fmt: skip
    assert [(row["ratio"], row["settled"]) for row in rows[:2]] == [(1.0, False), (None, False)]
    narrow = {
        "after": "2026-11-15T00:00:00Z",
        "before": "2026-11-17T00:00:00Z",
        "type": "sent",
        "connection": "default",
    }
    assert [row["day"] for row in client.get("/v1/completeness", params=narrow).json()["data"]] == [
        "2026-11-16", "2026-11-15",
    ]  # fmt: skip
    assert client.get("/v1/completeness", params={"typ": "sent"}).status_code == 422
    assert client.get("/v1/completeness", params={"cursor": "x"}).json()["code"] == "bad_cursor"


# --- pure ------------------------------------------------------------------------------------------------------------

moments = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(moments, st.integers(0, 30_000))
def test_a_week_and_today_are_asked_for_and_never_the_future(now: datetime, begun_on: int) -> None:
    days = days_to_ask(now, begun_on)

    assert 1 <= len(days) <= DAYS_ASKED
    assert days[-1] == day_of(now)
    assert all(is_settled(day, now) for day in settled_days(now))
    assert not is_settled(settled_days(now).stop, now)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_ratio_is_a_share_or_none(expected: int, stored: int) -> None:
    ratio = ratio_of(expected, stored)

    assert ratio is None if expected == 0 else ratio is not None and 0 <= ratio <= 1
    assert stored < expected or ratio in (None, 1.0)
