"""The body of one callback POST -> events and rejects, in the order sent, each with its exact text.

Mailjet posts a bare object to a Version 1 callback URL and an array of mixed types to a Version 2 one. Nothing is lost
here: unknown types and keys are kept, numbers keep every digit (`MessageID` exceeds 2**53), an element that is no event
becomes a reject with its bytes, and a body that is no JSON at all becomes one reject.

Source: mailjet/api-documentation:guides/_event-api.md, "Events" and "Grouping events"; real captures of 2015 to 2025.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, cast

import orjson

MAX_ELEMENTS = 200_000  # of one body; 10 MB of the shortest real events are fewer
MAX_DEPTH = 64  # Mailjet's events are flat; a sender's own JSON travels as text inside `Payload`
LATEST_TIME = 4_102_444_800  # the first second of the year 2100
_PLAIN = frozenset({str, int, bool, type(None)})
_WHITE = re.compile(r"[ \t\n\r]*")
_DIGITS = re.compile(r"[0-9]{1,20}\Z")
_MARKS = re.compile(r'\\.|["\[\]{}]', re.DOTALL)


class ExactNumber:
    """A JSON number that is no plain integer, as its text: a double would lose digits."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class MailjetEvent(NamedTuple):
    """One element that is an event. `raw` is its JSON text as it came, `time` Unix seconds."""

    type: str
    time: int
    payload: dict[str, Any]
    raw: str


@dataclass(frozen=True, slots=True)
class Reject:
    """One element, or a whole body, that cannot be an event, and why."""

    body: bytes
    reason: str


class MalformedPayload(ValueError):
    """The body is not JSON; the text says where."""


def parse_events(body: bytes) -> list[MailjetEvent | Reject]:
    """Read the body of one callback POST; never raises, the list may be empty.

    A body that is neither an object nor an array is one Reject, so that its bytes can be kept; Mailjet would only
    repeat it if we refused it.
    """
    quick = _quick(body)
    if quick is not None:
        return [quick]
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        return [Reject(body, f"not UTF-8: {error.reason} at byte {error.start}")]
    try:
        return [_element(value, raw) for value, raw in _elements(text.removeprefix("\ufeff"))]
    except MalformedPayload as error:
        return [Reject(body, str(error))]


def _quick(body: bytes) -> MailjetEvent | None:
    """A lone flat event of texts, truths and 64-bit integers, as Mailjet sends them: four times as fast as below.

    None for everything else. orjson turns what it has no integer for into a float, so a float says "look again".
    """
    if body[:1] != b"{" or body[-1:] != b"}":
        return None
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    event, time = value.get("event"), value.get("time")
    if type(event) is not str or not event or type(time) is not int or not 0 <= time <= LATEST_TIME:
        return None
    if not is_plain(value.values()):
        return None
    return MailjetEvent(event, time, value, body.decode())


def decode_quickly(raw: str) -> dict[str, Any] | None:
    """The members of an event without odd letters, in a fifth of the time of `decode`; None for everything else. What
    is not `is_plain` among them may have lost digits."""
    if "\\u0000" in raw:
        return None
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:  # lone surrogates, too
        return None
    return value if type(value) is dict else None


def is_plain(values: Iterable[Any]) -> bool:
    """No numbers but whole ones, and nothing nested."""
    return _PLAIN.issuperset(map(type, values))


def decode(raw: str) -> Any:
    """The value of a stored raw text; integers exact, other numbers as ExactNumber. Raises MalformedPayload."""
    value, _ = _scan(raw, _skip(raw, 0))
    return value


def parse_members(text: str) -> dict[str, tuple[Any, str]]:
    """The members of a JSON object, each value with its exact text; of a repeated name the last. Raises
    MalformedPayload."""
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        raise MalformedPayload("not an object")
    members: dict[str, tuple[Any, str]] = {}
    at, mark = _skip(text, at + 1), ","
    if text[at : at + 1] == "}":
        at, mark = at + 1, "}"
    while mark == ",":
        name, at = _member_name(text, at)
        value, end = _scan(text, at)
        members[name] = value, text[at:end]
        at = _skip(text, end)
        mark, at = text[at : at + 1], _skip(text, at + 1)
    if mark != "}":
        raise MalformedPayload(f"not JSON: ',' or '}}' expected at character {at}")
    _expect_end(text, at)
    return members


def _member_name(text: str, at: int) -> tuple[str, int]:
    """(name, where its value starts)."""
    name, end = _scan(text, at)
    colon = _skip(text, end)
    if not isinstance(name, str) or text[colon : colon + 1] != ":":
        raise MalformedPayload(f"not JSON: a name and ':' expected at character {at}")
    return name, _skip(text, colon + 1)


def depth_of(value: Any) -> int:
    """How deep arrays and objects nest; a scalar is 0. Without recursion, so any depth can be measured."""
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        node, level = waiting.pop()
        if isinstance(node, (dict, list)):
            deepest = max(deepest, level)
            inner = node.values() if isinstance(node, dict) else node
            waiting.extend((child, level + 1) for child in inner if isinstance(child, (dict, list)))
    return deepest


class _TooDeep:
    """Stands for an element that the parser gave up on."""


def _element(value: Any, raw: str) -> MailjetEvent | Reject:
    reason = _fault_of(value)
    if reason is not None:
        return Reject(raw.encode("utf-8", "surrogatepass"), reason)
    return MailjetEvent(value["event"], _time_of(value["time"]) or 0, value, raw)


def _fault_of(value: Any) -> str | None:
    if isinstance(value, _TooDeep):
        return f"nested deeper than {MAX_DEPTH} levels"
    if not isinstance(value, dict):
        return "not an object"
    event = value.get("event")
    if not isinstance(event, str) or not event:
        return "`event` is missing or not a text" if "event" in value else "`event` is missing"
    if "time" not in value:
        return "`time` is missing"
    if _time_of(value["time"]) is None:
        return "`time` is not a whole number of seconds from 0 to the year 2100"
    return None if _is_flat(value) or depth_of(value) <= MAX_DEPTH else f"nested deeper than {MAX_DEPTH} levels"


def _is_flat(value: dict[str, Any]) -> bool:
    return not any(isinstance(v, (dict, list)) for v in value.values())


def _time_of(value: Any) -> int | None:
    if isinstance(value, str) and _DIGITS.match(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LATEST_TIME:
        return value
    return None


# --- reading JSON with the text of each element ----------------------------------------------------------------------


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedPayload(f"not JSON: {name} is no JSON value")


def _integer(text: str) -> int | ExactNumber:
    # Python refuses to convert thousands of digits, since that takes quadratic time.
    return int(text) if len(text) < 1000 else ExactNumber(text)


Scan = Callable[[str, int], tuple[Any, int]]


def _scanner(parse_int: Callable[[str], Any]) -> Scan:
    # The C scanner behind json.loads: it tells where a value ends, and so gives each element's exact text.
    decoder = json.JSONDecoder(parse_float=ExactNumber, parse_int=parse_int, parse_constant=_refuse_constant)
    return cast("Scan", decoder.scan_once)  # type: ignore[attr-defined]


_plain = _scanner(int)
_careful = _scanner(_integer)


def _elements(text: str) -> Iterator[tuple[Any, str]]:
    """(value, exact text) of the body's object or of each element of its array. Raises MalformedPayload."""
    start = _skip(text, 0)
    first = text[start : start + 1]
    if first == "{":
        value, end = _scan(text, start)
        yield value, text[start:end]
        _expect_end(text, end)
    elif first == "[":
        yield from list(_array(text, start))
    else:
        _scan(text, start)  # tells a broken body from a lone number or text
        raise MalformedPayload("neither an object nor an array")


def _array(text: str, start: int) -> Iterator[tuple[Any, str]]:
    at = _skip(text, start + 1)
    if text[at : at + 1] == "]":
        _expect_end(text, at + 1)
        return
    for _ in range(MAX_ELEMENTS):
        value, end = _scan(text, at)
        yield value, text[at:end]
        at = _skip(text, end)
        mark = text[at : at + 1]
        if mark == "]":
            _expect_end(text, at + 1)
            return
        if mark != ",":
            raise MalformedPayload(f"not JSON: ',' or ']' expected at character {at}")
        at = _skip(text, at + 1)
    raise MalformedPayload(f"more than {MAX_ELEMENTS} elements")


def _skip(text: str, at: int) -> int:
    match = _WHITE.match(text, at)
    return match.end() if match else at


def _expect_end(text: str, at: int) -> None:
    if _skip(text, at) != len(text):
        raise MalformedPayload(f"not JSON: something follows the value at character {_skip(text, at)}")


def _scan(text: str, at: int, scan: Scan = _plain) -> tuple[Any, int]:
    try:
        return scan(text, at)
    except StopIteration:
        raise MalformedPayload(f"not JSON: a value is expected at character {at}") from None
    except json.JSONDecodeError as error:
        raise MalformedPayload(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        return _TooDeep(), _end_of_nested(text, at)
    except MalformedPayload:
        raise
    except ValueError:  # an integer with more digits than Python converts
        return _scan(text, at, _careful)


def _end_of_nested(text: str, at: int) -> int:
    """Where the array or object that starts at `at` ends, by counting brackets outside of texts."""
    # One by one: a pattern for a whole text would keep a hundred bytes of memory for each of its letters.
    depth, within_text = 0, False
    for found in _MARKS.finditer(text, at):
        mark = found.group()
        if mark == '"':
            within_text = not within_text
        elif within_text or len(mark) == 2:
            continue
        elif mark in "[{":
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                return found.end()
    raise MalformedPayload("not JSON: an array or object has no end")
