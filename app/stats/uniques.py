"""How many different recipients and messages the rows of an answer are about.

Looking at every event of a range is exact, and takes a microsecond or two for each. Of long ranges a sample of the
recipients is looked at, with everything about them: the levels of `rollups.cells.member_of`. What was looked at once
need not be again while it stays as it was, as nearly every hour and day does once it is over: each is remembered alone.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from app.rollups.cells import HOURS_OF_A_DAY, TOP_LEVEL, Fact, Unit, View, digest_of, level_of
from app.rollups.store import Progress, cells, counts, members
from app.stats.answering import RowKey, Rows, key_of
from app.stats.asking import Question, spans_of
from app.stats.statements import Parts, between, bucket_of, cell_conditions, grouped, of_levels, parted, total, totals

EXACT = 60_000  # events of a day up to which recipients and messages are told apart one by one,
EXACT_LONG = 20_000  # and of a longer range;
SAMPLE = 8_000  # of more, so many at least
WORTH_REMEMBERING = 5_000  # events looked at

Found = dict[RowKey, tuple[int, int]]
"""Row -> (recipients, messages)."""


class Remembered:
    """The last results, each of a question about an hour, a day or a range in a certain state. One for the process, for
    any thread."""

    MOST = 30_000  # rows; a few MB

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[Any, ...], Found] = OrderedDict()
        self._rows = 0

    def get(self, key: tuple[Any, ...]) -> Found | None:
        with self._lock:
            found = self._found.get(key)
            if found is not None:
                self._found.move_to_end(key)
            return found

    def put(self, key: tuple[Any, ...], found: Found) -> None:
        with self._lock:
            self._rows += len(found) + 1 - (len(self._found.pop(key)) + 1 if key in self._found else 0)
            self._found[key] = found
            while self._rows > self.MOST:
                self._rows -= len(self._found.popitem(last=False)[1]) + 1


def count_uniques(
    connection: Connection, question: Question, hours: tuple[int, int], rows: Rows, loose: Sequence[Fact],
    progress: Progress, remembered: Remembered | None = None,
) -> float:  # fmt: skip
    """Fills in `rows`; the share of recipients that were looked at. `loose` are events that no counts hold yet."""
    if not rows:
        return 1.0
    hours = _hull(connection, question, hours, rows)
    parts = _parts(connection, question, hours)
    events = sum(parts.values())
    is_one = question.interval is None
    lowest = lowest_level(events, is_long=hours[1] - hours[0] > HOURS_OF_A_DAY, is_one=is_one)
    sample: float = 1 / (1 << lowest)
    if is_one and lowest:
        # A guess from a few thousand is off by more than the last events or the last hundredth change.
        loose, parts = (), {0: _roughly(events)}
    keep = remembered if events * sample >= WORTH_REMEMBERING else None
    state = (_asked(question), lowest, progress.changes, progress.key)
    keys = {bucket: (*state, bucket, _hours_of(question, bucket, hours), count) for bucket, count in parts.items()}
    found, missing = _recall(keep, keys, {key_of(fact, question)[0] for fact in loose})
    if missing:
        part = (_hours_of(question, min(missing), hours)[0], _hours_of(question, max(missing), hours)[1])
        looked_at = _look(connection, question, part, lowest, loose, progress)
        found |= looked_at
        if keep is not None:
            _remember(keep, keys, missing, looked_at, loose, question)
    for row_key, (recipients, messages) in found.items():
        row = rows[row_key]
        # A guess must not say more than the counts do.
        row.recipients, row.messages = min(recipients << lowest, row.total), min(messages << lowest, row.total)
    return sample


def _recall(keep: Remembered | None, keys: Mapping[int, tuple[Any, ...]], changing: Set[int]) -> tuple[Found, set[int]]:
    """(what is known, the buckets of which nothing is). `changing` are those with events that no counts hold yet."""
    found: Found = {}
    missing = set(changing)
    for bucket, key in keys.items():
        known = None if keep is None or bucket in changing else keep.get(key)
        if known is None:
            missing.add(bucket)
        else:
            found |= known
    return found, missing


def _remember(
    keep: Remembered, keys: Mapping[int, tuple[Any, ...]], missing: Set[int], found: Found, loose: Sequence[Fact],
    question: Question,
) -> None:  # fmt: skip
    by_bucket: dict[int, Found] = {}
    for row_key, numbers in found.items():
        by_bucket.setdefault(row_key[0], {})[row_key] = numbers
    for bucket in missing & keys.keys() - {key_of(fact, question)[0] for fact in loose}:
        keep.put(keys[bucket], by_bucket.get(bucket, {}))


def _parts(connection: Connection, question: Question, hours: tuple[int, int]) -> dict[int, int]:
    """Bucket -> all events in it, whatever they are: as long as that stays, so does what they are about."""
    found: Counter[int] = Counter()
    for span in spans_of(*hours, question.interval):
        if question.interval is None:
            found[0] += total(connection, span)
        else:
            found.update(dict(totals(connection, span, bucket_of(question, counts.c.start, span.unit))))
    return found


def _hours_of(question: Question, bucket: int, hours: tuple[int, int]) -> tuple[int, int]:
    """What of the range the bucket covers."""
    if question.interval is None:
        return hours
    length = 1 if question.interval == "hour" else HOURS_OF_A_DAY
    return max(hours[0], bucket * length), min(hours[1], (bucket + 1) * length)


def _roughly(events: int) -> int:
    """To within a hundredth."""
    return events - events % max(events // 100, 1)


def lowest_level(events: int, *, is_long: bool = False, is_one: bool = False) -> int:
    """0 where everything can be looked at. `is_one`: nothing is parted by time, and half the sample says as much."""
    if events <= (EXACT_LONG if is_long else EXACT):
        return 0
    return min((events // SAMPLE).bit_length() - (0 if is_one else 1), TOP_LEVEL)


def _asked(question: Question) -> tuple[Any, ...]:
    filters = question.filters.model_copy(update={"after": [], "before": []}).normalised()
    return (
        tuple(sorted((name, tuple(values)) for name, values in filters.items())),
        question.group_by,
        question.interval,
    )


def _hull(connection: Connection, question: Question, hours: tuple[int, int], rows: Rows) -> tuple[int, int]:
    """The part of the range in which anything was found."""
    if question.interval is None:
        place = (counts.c.view == int(View.TOTAL), counts.c.unit == int(Unit.HOUR))
        first, last = (
            connection.execute(sa.select(counts.c.start).where(*place).order_by(order).limit(1)).scalar() or 0
            for order in (counts.c.start, counts.c.start.desc())
        )
        return max(hours[0], first), min(hours[1], last + 1)
    length = 1 if question.interval == "hour" else HOURS_OF_A_DAY
    buckets = [key[0] for key in rows]
    return max(hours[0], min(buckets) * length), min(hours[1], (max(buckets) + 1) * length)


def _look(
    connection: Connection, question: Question, hours: tuple[int, int], lowest: int, loose: Sequence[Fact],
    progress: Progress,
) -> Found:  # fmt: skip
    looked_at = [fact for fact in loose if _level(fact, progress.key) >= lowest]
    if not looked_at:
        rows = connection.execute(counted_statement(question, hours, lowest))
    else:
        rest = orjson.dumps([_loose_member(fact, question, progress.key) for fact in looked_at])
        statement = unique_statement(connection.dialect.name, question, hours, lowest)
        rows = connection.execute(statement, {"loose": rest.decode()})
    return {tuple(row[:-2]): (row[-2], row[-1]) for row in rows}


def counted_statement(question: Question, hours: tuple[int, int], lowest: int) -> sa.Select[Any]:
    """Different recipients and messages by row, of counted events: three times as fast as with others beside them."""
    wanted = _members(question, hours, lowest)
    keys = grouped(question, members.c.hour, Unit.HOUR)
    return wanted.with_only_columns(*keys, *_different(members.c)).group_by(*parted(question, keys))


def unique_statement(dialect: str, question: Question, hours: tuple[int, int], lowest: int) -> sa.Select[Any]:
    """The same of counted events and of those in the parameter `loose`."""
    keys = grouped(question, members.c.hour, Unit.HOUR)
    named = [key.label(f"k{number}") for number, key in enumerate(keys)]
    counted = _members(question, hours, lowest).with_only_columns(*named, members.c.recipient, members.c.message)
    both = sa.union_all(counted, _loose_rows(dialect, len(keys))).subquery()
    alike = [both.c[f"k{number}"] for number in range(len(keys))]
    return sa.select(*alike, *_different(both.c)).group_by(*alike)


def _members(question: Question, hours: tuple[int, int], lowest: int) -> sa.Select[Any]:
    joined = sa.select(members.c.seq).select_from(members.join(cells, cells.c.id == members.c.cell))
    return joined.where(*of_levels(lowest), *between(hours), *cell_conditions(question.filters))


def _different(columns: sa.ColumnCollection[str, Any]) -> Parts:
    return [sa.func.count(sa.distinct(sa.func.nullif(columns[name], 0))) for name in ("recipient", "message")]


def _loose_rows(dialect: str, keys: int) -> sa.Select[Any]:
    """The rows of the JSON text in the parameter `loose`: the keys, the recipient's and the message's digest."""
    text = sa.bindparam("loose", type_=sa.Text())
    part: Callable[[int], sa.ColumnElement[Any]]
    if dialect == "sqlite":
        each = sa.func.json_each(text).table_valued("value")
        part = lambda at: sa.func.json_extract(each.c.value, f"$[{at}]")  # noqa: E731
    else:
        each = sa.func.jsonb_array_elements(sa.cast(text, JSONB)).table_valued("value")
        part = lambda at: each.c.value.op("->>")(sa.literal_column(str(at)))  # noqa: E731
    numbers = {0, keys, keys + 1}
    return sa.select(
        *(sa.cast(part(at), sa.BigInteger) if at in numbers else part(at) for at in range(keys + 2))
    ).select_from(each)


def _loose_member(fact: Fact, question: Question, key: bytes) -> list[Any]:
    return [*key_of(fact, question), digest_of(fact.email, key), digest_of(fact.message_id, key)]


def _level(fact: Fact, key: bytes) -> int:
    return level_of(digest_of(fact.email, key) or digest_of(fact.message_id, key))
