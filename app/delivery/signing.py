"""Standard Webhooks headers. Pure.

Source: standard-webhooks/standard-webhooks:spec/standard-webhooks.md, "Signature scheme" (v1: HMAC-SHA256 over
`id.timestamp.body`, base64, one signature for each secret, separated by spaces).
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence


def signature_header(keys: Sequence[bytes], *, message_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of every key. `timestamp` is Unix seconds of the attempt, as in `webhook-timestamp`."""
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    return " ".join("v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys)
