"""Which way a page of events takes: the index that serves its filters best, by what the index itself tells.

Neither database knows how common a value is (SQLite keeps no statistics, PostgreSQL's are of the day before), so the
index is asked: a value that leads to few events is looked up and those are sorted; one that leads to many is met soon
along the ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.db import BEYOND_IDS, NO_ID
from app.filters import (
    SELECTIVE,
    EventQuery,
    id_bounds,
    meant,
    named_conditions,
    other_conditions,
)
from app.models import Event
from app.query.cursor import Position
from app.query.pages import Enough, Page, by_index, fetch, is_few, page_of, read_merged, read_walk
from app.query.walks import Bound, Walk, distinct_statement, sorted_page
from app.views import VIEW_COLUMNS

events: sa.Table = Event.__table__  # type: ignore[attr-defined]
EVENT_COLUMNS = tuple(events.c[name] for name in VIEW_COLUMNS)

MOST_SORTED = 2_000  # events that are read for one page, 10 to 20 ms; of a value with more, some are soon met by chance
MOST_MERGED = 32  # walks for one page

KEYS = (events.c.id,)
PAIR = ("webhook", "type")


@dataclass(frozen=True, slots=True)
class Asked:
    """A page that is asked for."""

    query: EventQuery
    position: Position | None

    @property
    def descending(self) -> bool:
        return self.query.order == "desc"

    @property
    def campaign(self) -> str | None:
        """The only one asked for."""
        campaigns = set(self.query.campaign_id)
        return campaigns.pop() if len(campaigns) == 1 else None

    def walk(self, *, served: Sequence[str] = (), **index: Any) -> Walk:
        """Along an index that serves some of the filters, or along the ids."""
        first, beyond = id_bounds(self.query)
        walk = Walk(
            sa.select(*EVENT_COLUMNS), KEYS, self.descending, other_conditions(self.query, events.c, served=served),
            low=Bound((first,), included=True) if first != NO_ID else None,
            high=Bound((beyond,), included=False) if beyond != BEYOND_IDS else None, **index,
        )  # fmt: skip
        return walk.after(self.position)

    def sorted(self, served: Sequence[str]) -> sa.Select[Any]:
        """The page by the index of `served`, all of whose events are read."""
        conditions = named_conditions(self.query, events.c, served) + other_conditions(
            self.query, events.c, served=served
        )
        return sorted_page(
            sa.select(*EVENT_COLUMNS), KEYS, [*conditions, *self.walk().conditions], descending=self.descending,
            limit=self.query.limit + 1,
        )  # fmt: skip


def read_events(connection: Connection, query: EventQuery, position: Position | None, enough: Enough) -> Page:
    """A page of events after `position` (id,). An id starts with its time, so ids are the order."""
    by_index(connection)
    asked = Asked(_meant(query), position)
    query = asked.query
    for served in _selective(asked):
        if _leads_to_few(connection, query, served):
            return page_of(fetch(connection, asked.sorted(served), query.limit), KEYS, query.limit)
    if (campaign := asked.campaign) is not None:
        return read_walk(connection, campaign_walk(asked, campaign), query.limit, enough)
    if query.webhook or query.type:
        return _read_by_type(connection, asked, enough)
    return read_walk(connection, asked.walk(), query.limit, enough)


def _read_by_type(connection: Connection, asked: Asked, enough: Enough) -> Page:
    """Along the one part of the index with a webhook and a type; or along several, where that is all that is asked."""
    limit = asked.query.limit
    webhooks = list(dict.fromkeys(asked.query.webhook)) or known_webhooks(connection)
    pairs = _pairs(connection, webhooks, asked.query.type)
    walks = [pair_walk(asked, *pair) for pair in pairs[:MOST_MERGED]]
    if len(pairs) == 1:
        return read_walk(connection, walks[0], limit, enough)
    if 0 < len(pairs) <= MOST_MERGED and not walks[0].besides:
        return read_merged(connection, walks, limit)
    named = Asked(asked.query.model_copy(update={"webhook": webhooks}), asked.position)
    if (asked.query.webhook or 0 < len(webhooks) <= MOST_MERGED) and _leads_to_few(connection, named.query, PAIR):
        return page_of(fetch(connection, named.sorted(PAIR), limit), KEYS, limit)
    return read_walk(connection, asked.walk(), limit, enough)


def _pairs(connection: Connection, webhooks: Sequence[str], types: Sequence[str]) -> list[tuple[str, str]]:
    """The webhooks with the types asked for, or with those that events bear; only some where they are too many."""
    if types:
        return list(islice(product(webhooks, dict.fromkeys(types)), MOST_MERGED + 1))
    found = ((webhook, kind) for webhook in webhooks for kind in known_types(connection, webhook))
    return list(islice(found, MOST_MERGED + 1))


def _meant(query: EventQuery) -> EventQuery:
    found = meant(query)
    assert isinstance(found, EventQuery)
    return found


def _selective(asked: Asked) -> Iterator[tuple[str, ...]]:
    """Filters with an index in which one value leads to few events, the fewest first."""
    for name in SELECTIVE:
        if getattr(asked.query, name) and not (name == "campaign_id" and asked.campaign is not None):
            yield (name,)


def _leads_to_few(connection: Connection, query: EventQuery, served: Sequence[str]) -> bool:
    return is_few(connection, events, named_conditions(query, events.c, served), MOST_SORTED)


# --- the ways --------------------------------------------------------------------------------------------------------


def campaign_walk(asked: Asked, campaign: str) -> Walk:
    return asked.walk(
        served=("campaign_id",),
        prefix={events.c.campaign_id: campaign},
        partial=[events.c.campaign_id.is_not(None)],
    )


def pair_walk(asked: Asked, webhook: str, event_type: str) -> Walk:
    return asked.walk(served=PAIR, prefix={events.c.webhook: webhook, events.c.type: event_type})


def known_webhooks(connection: Connection) -> list[str]:
    """The names that events bear."""
    statement = distinct_statement(events.c.webhook, most=MOST_MERGED + 1)
    return [name for (name,) in connection.execute(statement)]


def known_types(connection: Connection, webhook: str) -> list[str]:
    """The types of one webhook's events."""
    statement = distinct_statement(events.c.type, events.c.webhook == webhook, most=MOST_MERGED + 1)
    return [name for (name,) in connection.execute(statement)]
