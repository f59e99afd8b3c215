"""All suppressions made again from what is stored, some hundred addresses in a transaction, also while events come in.

Needed after the policy was changed in the settings, and after events were taken out of the database by other means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app import operator_events
from app.clock import utc_now
from app.db import Database
from app.operator_events import SUPPRESSION_ADDED, SUPPRESSION_REMOVED
from app.suppressions import queries
from app.suppressions.keeping import Keeper
from app.suppressions.policy import CAUSING_TYPES
from app.suppressions.service import Difference, settle

ADDRESSES_AT_ONCE = 200


@dataclass(slots=True)
class Report:
    addresses: int = 0
    added: int = 0
    removed: int = 0
    changed: int = 0


def rebuild(
    database: Database, keeper: Keeper, *, on_progress: Callable[[Report], None] = lambda report: None
) -> Report:
    """Settle every address that any event, act or row tells of; sinks hear of what was added and removed."""
    report = Report()
    for emails in _addresses(database):
        difference = database.write(lambda connection, emails=emails: _settle(connection, emails, keeper))  # type: ignore[misc]
        report.addresses += len(emails)
        report.added += len(difference.added)
        report.removed += len(difference.removed)
        report.changed += len(difference.changed)
        on_progress(report)
    database.write(queries.drop_unused_spellings)
    return report


def _settle(connection: Connection, emails: Sequence[str], keeper: Keeper) -> Difference:
    difference = settle(connection, emails, keeper.policy)
    now = utc_now()
    keeper.tell(connection, SUPPRESSION_ADDED, difference.added, now)
    keeper.tell(connection, SUPPRESSION_REMOVED, difference.removed, now)
    return difference


def _addresses(database: Database) -> Iterator[Sequence[str]]:
    """Every address once, in the order of the indexes; one that comes up meanwhile is looked after by who stores it."""
    last = ""
    while True:
        with database.reading() as connection:
            found = connection.execute(addresses_statement(last)).scalars().all()
        if not found:
            return
        yield found
        last = found[-1]


def addresses_statement(last: str) -> sa.Select[Any]:
    """The next addresses after `last`: of events that can suppress, of acts and of rows."""
    events = queries.events.c
    causing = sa.and_(events.type.in_(CAUSING_TYPES), events.webhook != operator_events.WEBHOOK)
    parts = [
        _next(events.email, last).where(causing),
        _next(queries.acts.c.email, last),
        _next(queries.suppressions.c.email, last),
    ]
    every = sa.union(*(sa.select(part.subquery()) for part in parts)).subquery()
    return sa.select(every.c.email).order_by(every.c.email).limit(ADDRESSES_AT_ONCE)


def _next(column: sa.ColumnElement[Any], last: str) -> sa.Select[Any]:
    return sa.select(column).where(column > last).distinct().order_by(column).limit(ADDRESSES_AT_ONCE)
