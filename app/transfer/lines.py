"""One line of an export -> the row it came from. Pure.

The content is the truth: everything that can be read from `raw` is read from there, as at the first arrival, and the
id must fit it. So a line that was cut off, or whose content was edited, is refused, and no column can say what the
content does not. Of the other fields only `webhook`, `connection` and `received_at` count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from app.clock import to_micros
from app.filters import parse_moment
from app.ingest.identity import event_id
from app.ingest.rows import event_row
from app.mailjet.payloads import MailjetEvent, MalformedPayload, parse_events, parse_members

Row = tuple[Any, ...]
"""One event in the order of `views.EVENT_COLUMNS`."""

_NAME = re.compile(r"[a-z0-9_]{1,63}", re.ASCII)


class BadLine(ValueError):
    """A line that is no event as exported; the text says why and holds nothing of its content."""


def parse_line(line: bytes) -> Row:
    """Raises BadLine."""
    try:
        members = parse_members(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadLine("not UTF-8") from None
    except MalformedPayload:
        raise BadLine("not a whole JSON object") from None
    fields = {name: value for name, (value, _) in members.items()}
    webhook, connection = _name(fields, "webhook"), _name(fields, "connection")
    received_micros = _received(fields)
    event = _content(members)
    identity = event_id(webhook, event.time, event.payload)
    if fields.get("id") != identity:
        raise BadLine("the id does not fit webhook and content")
    return event_row(identity, event, webhook=webhook, connection=connection, received_micros=received_micros)


def _name(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise BadLine(f"`{name}` is missing or no name")
    return value


def _received(fields: Mapping[str, Any]) -> int:
    try:
        return to_micros(parse_moment(fields.get("received_at")))
    except ValueError:
        raise BadLine("`received_at` is missing or no time") from None


def _content(members: Mapping[str, tuple[Any, str]]) -> MailjetEvent:
    value, text = members.get("raw", (None, ""))
    if not isinstance(value, dict):
        raise BadLine("`raw` is missing or no object")
    (event,) = parse_events(text.encode())
    if not isinstance(event, MailjetEvent):
        raise BadLine(f"`raw` is no event: {event.reason}")
    return event
