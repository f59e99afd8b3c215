"""Cursors: where a walk over a list goes on. Pure.

A cursor is opaque to clients and bound to the list, its filters and its order by a digest, so that one taken from
another walk is refused instead of answering something else. It is no secret and not signed: whoever makes one up only
chooses where to start. It holds values, never row numbers, so it means the same on every replica and either database.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import orjson

from app.clock import EARLIEST_MICROS, LATEST_MICROS
from app.errors import BadCursor

VERSION = 1
MAX_CHARS = 1024

Position = tuple[str | int, ...]
"""The sort key of the last row given: texts, and whole numbers that are times or numbers of rows."""


def scope_of(name: str, filters: Mapping[str, Sequence[str]], order: str) -> bytes:
    """The digest of one walk. `filters` are normalised by the caller; the order of keys and values is none.

    Only filters that are set count, so a release that adds filters keeps the cursors of the one before.
    """
    told = {key: sorted(set(values)) for key, values in filters.items() if values}
    text = orjson.dumps([name, order, told], option=orjson.OPT_SORT_KEYS)
    return blake2b(text, digest_size=9, person=b"jethook-cursor").digest()


def encode_cursor(scope: bytes, position: Position) -> str:
    """Url-safe text: a version, the scope, the position."""
    return base64.urlsafe_b64encode(bytes((VERSION,)) + scope + orjson.dumps(position)).rstrip(b"=").decode()


def decode_cursor(text: str, scope: bytes, kinds: tuple[type[str] | type[int], ...]) -> Position:
    """The position in `text`. Raises BadCursor: broken, of another version, of another list, or of other `kinds`."""
    content = _bytes_of(text)
    if content[:1] != bytes((VERSION,)):
        raise BadCursor("the cursor is broken or of another version; start again without it")
    if content[1 : 1 + len(scope)] != scope:
        raise BadCursor("the cursor belongs to another list, or to other filters; start again without it")
    return _position_of(content[1 + len(scope) :], kinds)


def _bytes_of(text: str) -> bytes:
    if len(text) > MAX_CHARS or not text.isascii():
        raise BadCursor("the cursor is broken; start again without it")
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise BadCursor("the cursor is broken; start again without it") from None
    return content


def _position_of(content: bytes, kinds: tuple[type[str] | type[int], ...]) -> Position:
    try:
        values = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise BadCursor("the cursor is broken; start again without it") from None
    if not isinstance(values, list) or [type(value) for value in values] != list(kinds):
        raise BadCursor("the cursor is broken; start again without it")
    if any(not _fits(value) for value in values):
        raise BadCursor("the cursor is broken; start again without it")
    return tuple(values)


def _fits(value: str | int) -> bool:
    # PostgreSQL takes no NUL. A number may be a time, which has to be one; the numbers of rows are far below.
    return "\0" not in value if isinstance(value, str) else EARLIEST_MICROS <= value <= LATEST_MICROS
