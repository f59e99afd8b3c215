"""Our cursors over Mailjet's Limit and Offset. Pure.

A cursor holds the offset and the id of the last object shown, bound to the connection, the list and its filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from app.errors import BadCursor
from app.mailjet.fields import Given
from app.mailjet.pages import MAX_LIMIT, Place
from app.query.cursor import decode_cursor, encode_cursor, scope_of

MAX_OFFSET = 2**31 - 1


def _whole(value: Any) -> Any:
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise PydanticCustomError("int_parsing", "must be a whole number")
    return value


class Paging(Given):
    """How many, and where to go on."""

    limit: Annotated[int, BeforeValidator(_whole)] = Field(
        50, ge=1, le=MAX_LIMIT, description="most objects in one answer (`Limit`)"
    )
    cursor: str | None = Field(
        None, description="`next_cursor` of the answer before; every other parameter but `limit` stays the same"
    )


def scope(name: str, query: Mapping[str, str | int]) -> bytes:
    """What a cursor is bound to: the list, and its filters."""
    filters = {key: [str(value)] for key, value in query.items()}
    return scope_of(f"mailjet:{name}", filters, "ID")


def place_of(cursor: str | None, bound_to: bytes) -> Place:
    """Raises BadCursor."""
    if cursor is None:
        return Place()
    offset, last_id = decode_cursor(cursor, bound_to, (int, str))
    if not isinstance(offset, int) or not 0 <= offset <= MAX_OFFSET:
        raise BadCursor("the cursor is broken; start again without it")
    return Place(offset, str(last_id))


def cursor_of(place: Place | None, bound_to: bytes) -> str | None:
    return None if place is None else encode_cursor(bound_to, (place.offset, place.last_id))
