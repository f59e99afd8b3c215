"""Erasing a person takes every trace, keeps everybody else, and leaves a receipt that tells nothing of whom."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from app.db import Database
from app.delivery import queue
from app.delivery.queue import Completion
from app.erasure import routes
from app.erasure.forget import Forgotten
from app.erasure.service import Erasures
from app.models import (
    Attempt,
    Delivery,
    DeliveryState,
    Erasure,
    Event,
    EventTrace,
    Quarantined,
    Replay,
    Send,
    SinkState,
)
from app.replay import queries as replay_queries
from app.replay.queries import Slice, Taken
from app.suppressions.digest import address_digest
from app.suppressions.queries import note_spellings
from tests.factories import insert, make_quarantined
from tests.maintenance.support import NOW, at_once, count, every_text, store, stored_ids
from tests.rest import KEYS, asking

ANN = "Ann@example.com"
DIGEST = partial(address_digest, b"0123456789abcdef")


def erasures(database: Database, owner: str = "me", **given: Any) -> Erasures:
    return Erasures(database, DIGEST, owner, sleep=at_once, **given)


def erase(database: Database, email: str = ANN, *, folded: bool = False, **given: Any) -> Any:
    """The receipt's row."""

    async def scenario() -> Any:
        mine = erasures(database, **given)
        erasure_id = await mine.start(email, folded=folded, keep_suppression=False)
        return await mine.wait(erasure_id, 30)

    return asyncio.run(scenario())


def fill(database: Database) -> set[str]:
    """Traces of Ann in every place, and the ids of what is not hers."""
    store(database, 3, days=1, email=ANN, attempt=True, custom_id=ANN, reason=f"550 {ANN}")
    store(database, 2, days=200, email=ANN, state="pending")
    store(database, 1, days=1, webhook="jethook", email=None, type="jethook.x", raw=json.dumps({"error": ANN}))
    make_quarantined(database, body=b'{"email":"ann@EXAMPLE.com","n":1'.replace(b"ann", b"Ann"))
    make_quarantined(database, body=b'"\\u0041nn\\u0040example.com')
    make_quarantined(database, reason=f"cannot read {ANN}")
    insert(database, Replay, [_replay({"filter": {"email": [ANN], "type": ["open"]}})])
    insert(database, Send, [_send(ANN)])
    insert(database, SinkState, [{"name": "crm", "paused": True, "last_error": f"no {ANN}", "paused_reason": ANN}])
    others = store(database, 4, days=1, email="ann@example.com")
    others += store(database, 2, days=1, email="Ann@example.org", attempt=True)
    make_quarantined(database, body=b"Joann@example.com")
    return set(others)


def _replay(selection: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "019ded47-d100-7c4e-9a51-3f9c2b7d1e60", "sink": "crm", "selection": json.dumps(selection),
        "state": "done", "count": 0, "last_seq": 0, "created_at": NOW, "finished_at": NOW,
    }  # fmt: skip


def _send(*emails: str) -> dict[str, Any]:
    recipients = [{"email": email, "message_id": "1", "message_guid": "g"} for email in emails]
    result = {"status": "accepted", "recipients": recipients, "errors": []}
    return {
        "connection": "default", "key": "k", "fingerprint": "f", "owner": "o", "finished": True, "lease_until": NOW,
        "created_at": NOW, "messages": orjson.dumps([{"custom_id": "c", "tried_at": 1, "result": result}]).decode(),
    }  # fmt: skip


def test_of_a_kept_request_to_send_only_the_address_goes(database: Database) -> None:
    insert(database, Send, [_send(ANN, "bob@example.com", "ANN@example.com")])

    erase(database)

    with database.reading() as connection:
        (entry,) = json.loads(
            connection.execute(sa.select(sa.text("messages")).select_from(sa.text("sends"))).scalar_one()
        )
    assert [one["email"] for one in entry["result"]["recipients"]] == ["", "bob@example.com", "ANN@example.com"]
    assert entry["result"]["recipients"][0]["message_id"] == "1"


@pytest.mark.parametrize("email", ["\u00c9va@example.com", '"an Ann"@example.com', "50%_off@example.com"])
def test_of_a_kept_request_every_spelling_goes_and_what_mailjet_said_of_it(database: Database, email: str) -> None:
    row = _send(email)
    (entry,) = json.loads(row["messages"])
    entry["result"]["errors"] = [
        {"pointer": "/messages/0/to/0/email", "message": f"{name} is no address", "code": "mj-0013"}
        for name in (email, "bob@example.com")
    ]
    insert(database, Send, [row | {"messages": orjson.dumps([entry]).decode()}])

    receipt = erase(database, email)

    with database.reading() as connection:
        kept = connection.execute(sa.select(sa.text("messages")).select_from(sa.text("sends"))).scalar_one()
    assert json.loads(receipt.counts)["sends"] == 1
    assert email not in str(json.loads(kept))
    assert "bob@example.com is no address" in kept


def test_the_trace_of_an_erased_event_goes_with_it(database: Database) -> None:
    mine, other = store(database, 1, days=1, email=ANN) + store(database, 1, days=1, email="bob@example.com")
    insert(database, EventTrace, [{"event_id": id, "traceparent": "00-a-b-01"} for id in (mine, other)])

    erase(database)

    with database.reading() as connection:
        assert connection.execute(sa.select(EventTrace.__table__.c.event_id)).scalars().all() == [other]


def test_an_address_with_capitals_beyond_ascii_goes_from_kept_requests_too(database: Database) -> None:
    insert(database, Send, [_send("Élise@ÉCOLE.example", "bob@example.com")])

    receipt = erase(database, "Élise@école.example")

    with database.reading() as connection:
        (entry,) = json.loads(connection.execute(sa.text("SELECT messages FROM sends")).scalar_one())
    assert [one["email"] for one in entry["result"]["recipients"]] == ["", "bob@example.com"]
    assert json.loads(receipt.counts)["sends"] == 1


def test_of_a_refused_message_the_sentence_goes_that_names_the_address(database: Database) -> None:
    kept = _send("bob@example.com")
    (entry,) = json.loads(kept["messages"])
    told = [{"pointer": "/messages/0/to/0", "code": "send-0010", "message": f'"{name}" is refused'}
            for name in (ANN, "Joann@example.com")]  # fmt: skip
    entry["result"] = {"status": "refused", "recipients": [], "errors": told}
    insert(database, Send, [kept | {"messages": json.dumps([entry])}])

    receipt = erase(database)

    with database.reading() as connection:
        (entry,) = json.loads(connection.execute(sa.text("SELECT messages FROM sends")).scalar_one())
    assert [fault["message"] for fault in entry["result"]["errors"]] == ["(erased)", '"Joann@example.com" is refused']
    assert json.loads(receipt.counts)["sends"] == 1


def traces(database: Database, email: str = ANN) -> list[tuple[str, str, str]]:
    return [place for place in every_text(database) if email in place[2] or "\\u0041nn" in place[2]]


def test_every_trace_of_a_person_goes_and_nobody_elses(database: Database) -> None:
    others = fill(database)
    assert len({(table, column) for table, column, _ in traces(database)}) >= 12

    receipt = erase(database)

    assert traces(database) == []
    assert stored_ids(database) == others
    assert (count(database, Quarantined), count(database, Attempt)) == (1, 2)
    assert json.loads(receipt.counts) == {
        "events": 6, "deliveries": 6, "attempts": 3, "deliveries_cancelled": 2, "quarantine": 3, "replays": 1,
        "sinks": 1, "sends": 1, "suppressions": 0, "suppression_acts": 0, "address_spellings": 0,
    }  # fmt: skip
    assert (receipt.state, receipt.addresses) == ("done", None)
    assert receipt.erased_at is not None


def test_another_spelling_is_another_person_unless_asked_otherwise(database: Database) -> None:
    store(database, 1, days=1, email="ann@example.com")
    store(database, 2, days=1, email="ANN@example.com")
    database.write(lambda c: note_spellings(c, ["ANN@example.com"]))

    assert json.loads(erase(database, "Ann@EXAMPLE.com").counts).get("events", 0) == 0
    assert json.loads(erase(database, "Ann@EXAMPLE.com", folded=True).counts)["events"] == 3
    assert stored_ids(database) == set()


def test_a_crash_in_the_middle_is_gone_on_with_after_a_restart(database: Database) -> None:
    mine = store(database, 250, days=1, email=ANN)
    make_quarantined(database, body=ANN.encode())
    calls: list[int] = []

    def failing(connection: sa.Connection, person: Forgotten) -> dict[str, int]:
        calls.append(len(person.event_ids))
        if len(calls) == 2:
            raise RuntimeError
        return {}

    broken = erase(database, forget=failing)
    assert broken.state == "running"
    assert 0 < len(stored_ids(database)) < len(mine)

    async def restart() -> None:
        stop = asyncio.Event()
        later = erasures(database, owner="me")
        running = asyncio.create_task(later.run(stop))
        async with asyncio.timeout(20):
            while (await later.wait(broken.id, 0.05)).state != "done":
                pass
        stop.set()
        await running

    asyncio.run(restart())
    with database.reading() as connection:
        (row,) = connection.execute(sa.select(Erasure.__table__)).all()  # type: ignore[attr-defined]
    assert json.loads(row.counts)["events"] == 250
    assert traces(database) == []


def test_events_that_come_in_meanwhile_go_too_and_later_ones_are_new(database: Database) -> None:
    store(database, 120, days=1, email=ANN)
    more = iter(range(2))

    async def sleep(_: float) -> None:
        if next(more, None) is not None:
            await asyncio.to_thread(store, database, 5, days=2, email=ANN, state="pending")

    async def scenario() -> Any:
        mine = Erasures(database, DIGEST, "me", sleep=sleep)
        return await mine.wait(await mine.start(ANN, folded=False, keep_suppression=False), 30)

    receipt = asyncio.run(scenario())

    assert json.loads(receipt.counts)["events"] == 130
    assert stored_ids(database) == set()
    late = store(database, 1, days=1, email=ANN)
    assert stored_ids(database) == set(late)


def test_what_is_being_sent_does_not_bring_rows_back(database: Database) -> None:
    (event_id,) = store(database, 1, days=1, email=ANN, state="pending")
    attempt = (event_id, "crm", 1, 1, 500, "http_5xx", None, 1.0, f"unknown {ANN}", False)
    failed = Completion(event_id, "crm", "token", DeliveryState.PENDING, 1, 1, 1, 5, None, 500, "x", None, attempt)
    succeeded = failed._replace(state=DeliveryState.DELIVERED, attempt_count=1)

    erase(database)
    database.write(lambda c: queue.record_completions(c, [failed, succeeded]))

    assert traces(database) == []
    assert (count(database, Attempt), count(database, Delivery)) == (0, 0)


def test_a_replay_does_not_take_up_what_was_erased_since_it_looked(database: Database) -> None:
    (event_id,) = store(database, 1, days=1, email=ANN, state=None)
    insert(database, Replay, [_replay({"filter": {}}) | {"state": "running", "finished_at": None}])
    with database.reading() as connection:
        replay = replay_queries.get(connection, _replay({})["id"])

    erase(database)
    part = Slice([Taken(event_id, "orders", "open", ANN)], event_id, at_end=True)
    database.write(lambda c: replay_queries.take_up(c, replay, part, [1], NOW, only_dead=False))

    assert traces(database) == []


def test_other_parts_are_called_in_the_transactions_of_the_erasure(database: Database) -> None:
    mine = store(database, 30, days=1, email=ANN)
    seen: list[Forgotten] = []

    def note(connection: sa.Connection, person: Forgotten) -> dict[str, int]:
        there = connection.execute(sa.select(sa.func.count()).select_from(Event.__table__)).scalar_one()  # type: ignore[attr-defined]
        assert there == len(mine) - sum(len(before.event_ids) for before in seen)
        seen.append(person)
        return {"rollups": 1}

    receipt = erase(database, forget=note)

    assert {event_id for person in seen for event_id in person.event_ids} == set(mine)
    assert [person.is_last for person in seen] == [False] * (len(seen) - 1) + [True]
    assert json.loads(receipt.counts)["rollups"] == len(seen)
    assert {(person.email, person.email_hash) for person in seen} == {(ANN, receipt.email_hash)}


def test_the_bytes_of_a_sqlite_file_hold_nothing_of_the_erased(tmp_path: Path, migrated_sqlite: Path) -> None:
    path = tmp_path / "test.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    database = Database(f"sqlite:///{path}")
    for n in range(10):  # by and by, among others: pages are split, and cells copied about
        store(database, 40, days=n, email=ANN, attempt=True)
        store(database, 60, days=n, email=f"p{n}@example.com")
    make_quarantined(database, body=b"x " * 4500 + ANN.encode())
    assert ANN.encode() in _bytes(tmp_path)

    erase(database)

    assert ANN.encode() not in _bytes(tmp_path)
    assert b"p3@example.com" in _bytes(tmp_path)
    database.close()


def _bytes(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.glob("test.db*"))


# --- over REST -------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(database: Database):
    with asking(routes.build_router(erasures(database), database, KEYS)) as opened:
        yield opened


def test_the_receipt_is_the_answer_and_is_kept(client, database: Database) -> None:
    store(database, 2, days=1, email=ANN, state="pending")

    answer = client.delete("/v1/recipients/Ann%40EXAMPLE.com")

    assert answer.status_code == 200
    receipt = answer.json()
    assert "example" not in answer.text.lower()
    assert receipt["counts"]["events"] == receipt["counts"]["deliveries_cancelled"] == 2
    assert client.get(answer.headers["location"]).json() == receipt
    assert client.delete("/v1/recipients/nobody@example.com").json()["counts"]["events"] == 0
    listed = client.get("/v1/erasures", params={"limit": 1}).json()
    assert (len(listed["data"]), listed["has_more"]) == (1, True)
    rest = client.get("/v1/erasures", params={"limit": 1, "cursor": listed["next_cursor"]}).json()
    assert rest["data"] == [receipt]


def test_an_address_with_a_slash_or_a_line_break_is_erased_like_others(client, database: Database) -> None:
    store(database, 2, days=1, email="who/ever@example.com")
    store(database, 1, days=1, email="a\n\tb@x.org")

    assert client.delete("/v1/recipients/who%2Fever@example.com").json()["counts"]["events"] == 2
    assert client.delete("/v1/recipients/a%0A%09b@X.org").json()["counts"]["events"] == 1
    assert client.delete("/v1/recipients/").status_code == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/recipients/%20", 422), ("/v1/recipients/a%00@x.org", 422), (f"/v1/recipients/{'a' * 500}@x.org", 422),
        ("/v1/recipients/a@x.org?fold=true", 422), ("/v1/recipients/a@x.org?folded=perhaps", 422),
    ],
)  # fmt: skip
def test_what_is_no_address_or_parameter_is_refused(client, path: str, status: int) -> None:
    assert client.delete(path).status_code == status


def test_a_receipt_that_is_not_there_is_a_404(client) -> None:
    for name in ("x", "019ded47-d100-7c4e-9a51-3f9c2b7d1e60"):
        answer = client.get(f"/v1/erasures/{name}")
        assert (answer.status_code, answer.json()["code"]) == (404, "erasure_not_found")
