"""create_app(settings): the one place where the parts meet."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from app import __version__, health
from app.alerts.service import Alerts, is_wanted
from app.clock import utc_now
from app.completeness.backfill_queries import running as running_backfills
from app.completeness.duties import CompletenessDuties
from app.connector.jobs import running_jobs
from app.connector.service import Connector
from app.credentials import callback_passwords, derive, load_secret_key, made_api_key, registered_passwords
from app.dashboard import routes as dashboard_routes
from app.dashboard.access import Access
from app.dashboard.desk import Desk
from app.dashboard.pages import Pages
from app.dashboard.pulse import NewEvents, Pulse
from app.dashboard.sessions import Sessions
from app.db import Database
from app.delivery import routes as delivery_routes
from app.delivery.worker import Relay
from app.dispatch import sink_states
from app.dispatch.matching import Matcher
from app.dispatch.service import Handover, NoWorker
from app.erasure import routes as erasure_routes
from app.erasure.queries import unfinished as unfinished_erasures
from app.erasure.service import Erasures
from app.errors import DatabaseFault
from app.group_commit import GroupCommit
from app.http import ApiKeys, BodyLimit, install_problem_handlers
from app.ingest import quarantine
from app.ingest.auth import CallbackAuth
from app.ingest.routes import ReceiveFirst, Receiver, openapi_path
from app.ingest.service import Ingest
from app.lookout import Lookout
from app.maintenance.clock_watch import ClockWatch
from app.maintenance.leader import REMEMBERED_SECONDS, Leadership
from app.maintenance.retention import Report, Retention, Rules
from app.metrics import Metrics
from app.migrate import migrate
from app.operator_events import NOBODY, Herald
from app.query import exports as export_routes
from app.query import feed_routes, recipient_routes, suppression_routes
from app.query import routes as query_routes
from app.query.feed import Feed
from app.registration import routes as registration_routes
from app.registration.service import Registrar, mailjet_clients, pause
from app.replay import routes as replay_routes
from app.replay.queries import unfinished as unfinished_replays
from app.replay.selection import recipients
from app.replay.service import Replays
from app.rollups.store import uncounted as uncounted_events
from app.settings import Settings
from app.silence.keeper import SilenceKeeper
from app.silence.queries import last_events
from app.sinks import routes as sink_routes
from app.sinks.service import Sinks
from app.stats import routes as stats_routes
from app.stats.keeper import StatsKeeper
from app.suppressions.digest import address_digest
from app.suppressions.keeping import Keeper, policy_of
from app.tracing.switch import make_tracer

log = structlog.get_logger(__name__)

REFRESH_SECONDS = 10.0
WARMING_SECONDS = 5.0  # for the dashboard to get ready, where the service stops right after its start
MAX_STRANGERS_BODY_BYTES = 64 * 1024  # FastAPI reads a body before it asks for a key
MAX_REST_BODY_BYTES = 1024 * 1024
MAX_CONNECTOR_BODY_BYTES = 24 * 1024 * 1024  # Mailjet takes attachments of 15 MB, which are 20 MB as base64


class Service:
    """Everything one process runs, made from the settings; `start` and `stop` on the event loop.

    Opens and migrates the database. Raises DatabaseFault when that cannot be done.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database_url.get_secret_value())
        migrate(self.database)
        secret_key = load_secret_key(settings, self.database)
        self.passwords = callback_passwords(settings, secret_key)
        self.made_api_key = made_api_key(settings, secret_key)
        self.sessions = make_sessions(settings, secret_key, self.made_api_key)
        self.stopping = False
        self.on_stop_request: Callable[[], None] = lambda: None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.metrics = Metrics(webhooks=settings.effective_webhooks, sinks=settings.sinks)
        self.commits = GroupCommit(self.database)
        self.feed = Feed(self.database, on_clients=self.metrics.feed_clients_are)
        # SQLite has one process; on PostgreSQL others may receive, too.
        shared = None if self.database.is_sqlite else NewEvents(self.database, self.feed)
        self.pulse = Pulse(self.metrics, count_new=shared)
        self.metrics.feed_held.set_function(lambda: self.feed.horizon.held_seconds)
        self.database.write(lambda c: sink_states.remember_sinks(c, settings.sinks))
        self.alerts = make_alerts(settings, self.database, stored=lambda: self.relay.look_everywhere())  # noqa: PLW0108  made below
        herald: Herald = self.alerts or NOBODY
        self.herald = herald
        self.tracer = make_tracer(os.environ, self.database)
        self.keeper = Keeper(policy_of(settings), herald)
        self.digest = partial(address_digest, secret_key)
        self.lookout = Lookout(self.database)
        self.relay = Relay(
            settings.sinks, database=self.database, commits=self.commits, metrics=self.metrics, herald=herald,
            address_rules=settings.address_rules, tracer=self.tracer, on_ring=self.lookout.look_soon,
        )  # fmt: skip
        self.recipients = recipients(settings.sinks)
        worker: Handover = self.relay if self.delivers else NoWorker()
        self.ingest = Ingest(
            settings.effective_webhooks, matcher=Matcher(settings.sinks), commits=self.commits, worker=worker,
            observe=self._committed, herald=herald, keeper=self.keeper,
            traces=self.tracer.book if self.tracer is not None else None,
        )  # fmt: skip
        self.exports = export_routes.Exports(self.database, stopping=lambda: self.stopping)
        self.receiver = Receiver(
            self.ingest, CallbackAuth(settings.instance, self.passwords), self.metrics,
            max_body_bytes=settings.max_body_bytes, stopping=lambda: self.stopping, tracer=self.tracer,
        )  # fmt: skip
        self._make_duties()

    def _make_duties(self) -> None:
        """What runs in the background, and who may do it."""
        settings = self.settings
        # One lease for all that one replica does for the others, asked for once for all of them.
        self.leadership = Leadership(
            self.database, "duties", self.relay.lease_token, remembered_seconds=REMEMBERED_SECONDS
        )
        self.replays = Replays(self.recipients, self.database, self.relay.lease_token, self.relay.look_again)
        self.erasures = Erasures(self.database, self.digest, self.relay.lease_token)
        self.registrar = make_registrar(settings, self.database, self.metrics, self.herald)
        self.connector = Connector(
            settings, self.database, owner=self.relay.lease_token, observe=self.metrics.mailjet_answered,
            stored=self._watched,
        )  # fmt: skip
        self.completeness = CompletenessDuties(
            settings, self.connector.doors, self.database, self.leadership, self.relay.lease_token, keeper=self.keeper,
            stored=self._watched, on_ratio=self.metrics.completeness_is,
        )  # fmt: skip
        self._clock_watch = ClockWatch(self.database)
        self.stats = StatsKeeper(
            self.database, self.feed.horizon, self.leadership.may_lead, on_lag=self.metrics.stats_lag.set,
            retention_days=settings.stats_retention_days, ahead=self._clock_watch.ahead_seconds,
        )  # fmt: skip
        self._background: list[asyncio.Task[None]] = []
        self._background_stop = asyncio.Event()

    @property
    def delivers(self) -> bool:
        """Does this process do what runs in the background?"""
        return self.settings.role != "receive"

    @property
    def keys(self) -> ApiKeys:
        full = [key.get_secret_value() for key in self.settings.api_keys]
        read = [key.get_secret_value() for key in self.settings.read_api_keys]
        send = [key.get_secret_value() for key in self.settings.send_api_keys]
        return ApiKeys(full + ([self.made_api_key] if self.made_api_key else []), read, send)

    async def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        if self.alerts is not None:
            await self.alerts.start()
        self._run(pulse=self.pulse.run(self._background_stop), last_events=self._recall_last_events())
        if self.delivers:
            await self.relay.start()
            self.connector.start()
            self.completeness.start()
            self._watch_out()
            self._run(
                registration=self.registrar.run(self._background_stop, self.leadership.may_lead),
                replays=self.replays.run(self._background_stop), retention=self._keep_retention(),
                erasures=self.erasures.run(self._background_stop), stats=self.stats.run(self._background_stop),
                rhythm=self._keep_rhythm(), lookout=self.lookout.run(self._background_stop),
            )  # fmt: skip
        else:
            self._run(registration=self._watch_registration())

    async def _recall_last_events(self) -> None:
        """A restart must not hide for how long nothing has come: a look into an index for each webhook and type."""
        now = utc_now()
        keys = [(name, t) for name, webhook in self.settings.effective_webhooks.items() for t in webhook.events]
        try:
            found = await self.database.run_read(lambda c: last_events(c, keys, now))
        except Exception as error:  # noqa: BLE001  a figure only; what comes from now on is known anyway
            log.warning("metrics.last_events_unknown", error=type(error).__name__)
            return
        for (webhook, event_type), at in found.items():
            if at is not None:
                self.metrics.event_came_earlier(webhook, event_type, at.timestamp())

    def _run(self, **duties: Coroutine[Any, Any, None]) -> None:
        self._background += [asyncio.create_task(duty, name=name) for name, duty in duties.items()]

    def _watch_out(self) -> None:
        """For what others have left: to be done by whoever sees it first."""
        self.lookout.add("replays", unfinished_replays(), self.replays.look_again)
        self.lookout.add("erasures", unfinished_erasures(), self.erasures.look_again)
        self.lookout.add("subscriptions", running_jobs(), self.connector.subscriptions.wake)
        self.lookout.add("backfills", running_backfills(), self.completeness.backfills.wake)
        self.lookout.add("stats", uncounted_events(), self.stats.wake)

    async def _keep_retention(self) -> None:
        retention = Retention(
            retention_rules(self.settings), self.database, report=self._retained, ahead=self._clock_watch.ahead_seconds
        )
        await retention.run(self._background_stop, self.leadership.may_lead)

    def _retained(self, found: Report, at: datetime) -> None:
        oldest = None if found.oldest is None else found.oldest.timestamp()
        self.metrics.clock_ahead.set(found.ahead_seconds)
        if not found.is_held:
            self.metrics.retained(found.rows, oldest=oldest, now=at.timestamp())

    async def _keep_rhythm(self) -> None:
        keeper = SilenceKeeper(
            self.settings.effective_webhooks, self.database, self.leadership.may_lead, herald=self.herald,
            on_silence=lambda webhook, event, silent: self.metrics.webhook_silent.labels(webhook, event).set(silent),
        )  # fmt: skip
        await keeper.run(self._background_stop)

    async def _watch_registration(self) -> None:
        """Learn now and then what the replica that registers has found, for `/readyz`."""
        while not self._background_stop.is_set():
            try:
                await self.registrar.refresh_state()
            except DatabaseFault as fault:
                log.warning("registration.refresh_failed", error=str(fault))
            await pause(self._background_stop, REFRESH_SECONDS)

    def _committed(self, events: int) -> None:
        self.metrics.commit_items.observe(events)
        self.feed.wake()
        self.stats.wake()

    def _watched(self, events: int) -> None:
        """Contacts, or what a backfill found, became events: on the event loop, and owed to whoever delivers."""
        self._committed(events)
        self.relay.look_again()

    def look_again(self) -> None:
        """From any thread: something may be due now."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.relay.look_everywhere)

    def registration_state(self) -> dict[str, Any]:
        return self.registrar.state()

    def components(self) -> dict[str, Any]:
        sinks = {name: self.relay.snapshot(name) for name in self.settings.sinks}
        return {"sinks": sinks, "feed": self.feed.snapshot()}

    async def stop(self) -> None:
        """Answer what is in flight, finish what is being sent, give the rest back, close the database."""
        self.stopping = True
        self._background_stop.set()
        for wake in (self.stats.wake, self.erasures.look_again, self.lookout.look_soon):
            wake()
        self.feed.close()
        await self.receiver.idle()
        if self.delivers:
            await self.relay.stop()
        await self.completeness.stop()
        await self.connector.stop()
        await self.commits.drain()
        if self.alerts is not None:  # after all who tell it something
            await self.alerts.stop()
        await self.erasures.stop()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self.delivers:
            await self.leadership.release()
        await asyncio.to_thread(self.exports.close)
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)
        await asyncio.to_thread(self.database.close)


def make_sessions(settings: Settings, secret_key: bytes, made_key: str | None) -> Sessions:
    """The dashboard's sessions: the same on every replica, and of this installation only."""
    full = [key.get_secret_value() for key in settings.api_keys] + ([made_key] if made_key else [])
    read = [key.get_secret_value() for key in settings.read_api_keys]
    return Sessions(derive(secret_key, f"dashboard:{settings.instance}").encode(), full=full, read=read)


def make_desk(service: Service) -> Desk:
    """The parts of the service that the dashboard shows and steers."""
    settings = service.settings
    return Desk(
        settings=settings, database=service.database, pulse=service.pulse, feed=service.feed,
        access=Access(service.sessions, service.database, settings.public_url),
        pages=Pages(settings.instance),
        sinks=Sinks(settings, service.database, service.relay, service.herald),
        registrar=service.registrar, ingest=service.ingest, recipients=service.recipients,
        look_again=service.look_again, replays_look_again=service.replays.look_again,
        on_stream_end=service.metrics.stream_ended, keeper=service.keeper, digest=service.digest,
    )  # fmt: skip


def retention_rules(settings: Settings) -> Rules:
    return Rules(settings.retention_days or None, settings.payload_retention_days, settings.retention_deletes_owed)


def make_alerts(settings: Settings, database: Database, *, stored: Callable[[], None] = lambda: None) -> Alerts | None:
    """None while no sink asks for operator events: then they cost nothing."""
    if not is_wanted(settings.sinks):
        return None
    return Alerts(settings.sinks, database, instance=settings.instance, stored=stored)


def make_registrar(
    settings: Settings, database: Database, metrics: Metrics | None = None, herald: Herald | None = None
) -> Registrar:
    """The registrar of a migrated database, with the installation's own passwords."""
    # A command tells what it finds as well: the service would see no change any more.
    herald = herald or make_alerts(settings, database) or NOBODY
    passwords = callback_passwords(settings, load_secret_key(settings, database))

    def count_call(operation: str, code: str) -> None:
        if metrics is not None:
            metrics.mailjet_requests.labels(operation, code).inc()

    def note_slot(webhook: str, event_type: str, ok: bool) -> None:
        if metrics is not None:
            metrics.registration_ok.labels(webhook, event_type).set(ok)

    return Registrar(
        settings, database, registered_passwords(passwords), client_factory=mailjet_clients(count_call),
        owner=secrets.token_hex(4), on_slot=note_slot, herald=herald,
    )  # fmt: skip


class App(FastAPI):
    """FastAPI with an entrance of its own, so that something can stand before all its layers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.entrance: ASGIApp = super().__call__

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.entrance(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """The whole service as an ASGI app; its lifespan starts and stops the background work."""
    service = Service(settings)
    desk = make_desk(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        warming = asyncio.create_task(asyncio.to_thread(dashboard_routes.warm, desk), name="dashboard")
        yield
        await asyncio.wait([warming], timeout=WARMING_SECONDS)  # it reads the database, which is about to be closed
        await service.stop()

    app = App(
        title="Jethook",
        version=__version__,
        summary="Keeps, relays and answers questions about what Mailjet says happened to every message.",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect names whatever host the caller claimed, and is no answer of ours
        generate_unique_id_function=lambda route: route.name,  # a generated client calls it `list_events`
    )
    app.state.service = service
    app.router.routes.insert(0, service.receiver.route())
    keys = service.keys
    app.include_router(_rest_of(service, keys))
    app.include_router(dashboard_routes.build_router(desk))
    app.add_middleware(  # callbacks have a limit of their own
        BodyLimit, most=MAX_STRANGERS_BODY_BYTES, but="/webhooks/", larger=lambda scope: _larger_body(scope, keys)
    )
    _document_receiving(app)
    install_problem_handlers(app)
    app.entrance = ReceiveFirst(app.entrance, service.receiver)
    return app


def _rest_of(service: Service, keys: ApiKeys) -> APIRouter:
    """Everything under `/v1`, and what tells of health."""
    settings, rest = service.settings, APIRouter()
    rest.include_router(recipient_routes.build_router(service.database, keys, service.digest))
    rest.include_router(
        suppression_routes.build_router(service.database, keys, service.keeper, service.digest, service.look_again)
    )
    rest.include_router(query_routes.build_router(service.database, keys, settings.page_seconds))
    rest.include_router(export_routes.build_router(service.exports, keys))
    rest.include_router(feed_routes.build_router(service.feed, keys, service.metrics.stream_ended))
    rest.include_router(stats_routes.build_router(service.database, keys))
    rest.include_router(delivery_routes.build_router(service.database, keys, service.look_again))
    rest.include_router(quarantine.build_router(service.database, keys, service.ingest))
    rest.include_router(sink_routes.build_router(settings, service.database, keys, service.relay, service.herald))
    rest.include_router(
        replay_routes.build_router(service.recipients, service.database, keys, service.replays.look_again)
    )
    rest.include_router(erasure_routes.build_router(service.erasures, service.database, keys))
    rest.include_router(registration_routes.build_router(settings, service.database, keys, service.registrar))
    rest.include_router(service.completeness.build_router(keys))
    rest.include_router(service.connector.build_router(keys))
    rest.include_router(
        health.build_router(
            service.database, service.metrics.registry, registration_state=service.registration_state,
            stopping=lambda: service.stopping, components=service.components,
        )
    )  # fmt: skip
    return rest


def _larger_body(scope: Scope, keys: ApiKeys) -> int | None:
    """Only from who has a key. Messages with attachments and long lists of contacts are larger than other requests."""
    told = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    if not keys.knows(told.decode("latin-1")):
        return None
    return MAX_CONNECTOR_BODY_BYTES if scope["path"].startswith("/v1/connections/") else MAX_REST_BODY_BYTES


def _document_receiving(app: FastAPI) -> None:
    """Put the receiving route, which is plain ASGI, into `/openapi.json`."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        schema["paths"]["/webhooks/{webhook}"] = openapi_path()
        schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["callback"] = {
            "type": "http",
            "scheme": "basic",
            "description": "User `JETHOOK_INSTANCE`, password the webhook's callback password.",
        }
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
