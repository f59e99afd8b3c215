from __future__ import annotations

from datetime import timedelta

from app.models import Event, StatCell
from app.rollups.cells import View
from app.stats import telling
from app.stats.memory import Memory
from tests.factories import event_values, insert
from tests.stats.model import START

NOON = START.replace(hour=12, minute=0)
DAY = int(NOON.timestamp()) // 86_400


def test_what_was_asked_for_longest_ago_is_forgotten_first():
    memory = Memory()
    memory.MOST_BYTES = 10_000
    for number in range(4):
        memory.put(("piece", number), number, 2_000)
    memory.get(("piece", 0))
    memory.put(("piece", 1), "other", 3_000)  # in the place of what was there

    assert [memory.get(("piece", number)) for number in range(4)] == [0, "other", None, 3]


def test_one_part_too_large_for_the_memory_is_not_kept():
    memory = Memory()
    memory.put(("small",), "small", 100)
    memory.put(("piece",), "large", memory.MOST_BYTES // 2)

    assert (memory.get(("piece",)), memory.get(("small",))) == (None, "small")


def test_cells_are_read_once_and_not_without_end(database):
    def row(id: int) -> dict[str, object]:
        return {"id": id, "view": int(View.TOTAL), "webhook": "orders", "type": "open", "outcome": "opened",
                "permanent": None, "test": False, "automated": id % 2 == 0}  # fmt: skip

    insert(database, StatCell, [row(id) for id in range(1, 9)])
    memory = Memory()
    memory.MOST_CELLS = 6
    with database.reading() as connection:
        found = memory.read_cells(connection, [1, 2, 3, 4])
        wider = memory.read_cells(connection, range(1, 9))

        assert found[4][:6] == ("orders", "open", "opened", None, False, True)
        assert sorted(wider) == list(range(1, 9))
        assert {id: wider[id] for id in found} == found
        assert len(memory._cells) <= memory.MOST_CELLS
        assert sorted(memory.read_cells(connection, [2, 7])) == [2, 7]


def test_a_day_is_counted_again_only_when_something_happened_in_it(client, database, fold, monkeypatch):
    made = []
    make = telling._make
    monkeypatch.setattr(telling, "_make", lambda c, q, how, *rest: made.append(how.hours) or make(c, q, how, *rest))

    def happens(*days: int) -> None:
        insert(database, Event, [event_values(occurred_at=NOON + timedelta(days=day)) for day in days])

    def counts() -> list[int]:
        return [sum(row["counts"].values()) for row in client.get("/v1/stats").json()["data"]]

    def hours(first: int, last: int) -> tuple[int, int]:
        return (DAY + first) * 24, (DAY + last + 1) * 24

    happens(0, 1, 2, 3)
    fold()
    assert counts() == counts() == [1, 1, 1, 1]
    assert made == [hours(0, 3)]

    happens(1)  # late
    assert counts() == [1, 2, 1, 1]
    assert made[1:] == [hours(1, 1)]
    fold()
    assert counts() == counts() == [1, 2, 1, 1]
    assert made[2:] == [hours(1, 1)]
