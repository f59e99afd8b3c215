"""Replays over REST. What they do is in test_service.py."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from app.db import Database
from app.models import ReplayState
from app.replay import queries
from tests.factories import NOON, make_delivery, make_event
from tests.replay.conftest import routes
from tests.rest import asking

ID = "019ded47-d100-7c4e-9a51-3f9c2b7d1e60"
CALLS = [
    ("POST", "/v1/replays"),
    ("GET", "/v1/replays"),
    ("GET", f"/v1/replays/{ID}"),
    ("POST", f"/v1/replays/{ID}/cancel"),
]


def ask(client: TestClient, **body):
    return client.post("/v1/replays", json={"sink": "crm"} | body)


def end(database: Database, replay_id: str) -> None:
    database.write(lambda c: queries.update(c, replay_id, state=ReplayState.DONE.value, finished_at=NOON))


def test_a_replay_is_made_and_can_be_watched(client, database):
    make_event(database, type="bounce")
    make_event(database, type="open")

    made = ask(client, rate_per_second=2.5, filter={"type": "bounce", "after": "2026-05-03T12:00:00+02:00"})

    assert made.status_code == 202
    replay = made.json()
    assert made.headers["location"] == f"/v1/replays/{replay['id']}"
    assert client.get(made.headers["location"]).json() == replay
    assert replay.pop("created_at").endswith("Z")
    assert replay.pop("id")
    assert replay == {
        "sink": "crm", "state": "running", "count": 1, "taken": 0, "done": 0, "failed": 0, "rate_per_second": 2.5,
        "filter": {"type": ["bounce"], "after": ["2026-05-03T10:00:00Z"]}, "deliveries": None, "error": None,
        "finished_at": None,
    }  # fmt: skip


def test_a_dry_run_counts_and_leaves_nothing(client, database):
    for kind in ("bounce", "open", "open"):
        make_event(database, type=kind)
    make_event(database, type="open", test=True)

    def dry(**body):
        response = ask(client, dry_run=True, **body)
        assert response.status_code == 200, response.text
        assert response.json()["dry_run"] is True
        return response.json()["count"]

    assert dry(filter={}) == 3
    assert dry(filter={"type": ["open"], "test": [True, False]}) == 2
    assert dry(filter={"test": True}) == 0
    assert dry(filter={}, sink="bounces") == 1
    assert dry(deliveries={"state": "dead"}) == 0
    assert client.get("/v1/replays").json() == {"data": [], "next_cursor": None, "has_more": False}


def test_dead_deliveries_are_counted_by_their_own_filters(client, database):
    for kind in ("bounce", "open"):
        make_delivery(database, make_event(database, type=kind), state="dead", settled_at=NOON)
    make_delivery(database, make_event(database), state="delivered", settled_at=NOON)
    make_delivery(database, make_event(database), state="dead", settled_at=NOON, sink="bounces")

    made = ask(client, deliveries={"state": "dead", "type": "open"}).json()

    assert (made["count"], made["filter"], made["deliveries"]) == (1, None, {"state": "dead", "type": ["open"]})
    assert ask(client, deliveries={"state": "dead"}).json()["count"] == 2


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({}, "", "one_selection"),
        ({"filter": None}, "", "one_selection"),
        ({"filter": {}, "deliveries": {"state": "dead"}}, "", "one_selection"),
        ({"filter": {"kind": "open"}}, "/filter/kind", "extra_forbidden"),
        ({"filter": {"type": 7}}, "/filter/type", "string_type"),
        ({"filter": {"type": ["open", 7]}}, "/filter/type/1", "string_type"),
        ({"filter": {"before": "soon"}}, "/filter/before", "time"),
        ({"filter": {"type": []}}, "/filter/type", "too_short"),
        ({"filter": []}, "/filter", "model_attributes_type"),
        ({"deliveries": {}}, "/deliveries/state", "missing"),
        ({"deliveries": {"state": "pending"}}, "/deliveries/state", "literal_error"),
        ({"deliveries": {"state": "dead", "email": "a@example.com"}}, "/deliveries/email", "extra_forbidden"),
        ({"filter": {}, "rate_per_second": 0}, "/rate_per_second", "greater_than_equal"),
        ({"filter": {}, "rate_per_second": "5"}, "/rate_per_second", "float_type"),
        ({"filter": {}, "rate_per_second": True}, "/rate_per_second", "float_type"),
        ({"filter": {}, "dry_run": "yes"}, "/dry_run", "bool_type"),
        ({"filter": {}, "speed": 1}, "/speed", "extra_forbidden"),
        ({"filter": {}, "sink": 7}, "/sink", "string_type"),
        ({"filter": {}, "sink": "gone"}, "/sink", "sink_not_found"),
    ],
)
def test_what_does_not_fit_is_told_by_its_pointer(refusing, body, pointer, code):
    response = ask(refusing, **body)

    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "validation_failed"), problem
    assert [(fault["pointer"], fault["code"]) for fault in problem["errors"]] == [(pointer, code)]


@pytest.mark.parametrize("body", ["{", '{"sink": "crm", "filter": {}, "rate_per_second": NaN}', "[]", "null", ""])
def test_what_is_no_object_is_refused(refusing, body):
    response = refusing.post("/v1/replays", content=body, headers={"content-type": "application/json"})

    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"


def test_cancelling_is_told_on_and_can_be_repeated(database):
    told = []
    with asking(*routes(database, lambda: told.append(1))) as client:
        path = ask(client, filter={}).headers["location"]
        assert told == [1]

        first, again = client.post(f"{path}/cancel"), client.post(f"{path}/cancel")

        assert first.status_code == again.status_code == 200
        assert first.json()["state"] == "cancelled"
        assert first.json() == again.json() == client.get(path).json()
        assert told == [1, 1, 1]


def test_what_has_ended_cannot_be_cancelled(client, database):
    replay = ask(client, filter={}).json()["id"]
    end(database, replay)

    response = client.post(f"/v1/replays/{replay}/cancel")

    assert (response.status_code, response.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize("unknown", [ID, "x", "%00", ID.upper(), "0" * 5000])
def test_an_unknown_replay_is_a_404(client, unknown):
    for response in (client.get(f"/v1/replays/{unknown}"), client.post(f"/v1/replays/{unknown}/cancel")):
        assert (response.status_code, response.json()["code"]) == (404, "replay_not_found")


@pytest.mark.parametrize("order", ["desc", "asc"])
def test_the_list_is_walked_by_its_links(client, order):
    made = sorted((ask(client, filter={}).json()["id"] for _ in range(5)), reverse=order == "desc")

    response = client.get("/v1/replays", params={"limit": 2, "order": order})
    found = []
    while True:
        page = response.json()
        found += [replay["id"] for replay in page["data"]]
        assert page["has_more"] == (page["next_cursor"] is not None) == ("next" in response.links)
        if not page["has_more"]:
            break
        ask(client, filter={}) if order == "desc" else None  # what arrives meanwhile changes nothing
        response = client.get(response.links["next"]["url"])

    assert found == made


@pytest.mark.parametrize(
    ("params", "status", "code"),
    [
        ({"limit": 0}, 422, "validation_failed"),
        ({"limit": 1001}, 422, "validation_failed"),
        ({"state": "done"}, 422, "validation_failed"),
        ({"cursor": "x"}, 400, "bad_cursor"),
    ],
)
def test_a_list_refuses_what_it_does_not_know(refusing, params, status, code):
    response = refusing.get("/v1/replays", params=params)

    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_keys_are_asked_for(refusing, method, path):
    assert refusing.request(method, path, headers={"authorization": "Bearer wrong"}).status_code == 401
    if method == "POST":
        assert refusing.request(method, path, headers={"authorization": "Bearer read"}).status_code == 403


def test_a_reading_key_may_watch(client):
    ask(client, filter={})

    assert client.get("/v1/replays", headers={"authorization": "Bearer read"}).status_code == 200


def test_the_document_tells_of_every_call(refusing):
    document = refusing.get("/openapi.json").json()

    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) == len(CALLS)
    for operation in operations:
        assert operation["summary"]
        assert operation["description"]
        assert operation["security"] == [{"bearer": []}]
        assert {"401", "422", "500", "503"} <= operation["responses"].keys()
    schemas = document["components"]["schemas"]
    kind = schemas["EventSelection"]["properties"]["type"]
    assert kind["anyOf"] == [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1,
                                                  "maxItems": 1000}]  # fmt: skip
    assert kind["description"]
    assert "HTTPValidationError" not in str(document)
    assert "replay_not_found" in schemas["Problem"]["properties"]["code"]["enum"]
