"""accept(): the whole story of one POST after its credentials were found good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

import structlog

from app.clock import from_micros
from app.dispatch.matching import Matcher
from app.dispatch.service import Handover, fan_out
from app.errors import Unavailable
from app.group_commit import GroupCommit, Lane
from app.ingest.identity import content_id, event_id
from app.ingest.rows import event_row
from app.ingest.writer import Post, PostWriter
from app.mailjet.payloads import MailjetEvent, Reject, parse_events
from app.operator_events import EVENT_QUARANTINED, NOBODY, Change, Herald
from app.settings import WebhookSettings
from app.suppressions.keeping import Keeper
from app.tracing.book import TraceBook

log = structlog.get_logger(__name__)

MAX_WAITING_BYTES = 64 * 1024 * 1024  # bodies accepted and not yet committed; beyond it posts get 503
MAX_WAITING_EVENTS = 50_000
LARGE_BODY_BYTES = 256 * 1024
ELEMENTS_AT_ONCE = 500
MAX_REJECTS = 1000  # of one body; beyond, it is nothing of Mailjet's, and one entry keeps it whole


class Accepted(NamedTuple):
    """The answer to one POST, in elements of its body: received = stored + duplicates + quarantined."""

    received: int
    stored: int
    duplicates: int
    quarantined: int
    by_type: dict[str, tuple[int, int]]  # type -> (stored, duplicates) by the post's own webhook


class Ingest:
    """Turns bodies into stored events. One for the process, on the event loop."""

    def __init__(
        self, webhooks: Mapping[str, WebhookSettings], *, matcher: Matcher, commits: GroupCommit, worker: Handover,
        observe: Callable[[int], None] = lambda events: None, herald: Herald = NOBODY, keeper: Keeper | None = None,
        traces: TraceBook | None = None,
    ) -> None:  # fmt: skip
        self.webhooks = dict(webhooks)
        self._matcher = matcher
        self._worker = worker
        self._herald = herald
        self._lane: Lane[Post, set[str]] = commits.lane(PostWriter(worker, observe, keeper, traces))
        self._hearers: dict[tuple[str, str], tuple[str, ...]] = {}
        self._waiting_bytes = 0
        self._waiting_events = 0

    async def accept(self, webhook: str, body: bytes, *, now_micros: int, trace: str | None = None) -> Accepted:
        """Store what `body` holds and what it causes; returns only after the commit. `trace` is what it came with.

        Raises Unavailable when too much waits already, TimeoutError when the database hangs, and whatever it raised.
        """
        if self._waiting_bytes + len(body) > MAX_WAITING_BYTES or self._waiting_events > MAX_WAITING_EVENTS:
            raise Unavailable("more is waiting for the database than fits in memory")
        size = len(body)
        self._waiting_bytes += size
        try:
            # Python's parser is quick, but seconds of it in one go would stop everything else.
            elements = await asyncio.to_thread(parse_events, body) if size > LARGE_BODY_BYTES else parse_events(body)
            elements = _bounded(webhook, body, elements)
            post = await self._post(webhook, elements, now_micros)
        finally:
            self._waiting_bytes -= size
        if not elements:
            return Accepted(0, 0, 0, 0, {})
        post.trace = trace
        count = len(elements)
        self._waiting_bytes += size
        self._waiting_events += count
        try:
            new = await self._lane.submit(post)  # a caller that goes away leaves; the write goes on
        finally:
            self._waiting_bytes -= size
            self._waiting_events -= count
        if post.quarantined:
            self._tell_quarantined(webhook, post, now_micros)
        return _answer(elements, post, new)

    def _tell_quarantined(self, webhook: str, post: Post, now_micros: int) -> None:
        first_id, _, _, reason, _ = post.quarantined[0]
        self._herald.tell(Change(
            EVENT_QUARANTINED, from_micros(now_micros), webhook=webhook, error=reason, count=len(post.quarantined),
            details={"first_quarantine_id": first_id},
        ))  # fmt: skip

    @property
    def waiting_events(self) -> int:
        """Elements read and not yet committed."""
        return self._waiting_events

    def hearers(self, webhook: str, event_type: str) -> tuple[str, ...]:
        """The webhooks an arrival is stored for: the one it came to, and all of its connection that watch the type."""
        known = self._hearers.get((webhook, event_type))
        if known is None:
            connection = self.webhooks[webhook].connection
            known = (webhook, *(
                name for name, other in self.webhooks.items()
                if name != webhook and other.connection == connection and event_type in other.events
            ))  # fmt: skip
            if len(self._hearers) < Matcher.MOST_REMEMBERED:
                self._hearers[webhook, event_type] = known
        return known

    async def _post(self, webhook: str, elements: list[MailjetEvent | Reject], now_micros: int) -> Post:
        post = Post()
        for number, element in enumerate(elements, 1):
            if isinstance(element, Reject):
                row = (content_id(webhook, element.body), webhook, now_micros, element.reason, element.body)
                post.quarantined.append(row)
            else:
                names = self.hearers(webhook, element.type)
                post.elements.append(tuple(self._add(post, name, element, now_micros) for name in names))
            if number % ELEMENTS_AT_ONCE == 0:
                await asyncio.sleep(0)  # others have their turn
        return post

    def _add(self, post: Post, webhook: str, event: MailjetEvent, now_micros: int) -> str:
        identity = event_id(webhook, event.time, event.payload)
        if identity in post.events:
            return identity
        connection = self.webhooks[webhook].connection
        row = event_row(identity, event, webhook=webhook, connection=connection, received_micros=now_micros)
        post.events[identity] = row
        is_test = row[7]
        targets = [] if is_test else self._matcher.targets(webhook, event.type, row)
        if targets:
            post.deliveries[identity], jobs = fan_out(
                event_id=identity, webhook=webhook, event_type=row[3], event=row, targets=targets,
                worker=self._worker, now_micros=now_micros,
            )  # fmt: skip
            if jobs:
                post.jobs[identity] = jobs
        return identity


def _bounded(webhook: str, body: bytes, elements: list[MailjetEvent | Reject]) -> list[MailjetEvent | Reject]:
    """The same, but rejects beyond a thousand are kept together: the first of them stands for the whole body."""
    if len(elements) <= MAX_REJECTS:
        return elements
    rejects = sum(isinstance(element, Reject) for element in elements)
    if rejects <= MAX_REJECTS:
        return elements
    log.warning("ingest.mostly_unreadable", webhook=webhook, elements=len(elements), rejects=rejects)
    whole = Reject(body, f"{rejects} elements that are no events; the whole body is kept here")
    return [element for element in elements if isinstance(element, MailjetEvent)] + [whole]


def _answer(elements: list[MailjetEvent | Reject], post: Post, new: set[str]) -> Accepted:
    """An element is stored if it is new for any webhook that hears of it; twice in one body it is stored once."""
    by_type: dict[str, tuple[int, int]] = {}
    stored = 0
    events = [element for element in elements if isinstance(element, MailjetEvent)]
    for element, ids in zip(events, post.elements, strict=True):
        is_new = not new.isdisjoint(ids)
        new.difference_update(ids)
        stored += is_new
        before = by_type.get(element.type, (0, 0))
        by_type[element.type] = (before[0] + is_new, before[1] + (not is_new))
    return Accepted(len(elements), stored, len(events) - stored, len(elements) - len(events), by_type)
