"""Standard Webhooks signatures. Pure.

Source: standard-webhooks/standard-webhooks:spec/standard-webhooks.md, "Signature scheme" and "Webhook headers": every
secret signs `id.timestamp.body`, `v1` with HMAC-SHA256 and `v1a` with Ed25519, each as `version,base64`, separated by
spaces. A receiver looks for one that fits, so secrets, and schemes, rotate without a gap.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from app.signing_keys import SigningKey, parse_signing_key


@dataclass(frozen=True, slots=True)
class Signer:
    """A sink's keys, read once: an Ed25519 key costs more to read than to use."""

    keys: tuple[SigningKey, ...] = field(repr=False)

    @classmethod
    def from_secrets(cls, secrets: Sequence[str]) -> Self:
        """`whsec_…` and `whsk_…`, in the order they sign. Raises ValueError with a sentence, never with the secret."""
        return cls(tuple(parse_signing_key(secret) for secret in secrets))

    def header(self, message_id: str, timestamp: int, body: bytes) -> str:
        """The `webhook-signature`; empty without keys. `timestamp` is Unix seconds of the attempt."""
        return signature_header(self.keys, message_id=message_id, timestamp=timestamp, body=body)


def signature_header(keys: Sequence[SigningKey], *, message_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of every key. `timestamp` is Unix seconds of the attempt, as in `webhook-timestamp`."""
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    return " ".join(_signature(key, signed) for key in keys)


def _signature(key: SigningKey, signed: bytes) -> str:
    if isinstance(key, bytes):
        return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    return "v1a," + base64.b64encode(key.sign(signed)).decode()
