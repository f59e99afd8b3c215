"""Every metric, spelled once. Closed label sets, base units, counters present from the start.

One `Metrics` for one app, with a registry of its own, so that two apps in one process (tests, the demo) do not mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from app import __version__
from app.mailjet.operations import OPERATIONS
from app.mailjet.vocabulary import EVENT_TYPES
from app.models import AttemptOutcome

Labelled = TypeVar("Labelled", Counter, Gauge, Histogram)

UNKNOWN = "unknown"  # the label of what a caller names and we do not know: labels are never a caller's words
INGEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
DELIVERY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)

CONNECTION_KINDS = ("new", "reused")
FEED_CLIENTS = ("poll", "stream")
RETENTION_KINDS = ("events", "deliveries", "attempts", "payloads", "quarantine", "replays", "ledger")
STREAM_ENDINGS = ("client", "slow", "stopping", "error")


class Metrics:
    def __init__(self, *, webhooks: Iterable[str], sinks: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._make_of_receiving(self.registry)
        self._make_of_delivering(self.registry)
        self._make_of_mailjet_and_readers(self.registry)
        self._make_of_retention(self.registry)
        self._children: dict[tuple[object, ...], Any] = {}
        Info("jethook_build", "The release that runs", registry=self.registry).info({"version": __version__})
        self._make_calls_present()
        self._make_present(list(webhooks), list(sinks))
        self._make_feed_present()

    def _make_of_receiving(self, r: CollectorRegistry) -> None:
        self.ingest_requests = Counter(
            "jethook_ingest_requests", "Callback posts answered", ["webhook", "code"], registry=r
        )
        self.ingest_events = Counter(
            "jethook_ingest_events", "Elements of callback posts", ["webhook", "event", "result"], registry=r
        )
        self.ingest_duration = Histogram(
            "jethook_ingest_duration_seconds",
            "From the head of a post to its answer",
            buckets=INGEST_BUCKETS,
            registry=r,
        )
        self.commit_items = Histogram(
            "jethook_commit_batch_events", "Events that shared one transaction",
            buckets=(1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 5000), registry=r,
        )  # fmt: skip
        self.last_event = Gauge(
            "jethook_last_event_timestamp_seconds", "When the last event came", ["webhook", "event"], registry=r
        )

    def _make_of_delivering(self, r: CollectorRegistry) -> None:
        self.delivery_attempts = Counter(
            "jethook_delivery_attempts", "HTTP tries of deliveries", ["sink", "outcome"], registry=r
        )
        self.sink_connections = Counter(
            "jethook_sink_connections", "HTTP tries by the connection they got: made for them, or used before",
            ["sink", "kind"], registry=r,
        )  # fmt: skip
        self.delivery_duration = Histogram(
            "jethook_delivery_duration_seconds", "One HTTP try", ["sink"], buckets=DELIVERY_BUCKETS, registry=r
        )
        self.end_to_end = Histogram(
            "jethook_end_to_end_seconds", "From receiving an event to its sink's 2xx", ["sink"],
            buckets=DELIVERY_BUCKETS, registry=r,
        )  # fmt: skip
        self.deliveries = Gauge("jethook_deliveries", "Deliveries not settled", ["sink", "state"], registry=r)
        self.oldest_overdue = Gauge(
            "jethook_oldest_overdue_seconds",
            "How long the longest waiting due delivery is overdue",
            ["sink"],
            registry=r,
        )
        self.sink_paused = Gauge("jethook_sink_paused", "1 while the sink is paused", ["sink"], registry=r)
        self.sink_circuit_state = Gauge(
            "jethook_sink_circuit_state", "0 closed, 1 open, 2 half open", ["sink"], registry=r
        )

    def _make_of_mailjet_and_readers(self, r: CollectorRegistry) -> None:
        self.registration_ok = Gauge(
            "jethook_registration_ok",
            "1 where the callback at Mailjet is ours and alive",
            ["webhook", "event"],
            registry=r,
        )
        self.webhook_silent = Gauge(
            "jethook_webhook_silent", "1 where nothing came that should have", ["webhook", "event"], registry=r
        )
        self.completeness = Gauge(
            "jethook_completeness_ratio",
            "Events stored of those that Mailjet counted, over the settled days of the last week",
            ["connection", "event"], registry=r,
        )  # fmt: skip
        self.mailjet_requests = Counter(
            "jethook_mailjet_api_requests", "Calls of Mailjet's API", ["operation", "code"], registry=r
        )
        self.feed_clients = Gauge(
            "jethook_feed_clients", "Clients that wait for the feed, or stream", ["kind"], registry=r
        )
        self.feed_held = Gauge(
            "jethook_feed_held_seconds",
            "For how long writing transactions hold the feed back, as last seen",
            registry=r,
        )
        self.stats_lag = Gauge(
            "jethook_stats_lag_seconds",
            "For how long the oldest event not counted into the statistics has waited, as last seen",
            registry=r,
        )
        self.stream_ends = Counter("jethook_stream_ends", "Streams that ended, by reason", ["reason"], registry=r)

    def _make_of_retention(self, r: CollectorRegistry) -> None:
        self.retention_deleted = Counter(
            "jethook_retention_deleted", "Rows that retention has removed, payloads among them", ["kind"], registry=r
        )
        self.retention_success = Gauge(
            "jethook_retention_last_success_timestamp_seconds", "When retention last finished a round", registry=r
        )
        self.clock_ahead = Gauge(
            "jethook_clock_ahead_seconds",
            "How far this clock is ahead of the database's, or of the time that passed, as retention last saw",
            registry=r,
        )
        self.oldest_event = Gauge(
            "jethook_oldest_event_timestamp_seconds", "When the oldest event kept happened, as retention last saw",
            registry=r,
        )  # fmt: skip

    # --- once for each post: `labels()` costs more than the counting ---

    def request_answered(self, webhook: str, code: str, seconds: float) -> None:
        self._child(self.ingest_requests, webhook, code).inc()
        self.ingest_duration.observe(seconds)

    def events_received(self, webhook: str, event: str, *, stored: int, duplicates: int, now: float) -> None:
        if stored:
            self._child(self.ingest_events, webhook, event, "stored").inc(stored)
            self._child(self.last_event, webhook, event).set(now)
        if duplicates:
            self._child(self.ingest_events, webhook, event, "duplicate").inc(duplicates)

    def event_came_earlier(self, webhook: str, event: str, at: float) -> None:
        """Before this process started, in Unix seconds; what came since is newer."""
        if (self.last_event, webhook, event) not in self._children:
            self._child(self.last_event, webhook, event).set(at)

    def attempted(self, sink: str, outcome: str, seconds: float) -> None:
        self._child(self.delivery_attempts, sink, outcome).inc()
        self._child(self.delivery_duration, sink).observe(seconds)

    def arrived(self, sink: str, seconds: float) -> None:
        """A sink's 2xx, so long after the event was received."""
        self._child(self.end_to_end, sink).observe(seconds)

    def completeness_is(self, connection: str, event: str, ratio: float) -> None:
        self._child(self.completeness, connection, event).set(ratio)

    def feed_clients_are(self, kind: str, clients: int) -> None:
        self._child(self.feed_clients, kind).set(clients)

    def stream_ended(self, reason: str) -> None:
        self._child(self.stream_ends, reason).inc()

    def _child(self, metric: Labelled, *labels: str) -> Labelled:
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return cast("Labelled", child)

    def _make_present(self, webhooks: list[str], sinks: list[str]) -> None:
        for code in ("401", "404"):
            self.ingest_requests.labels(UNKNOWN, code)
        for webhook in webhooks:
            for code in ("200", "401", "413", "503"):
                self.ingest_requests.labels(webhook, code)
            for event in (*EVENT_TYPES, UNKNOWN):
                for result in ("stored", "duplicate"):
                    self.ingest_events.labels(webhook, event, result)
            for event in EVENT_TYPES:
                self.webhook_silent.labels(webhook, event)
            self.ingest_events.labels(webhook, UNKNOWN, "quarantined")
        for sink in sinks:
            for outcome in AttemptOutcome:
                self.delivery_attempts.labels(sink, outcome.value)
            for kind in CONNECTION_KINDS:
                self.sink_connections.labels(sink, kind)
            for gauge in (self.oldest_overdue, self.sink_paused, self.sink_circuit_state):
                gauge.labels(sink).set(0)
            for state in ("pending", "dead"):
                self.deliveries.labels(sink, state).set(0)
            self.delivery_duration.labels(sink)
            self.end_to_end.labels(sink)

    def _make_calls_present(self) -> None:
        for operation in ("list", "create", "update", "delete"):
            for code in ("200", "201", "204", "304", "400", "401", "429", "500", "unreachable"):
                self.mailjet_requests.labels(operation, code)
        for operation in OPERATIONS:
            self.mailjet_requests.labels(operation, "200")
            self.mailjet_requests.labels(operation, "unreachable")

    def _make_feed_present(self) -> None:
        for kind in FEED_CLIENTS:
            self.feed_clients.labels(kind)
        for reason in STREAM_ENDINGS:
            self.stream_ends.labels(reason)
        for kind in RETENTION_KINDS:
            self.retention_deleted.labels(kind)

    def retained(self, rows: Mapping[str, int], *, oldest: float | None, now: float) -> None:
        """A round of retention ended: rows removed by kind; times in Unix seconds."""
        for kind, number in rows.items():
            self.retention_deleted.labels(kind).inc(number)
        self.retention_success.set(now)
        self.oldest_event.set(now if oldest is None else oldest)

    def mailjet_answered(self, operation: str, code: str) -> None:
        self._child(self.mailjet_requests, operation, code).inc()

    def connection_counter(self, sink: str) -> Callable[[bool], None]:
        """For one sink; told of each connection that a request got, and whether it was used before."""
        new, reused = (self.sink_connections.labels(sink, kind) for kind in CONNECTION_KINDS)
        return lambda was_used: (reused if was_used else new).inc()
