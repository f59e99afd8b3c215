"""Suppressions and recipients over REST: ask, check, add, lift."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import APIRouter
from fastapi.testclient import TestClient

from app.db import Database
from app.operator_events import Change, Nobody
from app.query import recipient_routes, suppression_routes
from app.query.recipients import (
    copied_tally_statement,
    in_force_statements,
    latest_statement,
    recipient_conditions,
    tally_statement,
)
from app.query.suppression_lists import SuppressionQuery, suppression_page
from app.suppressions import queries
from app.suppressions.digest import address_digest
from app.suppressions.keeping import Keeper
from tests.query.conftest import Walk
from tests.rest import KEYS, asking_of
from tests.suppressions.streams import START, payload, row_of
from tests.suppressions.test_keeping import store

SENT, SPAM = {"event": "sent"}, {"event": "spam", "source": "JMRPP"}
HARD = {"event": "bounce", "hard_bounce": True, "error": "user unknown"}
LEFT_17 = {"event": "unsub", "mj_list_id": 17}
AT = "2026-04-24T03:06:40Z"  # START


def digest(email: str) -> str:
    return address_digest(b"a key of this installation", email)


class Listener(Nobody):
    def __init__(self) -> None:
        self.heard: list[Change] = []

    def store_all(self, connection: sa.Connection, changes: Any) -> None:
        self.heard += changes


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def client(database: Database, listener: Listener) -> Iterator[TestClient]:
    """In the place of the folder's own: also what `walk` asks."""
    with asking_of(routers, database, Keeper(herald=listener)) as opened:
        yield opened


def routers(database: Any, keeper: Any) -> tuple[APIRouter, ...]:
    return (
        suppression_routes.build_router(database, KEYS, keeper, digest, lambda: None),
        recipient_routes.build_router(database, KEYS, digest),
    )


def ask(client: TestClient, path: str, **params: Any) -> Any:
    response = client.get(path, params=params)
    assert response.status_code == 200, response.text
    return response.json()


def tell(client: TestClient, path: str, status: int = 200, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


# --- recipients ------------------------------------------------------------------------------------------------------


def test_a_recipient_is_what_happened_to_the_address_and_what_suppresses_it(client, database):
    bounce = row_of(payload(HARD, "a@example.com", START + 60))
    left = row_of(payload(LEFT_17, "a@example.com", START + 30))
    store(database, [row_of(payload(SENT, "a@example.com", START)), left, bounce])
    store(database, [row_of(payload(SPAM, "b@example.com", START))])

    told = ask(client, "/v1/recipients/a@EXAMPLE.com")

    assert [event["id"] for event in told["events"]] == [
        bounce[0],
        left[0],
        row_of(payload(SENT, "a@example.com", START))[0],
    ]
    assert told | {"events": [], "suppressions": []} == {
        "email": "a@example.com", "known": True, "spellings": ["a@example.com"],
        "counts": {"bounce": 1, "sent": 1, "unsub": 1}, "first_event_at": AT, "last_event_at": "2026-04-24T03:07:40Z",
        "suppressed": True, "suppressions": [], "history": [], "events": [],
    }  # fmt: skip
    assert [(s["reason"], s["scope"], s["list_id"], s["event_id"], s["since"]) for s in told["suppressions"]] == [
        ("unsubscribe", "list", "17", left[0], "2026-04-24T03:07:10Z"),
        ("hard_bounce", "address", None, bounce[0], "2026-04-24T03:07:40Z"),
    ]


def test_an_address_never_seen_is_an_answer(client):
    told = ask(client, "/v1/recipients/who/ever+x@example.com")

    assert (told["email"], told["known"], told["suppressed"]) == ("who/ever+x@example.com", False, False)
    assert told["counts"] == {}
    assert told["events"] == told["suppressions"] == []
    assert told["first_event_at"] is told["last_event_at"] is None


def test_leaving_a_list_does_not_suppress_the_address(client, database):
    store(database, [row_of(payload(LEFT_17, "a@example.com", START))])

    told = ask(client, "/v1/recipients/a@example.com")

    assert told["suppressed"] is False
    assert [s["scope"] for s in told["suppressions"]] == ["list"]


def test_capitals_of_the_local_part_matter_unless_folded(client, database):
    store(database, [row_of(payload(SENT, email, START)) for email in ("Ann@x.org", "ann@x.org", "ANN@X.org")])
    store(database, [row_of(payload(SPAM, "ANN@x.org", START))])

    assert ask(client, "/v1/recipients/ann@x.org")["counts"] == {"sent": 1}
    assert ask(client, "/v1/recipients/aNN@x.org")["known"] is False
    folded = ask(client, "/v1/recipients/aNN@X.ORG", folded="true")
    assert folded["counts"] == {"sent": 3, "spam": 1}
    assert folded["spellings"] == ["ANN@x.org", "Ann@x.org", "aNN@x.org", "ann@x.org"]
    assert folded["suppressed"] is True
    assert [s["email"] for s in folded["suppressions"]] == ["ANN@x.org"]


def test_an_arrival_at_two_webhooks_counts_once_and_the_latest_fifty_are_shown(client, database):
    told = [payload(SENT, "a@example.com", START + n, n + 1) for n in range(60)]
    store(database, [row_of(one, webhook) for one in told for webhook in ("orders", "archive")])
    store(database, [row_of(payload(SPAM, "a@example.com", START), "jethook")])

    answer = ask(client, "/v1/recipients/a@example.com", include="raw")

    assert answer["counts"] == {"sent": 60}
    assert [event["raw"] for event in answer["events"]] == told[:9:-1]
    assert {event["webhook"] for event in answer["events"]} == {"archive"}


def test_who_was_erased_is_not_known_and_still_suppressed(client, database):
    store(database, [row_of(payload(SPAM, "a@example.com", START))])
    database.write(lambda c: c.execute(sa.delete(queries.events)))
    database.write(lambda c: queries.forget(c, "a@example.com", digest=digest("a@example.com"), keep=True))

    told = ask(client, "/v1/recipients/a@example.com")
    assert (told["known"], told["suppressed"], told["suppressions"][0]["email"]) == (False, True, None)
    (checked,) = tell(client, "/v1/suppressions/check", emails=["a@EXAMPLE.com"])["data"]
    assert (checked["suppressed"], checked["reason"]) == (True, "complaint")
    assert [row["email"] for row in ask(client, "/v1/suppressions")["data"]] == [None]
    lifted = tell(client, "/v1/suppressions/lift", email="a@example.com", comment="asked for it")
    assert len(lifted["lifted"]) == 1
    assert tell(client, "/v1/suppressions/check", emails=["a@example.com"])["data"][0]["suppressed"] is False


# --- check -----------------------------------------------------------------------------------------------------------


def test_check_answers_each_address_in_the_order_asked(client, database):
    store(database, [row_of(payload(HARD, "b@example.com", START)), row_of(payload(SPAM, "b@example.com", START))])
    emails = ["z@example.com", "b@EXAMPLE.com", "a@example.com", "b@example.com", "B@example.com"]

    data = tell(client, "/v1/suppressions/check", emails=emails)["data"]

    assert [(row["email"], row["suppressed"], row["reason"]) for row in data] == [
        ("z@example.com", False, None),
        ("b@example.com", True, "complaint"),
        ("a@example.com", False, None),
        ("b@example.com", True, "complaint"),
        ("B@example.com", False, None),
    ]
    assert [found["reason"] for found in data[1]["suppressions"]] == ["complaint", "hard_bounce"]


def test_an_unsubscribe_counts_for_its_list_alone_and_is_never_hidden(client, database):
    store(database, [row_of(payload(LEFT_17, "a@example.com", START))])

    def check(**body: Any) -> tuple[bool, str | None]:
        (row,) = tell(client, "/v1/suppressions/check", emails=["a@example.com"], **body)["data"]
        assert [(s["reason"], s["scope"], s["list_id"], s["since"]) for s in row["suppressions"]] == [
            ("unsubscribe", "list", "17", AT)
        ]
        return row["suppressed"], row["reason"]

    assert check() == check(list_id="18") == (False, None)
    assert check(list_id="17") == (True, "unsubscribe")


def test_a_thousand_addresses_are_checked_and_one_more_is_refused(client, database):
    emails = [f"p{n}@example.com" for n in range(1000)]
    store(database, [row_of(payload(SPAM, email, START)) for email in emails[::2]])

    data = tell(client, "/v1/suppressions/check", emails=emails)["data"]
    assert [row["suppressed"] for row in data] == [True, False] * 500
    assert tell(client, "/v1/suppressions/check", emails=[])["data"] == []
    tell(client, "/v1/suppressions/check", 422, emails=[*emails, "x@example.com"])


def test_an_arrival_of_another_connection_is_no_copy(client, database):
    told = payload(SENT, "a@example.com", START)
    mine, theirs = row_of(told, "orders"), row_of(payload(SENT, "a@example.com", START, 2), "theirs", "agency")
    store(database, [mine, row_of(told, "archive"), theirs])

    answer = ask(client, "/v1/recipients/a@example.com")

    assert answer["counts"] == {"sent": 2}
    assert {(event["webhook"], event["connection"]) for event in answer["events"]} == {
        ("archive", "default"), ("theirs", "agency"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "told",
    ["nobody", "@example.com", "a@", "a b@example.com", "a\t\x7fb@x.org", "a\n@x.org", "a@b@", "x" * 400 + "@x.org"],
)
def test_what_mailjet_tells_malformed_is_checked_and_lifted_as_it_was_told(client, database, told):
    store(database, [row_of(payload(HARD, told, START))])

    (checked,) = tell(client, "/v1/suppressions/check", emails=[told])["data"]
    assert (checked["email"], checked["suppressed"]) == (told, True)
    lifted = tell(client, "/v1/suppressions/lift", email=told, comment="a typing error")
    assert [row["reason"] for row in lifted["lifted"]] == ["hard_bounce"]
    assert tell(client, "/v1/suppressions/check", emails=[told])["data"][0]["suppressed"] is False
    tell(client, "/v1/suppressions", 422, email=told, comment="but nobody adds one")


@pytest.mark.parametrize("bad", ["", " ", "a\0@x.org", "x" * 500 + "@x.org"])
def test_what_is_no_address_is_refused_by_its_place(client, bad):
    fault = tell(client, "/v1/suppressions/check", 422, emails=["a@example.com", bad])

    assert fault["code"] == "validation_failed"
    assert [error["pointer"] for error in fault["errors"]] == ["/emails/1"]


# --- add and lift ----------------------------------------------------------------------------------------------------


def test_what_a_person_adds_and_lifts_is_in_force_and_remembered_and_told(client, listener):
    made = tell(client, "/v1/suppressions", 201, email="a@EXAMPLE.com", comment="asked by telephone")
    assert (made["email"], made["reason"], made["scope"]) == ("a@example.com", "manual", "address")
    assert tell(client, "/v1/suppressions", email="a@example.com", comment="again") == made
    for_list = tell(client, "/v1/suppressions", 201, email="a@example.com", comment="not this", list_id="17")
    assert (for_list["scope"], for_list["list_id"]) == ("list", "17")
    assert ask(client, "/v1/suppressions")["data"] == [for_list, made]

    ended = tell(client, "/v1/suppressions/lift", email="a@example.com", comment="all good", list_id="17")
    assert (ended["lifted"], ended["suppressions"]) == ([for_list], [made])
    ended = tell(client, "/v1/suppressions/lift", email="a@example.com", comment="all good")
    assert (ended["lifted"], ended["suppressions"]) == ([made], [])
    assert tell(client, "/v1/suppressions/lift", email="a@example.com", comment="again")["lifted"] == []

    history = ask(client, "/v1/recipients/a@example.com")["history"]
    assert [(act["act"], act["list_id"], act["comment"]) for act in history] == [
        ("lift", None, "all good"), ("lift", "17", "all good"), ("add", "17", "not this"),
        ("add", None, "asked by telephone"),
    ]  # fmt: skip
    assert [(c.type, c.details["list_id"], c.details["comment"]) for c in listener.heard] == [
        ("suppression.added", None, "asked by telephone"), ("suppression.added", "17", "not this"),
        ("suppression.removed", "17", "all good"), ("suppression.removed", None, "all good"),
    ]  # fmt: skip


def test_lifting_a_bounce_leaves_a_complaint(client, database):
    store(database, [row_of(payload(kind, "a@example.com", START)) for kind in (HARD, SPAM)])

    ended = tell(client, "/v1/suppressions/lift", email="a@example.com", comment="works again", reason="hard_bounce")

    assert [row["reason"] for row in ended["lifted"]] == ["hard_bounce"]
    assert [row["reason"] for row in ended["suppressions"]] == ["complaint"]


@pytest.mark.parametrize("path", ["/v1/suppressions", "/v1/suppressions/lift"])
@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"email": "nobody\0"}, "/email"),
        ({"comment": ""}, "/comment"),
        ({"comment": None}, "/comment"),
        ({"scope": "list"}, ""),
        ({"scope": "address", "list_id": "17"}, ""),
        ({"list_id": "x"}, "/list_id"),
        ({"list_id": "0"}, "/list_id"),
        ({"reason": "because"}, "/reason"),
        ({"more": 1}, "/more"),
    ],
)
def test_what_does_not_fit_is_refused(client, path, change, pointer):
    body = {"email": "a@example.com", "comment": "why"} | change

    fault = tell(client, path, 422, **body)

    assert [error["pointer"] for error in fault["errors"]] == [pointer]
    assert ask(client, "/v1/suppressions")["data"] == []


def test_a_reading_key_checks_and_changes_nothing(client):
    reading = {"authorization": "Bearer read"}
    body = {"email": "a@example.com", "comment": "why"}

    assert client.post("/v1/suppressions/check", json={"emails": []}, headers=reading).status_code == 200
    assert client.get("/v1/recipients/a@example.com", headers=reading).status_code == 200
    for path in ("/v1/suppressions", "/v1/suppressions/lift"):
        assert client.post(path, json=body, headers=reading).status_code == 403
        assert client.post(path, json=body, headers={"authorization": ""}).status_code == 401


# --- the list --------------------------------------------------------------------------------------------------------


def test_the_list_is_walked_and_filtered(client, database, walk: Walk):
    kinds = [HARD, SPAM, LEFT_17, {"event": "unsub", "mj_list_id": 18}]
    store(database, [row_of(payload(kinds[n % 4], f"p{n % 5}@x{n % 3}.org", START + n // 2)) for n in range(120)])

    every = walk("/v1/suppressions", limit=7)
    assert len({row["id"] for row in every}) == len(every) == 20 * 3
    assert [row["since"] for row in every] == sorted((row["since"] for row in every), reverse=True)
    assert walk("/v1/suppressions", limit=7, order="asc") == every[::-1]

    def holds(row: dict[str, Any], name: str, value: str) -> bool:
        return row["email"].endswith(f"@{value}") if name == "email_domain" else row[name] == value

    for asked in (
        {"reason": "complaint"}, {"scope": "list"}, {"list_id": "17"}, {"email": "p1@x2.org"},
        {"email_domain": "x1.org"}, {"email_domain": "x1.org", "reason": "hard_bounce"},
    ):  # fmt: skip
        expected = [row for row in every if all(holds(row, name, value) for name, value in asked.items())]
        assert walk("/v1/suppressions", limit=3, **asked) == expected
        assert expected
    two = walk("/v1/suppressions", limit=3, reason=["complaint", "hard_bounce"])
    assert two == [row for row in every if row["reason"] in ("complaint", "hard_bounce")]
    middle = every[30]["since"]
    assert walk("/v1/suppressions", after=middle) == [row for row in every if row["since"] >= middle]
    assert walk("/v1/suppressions", before=middle) == [row for row in every if row["since"] < middle]


def test_a_cursor_belongs_to_its_filters_and_unknown_parameters_are_refused(client, database):
    store(database, [row_of(payload(SPAM, f"p{n}@example.com", START)) for n in range(3)])
    cursor = ask(client, "/v1/suppressions", limit=1)["next_cursor"]

    assert (
        client.get("/v1/suppressions", params={"cursor": cursor, "reason": "complaint"}).json()["code"] == "bad_cursor"
    )
    for path in ("/v1/suppressions", "/v1/recipients/a@example.com"):
        assert client.get(path, params={"reasons": "complaint"}).status_code == 422


PLANS = [
    ({}, "ix_suppressions_since"),
    ({"email": ["p1@example.com"]}, "ix_suppressions_email"),
    ({"email": ["p1@example.com", "p2@example.com"]}, "ix_suppressions_email"),
    ({"email_domain": ["d3.org"]}, "ix_suppressions_email_domain"),
    ({"list_id": ["3"]}, "ix_suppressions_list_id"),
    ({"reason": ["manual"]}, "ix_suppressions_reason"),
    ({"reason": ["manual", "complaint"]}, "ix_suppressions_since"),
    ({"scope": ["list"]}, "ix_suppressions_scope"),
    ({"email": ["p1@example.com"], "reason": ["manual"]}, "ix_suppressions_email"),
]


def test_every_question_has_an_index(database: Database):
    rows = [
        (f"00000000-0000-8000-8000-{n:012d}", f"p{n}@d{n % 50}.org", f"d{n % 50}.org",
         ("manual", "complaint")[n % 40 > 0], ("list", "address")[n % 20 > 0],
         str(n % 400 // 20) if n % 20 == 0 else None, n * 1000)
        for n in range(4000)
    ]  # fmt: skip
    columns = ("id", "email", "email_domain", "reason", "scope", "list_id", "since")
    database.write(lambda c: queries.insert_missing(c, queries.suppressions, columns, rows))
    if not database.is_sqlite:
        database.write(lambda c: c.execute(sa.text("ANALYZE suppressions")))

    for asked, index in PLANS:
        for position in (None, (3_000_000, "x")):
            plan = explain(database, suppression_page(SuppressionQuery.model_validate(asked), position))
            assert index in plan, (asked, plan)
            assert "Seq Scan" not in plan
    for statement, index in zip(
        in_force_statements(["p1@d1.org"], ["x"]), ("ix_suppressions_email", "ix_suppressions_email_hash"), strict=True
    ):
        assert index in explain(database, statement)


def explain(database: Database, statement: sa.Select[Any]) -> str:
    with database.reading() as connection:
        sql = str(statement.compile(connection, compile_kwargs={"literal_binds": True}))
        prefix = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
        return "\n".join(str(row[-1]) for row in connection.exec_driver_sql(prefix + sql.replace("%", "%%")))


def test_an_address_is_counted_from_its_index_alone_and_its_latest_events_are_found_there(database: Database):
    store(database, *([row_of(payload(SENT, f"p{n % 7}@x.org", START + n, n + 1)) for n in range(k, k + 500)]
                      for k in range(0, 3000, 500)))  # fmt: skip
    if not database.is_sqlite:
        with database.writer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("VACUUM ANALYZE events"))

    for emails in (["p1@x.org"], ["p1@x.org", "P1@x.org"]):
        conditions = recipient_conditions(emails)
        latest = explain(database, latest_statement(conditions, 50))
        assert "ix_events_email" in latest
        shared = {"orders": "default", "archive": "default"}
        for statement in (tally_statement(conditions), copied_tally_statement(conditions, shared)):
            counting = explain(database, statement)
            assert "ix_events_email" in counting
            assert ("COVERING INDEX" if database.is_sqlite else "Index Only Scan") in counting
