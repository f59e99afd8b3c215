"""An event's id is its content: the same event posted again, alone or regrouped, through any replica, is one event.

Mailjet gives its events no id. Ours is a UUID of version 8 (RFC 9562): 48 bits of the event's time in milliseconds,
then a digest of the webhook's name and the canonical JSON of the element. The time in front keeps neighbours together
in every index; the rest makes it equal on every replica without asking anybody. Two truly identical clicks within one
second are one event: Mailjet gives nothing to tell them from a repeat.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

import orjson

from app.mailjet.payloads import ExactNumber


def event_id(webhook: str, time: int, payload: dict[str, Any]) -> str:
    """`time` in Unix seconds. Equal for equal content whatever the order of keys or the escaping of texts."""
    return _uuid8(time * 1000, canonical(payload), webhook)


def content_id(webhook: str, body: bytes) -> str:
    """The id of quarantined bytes: the same bytes again are the same row. There is no time to trust in them."""
    return _uuid8(0, body, webhook)


def canonical(payload: dict[str, Any]) -> bytes:
    """One byte string for one JSON value: keys in order, texts unescaped, numbers digit by digit.

    The quick way covers flat elements of plain texts and 64-bit integers; which way is taken depends on the value
    alone, never on how it was written, so both ways need not agree.
    """
    try:
        return orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a lone surrogate, an integer beyond 64 bits, a number that is no integer, deep nesting
        return json.dumps(_marked(payload), sort_keys=True, separators=(",", ":")).encode()


def _marked(value: Any) -> Any:
    """Each object and each exact number in a wrapper of its own, so that no object of a sender's reads as a number."""
    if isinstance(value, dict):
        return {"object": {key: _marked(item) for key, item in value.items()}}
    if isinstance(value, list):
        return [_marked(item) for item in value]
    return {"number": value.text} if isinstance(value, ExactNumber) else value


def _uuid8(millis: int, content: bytes, webhook: str) -> str:
    digest = blake2b(content, digest_size=10, person=b"jethook-event", key=webhook.encode()).hexdigest()
    # Version 8 in four bits, variant 10 in two: the digest gives the other 74.
    variant = "89ab"[int(digest[3], 16) & 3]
    return f"{millis >> 16:08x}-{millis & 0xFFFF:04x}-8{digest[:3]}-{variant}{digest[4:7]}-{digest[7:19]}"
