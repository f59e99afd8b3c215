"""A sink's further condition on an event, written as JSON: compiled once, then a pure function of the event.

The fields are those of the event as REST shows it, `details.…` and `raw.…` paths too. A bare value means `$eq`, several
fields mean all of them: `{"type": "bounce", "details.comment": {"$contains": "550"}}`. Null, an empty field and a
missing one are the same, as everywhere in the API: none of them `$exists`.

Values compare with their own kind only: numbers with numbers (every digit counts), texts with texts, times
(`occurred_at`, `received_at`) with RFC 3339 times. A comparison across kinds is false, and its `$ne` or `$nin` true.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Test = Callable[[Any], bool]
Condition = Callable[[Mapping[str, Any]], bool]

TIMES = frozenset({"occurred_at", "received_at"})
FIELDS = frozenset(
    {"id", "webhook", "connection", "type", "outcome", "occurred_at", "received_at", "test", "email", "message_id",
     "message_guid", "campaign_id", "contact_id", "list_id", "custom_id", "custom_campaign", "payload", "permanent",
     "reason", "reason_group"}
)  # fmt: skip
MAX_DEPTH = 16


class BadCondition(ValueError):
    """The condition cannot be understood; each line of the text starts with the JSON pointer of one fault."""

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(f"at {pointer or '/'}: {message}")

    @classmethod
    def several(cls, faults: Sequence[BadCondition]) -> Self:
        told = cls("", "")
        told.args = ("\n".join(map(str, faults)),)
        return told


def parse_condition(text: str) -> Condition:
    """Compile a condition from its JSON text. Raises BadCondition."""
    try:
        tree = json.loads(text, parse_float=Decimal)
    except ValueError as error:
        raise BadCondition("", f"not JSON: {error}") from None
    except RecursionError:
        raise BadCondition("", "nested too deep") from None
    except InvalidOperation:
        raise BadCondition("", "a number has too large an exponent") from None
    return compile_condition(tree)


def compile_condition(tree: Any, pointer: str = "") -> Condition:
    """Compile an object of fields, `$and`, `$or` and `$not`. Raises BadCondition."""
    if not isinstance(tree, dict):
        raise BadCondition(pointer, "an object of fields is expected")
    _check_depth(pointer)
    parts = _each(tree.items(), lambda item: _part(*item, f"{pointer}/{_escaped(item[0])}"))
    return lambda event: all(part(event) for part in parts)


def _each(items: Iterable[T], make: Callable[[T], R]) -> list[R]:
    """What `make` makes of each. Raises BadCondition with the faults of all: who mends one should not meet the next."""
    made: list[R] = []
    faults: list[BadCondition] = []
    for item in items:
        try:
            made.append(make(item))
        except BadCondition as fault:
            faults.append(fault)
    if faults:
        raise BadCondition.several(faults)
    return made


def _part(key: str, value: Any, pointer: str) -> Condition:
    if key in ("$and", "$or"):
        if not isinstance(value, list) or not value:
            raise BadCondition(pointer, "a list of conditions is expected")
        inner = _each(enumerate(value), lambda one: compile_condition(one[1], f"{pointer}/{one[0]}"))
        combine = all if key == "$and" else any
        return lambda event: combine(part(event) for part in inner)
    if key == "$not":
        negated = compile_condition(value, pointer)
        return lambda event: not negated(event)
    if key.startswith("$"):
        raise BadCondition(pointer, f"no such operator here; known: $and, $or, $not, and within a field {_KNOWN}")
    find = _finder(key, pointer)
    test = _field_test(value, pointer, is_time=key in TIMES)
    return lambda event: test(find(event))


def _finder(path: str, pointer: str) -> Callable[[Mapping[str, Any]], Any]:
    head, *rest = path.split(".")
    if rest and head in ("details", "raw") and all(rest):
        return lambda event: _dig(event.get(head), rest)
    if rest or head not in FIELDS:
        known = ", ".join(sorted(FIELDS))
        raise BadCondition(pointer, f"no such field; known: {known}, and paths below details. and raw.")
    return lambda event: event.get(head)


def _dig(node: Any, path: Sequence[str]) -> Any:
    for part in path:
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node


def _field_test(value: Any, pointer: str, *, is_time: bool) -> Test:
    if not isinstance(value, dict):
        return _operator("$eq", value, pointer, is_time=is_time)
    if not value:
        raise BadCondition(pointer, f"an operator is expected: {_KNOWN}")
    tests = _each(
        value.items(), lambda item: _operator(*item, pointer=f"{pointer}/{_escaped(item[0])}", is_time=is_time)
    )
    return lambda found: all(test(found) for test in tests)


def _check_depth(pointer: str) -> None:
    if pointer.count("/") > MAX_DEPTH:
        raise BadCondition(pointer, "nested too deep")


def _operator(name: str, operand: Any, pointer: str, *, is_time: bool) -> Test:
    if name == "$not":
        _check_depth(pointer)
        inner = _field_test(operand, pointer, is_time=is_time)
        return lambda found: not inner(found)
    make = _OPERATORS.get(name)
    if make is None:
        raise BadCondition(pointer, f"no such operator; known: {_KNOWN}")
    if is_time and name in _ON_VALUES:
        test = make(_times(operand, pointer), pointer)
        return lambda found: test(_as_time(found))
    test = make(operand, pointer)
    return lambda found: test(_plain(found))


# --- values ----------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Numbers as exact ones, an empty text as None; what is kept for its digits (`.text`) becomes a number too."""
    if value == "" and isinstance(value, str):
        return None
    text = getattr(value, "text", None)
    if text is None:
        return value
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


def _as_time(value: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _times(operand: Any, pointer: str) -> Any:
    if isinstance(operand, list):
        return _each(enumerate(operand), lambda one: _times(one[1], f"{pointer}/{one[0]}"))
    if operand is None:
        return None
    moment = _as_time(operand)
    if moment is None:
        raise BadCondition(pointer, "an RFC 3339 time with its offset is expected")
    return moment


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, Decimal)):
        return "number"
    if isinstance(value, str):
        return "text"
    return "time" if isinstance(value, datetime) else "other"


def _same(left: Any, right: Any) -> bool:
    return _kind(left) == _kind(right) and bool(left == right)


# --- operators -------------------------------------------------------------------------------------------------------


def _scalar(operand: Any, pointer: str) -> Any:
    if _kind(operand) == "other":
        raise BadCondition(pointer, "a text, number, boolean or null is expected")
    return _plain(operand)


def _eq(operand: Any, pointer: str) -> Test:
    wanted = _scalar(operand, pointer)
    return lambda found: _same(found, wanted)


def _ne(operand: Any, pointer: str) -> Test:
    equal = _eq(operand, pointer)
    return lambda found: not equal(found)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, str], Test]:
    def make(operand: Any, pointer: str) -> Test:
        if _kind(operand) not in ("number", "text", "time"):
            raise BadCondition(pointer, "a number or text is expected")
        return lambda found: _kind(found) == _kind(operand) and compare(found, operand)

    return make


def _in(operand: Any, pointer: str) -> Test:
    if not isinstance(operand, list):
        raise BadCondition(pointer, "a list is expected")
    wanted = _each(enumerate(operand), lambda one: _scalar(one[1], f"{pointer}/{one[0]}"))
    return lambda found: any(_same(found, one) for one in wanted)


def _nin(operand: Any, pointer: str) -> Test:
    inside = _in(operand, pointer)
    return lambda found: not inside(found)


def _exists(operand: Any, pointer: str) -> Test:
    if not isinstance(operand, bool):
        raise BadCondition(pointer, "true or false is expected")
    return lambda found: (found is not None) is operand


def _on_text(check: Callable[[str, str], bool]) -> Callable[[Any, str], Test]:
    def make(operand: Any, pointer: str) -> Test:
        if not isinstance(operand, str):
            raise BadCondition(pointer, "a text is expected")
        return lambda found: isinstance(found, str) and check(found, operand)

    return make


_ON_VALUES = frozenset({"$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin"})
_OPERATORS: dict[str, Callable[[Any, str], Test]] = {
    "$eq": _eq,
    "$ne": _ne,
    "$gt": _ordered(lambda a, b: a > b),
    "$gte": _ordered(lambda a, b: a >= b),
    "$lt": _ordered(lambda a, b: a < b),
    "$lte": _ordered(lambda a, b: a <= b),
    "$in": _in,
    "$nin": _nin,
    "$exists": _exists,
    "$startsWith": _on_text(str.startswith),
    "$endsWith": _on_text(str.endswith),
    "$contains": _on_text(lambda text, part: part in text),
}
_KNOWN = ", ".join([*_OPERATORS, "$not"])


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
