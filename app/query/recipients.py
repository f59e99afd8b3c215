"""What happened to one address, and whether it may still be mailed: `GET /v1/recipients/{email}`.

Some addresses have tens of thousands of events. Counts and times come from the index of addresses alone, which holds
time, type and webhook; of the events themselves just the latest are read. Two webhooks of a connection may both have
stored an arrival: of a connection's events of one type in the same second those of the webhook that has the most count.

Addresses are exact in their local part. The few that have capitals there are kept by their small letters as well, so
that a folded search asks the same index for two or three spellings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import Field
from sqlalchemy.engine import Connection

from app import operator_events
from app.clock import from_micros, rfc3339
from app.filters import Condition, Filters, Unindexed
from app.mailjet.vocabulary import normal_email
from app.models import SuppressionReason, SuppressionScope
from app.suppressions.digest import suppression_id
from app.suppressions.policy import Entry, scope_of
from app.suppressions.queries import Place, acts, events, spellings, suppressions
from app.views import VIEW_COLUMNS, clean, event_view, short

Row = Mapping[str, Any]

LATEST = 50
_REASONS = list(SuppressionReason)
_COLUMNS = tuple(events.c[name] for name in VIEW_COLUMNS)


class RecipientQuery(Filters):
    """`GET /v1/recipients/{email}`."""

    folded: bool = Field(
        False, description="also what was told of the same address with other capitals in its local part"
    )
    include: list[Literal["raw"]] = Field([], max_length=10, description="`raw`: each event with what Mailjet sent")


def find_recipient(
    connection: Connection, asked: str, query: RecipientQuery, digest: Callable[[str], str]
) -> dict[str, Any]:
    """The recipient of contract shape; one of whom nothing is known has `known` false."""
    email = normal_email(short(clean(asked) or ""))
    emails = spellings_of(connection, email) if query.folded else [email]
    conditions = recipient_conditions(emails)
    webhooks, counts = _tally(connection, conditions)
    found = suppressions_of(connection, emails, digest)
    history = history_of(connection, emails)
    return {
        "email": email,
        "known": bool(webhooks or history or any(row["email"] is not None for row in found)),
        "spellings": emails,
        **counts,
        "suppressed": any(row["scope"] == SuppressionScope.ADDRESS for row in found),
        "suppressions": [suppression_view(row) for row in found],
        "history": history,
        "events": _latest(connection, conditions, webhooks, query.include),
    }


def recipient_conditions(emails: Sequence[str]) -> list[Condition]:
    """Mailjet's events of an address. Operator events, which name it too, are none of its mail."""
    mine = events.c.email == emails[0] if len(emails) == 1 else events.c.email.in_(emails)
    return [mine, Unindexed(events.c.webhook) != operator_events.WEBHOOK]


def spellings_of(connection: Connection, email: str) -> list[str]:
    """The addresses that differ from this one only in capitals, itself included."""
    folded = email.lower()
    known = sa.select(spellings.c.email).where(spellings.c.folded == folded)
    return sorted({email, folded, *connection.execute(known).scalars()})


def suppressions_of(connection: Connection, emails: Collection[str], digest: Callable[[str], str]) -> list[Row]:
    """What is in force for these addresses, the strongest reason first; also of a person who was erased."""
    found = [row for rows in suppressions_by_email(connection, emails, digest).values() for row in rows]
    return sorted(found, key=lambda row: (_REASONS.index(row["reason"]), row["since"], row["id"]))


def suppressions_by_email(
    connection: Connection, emails: Collection[str], digest: Callable[[str], str]
) -> dict[str, list[Row]]:
    """Address -> what is in force for it, the strongest reason first."""
    by_digest = {digest(email): email for email in emails}
    found: dict[str, list[Row]] = {}
    for statement in in_force_statements(emails, by_digest):
        for row in connection.execute(statement).mappings():
            email = row["email"] if row["email"] is not None else by_digest[row["email_hash"]]
            found.setdefault(email, []).append({**row, "reason": SuppressionReason(row["reason"])})
    for rows in found.values():
        rows.sort(key=lambda row: (_REASONS.index(row["reason"]), row["since"], row["id"]))
    return found


def in_force_statements(emails: Collection[str], digests: Collection[str]) -> list[sa.Select[Any]]:
    """By address and by digest, each along its own index."""
    every = sa.select(suppressions)
    return [every.where(suppressions.c.email.in_(emails)), every.where(suppressions.c.email_hash.in_(digests))]


def history_of(connection: Connection, emails: Sequence[str]) -> list[dict[str, Any]]:
    """What people did, the latest first, at most fifty acts."""
    mine = sa.select(acts).where(acts.c.email.in_(emails)).order_by(acts.c.seq.desc()).limit(LATEST)
    return [_act_view({**row}) for row in connection.execute(mine).mappings()]


def suppression_view(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"], "email": row["email"], "reason": row["reason"], "scope": row["scope"],
        "list_id": row["list_id"], "event_id": row["event_id"], "since": rfc3339(row["since"]),
        "comment": row["comment"],
    }  # fmt: skip


def entry_view(place: Place, entry: Entry) -> dict[str, Any]:
    """The same from what a service answers."""
    email, reason, list_id = place
    row = {"id": suppression_id(*place), "email": email, "reason": reason, "scope": scope_of(list_id),
           "list_id": list_id}  # fmt: skip
    return suppression_view(row | entry._asdict() | {"since": from_micros(entry.since)})


def _act_view(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("act", "email", "scope", "list_id", "reason", "comment")
    return {name: row[name] for name in names} | {"at": rfc3339(row["at"])}


def tally_statement(conditions: Sequence[Condition]) -> sa.Select[Any]:
    """(type, count, first and last time) at each webhook."""
    kind = Unindexed(events.c.type), Unindexed(events.c.webhook)
    times = sa.func.min(events.c.occurred_at).label("first"), sa.func.max(events.c.occurred_at).label("last")
    counted = sa.select(events.c.type, events.c.webhook, sa.func.count().label("count"), *times)
    return counted.where(*conditions).group_by(*kind)


def copied_tally_statement(
    conditions: Sequence[Condition], connections: Mapping[str, str]
) -> sa.Select[Any]:  # fmt: skip
    """(type, count) where there may be copies: what one webhook of a connection has most of a type in a second.

    `connections` is webhook -> its connection, which the index of addresses does not hold.
    """
    alike = events.c.occurred_at, events.c.type
    counted = sa.select(*alike, events.c.webhook, sa.func.count().label("count")).where(*conditions)
    at_each = counted.group_by(*alike, events.c.webhook).subquery()
    connection = sa.case(connections, value=at_each.c.webhook)
    most = sa.select(at_each.c.type, sa.func.max(at_each.c.count).label("count"))
    arrivals = most.group_by(at_each.c.occurred_at, at_each.c.type, connection).subquery()
    return sa.select(arrivals.c.type, sa.func.sum(arrivals.c.count)).group_by(arrivals.c.type)


def connection_statement(webhook: str) -> sa.Select[Any]:
    """The connection of a webhook's events; a webhook that was given another one has copies of neither."""
    return sa.select(events.c.connection).where(events.c.webhook == webhook).limit(1)


def _tally(connection: Connection, conditions: Sequence[Condition]) -> tuple[int, dict[str, Any]]:
    """(the number of webhooks that have stored events, counts and times as they are answered)."""
    rows = connection.execute(tally_statement(conditions)).all()
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row.type] += row[2]
    webhooks = sorted({row.webhook for row in rows})
    if len(webhooks) > 1:
        connections = {name: connection.execute(connection_statement(name)).scalar_one() for name in webhooks}
        if len(set(connections.values())) < len(connections):
            copied = connection.execute(copied_tally_statement(conditions, connections))
            counts = Counter({type: int(count) for type, count in copied})
    return len(webhooks), {
        "counts": dict(sorted(counts.items())),
        "first_event_at": rfc3339(min(row.first for row in rows)) if rows else None,
        "last_event_at": rfc3339(max(row.last for row in rows)) if rows else None,
    }


def latest_statement(conditions: Sequence[Condition], limit: int) -> sa.Select[Any]:
    """Along the index, from its end."""
    newest = events.c.occurred_at.desc(), events.c.id.desc()
    return sa.select(*_COLUMNS).where(*conditions).order_by(*newest).limit(limit)


def _latest(
    connection: Connection, conditions: Sequence[Condition], webhooks: int, include: Sequence[str]
) -> list[dict[str, Any]]:
    """The latest fifty, the newest first; of copies at several webhooks that of the first webhook by name."""
    if not webhooks:
        return []
    rows = connection.execute(latest_statement(conditions, LATEST * webhooks)).mappings()
    alike: dict[tuple[Any, ...], Row] = {}
    for row in map(dict, rows):
        key = row["connection"], row["occurred_at"], row["raw"] or row["id"]
        alike[key] = min(alike.get(key, row), row, key=lambda copy: str(copy["webhook"]))
    return [event_view(row, include_raw="raw" in include) for row in list(alike.values())[:LATEST]]
