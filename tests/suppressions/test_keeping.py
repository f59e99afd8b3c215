"""Kept up by ingest, in any order, by many at once: what the table holds is what a fold over all events says."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.clock import from_micros
from app.db import Database
from app.dispatch.service import NoWorker
from app.ingest.writer import Post, PostWriter
from app.models import SuppressionReason as Reason
from app.models import SuppressionScope as Scope
from app.suppressions import queries, service
from app.suppressions.keeping import Keeper
from app.suppressions.policy import Policy
from app.suppressions.rebuild import rebuild
from tests.suppressions.streams import DAY, EMAILS, KINDS, START, payload, row_of, rows
from tests.suppressions.support import in_force

POLICY = Policy(soft_bounces=3, soft_bounce_days=2)
HARD = {"event": "bounce", "hard_bounce": True, "error": "user unknown"}
SOFT = {"event": "bounce", "hard_bounce": False, "error": "quota exceeded"}
Row = tuple[Any, ...]


def digest(email: str) -> str:
    return f"digest of {email}"


def store(database: Database, *groups: Iterable[Row], policy: Policy = POLICY) -> None:
    """Each group as one transaction of ingest."""
    writer = PostWriter(NoWorker(), keeper=Keeper(policy))
    for group in groups:
        post = Post(events={row[0]: row for row in group})
        database.write(lambda connection, post=post: writer.execute(connection, [post]))


def after_rebuild(database: Database, policy: Policy = POLICY) -> list[dict[str, Any]]:
    rebuild(database, Keeper(policy))
    return in_force(database)


def from_nothing(database: Database, policy: Policy = POLICY) -> list[dict[str, Any]]:
    """What events and acts alone say."""
    database.write(lambda connection: connection.execute(sa.delete(queries.suppressions)))
    return after_rebuild(database, policy)


def empty(database: Database) -> None:
    def delete(connection: sa.Connection) -> None:
        for table in (queries.events, queries.acts, queries.suppressions, queries.spellings):
            connection.execute(sa.delete(table))

    database.write(delete)


def lift(database: Database, email: str, at: datetime, **narrowed: Any) -> service.Entries:
    keeper = Keeper(POLICY)
    return database.write(
        lambda c: service.lift(c, keeper, email=email, digest=digest, comment="by hand", now=at, **narrowed)
    )


def add(database: Database, email: str, at: datetime, list_id: str | None = None) -> bool:
    keeper = Keeper(POLICY)
    return database.write(lambda c: service.add(c, keeper, email=email, list_id=list_id, comment="by hand", now=at))[2]


acts = st.tuples(
    st.sampled_from(["add", "lift"]),
    st.sampled_from(["a@example.com", "B@example.com"]),
    st.integers(0, 60).map(lambda n: from_micros((START + n * DAY // 8) * 10**6)),
    st.sampled_from([None, "17"]),
)
steps = st.lists(st.one_of(st.lists(rows, min_size=1, max_size=6), acts), max_size=12)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=steps, seed=st.integers(0, 999))
def test_the_table_is_what_all_events_and_acts_say_in_whatever_order_they_came(database: Database, steps, seed):
    empty(database)
    for step in steps:
        if isinstance(step, list):
            store(database, step, step[:2])
        elif step[0] == "add":
            add(database, step[1], step[2], step[3])
        else:
            lift(database, step[1], step[2], scope=Scope.LIST if step[3] else None, list_id=step[3])
    kept = in_force(database)

    assert after_rebuild(database) == kept
    assert from_nothing(database) == kept

    if not any(isinstance(step, tuple) for step in steps):
        every = [row for step in steps for row in step]
        random.Random(seed).shuffle(every)
        empty(database)
        store(database, *([row] for row in every))
        assert in_force(database) == kept


def test_the_earliest_cause_is_shown_whichever_came_first(database: Database):
    early, late = (row_of(payload(HARD, EMAILS[0], START + n)) for n in (0, 5))
    store(database, [late])
    assert [row["event_id"] for row in in_force(database)] == [late[0]]

    store(database, [early], [late])

    (row,) = in_force(database)
    assert (row["event_id"], row["since"]) == (early[0], from_micros(START * 10**6))
    assert (row["email"], row["email_domain"], row["scope"]) == ("a@example.com", "example.com", "address")


def test_a_lift_ends_it_also_for_what_is_told_late_and_a_later_event_suppresses_again(database: Database):
    store(database, [row_of(payload(HARD, EMAILS[0], START + 10))])
    at = from_micros((START + 60) * 10**6)

    assert len(lift(database, EMAILS[0], at)) == 1
    assert lift(database, EMAILS[0], at) == {}
    store(database, [row_of(payload(HARD, EMAILS[0], START + 60, 2))])
    assert in_force(database) == []

    later = row_of(payload(HARD, EMAILS[0], START + 61, 3))
    store(database, [later])
    assert [row["event_id"] for row in in_force(database)] == [later[0]]


def test_a_lift_also_ends_what_an_event_of_the_future_began(database: Database):
    store(database, [row_of(payload(HARD, EMAILS[0], START + n)) for n in (1000, 2000)])

    lift(database, EMAILS[0], from_micros(START * 10**6))

    assert in_force(database) == []
    assert add(database, EMAILS[0], from_micros((START + 1) * 10**6))
    assert [row["reason"] for row in after_rebuild(database)] == ["manual"]


def test_what_retention_has_deleted_suppresses_on(database: Database):
    store(database, [row_of(payload(kind, EMAILS[0], START + n)) for n, kind in enumerate(KINDS)])
    store(database, [row_of(payload(SOFT, EMAILS[1], START + n, n)) for n in range(3)])
    kept = in_force(database)
    assert {row["reason"] for row in kept} == {"complaint", "unsubscribe", "hard_bounce", "blocked", "soft_bounces"}
    database.write(lambda connection: connection.execute(sa.delete(queries.events)))

    assert after_rebuild(database) == kept
    store(database, [row_of(payload(HARD, EMAILS[0], START + DAY))])
    assert after_rebuild(database) == kept

    lift(database, EMAILS[0], from_micros((START + DAY) * 10**6))
    assert {row["email"] for row in after_rebuild(database)} == {EMAILS[1]}


def redact(database: Database) -> None:
    """As retention takes what is personal, and leaves the events."""
    blank = sa.update(queries.events).values(email=None, raw=None)
    database.write(lambda connection: connection.execute(blank))


def test_what_retention_has_redacted_suppresses_on(database: Database):
    store(database, [row_of(payload(kind, EMAILS[0], START + n)) for n, kind in enumerate(KINDS)])
    store(database, [row_of(payload(SOFT, EMAILS[1], START + n, n)) for n in range(3)])
    kept = in_force(database)
    redact(database)

    assert after_rebuild(database) == kept
    add(database, EMAILS[0], from_micros(START * 10**6), "77")
    lift(database, EMAILS[0], from_micros(START * 10**6), reason=Reason.MANUAL)
    assert in_force(database) == kept


def test_what_people_do_ends_nothing_else_though_some_of_its_causes_are_gone(database: Database):
    causes = [row_of(payload(SOFT, EMAILS[1], START + n, n)) for n in range(3)]
    store(database, causes)
    kept = in_force(database)
    database.write(lambda c: c.execute(sa.delete(queries.events).where(queries.events.c.id == causes[0][0])))

    add(database, EMAILS[1], from_micros(START * 10**6), "77")
    lift(database, EMAILS[1], from_micros(START * 10**6), reason=Reason.MANUAL)

    assert [row["reason"] for row in kept] == ["soft_bounces"]
    assert in_force(database) == kept


def test_a_rebuild_follows_the_settings(database: Database):
    store(database, [row_of(payload(kind, EMAILS[0], START + n)) for n, kind in enumerate(KINDS)], policy=Policy())

    left = after_rebuild(database, Policy(hard_bounces=False, unsubscribes=False))
    assert {row["reason"] for row in left} == {"complaint"}
    back = after_rebuild(database, Policy(soft_bounces=2))
    assert {row["reason"] for row in back} == {"complaint", "unsubscribe", "hard_bounce", "blocked", "soft_bounces"}


def test_operator_events_say_nothing_about_anybody(database: Database):
    stored = row_of(payload({"event": "spam"}, EMAILS[0], START), webhook="jethook")
    database.write(lambda c: queries.insert_missing(c, queries.events, queries_columns(), [stored]))

    assert after_rebuild(database) == []


def queries_columns() -> Sequence[str]:
    from app.views import EVENT_COLUMNS

    return EVENT_COLUMNS


def test_addresses_with_capitals_are_found_by_their_small_letters(database: Database):
    store(database, [row_of(payload(KINDS[0], email, START)) for email in ("Ann@x.org", "ANN@x.org", "bob@x.org")])

    def known() -> list[tuple[str, str]]:
        with database.reading() as connection:
            return sorted((r.folded, r.email) for r in connection.execute(sa.select(queries.spellings)))

    assert known() == [("ann@x.org", "ANN@x.org"), ("ann@x.org", "Ann@x.org")]
    database.write(lambda c: c.execute(sa.delete(queries.events).where(queries.events.c.email == "ANN@x.org")))
    after_rebuild(database)
    assert known() == [("ann@x.org", "Ann@x.org")]


def test_an_address_with_capitals_that_a_person_suppressed_is_found_by_its_small_letters(database: Database):
    add(database, "Ann@x.org", from_micros(START * 10**6))
    store(database, [row_of(payload(HARD, "ANN@x.org", START))])
    redact(database)
    after_rebuild(database)

    with database.reading() as connection:
        known = connection.execute(sa.select(queries.spellings.c.email)).scalars().all()
    assert sorted(known) == ["ANN@x.org", "Ann@x.org"]


# --- people who were erased ------------------------------------------------------------------------------------------


def forget(database: Database, email: str, *, keep: bool) -> dict[str, int]:
    database.write(lambda c: c.execute(sa.delete(queries.events).where(queries.events.c.email == email)))
    return database.write(lambda c: queries.forget(c, email, digest=digest(email), keep=keep))


def everything(database: Database) -> str:
    with database.reading() as connection:
        tables = (queries.suppressions, queries.acts, queries.spellings)
        return str([connection.execute(sa.select(table)).all() for table in tables])


def test_who_is_erased_stays_suppressed_by_a_digest_alone(database: Database):
    store(database, [row_of(payload(kind, "Ann@x.org", START)) for kind in KINDS])
    add(database, "Ann@x.org", from_micros(START * 10**6))
    before = in_force(database)

    count = forget(database, "Ann@x.org", keep=True)

    assert count == {"suppressions": len(before), "suppression_acts": 1, "address_spellings": 1}
    assert "x.org" not in everything(database).replace(digest("Ann@x.org"), "")
    rows = in_force(database)
    assert sorted((r["reason"], r["list_id"] or "", r["since"]) for r in rows) == sorted(
        (r["reason"], r["list_id"] or "", r["since"]) for r in before
    )
    assert {r["email_hash"] for r in rows} == {digest("Ann@x.org")}
    assert {r["id"] for r in rows}.isdisjoint(r["id"] for r in before)  # an id made from an address tells it
    assert after_rebuild(database) == rows
    forget(database, "Ann@x.org", keep=True)
    assert in_force(database) == rows
    assert len(lift(database, "Ann@x.org", from_micros(START * 10**6), reason=Reason.COMPLAINT)) == 1
    forget(database, "Ann@x.org", keep=False)
    assert in_force(database) == []


def test_who_is_erased_whole_is_gone(database: Database):
    store(database, [row_of(payload(kind, "Ann@x.org", START)) for kind in KINDS])

    forget(database, "Ann@x.org", keep=False)

    assert everything(database) == "[[], [], []]"


# --- many at once ----------------------------------------------------------------------------------------------------


@pytest.fixture
def replicas(database: Database):
    """The same database, opened by another process."""
    other = Database(database.writer.url.render_as_string(hide_password=False))
    yield database, other
    other.close()


on_postgresql = pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)


@on_postgresql
@pytest.mark.parametrize("seed", range(3))
def test_replicas_that_store_the_same_mail_at_once_come_to_the_same(replicas, seed):
    randomly = random.Random(seed)
    every = [
        row_of(payload(kind, email, START + n * DAY // 4, n), webhook)
        for n in range(8) for kind in KINDS for email in EMAILS for webhook in ("orders", "archive")
    ]  # fmt: skip

    def post(database: Database) -> None:
        mine = random.Random(randomly.random())
        shuffled = mine.sample(every, len(every))
        store(database, *(shuffled[start : start + 7] for start in range(0, len(shuffled), 7)))

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(post, replicas[n % 2]) for n in range(4)]:
            done.result()

    database = replicas[0]
    kept = in_force(database)
    assert len(kept) == len(EMAILS) * 7
    assert from_nothing(database) == kept


@on_postgresql
def test_passing_bounces_stored_at_once_are_all_counted(replicas):
    """Each alone is too few; who commits last must see the others."""
    for turn in range(10):
        ready = threading.Barrier(3)

        def post(n: int, turn: int = turn, ready: threading.Barrier = ready) -> None:
            ready.wait()
            store(replicas[n % 2], [row_of(payload(SOFT, f"p{turn}@example.com", START + n, n + 1))])

        with ThreadPoolExecutor(3) as threads:
            list(threads.map(post, range(3)))
    assert len(in_force(replicas[0])) == 10


@on_postgresql
def test_a_lift_and_a_bounce_at_once_end_as_their_times_say(replicas):
    """Whichever commits first: what happened before the lift is cleared."""
    for turn in range(15):
        email = f"p{turn}@example.com"
        store(replicas[0], [row_of(payload(HARD, email, START))])
        ready = threading.Barrier(2)

        def post(email: str = email, ready: threading.Barrier = ready) -> None:
            ready.wait()
            store(replicas[0], [row_of(payload({"event": "spam"}, email, START + 1))])

        def end(email: str = email, ready: threading.Barrier = ready) -> None:
            ready.wait()
            lift(replicas[1], email, from_micros(START * 10**6) + timedelta(seconds=5))

        with ThreadPoolExecutor(2) as threads:
            for done in (threads.submit(post), threads.submit(end)):
                done.result()
    assert in_force(replicas[0]) == []
