"""Looks once a minute whether something that should have come did not, and tells it once.

One replica judges; all of them show what it found. A look reads one index entry for each webhook and type; the rhythm
is learned anew every hour, since it is of weeks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy.engine import Connection

from app.clock import rfc3339, utc_now, wait_for_event
from app.db import Database, is_outage
from app.operator_events import NOBODY, WEBHOOK_HEARD, WEBHOOK_SILENT, Change, Herald
from app.settings import WebhookSettings
from app.silence import queries
from app.silence.queries import Expected, Key
from app.silence.rhythm import Rhythm, expected_by, hour_of, learn

log = structlog.get_logger(__name__)

SILENT, HEARD, FAILED = "webhook.silent", "webhook.heard", "silence.failed"
LOOK_SECONDS = 60.0
LEARN_EVERY = timedelta(hours=1)
WORTH_WRITING = timedelta(seconds=30)  # what is expected moves on with every event

OnSilence = Callable[[str, str, bool], None]
"""Called with webhook, event type, and whether it is silent."""


class SilenceKeeper:
    """One for the process, on the event loop. `may_lead` asks for the lease of this duty."""

    def __init__(
        self, webhooks: Mapping[str, WebhookSettings], database: Database, may_lead: Callable[[], Awaitable[bool]], *,
        on_silence: OnSilence = lambda webhook, event_type, silent: None, herald: Herald = NOBODY,
        now: Callable[[], datetime] = utc_now,
    ) -> None:  # fmt: skip
        self._webhooks = webhooks
        self._keys = [(name, event_type) for name, webhook in webhooks.items() for event_type in webhook.events]
        self._database = database
        self._may_lead = may_lead
        self._on_silence = on_silence
        self._herald = herald
        self._now = now
        self._rhythms: dict[Key, Rhythm | None] = {}
        self._learned_at: datetime | None = None

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                self._show(await self.look() if await self._may_lead() else await self._known())
            except Exception as error:  # whatever it was, the next look may do better
                log.warning(FAILED, error=type(error).__name__, exc_info=not is_outage(error))
            await wait_for_event(stop, LOOK_SECONDS)

    async def look(self) -> Mapping[Key, Expected]:
        """Judge every webhook and type; what changed is stored, and told in the same transaction. What holds then."""
        now = self._now()
        if self._learned_at is None or now - self._learned_at >= LEARN_EVERY:
            active = await self._database.run_read(lambda c: queries.active_hours(c, hour_of(now)))
            self._rhythms = {key: learn(active.get(key, ())) for key in self._keys}
            self._learned_at = now
        found = await self._database.run_read(lambda c: dict(self._found(c, now)))
        known = await self._known()
        if known.keys() == found.keys() and not any(_differs(known[key], found[key]) for key in found):
            return known
        await self._database.run_write(lambda c: self._record(c, found, now))
        return await self._known()

    async def _known(self) -> Mapping[Key, Expected]:
        return await self._database.run_read(queries.list_expected)

    def _found(self, connection: Connection, now: datetime) -> Iterator[tuple[Key, tuple[datetime | None, Expected]]]:
        """Key -> (when the last event happened, what is expected)."""
        for key, last in queries.last_events(connection, self._keys, now).items():
            by = None if last is None else self._expected_by(key, last)
            yield key, (last, Expected(by, last if by is not None and by <= now else None))

    def _expected_by(self, key: Key, last: datetime) -> datetime | None:
        webhook, event_type = key
        seconds = self._webhooks[webhook].silent_after(event_type)
        if seconds is not None:
            return last + timedelta(seconds=seconds) if seconds else None
        rhythm = self._rhythms.get(key)
        return None if rhythm is None else expected_by(rhythm, last)

    def _record(
        self, connection: Connection, found: Mapping[Key, tuple[datetime | None, Expected]], now: datetime
    ) -> None:
        queries.make_rows(connection, found)
        known = queries.list_expected(connection, locked=True)
        queries.forget(connection, known.keys() - found.keys())
        changed = {key: expected for key, (_, expected) in found.items() if known[key] != expected}
        queries.record(connection, changed)
        silent = [key for key, e in changed.items() if e.silent_since is not None and known[key].silent_since is None]
        # Silence that is over: heard again, and not only no longer expected.
        heard = [key for key, e in changed.items() if e.silent_since is None
                 and (since := known[key].silent_since) is not None and (found[key][0] or since) > since]  # fmt: skip
        for change in (*_changes(WEBHOOK_SILENT, silent, found, now), *_changes(WEBHOOK_HEARD, heard, found, now)):
            self._herald.store(connection, change)
            _tell(change)

    def _show(self, known: Mapping[Key, Expected]) -> None:
        for webhook, event_type in self._keys:
            expected = known.get((webhook, event_type))
            self._on_silence(webhook, event_type, expected is not None and expected.silent_since is not None)


def _differs(known: Expected, found: tuple[datetime | None, Expected]) -> bool:
    """Is it worth a write?"""
    _, expected = found
    if known.silent_since != expected.silent_since or known.expected_by is None or expected.expected_by is None:
        return known != expected
    return abs(known.expected_by - expected.expected_by) >= WORTH_WRITING


def _changes(
    event_type: str, keys: Iterable[Key], found: Mapping[Key, tuple[datetime | None, Expected]], now: datetime
) -> Iterator[Change]:
    """One for each webhook, however many of its types it is about."""
    types: dict[str, list[str]] = {}
    for webhook, about in keys:
        types.setdefault(webhook, []).append(about)
    for webhook, names in types.items():
        last = min((moment for name in names if (moment := found[webhook, name][0]) is not None), default=None)
        change = Change(event_type, now, webhook=webhook, count=len(names), details={"types": ",".join(names)})
        yield replace(change, since=last) if event_type == WEBHOOK_SILENT else change


def _tell(change: Change) -> None:
    types = change.details["types"]
    if change.type == WEBHOOK_SILENT:
        since = None if change.since is None else rfc3339(change.since)
        log.warning(SILENT, webhook=change.webhook, types=types, last_event_at=since)
    else:
        log.info(HEARD, webhook=change.webhook, types=types)
