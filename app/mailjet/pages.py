"""One page of a list at Mailjet, by Limit and Offset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from app.mailjet.answers import whole_number
from app.mailjet.door import Door, Query
from app.mailjet.operations import Operation

MAX_LIMIT = 1000  # Mailjet gives no more; 0 would mean that many as well


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page begins, and the id of the last object before it: lists shift while a caller walks them."""

    offset: int = 0
    last_id: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Objects as Mailjet sent them, in order, and where the next page begins; None at the end."""

    items: Sequence[dict[str, Any]]
    following: Place | None


async def get_page(
    door: Door, operation: Operation, path: str, query: Query, *, place: Place, limit: int, sort: str = "ID"
) -> Page:
    """Up to `limit` objects. A page that is not full is the last; `Total` tells nothing, it counts this page.

    What the last page showed and an insertion or a deletion moved into this one is left out; `sort` must be by id for
    that, else nothing is left out.
    """
    asked: dict[str, str | int] = {**query, "Limit": limit, "Sort": sort}
    if place.offset:
        asked["Offset"] = place.offset
    items = (await door.ask(operation, path, asked)).data()
    shown = beyond(items, place.last_id, sort)
    if len(items) < limit:
        return Page(shown, None)
    last_id = _id_of(items[-1])
    return Page(shown, Place(place.offset + len(items), "" if last_id is None else str(last_id)))


def beyond(items: Sequence[dict[str, Any]], last_id: str, sort: str) -> Sequence[dict[str, Any]]:
    """Those that come after the object `last_id` in this order; all, where the page is not in that order."""
    ids = [_id_of(item) for item in items]
    if not last_id.isdigit() or sort not in ("ID", "ID DESC") or None in ids:
        return items
    sign = 1 if sort == "ID" else -1
    places = [sign * number for number in ids if number is not None]
    if any(left >= right for left, right in pairwise(places)):
        return items
    return [item for item, number in zip(items, places, strict=True) if number > sign * int(last_id)]


def _id_of(item: Mapping[str, Any]) -> int | None:
    return whole_number(item.get("ID"))
