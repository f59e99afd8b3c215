"""What statistics are counted by. Pure.

A **cell** is a set of events that are alike in some fields. Its id is a digest of these fields, so every replica makes
the same without asking, and a cell that is known is never looked up. A **view** names the fields that cells of one kind
tell apart: a question is answered from the smallest view that knows all the fields it asks for, since a table of
everything by everything would be nearly as long as that of the events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import orjson

BASE = ("webhook", "type", "outcome", "permanent", "test", "automated")
"""Fields of every cell: they have few values."""


class View(IntEnum):
    TOTAL = 0
    DOMAIN = 1
    CAMPAIGN = 2
    REASON = 3
    WHOLE = 9  # of single events: see `Member`


FIELDS: dict[View, tuple[str, ...]] = {
    View.TOTAL: BASE,
    View.DOMAIN: (*BASE, "email_domain"),
    View.CAMPAIGN: (*BASE, "campaign_id", "custom_campaign"),
    View.REASON: (*BASE, "reason", "reason_group"),
}
COUNTED = tuple(FIELDS)
"""The views that counts are kept for, hour by hour and day by day."""
ALL_FIELDS = (*BASE, "email_domain", "campaign_id", "custom_campaign", "reason", "reason_group")
FIELDS[View.WHOLE] = ALL_FIELDS

HOUR_MICROS = 3_600_000_000
HOURS_OF_A_DAY = 24
TOP_LEVEL = 15
_POSITIVE = 2**63 - 1


class Unit(IntEnum):
    """How long a count's time is; its `start` is the number of hours or days since 1970."""

    HOUR = 0
    DAY = 1


class Fact(NamedTuple):
    """What statistics need of one event: `values` in the order of `ALL_FIELDS`."""

    seq: int
    occurred_micros: int
    email: str | None
    message_id: str | None
    values: tuple[Any, ...]

    @property
    def hour(self) -> int:
        return self.occurred_micros // HOUR_MICROS


class Member(NamedTuple):
    """One event in the table that recipients and messages are told apart by. 0: it has none."""

    level: int
    hour: int
    seq: int
    cell: int
    recipient: int
    message: int


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells that one event counts in: (view, id) of the counted views, and the id of the whole one."""

    counted: tuple[tuple[View, int], ...]
    whole: int


def smallest_view(names: set[str]) -> View | None:
    """The view with the fewest cells that tells all of `names` apart; None where only single events do."""
    return next((view for view in COUNTED if names <= set(FIELDS[view])), None)


def cell_id(view: View, values: tuple[Any, ...]) -> int:
    """`values` in the order of `FIELDS[view]`; 63 bits, so that a million cells share one by a chance of 1 in 10^7."""
    digest = hashlib.blake2b(orjson.dumps([int(view), *values]), digest_size=8).digest()
    return int.from_bytes(digest, "big") & _POSITIVE


def cells_of(values: tuple[Any, ...]) -> Cells:
    """The cells of an event whose values are in the order of `ALL_FIELDS`."""
    counted = tuple((view, cell_id(view, part)) for view, part in parts_of(values) if view is not View.WHOLE)
    return Cells(counted, cell_id(View.WHOLE, values))


def parts_of(values: tuple[Any, ...]) -> Iterator[tuple[View, tuple[Any, ...]]]:
    """(view, the values it knows) of every view."""
    return ((view, tuple(values[at] for at in places)) for view, places in _PLACES.items())


_PLACES = {view: tuple(ALL_FIELDS.index(name) for name in names) for view, names in FIELDS.items()}


def member_of(fact: Fact, cell: int, key: bytes) -> Member:
    """`key` keeps the digests from being looked up in a list of addresses by who has just this table.

    A level holds half of what the level below holds, by the recipient's digest alone: all levels from `n` up are a
    sample of one in 2^n recipients with everything that happened to them.
    """
    recipient, message = digest_of(fact.email, key), digest_of(fact.message_id, key)
    return Member(level_of(recipient or message), fact.hour, fact.seq, cell, recipient, message)


def digest_of(text: str | None, key: bytes) -> int:
    """63 bits that are never 0; 0 for what is not there."""
    if text is None:
        return 0
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "big") & _POSITIVE) or 1


def level_of(digest: int) -> int:
    """The number of zeros a digest ends with, at most 15; each more is half as likely."""
    return min((digest & -digest).bit_length() - 1, TOP_LEVEL) if digest else TOP_LEVEL
