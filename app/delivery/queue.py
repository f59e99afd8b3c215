"""The SQL of delivery: claim what is due, keep a claim, write what came of it.

A claim is a later `next_attempt_at` with a lease token. If its holder dies the time simply comes, so a crash needs no
repair; a holder that comes late finds another token and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from app.db import chunks, insert_missing, run_driver_sql
from app.dispatch.service import Job
from app.errors import Conflict, DeliveryNotFound
from app.models import Attempt, Delivery, DeliveryState, Event, Priority, SinkState
from app.views import EVENT_COLUMNS

_deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
_attempts: sa.Table = Attempt.__table__  # type: ignore[attr-defined]
_events: sa.Table = Event.__table__  # type: ignore[attr-defined]
_states: sa.Table = SinkState.__table__  # type: ignore[attr-defined]

ATTEMPT_COLUMNS = (
    "event_id", "sink", "number", "at", "status", "outcome", "error", "duration_ms", "response_excerpt", "replay",
)  # fmt: skip


NOTHING_TO_SEND = "the event or its payload was removed by retention"


@dataclass(slots=True)
class Report:
    """What became of one request's deliveries; `recorded` is called once that is durable."""

    completions: Sequence[Completion]
    recorded: Callable[[], None]
    is_urgent: bool = False  # something waits for it
    tries: int = 0


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """At most `limit` due deliveries of one sink and priority, leased until `lease_until`."""

    sink: str
    priority: int
    limit: int
    now: datetime
    lease_until: datetime
    lease_token: str
    is_ordered: bool = False


@dataclass(frozen=True, slots=True)
class BatchNote:
    """The claimed deliveries of one sink that are about to go out as one batch."""

    sink: str
    event_ids: tuple[str, ...]
    batch_id: str
    lease_token: str


class Completion(NamedTuple):
    """What became of one claimed delivery. `attempt` is a row of `ATTEMPT_COLUMNS`; None when it was not tried."""

    event_id: str
    sink: str
    lease_token: str
    state: DeliveryState
    priority: int
    attempt_count: int
    schedule_step: int
    next_attempt_micros: int
    settled_micros: int | None
    last_status: int | None
    last_error: str | None
    batch_id: str | None
    attempt: tuple[Any, ...] | None


def claim_due(connection: Connection, request: ClaimRequest) -> list[Job]:
    """Take due deliveries, oldest first; what another process is taking at this moment is passed over.

    Of a batch that was formed before, all members are taken, so the list can be longer than the limit.
    """
    # Not a plain subquery: PostgreSQL may run that again for each row it joins, and so claim more than the limit.
    chosen = due_ids(request).cte("due")
    rows = _take(connection, request, _deliveries.c.event_id.in_(sa.select(chosen.c.event_id)))
    batches = {row.batch_id for row in rows if row.batch_id is not None}
    if batches:
        rest = sa.and_(
            _deliveries.c.batch_id.in_(sorted(batches)),
            _deliveries.c.state == DeliveryState.PENDING.value,
            # Not those just taken; but those that bear our token and that nobody holds any more, or one batch would go
            # out in two parts under one id.
            sa.or_(
                sa.func.coalesce(_deliveries.c.lease_token, "") != request.lease_token,
                _deliveries.c.next_attempt_at <= request.now,
            ),
        )
        rows = [*rows, *_take(connection, request, rest)]
    rows.sort(key=lambda row: str(row.event_id))  # in the order of the events' times: RETURNING has none
    events = _events_by_id(connection, [row.event_id for row in rows])
    gone = [row.event_id for row in rows if row.event_id not in events]
    if gone:
        _cancel_unsendable(connection, request, gone)
    return [_job(row, request.sink, events[row.event_id]) for row in rows if row.event_id in events]


def _cancel_unsendable(connection: Connection, request: ClaimRequest, ids: Sequence[str]) -> None:
    """End claimed deliveries of which retention left nothing to send."""
    mine = (_deliveries.c.sink == request.sink, _deliveries.c.event_id.in_(ids))
    ended = {"state": DeliveryState.CANCELLED.value, "settled_at": request.now, "lease_token": None}
    connection.execute(sa.update(_deliveries).where(*mine).values(last_error=NOTHING_TO_SEND, **ended))


def due_ids(request: ClaimRequest) -> sa.Select[tuple[str]]:
    """The events whose deliveries a claim takes; what others have locked is passed over."""
    due = (
        sa.select(_deliveries.c.event_id)
        .where(
            _deliveries.c.sink == request.sink,
            _deliveries.c.state == sa.literal_column("'pending'"),  # the partial index asks for the very word
            _deliveries.c.priority == request.priority,
            _deliveries.c.next_attempt_at <= request.now,
        )
        .order_by(_deliveries.c.next_attempt_at)
        .limit(request.limit)
        .with_for_update(skip_locked=True)  # SQLite, a single writer, drops it
    )
    return due.where(*_is_next(request.now)) if request.is_ordered else due


def _take(connection: Connection, request: ClaimRequest, which: sa.ColumnElement[bool]) -> list[Row[Any]]:
    taken = (
        sa.update(_deliveries)
        .where(_deliveries.c.sink == request.sink, which)
        .values(next_attempt_at=request.lease_until, lease_token=request.lease_token)
        .returning(
            _deliveries.c.event_id, _deliveries.c.webhook, _deliveries.c.type, _deliveries.c.attempt_count,
            _deliveries.c.schedule_step, _deliveries.c.priority, _deliveries.c.replay, _deliveries.c.batch_id,
        )
    )  # fmt: skip
    return list(connection.execute(taken).all())


def _is_next(now: datetime) -> list[sa.ColumnElement[bool]]:
    """In an order: no earlier event of its key is owed, nor of the key of a member of its batch; and none of its key is
    being sent, which one that came late may well be earlier than. Two batches never wait for each other, since the one
    formed last had nothing before it."""
    other, member = _deliveries.alias("other"), _deliveries.alias("member")
    under_way = sa.and_(other.c.lease_token.is_not(None), other.c.next_attempt_at > now)
    unready = (
        sa.select(sa.literal(1))
        .select_from(member)
        .where(
            member.c.batch_id == _deliveries.c.batch_id,
            member.c.batch_id.is_not(None),
            member.c.sink == _deliveries.c.sink,
            member.c.state == sa.literal_column("'pending'"),
            _of_its_key(_deliveries.alias("before"), member, lambda before: before.c.event_id < member.c.event_id),
        )
        .correlate(_deliveries)
        .exists()
    )
    earlier = _of_its_key(_deliveries.alias("earlier"), _deliveries, lambda e: e.c.event_id < _deliveries.c.event_id)
    beside = _of_its_key(other, _deliveries, lambda o: sa.and_(o.c.event_id != _deliveries.c.event_id, under_way))
    return [sa.not_(earlier), sa.not_(beside), sa.not_(unready)]


def _of_its_key(
    other: sa.FromClause, mine: sa.FromClause, which: Callable[[sa.FromClause], sa.ColumnElement[bool]]
) -> sa.Exists:
    """Is one of the same key, and not of the same batch, owed to the sink?"""
    return (
        sa.select(sa.literal(1))
        .select_from(other)
        .where(
            other.c.sink == mine.c.sink,
            other.c.order_key == mine.c.order_key,
            other.c.order_key.is_not(None),
            other.c.state == sa.literal_column("'pending'"),  # the very words of the partial index
            sa.or_(other.c.batch_id.is_(None), other.c.batch_id.is_distinct_from(mine.c.batch_id)),
            which(other),
        )
        .correlate(mine)
        .exists()
    )


def note_batch(connection: Connection, note: BatchNote) -> None:
    """Write a batch's id to its members, before it is first sent."""
    for chunk in chunks(note.event_ids, 512):
        connection.execute(
            sa.update(_deliveries)
            .where(
                _deliveries.c.sink == note.sink,
                _deliveries.c.event_id.in_(chunk),
                _deliveries.c.lease_token == note.lease_token,
            )
            .values(batch_id=note.batch_id)
        )


def _job(row: Row[Any], sink: str, event: tuple[Any, ...]) -> Job:
    return Job(
        event_id=row.event_id, sink=sink, webhook=row.webhook, type=row.type, event=event,
        attempt_count=row.attempt_count, schedule_step=row.schedule_step, priority=row.priority, replay=row.replay,
        batch_id=row.batch_id,
    )  # fmt: skip


def _events_by_id(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    # Times stay whole numbers: the row travels on in the shape it has between ingest and the worker.
    columns = [
        sa.type_coerce(c, sa.BigInteger) if name.endswith("_at") else c
        for name, c in ((name, _events.c[name]) for name in EVENT_COLUMNS)
    ]
    found: dict[str, tuple[Any, ...]] = {}
    for chunk in chunks(ids, 512):
        whole = sa.and_(_events.c.id.in_(chunk), _events.c.raw.is_not(None))
        for row in connection.execute(sa.select(*columns).where(whole)):
            found[row[0]] = tuple(row)
    return found


def renew(connection: Connection, *, held: Mapping[str, Iterable[str]], lease_token: str, until: datetime) -> int:
    """Prolong the leases of `lease_token` on what is held, sink -> event ids; the number prolonged.

    By name and not by token: a row that bears our token and is in nobody's hand (a commit whose answer got lost) must
    become due. And by the primary key, where a backlog of due rows costs nothing.
    """
    renewed = 0
    for sink, ids in sorted(held.items()):
        for chunk in chunks(sorted(ids), 256):
            statement = (
                sa.update(_deliveries)
                .where(
                    _deliveries.c.sink == sink,
                    _deliveries.c.event_id.in_(chunk),
                    _deliveries.c.state == DeliveryState.PENDING.value,
                    _deliveries.c.lease_token == lease_token,
                )
                .values(next_attempt_at=until)
            )
            renewed += connection.execute(statement).rowcount
    return renewed


class Outlook(NamedTuple):
    """What a worker may do next. A paused sink has nothing due."""

    paused: dict[str, str | None]  # -> the reason
    due: dict[tuple[str, int], datetime]  # (sink, priority) -> when its first pending delivery is due, where it has one


def look(connection: Connection, sinks: Iterable[str]) -> Outlook:
    found = Outlook({}, {})
    for some in chunks(list(sinks)):
        for row in connection.execute(_first_due(some)):
            if row.paused:
                found.paused[row.sink] = row.paused_reason
            elif row.at is not None:
                found.due[row.sink, row.priority] = row.at
    return found


def _first_due(sinks: Sequence[str]) -> sa.Select[Any]:
    """One look at the index for each sink and priority, written once: PostgreSQL plans it for all its partitions, and
    a select of its own for each would be planned as many times."""
    pairs = [(sink, priority.value) for sink in sinks for priority in Priority]
    asked = sa.values(sa.column("sink", sa.Text()), sa.column("priority", sa.Integer())).data(pairs).cte("asked")
    first = (
        sa.select(_deliveries.c.next_attempt_at)
        .where(
            _deliveries.c.sink == asked.c.sink,
            _deliveries.c.state == sa.literal_column("'pending'"),
            _deliveries.c.priority == asked.c.priority,
        )
        .order_by(_deliveries.c.next_attempt_at)
        .limit(1)
        .correlate(asked)
        .scalar_subquery()
    )
    states = asked.outerjoin(_states, _states.c.name == asked.c.sink)
    columns = (asked.c.sink, asked.c.priority, _states.c.paused, _states.c.paused_reason, first.label("at"))
    return sa.select(*columns).select_from(states)


def record_completions(connection: Connection, completions: Sequence[Completion]) -> None:
    """Write attempts, and states where the lease still holds; a cancelled or retaken delivery is left as it is."""
    at_once = [c for c in completions if _is_first_success(c)]
    others = [c for c in completions if not _is_first_success(c)] if len(at_once) < len(completions) else []
    others_tried = [c.attempt for c in others if c.attempt is not None]
    for chunk in chunks(at_once):
        values = tuple(value for c in chunk for value in _first_success(c))
        cursor = run_driver_sql(connection, _first_success_sql(len(chunk), connection.dialect.name), values)
        if cursor.rowcount < len(chunk):  # some lost their lease: what was tried is kept beside the delivery
            others_tried += _not_in_their_rows(connection, chunk)
        cursor.close()
    insert_missing(connection, _attempts, ATTEMPT_COLUMNS, _of_deliveries_there(connection, others_tried))
    for chunk in chunks(others):
        values = tuple(value for c in chunk for value in _values_of(c))
        run_driver_sql(connection, _completion_sql(len(chunk), connection.dialect.name), values).close()


def _is_first_success(c: Completion) -> bool:
    return (
        c.attempt_count == 1
        and c.state is DeliveryState.DELIVERED
        and c.attempt is not None
        and not c.attempt[_ERROR]
        and not c.attempt[_REPLAY]
    )


_FIRST_SUCCESS = {
    "event_id": "uuid", "sink": "text", "token": "text", "priority": "bigint", "step": "bigint", "settled_at": "bigint",
    "status": "bigint", "at": "bigint", "duration_ms": "double precision", "excerpt": "text",
}  # fmt: skip
_ERROR, _REPLAY = ATTEMPT_COLUMNS.index("error"), ATTEMPT_COLUMNS.index("replay")


def _first_success(c: Completion) -> tuple[Any, ...]:
    assert c.attempt is not None
    _, _, _, at, status, _, _, duration_ms, excerpt, _ = c.attempt
    return (
        c.event_id, c.sink, c.lease_token, int(c.priority), c.schedule_step, c.settled_micros, status, at,
        duration_ms, excerpt,
    )  # fmt: skip


@lru_cache(maxsize=256)
def _first_success_sql(rows: int, dialect: str) -> str:
    return (
        "UPDATE deliveries SET state = 'delivered', priority = v.{priority}, attempt_count = 1, "  # noqa: S608  our words
        "schedule_step = v.{step}, lease_token = NULL, settled_at = v.{settled_at}, last_status = v.{status}, "
        "last_error = NULL, first_at = v.{at}, first_status = v.{status}, first_duration_ms = v.{duration_ms}, "
        "first_excerpt = v.{excerpt} " + _FROM_STILL_LEASED
    ).format(**_columns(_FIRST_SUCCESS), values=_values_sql(_FIRST_SUCCESS, rows, dialect))


def _not_in_their_rows(connection: Connection, completions: Sequence[Completion]) -> list[tuple[Any, ...]]:
    """The attempts of those whose deliveries did not take them up."""
    ids = {c.event_id for c in completions}
    statement = sa.select(_deliveries.c.event_id, _deliveries.c.sink).where(
        _deliveries.c.event_id.in_(ids), _deliveries.c.first_at.is_not(None)
    )
    kept = {(row.event_id, row.sink) for row in connection.execute(statement)}
    return [c.attempt for c in completions if c.attempt is not None and (c.event_id, c.sink) not in kept]


def _of_deliveries_there(connection: Connection, attempts: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Those whose delivery was not deleted while it was tried: what a sink answered must not outlive an erasure."""
    there: set[tuple[str, str]] = set()
    for chunk in chunks(sorted({attempt[0] for attempt in attempts}), 512):
        statement = sa.select(_deliveries.c.event_id, _deliveries.c.sink).where(_deliveries.c.event_id.in_(chunk))
        rows = connection.execute(statement.with_for_update(read=True, key_share=True))
        there.update((row.event_id, row.sink) for row in rows)
    return [attempt for attempt in attempts if (attempt[0], attempt[1]) in there]


def _values_of(c: Completion) -> tuple[Any, ...]:
    return (
        c.event_id, c.sink, c.lease_token, c.state.value, int(c.priority), c.attempt_count, c.schedule_step,
        c.next_attempt_micros, c.settled_micros, c.last_status, c.last_error, c.batch_id,
    )  # fmt: skip


_COMPLETION = {
    "event_id": "uuid", "sink": "text", "token": "text", "state": "text", "priority": "bigint", "attempts": "bigint",
    "step": "bigint", "next_at": "bigint", "settled_at": "bigint", "status": "bigint", "error": "text", "batch": "uuid",
}  # fmt: skip
# Not as `WITH v AS (…) UPDATE`: Python's sqlite3 tells no row count for that.
_FROM_STILL_LEASED = (
    "FROM (VALUES {values}) AS v WHERE deliveries.event_id = v.{event_id} AND deliveries.sink = v.{sink} "
    "AND deliveries.state = 'pending' AND deliveries.lease_token = v.{token}"
)


@lru_cache(maxsize=256)
def _completion_sql(rows: int, dialect: str) -> str:
    return (
        "UPDATE deliveries SET state = v.{state}, priority = v.{priority}, attempt_count = v.{attempts}, "  # noqa: S608
        "schedule_step = v.{step}, next_attempt_at = v.{next_at}, lease_token = NULL, settled_at = v.{settled_at}, "
        "last_status = v.{status}, last_error = v.{error}, batch_id = v.{batch} " + _FROM_STILL_LEASED
    ).format(**_columns(_COMPLETION), values=_values_sql(_COMPLETION, rows, dialect))


def _columns(kinds: Mapping[str, str]) -> dict[str, str]:
    """Both databases number the columns of VALUES."""
    return {name: f"column{number}" for number, name in enumerate(kinds, 1)}


def _values_sql(kinds: Mapping[str, str], rows: int, dialect: str) -> str:
    mark = "?" if dialect == "sqlite" else "%s"
    # A column of NULLs alone would be text to PostgreSQL; SQLite takes what it is given.
    cells = [mark if dialect == "sqlite" else f"CAST({mark} AS {kind})" for kind in kinds.values()]
    return ", ".join([f"({', '.join(cells)})"] * rows)


# --- by hand ---------------------------------------------------------------------------------------------------------


def retry(connection: Connection, event_id: str, sink: str, now: datetime) -> None:
    """Make a delivery due now with a fresh schedule, whatever its state; one being sent at this moment stays so.

    Raises DeliveryNotFound, Conflict where retention has removed what would be sent.
    """
    _get_state(connection, event_id, sink)
    if connection.execute(sa.select(_events.c.raw.is_(None)).where(_events.c.id == event_id)).scalar_one_or_none():
        raise Conflict(NOTHING_TO_SEND)
    mine = (_deliveries.c.event_id == event_id, _deliveries.c.sink == sink)
    fresh = {
        "state": DeliveryState.PENDING.value,
        "schedule_step": 0,
        "priority": int(Priority.RETRY),
        "next_attempt_at": now,
        "lease_token": None,
        "settled_at": None,
        "batch_id": None,
    }
    leased = sa.and_(
        _deliveries.c.state == DeliveryState.PENDING.value,
        _deliveries.c.lease_token.is_not(None),
        _deliveries.c.next_attempt_at > now,
    )
    connection.execute(sa.update(_deliveries).where(*mine, sa.not_(leased)).values(**fresh))


def cancel(connection: Connection, event_id: str, sink: str, now: datetime) -> None:
    """End a pending or dead delivery for good. Raises DeliveryNotFound, Conflict for one that was delivered."""
    state = _get_state(connection, event_id, sink)
    if state == DeliveryState.DELIVERED:
        raise Conflict("the delivery was delivered already")
    connection.execute(
        sa.update(_deliveries)
        .where(
            _deliveries.c.event_id == event_id,
            _deliveries.c.sink == sink,
            _deliveries.c.state.in_([DeliveryState.PENDING.value, DeliveryState.DEAD.value]),
        )
        .values(state=DeliveryState.CANCELLED.value, settled_at=now, lease_token=None)
    )


def _get_state(connection: Connection, event_id: str, sink: str) -> str:
    statement = sa.select(_deliveries.c.state).where(_deliveries.c.event_id == event_id, _deliveries.c.sink == sink)
    state = connection.execute(statement.with_for_update()).scalar_one_or_none()
    if state is None:
        raise DeliveryNotFound(f"no delivery {event_id}.{sink}")
    return str(state)
