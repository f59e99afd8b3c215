"""What became of each message of a request to send, kept under its Idempotency-Key.

What was handed to Mailjet is written down before it goes out, so after a crash it is known which messages may be there
already. A request is worked on by one caller at a time: `lease_until`, renewed while it works. What the messages say is
not kept, only a digest, since whoever repeats the request brings them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

from app.clock import to_micros
from app.connector.problems import InFlight, KeyReused
from app.db import Database, insert_missing
from app.models import Event, Send

log = structlog.get_logger(__name__)

LEASE = timedelta(seconds=5)
RENEW_SECONDS = 1.25
PATIENCE_SECONDS = 12.0  # for another caller of the same key
LOOK_SECONDS = 0.2
KEPT = timedelta(days=7)

_sends: sa.Table = Send.__table__  # type: ignore[attr-defined]
_events: sa.Table = Event.__table__  # type: ignore[attr-defined]
_COLUMNS = ("connection", "key", "fingerprint", "messages", "finished", "owner", "lease_until", "created_at")


@dataclass(slots=True)
class Entry:
    """One message. `tried_at` (Unix seconds): Mailjet may have it; `result` is a `Result`, once it is known."""

    custom_id: str
    tried_at: int | None = None
    result: dict[str, Any] | None = None

    @property
    def is_settled(self) -> bool:
        return self.result is not None and self.result["status"] != "unknown"

    @property
    def is_doubtful(self) -> bool:
        """Mailjet may have it, and has not said so."""
        return self.tried_at is not None and not self.is_settled


class Ledger:
    """The entry of one request; without a key it is kept in memory only."""

    def __init__(
        self, database: Database, connection: str, key: str | None, fingerprint: str, owner: str,
        now: Callable[[], datetime],
    ) -> None:  # fmt: skip
        self._database = database
        self._connection = connection
        self._key = key
        self._fingerprint = fingerprint
        self._owner = owner
        self._now = now
        self._here = (_sends.c.connection == connection) & (_sends.c.key == key)

    @asynccontextmanager
    async def held(self, fresh: Sequence[Entry]) -> AsyncIterator[list[Entry]]:
        """The request's messages, for this caller alone: `fresh`, or as an earlier request with the key left them.

        Raises KeyReused, or InFlight if another caller is at it for too long.
        """
        if self._key is None:
            yield list(fresh)
            return
        entries = await self._take(fresh)
        renewing = asyncio.create_task(self._renew())
        try:
            yield entries
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await self._update(lease_until=self._now())

    async def save(self, entries: Sequence[Entry]) -> None:
        """Durable when this returns."""
        if self._key is None:
            return
        finished = all(entry.is_settled for entry in entries)
        if await self._update(messages=_dump(entries), finished=finished) == 0:
            # We were away for longer than our lease: somebody else sends these now, and we must not.
            raise InFlight("a request with this Idempotency-Key is being handled", headers={"retry-after": "5"})

    async def _take(self, fresh: Sequence[Entry]) -> list[Entry]:
        give_up = self._now() + timedelta(seconds=PATIENCE_SECONDS)
        while True:
            row = await self._database.run_write(lambda c: self._try(c, fresh))
            if row.fingerprint != self._fingerprint:
                raise KeyReused("this Idempotency-Key came with another request before")
            if row.owner == self._owner or row.finished:
                return [Entry(**entry) for entry in orjson.loads(row.messages)]
            if self._now() >= give_up:
                raise InFlight("a request with this Idempotency-Key is being handled", headers={"retry-after": "5"})
            await asyncio.sleep(LOOK_SECONDS)

    def _try(self, connection: Connection, fresh: Sequence[Entry]) -> sa.Row[Any]:
        """Make the row, or take it over where nobody works on it any more; the row as it is then."""
        now = self._now()
        connection.execute(_sends.delete().where(_sends.c.created_at < now - KEPT))
        row = (self._connection, self._key, self._fingerprint, _dump(fresh), False, self._owner,
               to_micros(now + LEASE), to_micros(now))  # fmt: skip
        if not insert_missing(connection, _sends, _COLUMNS, [row]):
            free = self._here & (_sends.c.lease_until <= now) & sa.not_(_sends.c.finished)
            same = free & (_sends.c.fingerprint == self._fingerprint)
            connection.execute(_sends.update().where(same).values(owner=self._owner, lease_until=now + LEASE))
        return connection.execute(sa.select(_sends).where(self._here)).one()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self._update(lease_until=self._now() + LEASE)
            except Exception as error:  # noqa: BLE001  the next time may do; what was tried is written down
                log.warning("send.lease_not_renewed", error=type(error).__name__)

    async def _update(self, **values: Any) -> int:
        """The number of rows: 0 where another caller has taken it over."""
        mine = self._here & (_sends.c.owner == self._owner)
        return await self._database.run_write(
            lambda c: c.execute(_sends.update().where(mine).values(**values)).rowcount
        )


def ids_known_before(connection: Connection, custom_id: str, moment: datetime) -> set[str]:
    """Ids of messages with this custom id that had events before: an earlier message of the same name."""
    statement = sa.select(_events.c.message_id).distinct().where(
        _events.c.custom_id == custom_id, _events.c.occurred_at < moment, _events.c.message_id.is_not(None)
    )  # fmt: skip
    return set(connection.execute(statement).scalars())


def _dump(entries: Sequence[Entry]) -> str:
    return orjson.dumps([asdict(entry) for entry in entries]).decode()
