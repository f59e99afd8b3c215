"""What else keeps something of a person: each such part adds its line here, and an erasure calls it.

Runs in the erasure's own transactions: once for each slice of events, before they are deleted, and once with no events
at the end. What it returns, table -> rows, is added to the receipt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from app.erasure.queries import blank_in_sends
from app.rollups import store as rollups
from app.suppressions import queries as suppressions


@dataclass(frozen=True, slots=True)
class Forgotten:
    """One address, its keyed hash, and those of its events that go in this transaction; none: the last call."""

    email: str
    email_hash: str
    event_ids: Sequence[str]
    keep_suppression: bool

    @property
    def is_last(self) -> bool:
        return not self.event_ids


def forget(connection: Connection, person: Forgotten) -> Mapping[str, int]:
    # With every slice, and so before the first event goes: what is in force must not be judged anew by what is left.
    found = suppressions.forget(connection, person.email, digest=person.email_hash, keep=person.keep_suppression)
    rollups.uncount(connection, person.event_ids)  # numbers, and no rows of the person's: the receipt has them already
    sends = {"sends": blank_in_sends(connection, person.email)} if person.is_last else {}
    return {**found, **sends}
