import ipaddress
from collections import Counter, defaultdict
from itertools import islice, pairwise

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.simulator.traffic import EVENT_TYPES, make_events, make_test_event
from app.simulator.vocabulary import BLOCK_ERRORS, BOUNCE_ERRORS, DOMAINS

START = 1_784_628_000
EXAMPLE_NETWORKS = [
    ipaddress.ip_network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]
DEVICE = {"ip", "geo", "agent"}
COMMON = {"event", "time", "MessageID", "email", "mj_campaign_id", "mj_contact_id", "customcampaign"}
OWN = {
    "sent": {"smtp_reply"},
    "open": DEVICE,
    "click": {"url", *DEVICE},
    "bounce": {"blocked", "hard_bounce", "error_related_to", "error"},
    "blocked": {"error_related_to", "error"},
    "spam": {"source"},
    "unsub": {"mj_list_id", *DEVICE},
}
SOMETIMES = {"Message_GUID", "CustomID", "Payload", "mj_message_id", "comment"}


@pytest.fixture(scope="module")
def events():
    return list(make_events(7, 5000, START))


def by_message(events):
    messages = defaultdict(list)
    for event in events:
        messages[event["MessageID"]].append(event)
    return messages


def test_equal_seeds_give_equal_traffic():
    assert list(make_events(3, 200, START)) == list(make_events(3, 200, START))
    assert list(make_events(3, 200, START)) != list(make_events(4, 200, START))


@given(seed=st.integers(), step=st.sampled_from([0.0002, 0.01, 0.5, 30.0]))
@settings(max_examples=30, deadline=None)
def test_no_two_events_are_equal_and_time_never_goes_back(seed, step):
    events = list(make_events(seed, 400, START, step_seconds=step))

    assert len({orjson.dumps(event) for event in events}) == 400
    assert events[0]["time"] == START
    assert all(first["time"] <= second["time"] for first, second in pairwise(events))


@pytest.mark.parametrize("seed", range(20))
def test_a_short_run_shows_every_type(seed):
    assert {event["event"] for event in make_events(seed, 150, START)} == set(EVENT_TYPES)


def test_only_the_wanted_types_come():
    assert {event["event"] for event in make_events(1, 300, START, types=["spam", "click"])} == {"spam", "click"}


@pytest.mark.parametrize("types", [["typofix"], []])
def test_a_type_mailjet_does_not_have_is_refused(types):
    with pytest.raises(ValueError, match="event types are sent, open"):
        make_events(1, 1, START, types=types)


def test_traffic_can_go_on_without_end():
    assert len(list(islice(make_events(1, None, START), 1000))) == 1000


def test_every_event_has_the_fields_of_its_type(events):
    for event in events:
        keys = set(event)
        assert keys >= COMMON | OWN[event["event"]]
        assert keys <= COMMON | OWN[event["event"]] | SOMETIMES


def test_ids_are_as_large_as_real_ones(events):
    assert all(2**53 < event["MessageID"] < 2**60 for event in events)
    assert max(event["mj_contact_id"] for event in events) > 2**32
    assert max(event["mj_campaign_id"] for event in events) > 2**32
    assert {event["mj_list_id"] > 2**32 for event in events if event["event"] == "unsub"} == {True, False}


def test_the_oddities_of_real_traffic_are_there(events):
    def share(condition):
        return sum(map(condition, events)) / len(events)

    assert 0 < share(lambda event: "Message_GUID" not in event) < 0.1
    assert 0 < share(lambda event: "CustomID" not in event) < 0.1
    assert share(lambda event: event["customcampaign"] is None) > 0
    assert share(lambda event: event.get("Payload", "") is None) > 0
    assert share(lambda event: event["mj_campaign_id"] == 0) > 0
    assert share(lambda event: event["event"] == "bounce" and event["error"] == "") > 0
    assert share(lambda event: event["event"] == "bounce" and "comment" not in event) > 0
    assert share(lambda event: event["event"] == "sent" and "mj_message_id" not in event) > 0


def test_nobody_real_is_named(events):
    for event in events:
        assert event["email"].rpartition("@")[2] in DOMAINS
        if event.get("ip"):
            assert any(ipaddress.ip_address(event["ip"]) in network for network in EXAMPLE_NETWORKS)


def test_a_message_keeps_its_facts_through_its_life(events):
    own = set().union(*OWN.values()) | {"event", "time", "comment", "mj_message_id"}
    for life in by_message(events).values():
        facts = [{key: value for key, value in event.items() if key not in own} for event in life]
        assert facts == [facts[0]] * len(facts)


def test_a_message_is_opened_only_after_it_was_accepted(events):
    lives = [[event["event"] for event in life] for life in by_message(events).values()]

    assert {life[0] for life in lives} == {"sent", "bounce", "blocked"}
    for life in lives:
        if "open" in life:
            assert "sent" in life[: life.index("open")]
        if "blocked" in life:
            assert life == ["blocked"]
    assert max(map(len, lives)) == 5


def test_a_bounce_that_is_followed_by_acceptance_was_greylisting(events):
    for life in by_message(events).values():
        if [event["event"] for event in life[:2]] == ["bounce", "sent"]:
            assert "greylisted" in (life[0]["error"], life[0]["error_related_to"])
            assert life[0]["hard_bounce"] is False


def test_people_get_many_messages_and_no_more_after_a_hard_bounce(events):
    messages_of = Counter(life[0]["email"] for life in by_message(events).values())
    assert max(messages_of.values()) > 5

    gone_at = {event["email"]: event["time"] for event in reversed(events) if event.get("hard_bounce") is True}
    later = [
        event for event in events if event["event"] == "blocked" and event["time"] > gone_at.get(event["email"], 1e12)
    ]
    assert {(event["error_related_to"], event["error"]) for event in later} == {("mailjet", "preblocked")}


def test_the_errors_are_those_of_the_table():
    events = list(make_events(2, 3000, START, types=["bounce", "blocked"]))

    bounced = {(event["error_related_to"], event["error"]) for event in events if event["event"] == "bounce"}
    assert bounced >= {(error.related_to, error.error) for error in BOUNCE_ERRORS}
    assert {(e["error_related_to"], e["error"]) for e in events if e["event"] == "blocked"} == set(BLOCK_ERRORS)


@pytest.mark.parametrize("year", [2018, 2022, 2025])
@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_a_test_event_is_zeros_and_empty_text(event_type, year):
    event = make_test_event(event_type, year, at=START)

    assert (event.pop("event"), event.pop("time")) == (event_type, START)
    for name in ("MessageID", "mj_campaign_id", "mj_contact_id"):
        assert event.pop(name) == 0
    assert set(event.values()) == {""}
    assert ("Message_GUID" in event) == (year == 2025)
    assert ("CustomID" in event) == (year != 2025)
    if event_type in ("bounce", "blocked"):
        assert ("error" in event) == (year != 2025)
