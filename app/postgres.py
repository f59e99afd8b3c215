"""PostgreSQL's engine: its pool, and how long silence may last before a connection counts as gone.

A network that forgets a connection does not say so. The kernel would wait for a quarter of an hour for an answer, and
every thread of ours with it; the server would wait for two hours for our next word, and hold the locks of what we had
begun. So both ends are told to ask and to give up after seconds.
"""

from __future__ import annotations

import math
import time
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.types.string import TextLoader
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

from app.errors import DatabaseFault

ASK_AFTER_SECONDS = 0.1  # of rest: no server is started again in less
RESTS_SINCE = "rests_since"
# Of our end, by libpq's names; what the URL says wins. Milliseconds, then seconds.
OUR_END = {"tcp_user_timeout": "10000", "keepalives_idle": "10", "keepalives_interval": "3", "keepalives_count": "3"}
# Of the server's; where it does not know one, there is nothing to set.
THEIR_END = """
    SELECT set_config(name, wanted.value, false) FROM pg_settings JOIN (VALUES
        ('tcp_user_timeout', '10000'), ('tcp_keepalives_idle', '10'),
        ('tcp_keepalives_interval', '3'), ('tcp_keepalives_count', '3')
    ) AS wanted (name, value) USING (name)
"""


def postgres_engine(url: sa.URL, *, pool_size: int) -> Engine:
    """`prepare_threshold` in the URL is psycopg's own: after how many times a statement is prepared, or `none` for a
    PgBouncer in transaction mode that knows nothing of prepared statements (before 1.21, or max_prepared_statements 0).
    """
    threshold = _prepare_threshold(url.query.get("prepare_threshold"))
    url = url.difference_update_query(["prepare_threshold"])
    url = url.update_query_dict({name: value for name, value in OUR_END.items() if name not in url.query})
    engine = sa.create_engine(
        url,
        pool_size=pool_size,
        hide_parameters=True,
        max_overflow=16,
        pool_timeout=10,
        connect_args={"connect_timeout": 5, "application_name": "jethook"} | threshold,
    )
    event.listen(engine, "connect", _prepare)
    _ask_the_rested(engine)
    return engine


def _ask_the_rested(engine: Engine) -> None:
    """A restarted server costs one round trip, not one failed post. SQLAlchemy's own way (pool_pre_ping) asks each
    time, which was a fifth of what the thread of the writes did for single events."""

    @event.listens_for(engine, "checkin")
    def _note(connection: object, record: ConnectionPoolEntry) -> None:
        record.info[RESTS_SINCE] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _ask(connection: Any, record: ConnectionPoolEntry, _: object) -> None:
        if time.monotonic() - record.info.get(RESTS_SINCE, math.inf) < ASK_AFTER_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg.Error:
            raise InvalidatePoolError from None  # the others are as old: all are made anew


def _prepare(connection: psycopg.Connection[Any], _: object) -> None:
    # Ids are text everywhere above the database: no object is made of each.
    connection.adapters.register_loader("uuid", TextLoader)
    with connection.cursor() as cursor:
        cursor.execute(THEIR_END)
    connection.commit()  # what a rollback would take back


def _prepare_threshold(given: str | tuple[str, ...] | None) -> dict[str, int | None]:
    if given is None:
        return {}
    if given == "none":
        return {"prepare_threshold": None}
    if isinstance(given, str) and given.isascii() and given.isdigit():
        return {"prepare_threshold": int(given)}
    raise DatabaseFault("JETHOOK_DATABASE_URL: prepare_threshold is a whole number or `none`")
