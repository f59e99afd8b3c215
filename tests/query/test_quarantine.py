import base64
from datetime import timedelta

import pytest

from app.query.queries import MAX_LISTED_BODY_BYTES
from tests.factories import NOON, make_quarantined


@pytest.mark.parametrize(
    ("body", "shown", "encoding"),
    [
        (b'{"event": "open"}', '{"event": "open"}', "text"),
        ("é\u2028\x01".encode(), "é\u2028\x01", "text"),
        (b"", "", "text"),
        (b"a\0b", base64.b64encode(b"a\0b").decode(), "base64"),
        (b"\xff\xfe", base64.b64encode(b"\xff\xfe").decode(), "base64"),
        ("\ud800".encode("utf-8", "surrogatepass"), "7aCA", "base64"),
    ],
)
def test_an_entry_is_told_with_its_body(client, database, body, shown, encoding):
    entry = make_quarantined(database, body=body, received_at=NOON, reason="not JSON")

    answer = client.get(f"/v1/quarantine/{entry['id']}").json()

    assert answer == {
        "id": entry["id"],
        "webhook": "orders",
        "received_at": "2026-05-03T12:00:00Z",
        "reason": "not JSON",
        "bytes": len(body),
        "body": shown,
        "body_encoding": encoding,
    }
    assert client.get("/v1/quarantine").json()["data"] == [answer]


def test_a_list_leaves_large_bodies_to_the_single_entry(client, database):
    body = "é".encode() * MAX_LISTED_BODY_BYTES
    entry = make_quarantined(database, body=body)

    listed = client.get("/v1/quarantine").json()["data"][0]

    assert (listed["bytes"], listed["body"], listed["body_encoding"]) == (len(body), None, None)
    assert client.get(f"/v1/quarantine/{entry['id']}").json()["body"] == body.decode()


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_walk_gives_what_was_there_once_while_writes_go_on(walk, database, order):
    def some(number: int) -> list[str]:
        return [
            make_quarantined(database, received_at=NOON + timedelta(microseconds=n % 3 + 1))["id"]
            for n in range(number)
        ]

    there = some(20)

    rows = walk("/v1/quarantine", lambda: some(2), order=order, limit=3)

    keys = [(row["received_at"], row["id"]) for row in rows]
    assert len(keys) == len(set(keys))
    assert set(there) <= {row["id"] for row in rows}
    assert [time for time, _ in keys] == sorted((time for time, _ in keys), reverse=order == "desc")


def test_filters_choose_entries(client, database):
    old = make_quarantined(database, received_at=NOON)["id"]
    new = make_quarantined(database, received_at=NOON + timedelta(seconds=1), webhook="news")["id"]

    def found(query: str) -> list[str]:
        return [row["id"] for row in client.get(f"/v1/quarantine?{query}").json()["data"]]

    assert found("") == [new, old]
    assert found("webhook=news") == [new]
    assert found("webhook=news&webhook=orders") == [new, old]
    assert found("before=2026-05-03T12:00:01Z") == [old]
    assert found("after=2026-05-03T12:00:00.0000001Z") == [new]


def test_an_entry_can_be_deleted_once(client, database):
    path = f"/v1/quarantine/{make_quarantined(database)['id']}"

    deleted, again = client.delete(path), client.delete(path)

    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (again.status_code, again.json()["code"]) == (404, "quarantine_not_found")
    assert client.get(path).status_code == 404


def test_a_key_that_may_read_may_not_delete(client, database):
    path = f"/v1/quarantine/{make_quarantined(database)['id']}"

    assert client.delete(path, headers={"authorization": "Bearer read"}).status_code == 403
    assert client.get(path, headers={"authorization": "Bearer read"}).status_code == 200


@pytest.mark.parametrize("unknown", ["00000000-0000-8c4e-9a51-3f9c2b7d1e60", "x", "%00"])
def test_an_unknown_entry_is_a_404(client, unknown):
    for answer in (client.get(f"/v1/quarantine/{unknown}"), client.delete(f"/v1/quarantine/{unknown}")):
        assert (answer.status_code, answer.json()["code"]) == (404, "quarantine_not_found")
