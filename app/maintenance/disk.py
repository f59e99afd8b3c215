"""Gives disk back after much was deleted.

SQLite keeps the pages of what was deleted for later rows. Its file shrinks only where it was made to (`auto_vacuum`,
chosen before the first table, see `app.db`), and by small steps, since each moves pages and holds the writer meanwhile.
PostgreSQL needs none of this for what it dropped whole; of what was deleted row by row, autovacuum makes the room
usable.
"""

from __future__ import annotations

from typing import Any

import structlog

from app.db import BUSY_TIMEOUT_MS, Database
from app.maintenance.pacing import Pace

log = structlog.get_logger(__name__)

CANNOT_SHRINK = "retention.file_cannot_shrink"
STEP_PAGES = 64
# Free pages that stay, of the whole file: what comes in next takes them, and would else make it grow again.
RESERVE = 20
CHECKPOINT_TRIES = 5


async def shrink(database: Database, pace: Pace) -> int:
    """Free pages of a SQLite file -> the file system; the number of pages."""
    before = await database.run_aside(_free_pages)
    free = before
    while free > 0 and free > await database.run_aside(lambda c: _number(c, "page_count")) // RESERVE:
        with pace.timed():
            left = await database.run_aside(_vacuum_step)
        if left >= free:
            break  # a file that was made without auto_vacuum
        free = left
        await pace.rest()
    return before - free


async def truncate_log(database: Database, pace: Pace) -> bool:
    """Bring all of the write-ahead log into the file and cut it off, so that nothing deleted is left in it.

    False while some reader still needs it.
    """
    for _ in range(CHECKPOINT_TRIES):
        with pace.timed():
            done = await database.run_aside(_checkpoint)
        if done:
            return True
        await pace.rest()
    return False


async def tell_if_it_cannot_shrink(database: Database) -> None:
    """One line for a file from before `auto_vacuum` was chosen."""
    if database.is_sqlite and await database.run_aside(lambda c: _number(c, "auto_vacuum")) == 0:
        log.warning(
            CANNOT_SHRINK,
            advice="stop Jethook and run once on the file: sqlite3 FILE 'PRAGMA auto_vacuum=INCREMENTAL; VACUUM'",
        )


def _vacuum_step(cursor: Any) -> int:
    cursor.execute(f"PRAGMA incremental_vacuum({STEP_PAGES})").fetchall()
    return _free_pages(cursor)


def _free_pages(cursor: Any) -> int:
    return _number(cursor, "freelist_count")


def _number(cursor: Any, name: str) -> int:
    return int(cursor.execute(f"PRAGMA {name}").fetchone()[0])


def _checkpoint(cursor: Any) -> bool:
    """Without waiting for readers: whoever waits here holds up every writer."""
    cursor.execute("PRAGMA busy_timeout=0")
    try:
        busy, _, _ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    return not busy
