"""How many different recipients and messages the rows of an answer are about."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import Future
from functools import lru_cache
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from app.db import read_many
from app.rollups.cells import Unit, View, digest_of
from app.rollups.store import Progress, cells, members
from app.stats.answering import Row, RowKey, Rows
from app.stats.asking import Question, Shape
from app.stats.beside import Beside
from app.stats.loose import Loose
from app.stats.memory import Memory
from app.stats.scale import Hours, Scale, hours_of
from app.stats.statements import (
    Parts,
    between,
    cell_conditions,
    from_to,
    grouped,
    made_once,
    of_cells,
    of_levels,
    parted,
)

Found = dict[RowKey, tuple[int, int]]
"""Row -> (recipients, messages)."""
Meanwhile = Future[Found | None] | None
_FOUND_BYTES = 300
WORTH_TWO = 2_000  # counted events from which on a second reader is worth its trouble
LOOSE_ENOUGH, LOOSE_SHARE = 30, 4  # so many of a row, and one in so many of it: worth asking whom they are about


def count_uniques(
    connection: Connection, question: Question, scale: Scale, rows: Rows, loose: Loose, progress: Progress,
    memory: Memory, meanwhile: Meanwhile = None,
) -> None:  # fmt: skip
    """Fills in `rows`, which are all of the answer's or those of the scale's hours. `loose` are events that no counts
    hold yet, `meanwhile` is from `look_beside`."""
    apart = loose.rows and (not scale.lowest or any(_is_mostly(found, rows[key]) for key, found in loose.rows.items()))
    if apart:
        known = None if meanwhile is None else meanwhile.result
        people = _digests(loose.people(connection, question), progress.key, scale.lowest)
        found = _look(connection, question, scale, people, loose.buckets, known)
    elif meanwhile is not None:
        found = _look(connection, question, scale, [], set(), meanwhile.result)
    else:
        found = _counted(connection, question, scale, progress, memory)
    for key, row in rows.items():
        row.recipients, row.messages = found.get(key, (0, 0))
        if scale.lowest:
            missing = None if apart else loose.rows.get(key)
            row.recipients = _guess(row.recipients << scale.lowest, row, missing)
            row.messages = _guess(row.messages << scale.lowest, row, missing)


def look_beside(beside: Beside | None, question: Question, scale: Scale, loose: Loose, progress: Progress) -> Meanwhile:
    """What of it can be found at once, where that is worth a second reader and one is free."""
    if beside is None or scale.lowest or not question.group_by or sum(scale.totals.values()) < WORTH_TWO:
        return None
    parts, _ = _split(question, scale.hours, loose.buckets)
    return beside.read(progress, lambda connection: _read(connection, question, 0, parts))


def _guess(sampled: int, row: Row, missing: Row | None) -> int:
    """From what the sample says of all events but the missing ones, in proportion for all of the row; no more than
    there are events, and that there is somebody."""
    rest = row.total - (0 if missing is None else missing.total)
    return max(1, min(sampled * row.total // rest if rest else row.total, row.total))


def _is_mostly(loose: Row, row: Row) -> bool:
    """Would what the counted events say be a poor guess at the rest?"""
    return loose.total >= LOOSE_ENOUGH and loose.total * LOOSE_SHARE > row.total


def _counted(connection: Connection, question: Question, scale: Scale, progress: Progress, memory: Memory) -> Found:
    """Of a sampled table what was found when there were about as many events, to within a hundredth: a guess from a
    few thousand is off by more."""
    if question.interval is not None or not scale.lowest:
        return _look(connection, question, scale)
    about = math.floor(math.log(max(scale.totals[0], 1), 1.01))
    key = ("uniques", question.shape, scale.hours[0], scale.lowest, progress.changes, progress.key, about)
    found: Found | None = memory.get(key)
    if found is None:
        found = _look(connection, question, scale)
        memory.put(key, found, len(found) * _FOUND_BYTES)
    return found


def _look(
    connection: Connection, question: Question, scale: Scale, people: Sequence[Sequence[Any]] = (),
    buckets: Set[int] = frozenset(), known: Callable[[], Found | None] | None = None,
) -> Found:  # fmt: skip
    """In parts: with `people` in `buckets` who are not counted yet beside them, others take three times as long."""
    parts, beside = _split(question, scale.hours, buckets)
    found: Found = {}
    if buckets:
        both = unique_statement(connection.dialect.name, question.shape, scale.lowest)
        values = {**from_to(*beside), "loose": orjson.dumps(people).decode()}
        found = _found(read_many(connection, both, values))
    others = None if known is None else known()
    return found | (_read(connection, question, scale.lowest, parts) if others is None else others)


def _split(question: Question, hours: Hours, buckets: Set[int]) -> tuple[list[Hours], Hours]:
    """(the hours before and after the rows of `buckets`, theirs)."""
    if not buckets:
        return [hours], (hours[1], hours[1])
    beside = hours_of(question, min(buckets), hours)[0], hours_of(question, max(buckets), hours)[1]
    return [part for part in ((hours[0], beside[0]), (beside[1], hours[1])) if part[0] < part[1]], beside


def _read(connection: Connection, question: Question, lowest: int, parts: Sequence[Hours]) -> Found:
    statement = counted_statement(question.shape, lowest)
    found: Found = {}
    for part in parts:
        found |= _found(read_many(connection, statement, from_to(*part)))
    return found


def _found(rows: Iterable[Sequence[Any]]) -> Found:
    return {tuple(row[:-2]): (row[-2], row[-1]) for row in rows}


@made_once
def counted_statement(shape: Shape, lowest: int) -> sa.Select[Any]:
    """Different recipients and messages by row, of counted events: three times as fast as with others beside them."""
    wanted = _members(shape, lowest)
    keys = grouped(shape, members.c.hour, Unit.HOUR)
    return wanted.with_only_columns(*keys, *_different(members.c)).group_by(*parted(shape, keys))


@made_once
def unique_statement(dialect: str, shape: Shape, lowest: int) -> sa.Select[Any]:
    """The same of counted events and of those in the parameter `loose`."""
    keys = grouped(shape, members.c.hour, Unit.HOUR)
    named = [key.label(f"k{number}") for number, key in enumerate(keys)]
    counted = _members(shape, lowest).with_only_columns(*named, members.c.recipient, members.c.message)
    both = sa.union_all(counted, _loose_rows(dialect, len(keys))).subquery()
    alike = [both.c[f"k{number}"] for number in range(len(keys))]
    return sa.select(*alike, *_different(both.c)).group_by(*alike)


def _members(shape: Shape, lowest: int) -> sa.Select[Any]:
    wanted = sa.select(members.c.seq).where(*of_levels(lowest), *between())
    if not shape.group_by:
        return wanted.where(*of_cells(members.c.cell, View.WHOLE, shape.filters))
    joined = wanted.select_from(members.join(cells, cells.c.id == members.c.cell))
    return joined.where(*cell_conditions(shape.filters))


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


def _digests(people: Iterable[Sequence[Any]], key: bytes, lowest: int) -> list[list[Any]]:
    """Those that are in the sample."""
    others = (1 << lowest) - 1
    found = []
    for *place, email, message_id in people:
        recipient = _known_digest(email, key)
        message = _known_digest(message_id, key) if not recipient & others else 0
        if not (recipient or message) & others:
            found.append([*place, recipient, message])
    return found


# What is not counted yet is asked about again and again until it is.
_known_digest = lru_cache(maxsize=8192)(digest_of)
