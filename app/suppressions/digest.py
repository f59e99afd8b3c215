"""What names a suppression, and what stands in the place of an address that was erased. Pure."""

from __future__ import annotations

import uuid
from hashlib import blake2b

import orjson

from app.credentials import derive
from app.models import SuppressionReason

_FIXED_BITS, _VERSION_8 = 0xF000_C000_0000_0000_0000, 0x8000_8000_0000_0000_0000


def suppression_id(address: str, reason: SuppressionReason, list_id: str | None) -> str:
    """One for each address, reason and list, on every replica and after every rebuild. `address` is the digest where
    that is all that is kept: the id of an erased person must not tell the address to who guesses it."""
    content = orjson.dumps([address, reason, list_id])
    number = int.from_bytes(blake2b(content, digest_size=16, person=b"jethook-suppress").digest(), "big")
    return str(uuid.UUID(int=number & ~_FIXED_BITS | _VERSION_8))


def address_digest(secret_key: bytes, email: str) -> str:
    """43 characters that only who has the installation's secret key can make from an address."""
    return derive(secret_key, f"suppression:{email}")
