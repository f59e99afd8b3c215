"""One message's timeline: the SQL and the shape of `GET /v1/messages/{message_id}`.

A message has few events, until somebody clicks a hundred thousand times: then the list of events is cut off, while
counts, times and state stay exact, since the database adds them up.

Two webhooks of one connection may both have stored the same arrival, under ids of their own. The same raw text at
another of its webhooks is such a copy: it is counted and shown once, with the ids of all. Within one webhook ids keep
repeats out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import Field
from sqlalchemy.engine import Connection

from app import operator_events
from app.filters import Condition, EventFilters, Filters, Texts, Unindexed, event_conditions
from app.query.delivery_pages import DELIVERY_COLUMNS, deliveries
from app.query.event_pages import EVENT_COLUMNS, events
from app.query.pages import Row
from app.query.timeline import Tally, summary
from app.views import delivery_view, event_view

MAX_EVENTS = 1000
IDS_AT_ONCE = 1000
_KIND = (events.c.type, events.c.outcome, events.c.permanent)
_TALLY = (
    sa.func.count().label("count"),
    sa.func.min(events.c.occurred_at).label("first"),
    sa.func.max(events.c.occurred_at).label("last"),
)


class MessageQuery(Filters):
    """`GET /v1/messages/{message_id}`."""

    webhook: Texts = Field([], description="only what was stored for these webhooks", examples=[["orders"]])
    include: list[Literal["raw", "deliveries"]] = Field(
        [],
        max_length=10,
        description="`raw`: each event with what Mailjet sent; `deliveries`: each with its deliveries and their states",
    )


@dataclass(frozen=True, slots=True)
class Arrival:
    """One event as it arrived: a row, and the rows of the same arrival at other webhooks."""

    row: Row
    copies: Sequence[Row] = ()

    @property
    def ids(self) -> list[str]:
        return [self.row["id"], *(copy["id"] for copy in self.copies)]


def find_message(connection: Connection, asked: str, query: MessageQuery) -> dict[str, Any] | None:
    """The message whose MessageID, or else whose GUID, is `asked`; None where no event tells of one."""
    conditions = _conditions_of(connection, asked, query.webhook)
    webhooks, tallies = _tallies(connection, conditions)
    if not tallies:
        return None
    arrivals = _arrivals(connection, conditions, webhooks)
    owed = _deliveries_of(connection, arrivals) if "deliveries" in query.include else None
    return {
        "message_id": _first_told(arrivals, "message_id"),
        "message_guid": _first_told(arrivals, "message_guid"),
        "email": _first_told(arrivals, "email"),
        **summary(tallies),
        "events": [_event_view(arrival, owed, raw="raw" in query.include) for arrival in arrivals],
        "events_truncated": sum(tally.count for tally in tallies) > len(arrivals),
    }


# --- what belongs to it ----------------------------------------------------------------------------------------------


def _conditions_of(connection: Connection, asked: str, webhooks: list[str]) -> list[Condition]:
    """By MessageID; a GUID leads to it, so that both questions have one answer. Without a MessageID the GUID serves."""
    by_id = message_conditions("message_id", asked, webhooks)
    if connection.execute(sa.select(events.c.seq).where(*by_id).limit(1)).first() is not None:
        return by_id
    by_guid = message_conditions("message_guid", asked, webhooks)
    found = sa.select(events.c.message_id).where(*by_guid, Unindexed(events.c.message_id).is_not(None)).limit(1)
    message_id = connection.execute(found).scalar_one_or_none()
    return by_guid if message_id is None else message_conditions("message_id", message_id, webhooks)


def message_conditions(name: Literal["message_id", "message_guid"], value: str, webhooks: list[str]) -> list[Condition]:
    """Events with this value, never operator events, whatever webhook is asked for."""
    asked = EventFilters.model_validate({name: [value], "webhook": webhooks})
    return [*event_conditions(asked, events.c), Unindexed(events.c.webhook) != operator_events.WEBHOOK]


# --- counts ----------------------------------------------------------------------------------------------------------


def tally_statement(conditions: list[Condition]) -> sa.Select[Any]:
    """Counts by webhook and by what matters for counts and state."""
    # Hidden from the planner, which else walks the whole index of webhooks to spare itself a small sort.
    kind = (Unindexed(events.c.webhook), *_KIND)
    return sa.select(*kind, *_TALLY).where(*conditions).group_by(*kind)


def copied_tally_statement(conditions: list[Condition]) -> sa.Select[Any]:
    """The same where there may be copies: each raw text counts once for a connection, whatever its webhook."""
    content = sa.func.coalesce(events.c.raw, sa.cast(events.c.id, sa.Text)).label("content")
    once = (
        sa.select(*_KIND, events.c.occurred_at, events.c.connection, content).where(*conditions).distinct().subquery()
    )
    alike = (once.c.type, once.c.outcome, once.c.permanent)
    times = sa.func.min(once.c.occurred_at), sa.func.max(once.c.occurred_at)
    return sa.select(*alike, sa.func.count(), *times).group_by(*alike)


def _tallies(connection: Connection, conditions: list[Condition]) -> tuple[int, list[Tally]]:
    """(the number of webhooks that have stored events, what they hold)."""
    rows = connection.execute(tally_statement(conditions)).all()
    webhooks = len({row[0] for row in rows})
    if webhooks > 1:
        return webhooks, [Tally(*row) for row in connection.execute(copied_tally_statement(conditions))]
    return webhooks, [Tally(*row[1:]) for row in rows]


# --- events ----------------------------------------------------------------------------------------------------------


def events_statement(conditions: list[Condition], limit: int) -> sa.Select[Any]:
    """The first events. An id starts with its time, so ids are the order."""
    return sa.select(*EVENT_COLUMNS).where(*conditions).order_by(events.c.id).limit(limit)


def _arrivals(connection: Connection, conditions: list[Condition], webhooks: int) -> list[Arrival]:
    """The first thousand, by time and id. Each has at most one copy at each webhook, so enough rows are read."""
    rows = connection.execute(events_statement(conditions, MAX_EVENTS * webhooks)).mappings()
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        # A mapping of SQLAlchemy's own would look each name up again and again.
        key = row["connection"], row["occurred_at"], row["raw"] or row["id"]
        alike.setdefault(key, []).append(dict(row))
    found = [_arrival(copies) for copies in alike.values()][:MAX_EVENTS]
    return sorted(found, key=lambda arrival: str(arrival.row["id"]))


def _arrival(rows: Sequence[Row]) -> Arrival:
    """The copy of the first webhook by name stands for all: that one holds the callback at Mailjet."""
    row, *copies = sorted(rows, key=lambda row: str(row["webhook"]))
    return Arrival(row, copies)


def _first_told(arrivals: Sequence[Arrival], name: str) -> str | None:
    return next((arrival.row[name] for arrival in arrivals if arrival.row[name] is not None), None)


def _event_view(arrival: Arrival, owed: Mapping[str, Sequence[Row]] | None, *, raw: bool) -> dict[str, Any]:
    view = event_view(arrival.row, include_raw=raw)
    view["copies"] = [{"webhook": copy["webhook"], "id": copy["id"]} for copy in arrival.copies]
    if owed is not None:
        view["deliveries"] = [delivery_view(row) for id in arrival.ids for row in owed.get(id, ())]
    return view


def deliveries_statement(ids: Sequence[str]) -> sa.Select[Any]:
    mine = sa.select(*DELIVERY_COLUMNS).where(deliveries.c.event_id.in_(ids))
    return mine.order_by(deliveries.c.event_id, deliveries.c.sink)


def _deliveries_of(connection: Connection, arrivals: Sequence[Arrival]) -> dict[str, list[Row]]:
    ids = [id for arrival in arrivals for id in arrival.ids]
    found: dict[str, list[Row]] = {}
    for start in range(0, len(ids), IDS_AT_ONCE):
        for row in connection.execute(deliveries_statement(ids[start : start + IDS_AT_ONCE])).mappings():
            found.setdefault(row["event_id"], []).append(dict(row))
    return found
