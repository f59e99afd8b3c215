"""Carries registration plans out at Mailjet: at start, on a timer, and when somebody asks.

Each connection is on its own, and each slot within it: what fails is reported, told again soon, and stops nothing else.
Receiving never depends on any of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import structlog
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from app.clock import utc_now
from app.db import Database
from app.errors import DatabaseFault, WebhookNotFound
from app.mailjet.client import (
    ActualCallback,
    MailjetCallbackNotFound,
    MailjetClient,
    MailjetCredentialsRefused,
    MailjetDuplicate,
    MailjetError,
    MailjetRateLimited,
    MailjetUnreachable,
    Observe,
)
from app.operator_events import NOBODY, Herald
from app.registration import queries
from app.registration.changes import changes_between
from app.registration.plan import (
    DEAD,
    Action,
    Kind,
    Original,
    Slot,
    SlotKey,
    list_slots,
    plan_leftovers,
    plan_registration,
    plan_removal,
    shown_url,
    wanted_slots,
)
from app.registration.queries import CallbackState, Checked
from app.registration.report import ConnectionReport, RegistrationReport, Result
from app.settings import ConnectionSettings, Settings

log = structlog.get_logger(__name__)

RECONCILED = "registration.reconciled"
UNREGISTERED = "registration.unregistered"
CONFLICT_FOUND = "registration.conflict"
FAILED = "registration.failed"
SWITCHED_OFF = "registration.switched_off"

POLL_SECONDS = 3.0  # how often a replica asks whether it may lead, well within a lease
REFRESH_POLLS = 3  # of one that may not, between two reads of what the leader found
FIRST_BACKOFF_SECONDS = 5.0
MOST_BACKOFF_SECONDS = 300.0
MOST_RETRY_AFTER_SECONDS = 3600.0

T = TypeVar("T")
ClientFactory = Callable[[str, ConnectionSettings], MailjetClient]
MayLead = Callable[[], Awaitable[bool]]
OnSlot = Callable[[str, str, bool], None]
"""Called with webhook, event type, and whether its callback at Mailjet is ours and alive."""
Pause = Callable[[asyncio.Event, float], Awaitable[None]]
Planner = Callable[[Sequence[ActualCallback]], list[Action]]

# What hits one slot in this way hits them all: the others are spared the wait.
_HITS_ALL = (MailjetCredentialsRefused, MailjetUnreachable, MailjetRateLimited)


def mailjet_clients(observe: Observe | None = None) -> ClientFactory:
    """Makes the client of a connection that has keys; `observe` hears of every HTTP call."""

    def make(name: str, connection: ConnectionSettings) -> MailjetClient:
        assert connection.api_key is not None
        assert connection.secret_key is not None
        secret = connection.secret_key.get_secret_value()
        return MailjetClient(connection.base_url, connection.api_key, secret, connection=name, observe=observe)

    return make


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait that long, or until told to stop."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


def retry_delay(failures: int, *, every_seconds: float, retry_after_seconds: float, jitter: float) -> float:
    """Seconds until the next look after that many failed ones in a row (from 1).

    Doubles from 5 s and stays within the regular interval (300 s without one) unless Mailjet asked for longer.
    `jitter`, from 0 to 1, adds up to a fifth, so that many services do not come back at once.
    """
    doubled = FIRST_BACKOFF_SECONDS * (1 << min(failures - 1, 10))
    delay = min(doubled, every_seconds or MOST_BACKOFF_SECONDS, MOST_BACKOFF_SECONDS)
    return max(delay, min(retry_after_seconds, MOST_RETRY_AFTER_SECONDS)) * (1 + 0.2 * jitter)


class Registrar:
    """Keeps Mailjet's callbacks as the settings want them.

    `passwords` holds, for each webhook, the one to register: save it before, since events may arrive at once.
    `owner` names this replica in the log. `on_slot` feeds the gauge of each webhook and type. Every database error
    leaves as DatabaseFault, because SQLAlchemy's own would show the statement's values, a foreign URL among them.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        passwords: Mapping[str, str],
        *,
        client_factory: ClientFactory,
        owner: str,
        now: Callable[[], datetime] = utc_now,
        on_slot: OnSlot | None = None,
        herald: Herald = NOBODY,
        pause: Pause = pause,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._database = database
        self._client_factory = client_factory
        self._owner = owner
        self._now = now
        self._herald = herald
        self._on_slot = on_slot or (lambda webhook, event_type, ok: None)
        self._pause = pause
        self._jitter = jitter
        self._slots = list_slots(settings)
        self._wanted = wanted_slots(settings, passwords)
        self._turn = asyncio.Lock()
        self._told: set[str] = set()
        self._states: dict[tuple[str, SlotKey], CallbackState] = {}
        self._refusals = 0  # in a row, to lead
        for wanted in self._wanted:
            self._gauge(wanted.slot, CallbackState.PENDING)

    # What users and programs ask for

    async def reconcile(self, *, webhook: str | None = None, dry_run: bool = False) -> RegistrationReport:
        """Bring Mailjet's callbacks in line once; a dry run only looks, and writes nothing down.

        `webhook` restricts it to the slots which that webhook watches, also where another one holds them. Needs no
        leadership: two replicas that do this together end with the same callbacks. Raises WebhookNotFound and
        DatabaseFault; what fails at Mailjet is in the report.
        """
        if webhook is not None and webhook not in self._settings.effective_webhooks:
            raise WebhookNotFound(f"webhook {webhook!r} is not configured")
        slots = [slot for slot in self._slots if webhook is None or webhook in slot.watchers]
        names = dict.fromkeys(slot.connection for slot in slots)
        async with self._turn:
            parts = await _all(self._reconcile_connection(n, slots, webhook is None, dry_run) for n in names)
        report = RegistrationReport(tuple(parts), dry_run)
        if not dry_run:
            self._tell(RECONCILED, report)
        return report

    async def unregister(self, *, webhook: str | None = None, dry_run: bool = False) -> RegistrationReport:
        """Remove our own callbacks from every configured connection, or put back what we had replaced.

        All of this instance's, also under names no longer configured; with `webhook` only those whose URL bears that
        name. Needs keys, but no public URL. Raises DatabaseFault.
        """
        async with self._turn:
            parts = await _all(self._unregister_at(n, webhook, dry_run) for n in self._settings.effective_connections)
        report = RegistrationReport(tuple(parts), dry_run)
        if not dry_run:
            self._tell(UNREGISTERED, report)
        return report

    async def run(self, stop: asyncio.Event, may_lead: MayLead, *, poll_seconds: float = POLL_SECONDS) -> None:
        """Reconcile at start, every `register_every_seconds` (0: until it worked once), and sooner after a failure.

        `may_lead` is asked every few seconds, which is what renews a lease; a replica that may not only reads what the
        leader found. Ends when told to stop, and raises nothing: a fault becomes a log line and another try.
        """
        self._tell_off()
        if not self._wanted:
            await stop.wait()
            return
        remaining, failures = 0.0, 0
        while not stop.is_set():
            if await self._leads(may_lead) and remaining <= 0:
                report = await self._try_reconcile(stop, may_lead, poll_seconds)
                failures = 0 if report is not None and not report.failed else failures + 1
                remaining = self._next_delay(failures, report)
                if remaining == 0:  # no interval, and it worked
                    await stop.wait()
                    return
            step = min(poll_seconds, remaining) if remaining > 0 else poll_seconds
            await self._pause(stop, step)
            remaining -= step

    def state(self) -> dict[str, Any]:
        """What is known without asking anybody, for `/readyz`: `state` (off, pending, ok, degraded) and a `detail`."""
        if not self._wanted:
            return {"state": "off", "detail": "; ".join(self._off_reasons())}
        found = [self._states.get((w.slot.connection, w.slot.key), CallbackState.PENDING) for w in self._wanted]
        wrong = [state for state in found if state not in (CallbackState.OK, CallbackState.PENDING)]
        if wrong:
            detail = f"{len(wrong)} of {len(found)} callbacks need a look; see GET /v1/webhooks"
            return {"state": "degraded", "detail": detail}
        if CallbackState.PENDING in found:
            return {"state": "pending", "detail": "not every callback was looked at yet"}
        return {"state": "ok", "detail": f"{len(found)} callbacks"}

    async def refresh_state(self) -> None:
        """Learn from the database what another replica found."""
        for name in {wanted.slot.connection for wanted in self._wanted}:
            checked = await self._read(partial(queries.list_checked, name=name))
            self._note(checked.values())

    def off_reason(self, connection: str, *, needs_public_url: bool = True) -> str | None:
        """Why nothing can be registered at a connection, naming the setting; None when it can."""
        if needs_public_url and not self._settings.public_url:
            return "JETHOOK_PUBLIC_URL is not set, so registration is off"
        if not self._settings.effective_connections[connection].has_keys:
            prefix = f"JETHOOK_CONNECTIONS__{connection.upper()}__"
            names = f"{prefix}API_KEY and {prefix}SECRET_KEY"
            if connection == "default":
                names = f"MJ_APIKEY_PUBLIC and MJ_APIKEY_PRIVATE (or {names})"
            return f"connection {connection!r} has no keys, so registration is off for it: set {names}"
        return None

    # One connection

    async def _reconcile_connection(
        self, name: str, slots: Sequence[Slot], whole: bool, dry_run: bool
    ) -> ConnectionReport:
        if (reason := self.off_reason(name)) is not None:
            return ConnectionReport(name, off=reason)
        keys = {slot.key for slot in slots if slot.connection == name}
        wanted = [w for w in self._wanted if w.slot.connection == name and w.slot.key in keys]
        instance = self._settings.instance

        def plan(actual: Sequence[ActualCallback]) -> list[Action]:
            actions = plan_registration(wanted, actual, connection=name, instance=instance)
            leftovers = plan_leftovers(self._slots, actual, connection=name, instance=instance) if whole else []
            return actions + leftovers

        report = await self._carry_out(name, plan, dry_run)
        if not dry_run:
            await self._record(report, [w.slot for w in wanted], whole)
        return report

    async def _unregister_at(self, name: str, webhook: str | None, dry_run: bool) -> ConnectionReport:
        if (reason := self.off_reason(name, needs_public_url=False)) is not None:
            return ConnectionReport(name, off=reason)
        originals = await self._read(lambda c: queries.list_originals(c, name))

        def plan(actual: Sequence[ActualCallback]) -> list[Action]:
            instance = self._settings.instance
            return plan_removal(actual, originals, connection=name, instance=instance, webhook=webhook)

        report = await self._carry_out(name, plan, dry_run)
        if not dry_run:
            await self._record_removal(report)
        return report

    async def _carry_out(self, name: str, plan: Planner, dry_run: bool) -> ConnectionReport:
        """List, plan, apply. A slot that changed under us is planned once more from a fresh list."""
        try:
            async with self._client_factory(name, self._settings.effective_connections[name]) as client:
                actions = plan(await client.list_callbacks())
                if dry_run:
                    return ConnectionReport(name, tuple(_planned(action) for action in actions))
                results = await self._apply_all(client, actions)
                if any(result.stale for result in results):
                    results = await self._apply_stale(client, plan, results)
        except MailjetError as error:
            return ConnectionReport(name, error=str(error), retry_after_seconds=error.retry_after_seconds)
        return ConnectionReport(name, tuple(results))

    async def _apply_stale(self, client: MailjetClient, plan: Planner, results: list[Result]) -> list[Result]:
        stale = {result.action.key for result in results if result.stale}
        try:
            actions = [action for action in plan(await client.list_callbacks()) if action.key in stale]
        except MailjetError:
            return results
        return [result for result in results if not result.stale] + await self._apply_all(client, actions)

    async def _apply_all(self, client: MailjetClient, actions: Iterable[Action]) -> list[Result]:
        results: list[Result] = []
        ended: MailjetError | None = None
        for action in actions:
            if ended is not None and action.changes_mailjet:
                results.append(_failed(action, ended))
                continue
            try:
                results.append(await self._apply(client, action))
            except MailjetError as error:
                results.append(_failed(action, error))
                ended = error if isinstance(error, _HITS_ALL) else None
        return results

    async def _apply(self, client: MailjetClient, action: Action) -> Result:
        """Raises MailjetError, and DatabaseFault where something must be written down first."""
        match action.kind:
            case Kind.CREATE:
                created = await client.create_callback(
                    event_type=action.type, url=str(action.changes["Url"]), is_backup=action.backup
                )
                # The slot was empty: whoever we once replaced here has taken his callback away.
                await self._forget_original(action)
                return _ours(action, created)
            case Kind.UPDATE:
                return _ours(action, await _update(client, action))
            case Kind.REPLACE:
                # Written down before it is lost: a crash between the two leaves a memory too many, never one too few.
                await self._remember_original(action)
                return _ours(action, await _update(client, action))
            case Kind.DELETE:
                assert action.callback is not None
                await client.delete_callback(action.callback.key)
                return Result(action, CallbackState.MISSING, done=True)
            case Kind.RESTORE:
                await _update(client, action)
                await self._forget_original(action)
                held_by = shown_url(str(action.changes["Url"]))
                return Result(action, CallbackState.FOREIGN, True, mailjet_id=_id(action), held_by=held_by)
            case Kind.KEEP | Kind.CONFLICT | Kind.LEFTOVER:
                return _planned(action)

    # The database

    async def _remember_original(self, action: Action) -> None:
        original = action.original
        assert original is not None
        await self._write(_remember(action, original, self._now()))

    async def _forget_original(self, action: Action) -> None:
        await self._write(lambda c: queries.forget_original(c, action.connection, action.key))

    async def _record(self, report: ConnectionReport, slots: Sequence[Slot], whole: bool) -> None:
        """Write down what was found in `slots`, for every replica to read, and with it what is news in that."""
        now = self._now()
        results = {result.action.key: result for result in report.results}
        rows = [_checked(slot, results.get(slot.key), report.error, now) for slot in slots]
        wanted = {slot.key for slot in self._slots if slot.connection == report.connection}

        def record(connection: Connection) -> None:
            before = queries.list_checked(connection, report.connection)
            for change in changes_between(before, rows):
                self._herald.store(connection, change)
            if report.error is None:
                queries.record_checked(connection, rows)
            else:
                queries.record_failed_look(connection, rows)
            if whole:  # and with it what the settings no longer ask for
                queries.forget(connection, report.connection, before.keys() - wanted)

        await self._write(record)
        self._note(rows)

    async def _record_removal(self, report: ConnectionReport) -> None:
        now = self._now()
        slots = {slot.key: slot for slot in self._slots if slot.connection == report.connection}
        done = [result for result in report.results if result.done and result.action.key in slots]
        rows = [_checked(slots[result.action.key], result, None, now) for result in done]
        await self._write(lambda c: queries.record_checked(c, rows))
        self._note(rows)

    async def _write(self, work: Callable[[Connection], T]) -> T:
        try:
            return await self._database.run_write(work)
        except DBAPIError as error:
            raise _database_fault(error) from None

    async def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            return await self._database.run_read(work)
        except DBAPIError as error:
            raise _database_fault(error) from None

    # The loop

    async def _leads(self, may_lead: MayLead) -> bool:
        try:
            if await may_lead():
                self._refusals = 0
                return True
            self._refusals += 1
            if self._refusals % REFRESH_POLLS == 1:
                await self.refresh_state()
        except DatabaseFault:
            return False  # every part of the service tells of that one
        except Exception as error:  # noqa: BLE001  whatever it is, it must not end the loop
            log.warning(FAILED, owner=self._owner, error=type(error).__name__)
        return False

    async def _try_reconcile(
        self, stop: asyncio.Event, may_lead: MayLead, poll_seconds: float
    ) -> RegistrationReport | None:
        """None if it could not be done, or was told to stop: a stop does not wait for Mailjet. A slow Mailjet does not
        cost the lease."""
        work = asyncio.ensure_future(self.reconcile())
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not (work.done() or stopped.done()):
                both = (work, stopped)
                done, _ = await asyncio.wait(both, timeout=poll_seconds, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    await self._leads(may_lead)
            return work.result() if work.done() else None
        except Exception as error:  # noqa: BLE001  the loop goes on
            # The text may hold what must not be logged; DatabaseFault's is known not to.
            text = str(error) if isinstance(error, DatabaseFault) else type(error).__name__
            log.warning(FAILED, owner=self._owner, error=text)
            return None
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)

    def _next_delay(self, failures: int, report: RegistrationReport | None) -> float:
        every = self._settings.register_every_seconds
        if failures == 0:
            return every
        wait = report.retry_after_seconds if report is not None else 0.0
        return retry_delay(failures, every_seconds=every, retry_after_seconds=wait, jitter=self._jitter())

    # Telling

    def _note(self, rows: Iterable[Checked]) -> None:
        for row in rows:
            self._states[row.connection, row.key] = row.state
            slot = next((s for s in self._slots if (s.connection, s.key) == (row.connection, row.key)), None)
            if slot is not None:
                self._gauge(slot, row.state)

    def _gauge(self, slot: Slot, state: CallbackState) -> None:
        if not slot.backup:
            for webhook in slot.watchers:
                self._on_slot(webhook, slot.type, state is CallbackState.OK)

    def _tell(self, name: str, report: RegistrationReport) -> None:
        """One line for the run; a line for each fault that was not told before."""
        for connection in report.connections:
            if connection.error is not None and connection.error not in self._told:
                log.warning(FAILED, connection=connection.connection, error=connection.error)
            for result in connection.results:
                if result.fault is not None and result.fault not in self._told:
                    _tell_fault(result)
        self._told = {c.error for c in report.connections if c.error is not None} | set(report.faults)
        counts = {state: sum(c.state == state for c in report.connections) for state in ("ok", "degraded", "off")}
        write = log.info if report.changed or report.has_faults else log.debug
        write(name, owner=self._owner, changed=report.changed, faults=len(report.faults), **counts)

    def _off_reasons(self) -> list[str]:
        names = dict.fromkeys(slot.connection for slot in self._slots)
        return list(dict.fromkeys(reason for name in names if (reason := self.off_reason(name)) is not None))

    def _tell_off(self) -> None:
        for reason in self._off_reasons():
            log.warning(SWITCHED_OFF, reason=reason)


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """All results; if one fails the others still end before that is raised."""
    ended = await asyncio.gather(*work, return_exceptions=True)
    for result in ended:
        if isinstance(result, BaseException):
            raise result
    return [result for result in ended if not isinstance(result, BaseException)]


async def _update(client: MailjetClient, action: Action) -> ActualCallback | None:
    assert action.callback is not None
    return await client.update_callback(action.callback.key, action.changes)


def _ours(action: Action, shown: ActualCallback | None) -> Result:
    """A callback of ours after a change: Mailjet says if it is still dead; a 304 says that it is as asked."""
    state = CallbackState.DEAD if shown is not None and shown.status == DEAD else CallbackState.OK
    return Result(action, state, done=True, mailjet_id=(shown.id if shown else None) or _id(action))


_PLANNED = {
    Kind.CREATE: CallbackState.MISSING,
    Kind.UPDATE: CallbackState.PENDING,
    Kind.REPLACE: CallbackState.FOREIGN,
    Kind.CONFLICT: CallbackState.FOREIGN,
}


def _planned(action: Action) -> Result:
    """An action not (or nothing) done: the slot is as it was found."""
    dead = action.callback is not None and action.callback.status == DEAD
    state = _PLANNED.get(action.kind, CallbackState.OK)
    if dead and state is not CallbackState.FOREIGN:
        state = CallbackState.DEAD
    held_by = action.found_url if state is CallbackState.FOREIGN else None
    return Result(action, state, done=False, mailjet_id=_id(action), held_by=held_by)


def _failed(action: Action, error: MailjetError) -> Result:
    as_found = _planned(action)
    return Result(
        action,
        # Neither right nor gone: registered, but with an old URL or version.
        CallbackState.ERROR if as_found.state is CallbackState.PENDING else as_found.state,
        done=False,
        error=str(error),
        mailjet_id=as_found.mailjet_id,
        held_by=as_found.held_by,
        stale=isinstance(error, MailjetDuplicate | MailjetCallbackNotFound),
    )


def _id(action: Action) -> str | None:
    return None if action.callback is None else action.callback.id


def _remember(action: Action, original: Original, now: datetime) -> Callable[[Connection], None]:
    return lambda c: queries.remember_original(c, action.connection, action.key, original, now)


def _checked(slot: Slot, result: Result | None, error: str | None, now: datetime) -> Checked:
    """The row of a slot; without a result nothing is known of it, and `error` says why."""
    common = (slot.connection, slot.type, slot.backup)
    if result is None:
        return Checked(*common, CallbackState.ERROR, slot.holder, None, None, now, error)
    return Checked(*common, result.state, slot.holder, result.held_by, result.mailjet_id, now, result.error)


def _database_fault(error: DBAPIError) -> DatabaseFault:
    return DatabaseFault(f"JETHOOK_DATABASE_URL: the database cannot be used now ({type(error.orig).__name__})")


def _tell_fault(result: Result) -> None:
    action = result.action
    place = {"connection": action.connection, "type": action.type, "backup": action.backup, "webhook": action.webhook}
    if result.error is not None:
        log.warning(FAILED, **place, error=result.error)
    elif action.kind is Kind.CONFLICT:
        log.warning(CONFLICT_FOUND, **place, mailjet_id=result.mailjet_id)
    else:
        log.warning(FAILED, **place, error=result.fault)
