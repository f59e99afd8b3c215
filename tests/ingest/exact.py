"""JSON values with nothing lost: every digit, the order of keys, keys that come twice. And texts that mean the same.

Written apart from `app.mailjet.payloads`, which it is there to judge.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


@dataclass(frozen=True)
class Number:
    text: str


@dataclass(frozen=True)
class Object:
    pairs: tuple[tuple[str, Any], ...]

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in self.pairs]

    def __getitem__(self, wanted: str) -> Any:
        return next(value for key, value in self.pairs if key == wanted)


def exact(text: str | bytes) -> Any:
    """The value of a JSON text; numbers as they are written."""
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    return json.loads(text, parse_int=Number, parse_float=Number, object_pairs_hook=lambda pairs: Object(tuple(pairs)))


def elements(text: str | bytes) -> list[Any]:
    """The elements of a callback body: those of the array, or the one object."""
    value = exact(text)
    return value if isinstance(value, list) else [value]


def write(value: Any, rng: random.Random | None = None) -> str:
    """One text of the value; with `rng` one of very many: other white space, escapes and order of keys.

    The keys of an object that has one twice stay in their order, since the last one counts.
    """
    space = "" if rng is None else rng.choice(["", "", " ", "\n\t", "\r\n "])
    match value:
        case Number():
            return value.text
        case str():
            return _text(value, rng)
        case list():
            return "[" + f",{space}".join(write(item, rng) for item in value) + space + "]"
        case Object():
            pairs = list(value.pairs)
            if rng is not None and len(set(value.keys)) == len(pairs):
                rng.shuffle(pairs)
            parts = [f"{_text(key, rng)}{space}:{space}{write(item, rng)}" for key, item in pairs]
            return "{" + space + f"{space},".join(parts) + "}"
    return json.dumps(value)


def _text(text: str, rng: random.Random | None) -> str:
    if rng is None:
        return json.dumps(text)
    return '"' + "".join(_character(c, rng) for c in text) + '"'


def _character(character: str, rng: random.Random) -> str:
    needs_escape = character in '"\\' or character < " " or "\ud800" <= character <= "\udfff"
    way = rng.randrange(4)
    if way == 0 and character in SHORT_ESCAPES:
        return SHORT_ESCAPES[character]
    if needs_escape or way == 1:
        units = character.encode("utf-16-be", "surrogatepass")
        pairs = [units[i : i + 2].hex() for i in range(0, len(units), 2)]
        return "".join(f"\\u{unit if rng.random() < 0.5 else unit.upper()}" for unit in pairs)
    return character
