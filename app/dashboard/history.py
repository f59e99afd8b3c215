"""What happened over days and weeks, from the counts that statistics keep: no event is looked at for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy.engine import Connection

from app.clock import rfc3339, to_micros
from app.stats import queries
from app.stats.answering import Row, view_of, views_of
from app.stats.asking import Question, StatsQuery, TableQuery, question_of, table_question
from app.stats.memory import Memory

HOUR_SECONDS = 3600
DAY_SECONDS = 24 * HOUR_SECONDS
UNIT_SECONDS = {"hour": HOUR_SECONDS, "day": DAY_SECONDS}
TABLE_ROWS = 15
# name -> (what it is called, days, seconds of a bar)
SPANS = {
    "day": ("24 hours", 1, HOUR_SECONDS), "week": ("7 days", 7, 6 * HOUR_SECONDS),
    "month": ("30 days", 30, DAY_SECONDS), "quarter": ("90 days", 90, DAY_SECONDS),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """What the tables and the chart of one page are about. `webhooks` empty: all."""

    span: str
    webhooks: tuple[str, ...]
    now: datetime

    @property
    def step_seconds(self) -> int:
        return SPANS[self.span][2]

    @property
    def starts(self) -> list[int]:
        """Where the bars begin, Unix seconds; the last one holds now."""
        last = to_micros(self.now) // 1_000_000 // self.step_seconds * self.step_seconds
        bars = SPANS[self.span][1] * DAY_SECONDS // self.step_seconds
        return list(range(last - (bars - 1) * self.step_seconds, last + 1, self.step_seconds))

    @property
    def after(self) -> datetime:
        return datetime.fromtimestamp(self.starts[0], self.now.tzinfo)


def series(connection: Connection, asked: Asked, memory: Memory) -> tuple[list[int], list[Counter[str]]]:
    """(starts of the bars, events by type in each)."""
    found: dict[int, Counter[str]] = {start: Counter() for start in asked.starts}
    question = question_of(StatsQuery(interval=interval_of(asked), group_by=["type"], **_filters(asked)))
    unit = UNIT_SECONDS[interval_of(asked)]
    for (start, kind), row in queries.answer(connection, question, memory, uniques=False).rows.items():
        bar = found.get(start * unit // asked.step_seconds * asked.step_seconds)
        if bar is not None:
            bar[kind] += row.total
    return list(found), list(found.values())


def interval_of(asked: Asked) -> Literal["hour", "day"]:
    """What the bars are made of. The hours of 90 days would be more rows than one answer may have."""
    return "day" if asked.step_seconds % DAY_SECONDS == 0 else "hour"


def whole(connection: Connection, asked: Asked, memory: Memory) -> dict[str, Any]:
    """Counts, uniques and rates of all of it, in the shape of a row of `GET /v1/stats/…`."""
    by_day = question_of(StatsQuery(**_filters(asked)))
    question = Question(by_day.filters, ())
    rows = queries.answer(connection, question, memory).rows
    key, row = next(iter(rows.items()), ((0,), Row()))
    return view_of(key, row, question)


def campaigns(connection: Connection, asked: Asked, memory: Memory) -> list[dict[str, Any]]:
    """The largest ones, in the shape of a row of `GET /v1/stats/campaigns`."""
    return _table(connection, asked, memory, ("campaign_id", "custom_campaign"))


def domains(connection: Connection, asked: Asked, memory: Memory) -> list[dict[str, Any]]:
    return _table(connection, asked, memory, ("email_domain",))


def _table(connection: Connection, asked: Asked, memory: Memory, group_by: tuple[str, ...]) -> list[dict[str, Any]]:
    question = table_question(TableQuery(limit=TABLE_ROWS, **_filters(asked)), group_by)
    return views_of(queries.answer(connection, question, memory).rows, question)


def reasons(connection: Connection, asked: Asked, memory: Memory) -> list[dict[str, Any]]:
    """Why mail did not arrive: [{group: {reason, reason_group, type}, counts: …}], the most first."""
    of_failures = question_of(StatsQuery(type=["bounce", "blocked"], **_filters(asked)))
    question = Question(of_failures.filters, ("type", "reason_group", "reason"), top=TABLE_ROWS)
    return views_of(queries.answer(connection, question, memory).rows, question)


def _filters(asked: Asked) -> dict[str, Any]:
    return {"webhook": list(asked.webhooks), "after": [rfc3339(asked.after)]}
