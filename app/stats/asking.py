"""What may be asked of the statistics, and how it will be answered. Pure: no connection, no clock."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from app import operator_events
from app.clock import to_micros
from app.errors import FieldError, Invalid
from app.filters import SELECTIVE, EventFilters, Filters, Moments, Texts, Whole
from app.rollups.cells import ALL_FIELDS, HOUR_MICROS, HOURS_OF_A_DAY, Unit, View, smallest_view

Interval = Literal["hour", "day"]
Group = Literal["type", "webhook", "campaign_id", "custom_campaign", "email_domain", "reason", "reason_group"]

MOST_READ = 50_000  # events read for filters that only an index serves, or at the edges of a range
_TIMES = frozenset({"after", "before"})


class StatsQuery(EventFilters):
    """`GET /v1/stats`."""

    interval: Interval = Field("day", description="length of a row's time, in UTC")
    group_by: list[Group] = Field(
        [], max_length=7, description="a row for each value of these fields; repeat the parameter for several"
    )


class TableQuery(Filters):
    """`GET /v1/stats/domains` and `/v1/stats/campaigns`."""

    webhook: Texts = Field([], description="name of the webhook", examples=[["orders"]])
    after: Moments = Field([], description="happened at that time or later (RFC 3339)")
    before: Moments = Field([], description="happened before that time (RFC 3339)")
    limit: Whole = Field(50, ge=1, le=1000, description="most rows")


@dataclass(frozen=True, slots=True)
class Shape:
    """What is asked, whatever the time: equal ones are answered by the same statements. `filters` have no time."""

    asked: tuple[object, ...]
    filters: EventFilters = field(compare=False)
    group_by: tuple[str, ...] = field(compare=False)
    interval: Interval | None = field(compare=False)


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be counted. Without an `interval` a row has no time; with `top` only the largest rows count, and only
    those with a value in one of the fields."""

    filters: EventFilters
    group_by: tuple[str, ...]
    interval: Interval | None = None
    top: int | None = None
    shape: Shape = field(init=False, compare=False)

    def __post_init__(self) -> None:
        filters = self.filters.model_copy(update={"after": [], "before": []})
        values = tuple(sorted((name, tuple(values)) for name, values in filters.normalised().items()))
        asked = (values, self.group_by, self.interval)
        object.__setattr__(self, "shape", Shape(asked, filters, self.group_by, self.interval))


@dataclass(frozen=True, slots=True)
class Span:
    """Whole hours or days from `start` up to `end`, which is not in it; in units since 1970."""

    unit: Unit
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How a question is answered.

    `view` None: from the events alone, through an index that leads to few. Else from the counts of that view in
    `spans`; `hours` is the same range in hours, and `edges` are what is left of it at either end, in microseconds,
    which only the events tell.
    """

    view: View | None
    hours: tuple[int, int] = (0, 0)
    spans: tuple[Span, ...] = ()
    edges: tuple[tuple[int, int], ...] = field(default=())


EARLIEST_HOUR, LATEST_HOUR = 0, 2_000_000  # the year 2198: events are refused from 2100 on


def question_of(query: StatsQuery) -> Question:
    filters = {name: getattr(query, name) for name in EventFilters.model_fields}
    group_by = tuple(dict.fromkeys(query.group_by))
    return Question(_for_statistics(EventFilters.model_construct(**filters)), group_by, query.interval)


def table_question(query: TableQuery, group_by: tuple[str, ...]) -> Question:
    filters = EventFilters(webhook=query.webhook)
    asked = filters.model_copy(update={"after": query.after, "before": query.before})
    return Question(_for_statistics(asked), group_by, top=query.limit)


def _for_statistics(filters: EventFilters) -> EventFilters:
    """The test button's events are nobody's mail: they count only where they are asked for."""
    if not filters.webhook and filters.type and all(map(operator_events.is_operator_word, filters.type)):
        filters = filters.model_copy(update={"webhook": [operator_events.WEBHOOK]})
    return filters if filters.test else filters.model_copy(update={"test": [False]})


def used_filters(filters: EventFilters) -> set[str]:
    """The filters that ask for something, but for the time of the event."""
    return {name for name in EventFilters.model_fields if getattr(filters, name)} - _TIMES


def plan(question: Question) -> Plan:
    """Raises Invalid for filters that neither the counts nor an index serve."""
    used = used_filters(question.filters)
    foreign = used - set(ALL_FIELDS)
    if foreign:
        _refuse_unserved(used, foreign)
        return Plan(None)
    view = smallest_view(used | set(question.group_by))
    view = View.WHOLE if view is None else view
    first, beyond = _range_of(question.filters)
    start, end = -(-first // HOUR_MICROS), beyond // HOUR_MICROS
    if start > end:  # within one hour
        return Plan(view, edges=((first, beyond),) if first < beyond else ())
    edges = tuple(e for e in ((first, start * HOUR_MICROS), (end * HOUR_MICROS, beyond)) if e[0] < e[1])
    return Plan(view, (start, end), spans_of(start, end, question.interval), edges)


def _range_of(filters: EventFilters) -> tuple[int, int]:
    """`after` and `before` in microseconds; of several the widest."""
    first = to_micros(min(filters.after)) if filters.after else EARLIEST_HOUR * HOUR_MICROS
    beyond = to_micros(max(filters.before)) if filters.before else LATEST_HOUR * HOUR_MICROS
    return max(first, EARLIEST_HOUR * HOUR_MICROS), min(beyond, LATEST_HOUR * HOUR_MICROS)


def spans_of(start: int, end: int, interval: Interval | None) -> tuple[Span, ...]:
    """The hours from `start` to `end` as few units as there can be; hours alone where rows are of hours."""
    first_day, last_day = -(-start // HOURS_OF_A_DAY), end // HOURS_OF_A_DAY
    if interval == "hour" or first_day >= last_day:
        return (Span(Unit.HOUR, start, end),) if start < end else ()
    spans = (
        Span(Unit.HOUR, start, first_day * HOURS_OF_A_DAY),
        Span(Unit.DAY, first_day, last_day),
        Span(Unit.HOUR, last_day * HOURS_OF_A_DAY, end),
    )
    return tuple(span for span in spans if span.start < span.end)


def too_much(detail: str) -> Invalid:
    """What would take too long."""
    return Invalid(detail, errors=[FieldError("after", detail, "too_much")])


def _refuse_unserved(used: set[str], foreign: set[str]) -> None:
    if used & set(SELECTIVE):
        return
    told = " or ".join(SELECTIVE)
    raise Invalid(
        f"statistics are not kept by {', '.join(sorted(foreign))}; add {told}",
        errors=[FieldError(name, f"cannot be asked for without {told}", "not_served") for name in sorted(foreign)],
    )
