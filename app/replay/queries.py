"""The SQL of replays. What is slow to find is found by readers; a write does little and holds its locks briefly.

A delivery bears the mark of the replay that took it up last (`replay_id`), and the small index of marks and states
tells how far a replay is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import chain
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.clock import to_micros
from app.db import UTCDateTime, chunks
from app.errors import Conflict, ReplayNotFound
from app.filters import Condition
from app.ledger import Entry, record
from app.models import Attempt, AttemptOutcome, DeliveryState, Priority, Replay, ReplayState
from app.replay.selection import (
    Candidates,
    DeadSelection,
    EventValues,
    Recipient,
    Selection,
    UnreadableSelection,
    candidates,
    covering,
    deliveries,
    events,
    parse_selection,
)
from app.views import EVENT_COLUMNS

Row = sa.Row[Any]

replays: sa.Table = Replay.__table__  # type: ignore[attr-defined]
_attempts: sa.Table = Attempt.__table__  # type: ignore[attr-defined]

JUDGED_AT_ONCE = 1000  # events read for `Recipient.accepts` in one statement
OVERDUE_SECONDS = 1.0  # due that long and not taken: the sink is paused, away or busy with more urgent things

_pending = deliveries.c.state == sa.literal_column("'pending'")
_PLAIN = (events.c.id, events.c.webhook, events.c.type)
_WHOLE = tuple(
    sa.type_coerce(events.c[name], sa.BigInteger) if name.endswith("_at") else events.c[name] for name in EVENT_COLUMNS
)


# --- what is to be replayed ------------------------------------------------------------------------------------------


def newest_seq(connection: Connection) -> int:
    """The number of the event stored last; 0 where there is none."""
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(events.c.seq), 0))).scalar_one())


def count(
    connection: Connection, selection: Selection, recipient: Recipient, *, last_seq: int, made_at: datetime
) -> int:
    """How many deliveries a replay made now would take up."""
    wanted = candidates(selection, recipient, last_seq=last_seq, made_at=made_at)
    if recipient.accepts is None or isinstance(selection, DeadSelection):
        statement = sa.select(sa.func.count()).select_from(wanted.rows).where(*wanted.conditions)
        return int(connection.execute(statement).scalar_one())
    found, cursor = 0, None
    while batch := _read(connection, wanted, cursor, JUDGED_AT_ONCE, whole=True):
        found += sum(recipient.accepts(values) for values in batch)
        cursor = batch[-1][0]
    return found


@dataclass(frozen=True, slots=True)
class Taken:
    """One delivery to be made or reopened."""

    event_id: str
    webhook: str
    type: str
    order_key: str | None


@dataclass(frozen=True, slots=True)
class Slice:
    """What comes next: `rows` to take up, the id up to which all was looked at, and whether that was the last."""

    rows: Sequence[Taken]
    cursor: str | None
    at_end: bool


def next_slice(connection: Connection, replay: Row, selection: Selection, recipient: Recipient, most: int) -> Slice:
    """At most `most` deliveries after the replay's cursor, in the order of their events' ids."""
    wanted = candidates(selection, recipient, last_seq=replay.last_seq, made_at=replay.created_at)
    judge = recipient.accepts if not isinstance(selection, DeadSelection) else None
    whole = judge is not None or recipient.order_key is not None
    limit = most if judge is None else JUDGED_AT_ONCE
    found = _read(connection, wanted, replay.cursor, limit, whole=whole)
    cursor = found[-1][0] if found else replay.cursor
    at_end = len(found) < limit
    if judge is not None:
        found = [values for values in found if judge(values)]
        if len(found) > most:
            found, at_end = found[:most], False
            cursor = found[-1][0]
    return Slice([_taken(values, recipient, whole=whole) for values in found], cursor, at_end)


def _read(
    connection: Connection, wanted: Candidates, cursor: str | None, limit: int, *, whole: bool
) -> list[EventValues]:
    """The first `limit` after `cursor`."""
    statement = sa.select(*(_WHOLE if whole else _PLAIN)).select_from(wanted.rows).where(*wanted.conditions)
    if cursor is not None:
        statement = statement.where(wanted.key > cursor)
    return [tuple(row) for row in connection.execute(statement.order_by(wanted.key).limit(limit))]


def _taken(values: EventValues, recipient: Recipient, *, whole: bool) -> Taken:
    webhook, event_type = (values[1], values[3]) if whole else (values[1], values[2])
    key = recipient.order_key(values) if recipient.order_key is not None else None
    return Taken(values[0], webhook, event_type, key)


# --- the replay itself -----------------------------------------------------------------------------------------------


def insert(connection: Connection, values: dict[str, Any]) -> Row:
    """The stored row."""
    connection.execute(sa.insert(replays).values(**values))
    return get(connection, values["id"])


def get(connection: Connection, replay_id: str) -> Row:
    """Raises ReplayNotFound."""
    return _found(connection.execute(sa.select(replays).where(replays.c.id == replay_id)).first())


def lock(connection: Connection, replay_id: str) -> Row:
    """The row as it is now, and nobody changes it before this transaction ends. Raises ReplayNotFound."""
    statement = sa.select(replays).where(replays.c.id == replay_id)
    return _found(connection.execute(statement.with_for_update()).first())


def _found(row: Row | None) -> Row:
    if row is None:
        raise ReplayNotFound("there is no replay with this id")
    return row


def page(connection: Connection, *, beyond: str | None, descending: bool, limit: int) -> Sequence[Row]:
    """Up to `limit` replays after the id `beyond`; an id starts with its time."""
    statement = sa.select(replays).order_by(replays.c.id.desc() if descending else replays.c.id.asc()).limit(limit)
    if beyond is not None:
        statement = statement.where(replays.c.id < beyond if descending else replays.c.id > beyond)
    return connection.execute(statement).all()


def unfinished() -> sa.Select[Any]:
    """Those with work left: running, or cancelled with something of it still being sent."""
    wanted = replays.c.state.in_([ReplayState.RUNNING.value, ReplayState.CANCELLED.value])
    return sa.select(replays).where(wanted, replays.c.finished_at.is_(None))


def list_unfinished(connection: Connection) -> Sequence[Row]:
    """Oldest first."""
    return connection.execute(unfinished().order_by(replays.c.id)).all()


def update(connection: Connection, replay_id: str, **values: Any) -> None:
    connection.execute(sa.update(replays).where(replays.c.id == replay_id).values(**values))


# --- how far it is ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """A replay's pending deliveries: all, those due and not taken for a while, those whose event is gone; and the last
    moment at which one that nobody has claimed or tried is due."""

    pending: int
    overdue: int
    orphans: int
    last_due_at: datetime | None


def standing(connection: Connection, replay_id: str, now: datetime) -> Standing:
    """Never more rows than a replay may have outstanding are looked at."""
    waits = sa.and_(
        deliveries.c.lease_token.is_(None),
        deliveries.c.priority == int(Priority.REPLAY),
        deliveries.c.schedule_step == 0,
    )
    late = sa.and_(waits, deliveries.c.next_attempt_at < now - timedelta(seconds=OVERDUE_SECONDS))
    statement = sa.select(
        sa.func.count(),
        sa.func.coalesce(sa.func.sum(sa.case((late, 1), else_=0)), 0),
        sa.func.coalesce(sa.func.sum(sa.case((_orphan(), 1), else_=0)), 0),
        sa.func.max(sa.case((waits, deliveries.c.next_attempt_at))),
    ).where(deliveries.c.replay_id == replay_id, _pending)
    pending, overdue, orphans, last_due_at = connection.execute(statement).one()
    return Standing(int(pending), int(overdue), int(orphans), last_due_at)


def _orphan() -> Condition:
    return sa.not_(sa.exists().where(events.c.id == deliveries.c.event_id))


def cancel_orphans(connection: Connection, replay_id: str, now: datetime) -> int:
    """End the deliveries whose event was deleted meanwhile: nobody could ever send them. The number ended."""
    statement = (
        sa.update(deliveries)
        .where(deliveries.c.replay_id == replay_id, _pending, _orphan())
        .values(
            state=DeliveryState.CANCELLED.value, settled_at=now, lease_token=None, last_error="the event was deleted"
        )
    )
    return connection.execute(statement).rowcount


@dataclass(frozen=True, slots=True)
class Tally:
    """The deliveries that bear a replay's mark. One that a later replay took up counts there."""

    pending: int
    done: int
    failed: int


def tally(connection: Connection, replay_id: str) -> Tally:
    """Costs a walk over the replay's part of the index: about 50 ms for a million deliveries."""
    states = deliveries.c.state
    statement = sa.select(states, sa.func.count()).where(deliveries.c.replay_id == replay_id).group_by(states)
    found = {state: int(number) for state, number in connection.execute(statement)}
    return Tally(
        pending=found.get(DeliveryState.PENDING, 0),
        done=found.get(DeliveryState.DELIVERED, 0),
        failed=found.get(DeliveryState.DEAD, 0) + found.get(DeliveryState.CANCELLED, 0),
    )


# --- taking up -------------------------------------------------------------------------------------------------------


def take_up(
    connection: Connection, replay: Row, part: Slice, due: Sequence[int], now: datetime, *, only_dead: bool
) -> None:
    """Owe the rows of `part` to the sink and move the cursor; `due[n]` (microseconds) is when row n is due.

    `replay` is locked by the caller and its cursor is the one `part` was read with. A missing delivery is inserted, a
    settled one (`only_dead`: a dead one) reopened with a fresh schedule. One that is pending is owed anyway: it is
    only marked. After the first statement all of them are locked (PostgreSQL locks also what DO UPDATE's condition
    leaves alone), so between the two none changes hands.
    """
    made = to_micros(now)
    there = still_stored(connection, [t.event_id for t in part.rows])
    rows = [
        (t.event_id, replay.sink, t.webhook, t.type, due[n], replay.id, t.order_key, made)
        for n, t in enumerate(part.rows)
        if t.event_id in there
    ]
    for chunk in chunks(rows):
        sql = _reopen_sql(len(chunk), connection.dialect.name, only_dead=only_dead)
        connection.exec_driver_sql(sql, tuple(chain.from_iterable(chunk)))
    ids = sorted(there)
    _note_made(connection, replay, ids, now)
    mine = (deliveries.c.sink == replay.sink, deliveries.c.event_id.in_(ids), _pending)
    unmarked = deliveries.c.replay_id.is_distinct_from(replay.id)
    if ids:
        connection.execute(sa.update(deliveries).where(*mine, unmarked).values(replay_id=replay.id))
    taken = replay.taken + len(rows)
    # An event whose transaction was open when the replay was made is found by it, though it was not counted.
    update(connection, replay.id, cursor=part.cursor, taken=taken, count=max(replay.count, taken))


def _note_made(connection: Connection, replay: Row, ids: Sequence[str], now: datetime) -> None:
    """Write down the deliveries that were missing. An older one has kept the moment it was made at."""
    mine = (deliveries.c.sink == replay.sink, deliveries.c.event_id.in_(ids), deliveries.c.replay_id == replay.id)
    made = (deliveries.c.created_at == now, deliveries.c.attempt_count == 0)
    keys = sa.select(deliveries.c.event_id, deliveries.c.webhook, deliveries.c.sink).where(*mine, *made)
    found = connection.execute(keys).all()
    record(connection, Entry.MADE, deliveries=[(event_id, webhook, sink) for event_id, webhook, sink in found])


def still_stored(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Those whose event was not deleted since they were read, and will not be before this transaction ends."""
    statement = sa.select(events.c.id).where(events.c.id.in_(ids)).with_for_update(read=True, key_share=True)
    return set(connection.execute(statement).scalars()) if ids else set()


@lru_cache(maxsize=64)
def _reopen_sql(rows: int, dialect: str, *, only_dead: bool) -> str:
    mark = "?" if dialect == "sqlite" else "%s"
    row = f"(?, ?, ?, ?, 'pending', {int(Priority.REPLAY)}, 0, 0, ?, true, ?, ?, ?)".replace("?", mark)
    reopened = "deliveries.state = 'dead'" if only_dead else "deliveries.state <> 'pending'"
    return (
        "INSERT INTO deliveries (event_id, sink, webhook, type, state, priority, attempt_count, schedule_step, "  # noqa: S608  our words
        f"next_attempt_at, replay, replay_id, order_key, created_at) VALUES {', '.join([row] * rows)} "
        "ON CONFLICT (event_id, sink) DO UPDATE SET state = excluded.state, priority = excluded.priority, "
        "schedule_step = 0, next_attempt_at = excluded.next_attempt_at, replay = excluded.replay, "
        "replay_id = excluded.replay_id, order_key = excluded.order_key, lease_token = NULL, settled_at = NULL, "
        f"batch_id = NULL WHERE {reopened}"
    )


# --- giving up -------------------------------------------------------------------------------------------------------


def cancel(connection: Connection, replay_id: str, now: datetime) -> Row:
    """Cancel a running replay; a cancelled one stays so. Raises ReplayNotFound, Conflict for one that has ended."""
    replay = lock(connection, replay_id)
    if replay.state in (ReplayState.DONE, ReplayState.FAILED):
        raise Conflict(f"the replay has ended already: it is {replay.state}")
    if replay.finished_at is None:
        update(connection, replay_id, state=ReplayState.CANCELLED.value)
        wind_up(connection, replay, now)
    return get(connection, replay_id)


def wind_up(connection: Connection, replay: Row, now: datetime) -> bool:
    """Give back what a cancelled replay still owes; True, and finished, when nothing of it is being sent any more.

    What another replay took up too, and did not deliver, stays owed under that one's mark; what was owed before the
    replay came just loses its mark; everything else that is in nobody's hands becomes what it was.
    """
    mine = (deliveries.c.replay_id == replay.id, _pending)
    for other in _beside(connection, replay):
        try:
            wanted = covering(parse_selection(other.selection), other.sink)
        except UnreadableSelection:
            continue  # it fails as soon as somebody looks at it
        shared = (*mine, deliveries.c.event_id <= other.cursor, wanted, sa.not_(_succeeded(since=other.created_at)))
        connection.execute(sa.update(deliveries).where(*shared).values(replay_id=other.id))
    owed_anyway = deliveries.c.priority != int(Priority.REPLAY)
    connection.execute(sa.update(deliveries).where(*mine, owed_anyway).values(replay_id=None))
    unleased = sa.or_(deliveries.c.lease_token.is_(None), deliveries.c.next_attempt_at <= now)
    connection.execute(sa.update(deliveries).where(*mine, unleased).values(**_as_before(now)))
    found = tally(connection, replay.id)
    finished_at = now if found.pending == 0 else None
    update(connection, replay.id, done=found.done, failed=found.failed, finished_at=finished_at)
    return finished_at is not None


def _beside(connection: Connection, replay: Row) -> Sequence[Row]:
    """The replays of the sink from which this one may have taken over deliveries: those that ran while it did.

    One that lost its last mark that way is done already, and nobody would send what it had taken up.
    """
    others = (replays.c.sink == replay.sink, replays.c.id != replay.id, replays.c.cursor.is_not(None))
    ran = sa.or_(
        replays.c.state == ReplayState.RUNNING.value,
        sa.and_(replays.c.state == ReplayState.DONE.value, replays.c.finished_at >= replay.created_at),
    )
    return connection.execute(sa.select(replays).where(*others, ran).order_by(replays.c.id)).all()


def _succeeded(*, since: datetime | None = None) -> Condition:
    """Of a delivery: one of its attempts (made `since` then) was answered with success."""
    attempt = sa.exists().where(
        _attempts.c.event_id == deliveries.c.event_id,
        _attempts.c.sink == deliveries.c.sink,
        _attempts.c.outcome == AttemptOutcome.SUCCESS.value,
    )
    first = deliveries.c.first_at
    if since is None:
        return sa.or_(first.is_not(None), attempt)
    return sa.or_(sa.and_(first.is_not(None), first >= since), attempt.where(_attempts.c.at >= since))


def _as_before(now: datetime) -> dict[str, Any]:
    """Delivered where an attempt succeeded once, dead where all failed, cancelled where none was made."""
    of_it = (_attempts.c.event_id == deliveries.c.event_id, _attempts.c.sink == deliveries.c.sink)
    last = sa.func.coalesce(
        sa.select(sa.func.max(_attempts.c.at)).where(*of_it).scalar_subquery(), deliveries.c.first_at
    )
    state = sa.case(
        (_succeeded(), DeliveryState.DELIVERED.value),
        (deliveries.c.attempt_count > 0, DeliveryState.DEAD.value),
        else_=DeliveryState.CANCELLED.value,
    )
    return {
        "state": state, "settled_at": sa.func.coalesce(last, sa.literal(now, UTCDateTime)), "replay_id": None,
        "replay": False, "lease_token": None,
    }  # fmt: skip
