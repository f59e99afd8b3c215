"""What may be asked of the lists, and the SQL conditions it becomes. Pure: no connection, no clock.

Every filter takes several values, and any of them may match; different filters must all match. A parameter that is not
listed is refused, since a mistyped filter must never return everything.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any, ClassVar, Literal

import sqlalchemy as sa
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from app import operator_events
from app.clock import rfc3339
from app.db import BEYOND_IDS, NO_ID
from app.mailjet.vocabulary import normal_email
from app.models import DeliveryState, Outcome
from app.partitions import first_id
from app.views import MAX_COLUMN_CHARS, clean, short

Condition = sa.ColumnElement[bool]

MAX_VALUES = 1000  # of one filter; all together stay below the 32,766 parameters of one SQLite statement

_MOMENT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,30}))?(?:[Zz]|([+ -])(\d\d):(\d\d))", re.ASCII
)
_WHOLE = re.compile(r"-?[0-9]+", re.ASCII)


# --- values ----------------------------------------------------------------------------------------------------------


def parse_moment(value: Any) -> datetime:
    """An RFC 3339 time with its offset -> UTC, rounded up to the microsecond.

    Columns hold whole microseconds, so rounding up is exact for `after` (inclusive) and `before` (exclusive) alike. A
    blank counts as the `+` it was before somebody forgot to escape it. Raises ValueError.
    """
    match = _MOMENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise PydanticCustomError("time", "must be an RFC 3339 time with its offset, like 2026-05-03T10:00:00Z")
    try:
        return _moment_of(match)
    except (ValueError, OverflowError):
        raise PydanticCustomError("time", "there is no such time in the years 1 to 9999") from None


def _moment_of(match: re.Match[str]) -> datetime:
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, sign, offset_hours, offset_minutes = match.groups()[6:]
    if second > 60 or int(offset_minutes or 0) > 59:
        raise ValueError
    offset = timedelta(hours=int(offset_hours or 0), minutes=int(offset_minutes or 0))
    zone = timezone(-offset if sign == "-" else offset)
    # Second 60 is a leap second: the first of the next minute to a clock that has none.
    start = datetime(year, month, day, hour, minute, tzinfo=zone).astimezone(UTC)
    return start + timedelta(seconds=second, microseconds=_micros_of(fraction or "0"))


def _micros_of(fraction: str) -> int:
    micros = int(fraction[:6].ljust(6, "0"))
    return micros + 1 if fraction[6:].strip("0") else micros


def _whole(value: Any) -> Any:
    if isinstance(value, str) and not _WHOLE.fullmatch(value):
        raise PydanticCustomError("int_parsing", "must be a whole number")
    return value


def _stored(text: str) -> str:
    """The text as a column holds it: neither NUL, which PostgreSQL refuses, nor lone surrogates, and no longer."""
    return (clean(text) or "")[:MAX_COLUMN_CHARS]


def _email(text: str) -> str:
    return normal_email(short(_stored(text)))


def _domain(text: str) -> str:
    return _stored(text).lower()


def _type(text: str) -> str:
    if "," in text:
        raise PydanticCustomError("one_type", "is one type; repeat the parameter for each")
    return short(_stored(text))


Several = Field(max_length=MAX_VALUES)
Texts = Annotated[list[Annotated[str, AfterValidator(_stored)]], Several]
Types = Annotated[list[Annotated[str, AfterValidator(_type)]], Several]
Emails = Annotated[list[Annotated[str, AfterValidator(_email)]], Several]
Domains = Annotated[list[Annotated[str, AfterValidator(_domain)]], Several]
Moments = Annotated[list[Annotated[datetime, BeforeValidator(parse_moment)]], Several]
Bools = Annotated[list[bool], Several]
Whole = Annotated[int, BeforeValidator(_whole)]


# --- parameters ------------------------------------------------------------------------------------------------------


class Filters(BaseModel):
    """What all filters share. `normalised` is what a cursor is bound to."""

    model_config = ConfigDict(extra="forbid")

    paging: ClassVar[frozenset[str]] = frozenset({"order", "limit", "cursor", "include"})

    def normalised(self) -> dict[str, list[str]]:
        names = type(self).model_fields.keys() - self.paging
        return {name: [_told(value) for value in getattr(self, name)] for name in names}


class Paging(Filters):
    """Where to go on, how far, and in which direction."""

    order: Literal["asc", "desc"] = Field("desc", description="`desc`: newest first")
    limit: Annotated[int, BeforeValidator(_whole)] = Field(50, ge=1, le=1000, description="most rows in one answer")
    cursor: str | None = Field(
        None, description="`next_cursor` of the answer before; every other parameter but `limit` stays the same"
    )


class EventFilters(Filters):
    """Which events. A repeated parameter means any of its values."""

    webhook: Texts = Field([], description="name of the webhook; `jethook` for operator events", examples=[["orders"]])
    type: Types = Field(
        [],
        description="Mailjet's word: sent, open, click, bounce, spam, blocked, unsub; or an operator event's type."
        " Operator events are found only by their type or webhook",
        examples=[["bounce"]],
    )
    outcome: Annotated[list[Outcome], Several] = Field([], description="our word for what happened")
    email: Emails = Field([], description="whole address; its domain in any case", examples=[["a@example.com"]])
    email_domain: Domains = Field([], description="what follows the `@`, in any case", examples=[["example.com"]])
    message_id: Texts = Field([], description="Mailjet's `MessageID`", examples=[["19421777835146490"]])
    message_guid: Texts = Field([], description="Mailjet's `Message_GUID`")
    campaign_id: Texts = Field([], description="Mailjet's `mj_campaign_id`", examples=[["7257"]])
    custom_campaign: Texts = Field([], description="the `customcampaign` set when sending")
    custom_id: Texts = Field([], description="the `CustomID` set when sending", examples=[["order-17"]])
    contact_id: Texts = Field([], description="Mailjet's `mj_contact_id`")
    list_id: Texts = Field([], description="Mailjet's `mj_list_id`")
    permanent: Bools = Field([], description="whether the failure is lasting; events that tell nothing match neither")
    automated: Bools = Field([], description="whether a machine opened or clicked; events of other types match neither")
    test: Bools = Field([], description="whether it came from the test button of Mailjet's web interface")
    after: Moments = Field(
        [], description="happened at that time or later (RFC 3339)", examples=[["2026-05-03T10:00:00Z"]]
    )
    before: Moments = Field([], description="happened before that time (RFC 3339)")
    received_after: Moments = Field([], description="received at that time or later (RFC 3339)")
    received_before: Moments = Field([], description="received before that time (RFC 3339)")


class EventQuery(EventFilters, Paging):
    """`GET /v1/events`."""

    include: list[Literal["raw"]] = Field([], max_length=10, description="`raw`: with what Mailjet sent")


class FeedQuery(EventFilters):
    """`GET /v1/feed`."""

    paging = frozenset({"limit", "cursor", "include", "wait_seconds"})

    limit: Annotated[int, BeforeValidator(_whole)] = Field(50, ge=1, le=1000, description="most events in one answer")
    cursor: str | None = Field(
        None,
        description="`next_cursor` of the answer before, with the same filters; `latest`: from now on; without it the"
        " feed starts at the oldest event kept",
    )
    wait_seconds: Annotated[int, BeforeValidator(_whole)] = Field(
        0, ge=0, le=30, description="how long to wait for an event where there is none yet"
    )
    include: list[Literal["raw"]] = Field([], max_length=10, description="`raw`: with what Mailjet sent")


class StreamQuery(EventFilters):
    """`GET /v1/stream`."""

    paging = frozenset({"cursor", "include"})

    cursor: str | None = Field(
        None,
        description="where to start, as in the feed; a `Last-Event-ID` goes before it",
    )
    include: list[Literal["raw"]] = Field([], max_length=10, description="`raw`: with what Mailjet sent")


class DeliveryQuery(Paging):
    """`GET /v1/deliveries`. A repeated filter means any of its values."""

    order: Literal["asc", "desc"] = Field("desc", description="by the time of the event; `desc`: newest first")
    sink: Texts = Field([], description="name of the sink", examples=[["crm"]])
    state: Annotated[list[DeliveryState], Several] = Field([], description="where it stands")
    event_id: Texts = Field([], description="id of the event")
    webhook: Texts = Field([], description="name of the webhook", examples=[["orders"]])
    type: Types = Field([], description="Mailjet's word for the event", examples=[["bounce"]])
    after: Moments = Field([], description="created at that time or later (RFC 3339)")
    before: Moments = Field([], description="created before that time (RFC 3339)")


class QuarantineQuery(Paging):
    """`GET /v1/quarantine`. A repeated filter means any of its values."""

    webhook: Texts = Field([], description="name of the webhook", examples=[["orders"]])
    after: Moments = Field([], description="received at that time or later (RFC 3339)")
    before: Moments = Field([], description="received before that time (RFC 3339)")


def _told(value: object) -> str:
    return rfc3339(value) if isinstance(value, datetime) else str(value)


# --- conditions ------------------------------------------------------------------------------------------------------

# The columns with an index in which one value leads to few events, the fewest first.
SELECTIVE = ("message_id", "message_guid", "custom_id", "email", "campaign_id")
EQUAL = (
    "webhook", "type", "outcome", "email_domain", "custom_campaign", "contact_id", "list_id", "permanent", "test",
    "automated", *SELECTIVE,
)  # fmt: skip


class Unindexed(FunctionElement[Any]):
    """A column that SQLite shall not look up in an index.

    SQLite keeps no statistics here and takes every equality for rare: `webhook = 'orders'` would make it read and sort
    every event of that webhook instead of walking the ids. A unary plus says no; PostgreSQL knows better by itself.
    """

    inherit_cache = True

    def __init__(self, column: sa.ColumnElement[Any]) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(Unindexed)
def _plainly(element: Unindexed, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(Unindexed, "sqlite")
def _with_plus(element: Unindexed, compiler: SQLCompiler, **kw: Any) -> str:
    return "+" + compiler.process(element.clauses, **kw)


def event_conditions(
    filters: EventFilters, columns: sa.ColumnCollection[str, sa.Column[Any]], *, by_seq: bool = False
) -> list[Condition]:
    """Conditions on `columns` of the events table, for a walk along its ids or, `by_seq`, in the order of commits.

    Who asks about mail does not mean what Jethook tells about itself: operator events are found by their type or
    webhook only.
    """
    ids = Unindexed(columns["id"]) if by_seq else columns["id"]
    filters = meant(filters)
    indexed = _indexed_filters(filters, by_seq=by_seq)
    return _besides_ids(filters, columns, EQUAL, indexed=indexed) + _id_range(ids, filters)


def meant(filters: EventFilters) -> EventFilters:
    """The same, but operator types that are asked for without a webhook are asked for at the one that has them."""
    if not filters.webhook and filters.type and all(map(operator_events.is_operator_word, filters.type)):
        return filters.model_copy(update={"webhook": [operator_events.WEBHOOK]})
    return filters


def named_conditions(
    filters: EventFilters, columns: sa.ColumnCollection[str, sa.Column[Any]], names: Iterable[str]
) -> list[Condition]:
    """Only those filters that are named, for an index to serve."""
    return [_any_of(columns[name], values) for name in names if (values := getattr(filters, name))]


def other_conditions(
    filters: EventFilters, columns: sa.ColumnCollection[str, sa.Column[Any]], *, served: Collection[str] = ()
) -> list[Condition]:
    """All but the filters `served` otherwise and the time of the event, and none for an index to serve."""
    names = [name for name in EQUAL if name not in served]
    return _besides_ids(filters, columns, names, indexed=frozenset())


def id_bounds(filters: EventFilters) -> tuple[str, str]:
    """`occurred_at` as the first id that fits and the first one beyond."""
    first = first_id(min(filters.after)) if filters.after else NO_ID
    return first, first_id(max(filters.before)) if filters.before else BEYOND_IDS


def delivery_conditions(
    query: DeliveryQuery, columns: sa.ColumnCollection[str, sa.Column[Any]], *, by_index: bool = True
) -> list[Condition]:
    """Conditions on `columns` of the deliveries table; without `by_index` none but the event's id for an index."""
    plain = {name: columns[name] if by_index else Unindexed(columns[name]) for name in ("sink", "state")}
    found: dict[str, sa.ColumnElement[Any]] = {**columns, **plain}
    names = ("sink", "event_id", "webhook", "type")
    conditions = [_any_of(found[name], values) for name in names if (values := getattr(query, name))]
    if query.state:
        # Written out and not bound: a partial index serves only a state the planner can see.
        states = [sa.literal(str(state), sa.Text(), literal_execute=True) for state in dict.fromkeys(query.state)]
        conditions.append(_any_of(found["state"], states))
    return conditions + _between(columns["created_at"], query.after, query.before)


def quarantine_conditions(query: QuarantineQuery, columns: sa.ColumnCollection[str, sa.Column[Any]]) -> list[Condition]:
    """Conditions on `columns` of the quarantine table."""
    conditions = [_any_of(columns["webhook"], query.webhook)] if query.webhook else []
    return conditions + _between(columns["received_at"], query.after, query.before)


def _indexed_filters(filters: EventFilters, *, by_seq: bool = False) -> set[str]:
    """The filters whose index is worth using: the most selective one; webhook with type, which gives the order of ids;
    or the webhook of operator events, since they are few. A campaign has many events, and only in the order of ids."""
    for name in SELECTIVE:
        if getattr(filters, name) and not (by_seq and name == "campaign_id"):
            return {name}
    alone = len(set(filters.webhook)) == len(set(filters.type)) == 1 and not by_seq
    return {"webhook", "type"} if alone or set(filters.webhook) == {operator_events.WEBHOOK} else set()


def _besides_ids(
    filters: EventFilters, columns: sa.ColumnCollection[str, sa.Column[Any]], names: Iterable[str], *,
    indexed: Collection[str],
) -> list[Condition]:  # fmt: skip
    conditions: list[Condition] = []
    if not (filters.webhook or filters.type):
        conditions.append(Unindexed(columns["webhook"]) != operator_events.WEBHOOK)
    for name in names:
        if values := getattr(filters, name):
            column = columns[name]
            conditions.append(_any_of(column if name in indexed else Unindexed(column), values))
    return conditions + _between(columns["received_at"], filters.received_after, filters.received_before)


def _any_of(column: sa.ColumnElement[Any], values: Iterable[Any]) -> Condition:
    distinct = list(dict.fromkeys(values))
    return column == distinct[0] if len(distinct) == 1 else column.in_(distinct)


def _id_range(column: sa.ColumnElement[str], filters: EventFilters) -> list[Condition]:
    """`occurred_at` as a range of ids: that is the index the page walks along anyway."""
    conditions = []
    if filters.after:
        conditions.append(column >= first_id(min(filters.after)))
    if filters.before:
        conditions.append(column < first_id(max(filters.before)))
    return conditions


def _between(column: sa.ColumnElement[Any], after: Sequence[datetime], before: Sequence[datetime]) -> list[Condition]:
    """Any of several bounds is the widest one."""
    conditions = []
    if after:
        conditions.append(column >= min(after))
    if before:
        conditions.append(column < max(before))
    return conditions
