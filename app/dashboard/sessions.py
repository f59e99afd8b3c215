"""Who is signed in: a signed cookie that every replica can read. Pure: the time is an argument.

A session names the API key it was opened with by a keyed digest. So a key that is taken out of the settings closes its
sessions, and what a session may do is what its key may do now. The signing key is derived from the installation's
secret key; nothing is stored until somebody logs out (`app.credentials.end_session`).
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.clock import to_micros
from app.credentials import derive

LIFE = timedelta(days=7)
LINK_LIFE = timedelta(hours=12)
_PARTS = re.compile(r"([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{16})\.([0-9]{1,12})\.([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Session:
    """One browser that is signed in. `csrf` goes into each of its forms."""

    id: str
    may_act: bool
    csrf: str
    expires_at: int
    """Seconds since 1970."""


class Sessions:
    """Opens and reads sessions. `full` keys see and act, `read` keys see."""

    def __init__(self, secret_key: bytes, *, full: Sequence[str], read: Sequence[str]) -> None:
        self._key = secret_key
        # A key that is in both lists is a full one.
        self._keys = {self._mark(key): False for key in read if key} | {self._mark(key): True for key in full if key}

    def sign_in(self, api_key: str, now: datetime) -> str | None:
        """The cookie for whoever holds this key; None where it is none of ours."""
        presented = self._mark(api_key)
        # Always against every key: neither a key nor its place can be timed.
        found = [mark for mark in self._keys if hmac.compare_digest(mark, presented)]
        return self._signed("session", found[0], now + LIFE) if found else None

    def read(self, cookie: str, now: datetime) -> Session | None:
        """The session of a cookie; None where it is broken, forged, over, or of a key that is gone."""
        read = self._checked("session", cookie, now)
        if read is None:
            return None
        id, mark, expires_at = read
        return Session(id, self._keys[mark], derive(self._key, f"csrf:{id}"), expires_at)

    def link(self, now: datetime) -> str:
        """A token that signs in once with the first full key, for a link. Raises StopIteration without full keys."""
        mark = next(mark for mark, may_act in self._keys.items() if may_act)
        return self._signed("link", mark, now + LINK_LIFE)

    def redeem(self, token: str, now: datetime) -> tuple[str, int, str] | None:
        """(id and end of the link, which must not be used again; the cookie), or None."""
        read = self._checked("link", token, now)
        if read is None:
            return None
        id, mark, expires_at = read
        return id, expires_at, self._signed("session", mark, now + LIFE)

    def _mark(self, api_key: str) -> str:
        # A key from a form can hold anything, lone surrogates too.
        return derive(self._key, "key:" + api_key.encode("utf-8", "replace").decode())[:16]

    def _signed(self, purpose: str, mark: str, expires_at: datetime) -> str:
        text = f"{secrets.token_urlsafe(16)}.{mark}.{to_micros(expires_at) // 1_000_000}"
        return f"{text}.{derive(self._key, f'{purpose}:{text}')}"

    def _checked(self, purpose: str, token: str, now: datetime) -> tuple[str, str, int] | None:
        parts = _PARTS.fullmatch(token)
        if parts is None:
            return None
        text, _, signature = token.rpartition(".")
        id, mark, expires_at = parts[1], parts[2], int(parts[3])
        if not hmac.compare_digest(signature, derive(self._key, f"{purpose}:{text}")):
            return None
        over = expires_at * 1_000_000 <= to_micros(now)
        return None if over or mark not in self._keys else (id, mark, expires_at)
