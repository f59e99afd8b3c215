"""An answer as REST tells it: JSON whose parts are remembered.

Nearly every hour and day stays as it was once it is over, so its rows are made, and written as text, once. They hold as
long as the number of all its events does, whatever they are, and nothing was taken out of the statistics meanwhile.
"""

from __future__ import annotations

from concurrent.futures import wait
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from app.stats.answering import Rows, views_of
from app.stats.asking import Plan, Question, plan, spans_of
from app.stats.beside import Beside
from app.stats.memory import Memory
from app.stats.queries import MOST_ROWS, Moment, answer, look, refuse_more_than, rows_of
from app.stats.scale import Hours, Scale, hours_of, scale_of
from app.stats.uniques import count_uniques, look_beside
from app.views import dump


@dataclass(frozen=True, slots=True)
class Told:
    """`data` is a JSON array; the others as in `queries.Answer`."""

    data: bytes
    as_of: datetime | None
    sample: float
    from_events: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of one hour or day, with commas between them."""

    rows: int
    text: bytes


def tell(connection: Connection, question: Question, memory: Memory, beside: Beside | None = None) -> Told:
    """Raises Invalid for what cannot be answered in a bounded time."""
    how = plan(question)
    if how.view is None or question.interval is None:
        found = answer(connection, question, memory)
        return Told(_array([_piece(found.rows, question)]), found.as_of, found.sample, found.from_events)
    moment = look(connection, question, how)
    scale = scale_of(connection, question, how, moment.loose)
    pieces = _pieces(connection, question, how, moment, scale, memory, beside)
    refuse_more_than(MOST_ROWS, sum(piece.rows for piece in pieces.values()), "rows")
    return Told(_array([pieces[bucket] for bucket in sorted(pieces)]), moment.as_of, scale.sample)


def _pieces(
    connection: Connection, question: Question, how: Plan, moment: Moment, scale: Scale, memory: Memory,
    beside: Beside | None,
) -> dict[int, Piece]:  # fmt: skip
    """By hour or day: remembered, or made anew from the first to the last of which nothing is known."""
    keys = _keys(question, moment, scale)
    changing = moment.loose.buckets
    known = {b: piece for b, key in keys.items() if b not in changing and (piece := memory.get(key)) is not None}
    missing = (keys.keys() | changing) - known.keys()
    if not missing:
        return known
    hours = (hours_of(question, min(missing), scale.hours)[0], hours_of(question, max(missing), scale.hours)[1])
    fresh = _make(
        connection, question, _within(how, hours, question), moment, replace(scale, hours=hours), memory, beside
    )
    for bucket in missing & keys.keys() - changing:
        piece = fresh.get(bucket, Piece(0, b""))
        memory.put(keys[bucket], piece, len(piece.text))
    return known | fresh


def _keys(question: Question, moment: Moment, scale: Scale) -> dict[int, tuple[Any, ...]]:
    """Bucket -> all that its rows depend on."""
    state = (question.shape, scale.lowest, moment.progress.changes, moment.progress.key)
    return {
        bucket: ("piece", *state, bucket, hours_of(question, bucket, scale.hours), events)
        for bucket, events in scale.totals.items()
    }


def _within(how: Plan, hours: Hours, question: Question) -> Plan:
    return replace(how, hours=hours, spans=spans_of(*hours, question.interval))


def _make(
    connection: Connection, question: Question, how: Plan, moment: Moment, scale: Scale, memory: Memory,
    beside: Beside | None,
) -> dict[int, Piece]:  # fmt: skip
    meanwhile = look_beside(beside, question, scale, moment.loose, moment.progress)
    try:
        rows = rows_of(connection, question, how, moment, memory)
        if rows:
            count_uniques(connection, question, scale, rows, moment.loose, moment.progress, memory, meanwhile)
    finally:
        if meanwhile is not None:
            wait([meanwhile])  # also where it is not needed: nobody's reader outlives its answer
    by_bucket: dict[int, Rows] = {}
    for key, row in rows.items():
        by_bucket.setdefault(key[0], {})[key] = row
    return {bucket: _piece(part, question) for bucket, part in by_bucket.items()}


def _piece(rows: Rows, question: Question) -> Piece:
    views = views_of(rows, question)
    return Piece(len(views), dump(views)[1:-1])


def _array(pieces: list[Piece]) -> bytes:
    return b"[" + b",".join(piece.text for piece in pieces if piece.rows) + b"]"
