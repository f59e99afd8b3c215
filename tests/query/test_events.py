import random
from datetime import datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.clock import rfc3339
from app.filters import EventQuery
from app.models import Event, Outcome
from app.query.queries import list_events
from tests.factories import NOON, event_values, insert, make_event


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def code(response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    return response.json()["code"]


# --- one event -------------------------------------------------------------------------------------------------------


def test_an_event_is_told_with_every_digit_of_what_mailjet_sent(client, database):
    raw = (
        '{"event":"open","time":1777802400,"MessageID":19421777835146490,'
        '"z":1.10,"a":123456789012345678901,"u":"\\ud800\\u0000"}'
    )
    event = make_event(database, raw=raw, permanent=True)

    response = client.get(f"/v1/events/{event['id']}")

    assert response.status_code == 200
    assert raw in response.text
    body = response.json()
    assert body["permanent"] is True
    assert body["occurred_at"] == rfc3339(event["occurred_at"])
    assert body["received_at"].endswith(".123456Z")
    assert '"z":1.10' in response.text.partition('"details"')[2]


@pytest.mark.parametrize(
    "unknown",
    [
        "019ded47-d100-8c4e-9a51-3f9c2b7d1e60",
        "x",
        "%00",
        "019DED47-D100-8C4E-9A51-3F9C2B7D1E60",
        "0" * 5000,
        "%ED%A0%80",
    ],
)
def test_an_unknown_event_is_a_404(client, unknown):
    for path in (f"/v1/events/{unknown}", f"/v1/events/{unknown}/deliveries"):
        response = client.get(path)
        assert response.status_code == 404
        assert code(response) == "event_not_found"


# --- walking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_walk_gives_what_was_there_once_while_writes_go_on(walk, database, order):
    randomly = random.Random(7)

    def some() -> dict[str, Any]:
        return event_values(occurred_at=NOON + timedelta(seconds=randomly.randrange(12)))

    there = [some() for _ in range(60)]
    insert(database, Event, there)

    walked = ids(walk("/v1/events", lambda: insert(database, Event, [some() for _ in range(9)]), order=order, limit=7))

    assert len(walked) == len(set(walked))
    assert set(ids(there)) <= set(walked)
    assert walked == sorted(walked, reverse=order == "desc")


def test_a_list_goes_from_the_newest_to_the_oldest(client, database):
    old, new = make_event(database), make_event(database)

    assert ids(client.get("/v1/events").json()["data"]) == [new["id"], old["id"]]
    assert ids(client.get("/v1/events?order=asc").json()["data"]) == [old["id"], new["id"]]


def test_an_empty_list_has_no_next(client):
    response = client.get("/v1/events")

    assert response.json() == {"data": [], "next_cursor": None, "has_more": False}
    assert "link" not in response.headers


def test_a_page_that_is_just_full_is_the_last(client, database):
    insert(database, Event, [event_values() for _ in range(3)])

    assert client.get("/v1/events?limit=3").json()["has_more"] is False
    assert client.get("/v1/events?limit=2").json()["has_more"] is True


def test_the_next_link_keeps_the_other_parameters(client, database):
    insert(database, Event, [event_values(email="é+1@example.com") for _ in range(3)])

    response = client.get("/v1/events", params={"email": ["é+1@example.com", "x&y"], "limit": 1, "include": "raw"})
    again = client.get(response.links["next"]["url"])

    assert response.links["next"]["url"].startswith("/v1/events?email=")
    assert len(again.json()["data"]) == 1
    assert again.json()["data"] != response.json()["data"]
    assert "raw" in again.json()["data"][0]


def test_the_limit_may_change_on_the_way(client, database):
    insert(database, Event, [event_values() for _ in range(5)])
    cursor = client.get("/v1/events?limit=1").json()["next_cursor"]

    assert len(client.get(f"/v1/events?limit=1000&cursor={cursor}&include=raw").json()["data"]) == 4


@pytest.mark.parametrize(
    "path",
    [
        "/v1/events?type=open&cursor=",
        "/v1/events?order=asc&cursor=",
        "/v1/deliveries?cursor=",
        "/v1/quarantine?cursor=",
    ],
)
def test_a_cursor_of_another_walk_is_refused(client, database, path):
    insert(database, Event, [event_values() for _ in range(2)])
    cursor = client.get("/v1/events?limit=1").json()["next_cursor"]

    response = client.get(path + cursor)

    assert (response.status_code, code(response)) == (400, "bad_cursor")


@pytest.mark.parametrize("cursor", ["", "x", "%00", "%FF", "AAAA", "=" * 9, "A" * 60_000, "AQ", "é", "null"])
def test_a_cursor_nobody_gave_is_refused(refusing, cursor):
    response = refusing.get(f"/v1/events?cursor={cursor}")

    assert (response.status_code, code(response)) == (400, "bad_cursor")


# --- filters ---------------------------------------------------------------------------------------------------------

POOL: dict[str, list[Any]] = {
    "webhook": ["orders", "news"],
    "type": ["open", "bounce", "surprise"],
    "outcome": ["opened", "bounced", "unknown"],
    "email": ["a@example.com", "A@example.com", "b@example.org", None],
    "message_id": ["19421777835146490", "1", None],
    "message_guid": ["g1", "g2", None],
    "campaign_id": ["7257", "8", None],
    "custom_campaign": ["spring", "été", None],
    "custom_id": ["order-17", "", None],
    "contact_id": ["4", "5", None],
    "list_id": ["6", None],
    "permanent": [True, False, None],
    "test": [True, False],
}
OFFSETS = st.integers(-2, 12).map(lambda n: timedelta(seconds=n)) | st.floats(-2, 12).map(
    lambda n: timedelta(seconds=n)
)
MOMENTS = OFFSETS.map(lambda offset: NOON + offset)
BOUNDS = ("after", "before", "received_after", "received_before")


def some_events() -> list[dict[str, Any]]:
    randomly = random.Random(11)
    rows = []
    for _ in range(150):
        given = {name: randomly.choice(values) for name, values in POOL.items()}
        occurred_at = NOON + timedelta(seconds=randomly.randrange(10))
        received_at = NOON + timedelta(microseconds=randomly.randrange(10**7))
        rows.append(event_values(**given, occurred_at=occurred_at, received_at=received_at))
    return rows


def fits(event: dict[str, Any], asked: dict[str, list[Any]]) -> bool:
    """The filters once more, as plain Python."""
    bounds = {
        "after": lambda bound: event["occurred_at"] >= bound,
        "before": lambda bound: event["occurred_at"] < bound,
        "received_after": lambda bound: event["received_at"] >= bound,
        "received_before": lambda bound: event["received_at"] < bound,
    }
    return all(
        any(bounds[name](value) if name in bounds else event[name] == value for value in values)
        for name, values in asked.items()
        if values
    )


def as_text(value: Any) -> str:
    if isinstance(value, datetime):
        return rfc3339(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


asked_for = st.fixed_dictionaries(
    {},
    optional={
        **{
            name: st.lists(st.sampled_from([v for v in values if v is not None]), min_size=1, max_size=3)
            for name, values in {**POOL, "email_domain": ["example.com", "example.org", "x"]}.items()
        },
        **{name: st.lists(MOMENTS, min_size=1, max_size=2) for name in BOUNDS},
    },
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=asked_for)
def test_filters_mean_what_they_say(client, database, stored, asked):
    params = {name: [as_text(value) for value in values] for name, values in asked.items()}

    found = client.get("/v1/events", params={**params, "limit": 1000}).json()["data"]

    assert ids(found) == sorted((event["id"] for event in stored if fits(event, asked)), reverse=True)


@pytest.fixture
def stored(database) -> list[dict[str, Any]]:
    rows = some_events()
    insert(database, Event, rows)
    return rows


@pytest.mark.parametrize(
    ("after", "before", "expected"),
    [
        (".0", ".000001", True),
        ("", "", False),
        (".000001", "", False),
        (".0000001", "", False),
        ("", ".0000001", True),
        ("", ".999", True),
    ],
)
def test_after_is_inclusive_and_before_exclusive_to_the_last_digit(client, database, after, before, expected):
    make_event(database, occurred_at=NOON)
    second = "2026-05-03T12:00:00"

    found = client.get(f"/v1/events?after={second}{after}Z&before={second}{before}Z").json()["data"]

    assert bool(found) == expected


def test_a_domain_is_found_in_any_case_and_a_local_part_in_its_own(client, database):
    event = make_event(database, email="Jo@example.com")

    def found(query: str) -> list[str]:
        return ids(client.get(f"/v1/events?{query}").json()["data"])

    assert found("email=Jo@EXAMPLE.com") == [event["id"]]
    assert found("email=jo@example.com") == []
    assert found("email_domain=Example.COM") == [event["id"]]


def test_who_asks_about_mail_does_not_get_operator_events(client, database):
    mail = make_event(database, test=False)
    ours = make_event(database, webhook="jethook", type="jethook.sink.opened", email=None, outcome="unknown")
    odd = make_event(database, type="jethook.sink.opened", outcome="unknown")  # a sender's own word

    def found(query: str) -> list[str]:
        return ids(client.get(f"/v1/events?order=asc&{query}").json()["data"])

    assert found("") == [mail["id"], odd["id"]]
    assert found("outcome=unknown") == [odd["id"]]
    assert found("webhook=jethook") == [ours["id"]]
    assert found("webhook=jethook&webhook=orders") == [mail["id"], ours["id"], odd["id"]]
    assert found("type=jethook.sink.opened") == [ours["id"]]
    assert found("type=jethook.sink.opened&webhook=jethook") == [ours["id"]]
    assert found("type=jethook.sink.opened&webhook=orders") == [odd["id"]]
    assert found("type=jethook.sink.opened&type=open") == [mail["id"], ours["id"], odd["id"]]
    assert client.get(f"/v1/events/{ours['id']}").json()["type"] == "jethook.sink.opened"


def test_raw_is_in_a_list_only_on_request(client, database):
    event = make_event(database)

    assert "raw" not in client.get("/v1/events").json()["data"][0]
    assert client.get("/v1/events?include=raw").json()["data"][0]["raw"] == orjson.loads(event["raw"])


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=ten", "limit"),
        ("limit=1.0", "limit"),
        ("limit=", "limit"),
        ("limit=%00", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=-99999999999999999999999999", "limit"),
        ("order=newest", "order"),
        ("include=everything", "include"),
        ("include=raw&include=x", "include"),
        ("outcome=exploded", "outcome"),
        ("permanent=perhaps", "permanent"),
        ("test=", "test"),
        ("after=yesterday", "after"),
        ("before=2026-05-03T10:00:00", "before"),
        ("received_after=0", "received_after"),
        ("received_before=%00", "received_before"),
        ("&".join(["type=x"] * 1001), "type"),
    ],
)
def test_a_value_that_does_not_fit_is_a_422(refusing, query, pointer):
    response = refusing.get(f"/v1/events?{query}")

    assert (response.status_code, code(response)) == (422, "validation_failed")
    assert {error["pointer"] for error in response.json()["errors"]} == {pointer}


@pytest.mark.parametrize(
    "query", ["emial=a@b", "Email=a@b", "offset=10", "email[]=a", "%00=1", "=1", "%FF=%FF", "a=1&a=2"]
)
def test_a_parameter_that_is_not_listed_never_returns_everything(refusing, query):
    response = refusing.get(f"/v1/events?{query}")

    assert (response.status_code, code(response)) == (422, "validation_failed")
    assert {error["code"] for error in response.json()["errors"]} == {"unknown_parameter"}


@pytest.mark.parametrize("name", ["webhook", "email", "email_domain", "custom_id"])
def test_odd_values_match_nothing(client, stored, name):
    for value in ("%00", "%ED%A0%80", "%FF", "x" * 60_000, "'%22;--", "%F0%9F%92%8C", "%25_", "+", "@"):
        response = client.get(f"/v1/events?{name}={value}")

        assert (response.status_code, response.json()["data"]) == (200, []), value


def test_a_thousand_values_of_every_filter_are_one_statement(database):
    names = [name for name in EventQuery.model_fields if name in POOL and name not in ("outcome", "permanent", "test")]
    query = EventQuery(**{name: [f"{n}@x" for n in range(1000)] for name in names})

    with database.reading() as connection:
        assert list_events(connection, query, None).rows == []


def test_every_outcome_can_be_asked_for(client):
    assert client.get("/v1/events", params={"outcome": list(Outcome)}).status_code == 200


@pytest.mark.parametrize("order", ["desc", "asc"])
@pytest.mark.parametrize("bounds", [{}, {"after": 5, "before": 15}, {"after": 5, "type": "open"}])
def test_a_walk_along_a_campaign_gives_each_of_its_events_once(database, walk, order, bounds):
    rows = [
        event_values(
            occurred_at=NOON + timedelta(seconds=n), campaign_id=("1", "10", None)[n % 3], type=("open", "click")[n % 2]
        )
        for n in range(40)
    ]
    insert(database, Event, rows)
    params = {name: rfc3339(NOON + timedelta(seconds=n)) for name, n in bounds.items() if name != "type"}
    kinds = {bounds["type"]} if "type" in bounds else {"open", "click"}

    found = walk("/v1/events", campaign_id="1", order=order, limit=2, **params, type=sorted(kinds))

    expected = sorted(
        row["id"]
        for n, row in enumerate(rows)
        if row["campaign_id"] == "1" and row["type"] in kinds and bounds.get("after", 0) <= n < bounds.get("before", 40)
    )
    assert ids(found) == (expected if order == "asc" else expected[::-1])
