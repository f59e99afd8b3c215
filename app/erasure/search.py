"""Is this person's address in these bytes, however they were written? Pure.

What could not be read as an event is searched as text: with JSON's escapes undone, those within texts within texts
too, and as it stands in a URL. The domain counts in any case, the local part as it is unless the search is folded. An
address that is only a part of a longer one is another person's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import orjson

from app.views import clean

ERASED = "(erased)"
_DEPTH = 3  # JSON in a text of JSON in a text of JSON
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_CONTROLS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}

Finds = Callable[[str], bool]


def finder(email: str, *, folded: bool) -> Finds:
    """A function that tells whether a text names the address.

    What Mailjet told without `@` may be a word like any other: it counts only where it is told as an address.
    """
    local, at, domain = email.rpartition("@")
    if not at:
        told = re.compile(rf'"email"\s*:\s*"{re.escape(email)}"', re.IGNORECASE if folded else 0)
        return lambda text: told.search(text) is not None
    exact = re.escape(local) if not folded else f"(?i:{re.escape(local)})"
    named = f"{exact}{at}(?i:{re.escape(domain)})"
    whole = re.compile(rf"(?<![\w.+\-]){named}(?![\w\-]|\.\w)")
    return lambda text: whole.search(text) is not None


def holds(body: bytes, finds: Finds) -> bool:
    """Does a body, whatever it is, name the address?"""
    return any(finds(reading) for text in _texts(body) for reading in _readings(text))


def _texts(body: bytes) -> Iterator[str]:
    yield body.decode("utf-8", "replace")
    if b"\0" in body:
        yield body.decode("utf-16-le", "replace")
        yield body.decode("utf-16-be", "replace")
    elif not body.isascii():
        yield body.decode("latin-1")


def _readings(text: str) -> Iterator[str]:
    for _ in range(_DEPTH):
        yield text
        if "%" in text:
            yield unquote(text, errors="replace")
        plain = clean(_ESCAPE.sub(_unescaped, text)) or ""
        if plain == text:
            return
        text = plain
    yield text


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else _CONTROLS.get(match[2], match[2])


def without(selection: str, finds: Finds) -> str:
    """A replay's selection (JSON) in which texts that name the address are replaced; they then match nothing."""
    return orjson.dumps(_without(orjson.loads(selection), finds)).decode()


def _without(value: Any, finds: Finds) -> Any:
    if isinstance(value, str):
        return ERASED if finds(value) else value
    if isinstance(value, list):
        return [_without(item, finds) for item in value]
    if isinstance(value, dict):
        return {key: _without(item, finds) for key, item in value.items()}
    return value
