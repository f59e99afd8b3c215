"""Python runs this at the start of a service under test, by its PYTHONPATH; the product knows nothing of it.

`FAULTS_CLOCK` names a file with a number of seconds: the wall clock is off by that many, and may change at any time.
`FAULTS_DIE` names a file that, once it is there, says at which statement the process kills itself with SIGKILL.
`FAULTS_HURRY` sets numbers that make a duty come round sooner: `package.module:NAME=value`, comma separated.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

_REREAD_SECONDS = 0.02


class Clock:
    """The wall clock and how far a file says that it is off; monotonic time is left alone, as by a real jump."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._offset = 0.0
        self._read_at = -1.0
        self._time, self._time_ns = time.time, time.time_ns

    def shift(self) -> None:
        import app.clock

        time.time, time.time_ns = self.time, self.time_ns
        # Before anybody imports it by name: it asks datetime, which is of C and cannot be changed.
        app.clock.utc_now = lambda: datetime.now(UTC) + timedelta(seconds=self._off())

    def time(self) -> float:
        return self._time() + self._off()

    def time_ns(self) -> int:
        return self._time_ns() + int(self._off() * 1_000_000_000)

    def _off(self) -> float:
        if time.monotonic() - self._read_at > _REREAD_SECONDS:
            self._read_at = time.monotonic()
            with open(self._path) as file:
                self._offset = float(file.read() or self._offset)
        return self._offset


class Death:
    """SIGKILL at the nth run of a statement: `statement`, right after it and before the commit; `commit`, within one
    or two milliseconds of its start; `committed`, when it is done and nobody has been told."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen = 0
        self._transactions: set[int] = set()
        self._moment, self._after = "", 0.0

    def ran(self, connection: Any, sql: str) -> None:
        if not os.path.exists(self._path):
            return
        with open(self._path) as file:
            order = json.load(file)
        if not re.search(order["statement"], sql, re.DOTALL):
            return
        self._seen += 1
        if self._seen >= order["nth"]:
            if order["moment"] == "statement":
                self.die()
            self._transactions.add(id(connection))
            self._moment, self._after = order["moment"], order["after"]

    def commits(self, connection: Any) -> None:
        if id(connection) in self._transactions and self._moment == "commit":
            threading.Thread(target=self._die_soon, daemon=True).start()

    def committed(self, connection: Any) -> None:
        if id(connection) in self._transactions:
            self.die()

    def _die_soon(self) -> None:
        time.sleep(self._after)
        self.die()

    @staticmethod
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def watch_postgres(death: Death) -> None:
    import psycopg

    execute, commit = psycopg.Cursor.execute, psycopg.Connection.commit

    def watched_execute(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        result = execute(self, query, *arguments, **options)
        death.ran(self.connection, str(query))
        return result

    def watched_commit(self: Any) -> None:
        death.commits(self)
        commit(self)
        death.committed(self)

    psycopg.Cursor.execute = watched_execute  # type: ignore[method-assign]
    psycopg.Connection.commit = watched_commit  # type: ignore[method-assign]


def watch_sqlite(death: Death) -> None:
    import sqlite3
    from sqlite3 import dbapi2

    class Cursor(sqlite3.Cursor):
        def execute(self, sql: str, *arguments: Any) -> Any:
            result = super().execute(sql, *arguments)
            death.ran(self.connection, sql)
            return result

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

        def commit(self) -> None:
            death.commits(self)
            super().commit()
            death.committed(self)

    connect = sqlite3.connect
    dbapi2.connect = sqlite3.connect = lambda *a, **kw: connect(*a, **{"factory": Connection, **kw})  # type: ignore[assignment]


def hurry(settings: str) -> None:
    for setting in settings.split(","):
        place, _, value = setting.partition("=")
        module, _, name = place.partition(":")
        found = importlib.import_module(module)
        assert hasattr(found, name), setting
        setattr(found, name, float(value))


if "FAULTS_CLOCK" in os.environ:
    Clock(os.environ["FAULTS_CLOCK"]).shift()
if "FAULTS_DIE" in os.environ:
    watch_postgres(one := Death(os.environ["FAULTS_DIE"]))
    watch_sqlite(one)
if "FAULTS_HURRY" in os.environ:
    hurry(os.environ["FAULTS_HURRY"])
