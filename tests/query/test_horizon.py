"""The feed skips nothing on PostgreSQL, where numbers are given in another order than transactions commit."""

from __future__ import annotations

import itertools
import random
import shutil
import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
import sqlalchemy as sa
import structlog

from app.db import Database
from app.filters import FeedQuery
from app.models import Event
from app.query.feed import FeedPage, parse_ask, read_page
from app.query.horizon import Horizon, Mark
from tests.factories import event_values, insert

WRITERS, TRANSACTIONS = 8, 30
INSERT = sa.insert(Event.__table__)
SEQ = Event.__table__.c.seq


class Reader:
    """Follows the feed as a program does that polls one replica, or several."""

    def __init__(self, replicas: list[tuple[Database, Horizon]], position: int = 0, limit: int = 7) -> None:
        self._replicas = itertools.cycle(replicas)
        self._ask = parse_ask(FeedQuery(limit=limit), None, limit)
        self.position = position
        self.ids: list[str] = []
        self.positions = [position]
        self.naive: list[int] = []  # what one would get who only reads past the last number seen

    def poll(self) -> FeedPage:
        database, horizon = next(self._replicas)
        with database.reading() as connection:
            mark = horizon.look(connection)
        with database.reading() as connection:
            page = read_page(connection, self._ask, self.position, max(mark.settled or 0, self.position))
            after = self.naive[-1] if self.naive else 0
            self.naive += connection.execute(sa.select(SEQ).where(after < SEQ).order_by(SEQ)).scalars()
        for event in page.events:
            self.ids.append(id_in(event.content))
            self.positions.append(event.seq)
        self.position = page.position
        return page

    def drain(self, marks: Callable[[], bool]) -> None:
        """Until `marks` says that nothing more is coming and all has been read."""
        while True:
            over = marks()
            page = self.poll()
            if over and not page.events and not page.has_more and self._is_settled():
                return

    def _is_settled(self) -> bool:
        found = []
        for _ in range(2):
            database, horizon = next(self._replicas)
            with database.reading() as connection:
                found.append(horizon.look(connection))
        return all(mark.is_settled and self.position >= mark.given for mark in found)


def id_in(content: bytes) -> str:
    return content.split(b'"')[3].decode()


@pytest.fixture
def postgres(make_migrated: Callable[[str], str]) -> str:
    return make_migrated("postgresql")


@pytest.fixture
def replicas(postgres) -> Iterator[list[Database]]:
    opened = [Database(postgres), Database(postgres)]
    yield opened
    for database in opened:
        database.close()


def write_at_random(database: Database, seed: int, start: threading.Barrier, stored: list[str]) -> None:
    """Transactions of one to five events that pause between their inserts and before their commit; some roll back."""
    rng = random.Random(seed)
    pause = threading.Event()
    start.wait(20)
    for _ in range(TRANSACTIONS):
        rows = [event_values(webhook=f"w{seed}") for _ in range(rng.randint(1, 5))]
        with database.writer.connect() as connection, connection.begin() as transaction:
            for row in rows:
                connection.execute(INSERT, row)
                pause.wait(rng.choice((0, 0, 0.002)))
            pause.wait(rng.choice((0, 0.001, 0.005, 0.02)))
            if rng.random() < 0.1:
                transaction.rollback()
                continue
        stored += [row["id"] for row in rows]


@pytest.mark.timeout(120)
def test_a_reader_sees_each_event_once_while_eight_connections_of_two_replicas_write(replicas):
    stored: list[str] = []
    start = threading.Barrier(WRITERS + 1)
    writers = [
        threading.Thread(target=write_at_random, args=(replicas[n % 2], n, start, stored), daemon=True)
        for n in range(WRITERS)
    ]
    horizons = [(replicas[0], Horizon()), (replicas[1], Horizon())]
    reader = Reader(horizons)
    for writer in writers:
        writer.start()
    start.wait(20)

    reader.drain(lambda: not any(writer.is_alive() for writer in writers))

    assert len(reader.ids) == len(set(reader.ids)) == len(stored)
    assert set(reader.ids) == set(stored)
    assert reader.positions == sorted(reader.positions)
    assert len(reader.naive) < len(stored)  # numbers did overtake each other: else this would prove nothing
    # From any cursor it goes on with exactly what followed.
    rng = random.Random(5)
    for at in [0, len(reader.ids), len(reader.ids) - 5, *rng.sample(range(len(reader.ids)), 5)]:
        again = Reader(horizons, position=reader.positions[at], limit=1 if at > len(reader.ids) - 9 else 100)
        again.drain(lambda: True)
        assert again.ids == reader.ids[at:]


def test_a_reader_without_the_horizon_would_skip(replicas):
    """What the horizon is for: two transactions that commit in the other order than their numbers."""
    first, second = event_values(), event_values()
    horizon = Horizon()
    reader = Reader([(replicas[0], horizon)])
    with replicas[0].writer.connect() as slow, slow.begin():
        slow.execute(INSERT, first)
        insert(replicas[1], Event, [second])
        assert newest_visible(replicas[0]) == 2  # read naively, 1 would be gone for good
        reader.poll()
        assert reader.ids == []
    reader.poll()

    assert reader.ids == [first["id"], second["id"]]


def test_who_waits_on_a_conflict_has_drawn_a_number_and_is_waited_for(replicas):
    """It has no transaction id yet, so a horizon made of those would run past it."""
    event, other = event_values(), event_values()
    looks = Horizon()
    first = replicas[0].writer.connect()
    transaction = first.begin()
    first.execute(INSERT, event)  # 1
    done = threading.Event()

    def insert_the_same() -> None:
        names = ", ".join(event)
        text = f"INSERT INTO events ({names}) VALUES (:{names.replace(', ', ', :')}) ON CONFLICT DO NOTHING"
        statement = sa.text(text).bindparams(*(sa.bindparam(n, type_=Event.__table__.c[n].type) for n in event))
        replicas[1].write(lambda connection: connection.execute(statement, event))  # 2, and waits for 1
        done.set()

    waiting = threading.Thread(target=insert_the_same, daemon=True)
    waiting.start()
    while look(replicas[0], looks).given < 2:
        pass
    insert(replicas[0], Event, [other])  # 3
    assert look(replicas[0], looks).settled is None
    transaction.rollback()  # 1 never was, and the one that waited is stored as 2
    first.close()
    assert done.wait(20)
    waiting.join(20)
    reader = Reader([(replicas[0], looks)])
    reader.poll()

    assert reader.ids == [event["id"], other["id"]]


def test_transactions_that_write_no_events_hold_nothing_back(replicas, postgres):
    with psycopg.connect(postgres) as stuck, psycopg.connect(postgres.rpartition("/")[0] + "/postgres") as elsewhere:
        stuck.execute("UPDATE sink_states SET paused = false")
        stuck.execute("SELECT count(*) FROM events")  # as a dump does
        elsewhere.execute("SELECT pg_current_xact_id()")  # an open transaction that writes in another database
        insert(replicas[0], Event, [event_values()])

        assert look(replicas[0], Horizon()) == Mark(1, 1)


def test_a_writer_holds_back_what_came_after_it_and_how_long_is_told(replicas):
    now = [100.0]
    horizon = Horizon(lambda: now[0])
    insert(replicas[0], Event, [event_values()])
    assert look(replicas[0], horizon) == Mark(1, 1)
    with replicas[1].writer.connect() as stuck, stuck.begin():
        stuck.execute(INSERT, event_values())
        pid = stuck.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        insert(replicas[0], Event, [event_values()])
        assert look(replicas[0], horizon) == Mark(3, 1)
        now[0] += 12.5
        with structlog.testing.capture_logs() as lines:
            assert look(replicas[0], horizon) == Mark(3, 1)
            assert look(replicas[0], horizon) == Mark(3, 1)
        assert horizon.held_seconds == 12.5
    assert look(replicas[0], horizon) == Mark(3, 3)
    assert horizon.held_seconds == 0
    assert lines == [{"event": "feed.held", "log_level": "warning", "seconds": 12.5, "pids": [pid]}]


class Interrupted:
    """A connection on which something else happens after its first statement."""

    def __init__(self, connection, happens: Callable[[], object]) -> None:
        self._connection = connection
        self._happens = [happens]
        self.dialect = connection.dialect

    def execute(self, statement):
        result = self._connection.execute(statement)
        while self._happens:
            self._happens.pop()()
        return result


def test_a_writer_that_begins_within_a_look_is_not_run_past(replicas):
    """The number comes before the locks: the other way round its number would be taken for one that has ended."""
    horizon = Horizon()
    insert(replicas[0], Event, [event_values()])
    with replicas[1].writer.connect() as writer, writer.begin():
        with replicas[0].reading() as connection:
            mark = horizon.look(Interrupted(connection, lambda: writer.execute(INSERT, event_values())))
        assert mark.given == 1
        assert mark.settled in (None, 1)
    assert look(replicas[0], horizon) == Mark(2, 2)


def test_under_steady_load_the_horizon_follows(replicas):
    """There is never a moment without a writer, and yet it moves: it waits for those of one look only."""
    horizon = Horizon()
    settled = []
    first = replicas[0].writer.connect()
    transaction = first.begin()
    first.execute(INSERT, event_values())
    for _ in range(4):
        second = replicas[1].writer.connect()
        follows = second.begin()
        second.execute(INSERT, event_values())
        settled.append(look(replicas[0], horizon).settled)
        transaction.commit()
        first.close()
        settled.append(look(replicas[0], horizon).settled)
        first, transaction = second, follows
    transaction.commit()
    first.close()

    assert settled[-1] is not None
    assert settled[-1] >= 3
    assert look(replicas[0], horizon) == Mark(5, 5)


def test_numbers_are_drawn_one_by_one(replicas):
    """A session that kept some back would use them after higher ones of others were read."""
    with replicas[0].reading() as connection:
        found = connection.exec_driver_sql("SELECT cache_size FROM pg_sequences WHERE sequencename = 'events_seq_seq'")
        assert found.scalar() == 1


def test_an_untouched_sequence_has_given_nothing(database):
    assert look(database, Horizon()) == Mark(0, 0)


def test_a_database_put_back_to_an_earlier_state_is_read_from_there(database):
    horizon = Horizon()
    insert(database, Event, [event_values() for _ in range(3)])
    assert look(database, horizon) == Mark(3, 3)
    back = (
        "UPDATE sqlite_sequence SET seq = 2 WHERE name = 'events'"
        if database.is_sqlite
        else "SELECT setval('events_seq_seq', 2)"
    )
    database.write(lambda connection: connection.exec_driver_sql(back))

    assert look(database, horizon) == Mark(2, 2)


def test_a_copy_in_another_database_is_read_on_from_the_same_cursor(replicas, sqlite_url, migrated_sqlite, tmp_path):
    """What a cursor means does not depend on the cluster, nor on its kind: copies keep `seq` and set the sequence."""
    shutil.copy(migrated_sqlite, tmp_path / "test.db")
    source, target = Database(sqlite_url), replicas[0]
    insert(source, Event, [event_values() for _ in range(9)])
    reader = Reader([(source, Horizon())], limit=4)
    reader.poll()
    with source.reading() as connection:
        rows = [dict(row) for row in connection.execute(sa.select(Event.__table__)).mappings()]
    source.close()
    for _ in range(50):  # its transactions have other ids, its sequence has given other numbers
        target.write(lambda connection: connection.exec_driver_sql("SELECT nextval('events_seq_seq'), txid_current()"))
    insert(target, Event, reversed(rows))
    target.write(lambda connection: connection.exec_driver_sql("SELECT setval('events_seq_seq', 9)"))
    insert(target, Event, [new := event_values()])
    moved = Reader([(target, Horizon())], position=reader.position)
    moved.drain(lambda: True)

    assert reader.ids + moved.ids == [*(row["id"] for row in rows), new["id"]]


def look(database: Database, horizon: Horizon) -> Mark:
    with database.reading() as connection:
        return horizon.look(connection)


def newest_visible(database: Database) -> int | None:
    with database.reading() as connection:
        return connection.execute(sa.select(sa.func.max(Event.__table__.c.seq))).scalar()
