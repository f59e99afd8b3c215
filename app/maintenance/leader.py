"""Which replica does a duty that only one should do: a lease row that runs out unless it is renewed.

A lease keeps work from being done twice for nothing; it is no lock. A leader that stalls longer than its lease may work
beside its successor for a moment, so every duty under a lease must bear that.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from hashlib import blake2b

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.clock import utc_now
from app.db import Database
from app.models import Lease

log = structlog.get_logger(__name__)
_AWAY = (DBAPIError, PoolTimeoutError, sqlite3.OperationalError)  # the last of a file that was removed

LEASE_GAINED = "lease.gained"
LEASE_LOST = "lease.lost"
# The leader renews every four seconds and a half and has two and a half to spare; another looks when the lease can have
# run out, and no later than that after the end: a dead leader is replaced within 8.
LEASE_SECONDS = 7.0
REMEMBERED_SECONDS = 3.5  # an answer is good for other duties that ask so soon after it; the lease lasts as long again
# A lease further ahead than any honest clock explains was written while a clock was wrong: nobody should wait for it.
MAX_SKEW_SECONDS = 3600.0

MAX_NAME_CHARS = 63  # of the column

_leases: sa.Table = Lease.__table__  # type: ignore[attr-defined]


def try_lead(connection: Connection, name: str, owner: str, now: datetime, lease_seconds: float) -> bool:
    """Take or renew the lease `name` until `now + lease_seconds`; True if `owner` holds it afterwards.

    One statement, so two replicas that ask together cannot both be told yes. The clocks of the replicas should agree
    to within a fraction of the lease.
    """
    expires_at = now + timedelta(seconds=lease_seconds)
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(_leases).values(name=_key(name), owner=owner, expires_at=expires_at)
    taken = statement.on_conflict_do_update(
        index_elements=["name"],
        set_={"owner": statement.excluded.owner, "expires_at": statement.excluded.expires_at},
        where=sa.or_(
            _leases.c.owner == owner,
            _leases.c.expires_at <= now,
            _leases.c.expires_at > expires_at + timedelta(seconds=MAX_SKEW_SECONDS),
        ),
    ).returning(_leases.c.owner)
    return connection.execute(taken).first() is not None


def seconds_of_others(connection: Connection, name: str, owner: str, now: datetime, lease_seconds: float) -> float:
    """For how long the lease is another's, unless it is renewed; 0: `try_lead` would take it."""
    wanted = sa.select(_leases.c.expires_at).where(_leases.c.name == _key(name), _leases.c.owner != owner)
    ends_at = connection.execute(wanted).scalar_one_or_none()
    rest = 0.0 if ends_at is None else (ends_at - now).total_seconds()
    return rest if 0 < rest <= lease_seconds + MAX_SKEW_SECONDS else 0.0


def keep_lead(connection: Connection, name: str, owner: str, now: datetime, lease_seconds: float) -> bool:
    """Renew the lease; False once another has held it since, even if it has run out again.

    For work in steps, each judging by what the one before it saw.
    """
    mine = (_leases.c.name == _key(name)) & (_leases.c.owner == owner)
    expires_at = now + timedelta(seconds=lease_seconds)
    return connection.execute(_leases.update().where(mine).values(expires_at=expires_at)).rowcount == 1


def release(connection: Connection, name: str, owner: str) -> bool:
    """Give the lease back at once, so that another need not wait; False if `owner` did not hold it."""
    deleted = connection.execute(sa.delete(_leases).where(_leases.c.name == _key(name), _leases.c.owner == owner))
    return deleted.rowcount == 1


def _key(name: str) -> str:
    """The name as the column holds it. A part that the settings name may be as long as the column by itself."""
    if len(name) <= MAX_NAME_CHARS:
        return name
    digest = blake2b(name.encode(), digest_size=16).hexdigest()
    return f"{name[: MAX_NAME_CHARS - len(digest) - 1]}~{digest}"


class Leadership:
    """One lease of one replica, for the event loop. Ask `may_lead` every three seconds: asking renews.

    `owner` must be unique among replicas and their restarts. Duties that share one ask the database once for all of
    them when an answer is remembered; `remembered_seconds` is well below the lease, or it could have run out unnoticed.
    Then one of them had better ask every second: it costs nothing while an answer is good, and a lease that may have
    run out is looked at in time.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        owner: str,
        *,
        lease_seconds: float = LEASE_SECONDS,
        now: Callable[[], datetime] = utc_now,
        remembered_seconds: float = 0.0,
    ) -> None:
        self._remembered_seconds = remembered_seconds
        self._anew_at = -math.inf
        self._asking = asyncio.Lock()
        self._database = database
        self._name = name
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._now = now
        self._leads = False

    async def may_lead(self) -> bool:
        """Is the duty ours for three seconds and more? No while the database does not answer."""
        async with self._asking:
            asked_at = time.monotonic()  # the lease counts from before the answer
            if asked_at >= self._anew_at:
                self._leads, rest = await self._ask()
                # A no is good from when it came: duties that wait here must not ask a silent database one by one.
                good_since = asked_at if self._leads else time.monotonic()
                self._anew_at = good_since + min(self._remembered_seconds, rest)
            return self._leads

    async def _ask(self) -> tuple[bool, float]:
        """And for how long that cannot change, as far as is known."""
        leads, rest = False, math.inf
        try:
            if not self._leads:  # a look is cheaper than a write that is refused
                rest = await self._database.run_glance(self._look)
            if self._leads or rest == 0:
                leads, rest = await self._database.run_write(self._try), math.inf
        except _AWAY:
            leads = False
        if leads != self._leads:
            log.info(LEASE_GAINED if leads else LEASE_LOST, lease=self._name, owner=self._owner)
        return leads, rest

    def _look(self, connection: Connection) -> float:
        return seconds_of_others(connection, self._name, self._owner, self._now(), self._lease_seconds)

    def _try(self, connection: Connection) -> bool:
        return try_lead(connection, self._name, self._owner, self._now(), self._lease_seconds)

    async def release(self) -> None:
        """For an orderly stop. A database that is gone is no reason to fail: the lease runs out by itself."""
        self._leads = False
        self._anew_at = -math.inf
        try:
            await self._database.run_write(lambda c: release(c, self._name, self._owner))
        except _AWAY as error:
            log.info(LEASE_LOST, lease=self._name, owner=self._owner, error=type(error).__name__)
