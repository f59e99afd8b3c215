"""The secrets the service makes for itself: one random key, and what is derived from it.

Derived rather than stored, so that every replica agrees without asking, and a restart changes nothing.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.db import Database, insert_missing
from app.models import EndedSession, Secret
from app.settings import Settings

_secrets: sa.Table = Secret.__table__  # type: ignore[attr-defined]
_ended: sa.Table = EndedSession.__table__  # type: ignore[attr-defined]


def load_secret_key(settings: Settings, database: Database) -> bytes:
    """The configured key, or the one made at the first start and kept in the database."""
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()

    def make_or_read(connection: Connection) -> str:
        insert_missing(connection, _secrets, ("name", "value"), [("secret_key", secrets.token_urlsafe(32))])
        return str(connection.execute(sa.select(_secrets.c.value).where(_secrets.c.name == "secret_key")).scalar_one())

    return database.write(make_or_read).encode()


def callback_passwords(settings: Settings, secret_key: bytes) -> dict[str, tuple[str, ...]]:
    """Webhook name -> its callback passwords; the first is the one to register, all are accepted."""
    return {
        name: tuple(password.get_secret_value() for password in webhook.passwords)
        or (derive(secret_key, f"callback:{settings.instance}:{name}"),)
        for name, webhook in settings.effective_webhooks.items()
    }


def registered_passwords(passwords: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: accepted[0] for name, accepted in passwords.items()}


def made_api_key(settings: Settings, secret_key: bytes) -> str | None:
    """The REST key to use and print where none is configured; the same on every replica and after a restart."""
    if settings.api_keys or settings.read_api_keys:
        return None
    return derive(secret_key, f"api:{settings.instance}")


def derive(secret_key: bytes, purpose: str) -> str:
    """43 characters that are safe in a URL and tell nothing about the key."""
    digest = hmac.digest(secret_key, purpose.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def end_session(connection: Connection, id: str, expires_at: int, now: datetime) -> bool:
    """A signed session, or a link, is over before its time (seconds since 1970); False if it was over already."""
    connection.execute(sa.delete(_ended).where(_ended.c.expires_at < now))
    row = (id, expires_at * 1_000_000)
    return insert_missing(connection, _ended, ("id", "expires_at"), [row]) == 1


def is_ended(connection: Connection, id: str) -> bool:
    return connection.execute(sa.select(_ended.c.id).where(_ended.c.id == id)).first() is not None
