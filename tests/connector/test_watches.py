"""Watching contacts: every change exactly once, over restarts and with two replicas."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest
import sqlalchemy as sa

from app.connector.watches import LeaseLost, Watch
from app.connector.watching import event_type_of, sighting_of
from app.db import Database
from app.mailjet.errors import MailjetServerFault
from app.models import Delivery, Event
from app.settings import load_settings
from tests.connector.bench import Bench
from tests.connector.conftest import BOTH


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


class Crowd:
    """5,000 contacts, of which some change whenever Mailjet is asked, and others come, two in each second.

    Each changes once: several changes between two looks would be one event.
    """

    def __init__(self, bench: Bench, chance: random.Random) -> None:
        self.expected: Counter = Counter()
        self._bench, self._chance = bench, chance
        self._old = [bench.account.add_contact(f"{n}@example.com", CreatedAt=f"2026-05-{1 + n // 2500:02}T00:00:00Z")
                     for n in range(5000)]  # fmt: skip

    def change(self, request) -> None:
        """Before Mailjet answers `request`; the clock goes on meanwhile."""
        if request.method != "GET":
            return
        for _ in range(self._chance.randrange(4)):
            contact = self._old.pop(self._chance.randrange(len(self._old)))
            self._bench.account.change_contact(contact, Name=f"n{len(self.expected)}")
            self.expected["contact_updated", str(contact["ID"]), contact["Name"]] += 1
        for _ in range(2):
            made = self._bench.account.add_contact(f"new{len(self.expected)}@example.com", Name="new")
            self.expected["contact_created", str(made["ID"]), "new"] += 1


@BOTH
def test_5000_contacts_that_change_and_restarts_lose_and_repeat_nothing(bench, mailjet):
    """Processes die in the middle of a look, and others go on."""
    bench, chance = bench(), random.Random(7)
    crowd = Crowd(bench, chance)
    bench.look(page=1000)

    def failing_after(calls: int):
        last = len(mailjet.requests) + calls
        return lambda call: crowd.change(call) if len(mailjet.requests) <= last else mailjet.fail_next(1, 500)

    for _ in range(6):
        bench.pass_time(chance.choice([0, 1, 30]))
        mailjet.on_request = failing_after(chance.randrange(1, 5)) if chance.random() < 0.5 else crowd.change
        for owner in ("a", "b"):
            with contextlib.suppress(LeaseLost, MailjetServerFault):
                bench.look(owner, page=1000)
    mailjet.on_request = None
    mailjet._faults.clear()
    bench.pass_time()
    bench.look(page=1000)

    assert len(crowd.expected) > 50
    assert bench.told() == crowd.expected


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_5000_contacts_that_change_and_two_replicas_at_once_lose_and_repeat_nothing(bench, mailjet, database):
    """Both look at the same time, and leases run out in the middle of a look."""
    bench, chance = bench(), random.Random(11)
    crowd = Crowd(bench, chance)
    bench.look(page=1000)
    lost: Counter = Counter()

    def change(request) -> None:
        bench.pass_time(chance.choice([0, 1, 4, 11]))
        crowd.change(request)

    def look(owner: str) -> None:
        own = Database(database.writer.url.render_as_string(hide_password=False))
        for _ in range(20):
            try:
                asyncio.run(bench.look_of(owner, 1000, own))
                break
            except LeaseLost:
                lost[owner] += 1
        own.close()

    mailjet.on_request = change
    with ThreadPoolExecutor(2) as replicas:
        for n in range(3):
            bench.pass_time()
            list(replicas.map(look, (f"a{n}", f"b{n}")))
    mailjet.on_request = None
    bench.pass_time()
    bench.look(page=1000)

    assert lost.total() > 0
    assert len(crowd.expected) > 50
    assert bench.told() == crowd.expected


@BOTH
def test_a_look_that_stalls_while_another_looks_stores_nothing_of_what_it_saw(bench, account):
    """Else an older state would be told after a newer one, and the newer one again."""
    bench = bench()
    contact = account.add_contact("a@example.com")
    bench.look()
    bench.pass_time()
    account.change_contact(contact, Name="first")

    class Stalling(Watch):
        async def _compare(self, page):
            found = await super()._compare(page)
            bench.pass_time()
            account.change_contact(contact, Name="second")
            await bench.look_of("other")
            bench.pass_time()
            return found

    with pytest.raises(LeaseLost):
        asyncio.run(bench.look_of("stalling", kind=Stalling))

    assert bench.look() == 0
    assert bench.told() == Counter({("contact_updated", str(contact["ID"]), "second"): 1})


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
