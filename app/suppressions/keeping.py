"""Suppressions kept up with what is stored, in the same transaction.

Nearly all events say nothing against mailing anybody, as their type tells, and most of the others repeat what is known:
only what is left is looked into. What it comes to is what `policy.fold` makes of all events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from app.clock import from_micros, utc_now
from app.models import SuppressionReason
from app.operator_events import NOBODY, SUPPRESSION_ADDED, Change, Herald
from app.settings import Settings
from app.suppressions import queries
from app.suppressions.policy import CAUSING_TYPES, Act, Entry, Fact, Policy, beginning, fact_of, lifted_until, scope_of
from app.suppressions.queries import Place
from app.views import EVENT_COLUMNS

_TYPE, _EMAIL = EVENT_COLUMNS.index("type"), EVENT_COLUMNS.index("email")
_CAUSING = frozenset(CAUSING_TYPES)


def policy_of(settings: Settings) -> Policy:
    return Policy(
        hard_bounces=settings.suppress_hard_bounces, complaints=settings.suppress_complaints,
        unsubscribes=settings.suppress_unsubscribes, soft_bounces=settings.suppress_soft_bounces,
        soft_bounce_days=settings.suppress_soft_bounce_days,
    )  # fmt: skip


class Keeper:
    """Takes events that were stored just now; tells `herald` of what came into force."""

    def __init__(self, policy: Policy | None = None, herald: Herald = NOBODY) -> None:
        self.policy = policy or Policy()
        self.herald = herald

    def record(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """`rows` are new events of Mailjet's, in the order of `EVENT_COLUMNS`; within the transaction that stores
        them, after they are in the table."""
        queries.note_spellings(connection, [row[_EMAIL] for row in rows])
        facts = [fact for row in rows if row[_TYPE] in _CAUSING and (fact := self._fact(row))]
        if facts:
            queries.lock_shared(connection)
            self._take(connection, facts)

    def tell(
        self, connection: Connection, type: str, entries: Mapping[Place, Entry], now: datetime, *,
        comment: str | None = None,
    ) -> None:  # fmt: skip
        """One piece of news for each; `comment` is a person's, in the place of the entry's own."""
        changes = [change_of(type, place, entry, now, comment) for place, entry in entries.items()]
        self.herald.store_all(connection, changes)

    def _fact(self, row: tuple[Any, ...]) -> Fact | None:
        fact = fact_of(dict(zip(EVENT_COLUMNS, row, strict=True)))
        return fact if fact is not None and self.policy.counts(fact.reason) else None

    def _take(self, connection: Connection, facts: list[Fact]) -> None:
        emails = {fact.email for fact in facts}
        known = queries.entries_of(connection, emails)
        news = [fact for fact in facts if _is_news(fact, known.get((fact.email, *fact.key)))]
        if not news:
            return
        acts = queries.acts_of(connection, {fact.email for fact in news})
        found = self._entries(connection, news, acts)
        new = queries.keep_earliest(connection, found, known.keys())
        if new:
            self.tell(connection, SUPPRESSION_ADDED, {place: found[place] for place in sorted(new, key=str)}, utc_now())

    def _entries(
        self, connection: Connection, facts: list[Fact], acts: Mapping[str, Sequence[Act]]
    ) -> dict[Place, Entry]:
        """What these facts bring into force; the lifts of their addresses are `acts`."""
        alike: dict[Place, list[Fact]] = {}
        for fact in facts:
            if fact.at > lifted_until(acts.get(fact.email, ()), fact.key):
                alike.setdefault((fact.email, *fact.key), []).append(fact)
        counted = {email for email, reason, _ in alike if reason is SuppressionReason.SOFT_BOUNCES}
        if counted:
            queries.lock_addresses(connection, counted)
        found: dict[Place, Entry] = {}
        for (email, reason, list_id), group in alike.items():
            if reason is SuppressionReason.SOFT_BOUNCES:
                lifted = lifted_until(acts.get(email, ()), (reason, None))
                group = self._around(connection, email, group, lifted)  # noqa: PLW2901
            if (entry := beginning(reason, group, self.policy)) is not None:
                found[email, reason, list_id] = entry
        return found

    def _around(self, connection: Connection, email: str, facts: list[Fact], lifted: int) -> list[Fact]:
        """All passing bounces that can count together with these."""
        window = self.policy.window_micros
        first, last = min(fact.at for fact in facts) - window, max(fact.at for fact in facts) + window
        return queries.soft_bounces_of(connection, email, max(first, lifted + 1), last)


def _is_news(fact: Fact, known: Entry | None) -> bool:
    return known is None or (fact.at, fact.event_id) < (known.since, known.event_id or "")


def change_of(type: str, place: Place, entry: Entry, now: datetime, comment: str | None = None) -> Change:
    email, reason, list_id = place
    details = {
        "email": email, "reason": reason.value, "scope": scope_of(list_id).value, "list_id": list_id,
        "event_id": entry.event_id, "comment": comment or entry.comment,
    }  # fmt: skip
    return Change(type, now, since=from_micros(entry.since), details=details)
