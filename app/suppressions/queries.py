"""The SQL of suppressions, hot parts on the driver. An address is looked up as `normal_email` writes it.

On PostgreSQL writers agree by advisory locks. Ingest shares one, so its transactions never wait for each other there;
what looks at all of an address's events (an act, a rebuild, an erasure) holds it alone for a moment, and so sees every
event that was taken into account. Passing bounces are counted, which two transactions at once would get wrong: there a
lock on the address's share of 256 comes after. All take them in this order, after their events. SQLite has one writer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any
from zlib import crc32

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app import operator_events
from app.clock import from_micros, to_micros
from app.db import chunks, insert_missing, run_driver_sql
from app.models import AddressSpelling, Event, Suppression, SuppressionAct, SuppressionReason, SuppressionScope
from app.suppressions.digest import suppression_id
from app.suppressions.policy import CAUSING_TYPES, FACT_COLUMNS, Act, Entry, Fact, Key, fact_of, scope_of

events: sa.Table = Event.__table__  # type: ignore[attr-defined]
suppressions: sa.Table = Suppression.__table__  # type: ignore[attr-defined]
acts: sa.Table = SuppressionAct.__table__  # type: ignore[attr-defined]
spellings: sa.Table = AddressSpelling.__table__  # type: ignore[attr-defined]

LOCK, SHARES_LOCK = 1_786_012, 1_786_013  # two of ours among the database's advisory locks
SHARES = 256
COLUMNS = ("id", "email", "email_domain", "reason", "scope", "list_id", "since", "event_id", "comment")

Place = tuple[str, SuppressionReason, str | None]
"""An address with the key of one of its suppressions."""


# --- locks -----------------------------------------------------------------------------------------------------------


def lock_shared(connection: Connection) -> None:
    if connection.dialect.name != "sqlite":
        run_driver_sql(connection, "SELECT pg_advisory_xact_lock_shared(%s, 0)", (LOCK,)).close()


def lock_alone(connection: Connection) -> None:
    if connection.dialect.name != "sqlite":
        run_driver_sql(connection, "SELECT pg_advisory_xact_lock(%s, 0)", (LOCK,)).close()


def lock_addresses(connection: Connection, emails: Collection[str]) -> None:
    if connection.dialect.name != "sqlite":
        shares = sorted({crc32(email.encode()) % SHARES for email in emails})
        sql = "SELECT pg_advisory_xact_lock(%s, share) FROM unnest(%s::int[]) AS share"
        run_driver_sql(connection, sql, (SHARES_LOCK, shares)).close()


# --- reading ---------------------------------------------------------------------------------------------------------


def entries_of(connection: Connection, emails: Collection[str]) -> dict[Place, Entry]:
    """What is in force for these addresses."""
    found: dict[Place, Entry] = {}
    sql = "SELECT email, reason, list_id, since, event_id, comment FROM suppressions WHERE email IN ({})"
    for email, reason, list_id, since, event_id, comment in _for_each(connection, sql, emails):
        found[email, SuppressionReason(reason), list_id] = Entry(since, event_id, comment)
    return found


def acts_of(connection: Connection, emails: Collection[str]) -> dict[str, list[Act]]:
    found: dict[str, list[Act]] = {}
    sql = "SELECT email, seq, act, scope, list_id, reason, comment, at, until FROM suppression_acts WHERE email IN ({})"
    for email, seq, act, scope, list_id, reason, comment, at, until in _for_each(connection, sql, emails):
        narrowed = scope and SuppressionScope(scope), list_id, reason and SuppressionReason(reason)
        found.setdefault(email, []).append(Act(seq, act == "lift", *narrowed, comment, at, until))
    return found


def facts_statement(emails: Sequence[str]) -> sa.Select[Any]:
    """What the stored events of these addresses tell, by the index of addresses."""
    return sa.select(*(events.c[name] for name in FACT_COLUMNS)).where(
        events.c.email.in_(emails), events.c.type.in_(CAUSING_TYPES), events.c.webhook != operator_events.WEBHOOK
    )


def facts_of(connection: Connection, emails: Collection[str]) -> dict[str, list[Fact]]:
    found: dict[str, list[Fact]] = {}
    for part in chunks(sorted(emails)):
        for row in connection.execute(facts_statement(part)).mappings():
            fact = fact_of({**row, "occurred_at": to_micros(row["occurred_at"])})
            if fact is not None:
                found.setdefault(fact.email, []).append(fact)
    return found


def soft_bounces_statement(email: str, first: int, last: int) -> sa.Select[Any]:
    """The passing bounces of one address between two times, both inclusive."""
    return sa.select(events.c.id, events.c.occurred_at, events.c.message_id).where(
        events.c.email == email, events.c.type == "bounce", events.c.outcome == "bounced",
        events.c.permanent.is_not(True), events.c.webhook != operator_events.WEBHOOK, events.c.test.is_(False),
        events.c.occurred_at.between(from_micros(first), from_micros(last)),
    )  # fmt: skip


def soft_bounces_of(connection: Connection, email: str, first: int, last: int) -> list[Fact]:
    rows = connection.execute(soft_bounces_statement(email, max(first, 0), last))
    return [Fact(email, SuppressionReason.SOFT_BOUNCES, None, to_micros(at), id, message) for id, at, message in rows]


def telling_events(connection: Connection, ids: Collection[str]) -> set[str]:
    """Those that are stored, and still tell whom they are about."""
    return {
        row[0] for row in _for_each(connection, "SELECT id FROM events WHERE email IS NOT NULL AND id IN ({})", ids)
    }


def _for_each(connection: Connection, sql: str, values: Collection[str]) -> Iterator[tuple[Any, ...]]:
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    for part in chunks(sorted(values)):
        cursor = run_driver_sql(connection, sql.format(", ".join([mark] * len(part))), tuple(part))
        yield from cursor.fetchall()
        cursor.close()


# --- writing ---------------------------------------------------------------------------------------------------------


def keep_earliest(connection: Connection, entries: Mapping[Place, Entry], known: Collection[Place]) -> set[Place]:
    """Bring these in force; where one is already, the earlier (time, event) of both stays. Those that are new.

    `known` are those that were there at a look before. On PostgreSQL another transaction may have added one since: then
    this waits for it, and `xmax` tells a row that was there from one that is new.
    """
    places = {_row(place, entry)[0]: place for place, entry in entries.items()}
    rows = sorted(_row(place, entry) for place, entry in entries.items())
    new: set[Place] = set()
    for part in chunks(rows):
        sql = _upsert_sql(len(part), connection.dialect.name)
        cursor = run_driver_sql(connection, sql, tuple(chain.from_iterable(part)))
        if connection.dialect.name != "sqlite":
            new.update(places[id] for id, is_new in cursor.fetchall() if is_new)
        cursor.close()
    return new if connection.dialect.name != "sqlite" else entries.keys() - set(known)


def put(connection: Connection, entries: Mapping[Place, Entry]) -> None:
    """Bring these in force as they are; for who holds the lock alone."""
    remove(connection, entries)
    insert_missing(connection, suppressions, COLUMNS, sorted(_row(place, entry) for place, entry in entries.items()))


def remove(connection: Connection, places: Iterable[Place]) -> None:
    for part in chunks(sorted(suppression_id(*place) for place in places)):
        connection.execute(sa.delete(suppressions).where(suppressions.c.id.in_(part)))


def add_act(connection: Connection, email: str, act: Act) -> None:
    """`seq` is given by the database."""
    connection.execute(sa.insert(acts).values(
        email=email, act="lift" if act.is_lift else "add", scope=act.scope, list_id=act.list_id, reason=act.reason,
        comment=act.comment, at=from_micros(act.at), until=None if act.until is None else from_micros(act.until),
    ))  # fmt: skip


def note_spellings(connection: Connection, emails: Iterable[str | None]) -> None:
    """Addresses with capitals, so that they are found by their small letters."""
    spelled = {(folded, email) for email in emails if email and (folded := email.lower()) != email}
    insert_missing(connection, spellings, ("folded", "email"), sorted(spelled))


def drop_unused_spellings(connection: Connection) -> int:
    """Those of addresses that nothing tells of any more; for who has deleted events. How many they were."""
    used = [sa.exists().where(table.c.email == spellings.c.email) for table in (events, suppressions, acts)]
    return connection.execute(sa.delete(spellings).where(sa.not_(sa.or_(*used)))).rowcount


def forget(connection: Connection, email: str, *, digest: str, keep: bool) -> dict[str, int]:
    """Take one address out of every table here; table -> rows. With `keep` what is in force stays, under `digest`.

    A transaction that erases calls this before it touches other tables of ours, because it takes the lock alone.
    """
    lock_alone(connection)
    kept = entries_of(connection, [email]) if keep else {}
    whose = suppressions.c.email == email
    if not keep:
        whose = sa.or_(whose, suppressions.c.email_hash == digest)
    count = {
        "suppressions": connection.execute(sa.delete(suppressions).where(whose)).rowcount,
        "suppression_acts": connection.execute(sa.delete(acts).where(acts.c.email == email)).rowcount,
        "address_spellings": connection.execute(sa.delete(spellings).where(spellings.c.email == email)).rowcount,
    }
    rows = [
        (suppression_id(digest, reason, list_id), digest, reason, scope_of(list_id), list_id, entry.since)
        for (_, reason, list_id), entry in kept.items()
    ]
    insert_missing(connection, suppressions, ("id", "email_hash", "reason", "scope", "list_id", "since"), sorted(rows))
    return count


def remove_hashed(connection: Connection, digest: str, lift: Act) -> list[tuple[Key, int]]:
    """What a lift ends of a person who was erased: (key, since) of each."""
    mine = sa.select(suppressions.c.id, suppressions.c.reason, suppressions.c.list_id, suppressions.c.since)
    found: dict[str, tuple[Key, int]] = {}
    for id, reason, list_id, since in connection.execute(mine.where(suppressions.c.email_hash == digest)):
        if lift.lifts(key := (SuppressionReason(reason), list_id)):
            found[id] = key, to_micros(since)
    connection.execute(sa.delete(suppressions).where(suppressions.c.id.in_(found)))
    return list(found.values())


def _row(place: Place, entry: Entry) -> tuple[Any, ...]:
    email, reason, list_id = place
    domain = email.rpartition("@")[2] if "@" in email else None
    scope = scope_of(list_id).value
    return (suppression_id(*place), email, domain, reason.value, scope, list_id, *entry)


def _upsert_sql(rows: int, dialect: str) -> str:
    mark = "?" if dialect == "sqlite" else "%s"
    row = f"({', '.join([mark] * len(COLUMNS))})"
    told = "" if dialect == "sqlite" else " RETURNING id, xmax = 0"
    return (
        f"INSERT INTO suppressions ({', '.join(COLUMNS)}) VALUES {', '.join([row] * rows)}"  # noqa: S608
        " ON CONFLICT (id) DO UPDATE SET since = excluded.since, event_id = excluded.event_id"
        f" WHERE (excluded.since, excluded.event_id) < (suppressions.since, suppressions.event_id){told}"
    )
