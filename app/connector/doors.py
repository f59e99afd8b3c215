"""Which connection a call is for, and its door to Mailjet: one for each, kept open, made when it is first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from app.connector.problems import ConnectionIncomplete, ConnectionNotFound
from app.mailjet.door import Door, Observe, RetryPolicy
from app.settings import ConnectionSettings

# A caller waits: less patience than a job of our own would have.
RETRY = RetryPolicy(attempts=3, total_seconds=20.0, wait_initial_seconds=0.3, wait_max_seconds=3.0, jitter_seconds=0.5)
TIMEOUT_SECONDS = 15.0


class Doors:
    """The doors of all connections. On the event loop only."""

    def __init__(
        self,
        connections: Mapping[str, ConnectionSettings],
        *,
        observe: Observe = lambda operation, code: None,
        retry: RetryPolicy = RETRY,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._connections = dict(connections)
        self._observe = observe
        self._retry = retry
        self._timeout_seconds = timeout_seconds
        self._open: dict[str, Door] = {}

    def get(self, name: str) -> Door:
        """Raises ConnectionNotFound, or ConnectionIncomplete for one without keys."""
        settings = self._settings(name)
        if not settings.has_keys:
            needed = " and ".join(_variable(name, part) for part in ("API_KEY", "SECRET_KEY"))
            raise ConnectionIncomplete(f"the connection {name!r} has no keys; set {needed}")
        return self._door(name, settings)

    def get_for_sms(self, name: str) -> Door:
        """Raises ConnectionNotFound, or ConnectionIncomplete for one without a token."""
        settings = self._settings(name)
        if settings.sms_token is None:
            raise ConnectionIncomplete(f"the connection {name!r} has no token; set {_variable(name, 'SMS_TOKEN')}")
        return self._door(name, settings)

    def _settings(self, name: str) -> ConnectionSettings:
        settings = self._connections.get(name)
        if settings is None:
            raise ConnectionNotFound("there is no connection of this name")
        return settings

    def _door(self, name: str, settings: ConnectionSettings) -> Door:
        door = self._open.get(name)
        if door is None:
            secret = settings.secret_key.get_secret_value() if settings.secret_key else ""
            token = settings.sms_token.get_secret_value() if settings.sms_token else None
            door = self._open[name] = Door(
                settings.base_url, settings.api_key or "", secret, sms_token=token, timeout=self._timeout_seconds,
                observe=self._observe, connection=name, retry=self._retry,
            )  # fmt: skip
        return door

    async def aclose(self) -> None:
        doors = list(self._open.values())
        self._open.clear()
        await asyncio.gather(*(door.aclose() for door in doors), return_exceptions=True)


def _variable(name: str, part: str) -> str:
    return f"JETHOOK_CONNECTIONS__{name.upper()}__{part}"
