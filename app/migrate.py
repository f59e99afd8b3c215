"""Brings the database to the newest schema; safe when many processes start at once.

The whole upgrade is one transaction. SQLite holds its write lock for it, PostgreSQL an advisory lock, so the first
comer works and the others find it done.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa
import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from app import partitions
from app.clock import utc_now
from app.db import Database
from app.errors import DatabaseFault

log = structlog.get_logger(__name__)

LOCK = 0x6A65_7468_6F6F_6B  # "jethook": the key of PostgreSQL's advisory lock


def migrate(database: Database) -> tuple[str | None, str]:
    """(revision found, revision now). Raises DatabaseFault, naming the setting, if the database cannot be used.

    A revision this code does not know is a newer release's: it is left alone, since a migration never breaks the
    version before it and a rolling restart runs both for a while.
    """
    config = _config()
    script = ScriptDirectory.from_config(config)
    head = script.get_current_head()
    assert head is not None

    def upgrade(connection: Connection) -> tuple[str | None, str]:
        if not database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        found = MigrationContext.configure(connection).get_current_revision()
        if found == head:
            return found, head
        if found is not None and found not in {revision.revision for revision in script.walk_revisions()}:
            log.warning("database.newer", found=found, known=head)
            return found, found
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if not database.is_sqlite:
            for week in partitions.missing_weeks(connection, utc_now()):
                partitions.make(connection, week)
        return found, head

    try:
        found, now = database.write(upgrade)
    except DBAPIError as error:
        raise DatabaseFault(f"JETHOOK_DATABASE_URL: the database cannot be used: {error.orig}") from None
    if found != now:
        log.info("database.migrated", found=found, now=now)
    return found, now


def is_current(connection: Connection) -> bool:
    """The schema is the one this code knows, or a newer one."""
    found = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory.from_config(_config())
    return found is not None and (
        found == script.get_current_head() or found not in {r.revision for r in script.walk_revisions()}
    )


def is_described(name: str | None, kind: str, parents: Mapping[str, str | None]) -> bool:
    """For Alembic's comparison: what PostgreSQL has more than the models say, see `app.partitions`."""
    return name != "ix_events_seq" if kind == "index" else kind != "table" or not partitions.is_partition(name)


def _config() -> Config:
    # A wheel carries the versions inside the package; a checkout has them at the top.
    inside = Path(__file__).parent / "_migrations"
    folder = inside if inside.is_dir() else Path(__file__).parent.parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config
