"""Does a request bear a valid Standard Webhooks signature? Pure, and written apart from the code that signs.

Source: standard-webhooks/standard-webhooks:spec/standard-webhooks.md, "Symmetric" signatures.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping

PREFIX = "whsec_"


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`, keyed with the decoded secret.

    Raises ValueError when the part of `secret` after `whsec_` is not base64.
    """
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("a Standard Webhooks secret is base64 after whsec_") from error
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def verify(
    headers: Mapping[str, str], body: bytes, secrets: Iterable[str], *, now: float, tolerance_seconds: float = 300
) -> str | None:
    """None when one of the signatures was made with one of the `secrets`, else what is wrong.

    `headers` have lower-case names. `webhook-signature` holds one signature for each secret of the sender, with
    spaces between, so both sides can rotate.
    """
    message_id = headers.get("webhook-id")
    timestamp = headers.get("webhook-timestamp")
    given = headers.get("webhook-signature")
    if not message_id or not timestamp or not given:
        return "a webhook- header is missing"
    if not (timestamp.isascii() and timestamp.isdigit()):
        return "webhook-timestamp is not a number of seconds"
    if abs(now - int(timestamp)) > tolerance_seconds:
        return "webhook-timestamp is too far from now"
    candidates = [signature.encode() for signature in given.split(" ")]
    for secret in secrets:
        wanted = sign(secret, message_id, int(timestamp), body).encode()
        if any(hmac.compare_digest(wanted, candidate) for candidate in candidates):
            return None
    return "no signature fits"
