"""How Mailjet words its answers: the envelope of REST v3, its errors, and the flat errors of v3.1 and v4."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from starlette.responses import Response

from app.simulator.callbacks import CallbackError

MAX_LIMIT = 1000
Object = dict[str, Any]


class FlatError(Exception):
    """A refusal in the shape of v3.1 and v4."""

    def __init__(self, status: int, code: str, message: str, related: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.content = {
            "ErrorIdentifier": "00000000-0000-0000-0000-000000000000", "ErrorCode": code, "StatusCode": status,
            "ErrorMessage": message,
        } | ({"ErrorRelatedTo": list(related)} if related else {})  # fmt: skip


def to_json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, {"content-type": "application/json; charset=UTF-8"})


def envelope(rows: Sequence[Mapping[str, Any]], status: int = 200, total: int | None = None) -> Response:
    data = [dict(row) for row in rows]
    return to_json({"Count": len(data), "Data": data, "Total": len(data) if total is None else total}, status)


def error_content(status: int, message: str, info: Any = "") -> Object:
    return {"ErrorInfo": info, "ErrorMessage": message, "StatusCode": status}


def error(status: int, message: str, info: Any = "") -> Response:
    return to_json(error_content(status, message, info), status)


def not_found() -> CallbackError:
    return CallbackError(404, "Object not found")


def not_offered() -> CallbackError:
    return CallbackError(405, "Method not allowed")


Matcher = Callable[[Object, str], bool]


def listing(
    rows: Sequence[Object], query: Mapping[str, str], filters: Mapping[str, Matcher], sorts: Sequence[str]
) -> Response:
    """Limit is 10 when not given, 1000 at most, and 0 means 1000; `Total` counts this page unless asked otherwise.

    `filters` say for each one's name if a row passes its value; any other parameter is silently ignored. `sorts` are
    like `ID` and `ID DESC`.
    """
    found = [row for row in rows if all(fits(row, query[name]) for name, fits in filters.items() if name in query)]
    sort = query.get("Sort", "ID").removesuffix(" ASC")
    if sort not in sorts:
        told = f"Cannot sort on field {sort}"
        raise CallbackError(400, f"Unexpected error during GET: Invalid sort specification: {told}")
    name, _, direction = sort.partition(" ")
    found.sort(key=lambda row: (row.get(name) or 0) if name == "ID" else str(row.get(name, "")),
               reverse=direction == "DESC")  # fmt: skip
    if query.get("countOnly") == "1":
        return to_json({"Count": len(found), "Data": [], "Total": len(found)})
    limit = min(number(query, "Limit", 10), MAX_LIMIT) or MAX_LIMIT
    offset = number(query, "Offset", 0)
    page = found[offset : offset + limit]
    return envelope(page, total=len(found) if query.get("countrecords") == "1" else len(page))


def number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit()):
        raise CallbackError(400, f'Invalid value for "{name}"')
    return int(text)


# --- filters -----------------------------------------------------------------------------------------------------


def equals(name: str) -> Matcher:
    return lambda row, value: str(row.get(name, "")) == value


def truth(name: str) -> Matcher:
    return lambda row, value: bool(row.get(name)) == (value.lower() in ("true", "1"))


def one_of(name: str) -> Matcher:
    """A comma list means any of it."""
    return lambda row, value: str(row.get(name, "")) in value.split(",")
