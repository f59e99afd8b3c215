"""May this caller post here? HTTP Basic, the one thing Mailjet can send: user = instance, password = the webhook's.

Each webhook may have several passwords, so they can rotate. Compared in constant time, all of them every time.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum


class Verdict(Enum):
    OK = "ok"
    UNAUTHORIZED = "unauthorized"
    UNKNOWN_WEBHOOK = "unknown_webhook"


class CallbackAuth:
    """The door of every webhook. Credentials are judged before the name: a stranger learns no names."""

    def __init__(self, instance: str, passwords: Mapping[str, Sequence[str]]) -> None:
        self._instance = instance.encode()
        self._passwords = {name: tuple(p.encode() for p in accepted) for name, accepted in passwords.items()}
        # What a well-behaved caller sends, ready made: the usual request is settled by comparing bytes.
        self._headers = {
            name: tuple(b"Basic " + base64.b64encode(self._instance + b":" + p) for p in accepted)
            for name, accepted in self._passwords.items()
        }

    def judge(self, webhook: str, authorization: bytes | None) -> Verdict:
        if authorization is None:
            return Verdict.UNAUTHORIZED
        if webhook in self._headers:
            known = _any_equal(authorization, self._headers[webhook])
            return Verdict.OK if known or self._decoded_fits(authorization, [webhook]) else Verdict.UNAUTHORIZED
        valid = self._decoded_fits(authorization, self._passwords)
        return Verdict.UNKNOWN_WEBHOOK if valid else Verdict.UNAUTHORIZED

    def _decoded_fits(self, authorization: bytes, webhooks: Iterable[str]) -> bool:
        """The same by decoding: other spellings of the scheme, other padding."""
        scheme, _, encoded = authorization.strip().partition(b" ")
        if scheme.lower() != b"basic":
            return False
        try:
            user, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        user_fits = hmac.compare_digest(user, self._instance)
        fits = [_any_equal(password, self._passwords[name]) for name in webhooks]
        return user_fits and any(fits)


def _any_equal(given: bytes, accepted: Sequence[bytes]) -> bool:
    fits = [hmac.compare_digest(given, one) for one in accepted]  # all of them, whichever fits
    return any(fits)
