"""The SQL of payload retention: what Mailjet sent, and what tells of a person, goes earlier than the event itself.

What statistics and audits need stays: types, times, ids of messages and campaigns, the domain, the states of
deliveries. An event has been redacted where its `raw` is null.

Nothing here looks at an event twice for nothing. A mark tells the id up to which all was done; what is stored later
with an older time is found by its `seq`, from a second mark on; what is still owed to a sink is noted in a small table
and looked at again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app import operator_events
from app.db import insert_missing
from app.filters import Unindexed
from app.maintenance.expiry import attempts, deliveries, events
from app.models import DeliveryState, KeptPayload, RetentionMark

_marks: sa.Table = RetentionMark.__table__  # type: ignore[attr-defined]
kept: sa.Table = KeptPayload.__table__  # type: ignore[attr-defined]

# Texts that Mailjet or the sender chose: harmless, unless somebody put an address into one.
_TEXTS = ("message_id", "message_guid", "campaign_id", "list_id", "custom_campaign", "reason", "reason_group")
_PERSONAL = ("email", "contact_id", "custom_id", "raw")


def get_mark(connection: Connection, name: str) -> str | None:
    return connection.execute(sa.select(_marks.c.value).where(_marks.c.name == name)).scalar_one_or_none()


def set_mark(connection: Connection, name: str, value: str) -> None:
    insert_missing(connection, _marks, ("name", "value"), [(name, value)])
    connection.execute(sa.update(_marks).where(_marks.c.name == name).values(value=value))


def set_marks(connection: Connection, marks: Mapping[str, str]) -> None:
    for name, value in marks.items():
        set_mark(connection, name, value)


def ids_between(connection: Connection, after: str, upto: str, most: int) -> list[str]:
    """The first `most` events after an id."""
    statement = sa.select(events.c.id).where(events.c.id > after, events.c.id <= upto)
    return list(connection.execute(statement.order_by(events.c.id).limit(most)).scalars())


def newest_seq(connection: Connection) -> int:
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(events.c.seq), 0))).scalar_one())


def late_ids(connection: Connection, after: int, upto: int, mark: str) -> list[str]:
    """Of the events numbered in (after, upto], those whose time lies before the mark."""
    numbered = sa.and_(events.c.seq > after, events.c.seq <= upto)
    statement = sa.select(events.c.id).where(numbered, Unindexed(events.c.id) <= mark)
    return list(connection.execute(statement).scalars())


def kept_ids(connection: Connection, after: str, upto: str, most: int) -> list[str]:
    within = sa.and_(kept.c.event_id > after, kept.c.event_id <= upto)
    statement = sa.select(kept.c.event_id).where(within).order_by(kept.c.event_id).limit(most)
    return list(connection.execute(statement).scalars())


def redact(connection: Connection, ids: Sequence[str], *, though_owed: bool = False) -> int:
    """Blank these events but those owed to a sink, which are noted; the number of events blanked."""
    if not ids:
        return 0
    owed = set() if though_owed else _owed(connection, ids)
    free = [event_id for event_id in ids if event_id not in owed]
    insert_missing(connection, kept, ("event_id",), [(event_id,) for event_id in sorted(owed)])
    connection.execute(sa.delete(kept).where(kept.c.event_id.in_(free)))
    blanked = connection.execute(
        sa.update(events)
        .where(events.c.id.in_(free), events.c.raw.is_not(None), Unindexed(events.c.webhook) != operator_events.WEBHOOK)
        .values(**dict.fromkeys(_PERSONAL), **{name: _without_address(events.c[name]) for name in _TEXTS})
    ).rowcount
    _blank_answers(connection, free)
    return blanked


def _owed(connection: Connection, ids: Sequence[str]) -> set[str]:
    pending = deliveries.c.state == DeliveryState.PENDING.value
    statement = sa.select(deliveries.c.event_id).where(deliveries.c.event_id.in_(ids), pending)
    return set(connection.execute(statement).scalars())


def _without_address(column: sa.ColumnElement[str]) -> sa.ColumnElement[str | None]:
    return sa.case((column.contains("@"), sa.null()), else_=column)


def _blank_answers(connection: Connection, ids: Sequence[str]) -> None:
    """What sinks answered may repeat what they were sent, and the key of an order may be the address."""
    told = sa.or_(deliveries.c.order_key.is_not(None), deliveries.c.first_excerpt.is_not(None))
    connection.execute(
        sa.update(deliveries).where(deliveries.c.event_id.in_(ids), told).values(order_key=None, first_excerpt=None)
    )
    connection.execute(
        sa.update(attempts)
        .where(attempts.c.event_id.in_(ids), attempts.c.response_excerpt.is_not(None))
        .values(response_excerpt=None)
    )
