"""What the service found out about what comes: webhooks that are silent, and types of which less came than Mailjet
counted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy.engine import Connection

from app.clock import rfc3339
from app.completeness import queries as completeness
from app.completeness.figures import date_of, settled_days
from app.db import Database
from app.doctor.callbacks import key_setting
from app.doctor.findings import Finding, ok, skipped, warning
from app.settings import Settings
from app.silence.queries import list_expected

EVERY = "JETHOOK_COMPLETENESS_EVERY_SECONDS"


def examine(settings: Settings, database: Database, now: datetime) -> list[Finding]:
    with database.reading() as connection:
        return [*_silence(settings, connection), *_completeness(settings, connection, now)]


def _silence(settings: Settings, connection: Connection) -> Iterator[Finding]:
    known = list_expected(connection)
    for name, webhook in settings.effective_webhooks.items():
        silent = {t: e.silent_since for t in webhook.events
                  if (e := known.get((name, t))) is not None and e.silent_since is not None}  # fmt: skip
        for event_type, since in silent.items():
            told = f"no {event_type} since {rfc3339(since)}, though by now one should have come"
            setting = f"JETHOOK_WEBHOOKS__{name.upper()}__SILENT_AFTER_SECONDS"
            yield warning("silence", f"{told}: does Mailjet send, and is the callback alive?", setting, subject=name)
        if not silent:
            yield ok("silence", "nothing is overdue", subject=name)


def _completeness(settings: Settings, connection: Connection, now: datetime) -> Iterator[Finding]:
    for name in (name for name, found in settings.effective_connections.items() if found.has_keys):
        look = completeness.find_look(connection, name)
        if look is None:
            yield skipped("completeness", "Mailjet was not asked yet what it counted", EVERY, subject=name)
        elif look.error is not None:
            told = f"Mailjet could not be asked at {rfc3339(look.looked_at)}: {look.error}"
            yield warning("completeness", told, key_setting(name), subject=name)
        else:
            yield from _week(connection, name, now)


def _week(connection: Connection, name: str, now: datetime) -> Iterator[Finding]:
    weeks = [week for week in completeness.weeks(connection, settled_days(now)) if week.connection == name]
    lacking = [week for week in weeks if week.is_incomplete]
    for week in lacking:
        since = date_of(week.first_day).isoformat()
        told = f"{week.type}: {week.stored} stored of {week.expected} that Mailjet counted since {since}"
        fetch = f"`jethook backfill --connection {name} --since {since}` fetches what is missing"
        yield warning("completeness", f"{told}; {fetch}", "JETHOOK_PUBLIC_URL", subject=name)
    if not lacking:
        yield ok("completeness", "as many as Mailjet counted" if weeks else "no day to compare yet", subject=name)
