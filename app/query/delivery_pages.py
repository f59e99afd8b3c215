"""Which way a page of deliveries takes: along their key, or by the small indexes of pending and of dead ones."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.filters import Condition, DeliveryQuery, delivery_conditions
from app.models import Delivery, DeliveryState
from app.query.cursor import Position
from app.query.pages import Enough, Page, by_index, fetch, is_few, page_of, read_merged, read_walk
from app.query.walks import Walk, distinct_statement, sorted_page

deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]

DELIVERY_COLUMNS = tuple(
    column for column in deliveries.c if column.name not in ("schedule_step", "lease_token", "replay")
)
KEYS = (deliveries.c.event_id, deliveries.c.sink)
MOST_SORTED = 5_000  # deliveries that are read for one page; they are small
MOST_SINKS = 1_000
MOST_MERGED = 32  # sinks whose dead deliveries are merged into one page


def read_deliveries(connection: Connection, query: DeliveryQuery, position: Position | None, enough: Enough) -> Page:
    """A page of deliveries after `position` (event_id, sink)."""
    by_index(connection)
    if query.event_id:
        return page_of(
            fetch(connection, sorted_deliveries(query, position, by_index=False), query.limit), KEYS, query.limit
        )
    states = set(query.state)
    if len(states) == 1 and states < {DeliveryState.DEAD, DeliveryState.PENDING}:
        found = _by_state(connection, query, position)
        if found is not None:
            return found
    return read_walk(connection, key_walk(query, position), query.limit, enough)


def _by_state(connection: Connection, query: DeliveryQuery, position: Position | None) -> Page | None:
    """By the index of pending or of dead deliveries; None where it leads to more than can be sorted."""
    sinks = query.sink or known_sinks(connection, query)
    if not sinks:
        return Page((), None)  # none is in that state
    query = query.model_copy(update={"sink": sinks})
    if is_few(connection, deliveries, index_conditions(query), MOST_SORTED):
        return page_of(fetch(connection, sorted_deliveries(query, position), query.limit), KEYS, query.limit)
    if query.state[0] is DeliveryState.PENDING or query.webhook or query.type or query.after or query.before:
        return None
    walks = [dead_walk(query, sink, position) for sink in sinks]
    return read_merged(connection, walks, query.limit) if 0 < len(walks) <= MOST_MERGED else None


def known_sinks(connection: Connection, query: DeliveryQuery) -> list[str]:
    """Those that have deliveries in the one state asked for."""
    state = index_conditions(DeliveryQuery(state=query.state))
    statement = distinct_statement(deliveries.c.sink, *state, most=MOST_SINKS)
    return [name for (name,) in connection.execute(statement)]


# --- the ways --------------------------------------------------------------------------------------------------------


def key_walk(query: DeliveryQuery, position: Position | None) -> Walk:
    conditions = delivery_conditions(query, deliveries.c, by_index=False)
    return Walk(sa.select(*DELIVERY_COLUMNS), KEYS, query.order == "desc", conditions).after(position)


def dead_walk(query: DeliveryQuery, sink: str, position: Position | None) -> Walk:
    """Along the dead of one sink: its index holds the events' ids in order."""
    walk = key_walk(query.model_copy(update={"state": [], "sink": []}), position)
    return Walk(
        walk.rows, KEYS, walk.descending, prefix=None, low=walk.low, high=walk.high,
        partial=index_conditions(query.model_copy(update={"sink": [sink]})),
    )  # fmt: skip


def sorted_deliveries(query: DeliveryQuery, position: Position | None, *, by_index: bool = True) -> sa.Select[Any]:
    """By the index of a state, or of the events' ids."""
    conditions = delivery_conditions(query, deliveries.c, by_index=by_index) + key_walk(query, position).conditions
    return sorted_page(
        sa.select(*DELIVERY_COLUMNS), KEYS, conditions, descending=query.order == "desc", limit=query.limit + 1
    )


def index_conditions(query: DeliveryQuery) -> list[Condition]:
    """What the indexes of pending and of dead deliveries can tell: the state and the sink."""
    return delivery_conditions(DeliveryQuery(state=query.state, sink=query.sink), deliveries.c)
