"""What the ledger says and what the tables hold, counted by slot in one walk over an index each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app import ledger
from app.ledger import QUARANTINE, SLOT_MICROS, THE_EVENTS, Line, slot_start
from app.models import Delivery, DeliveryState, Event, LedgerEntry, Quarantined

_events: sa.Table = Event.__table__  # type: ignore[attr-defined]
_deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
_ledger: sa.Table = LedgerEntry.__table__  # type: ignore[attr-defined]
_quarantine: sa.Table = Quarantined.__table__  # type: ignore[attr-defined]

# A delivery in a state that there is none of is not owed and not settled: it counts as missing.
_known = _deliveries.c.state.in_([state.value for state in DeliveryState])
MOST_NAMED = 10  # ids named for one difference
MOST_ORPHANS = 1000


@dataclass(frozen=True, slots=True)
class Range:
    """Whole slots: `first` and those after it, up to and without `end`; None is open."""

    first: str | None = None
    end: str | None = None

    def of_slots(self, column: sa.ColumnElement[str]) -> list[sa.ColumnElement[bool]]:
        return _between(column, self.first, self.end)

    def of_ids(self, column: sa.ColumnElement[str]) -> list[sa.ColumnElement[bool]]:
        first, end = (None if slot is None else ledger.first_id_of(slot) for slot in (self.first, self.end))
        return _between(column, first, end)

    def of_times(self, column: sa.ColumnElement[Any]) -> list[sa.ColumnElement[bool]]:
        first, end = (None if slot is None else slot_start(slot) for slot in (self.first, self.end))
        return _between(column, first, end)


def _between(column: sa.ColumnElement[Any], first: object, end: object) -> list[sa.ColumnElement[bool]]:
    low = [] if first is None else [column >= first]
    return low if end is None else [*low, column < end]


@dataclass(slots=True)
class Account:
    """One line of the ledger beside what is there: `states` of deliveries, `{"stored": n}` of events,
    `{"quarantined": n}` of what could not be read."""

    made: int = 0
    erased: int = 0
    expired: int = 0
    states: dict[str, int] = field(default_factory=dict)

    @property
    def there(self) -> int:
        return sum(self.states.values())

    @property
    def missing(self) -> int:
        """Below zero: more are there than were ever made."""
        return self.made - self.erased - self.expired - self.there


def accounts(connection: Connection, wanted: Range) -> dict[Line, Account]:
    """(slot, webhook, sink) -> its account; the sink is `THE_EVENTS` or `QUARANTINE` in lines of these."""
    found: dict[Line, Account] = {}
    for slot, webhook, sink, made, erased, expired in connection.execute(_ledger_sums(wanted)):
        found[slot, webhook, sink] = Account(int(made), int(erased), int(expired))
    for slot, webhook, number in connection.execute(_stored(wanted)):
        found.setdefault((slot, webhook, THE_EVENTS), Account()).states = {"stored": int(number)}
    for number_of_slot, webhook, number in connection.execute(_quarantined(wanted)):
        line = (ledger.slot_of_micros(int(number_of_slot) * SLOT_MICROS), webhook, QUARANTINE)
        found.setdefault(line, Account()).states = {"quarantined": int(number)}
    for slot, webhook, sink, state, number in connection.execute(_owed(wanted)):
        found.setdefault((slot, webhook, sink), Account()).states[state] = int(number)
    return found


def _ledger_sums(wanted: Range) -> sa.Select[Any]:
    keys = (_ledger.c.slot, _ledger.c.webhook, _ledger.c.sink)
    sums = [sa.func.sum(_ledger.c[entry]) for entry in ledger.Entry]
    return sa.select(*keys, *sums).where(*wanted.of_slots(_ledger.c.slot)).group_by(*keys)


def _stored(wanted: Range) -> sa.Select[Any]:
    slot = ledger.slot_within(_events.c.id)
    keys = (slot, _events.c.webhook)
    return sa.select(*keys, sa.func.count()).where(*wanted.of_ids(_events.c.id)).group_by(*keys)


def _quarantined(wanted: Range) -> sa.Select[Any]:
    micros = sa.type_coerce(_quarantine.c.received_at, sa.BigInteger)
    # By its remainder, since PostgreSQL's and SQLite's dialects differ in what `/` of whole numbers is.
    slot = ((micros - micros % SLOT_MICROS) // SLOT_MICROS).label("slot")
    inner = sa.select(slot, _quarantine.c.webhook).where(*wanted.of_times(_quarantine.c.received_at)).subquery()
    return sa.select(inner.c.slot, inner.c.webhook, sa.func.count()).group_by(inner.c.slot, inner.c.webhook)


def _owed(wanted: Range) -> sa.Select[Any]:
    slot = ledger.slot_within(_deliveries.c.event_id)
    keys = (slot, _deliveries.c.webhook, _deliveries.c.sink, _deliveries.c.state)
    return sa.select(*keys, sa.func.count()).where(*wanted.of_ids(_deliveries.c.event_id), _known).group_by(*keys)


# --- names for a difference ------------------------------------------------------------------------------------------


def orphans(connection: Connection, wanted: Range) -> list[tuple[str, str, str]]:
    """(event's id, webhook, sink) of deliveries whose event is not there; not more than can be named."""
    gone = sa.not_(sa.exists().where(_events.c.id == _deliveries.c.event_id))
    columns = (_deliveries.c.event_id, _deliveries.c.webhook, _deliveries.c.sink)
    statement = sa.select(*columns).where(*wanted.of_ids(_deliveries.c.event_id), gone)
    found = connection.execute(statement.order_by(_deliveries.c.event_id).limit(MOST_ORPHANS))
    return [(event_id, webhook, sink) for event_id, webhook, sink in found]


def events_there(connection: Connection, slot: str, webhook: str) -> Sequence[str]:
    """Events of a slot that should have none."""
    here = Range(slot, ledger.next_slot(slot)).of_ids(_events.c.id)
    statement = sa.select(_events.c.id).where(*here, _events.c.webhook == webhook).order_by(_events.c.id)
    return connection.execute(statement.limit(MOST_NAMED)).scalars().all()


def deliveries_there(connection: Connection, slot: str, webhook: str, sink: str) -> Sequence[str]:
    """Events of the deliveries to a sink that is owed nothing in this slot."""
    here = Range(slot, ledger.next_slot(slot)).of_ids(_deliveries.c.event_id)
    mine = (_deliveries.c.webhook == webhook, _deliveries.c.sink == sink, _known)
    statement = sa.select(_deliveries.c.event_id).where(*here, *mine).order_by(_deliveries.c.event_id)
    return connection.execute(statement.limit(MOST_NAMED)).scalars().all()


def without_delivery(connection: Connection, slot: str, webhook: str, sink: str) -> Sequence[str]:
    """Events of the slot that owe the sink nothing: among them are those that lost their delivery."""
    owes = sa.exists().where(_deliveries.c.event_id == _events.c.id, _deliveries.c.sink == sink, _known)
    here = Range(slot, ledger.next_slot(slot)).of_ids(_events.c.id)
    mine = (_events.c.webhook == webhook, _events.c.test == sa.false(), sa.not_(owes))
    statement = sa.select(_events.c.id).where(*here, *mine).order_by(_events.c.id).limit(MOST_NAMED)
    return connection.execute(statement).scalars().all()
