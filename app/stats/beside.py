"""A second reader for the longer half of an answer.

Whom the events of a group are about takes the database as long as all the rest takes Python, so the two are done at
once where that is free.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy.engine import Connection

from app.db import Database
from app.rollups.store import Progress, read_progress

T = TypeVar("T")
MOST = 2  # answers at once; others read one after the other, and hold no second connection


class Beside:
    """One for the process, for any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._free = threading.BoundedSemaphore(MOST)
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix="stats")

    def read(self, progress: Progress, work: Callable[[Connection], T]) -> Future[T | None] | None:
        """`work` on another connection; its result is None where more or less is counted there than `progress` says,
        which is all that counted events depend on. None: no reader is free."""
        if not self._free.acquire(blocking=False):
            return None
        return self._threads.submit(self._run, progress, work)

    def _run(self, progress: Progress, work: Callable[[Connection], T]) -> T | None:
        try:
            with self._database.reading() as connection:
                return work(connection) if read_progress(connection) == progress else None
        finally:
            self._free.release()
