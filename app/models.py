"""The tables, and the enumerations their columns hold.

An event's id is its content (`ingest.identity`): 36 characters whose head is the time, so ordering by id is ordering by
time, and a page, a range and retention all use the one index. A delivery is named by what it joins: event and sink.
SQLModel does not validate tables; what comes in is checked by plain models and functions before.
"""

from datetime import datetime
from enum import IntEnum, StrEnum

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

from app.db import IdText, UTCDateTime

SlotText = sa.String(7).with_variant(sa.String(7, collation="C"), "postgresql")  # the head of an id
RowNumber = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Outcome(StrEnum):
    """What an event means, in the vocabulary other mail libraries use."""

    DELIVERED = "delivered"
    OPENED = "opened"
    CLICKED = "clicked"
    BOUNCED = "bounced"
    DEFERRED = "deferred"
    REJECTED = "rejected"
    COMPLAINED = "complained"
    UNSUBSCRIBED = "unsubscribed"
    UNKNOWN = "unknown"


class DeliveryState(StrEnum):
    """A retry, and a claim, is `pending` with a later `next_attempt_at`."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"
    CANCELLED = "cancelled"


class Priority(IntEnum):
    """Which deliveries of a sink are claimed and sent first."""

    FIRST = 0
    RETRY = 1
    REPLAY = 2


class AttemptOutcome(StrEnum):
    SUCCESS = "success"
    TIMEOUT = "timeout"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    HTTP_3XX = "http_3xx"
    HTTP_4XX = "http_4xx"
    HTTP_429 = "http_429"
    HTTP_5XX = "http_5xx"
    BLOCKED = "blocked"
    INVALID = "invalid"


def _text(length: int | None = None) -> sa.types.TypeEngine[str]:
    return sa.String(length) if length else sa.Text()


class Event(SQLModel, table=True):
    """One thing Mailjet says happened to one message; `raw` is its JSON text exactly as it came."""

    __tablename__ = "events"
    # Every index costs each insert a tenth or more. An address or a message has few events, which are sorted when asked
    # for; a campaign or a type has many, so there the id keeps them in order. Some addresses have ten thousand: what is
    # counted of one is read from its index alone.
    __table_args__ = (
        sa.Index("ix_events_email", "email", "occurred_at", "type", "webhook",
                 postgresql_where=sa.text("email IS NOT NULL"), sqlite_where=sa.text("email IS NOT NULL")),
        sa.Index("ix_events_message_id", "message_id", postgresql_where=sa.text("message_id IS NOT NULL"),
                 sqlite_where=sa.text("message_id IS NOT NULL")),
        sa.Index("ix_events_message_guid", "message_guid", postgresql_where=sa.text("message_guid IS NOT NULL"),
                 sqlite_where=sa.text("message_guid IS NOT NULL")),
        sa.Index("ix_events_custom_id", "custom_id", postgresql_where=sa.text("custom_id IS NOT NULL"),
                 sqlite_where=sa.text("custom_id IS NOT NULL")),
        sa.Index("ix_events_campaign_id", "campaign_id", "id", postgresql_where=sa.text("campaign_id IS NOT NULL"),
                 sqlite_where=sa.text("campaign_id IS NOT NULL")),
        sa.Index("ix_events_webhook_type", "webhook", "type", "id"),
        # `seq` is the primary key on SQLite only: on PostgreSQL a unique key holds what the table is partitioned by, so
        # the migration gives it a plain index there, `ix_events_seq`.
        {"sqlite_autoincrement": True, "postgresql_partition_by": "RANGE (id)"},
    )  # fmt: skip

    seq: int | None = Field(default=None, sa_column=sa.Column(RowNumber, primary_key=True, autoincrement=True))
    id: str = Field(sa_column=sa.Column(IdText, nullable=False, unique=True))
    webhook: str = Field(sa_type=_text(63))
    connection: str = Field(sa_type=_text(63))
    type: str = Field(sa_type=_text())
    outcome: str = Field(sa_type=_text(16))
    occurred_at: datetime = Field(sa_type=UTCDateTime)
    received_at: datetime = Field(sa_type=UTCDateTime)
    test: bool = Field(default=False)
    email: str | None = Field(default=None, sa_type=_text())
    email_domain: str | None = Field(default=None, sa_type=_text())
    message_id: str | None = Field(default=None, sa_type=_text())
    message_guid: str | None = Field(default=None, sa_type=_text())
    campaign_id: str | None = Field(default=None, sa_type=_text())
    contact_id: str | None = Field(default=None, sa_type=_text())
    list_id: str | None = Field(default=None, sa_type=_text())
    custom_id: str | None = Field(default=None, sa_type=_text())
    custom_campaign: str | None = Field(default=None, sa_type=_text())
    permanent: bool | None = Field(default=None)
    reason: str | None = Field(default=None, sa_type=_text())
    reason_group: str | None = Field(default=None, sa_type=_text())
    # Of opens and clicks: a machine's or a person's, and the rule that told (`mailjet.machines`).
    automated: bool | None = Field(default=None)
    automated_rule: str | None = Field(default=None, sa_type=_text(32))
    raw: str | None = Field(default=None, sa_type=_text())  # null once retention has taken it


class Delivery(SQLModel, table=True):
    """One event owed to one sink. A claim holds a `lease_token` and a `next_attempt_at` a few seconds ahead."""

    __tablename__ = "deliveries"
    __table_args__ = (
        sa.PrimaryKeyConstraint("event_id", "sink"),
        sa.Index("ix_deliveries_due", "sink", "priority", "next_attempt_at",
                 postgresql_where=sa.text("state = 'pending'"), sqlite_where=sa.text("state = 'pending'")),
        sa.Index("ix_deliveries_batch", "batch_id", postgresql_where=sa.text("batch_id IS NOT NULL"),
                 sqlite_where=sa.text("batch_id IS NOT NULL")),
        sa.Index("ix_deliveries_order", "sink", "order_key", "event_id",
                 postgresql_where=sa.text("state = 'pending' AND order_key IS NOT NULL"),
                 sqlite_where=sa.text("state = 'pending' AND order_key IS NOT NULL")),
        sa.Index("ix_deliveries_replay", "replay_id", "state", postgresql_where=sa.text("replay_id IS NOT NULL"),
                 sqlite_where=sa.text("replay_id IS NOT NULL")),
        sa.Index("ix_deliveries_dead", "sink", "event_id",
                 postgresql_where=sa.text("state = 'dead'"), sqlite_where=sa.text("state = 'dead'")),
        {"sqlite_with_rowid": False, "postgresql_partition_by": "RANGE (event_id)"},
    )  # fmt: skip

    event_id: str = Field(sa_type=IdText)
    sink: str = Field(sa_type=_text(63))
    webhook: str = Field(sa_type=_text(63))
    type: str = Field(sa_type=_text())
    state: DeliveryState = Field(sa_type=_text(16))
    # First attempts before retries before replays: none of them waits behind the next.
    priority: int = Field(default=Priority.FIRST)
    attempt_count: int = Field(default=0)
    # Tries that count against the schedule; a manual retry starts it again while `attempt_count` goes on.
    schedule_step: int = Field(default=0)
    next_attempt_at: datetime = Field(sa_type=UTCDateTime)
    lease_token: str | None = Field(default=None, sa_type=_text(32))
    replay: bool = Field(default=False)
    replay_id: str | None = Field(default=None, sa_type=IdText)
    # A batch is written down before it is first sent, so that it keeps its members and its id whatever happens.
    batch_id: str | None = Field(default=None, sa_type=IdText)
    # Deliveries of one sink and key go out one after the other; null where the sink asks for no order.
    order_key: str | None = Field(default=None, sa_type=_text())
    last_status: int | None = Field(default=None)
    last_error: str | None = Field(default=None, sa_type=_text())
    created_at: datetime = Field(sa_type=UTCDateTime)
    settled_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    # Attempt 1 where it succeeded, as nearly all do: a row of its own would be a fifth of the relay's writing.
    first_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    first_status: int | None = Field(default=None)
    first_duration_ms: float | None = Field(default=None)
    first_excerpt: str | None = Field(default=None, sa_type=_text())


class Attempt(SQLModel, table=True):
    """One HTTP try of a delivery, numbered from 1; a first one that succeeded stands in the delivery's own row."""

    __tablename__ = "attempts"
    __table_args__ = (
        sa.PrimaryKeyConstraint("event_id", "sink", "number"),
        {"sqlite_with_rowid": False, "postgresql_partition_by": "RANGE (event_id)"},
    )

    event_id: str = Field(sa_type=IdText)
    sink: str = Field(sa_type=_text(63))
    number: int
    at: datetime = Field(sa_type=UTCDateTime)
    status: int | None = Field(default=None)
    outcome: AttemptOutcome = Field(sa_type=_text(16))
    error: str | None = Field(default=None, sa_type=_text())
    duration_ms: float
    response_excerpt: str | None = Field(default=None, sa_type=_text())
    replay: bool = Field(default=False)


class ReplayState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Replay(SQLModel, table=True):
    """Events or dead deliveries owed to one sink again: a job that goes on after a restart from its `cursor`."""

    __tablename__ = "replays"

    id: str = Field(sa_type=IdText, primary_key=True)
    sink: str = Field(sa_type=_text(63))
    # What was asked for, as JSON: {"filter": {…}} over events or {"deliveries": {…}} over dead deliveries.
    selection: str = Field(sa_type=_text())
    rate_per_second: float | None = Field(default=None)
    state: ReplayState = Field(sa_type=_text(16))
    count: int
    last_seq: int = Field(sa_type=sa.BigInteger)  # events stored later are none of its business
    cursor: str | None = Field(default=None, sa_type=IdText)  # the last event taken up
    taken: int = Field(default=0)
    done: int = Field(default=0)
    failed: int = Field(default=0)
    error: str | None = Field(default=None, sa_type=_text())
    created_at: datetime = Field(sa_type=UTCDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UTCDateTime)


class StatCell(SQLModel, table=True):
    """Events that are alike in the fields of a view (`rollups.cells`); other fields are null."""

    __tablename__ = "stat_cells"

    # On SQLite the row's own number, which is one look less for each event that is looked up.
    id: int = Field(sa_column=sa.Column(RowNumber, primary_key=True, autoincrement=False))
    view: int = Field(sa_type=sa.SmallInteger)
    webhook: str = Field(sa_type=_text(63))
    type: str = Field(sa_type=_text())
    outcome: str = Field(sa_type=_text(16))
    permanent: bool | None = Field(default=None)
    test: bool
    automated: bool | None = Field(default=None)
    email_domain: str | None = Field(default=None, sa_type=_text())
    campaign_id: str | None = Field(default=None, sa_type=_text())
    custom_campaign: str | None = Field(default=None, sa_type=_text())
    reason: str | None = Field(default=None, sa_type=_text())
    reason_group: str | None = Field(default=None, sa_type=_text())


class StatCount(SQLModel, table=True):
    """How many events of a cell happened in one hour or day."""

    __tablename__ = "stat_counts"
    __table_args__ = (sa.PrimaryKeyConstraint("view", "unit", "start", "cell"), {"sqlite_with_rowid": False})

    view: int = Field(sa_type=sa.SmallInteger)
    unit: int = Field(sa_type=sa.SmallInteger)
    start: int
    cell: int = Field(sa_type=sa.BigInteger)
    count: int = Field(sa_type=sa.BigInteger)


class StatMember(SQLModel, table=True):
    """Whom one counted event was about, as digests: what unique recipients and messages are counted from."""

    __tablename__ = "stat_members"
    __table_args__ = (sa.PrimaryKeyConstraint("level", "hour", "seq"), {"sqlite_with_rowid": False})

    # The key first: where it is not, the integrity_check of SQLite 3.40 tells NULLs that are none.
    level: int = Field(sa_type=sa.SmallInteger)
    hour: int
    seq: int = Field(sa_type=sa.BigInteger)
    cell: int = Field(sa_type=sa.BigInteger)
    recipient: int = Field(sa_type=sa.BigInteger)
    message: int = Field(sa_type=sa.BigInteger)


class StatProgress(SQLModel, table=True):
    """The only row: events up to `seq` are counted. Who changes counts holds it locked."""

    __tablename__ = "stat_progress"

    id: int = Field(sa_column=sa.Column(sa.SmallInteger, primary_key=True, autoincrement=False))
    seq: int = Field(sa_type=sa.BigInteger)
    changes: int = Field(sa_type=sa.BigInteger)  # how often something was taken out: what is remembered is then stale
    digest_key: bytes = Field(sa_type=sa.LargeBinary)


class EventTrace(SQLModel, table=True):
    """The trace that an event came with; only while tracing is on."""

    __tablename__ = "event_traces"
    __table_args__ = ({"sqlite_with_rowid": False},)

    event_id: str = Field(sa_type=IdText, primary_key=True)
    traceparent: str = Field(sa_type=_text(64))


class Quarantined(SQLModel, table=True):
    """What came with valid credentials and could not be read as an event; the same bytes stay one row."""

    __tablename__ = "quarantine"
    __table_args__ = (sa.Index("ix_quarantine_received", "received_at", "id"),)

    id: str = Field(sa_type=IdText, primary_key=True)
    webhook: str = Field(sa_type=_text(63))
    received_at: datetime = Field(sa_type=UTCDateTime)
    reason: str = Field(sa_type=_text())
    body: bytes = Field(sa_type=sa.LargeBinary)


class LedgerEntry(SQLModel, table=True):
    """How many events of one webhook, or deliveries to one sink, were made and deleted on purpose: see `app.ledger`."""

    __tablename__ = "ledger"
    __table_args__ = (sa.PrimaryKeyConstraint("slot", "webhook", "sink", "writer"), {"sqlite_with_rowid": False})

    slot: str = Field(sa_type=SlotText)
    webhook: str = Field(sa_type=_text(63))
    sink: str = Field(sa_type=_text(63))  # "": the events themselves
    writer: int
    made: int = Field(sa_type=sa.BigInteger)
    erased: int = Field(sa_type=sa.BigInteger)
    expired: int = Field(sa_type=sa.BigInteger)


class ErasureState(StrEnum):
    RUNNING = "running"
    DONE = "done"


class Erasure(SQLModel, table=True):
    """A person's erasure: a job that goes on after a restart, and then its receipt, which tells nothing of whom."""

    __tablename__ = "erasures"

    id: str = Field(sa_type=IdText, primary_key=True)
    state: ErasureState = Field(sa_type=_text(16))
    addresses: str | None = Field(default=None, sa_type=_text())  # JSON, the one asked for first; null once it is done
    email_hash: str = Field(sa_type=_text(43))
    folded: bool
    keep_suppression: bool
    counts: str = Field(sa_type=_text())  # JSON: table -> rows
    requested_at: datetime = Field(sa_type=UTCDateTime)
    erased_at: datetime | None = Field(default=None, sa_type=UTCDateTime)


class RetentionMark(SQLModel, table=True):
    """Up to where retention has come."""

    __tablename__ = "retention_marks"

    name: str = Field(sa_type=_text(63), primary_key=True)
    value: str = Field(sa_type=_text())


class KeptPayload(SQLModel, table=True):
    """An event past payload retention that was still owed to a sink: looked at again until it is not."""

    __tablename__ = "kept_payloads"

    event_id: str = Field(sa_type=IdText, primary_key=True)


class SuppressionReason(StrEnum):
    """Why an address is not to be mailed, the strongest first: the one named where there is room for one."""

    COMPLAINT = "complaint"
    UNSUBSCRIBE = "unsubscribe"
    MANUAL = "manual"
    HARD_BOUNCE = "hard_bounce"
    BLOCKED = "blocked"
    SOFT_BOUNCES = "soft_bounces"


class SuppressionScope(StrEnum):
    """What must not be sent: anything to the address, or only what goes to one list."""

    ADDRESS = "address"
    LIST = "list"


class Suppression(SQLModel, table=True):
    """One reason in force not to mail an address: a function of the stored events and of the manual acts.

    `email_hash` stands in the place of the address of a person who was erased and shall stay suppressed.
    """

    __tablename__ = "suppressions"
    __table_args__ = (
        sa.Index("ix_suppressions_since", "since", "id"),
        sa.Index("ix_suppressions_email", "email"),
        sa.Index("ix_suppressions_email_domain", "email_domain", "since", "id"),
        sa.Index("ix_suppressions_reason", "reason", "since", "id"),
        sa.Index("ix_suppressions_scope", "scope", "since", "id"),
        sa.Index("ix_suppressions_list_id", "list_id", "since", "id", postgresql_where=sa.text("list_id IS NOT NULL"),
                 sqlite_where=sa.text("list_id IS NOT NULL")),
        sa.Index("ix_suppressions_email_hash", "email_hash", postgresql_where=sa.text("email_hash IS NOT NULL"),
                 sqlite_where=sa.text("email_hash IS NOT NULL")),
    )  # fmt: skip

    id: str = Field(sa_type=IdText, primary_key=True)  # made from address, reason and list
    email: str | None = Field(default=None, sa_type=_text())
    email_domain: str | None = Field(default=None, sa_type=_text())
    email_hash: str | None = Field(default=None, sa_type=_text(43))
    reason: SuppressionReason = Field(sa_type=_text(16))
    scope: SuppressionScope = Field(sa_type=_text(16))
    list_id: str | None = Field(default=None, sa_type=_text())
    since: datetime = Field(sa_type=UTCDateTime)
    event_id: str | None = Field(default=None, sa_type=IdText)
    comment: str | None = Field(default=None, sa_type=_text())


class SuppressionAct(SQLModel, table=True):
    """What a person did about an address: `add`, or `lift` with what it lifts (null: whatever it is) and until when."""

    __tablename__ = "suppression_acts"
    __table_args__ = (
        sa.Index("ix_suppression_acts_email", "email"),
        {"sqlite_autoincrement": True},
    )  # fmt: skip

    seq: int | None = Field(default=None, sa_column=sa.Column(RowNumber, primary_key=True, autoincrement=True))
    email: str = Field(sa_type=_text())
    act: str = Field(sa_type=_text(16))
    scope: SuppressionScope | None = Field(default=None, sa_type=_text(16))
    list_id: str | None = Field(default=None, sa_type=_text())
    reason: SuppressionReason | None = Field(default=None, sa_type=_text(16))
    comment: str = Field(sa_type=_text())
    at: datetime = Field(sa_type=UTCDateTime)
    until: datetime | None = Field(default=None, sa_type=UTCDateTime)


class AddressSpelling(SQLModel, table=True):
    """An address with capitals in its local part, found by its small letters. Others need no row."""

    __tablename__ = "address_spellings"
    __table_args__ = (sa.PrimaryKeyConstraint("folded", "email"), {"sqlite_with_rowid": False})

    folded: str = Field(sa_type=_text())
    email: str = Field(sa_type=_text())


class SinkState(SQLModel, table=True):
    """What must hold for a sink on every replica and over restarts."""

    __tablename__ = "sink_states"

    name: str = Field(sa_type=_text(63), primary_key=True)
    paused: bool = Field(default=False)
    paused_reason: str | None = Field(default=None, sa_type=_text())
    last_success_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    last_error: str | None = Field(default=None, sa_type=_text())
    last_error_at: datetime | None = Field(default=None, sa_type=UTCDateTime)


class Callback(SQLModel, table=True):
    """What the last look at Mailjet found in one slot (event type and backup) of one connection; no passwords."""

    __tablename__ = "callbacks"
    __table_args__ = (sa.PrimaryKeyConstraint("connection", "type", "backup"),)

    connection: str = Field(sa_type=_text(63))
    type: str = Field(sa_type=_text(16))
    backup: bool
    state: str = Field(sa_type=_text(16))
    holder: str | None = Field(default=None, sa_type=_text(63))
    held_by: str | None = Field(default=None, sa_type=_text())
    mailjet_id: str | None = Field(default=None, sa_type=_text(40))
    checked_at: datetime = Field(sa_type=UTCDateTime)
    error: str | None = Field(default=None, sa_type=_text())


class Expectation(SQLModel, table=True):
    """By when a webhook should hear of a type again, by its rhythm or its setting, and since when it has not."""

    __tablename__ = "expectations"
    __table_args__ = (sa.PrimaryKeyConstraint("webhook", "type"), {"sqlite_with_rowid": False})

    webhook: str = Field(sa_type=_text(63))
    type: str = Field(sa_type=_text(16))
    expected_by: datetime | None = Field(default=None, sa_type=UTCDateTime)
    silent_since: datetime | None = Field(default=None, sa_type=UTCDateTime)


class Completeness(SQLModel, table=True):
    """What Mailjet counted of one type on one day beside what is stored of it; days since 1970, UTC."""

    __tablename__ = "completeness"
    __table_args__ = (sa.PrimaryKeyConstraint("day", "connection", "type"), {"sqlite_with_rowid": False})

    day: int
    connection: str = Field(sa_type=_text(63))
    type: str = Field(sa_type=_text(16))
    expected: int = Field(sa_type=sa.BigInteger)
    stored: int = Field(sa_type=sa.BigInteger)
    checked_at: datetime = Field(sa_type=UTCDateTime)


class CompletenessLook(SQLModel, table=True):
    """When Mailjet was last asked what it counted, and from which day on that says something about us."""

    __tablename__ = "completeness_looks"

    connection: str = Field(sa_type=_text(63), primary_key=True)
    begun_on: int
    looked_at: datetime = Field(sa_type=UTCDateTime)
    error: str | None = Field(default=None, sa_type=_text())


class Backfill(SQLModel, table=True):
    """Missed events fetched from Mailjet's histories: a job that goes on after a restart from its place."""

    __tablename__ = "backfills"

    id: str = Field(sa_type=IdText, primary_key=True)
    connection: str = Field(sa_type=_text(63))
    since: datetime = Field(sa_type=UTCDateTime)
    until: datetime = Field(sa_type=UTCDateTime)
    types: str = Field(sa_type=_text())  # comma list
    deliver: bool
    rate_per_second: float
    state: ReplayState = Field(sa_type=_text(16))
    offset: int = Field(default=0, sa_type=sa.BigInteger)  # Mailjet's, of the page under way
    last_id: str = Field(default="", sa_type=_text(20))  # the message looked at last
    messages: int = Field(default=0)
    stored: int = Field(default=0)
    known: int = Field(default=0)
    deliveries: int = Field(default=0)
    error: str | None = Field(default=None, sa_type=_text())
    created_at: datetime = Field(sa_type=UTCDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UTCDateTime)


class ReplacedCallback(SQLModel, table=True):
    """A foreign callback that ours took the place of, kept whole so that `unregister` can put it back."""

    __tablename__ = "replaced_callbacks"
    __table_args__ = (sa.PrimaryKeyConstraint("connection", "type", "backup"),)

    connection: str = Field(sa_type=_text(63))
    type: str = Field(sa_type=_text(16))
    backup: bool
    url: str = Field(sa_type=_text())
    version: int
    replaced_at: datetime = Field(sa_type=UTCDateTime)


class SubscriptionState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class SubscriptionJob(SQLModel, table=True):
    """Many contacts put on a list at Mailjet, or taken off it: goes on after a restart from what is settled."""

    __tablename__ = "subscription_jobs"

    id: str = Field(sa_type=IdText, primary_key=True)
    connection: str = Field(sa_type=_text(63))
    list_id: str = Field(sa_type=_text(20))
    action: str = Field(sa_type=_text(16))
    contacts: str = Field(sa_type=_text())  # JSON as Mailjet takes it; emptied when the job has ended
    state: SubscriptionState = Field(sa_type=_text(16))
    count: int
    done: int = Field(default=0)
    failed: int = Field(default=0)
    mailjet_job: str | None = Field(default=None, sa_type=_text(20))  # Mailjet's job for the part under way
    error: str | None = Field(default=None, sa_type=_text())
    created_at: datetime = Field(sa_type=UTCDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UTCDateTime)


class Send(SQLModel, table=True):
    """A request to send messages, known by its Idempotency-Key: what became of each, but not what they say.

    While `lease_until` is ahead, `owner` works on it.
    """

    __tablename__ = "sends"
    __table_args__ = (
        sa.PrimaryKeyConstraint("connection", "key"),
        sa.Index("ix_sends_created_at", "created_at"),
    )

    connection: str = Field(sa_type=_text(63))
    key: str = Field(sa_type=_text(255))
    fingerprint: str = Field(sa_type=_text(64))
    messages: str = Field(sa_type=_text())  # JSON: see `app.connector.ledger`
    finished: bool = Field(default=False)
    owner: str = Field(sa_type=_text(64))
    lease_until: datetime = Field(sa_type=UTCDateTime)
    created_at: datetime = Field(sa_type=UTCDateTime)


class WatchMark(SQLModel, table=True):
    """How far a watch of contacts is. `scope` is what it watches: of another scope, it begins anew."""

    __tablename__ = "watch_marks"

    watch: str = Field(sa_type=_text(63), primary_key=True)
    scope: str = Field(sa_type=_text(64))
    since: int | None = Field(default=None, sa_type=sa.BigInteger)  # contacts created before are nothing new
    # Where the next look goes on; for new contacts alone, the second (Unix) up to which all were told.
    offset: int = Field(default=0, sa_type=sa.BigInteger)
    looked_at: datetime = Field(sa_type=UTCDateTime)


class WatchedContact(SQLModel, table=True):
    """A contact as a watch saw it last."""

    __tablename__ = "watched_contacts"
    __table_args__ = (sa.PrimaryKeyConstraint("watch", "contact_id"), {"sqlite_with_rowid": False})

    watch: str = Field(sa_type=_text(63))
    contact_id: str = Field(sa_type=_text(20))
    signature: str = Field(sa_type=_text(32))


class Lease(SQLModel, table=True):
    """Who may do a leader's duty, and until when."""

    __tablename__ = "leases"

    name: str = Field(sa_type=_text(63), primary_key=True)
    owner: str = Field(sa_type=_text(64))
    expires_at: datetime = Field(sa_type=UTCDateTime)


class Secret(SQLModel, table=True):
    """A secret that the service made for itself at its first start."""

    __tablename__ = "secrets"

    name: str = Field(sa_type=_text(63), primary_key=True)
    value: str = Field(sa_type=_text())


class EndedSession(SQLModel, table=True):
    """A session of the dashboard that somebody logged out of, or a link that was used, until it would have ended."""

    __tablename__ = "ended_sessions"

    id: str = Field(sa_type=_text(22), primary_key=True)
    expires_at: datetime = Field(sa_type=UTCDateTime)
