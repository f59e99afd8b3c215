"""How much an answer can be about, and from how large a part of it recipients and messages are told apart.

Looking at every event of a range is exact, and takes a microsecond for each. Of long ranges a sample of the recipients
is looked at, with everything about them: the levels of `rollups.cells.member_of`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.rollups.cells import HOURS_OF_A_DAY, TOP_LEVEL, Unit, View
from app.rollups.store import counts
from app.stats.asking import Plan, Question, Shape, spans_of, used_filters
from app.stats.loose import Loose
from app.stats.statements import bucket_of, from_to, made_once, of_cells, total, totals, within

EXACT = 60_000  # events of a day up to which recipients and messages are told apart one by one,
EXACT_LONG = 20_000  # and of a longer range;
SAMPLE = 8_000  # of more, so many at least

Hours = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Scale:
    """`hours` from the first to the last in which anything was found, the counted events of each bucket in them,
    whatever they are, and the lowest level of members to look at: 0 is all."""

    hours: Hours
    totals: dict[int, int]
    lowest: int

    @property
    def sample(self) -> float:
        return 1 / (1 << self.lowest)


def scale_of(connection: Connection, question: Question, how: Plan, loose: Loose) -> Scale:
    hours = _hull(connection, question, how, loose)
    found: Counter[int] = Counter()
    for span in spans_of(*hours, question.interval):
        if question.interval is None:
            found[0] += total(connection, span)
        else:
            found.update(dict(totals(connection, question.shape, span)))
    is_long = hours[1] - hours[0] > HOURS_OF_A_DAY
    return Scale(hours, found, lowest_level(found.total(), is_long=is_long, is_one=question.interval is None))


def lowest_level(events: int, *, is_long: bool = False, is_one: bool = False) -> int:
    """0 where everything can be looked at. `is_one`: nothing is parted by time, and half the sample says as much."""
    if events <= (EXACT_LONG if is_long else EXACT):
        return 0
    return min((events // SAMPLE).bit_length() - (0 if is_one else 1), TOP_LEVEL)


def hours_of(question: Question, bucket: int, hours: Hours) -> Hours:
    """What of the range the bucket covers."""
    if question.interval is None:
        return hours
    length = _length(question)
    return max(hours[0], bucket * length), min(hours[1], (bucket + 1) * length)


def _length(question: Question) -> int:
    return HOURS_OF_A_DAY if question.interval == "day" else 1


def _hull(connection: Connection, question: Question, how: Plan, loose: Loose) -> Hours:
    """The part of the range in which anything was found; of a table, in which there are any counts."""
    buckets: set[int] = set()
    if question.interval is None:
        buckets.update(_ends(connection))
    else:
        buckets.update(loose.buckets)
        for span in how.spans:
            statement = ends_statement(question.shape, how.view, span.unit)
            ends = connection.execute(statement, from_to(span.start, span.end)).one()
            buckets.update(bucket for bucket in ends if bucket is not None)
    if not buckets:
        return how.hours[0], how.hours[0]
    length = _length(question)
    return max(how.hours[0], min(buckets) * length), min(how.hours[1], (max(buckets) + 1) * length)


_hour = sa.select(counts.c.start).where(counts.c.view == int(View.TOTAL), counts.c.unit == int(Unit.HOUR)).limit(1)
_ends_of_all = sa.select(*(_hour.order_by(by).scalar_subquery() for by in (counts.c.start, counts.c.start.desc())))


def _ends(connection: Connection) -> list[int]:
    """The first and the last hour with counts."""
    return [hour for hour in connection.execute(_ends_of_all).one() if hour is not None]


@made_once
def ends_statement(shape: Shape, view: View | None, unit: Unit) -> sa.Select[Any]:
    """The first and the last bucket with counts of what is asked for, or of anything where that is told as quickly."""
    assert view is not None
    end = sa.select(bucket_of(shape, counts.c.start, unit)).limit(1)
    if view is View.WHOLE or used_filters(shape.filters) <= {"test"}:
        end = end.where(*within(View.TOTAL, unit))
    else:
        end = end.where(*within(view, unit), *of_cells(counts.c.cell, view, shape.filters))
    return sa.select(*(end.order_by(by).scalar_subquery() for by in (counts.c.start, counts.c.start.desc())))
