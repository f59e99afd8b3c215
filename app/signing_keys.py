"""The keys of Standard Webhooks secrets. Pure; at the bottom, so that the settings can refuse a wrong one at the start.

Source: standard-webhooks/standard-webhooks:spec/standard-webhooks.md, "Signature scheme": `whsec_` and base64 of 24 to
64 random bytes for HMAC-SHA256, `whsk_` and base64 for the private key of an Ed25519 pair, `whpk_` for its public one.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # 7 MB of memory, for those who have such a key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SHARED_PREFIX = "whsec_"
PRIVATE_PREFIX = "whsk_"
PUBLIC_PREFIX = "whpk_"
SEED_BYTES = 32

SigningKey: TypeAlias = "bytes | Ed25519PrivateKey"


def parse_signing_key(secret: str) -> SigningKey:
    """The HMAC key of a `whsec_` secret as bytes, the private key of a `whsk_` one.

    Raises ValueError with a sentence that never repeats the secret.
    """
    if secret.startswith(SHARED_PREFIX):
        return _shared_key(secret.removeprefix(SHARED_PREFIX))
    if secret.startswith(PRIVATE_PREFIX):
        return _private_key(secret.removeprefix(PRIVATE_PREFIX))
    if secret.startswith(PUBLIC_PREFIX):
        raise ValueError("is the receiver's public key (whpk_); signing needs the private one (whsk_)")
    raise ValueError("must be whsec_ (shared) or whsk_ (Ed25519 private key) and base64")


def public_key_of(key: Ed25519PrivateKey) -> str:
    """`whpk_` and base64: what the receiver is given."""
    return PUBLIC_PREFIX + base64.b64encode(key.public_key().public_bytes_raw()).decode()


def _shared_key(encoded: str) -> bytes:
    key = _decoded(encoded)
    if key is None or not 24 <= len(key) <= 64:
        raise ValueError("must be whsec_ and base64 of 24 to 64 bytes")
    return key


def _private_key(encoded: str) -> Ed25519PrivateKey:
    """The spec leaves the bytes of a `whsk_` open: both forms in use are taken, the seed alone (RFC 8032) and the
    seed with the public key behind it (NaCl; what Svix's server hands out)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    raw = _decoded(encoded)
    if raw is None or len(raw) not in (SEED_BYTES, 2 * SEED_BYTES):
        raise ValueError("must be whsk_ and base64 of 32 bytes (seed) or 64 bytes (seed and public key)")
    key = Ed25519PrivateKey.from_private_bytes(raw[:SEED_BYTES])
    if len(raw) > SEED_BYTES and key.public_key().public_bytes_raw() != raw[SEED_BYTES:]:
        raise ValueError("is whsk_ with a public key that does not belong to its seed")
    return key


def _decoded(encoded: str) -> bytes | None:
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:
        return None
