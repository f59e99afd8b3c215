"""PostgreSQL keeps events, deliveries and attempts in partitions, each a week of events by the time in their ids.

A week that is past retention is dropped whole: that costs nothing however much it holds, and the disk has its space
back at once. A week, because a statement that names no id is planned for and asked of every partition (90 days are 13
weeks and add about a millisecond to a page, as measured), and because an event stays until the last of its partition
may go, which a month would make 30 days.

What happened outside the weeks that have partitions (long before the installation, or in a wrong year) lies in the
default partition of its table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.clock import EPOCH, to_micros

KEYS = {"events": "id", "deliveries": "event_id", "attempts": "event_id"}  # table -> the column it is partitioned by
WEEK = timedelta(days=7)
AHEAD = WEEK * 2  # made before they begin, so that nobody need hurry
MOST_MOVED = 10_000  # rows of a new week that the default partition holds already and that move into it
LOCK_MILLIS = 50  # no statement of others ever queues up behind ours for longer
_MONDAY = EPOCH + timedelta(days=4)
_NAME = re.compile(r"(events|deliveries|attempts)_(?:rest|w(\d{8}))", re.ASCII)


def first_id(moment: datetime) -> str:
    """The smallest id an event that happens at `moment` or later can have: an id starts with its milliseconds."""
    millis = max(-(-to_micros(moment) // 1000), 0)
    return f"{millis >> 16:08x}-{millis & 0xFFFF:04x}-8000-8000-000000000000"


def time_of(event_id: str) -> datetime:
    """When the event happened, to the millisecond."""
    return EPOCH + timedelta(milliseconds=int(event_id[:8] + event_id[9:13], 16))


@dataclass(frozen=True, slots=True, order=True)
class Week:
    """From Monday to Monday in UTC."""

    start: datetime

    @property
    def end(self) -> datetime:
        return self.start + WEEK

    @property
    def first_id(self) -> str:
        return first_id(self.start)

    @property
    def beyond(self) -> str:
        """The first id after it."""
        return first_id(self.end)

    def part_of(self, table: str) -> str:
        """The partition of `table` that holds this week."""
        return f"{table}_w{self.start:%Y%m%d}"


def week_of(moment: datetime) -> Week:
    return Week(_MONDAY + (moment - _MONDAY) // WEEK * WEEK)


def weeks_between(first: datetime, last: datetime) -> Iterator[Week]:
    week = week_of(first)
    while week.start <= last:
        yield week
        week = Week(week.end)


def is_partition(name: str | None) -> bool:
    """Is this the name of a partition, and of no table of the models?"""
    return name is not None and _NAME.fullmatch(name) is not None


def parts_holding(ids: Iterable[str], weeks: Sequence[Week]) -> set[str]:
    """The partitions of all three tables in which these events and what belongs to them lie."""
    known = set(weeks)
    found = {week if week in known else None for week in (week_of(time_of(event_id)) for event_id in ids)}
    return {f"{table}_rest" if week is None else week.part_of(table) for week in found for table in KEYS}


def list_weeks(connection: Connection) -> list[Week]:
    """The weeks that have partitions, oldest first."""
    children = sa.text(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'events'::regclass"
    )
    found = (_NAME.fullmatch(name) for name in connection.execute(children).scalars())
    days = [match[2] for match in found if match is not None and match[2]]
    return sorted(Week(datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC)) for day in days)


def missing_weeks(connection: Connection, now: datetime) -> list[Week]:
    """This week and those to come that should have partitions and have none."""
    return missing_among(list_weeks(connection), now)


def missing_among(there: Collection[Week], now: datetime) -> list[Week]:
    """The same of the weeks that have partitions. Pure."""
    return [week for week in weeks_between(now, now + AHEAD) if week not in there]


def lock(connection: Connection) -> None:
    """Keep everybody else from the three tables until the end of the transaction.

    Raises OperationalError (55P03) where that cannot be had at once: a reader that takes long must not make ingest
    queue up behind us. Others ask for these locks in the order of the tables too, or for less; a circle ends like a
    wait, after `LOCK_MILLIS`.
    """
    connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_MILLIS}ms'"))
    connection.execute(sa.text(f"LOCK TABLE {', '.join(KEYS)} IN ACCESS EXCLUSIVE MODE"))


def _within(key: str) -> str:
    return f"{key} >= CAST(:first AS uuid) AND {key} < CAST(:beyond AS uuid)"


def make(connection: Connection, week: Week) -> bool:
    """Give a week its partitions; False where the default partition holds too much of it to be moved now.

    Rows of that week may lie there because somebody's clock is ahead.
    """
    lock(connection)
    if week in list_weeks(connection):
        return True
    if any(_count(connection, table, week) > MOST_MOVED for table in KEYS):
        return False
    for table, key in KEYS.items():
        part, rest = week.part_of(table), f"{table}_rest"
        bounds = {"first": week.first_id, "beyond": week.beyond}
        connection.execute(sa.text(f"CREATE TABLE {part} (LIKE {table} INCLUDING DEFAULTS)"))
        connection.execute(
            sa.text(
                f"WITH moved AS (DELETE FROM {rest} WHERE {_within(key)} RETURNING *)"  # noqa: S608  our own words
                f" INSERT INTO {part} SELECT * FROM moved"
            ),
            bounds,
        )
        bounded = f"FROM ('{week.first_id}') TO ('{week.beyond}')"
        connection.execute(sa.text(f"ALTER TABLE {table} ATTACH PARTITION {part} FOR VALUES {bounded}"))
        name_indexes(connection, part)
    return True


def name_indexes(connection: Connection, part: str) -> None:
    """Name a partition's indexes after the table's, so that a plan tells which one it uses."""
    statement = sa.text(
        "SELECT mine.relname, whole.relname FROM pg_index x JOIN pg_class mine ON mine.oid = x.indexrelid"
        " JOIN pg_inherits i ON i.inhrelid = mine.oid JOIN pg_class whole ON whole.oid = i.inhparent"
        " WHERE x.indrelid = CAST(:part AS regclass)"
    )
    ending = part.rpartition("_")[2]
    for mine, whole in connection.execute(statement, {"part": part}).all():
        connection.execute(sa.text(f"ALTER INDEX {mine} RENAME TO {whole}_{ending}"))


def _count(connection: Connection, table: str, week: Week) -> int:
    """Of the rows in the default partition that belong to `week`, no more than matter."""
    key = KEYS[table]
    some = f"SELECT 1 FROM {table}_rest WHERE {_within(key)} LIMIT {MOST_MOVED + 1}"  # noqa: S608  our own words
    statement = sa.text(f"SELECT count(*) FROM ({some}) AS few")  # noqa: S608
    return int(connection.execute(statement, {"first": week.first_id, "beyond": week.beyond}).scalar_one())


def is_owed(connection: Connection, week: Week) -> bool:
    """Is a delivery of the week's events pending?"""
    pending = sa.text(f"SELECT EXISTS (SELECT FROM {week.part_of('deliveries')} WHERE state = 'pending')")  # noqa: S608
    return bool(connection.execute(pending).scalar_one())


def tables_of(week: Week) -> tuple[sa.TableClause, sa.TableClause]:
    """The partitions of its events and deliveries, with the columns that tell whose rows they are."""
    of_deliveries = [sa.column(name, sa.Text()) for name in ("event_id", "webhook", "sink")]
    of_events = [sa.column(name, sa.Text()) for name in ("id", "webhook")]
    return sa.table(week.part_of("events"), *of_events), sa.table(week.part_of("deliveries"), *of_deliveries)


def has_late(connection: Connection, week: Week, moment: datetime) -> bool:
    """Did an event of the week come in at `moment` or later? Reads the whole of it."""
    late = sa.text(f"SELECT EXISTS (SELECT FROM {week.part_of('events')} WHERE received_at >= :micros)")  # noqa: S608
    return bool(connection.execute(late, {"micros": to_micros(moment)}).scalar_one())


def drop(connection: Connection, week: Week, note: Callable[[Connection], bool], *, though_owed: bool = False) -> bool:
    """Drop a week with all it holds; False, and nothing done, where some of it is owed to a sink, or `note` says no.

    `note` is called when nobody can change the week any more.
    """
    lock(connection)
    if (not though_owed and is_owed(connection, week)) or not note(connection):
        return False
    connection.execute(sa.text(f"DROP TABLE {', '.join(week.part_of(table) for table in KEYS)}"))
    return True
