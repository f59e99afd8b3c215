"""Counting in slices, the verdict by time, counting anew: on both databases."""

from __future__ import annotations

import itertools
import random
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from app.models import Event, StatCount, StatMember
from app.query.horizon import Horizon
from app.rollups.fold import fold_slice
from app.rollups.rebuild import rebuild_stats
from app.rollups.store import KnownCells, read_progress
from tests.factories import event_values, insert
from tests.stats.model import START, random_event


def fold(database, most: int = 10_000, known: KnownCells | None = None) -> int:
    known = known or KnownCells()
    with database.reading() as connection:
        settled = Horizon().look(connection).settled
    counted = database.write(lambda c: fold_slice(c, settled, known, most=most))
    known.confirm()
    return counted


def counted(database) -> tuple[list[Any], list[Any]]:
    with database.reading() as connection:
        counts = connection.execute(sa.select(StatCount.__table__)).all()
        members = connection.execute(sa.select(StatMember.__table__)).all()
    return sorted(map(tuple, counts)), sorted(map(tuple, members))


def verdicts(database) -> dict[str, tuple[bool | None, str | None]]:
    table = Event.__table__.c
    with database.reading() as connection:
        rows = connection.execute(sa.select(table.id, table.automated, table.automated_rule))
        return {row.id: (row.automated, row.automated_rule) for row in rows}


def message(number: int, *after_seconds: tuple[str, int]) -> list[dict[str, Any]]:
    return [
        event_values(
            type=kind, outcome="x", message_id=str(number), occurred_at=START + timedelta(seconds=seconds),
            automated=None if kind == "sent" else False, automated_rule=None, webhook=f"hook{seconds % 2}",
        )
        for kind, seconds in after_seconds
    ]  # fmt: skip


@pytest.mark.parametrize("slices", [1, 3, 10_000])
def test_in_the_end_the_verdict_by_time_knows_no_order(database, slices):
    hasty = message(1, ("sent", 100), ("open", 101), ("click", 102), ("click", 103), ("open", 39))
    twice = message(2, ("sent", 100), ("sent", 500), ("click", 501), ("open", 300))
    lost = message(3, ("open", 5), ("click", 5))
    rows = [*hasty, *twice, *lost]
    random.Random(slices).shuffle(rows)
    insert(database, Event, rows)

    known = KnownCells()
    while fold(database, slices, known):
        pass

    machine = (True, "soon_after_sent")
    told = verdicts(database)
    assert [told[e["id"]] for e in hasty] == [(None, None), machine, machine, (False, None), (False, None)]
    assert [told[e["id"]] for e in twice] == [(None, None), (None, None), machine, (False, None)]
    assert [told[e["id"]] for e in lost] == [(False, None)] * 2
    assert fold(database) == 0


def test_an_event_counted_before_its_sent_came_moves_and_leaves_nothing_behind(database):
    opened, sent = message(1, ("open", 101), ("sent", 100))
    insert(database, Event, [opened])
    fold(database)
    insert(database, Event, [sent])
    fold(database)
    moved = counted(database)

    assert rebuild_stats(database).events == 2
    assert counted(database) == moved
    assert sum(count for *_, count in moved[0]) == 2 * 2 * 4  # events, hour and day, views


def test_only_what_moves_what_was_counted_before_is_a_change(database):
    """Answers are remembered until there is one."""

    def changes() -> int:
        with database.reading() as connection:
            return read_progress(connection).changes

    insert(database, Event, message(1, ("sent", 100), ("open", 101)))
    fold(database)
    assert changes() == 0

    insert(database, Event, message(1, ("click", 102)))  # judged with the slice it comes in
    fold(database)
    assert changes() == 0

    opened, sent = message(2, ("open", 101), ("sent", 100))
    insert(database, Event, [opened])
    fold(database)
    insert(database, Event, [sent])
    fold(database)
    assert changes() > 0


def test_slices_of_any_size_count_the_same(database):
    rng = random.Random(5)
    rows = [random_event(rng) for _ in range(120)]
    insert(database, Event, rows)
    known = KnownCells()
    sizes = itertools.cycle([1, 7, 40])
    while fold(database, next(sizes), known):
        pass
    in_slices = counted(database)

    done = rebuild_stats(database)

    assert (done.events, done.kept) == (120, 0)
    assert counted(database) == in_slices


def test_a_slice_that_was_rolled_back_is_counted_again(database):
    insert(database, Event, [random_event(random.Random(6)) for _ in range(5)])
    known = KnownCells()

    def fail(connection: sa.Connection) -> None:
        fold_slice(connection, 5, known)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        database.write(fail)
    assert fold(database, known=known) == 5
    with database.reading() as connection:
        total = connection.execute(sa.text("SELECT sum(k.count) FROM stat_counts k JOIN stat_cells c ON c.id = k.cell"))
        assert total.scalar() == 5 * 2 * 4
        assert read_progress(connection).seq >= 5


def test_a_day_whose_events_are_partly_gone_keeps_its_counts_when_made_anew(database):
    rng = random.Random(7)
    rows = [random_event(rng, hours=60) for _ in range(90)]
    insert(database, Event, rows)
    fold(database)
    before = counted(database)
    oldest = min(rows, key=lambda row: row["occurred_at"])["id"]
    database.write(lambda c: c.execute(sa.delete(Event.__table__).where(Event.__table__.c.id == oldest)))

    done = rebuild_stats(database)

    assert done.kept == 1
    assert counted(database) == before


def test_a_day_of_which_some_was_redacted_keeps_its_counts_when_made_anew(database):
    rows = [random_event(random.Random(8), hours=60) for _ in range(90)]
    insert(database, Event, rows)
    fold(database)
    before = counted(database)
    oldest = sorted(row["id"] for row in rows)[:20]
    blank = sa.update(Event.__table__).where(Event.__table__.c.id.in_(oldest)).values(email=None, raw=None)
    database.write(lambda c: c.execute(blank))

    done = rebuild_stats(database)

    assert done.kept == 1
    assert counted(database) == before


def test_an_open_that_was_redacted_is_judged_no_more(database):
    opened, sent = message(1, ("open", 101), ("sent", 100))
    insert(database, Event, [opened])
    fold(database)
    blank = sa.update(Event.__table__).values(email=None, raw=None, reason=None)
    database.write(lambda c: c.execute(blank))
    insert(database, Event, [sent])
    fold(database)

    assert verdicts(database)[opened["id"]] == (False, None)
    assert len(counted(database)[1]) == 2
