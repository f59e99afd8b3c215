from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dispatch.matching import Matcher, Target, accepting, matches, order_key
from app.settings import SinkSettings
from tests.delivery.support import event_tuple, sink

names = st.sampled_from(["orders", "news", "other"])
types = st.sampled_from(["open", "click", "bounce", "unheard of"])
sinks = st.builds(
    lambda webhooks, events: sink(webhooks=webhooks, events=events),
    st.lists(names, max_size=3), st.lists(types, max_size=3),
)  # fmt: skip


@pytest.mark.parametrize(
    ("webhooks", "events", "webhook", "event_type", "expected"),
    [
        ([], [], "orders", "open", True),
        ([], [], "orders", "unheard of", True),
        (["orders"], [], "orders", "open", True),
        (["orders"], [], "news", "open", False),
        (["orders", "news"], ["open"], "news", "open", True),
        ([], ["open"], "orders", "click", False),
        ([], ["open"], "orders", "unheard of", False),
        ([], ["unheard of"], "orders", "unheard of", True),
        (["orders"], ["open"], "news", "click", False),
        ([], [], "jethook", "jethook.sink.opened", False),
        ([], ["open"], "jethook", "jethook.sink.opened", False),
        ([], ["jethook.*"], "jethook", "jethook.sink.opened", True),
        (["orders"], ["open", "jethook.*"], "jethook", "jethook.sink.opened", True),
        ([], ["jethook.delivery.dead"], "jethook", "jethook.sink.opened", False),
        ([], ["jethook.delivery.dead"], "jethook", "jethook.delivery.dead", True),
        ([], ["jethook.*"], "orders", "open", False),
        ([], ["open", "jethook.*"], "orders", "open", True),
    ],
)
def test_a_sink_hears_of_what_it_asks_for(
    webhooks: list[str], events: list[str], webhook: str, event_type: str, expected: bool
) -> None:
    assert matches(sink(webhooks=webhooks, events=events), webhook=webhook, event_type=event_type) is expected


@pytest.mark.parametrize("event_type", ["jethook.sink.opened", "jethook.*"])
def test_what_a_sender_calls_an_operator_event_is_none(event_type: str) -> None:
    for asks in (["jethook.*"], ["jethook.sink.opened"], ["open", "jethook.*"]):
        assert not matches(sink(events=asks), webhook="orders", event_type=event_type)
    assert matches(sink(), webhook="orders", event_type=event_type)  # an unknown type like others


def test_an_operator_event_is_never_owed_to_the_sink_it_is_about() -> None:
    matcher = Matcher({name: sink(events=["jethook.*"]) for name in ("crm", "erp", "pager")})

    def targets(raw: str) -> list[str]:
        return [t.sink for t in matcher.targets("jethook", "jethook.sink.opened", event_tuple(raw=raw))]

    assert targets('{"event":"jethook.sink.opened","sink":"crm"}') == ["erp", "pager"]
    assert targets('{"event":"jethook.registration.failed","webhook":"crm"}') == ["crm", "erp", "pager"]


@given(st.dictionaries(st.text(min_size=1), sinks, max_size=4), st.lists(st.tuples(names, types), max_size=8))
def test_what_is_remembered_is_what_would_be_found(
    configured: dict[str, SinkSettings], asked: list[tuple[str, str]]
) -> None:
    matcher = Matcher(configured)

    for webhook, event_type in [*asked, *asked]:
        found = matcher.sinks_for(webhook, event_type)
        assert found == tuple(n for n, s in configured.items() if matches(s, webhook=webhook, event_type=event_type))


def test_a_senders_own_words_do_not_fill_the_memory() -> None:
    matcher = Matcher({"crm": sink()})

    for number in itertools.islice(itertools.count(), Matcher.MOST_REMEMBERED + 500):
        assert matcher.sinks_for("orders", f"type{number}") == ("crm",)

    assert len(matcher._known) == Matcher.MOST_REMEMBERED


def test_a_condition_is_asked_for_each_event() -> None:
    matcher = Matcher(
        {"all": sink(), "some": sink(filter='{"email": {"$endsWith": "@x.org"}}'), "none": sink(events=["spam"])}
    )

    def targets(email: str) -> list[str]:
        return [t.sink for t in matcher.targets("orders", "open", event_tuple(email=email))]

    assert targets("a@x.org") == ["all", "some"]
    assert targets("a@y.org") == ["all"]


def test_a_condition_sees_details_and_raw() -> None:
    event = event_tuple(raw='{"event":"click","time":1,"url":"https://x","n":12345678901234567890}')

    assert accepting('{"details.url": {"$startsWith": "https:"}, "raw.n": 12345678901234567890}')(event)
    assert not accepting('{"raw.n": 12345678901234567891}')(event)


@pytest.mark.parametrize(
    ("ordered_by", "fields", "key"),
    [
        (None, {}, None),
        ("recipient", {"email": "a@x.org"}, "a@x.org"),
        ("recipient", {"email": None}, None),
        ("message", {"message_id": "7"}, "7"),
        ("message", {"message_id": None, "message_guid": "g"}, "g"),
        ("message", {"message_id": None}, None),
    ],
)
def test_the_key_of_an_order(ordered_by: str | None, fields: dict[str, str | None], key: str | None) -> None:
    event = event_tuple(**fields)

    assert order_key(event, ordered_by) == key
    assert Matcher({"crm": sink(ordered_by=ordered_by)}).targets("orders", "open", event) == [Target("crm", key)]
