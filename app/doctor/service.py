"""The whole examination: everything that can be wrong around Jethook, looked at from here, changing nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.engine import make_url

from app.clock import utc_now
from app.credentials import callback_passwords, load_secret_key, registered_passwords
from app.db import Database
from app.delivery.worker import Relay
from app.doctor import arrivals, callbacks, database, network, sinks
from app.doctor.findings import Finding, failure, ok, skipped, warning
from app.errors import DatabaseFault
from app.group_commit import GroupCommit
from app.main import make_registrar
from app.metrics import Metrics
from app.migrate import is_current
from app.settings import Settings


def examine(settings: Settings, *, send_test: bool = False) -> list[Finding]:
    """In the order of the journey: settings, database, public URL, Mailjet, sinks, what came."""
    found = list(_settings(settings))
    opened, about_database = _database(settings)
    found += about_database
    try:
        found += asyncio.run(_ask_around(settings, opened, send_test=send_test))
        return found + (arrivals.examine(settings, opened, utc_now()) if opened is not None else [])
    finally:
        if opened is not None:
            opened.close()


def _settings(settings: Settings) -> Iterator[Finding]:
    yield ok("settings", f"webhooks: {len(settings.effective_webhooks)}, sinks: {len(settings.sinks)}")
    if not (settings.api_keys or settings.read_api_keys):
        yield warning("settings", "no REST keys: one is made and printed at start", "JETHOOK_API_KEYS")
    if not settings.sinks:
        yield warning("settings", "no sink: events are kept and go nowhere", "JETHOOK_SINKS__{N}__URL")


def _database(settings: Settings) -> tuple[Database | None, list[Finding]]:
    """The database where it can be asked for passwords."""
    url = settings.database_url.get_secret_value()
    path = make_url(url).database if url.startswith("sqlite") else None
    if path and not Path(path).exists() and Path(path).absolute().parent.is_dir():
        return None, [warning("database", f"{path!r} is not there yet: the first start makes it", database.URL)]
    try:
        opened = Database(url)
    except DatabaseFault as fault:
        return None, [failure("database", str(fault), database.URL)]
    try:
        found = list(database.examine(opened))
        with opened.reading() as connection:
            usable = is_current(connection)
    except Exception as error:  # noqa: BLE001  whatever it is, it is the finding
        opened.close()
        said = " ".join(str(getattr(error, "orig", error)).split())[:300]
        return None, [failure("database", f"cannot be asked: {said}", database.URL)]
    if not usable:
        opened.close()
        return None, found
    return opened, found


async def _ask_around(settings: Settings, opened: Database | None, *, send_test: bool) -> list[Finding]:
    passwords = await asyncio.to_thread(_passwords, settings, opened)
    parts = [network.public_url(settings, passwords), _mailjet(settings, opened), _sinks(settings, opened, send_test)]
    return [finding for part in await asyncio.gather(*parts) for finding in part]


def _passwords(settings: Settings, opened: Database | None) -> dict[str, str]:
    if opened is None:
        return {}
    return registered_passwords(callback_passwords(settings, load_secret_key(settings, opened)))


async def _mailjet(settings: Settings, opened: Database | None) -> list[Finding]:
    """Credentials and callbacks by a dry run; the clock by any answer."""
    found: list[Finding] = []
    with_keys = {name: c for name, c in settings.effective_connections.items() if c.api_key and c.secret_key}
    for name, connection in with_keys.items():
        found += await network.mailjet_clock(
            connection.base_url, callbacks.key_setting(name).replace("API_KEY", "BASE_URL")
        )
    if opened is None:
        return [*found, skipped("callback", "needs the database, which knows the callback passwords", database.URL)]
    registrar = await asyncio.to_thread(make_registrar, settings, opened)
    return found + callbacks.judged(settings, await registrar.reconcile(dry_run=True))


async def _sinks(settings: Settings, opened: Database | None, send_test: bool) -> list[Finding]:
    test = _test_of(settings, opened) if send_test and opened is not None else None
    parts = [sinks.examine(name, sink, settings.address_rules, test) for name, sink in settings.sinks.items()]
    found = [finding for part in await asyncio.gather(*parts) for finding in part]
    if send_test and opened is None:
        found.append(skipped("sink", "no test event without the database", database.URL))
    return found


def _test_of(settings: Settings, opened: Database) -> sinks.Test:
    """The relay's own way to post a test event; it is never started."""
    relay = Relay(
        settings.sinks, database=opened, commits=GroupCommit(opened),
        metrics=Metrics(webhooks=settings.effective_webhooks, sinks=settings.sinks),
        address_rules=settings.address_rules,
    )  # fmt: skip
    return relay.test
