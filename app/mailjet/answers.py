"""One answer of Mailjet's API: its envelope, its words about a fault, and text that is fit to show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import orjson

from app.mailjet.errors import MailjetUnreadable, Told

MAX_TEXT = 300  # characters of Mailjet's own words kept in an error


class Scrubber:
    """Makes text fit to show: known secrets and the credentials of any URL masked, one line, bounded."""

    def __init__(self, secrets: Iterable[str], urls: Iterable[str] = ()) -> None:
        known = {*secrets, *(password for url in urls for password in _passwords(url))}
        # The longest first: a secret may be part of another.
        self._secrets = sorted(known - {""}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = re.sub(r"(://|%3A%2F%2F)[^\s\"'<>]*(@|%40)", r"\1***@", text, flags=re.IGNORECASE)
        # Whoever puts a token into a callback's URL puts it into the query or the path.
        text = re.sub(r"(://[^\s\"'<>/?]+)[/?][^\s\"'<>]*", r"\1/…", text)
        text = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text)).strip()
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, the headers by their names in lower case, and the bytes of the body, decoded from no encoding yet.

    `changes`: it answers a call that may have changed something at Mailjet.
    """

    where: str
    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    scrub: Scrubber = field(repr=False)
    changes: bool = True

    def data(self) -> list[dict[str, Any]]:
        """The envelope's `Data`. Raises MailjetUnreadable; a `Count` above what is there means that some is missing."""
        envelope = self.json_object()
        items: Any = envelope.get("Data")
        if items is None and "Data" in envelope:
            items = []
        if not isinstance(items, list):
            raise self.unreadable(self.message() or "it is no JSON object with a list `Data`")
        count = whole_number(envelope.get("Count"))
        if count is not None and count > len(items):
            raise self.unreadable(f"it says Count {count} and holds {len(items)}")
        if not all(isinstance(item, dict) for item in items):
            raise self.unreadable("`Data` holds something else than objects")
        return items

    def first(self) -> dict[str, Any] | None:
        """The one object of `Data`, or None: single objects come in an envelope too."""
        items = self.data()
        return items[0] if items else None

    def json_object(self) -> dict[str, Any]:
        """The body as an object; an empty one where it is none."""
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return {}
        return value if isinstance(value, dict) else {}

    def unreadable(self, why: str) -> MailjetUnreadable:
        text = f"{self.where}: the answer cannot be used: {why}"
        return MailjetUnreadable(text, status=self.status, changes=self.changes)

    def message(self) -> str:
        """Mailjet's own words, scrubbed; empty when the body is no error envelope (a wrong key gets empty HTML)."""
        envelope = self.json_object()
        words = [envelope.get("ErrorMessage"), envelope.get("ErrorInfo"), envelope.get("ErrorIdentifier")]
        return self.scrub("; ".join(_words(word) for word in words if word))

    def told(self) -> Told:
        """The parts of a fault in any of the three shapes (v3, v3.1, v4). `ErrorInfo` may hold the words, or an object
        as text."""
        envelope = self.json_object()
        code, info = envelope.get("ErrorCode"), _object(envelope.get("ErrorInfo"))
        words = envelope.get("ErrorMessage") or (envelope.get("ErrorInfo") if not info else None)
        return Told(
            message=self.scrub(words) if isinstance(words, str) else "",
            code=code if isinstance(code, str) else None,
            related=tuple(texts(envelope.get("ErrorRelatedTo"))),
            info=info,
        )


def whole_number(value: object) -> int | None:
    """Not negative; Mailjet's samples show numbers as text, its answers mostly do not: both are read."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value >= 0 else None
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,20}", value):
        return int(value)
    return None


def texts(value: object) -> list[str]:
    """Those of a list; a text alone is one as well."""
    parts = value if isinstance(value, list) else [value]
    return [part for part in parts if isinstance(part, str) and part]


def _object(value: object) -> dict[str, Any]:
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return {}
    return value if isinstance(value, dict) else {}


def _words(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _passwords(url: str) -> list[str]:
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        return [url]
    decoded = unquote(password)
    return [url, password, decoded, quote(decoded, safe="")]
