"""Watching contacts: every change exactly once, over restarts and with two replicas."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import orjson
import pytest
import sqlalchemy as sa

from app.connector.doors import Doors
from app.connector.watches import LeaseLost, Watch
from app.connector.watching import event_type_of, sighting_of
from app.db import Database
from app.dispatch.matching import Matcher
from app.mailjet.errors import MailjetServerFault
from app.models import Delivery, Event
from app.settings import SinkSettings, WatchSettings, load_settings
from tests.connector.conftest import AT_ONCE, BOTH, settings_for

SINKS = {"crm": SinkSettings(url="http://crm.invalid"), "opens": SinkSettings(url="http://x.invalid", events=("open",))}


class Bench:
    """A Mailjet with contacts, and replicas that watch them; a look is one round of one replica."""

    def __init__(self, server, database: Database, account, **watch) -> None:
        self.server, self.database, self.account = server, database, account
        self.watch = WatchSettings(**({"contacts": "both", "connection": "shop"} | watch))
        self.now = datetime(2026, 5, 3, 12, tzinfo=UTC)
        account.now = lambda: self.now

    def look(self, owner: str = "a", page: int = 50) -> int:
        """By a process that has just started."""

        async def main() -> int:
            doors = Doors(settings_for(self.server.url).connections, retry=AT_ONCE)
            watch = Watch("people", self.watch, doors=doors, database=self.database, matcher=Matcher(SINKS),
                          owner=owner, now=lambda: self.now, page=page)  # fmt: skip
            try:
                return await watch.look()
            finally:
                await doors.aclose()

        return asyncio.run(main())

    def pass_time(self, seconds: float = 60) -> None:
        self.now += timedelta(seconds=seconds)

    def told(self) -> Counter:
        """(type, contact, name) of each event, and how often."""
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(Event.__table__)).all()
        assert {(row.webhook, row.connection, row.outcome) for row in rows} <= {("people", "shop", "unknown")}
        return Counter((row.type, row.contact_id, orjson.loads(row.raw)["Name"]) for row in rows)


@pytest.fixture
def bench(server, database, account):
    return lambda **watch: Bench(server, database, account, **watch)


@BOTH
@pytest.mark.parametrize("contacts", ["created", "updated", "both"])
def test_a_first_look_begins_now_and_the_next_tells_what_is_new(bench, account, contacts):
    bench = bench(contacts=contacts)
    old = [account.add_contact(f"{n}@example.com") for n in range(120)]
    assert bench.look() == 0

    same_second = account.add_contact("new@example.com", Name="N")  # as the newest of those that were there
    bench.pass_time()
    later = account.add_contact("later@example.com", Name="L")
    account.change_contact(old[3], Name="changed")
    bench.look("b")
    bench.pass_time()
    bench.look("c")

    created = {("contact_created", str(same_second["ID"]), "N"), ("contact_created", str(later["ID"]), "L")}
    updated = {("contact_updated", str(old[3]["ID"]), "changed")}
    expected = {"created": created, "updated": updated, "both": created | updated}[contacts]
    assert bench.told() == Counter(dict.fromkeys(expected, 1))


@BOTH
def test_an_event_of_a_contact_is_like_mailjets_own_and_owed_to_the_sinks_that_want_it(bench, account, database):
    bench = bench(**{"from": "beginning"}, contact_list_id="77", contacts="created")
    contact = account.add_contact("A@Example.com", Name="A", ID=2**60)
    account.members[77, contact["ID"]] = {"IsUnsubscribed": False}
    account.add_contact("other@example.com")

    assert bench.look() == 1

    with database.reading() as connection:
        event = connection.execute(sa.select(Event.__table__)).one()
        owed = connection.execute(sa.select(Delivery.__table__)).all()
    assert (event.type, event.email, event.contact_id, event.list_id, event.occurred_at, event.test) == (
        "contact_created", "A@example.com", str(2**60), "77", bench.now, False)  # fmt: skip
    assert orjson.loads(event.raw)["CreatedAt"] == "2026-05-03T12:00:00Z"
    assert [(row.sink, row.type, row.state) for row in owed] == [("crm", "contact_created", "pending")]


@pytest.mark.parametrize("contacts", ["created", "both"])
def test_a_limit_spreads_a_beginning_over_looks_and_loses_none(bench, account, contacts):
    bench = bench(contacts=contacts, limit=70, **{"from": "beginning"})
    made = []
    for n in range(300):
        made.append(account.add_contact(f"{n}@example.com"))
        bench.pass_time(n % 2)

    counts = []
    for n in range(6):
        counts.append(bench.look(f"replica{n}"))
        made.append(account.add_contact(f"late{n}@example.com"))
        bench.pass_time()
    bench.look()
    bench.pass_time()
    bench.look()

    assert counts[:4] == [70] * 4
    assert bench.told() == Counter({("contact_created", str(row["ID"]), ""): 1 for row in made})


@BOTH
def test_changes_under_way_restarts_and_two_replicas_lose_and_repeat_nothing(bench, account, mailjet):
    """Contacts change between and during looks; processes die in the middle; each state that stays is told once."""
    bench, chance = bench(), random.Random(7)
    people = [account.add_contact(f"{n}@example.com") for n in range(400)]
    bench.look(page=40)
    expected: Counter = Counter()

    def change(request) -> None:
        if request.method == "GET" and chance.random() < 0.3:
            victim = people.pop(chance.randrange(len(people)))  # each once: a state that a look sees is a change
            account.change_contact(victim, Name=f"n{len(expected)}")
            expected["contact_updated", str(victim["ID"]), victim["Name"]] += 1
            made = account.add_contact(f"new{len(expected)}@example.com", Name="new")
            expected["contact_created", str(made["ID"]), "new"] += 1

    mailjet.on_request = change
    for _ in range(12):
        bench.pass_time(chance.choice([0, 1, 30]))
        if chance.random() < 0.4:
            mailjet.fail_next(9, 500)  # the rest of this look fails
        for owner in ("a", "b"):
            with contextlib.suppress(LeaseLost, MailjetServerFault):
                bench.look(owner, page=40)
        mailjet._faults.clear()
    mailjet.on_request = None
    bench.pass_time()
    bench.look(page=40)

    assert len(expected) > 50
    assert bench.told() == expected


def test_another_scope_begins_anew_and_nothing_old_is_told(bench, account, server, database):
    account.add_contact("a@example.com")
    assert bench().look() == 0
    account.add_contact("b@example.com", IsExcludedFromCampaigns=True)
    other = bench(is_excluded=True)
    other.pass_time()

    assert other.look() == 0


@pytest.mark.parametrize(
    ("known", "since", "created", "kind", "told"),
    [(None, None, "2026-05-03T10:00:00Z", "both", "contact_created"), (None, None, "", "created", "contact_created"),
     (None, 1777802400, "2026-05-03T10:00:00Z", "both", "contact_created"),
     (None, 1777802401, "2026-05-03T10:00:00Z", "both", None), (None, None, "", "updated", None),
     ("old", None, "", "both", "contact_updated"), ("old", None, "", "created", None)],
)  # fmt: skip
def test_what_a_contact_is_news_of(known, since, created, kind, told):
    sighting = sighting_of({"ID": "7", "CreatedAt": created})

    assert event_type_of(sighting, known, since, kind) == told
    assert event_type_of(sighting, sighting.signature, since, kind) is None


def test_the_settings_of_a_watch():
    settings = load_settings(
        {"JETHOOK_WATCHES__PEOPLE__CONTACTS": "both", "JETHOOK_WATCHES__PEOPLE__FROM": "beginning",
         "JETHOOK_SINKS__CRM__URL": "http://crm.invalid", "JETHOOK_SINKS__CRM__WEBHOOKS": "people",
         "JETHOOK_SINKS__CRM__EVENTS": "contact_created"}, env_file=None,
    )  # fmt: skip

    assert (settings.watches["people"].begin, settings.watches["people"].limit) == ("beginning", 1000)
    assert list(settings.effective_connections) == ["default"]
