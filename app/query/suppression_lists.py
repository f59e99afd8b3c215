"""`GET /v1/suppressions`: the question and its SQL. The latest first, by (since, id)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from pydantic import Field
from sqlalchemy.engine import Connection

from app.clock import from_micros
from app.filters import Condition, Domains, Emails, Moments, Paging, Several, Texts, Unindexed
from app.models import SuppressionReason, SuppressionScope
from app.query.cursor import Position
from app.query.pages import by_index
from app.suppressions.queries import suppressions

# The columns with an index of their own, those that lead to the fewest rows first.
_INDEXED = ("email", "list_id", "email_domain", "reason", "scope")
_KEYS = (suppressions.c.since, suppressions.c.id)


class SuppressionQuery(Paging):
    """`GET /v1/suppressions`. A repeated filter means any of its values."""

    order: Literal["asc", "desc"] = Field("desc", description="by the time since when; `desc`: newest first")
    email: Emails = Field([], description="whole address; its domain in any case", examples=[["a@example.com"]])
    email_domain: Domains = Field([], description="what follows the `@`, in any case", examples=[["example.com"]])
    reason: Annotated[list[SuppressionReason], Several] = Field([], description="why")
    scope: Annotated[list[SuppressionScope], Several] = Field([], description="the address, or one list")
    list_id: Texts = Field([], description="Mailjet's id of the list that it is for", examples=[["17"]])
    after: Moments = Field([], description="since that time or later (RFC 3339)")
    before: Moments = Field([], description="since before that time (RFC 3339)")


def list_suppressions(
    connection: Connection, query: SuppressionQuery, position: Position | None
) -> tuple[Sequence[sa.RowMapping], bool]:
    """(the rows of one page after `position`, whether more follow)."""
    if not query.email:  # an address has few rows, which are sorted
        by_index(connection)
    rows = connection.execute(suppression_page(query, position)).mappings().all()
    return rows[: query.limit], len(rows) > query.limit


def suppression_page(query: SuppressionQuery, position: Position | None) -> sa.Select[Any]:
    """The statement of one page after `position` (since in microseconds, id), with one row more."""
    wanted = sa.select(suppressions).where(*_conditions(query))
    descending = query.order == "desc"
    if position is not None:
        since, id = position
        values = (sa.literal(from_micros(int(since)), _KEYS[0].type), sa.literal(id, _KEYS[1].type))
        here, there = sa.tuple_(*_KEYS), sa.tuple_(*values)
        wanted = wanted.where(here < there if descending else here > there)
    return wanted.order_by(*(key.desc() if descending else key.asc() for key in _KEYS)).limit(query.limit + 1)


def _conditions(query: SuppressionQuery) -> list[Condition]:
    """One index serves. Several values of it would not come in the order of the page, so then the page walks along
    `since`; but an address has few rows, which are sorted."""
    given = [name for name in _INDEXED if getattr(query, name)]
    serving = next((name for name in given if name == "email" or len(set(getattr(query, name))) == 1), None)
    found = [_any_of(name, getattr(query, name), by_index=name == serving) for name in given]
    since: sa.ColumnElement[Any] = suppressions.c.since
    if query.after:
        found.append(since >= min(query.after))
    if query.before:
        found.append(since < max(query.before))
    return found


def _any_of(name: str, values: Iterable[str], *, by_index: bool) -> Condition:
    column: sa.ColumnElement[Any] = suppressions.c[name] if by_index else Unindexed(suppressions.c[name])
    distinct = list(dict.fromkeys(values))
    return column == distinct[0] if len(distinct) == 1 else column.in_(distinct)
