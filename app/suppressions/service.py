"""add(), lift() and settle(): what people do about suppressions, and one address told anew from all that is stored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from app.clock import to_micros
from app.models import SuppressionReason, SuppressionScope
from app.operator_events import SUPPRESSION_ADDED, SUPPRESSION_REMOVED
from app.suppressions import queries
from app.suppressions.keeping import Keeper
from app.suppressions.policy import Act, Entry, Fact, Key, Policy, fold, lifted_until, scope_of
from app.suppressions.queries import Place

Entries = dict[Place, Entry]


@dataclass(frozen=True, slots=True)
class Difference:
    """What settling came to."""

    added: Entries
    removed: Entries
    changed: Entries


def add(
    connection: Connection, keeper: Keeper, *, email: str, list_id: str | None, comment: str, now: datetime
) -> tuple[Place, Entry, bool]:
    """Suppress an address, or an address for a list: (what is in force, is it new). Twice is once: the first stays."""
    queries.lock_alone(connection)
    place = email, SuppressionReason.MANUAL, list_id
    known = queries.entries_of(connection, [email]).get(place)
    if known is not None:
        return place, known, False
    entry = Entry(to_micros(now), None, comment)
    queries.add_act(connection, email, Act(0, False, scope_of(list_id), list_id, None, comment, entry.since))
    queries.note_spellings(connection, [email])
    queries.put(connection, {place: entry})
    keeper.tell(connection, SUPPRESSION_ADDED, {place: entry}, now)
    return place, entry, True


def lift(
    connection: Connection, keeper: Keeper, *, email: str, digest: Callable[[str], str], comment: str, now: datetime,
    scope: SuppressionScope | None = None, list_id: str | None = None, reason: SuppressionReason | None = None,
) -> Entries:  # fmt: skip
    """End what is in force for an address, as far as it is not narrowed; what was ended. Nothing to end: nothing done.

    It ends all that has happened up to now, and up to the newest event that is known, lest a clock that is ahead of
    ours make it useless.
    """
    queries.lock_alone(connection)
    facts, rows = queries.facts_of(connection, [email]), queries.entries_of(connection, [email])
    times = [to_micros(now), *(fact.at for fact in facts.get(email, ())), *(entry.since for entry in rows.values())]
    act = Act(0, True, scope, list_id, reason, comment, to_micros(now), max(times))
    ended = {place: entry for place, entry in rows.items() if act.lifts(place[1:])}
    if ended:
        queries.add_act(connection, email, act)
        queries.remove(connection, ended)
    for (kind, of_list), since in queries.remove_hashed(connection, digest(email), act):
        ended.setdefault((email, kind, of_list), Entry(since, None))
    keeper.tell(connection, SUPPRESSION_REMOVED, ended, now, comment=comment)
    return ended


def settle(connection: Connection, emails: Collection[str], policy: Policy) -> Difference:
    """Make the rows of these addresses what all their stored events and acts come to. Holds the lock alone.

    A row whose event is gone or redacted, as retention does to old ones, stays: nothing else tells of it any more. So
    it does where the policy has changed since; a lift ends it. Rows of people who were erased have no address and are
    never met here.
    """
    queries.lock_alone(connection)
    rows = queries.entries_of(connection, emails)
    acts, facts = queries.acts_of(connection, emails), queries.facts_of(connection, emails)
    kept = _without_events(connection, rows, facts)
    wanted: Entries = {}
    for email in emails:
        mine = acts.get(email, ())
        folded = fold(facts.get(email, ()), mine, policy)
        found = _with_kept(folded, kept.get(email, {}), mine)
        wanted |= {(email, *key): entry for key, entry in found.items()}
    return _write(connection, rows, wanted)


def _without_events(
    connection: Connection, rows: Mapping[Place, Entry], facts: Mapping[str, Sequence[Fact]]
) -> dict[str, dict[Key, Entry]]:
    """Rows that name an event which is not stored any more, or tells of nobody, by address."""
    told = {fact.event_id for group in facts.values() for fact in group}
    named = {entry.event_id for entry in rows.values() if entry.event_id is not None} - told
    gone = named - queries.telling_events(connection, named)
    found: dict[str, dict[Key, Entry]] = {}
    for (email, reason, list_id), entry in rows.items():
        if entry.event_id in gone:
            found.setdefault(email, {})[reason, list_id] = entry
    return found


def _with_kept(folded: dict[Key, Entry], kept: Mapping[Key, Entry], acts: Sequence[Act]) -> dict[Key, Entry]:
    """The earlier of both, and none that was lifted."""
    for key, entry in kept.items():
        if entry.since > lifted_until(acts, key):
            folded[key] = min(folded.get(key, entry), entry, key=lambda e: (e.since, e.event_id or ""))
    return folded


def _write(connection: Connection, rows: Entries, wanted: Entries) -> Difference:
    added = {place: entry for place, entry in wanted.items() if place not in rows}
    removed = {place: entry for place, entry in rows.items() if place not in wanted}
    changed = {place: entry for place, entry in wanted.items() if place in rows and rows[place] != entry}
    queries.remove(connection, removed)
    queries.put(connection, added | changed)
    return Difference(added, removed, changed)
