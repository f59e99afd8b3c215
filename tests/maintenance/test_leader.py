"""The lease row on both databases."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from app.db import Database
from app.maintenance.leader import (
    LEASE_SECONDS,
    MAX_SKEW_SECONDS,
    REMEMBERED_SECONDS,
    Leadership,
    keep_lead,
    release,
    try_lead,
)

NOON = datetime(2026, 5, 3, 12, 0, tzinfo=UTC)
LEASE = 10.0


def lead(database: Database, owner: str, seconds: float = 0, name: str = "registration") -> bool:
    now = NOON + timedelta(seconds=seconds)
    return database.write(lambda c: try_lead(c, name, owner, now, LEASE))


def test_the_first_comer_leads_and_others_wait(database):
    assert lead(database, "a")
    assert not lead(database, "b")
    assert not lead(database, "b", LEASE - 0.001)


def test_names_longer_than_the_column_are_leases_of_their_own(database):
    """A watch may have a name of 63 letters, and its leases have more."""
    one, other = f"watch:{'n' * 62}a", f"watch:{'n' * 62}b"

    assert lead(database, "a", name=one)
    assert lead(database, "b", name=other)
    assert not lead(database, "b", name=one)
    assert database.write(lambda c: keep_lead(c, one, "a", NOON, LEASE))
    assert database.write(lambda c: release(c, one, "a"))
    assert lead(database, "b", name=one)


def test_a_leader_renews_its_lease(database):
    assert lead(database, "a")
    assert lead(database, "a", 8)
    assert not lead(database, "b", 12)


def test_a_lease_that_ran_out_is_taken_over_and_its_owner_told_so(database):
    assert lead(database, "a")
    assert lead(database, "b", LEASE)
    assert not lead(database, "a", LEASE + 1)


def test_a_leader_whose_lease_ran_out_unnoticed_goes_on(database):
    assert lead(database, "a")
    assert lead(database, "a", 100)


def test_leases_of_different_duties_do_not_meet(database):
    assert lead(database, "a")
    assert lead(database, "b", name="retention")


def test_a_lease_given_back_is_free_at_once(database):
    assert lead(database, "a")

    assert database.write(lambda c: release(c, "registration", "a"))
    assert lead(database, "b")


def test_nobody_gives_back_the_lease_of_another(database):
    assert lead(database, "a")

    assert not database.write(lambda c: release(c, "registration", "b"))
    assert not lead(database, "b")


def test_a_lease_written_by_a_clock_far_ahead_does_not_block_for_ever(database):
    assert lead(database, "a", seconds=10 * 365 * 86400)
    assert lead(database, "b")


def test_a_clock_that_is_somewhat_ahead_keeps_its_lease(database):
    assert lead(database, "a", seconds=MAX_SKEW_SECONDS / 2)
    assert not lead(database, "b")


def test_of_many_who_ask_together_one_leads(database):
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: lead(database, f"replica-{n}"), range(32)))

    assert sum(answers) == 1


def test_two_processes_agree_on_one_leader(database, migrated_url):
    other = Database(migrated_url)
    try:
        with ThreadPoolExecutor(2) as threads:
            for second in range(0, 200, 20):
                answers = list(threads.map(lead, (database, other), ("a", "b"), (second, second)))
                assert sum(answers) == 1
    finally:
        other.close()


def test_leadership_renews_by_asking_and_ends_by_release(database):
    async def story() -> list[bool]:
        clock = [NOON]
        a = Leadership(database, "registration", "a", now=lambda: clock[0])
        b = Leadership(database, "registration", "b", now=lambda: clock[0])
        answers = [await a.may_lead(), await b.may_lead()]
        clock[0] += timedelta(seconds=5)
        answers += [await a.may_lead()]
        clock[0] += timedelta(seconds=5)
        answers += [await b.may_lead()]
        await a.release()
        return [*answers, await b.may_lead()]

    assert asyncio.run(story()) == [True, False, True, False, True]


def test_who_may_not_lead_looks_again_when_the_lease_can_have_run_out_and_writes_nothing(database, monkeypatch):
    """Remembering a no for longer than the lease lasts would leave nobody to lead."""

    async def story() -> list[tuple[bool, int]]:
        clock, ticks, writes = [NOON], [0.0], []
        monkeypatch.setattr("app.maintenance.leader.time.monotonic", lambda: ticks[0])
        a = Leadership(database, "duties", "a", now=lambda: clock[0], remembered_seconds=3.5)
        b = Leadership(database, "duties", "b", now=lambda: clock[0], remembered_seconds=3.5)
        assert await a.may_lead()
        ask = database.run_write
        monkeypatch.setattr(database, "run_write", lambda work: (writes.append(work), ask(work))[1])
        found = []
        for _ in range(8):  # a has died
            ticks[0] += 1
            clock[0] += timedelta(seconds=1)
            found.append((await b.may_lead(), len(writes)))
        return found

    assert asyncio.run(story()) == [(False, 0)] * 6 + [(True, 1)] * 2


def test_an_answer_is_remembered_no_longer_than_half_the_lease(database, monkeypatch):
    async def story() -> list[int]:
        ticks, asked = [0.0], []
        monkeypatch.setattr("app.maintenance.leader.time.monotonic", lambda: ticks[0])
        leadership = Leadership(database, "duties", "a", remembered_seconds=REMEMBERED_SECONDS)
        ask = database.run_write
        monkeypatch.setattr(database, "run_write", lambda work: (asked.append(ticks[0]), ask(work))[1])
        for _ in range(20):
            assert await leadership.may_lead()
            ticks[0] += 1
        return asked

    assert asyncio.run(story()) == [0, 4, 8, 12, 16]
    assert REMEMBERED_SECONDS <= LEASE_SECONDS / 2


def test_without_a_database_nobody_leads_and_nothing_is_raised(sqlite_url):
    database = Database(sqlite_url)  # never migrated: it has no table of leases

    async def story() -> bool:
        leadership = Leadership(database, "registration", "a")
        leads = await leadership.may_lead()
        await leadership.release()
        return leads

    try:
        assert asyncio.run(story()) is False
    finally:
        database.close()


def test_those_who_wait_for_a_silent_database_ask_it_once_and_not_one_after_the_other():
    class Silent:
        asked = 0

        async def run_write(self, work):
            self.asked += 1
            await asyncio.sleep(0.4)
            raise sqlite3.OperationalError("it did not answer")

        run_glance = run_write

    async def story() -> list[bool]:
        leadership = Leadership(silent, "duties", "a", remembered_seconds=0.3)
        return list(await asyncio.gather(*(leadership.may_lead() for _ in range(5))))

    silent = Silent()

    assert asyncio.run(story()) == [False] * 5
    assert silent.asked == 1
