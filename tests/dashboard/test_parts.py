"""The pure parts: how values look, where marks stand, what needs a person, and what the pulse remembers."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dashboard import filters, history
from app.dashboard.attention import Weight, notices
from app.dashboard.chart import live_chart
from app.dashboard.figures import figures
from app.dashboard.forms import parse_fields, whole_times
from app.dashboard.hexdump import hexdump
from app.dashboard.overview import flow_of, health_of
from app.dashboard.pulse import BIN_SECONDS, KEPT_SECONDS, Bin, Pulse
from app.dashboard.strip import LEFT, MOST_MARKS, WIDTH, strip_of
from app.errors import Invalid, Unavailable
from app.filters import EventQuery
from app.metrics import Metrics
from app.registration.queries import CallbackState
from app.registration.shapes import CallbackModel, RhythmModel, WebhookModel
from app.settings import EVENT_TYPES, Settings, load_settings
from app.sinks.shapes import Sink
from app.stats.queries import MOST_ROWS

NOW = datetime(2026, 5, 3, 12, tzinfo=UTC)


@pytest.mark.parametrize(("seconds", "told"), [
    (None, "–"), (0, "0 s"), (0.0004, "1 ms"), (0.85, "850 ms"), (12.4, "12 s"), (72, "1 min 12 s"), (120, "2 min"),
    (3600, "1 h"), (5400, "1 h 30 min"), (90_000, "1 d 1 h"), (86_400 * 40, "40 d"),
])  # fmt: skip
def test_durations_are_short(seconds: float | None, told: str):
    assert filters.duration(seconds) == told


@pytest.mark.parametrize(
    ("value", "told"), [(None, "–"), (0, "0"), (12345, "12,345"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_numbers_have_their_thousands(value: float | None, told: str):
    assert filters.number(value) == told


@pytest.mark.parametrize(
    ("share", "told"), [(None, "–"), (0.0004, "0.04 %"), (0.02, "2.00 %"), (0.954, "95.4 %"), (1.0, "100.0 %")]
)
def test_shares_show_a_thousandth(share: float | None, told: str):
    assert filters.percent(share) == told


def test_sizes_and_ages():
    assert [filters.size(n) for n in (99, 1500, 25_000, 3_000_000)] == ["99 B", "1.5 kB", "25 kB", "3.0 MB"]
    assert filters.age(NOW - timedelta(seconds=90), NOW) == "1 min 30 s ago"
    assert filters.age(NOW + timedelta(seconds=5), NOW) == "now"
    assert filters.age("2026-05-03T11:00:00Z", NOW) == "1 h ago"
    assert filters.age(None, NOW) == "never"


def test_an_address_leaves_out_what_is_empty_and_repeats_lists():
    assert filters.address("/x", a="1&2", b=None, c=["y", "z"], d="", e=[]) == "/x?a=1%262&c=y&c=z"
    assert filters.address("/x", a=None) == "/x"


@given(st.binary(max_size=200))
def test_a_hexdump_holds_every_byte(content: bytes):
    dump = hexdump(content, 1000)

    assert bytes.fromhex("".join(line[8:55] for line in dump.splitlines())) == content


@given(st.lists(st.floats(0, 1e8), min_size=1, max_size=80))
def test_marks_stand_in_order_and_within_the_strip(gaps: list[float]):
    times = sorted(NOW + timedelta(seconds=gap) for gap in gaps)
    strip = strip_of([(time, "open") for time in times])
    places = [mark.x for mark in strip.marks]

    assert len(places) == min(len(gaps), MOST_MARKS)
    assert places == sorted(places)
    assert LEFT <= places[0] <= places[-1] <= LEFT + WIDTH + 0.01
    assert all(later.x - tick.x >= 14 for tick, later in zip(strip.ticks, strip.ticks[1:], strict=False))


def test_a_form_is_judged_by_the_model_of_rest():
    query = parse_fields(
        EventQuery, [("type", "open"), ("type", " bounce "), ("email", ""), ("limit", "5"), ("limit", "7")]
    )

    assert (query.type, query.email, query.limit) == (["open", "bounce"], [], 7)
    with pytest.raises(Invalid) as fault:
        parse_fields(EventQuery, [("nonsense", "1"), ("after", "soon")])
    assert {error.pointer for error in fault.value.errors} == {"nonsense", "after"}


# --- what needs a person ---------------------------------------------------------------------------------------------


def settings_of(**environment: str) -> Settings:
    return load_settings({f"JETHOOK_{name}": value for name, value in environment.items()}, env_file=None)


READY = {
    "PUBLIC_URL": "https://hooks.example.com", "CONNECTIONS__DEFAULT__API_KEY": "a" * 32,
    "CONNECTIONS__DEFAULT__SECRET_KEY": "b" * 32, "SINKS__CRM__URL": "https://crm.example.com/",
}  # fmt: skip


def sink_of(**given: Any) -> Sink:
    return Sink(**{
        "name": "crm", "url": "https://crm.example.com/", "state": "active", "paused_reason": None, "breaker": "closed",
        "webhooks": ["orders"], "events": ["open"], "envelope": "mailjet", "batch_size": 1, "backlog": 0,
        "oldest_overdue_seconds": 0.0, "dead": 0, "last_success_at": None, "last_error": None,
    } | given)  # fmt: skip


def webhook_of(*states: CallbackState, registration: Any = "ok") -> WebhookModel:
    callbacks = [
        CallbackModel(type=f"t{n}", backup=False, state=state, held_by=None, mailjet_id=None, last_event_at=None,
                      checked_at=None, error=None)
        for n, state in enumerate(states)
    ]  # fmt: skip
    return WebhookModel(name="orders", connection="default", events=["open"], callback_url=None,
                        registration=registration, callbacks=callbacks)  # fmt: skip


def rhythm_of(state: Any) -> RhythmModel:
    since = NOW if state == "silent" else None
    return RhythmModel(state=state, expected_by=None if state == "learning" else NOW, silent_since=since)


def test_a_silent_type_needs_a_look_and_its_setting_is_named():
    webhook = webhook_of(CallbackState.OK, CallbackState.OK)
    silent = [c.model_copy(update={"rhythm": rhythm_of(s)}) for c, s in zip(webhook.callbacks, ("heard", "silent"),
                                                                             strict=True)]  # fmt: skip

    (notice,) = notices(settings_of(**READY), [sink_of()], [webhook.model_copy(update={"callbacks": silent})], False)

    assert (notice.weight, notice.title) == (Weight.WARN, "orders: t1 silent")
    assert f"{NOW:%Y-%m-%d %H:%M} UTC" in notice.text
    assert notice.setting == "JETHOOK_WEBHOOKS__ORDERS__SILENT_AFTER_SECONDS"


@pytest.mark.parametrize(
    ("state", "heard", "word"),
    [
        ("silent", timedelta(minutes=1), "silent"),
        ("heard", timedelta(days=9), "ok"),
        ("learning", timedelta(hours=1), "ok"),
        ("learning", timedelta(days=2), "quiet"),
        ("off", None, "quiet"),
    ],
)
def test_a_callback_that_is_well_is_silent_only_where_something_should_have_come(state, heard, word):
    (callback,) = webhook_of(CallbackState.OK).callbacks
    last = None if heard is None else NOW - heard

    assert health_of(callback.model_copy(update={"rhythm": rhythm_of(state), "last_event_at": last}), NOW) == word


@pytest.mark.parametrize(("since", "silent", "words"), [
    (None, False, "No event yet"), (None, True, "No event yet"), (timedelta(seconds=5), True, "Events flow"),
    (timedelta(minutes=2), False, "Quiet now"), (timedelta(minutes=2), True, "Too quiet"),
])  # fmt: skip
def test_the_first_words_tell_whether_events_flow(since: timedelta | None, silent: bool, words: str):
    assert flow_of(None if since is None else NOW - since, NOW, is_silent=silent).words == words


@pytest.mark.parametrize(("typed", "meant"), [
    ("2026-05-03", "2026-05-03T00:00:00Z"), ("2026-05-03 10:05", "2026-05-03T10:05:00Z"),
    (" 2026-05-03T10:05:07 ", "2026-05-03T10:05:07Z"), ("2026-05-03T10:05:07+02:00", "2026-05-03T10:05:07+02:00"),
    ("yesterday", "yesterday"),
])  # fmt: skip
def test_a_time_may_be_typed_short(typed: str, meant: str):
    assert whole_times([("after", typed), ("email", "2026-05-03")]) == [("after", meant), ("email", "2026-05-03")]


@pytest.mark.parametrize("span", history.SPANS)
def test_no_chart_asks_for_more_rows_than_one_answer_may_have(span: str):
    asked = history.Asked(span, (), NOW)
    units = history.SPANS[span][1] * (24 if history.interval_of(asked) == "hour" else 1) + 25

    assert units * (len(EVENT_TYPES) + 2) <= MOST_ROWS
    assert asked.step_seconds % history.UNIT_SECONDS[history.interval_of(asked)] == 0


def test_nothing_is_told_where_all_is_well():
    assert notices(settings_of(**READY), [sink_of()], [webhook_of(CallbackState.OK, CallbackState.SHARED)], False) == []


@pytest.mark.parametrize(("sink", "title", "button"), [
    ({"state": "paused", "paused_reason": "410"}, "Sink crm is paused", "Resume"),
    ({"breaker": "open"}, "Sink crm fails", "Test it"),
    ({"oldest_overdue_seconds": 61.0}, "Sink crm falls behind", "Details"),
    ({"dead": 2}, "Sink crm: 2 dead deliveries", "Retry all"),
    ({"state": "removed", "backlog": 3}, "Sink crm is no longer configured", "Details"),
])  # fmt: skip
def test_a_sink_in_trouble_has_a_button_that_helps(sink: dict[str, Any], title: str, button: str):
    (notice,) = notices(settings_of(**READY), [sink_of(**sink)], [webhook_of(CallbackState.OK)], False)

    assert (notice.title, notice.buttons[0].label) == (title, button)


def test_a_count_that_was_cut_short_says_so():
    found = notices(settings_of(**READY), [sink_of(state="paused", backlog=10_000)], [], False)

    assert found[0].text.startswith("10,000+ deliveries wait.")


@pytest.mark.parametrize(("state", "told"), [
    (CallbackState.DEAD, "t0 is dead"), (CallbackState.MISSING, "t0 is missing"),
    (CallbackState.FOREIGN, "t0 is somebody else's"),
    (CallbackState.ERROR, "t0 could not be looked at"),
])  # fmt: skip
def test_a_callback_in_trouble_is_told(state: CallbackState, told: str):
    (notice,) = notices(settings_of(**READY), [], [webhook_of(state)], False)

    assert told in notice.title
    assert (notice.setting is not None) == (state is CallbackState.FOREIGN)


def test_first_steps_name_their_variable_one_at_a_time():
    off = webhook_of(registration="off")
    settings = [settings_of(), settings_of(PUBLIC_URL=READY["PUBLIC_URL"])]

    told = [[notice.setting or "" for notice in notices(each, [], [off], False)] for each in settings]

    assert [setting.partition("=")[0] for setting in told[0]] == ["JETHOOK_PUBLIC_URL", "JETHOOK_SINKS__CRM__URL"]
    assert [setting.partition("=")[0] for setting in told[1]] == ["MJ_APIKEY_PUBLIC", "JETHOOK_SINKS__CRM__URL"]


def test_the_worst_comes_first():
    found = notices(settings_of(), [sink_of(dead=1)], [webhook_of(registration="off")], True)

    assert [notice.weight for notice in found] == [Weight.BAD, Weight.WARN, Weight.NEXT, Weight.NEXT]


# --- the pulse -------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_777_802_400.0

    def __call__(self) -> float:
        return self.now


def test_the_pulse_counts_what_came_between_two_looks():
    clock, metrics = Clock(), Metrics(webhooks=["orders"], sinks=["crm"])
    metrics.events_received("orders", "open", stored=5, duplicates=0, now=1.0)
    pulse = Pulse(metrics, clock)
    metrics.events_received("orders", "open", stored=3, duplicates=9, now=1.0)
    metrics.attempted("crm", "success", 0.1)
    metrics.attempted("crm", "http_5xx", 0.1)
    clock.now += BIN_SECONDS
    pulse.tick()

    assert pulse.counts(60) == {"open": 3}
    assert (pulse.events_per_second(60), pulse.deliveries_per_second(60)) == (3 / 5, {"crm": 1 / 5})
    starts, counts = pulse.series(600, 5)
    assert len(starts) == 120
    assert [count["open"] for count in counts][-2:] == [3, 0]


def test_the_last_bar_holds_what_came_since_the_last_look():
    clock, metrics = Clock(), Metrics(webhooks=["orders"], sinks=[])
    pulse = Pulse(metrics, clock)
    clock.now += BIN_SECONDS
    pulse.tick()
    metrics.events_received("orders", "open", stored=4, duplicates=0, now=1.0)

    assert pulse.series(60, BIN_SECONDS)[1][-1] == {"open": 4}
    clock.now += BIN_SECONDS
    pulse.tick()
    assert [count["open"] for count in pulse.series(60, BIN_SECONDS)[1]][-2:] == [4, 0]


def test_the_pulse_takes_what_others_received_from_who_counts_it_and_outlives_an_outage():
    clock, metrics = Clock(), Metrics(webhooks=["orders"], sinks=[])
    answers = iter([Counter(open=7, sent=2), Unavailable("away"), Counter(open=1)])

    async def count_new() -> Counter[str]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def look() -> None:
        for _ in range(3):
            metrics.events_received("orders", "open", stored=5, duplicates=0, now=1.0)  # its own are among them
            clock.now += BIN_SECONDS
            await pulse.look()

    pulse = Pulse(metrics, clock, count_new)
    asyncio.run(look())

    assert pulse.counts(60) == {"open": 8, "sent": 2}


def test_at_rest_the_pulse_asks_for_three_bins_at_once_and_again_as_soon_as_something_comes_here():
    clock, metrics = Clock(), Metrics(webhooks=["orders"], sinks=[])
    asked = []

    async def count_new() -> Counter[str]:
        asked.append(clock.now)
        return Counter(open=4) if len(asked) == 3 else Counter()

    async def look(bins: int) -> int:
        before = len(asked)
        for _ in range(bins):
            clock.now += BIN_SECONDS
            await pulse.look()
        return len(asked) - before

    pulse = Pulse(metrics, clock, count_new)
    assert asyncio.run(look(6)) == 2  # nothing comes
    assert asyncio.run(look(2)) == 2  # another replica has received something
    assert asyncio.run(look(1)) == 0
    metrics.events_received("orders", "open", stored=5, duplicates=0, now=1.0)
    assert asyncio.run(look(1)) == 1
    assert pulse.counts(60) == {"open": 4}


def test_the_pulse_forgets_what_is_older_than_an_hour():
    clock = Clock()
    pulse = Pulse(Metrics(webhooks=[], sinks=[]), clock)
    for back in range(2 * KEPT_SECONDS, 0, -BIN_SECONDS):
        pulse.put(Bin(int(clock.now) - back, Counter(open=1)))

    assert pulse.known_seconds == KEPT_SECONDS
    assert pulse.counts(10 * KEPT_SECONDS)["open"] == KEPT_SECONDS / BIN_SECONDS


def test_a_chart_of_a_young_service_is_not_mostly_empty():
    clock = Clock()
    pulse = Pulse(Metrics(webhooks=[], sinks=[]), clock)
    pulse.put(Bin(int(clock.now) - 5, Counter(open=2, sent=1)))
    chart = live_chart(pulse, "live")

    assert chart.points.count(",") < 300
    assert chart.totals["open"] == 2
    assert chart.sentence == "Events in the last 10 min: 1 sent, 2 open."


def test_a_share_and_the_numbers_beside_it_agree_where_mail_was_put_off():
    counts = {"sent": 90, "bounce": 12, "blocked": 3}
    rates = {"delivery": 0.918367, "bounce": 0.061224, "open": 0.0, "click": 0.0, "complaint": 0.0, "unsubscribe": 0.0}
    found = figures({
        "counts": counts, "rates": rates, "automated": {"open": 0, "click": 0}, "deferred": {"bounce": 6, "blocked": 1},
    })  # fmt: skip

    assert [(one.name, one.count, one.of) for one in found[:3]] == [
        ("Delivered", 90, 98), ("Bounced", 6, 98), ("Blocked", 2, 98),
    ]  # fmt: skip
    assert all(one.share == pytest.approx(one.count / one.of, abs=1e-6) for one in found[:3])
