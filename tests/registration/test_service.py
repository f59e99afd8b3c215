"""Registration from end to end: a real database, and a stand-in Mailjet over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from fastapi.testclient import TestClient
from sqlalchemy.engine import Connection

from app.alerts.service import Alerts
from app.db import Database
from app.errors import DatabaseFault, WebhookNotFound
from app.mailjet.client import MailjetClient, RetryPolicy
from app.maintenance.leader import Leadership
from app.migrate import migrate
from app.models import Callback, Delivery, Event, ReplacedCallback
from app.operator_events import Change
from app.registration import queries
from app.registration.report import RegistrationReport
from app.registration.routes import build_router
from app.registration.service import Registrar, retry_delay
from app.settings import EVENT_TYPES, ConnectionSettings, Settings, SinkSettings, load_settings
from app.silence import queries as silence
from app.simulator.mailjet import StandInMailjet
from app.simulator.server import LocalServer
from tests.factories import make_event
from tests.rest import KEYS, app_of

NOON = datetime(2026, 5, 3, 12, 0, tzinfo=UTC)
PASSWORD = "callback-password"
OURS = f"https://jethook:{PASSWORD}@hooks.example.com/webhooks/orders"
FOREIGN = "https://crm:foreign-password@crm.example.com/in"
SHOWN = "https://crm:***@crm.example.com/in"
AT_ONCE = RetryPolicy(attempts=2, total_seconds=10, wait_initial_seconds=0, wait_max_seconds=0, jitter_seconds=0)
KEY, SECRET, SHOP_KEY, SHOP_SECRET = "key", "mailjet-secret", "shop-key", "shop-secret"
SECRETS = (PASSWORD, "foreign-password", SECRET, SHOP_SECRET, "rotated-password")


@pytest.fixture
def mailjet() -> StandInMailjet:
    return StandInMailjet({KEY: SECRET, SHOP_KEY: SHOP_SECRET})


@pytest.fixture
def server(mailjet: StandInMailjet) -> Iterator[LocalServer]:
    with LocalServer(mailjet) as server:
        yield server


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    """SQLite: what differs between the databases is tested with the statements themselves, below."""
    opened = Database(sqlite_url)
    migrate(opened)
    yield opened
    opened.close()


class World:
    """Settings that can change between runs, as between restarts, over one database and one Mailjet."""

    def __init__(self, mailjet: StandInMailjet, server: LocalServer, database: Database) -> None:
        self.mailjet = mailjet
        self.database = database
        self.password = PASSWORD
        self.gauges: dict[tuple[str, str], bool] = {}
        self.herald = Herald()
        self.environment = {
            "JETHOOK_PUBLIC_URL": "https://hooks.example.com",
            "JETHOOK_CONNECTIONS__DEFAULT__API_KEY": KEY,
            "JETHOOK_CONNECTIONS__DEFAULT__SECRET_KEY": SECRET,
            "JETHOOK_CONNECTIONS__DEFAULT__BASE_URL": server.url,
            "JETHOOK_WEBHOOKS__ORDERS__EVENTS": ",".join(EVENT_TYPES),
        }

    def set(self, **variables: str) -> World:
        self.environment |= {f"JETHOOK_{name}": value for name, value in variables.items()}
        return self

    def unset(self, *names: str) -> World:
        for name in names:
            del self.environment[f"JETHOOK_{name}"]
        return self

    def add_shop(self) -> World:
        return self.set(
            CONNECTIONS__SHOP__API_KEY=SHOP_KEY, CONNECTIONS__SHOP__SECRET_KEY=SHOP_SECRET,
            CONNECTIONS__SHOP__BASE_URL=self.environment["JETHOOK_CONNECTIONS__DEFAULT__BASE_URL"],
            WEBHOOKS__SHOPPING__CONNECTION="shop", WEBHOOKS__SHOPPING__EVENTS="open",
        )  # fmt: skip

    @property
    def settings(self) -> Settings:
        return load_settings(self.environment, env_file=None)

    def registrar(self, **options: Any) -> Registrar:
        settings = self.settings

        def connect(name: str, connection: ConnectionSettings) -> MailjetClient:
            assert connection.api_key is not None
            assert connection.secret_key is not None
            secret = connection.secret_key.get_secret_value()
            return MailjetClient(connection.base_url, connection.api_key, secret, connection=name, retry=AT_ONCE)

        def note(webhook: str, event_type: str, ok: bool) -> None:
            self.gauges[webhook, event_type] = ok

        passwords = dict.fromkeys(settings.effective_webhooks, self.password)
        defaults: dict[str, Any] = {"client_factory": connect, "owner": "me", "now": lambda: NOON, "on_slot": note,
                                    "herald": self.herald}  # fmt: skip
        return Registrar(settings, self.database, passwords, **(defaults | options))

    def register(self, **options: Any) -> RegistrationReport:
        self.mailjet.clear_requests()
        return asyncio.run(self.registrar().reconcile(**options))

    def unregister(self, **options: Any) -> RegistrationReport:
        self.mailjet.clear_requests()
        return asyncio.run(self.registrar().unregister(**options))

    def urls(self, key: str = KEY) -> dict[str, str]:
        return {c.event_type: c.url for c in self.mailjet.callbacks(key) if not c.is_backup}

    def calls(self) -> list[str]:
        return [request.method for request in self.mailjet.requests]

    def changing_bodies(self) -> list[Any]:
        return [request.json for request in self.mailjet.requests if request.method in ("POST", "PUT")]

    def states(self, connection: str = "default") -> dict[str, str]:
        with self.database.reading() as c:
            return {key.type: row.state.value for key, row in queries.list_checked(c, connection).items()}

    def originals(self) -> list[tuple[str, str, int]]:
        with self.database.reading() as c:
            rows = c.execute(sa.select(ReplacedCallback.__table__)).all()
        return [(row.type, row.url, row.version) for row in rows]


@pytest.fixture
def world(mailjet: StandInMailjet, server: LocalServer, database: Database) -> World:
    return World(mailjet, server, database)


class Herald:
    """Remembers what is to be stored with what registration found."""

    def __init__(self) -> None:
        self.stored: list[Change] = []

    def tell(self, change: Change) -> None:
        raise AssertionError("registration has transactions of its own")

    def store(self, connection: Connection, change: Change) -> None:
        assert connection.in_transaction()
        self.stored.append(change)

    def news(self) -> list[tuple[str, str | None, Any]]:
        """(last word of the type, webhook, slots) since the last look."""
        stored, self.stored = self.stored, []
        return [(change.type.rpartition(".")[2], change.webhook, change.details["types"]) for change in stored]


def assert_tells_no_secret(*texts: object) -> None:
    for text in texts:
        assert not [secret for secret in SECRETS if secret in str(text)], text


# --- our own callbacks -----------------------------------------------------------------------------------------------


def test_seven_callbacks_appear_and_a_second_run_changes_nothing(world):
    first = world.register()

    assert world.urls() == dict.fromkeys(EVENT_TYPES, OURS)
    assert {callback.version for callback in world.mailjet.callbacks(KEY)} == {2}
    assert (first.changed, first.faults) == (7, [])

    second = world.register()

    assert (second.changed, second.faults) == (0, [])
    assert world.calls() == ["GET"]
    assert world.states() == dict.fromkeys(EVENT_TYPES, "ok")


def test_more_than_ten_callbacks_are_seen(world):
    world.set(WEBHOOKS__ORDERS__BACKUP_URL="https://standby.example").register()

    assert len(world.mailjet.callbacks(KEY)) == 14
    assert world.register().changed == 0


def test_a_new_public_url_and_a_new_password_are_changes_and_leave_nothing_behind(world):
    world.register()
    ids = [callback.id for callback in world.mailjet.callbacks(KEY)]
    world.password = "rotated-password"

    report = world.set(PUBLIC_URL="https://new.example.com:8443/base").register()

    url = "https://jethook:rotated-password@new.example.com:8443/base/webhooks/orders"
    assert world.urls() == dict.fromkeys(EVENT_TYPES, url)
    assert [callback.id for callback in world.mailjet.callbacks(KEY)] == ids
    assert world.changing_bodies() == [{"Url": url}] * 7
    assert report.changed == 7


def test_an_ungrouped_callback_of_ours_gets_version_two_and_nothing_else(world):
    world.register()
    world.mailjet.put_callback(KEY, "open", OURS, version=1)

    assert world.register().changed == 1
    assert world.changing_bodies() == [{"Version": 2}]


def test_a_dead_callback_is_revived_by_a_new_url_each_time_it_dies(world):
    world.register()
    for times in (1, 2):
        world.mailjet.mark_dead(KEY, "open")
        world.register()

        revived = world.mailjet.find_callback(KEY, "open")
        assert (revived.url, revived.status) == (f"{OURS}?revived={times}", "alive")
        assert world.register().changed == 0


def test_a_callback_that_mailjet_leaves_dead_is_told(world):
    world.register()
    world.mailjet.mark_dead(KEY, "open")
    body = {"Count": 1, "Data": [{"ID": 5, "EventType": "open", "Status": "dead", "Url": OURS}], "Total": 1}
    world.mailjet.fail_next(1, 200, body, method="PUT")

    report = world.register()

    assert world.states()["open"] == "dead"
    assert report.has_faults
    assert not world.gauges["orders", "open"]


def test_two_webhooks_share_one_callback(world):
    report = world.set(WEBHOOKS__ANALYTICS__EVENTS="open,click").register()

    assert world.urls()["open"] == OURS.replace("orders", "analytics")
    assert world.urls()["sent"] == OURS
    assert report.changed == 7
    assert world.gauges["orders", "open"]
    assert world.gauges["analytics", "open"]


def test_one_webhook_can_be_registered_alone(world):
    world.set(WEBHOOKS__ANALYTICS__EVENTS="open", WEBHOOKS__ORDERS__EVENTS="open,sent", WEBHOOKS__ZEBRA__EVENTS="spam")

    world.register(webhook="orders")

    assert set(world.urls()) == {"open", "sent"}
    with pytest.raises(WebhookNotFound):
        world.register(webhook="nobody")


def test_a_type_no_longer_watched_is_told_and_left_at_mailjet(world):
    world.register()

    report = world.set(WEBHOOKS__ORDERS__EVENTS="open").register()

    actions = {action["type"]: action["action"] for action in report.to_json()["connections"][0]["actions"]}
    assert actions == dict.fromkeys(EVENT_TYPES, "leftover") | {"open": "keep"}
    assert len(world.mailjet.callbacks(KEY)) == 7
    assert world.states() == {"open": "ok"}
    assert not report.has_faults


def test_a_dry_run_changes_and_writes_nothing(world):
    world.mailjet.put_callback(KEY, "open", FOREIGN)

    report = world.set(WEBHOOKS__ORDERS__ON_CONFLICT="replace").register(dry_run=True)

    assert world.calls() == ["GET"]
    assert (report.changed, report.faults) == (7, [])
    assert world.states() == {}
    assert world.originals() == []


# --- foreign callbacks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["alive", "dead"])
def test_a_foreign_callback_is_kept_and_is_a_fault_and_the_others_are_registered(world, status):
    world.mailjet.put_callback(KEY, "open", FOREIGN, status=status)

    with structlog.testing.capture_logs() as lines:
        report = world.register()

    assert world.urls()["open"] == FOREIGN
    assert report.changed == 6
    assert len(report.faults) == 1
    assert world.states()["open"] == "foreign"
    assert "registration.conflict" in [line["event"] for line in lines]
    assert_tells_no_secret(lines, report, report.to_json())


def test_a_replaced_callback_is_remembered_before_it_is_lost(world):
    world.mailjet.put_callback(KEY, "open", FOREIGN, version=1)
    world.set(WEBHOOKS__ORDERS__ON_CONFLICT="replace", WEBHOOKS__ORDERS__EVENTS="open")
    remembered: list[Any] = []
    world.mailjet.on_request = lambda request: remembered.extend(world.originals()) if request.method == "PUT" else None

    report = world.register()

    assert remembered == [("open", FOREIGN, 1)]
    assert world.urls()["open"] == OURS
    assert (report.changed, report.faults) == (1, [])
    assert_tells_no_secret(report, report.to_json())


def test_our_own_callback_never_takes_the_place_of_what_we_remember(world):
    world.mailjet.put_callback(KEY, "open", FOREIGN)
    world.set(WEBHOOKS__ORDERS__ON_CONFLICT="replace", WEBHOOKS__ORDERS__EVENTS="open").register()
    world.set(PUBLIC_URL="https://new.example.com").register()
    world.mailjet.mark_dead(KEY, "open")
    world.register()

    assert world.originals() == [("open", FOREIGN, 1)]


def test_a_replacement_that_fails_leaves_the_foreign_callback_and_says_so(world):
    world.mailjet.put_callback(KEY, "open", FOREIGN)
    world.mailjet.fail_next(9, 500, method="PUT")

    report = world.set(WEBHOOKS__ORDERS__ON_CONFLICT="replace", WEBHOOKS__ORDERS__EVENTS="open").register()

    assert world.states() == {"open": "foreign"}
    assert report.failed
    assert world.urls()["open"] == FOREIGN


def test_what_was_replaced_is_forgotten_once_its_owner_took_it_away(world):
    world.mailjet.put_callback(KEY, "open", FOREIGN)
    world.set(WEBHOOKS__ORDERS__ON_CONFLICT="replace", WEBHOOKS__ORDERS__EVENTS="open").register()
    world.mailjet.remove_callback(KEY, "open")
    world.register()

    assert world.originals() == []


# --- unregister ------------------------------------------------------------------------------------------------------


def test_unregister_removes_ours_and_puts_back_what_was_replaced(world):
    world.mailjet.put_callback(KEY, "open", FOREIGN, version=1)
    world.mailjet.put_callback(KEY, "spam", FOREIGN, version=1, is_backup=True)
    world.set(WEBHOOKS__ORDERS__ON_CONFLICT="replace").register()

    report = world.unregister()

    left = [(c.event_type, c.is_backup, c.url, c.version) for c in world.mailjet.callbacks(KEY)]
    assert sorted(left) == [("open", False, FOREIGN, 1), ("spam", True, FOREIGN, 1)]
    assert (report.changed, report.faults) == (7, [])
    assert world.originals() == []
    assert world.states() == dict.fromkeys(EVENT_TYPES, "missing") | {"open": "foreign"}
    assert_tells_no_secret(report, report.to_json())
    assert world.unregister().changed == 0


def test_unregister_finds_names_and_hosts_no_longer_configured_without_a_public_url(world):
    world.register()
    world.unset("PUBLIC_URL", "WEBHOOKS__ORDERS__EVENTS").set(WEBHOOKS__OTHER__EVENTS="open")

    assert world.unregister().changed == 7
    assert world.mailjet.callbacks(KEY) == []


def test_unregister_leaves_another_instance_alone(world):
    world.set(INSTANCE="staging").register()

    assert world.set(INSTANCE="jethook").unregister().changed == 0
    assert len(world.mailjet.callbacks(KEY)) == 7


def test_unregister_of_one_name_goes_by_the_url(world):
    world.set(WEBHOOKS__ANALYTICS__EVENTS="open").register()

    world.unregister(webhook="analytics")

    assert set(world.urls()) == set(EVENT_TYPES) - {"open"}


def test_a_dry_unregister_removes_nothing(world):
    world.register()

    report = world.unregister(dry_run=True)

    assert (report.changed, len(world.mailjet.callbacks(KEY))) == (7, 7)
    assert world.states() == dict.fromkeys(EVENT_TYPES, "ok")


# --- what goes wrong at Mailjet --------------------------------------------------------------------------------------


def test_somebody_faster_is_met_by_looking_again(world):
    def put_first(request: Any) -> None:
        if request.method == "POST" and request.json["EventType"] == "open":
            world.mailjet.put_callback(KEY, "open", OURS, version=1)

    world.mailjet.on_request = put_first

    report = world.register()

    assert (report.changed, report.faults) == (7, [])
    assert world.mailjet.find_callback(KEY, "open").version == 2
    assert world.calls().count("GET") == 2


def test_a_faster_stranger_is_a_conflict_and_not_overwritten(world):
    world.mailjet.on_request = lambda request: (
        world.mailjet.put_callback(KEY, "open", FOREIGN)
        if request.method == "POST" and request.json["EventType"] == "open"
        else None
    )

    report = world.register()

    assert world.urls()["open"] == FOREIGN
    assert world.states()["open"] == "foreign"
    assert len(report.faults) == 1


def test_a_callback_that_vanished_before_its_change_is_created(world):
    world.register()
    world.mailjet.put_callback(KEY, "open", OURS, version=1)
    world.mailjet.on_request = lambda request: (
        world.mailjet.remove_callback(KEY, "open")
        if request.method == "PUT" and world.mailjet.find_callback(KEY, "open")
        else None
    )

    report = world.register()

    assert report.faults == []
    assert world.mailjet.find_callback(KEY, "open").version == 2


def test_one_failing_slot_does_not_stop_the_others(world):
    refusal = {"ErrorInfo": "", "ErrorMessage": f"Invalid Url {OURS}", "StatusCode": 400}
    world.mailjet.fail_next(1, 400, refusal, method="POST")

    with structlog.testing.capture_logs() as lines:
        report = world.register()

    assert (report.changed, len(report.faults)) == (6, 1)
    assert sorted(world.states().values()) == ["missing"] + ["ok"] * 6
    assert_tells_no_secret(lines, report.to_json(), [dict(row) for row in rows_of(world.database)])


def test_one_failing_connection_does_not_stop_another(world):
    world.add_shop().set(CONNECTIONS__DEFAULT__SECRET_KEY="wrong")

    report = world.register()

    assert set(world.urls(SHOP_KEY)) == {"open"}
    assert world.urls(KEY) == {}
    (fault,) = report.faults
    assert "JETHOOK_CONNECTIONS__DEFAULT__SECRET_KEY" in fault
    assert world.states() == dict.fromkeys(EVENT_TYPES, "error")
    assert world.states("shop") == {"open": "ok"}


def test_a_failed_look_keeps_what_was_known_of_the_callback(world):
    world.register()
    world.mailjet.set_down(True)

    assert world.register().failed
    (row, *_) = rows_of(world.database)
    assert (row["state"], row["mailjet_id"] is not None) == ("error", True)
    assert "503" in row["error"]


def test_a_key_that_is_refused_half_way_is_not_tried_for_every_slot(world):
    world.mailjet.fail_next(99, 401, method="POST")

    report = world.register()

    assert world.calls() == ["GET", "POST"]
    assert len(report.faults) == 7


def test_mj19_is_a_fault_of_its_slot_and_not_of_the_key(world):
    message = 'Internal error: MJ19 Setting a value for property "ID" is not allowed'
    refusal = {"ErrorInfo": "", "ErrorMessage": message, "StatusCode": 401}
    world.mailjet.fail_next(1, 401, refusal, method="POST")

    report = world.register()

    assert report.changed == 6
    assert "MJ19" in report.faults[0]


def test_an_unchanged_answer_to_a_change_is_fine(world):
    world.register()
    world.mailjet.put_callback(KEY, "open", OURS, version=1)
    world.mailjet.fail_next(1, 304, b"", method="PUT")

    assert world.register().faults == []
    assert world.states()["open"] == "ok"


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        pytest.param(("PUBLIC_URL",), "JETHOOK_PUBLIC_URL", id="no public URL"),
        pytest.param(("CONNECTIONS__DEFAULT__SECRET_KEY",), "MJ_APIKEY_PRIVATE", id="no keys"),
    ],
)
def test_registration_that_is_off_asks_nobody_and_names_the_setting(world, missing, named):
    report = world.unset(*missing).register()

    assert world.calls() == []
    assert report.is_off
    assert report.has_faults
    assert not report.failed
    assert named in report.faults[0]
    assert world.registrar().state()["state"] == "off"


def test_a_database_fault_shows_no_statement(world):
    world.mailjet.put_callback(KEY, "open", FOREIGN)
    world.set(WEBHOOKS__ORDERS__ON_CONFLICT="replace")
    world.database.write(lambda c: c.exec_driver_sql("DROP TABLE replaced_callbacks"))

    with pytest.raises(DatabaseFault) as caught:
        world.register()

    assert_tells_no_secret(caught.value, caught.value.__cause__)
    assert world.urls()["open"] == FOREIGN


def test_the_report_has_stable_keys(world):
    world.mailjet.put_callback(KEY, "open", FOREIGN)
    report = world.set(WEBHOOKS__ORDERS__EVENTS="open").register().to_json()

    assert json.loads(json.dumps(report)) == report
    assert set(report) == {"dry_run", "changed", "faults", "connections"}
    (connection,) = report["connections"]
    assert (connection["connection"], connection["state"]) == ("default", "degraded")
    (action,) = connection["actions"]
    assert action.pop("mailjet_id").isdigit()
    assert action == {
        "type": "open", "backup": False, "webhook": "orders", "action": "conflict", "changed": [], "done": False,
        "state": "foreign", "held_by": SHOWN, "error": None,
        "description": f"conflict default: open: held by {SHOWN}, which is not ours, and kept",
    }  # fmt: skip


def rows_of(database: Database) -> list[Any]:
    with database.reading() as c:
        return list(c.execute(sa.select(Callback.__table__)).mappings())


# --- the loop --------------------------------------------------------------------------------------------------------


class Clock:
    """Takes the place of waiting: notes how long, does what a test planned for that moment, and ends the loop."""

    def __init__(self, *steps: Callable[[], Any]) -> None:
        self.steps = list(steps)
        self.seconds = 0.0

    async def pause(self, stop: asyncio.Event, seconds: float) -> None:
        self.seconds += seconds
        if not self.steps:
            stop.set()
        else:
            self.steps.pop(0)()


async def always() -> bool:
    return True


def looping(world: World, clock: Clock, may_lead: Callable[[], Awaitable[bool]] = always, **options: Any) -> None:
    async def run() -> None:
        registrar = world.registrar(pause=clock.pause, jitter=lambda: 0.0, **options)
        await asyncio.wait_for(registrar.run(asyncio.Event(), may_lead, poll_seconds=1000), 20)

    world.mailjet.clear_requests()
    asyncio.run(run())


def test_the_loop_registers_at_start_and_again_after_the_interval(world):
    clock = Clock(lambda: world.mailjet.remove_callback(KEY, "open"))

    looping(world, clock)

    assert set(world.urls()) == set(EVENT_TYPES)
    assert clock.seconds == 600


def test_the_loop_comes_back_soon_after_a_failure_and_then_keeps_the_interval(world):
    world.mailjet.set_down(True)
    waits: list[float] = []
    clock = Clock(
        lambda: waits.append(clock.seconds),
        lambda: waits.append(clock.seconds),
        lambda: (waits.append(clock.seconds), world.mailjet.set_down(False)),
        lambda: waits.append(clock.seconds),
    )

    looping(world, clock)

    assert waits == [5, 15, 35, 335]
    assert set(world.urls()) == set(EVENT_TYPES)


def test_a_foreign_callback_is_no_reason_to_hurry_and_is_told_once(world):
    world.mailjet.put_callback(KEY, "open", FOREIGN)
    clock = Clock(lambda: None, lambda: None)

    with structlog.testing.capture_logs() as lines:
        looping(world, clock)

    assert clock.seconds == 900
    assert [line["event"] for line in lines].count("registration.conflict") == 1


def test_mailjets_own_wish_for_a_pause_is_kept(world):
    world.mailjet.fail_next(1, 429, None, {"retry-after": "900", "content-type": "application/json"})
    waits: list[float] = []
    clock = Clock(lambda: waits.append(clock.seconds))

    looping(world, clock)

    assert waits == [900]


def test_a_replica_that_may_not_lead_asks_nobody_and_takes_over_when_it_may(world):
    answers = iter([False, False, True])

    async def may_lead() -> bool:
        return next(answers)

    seen: list[int] = []
    looping(world, Clock(*[lambda: seen.append(len(world.mailjet.requests))] * 2), may_lead)

    assert seen == [0, 0]
    assert len(world.mailjet.callbacks(KEY)) == 7


def test_a_replica_that_may_not_lead_knows_what_the_leader_found(world):
    world.register()
    registrar = world.registrar()
    assert registrar.state()["state"] == "pending"

    asyncio.run(registrar.refresh_state())

    assert registrar.state() == {"state": "ok", "detail": "7 callbacks"}


def test_two_replicas_with_one_lease_register_once(world):
    async def run() -> None:
        stop = asyncio.Event()
        clock = [NOON]
        seen = 0

        async def wait(stop_: asyncio.Event, seconds: float) -> None:
            nonlocal seen
            seen += 1
            clock[0] += timedelta(seconds=0.1)
            if seen > 20:
                stop_.set()
            await asyncio.sleep(0)

        replicas = [
            world.registrar(pause=wait).run(
                stop, Leadership(world.database, "registration", owner, now=lambda: clock[0]).may_lead
            )
            for owner in ("a", "b")
        ]
        await asyncio.wait_for(asyncio.gather(*replicas), 20)

    asyncio.run(run())

    assert world.calls() == ["GET"] + ["POST"] * 7


def test_an_interval_of_zero_ends_with_the_first_success(world):
    world.set(REGISTER_EVERY_SECONDS="0").mailjet.set_down(True)
    waits: list[float] = []

    class Stop(asyncio.Event):
        """Set as soon as somebody waits for it after all is registered."""

        async def wait(self) -> Any:
            if all(world.gauges.values()):
                self.set()
            return await super().wait()

    async def wait(_: asyncio.Event, seconds: float) -> None:
        waits.append(seconds)
        world.mailjet.set_down(False)

    registrar = world.registrar(pause=wait, jitter=lambda: 0.0)
    asyncio.run(asyncio.wait_for(registrar.run(Stop(), always, poll_seconds=1000), 20))

    assert waits == [5]
    assert world.calls().count("POST") == 7


def test_the_loop_survives_whatever_happens(world):
    async def broken() -> bool:
        raise RuntimeError("https://jethook:callback-password@h")

    with structlog.testing.capture_logs() as lines:
        looping(world, Clock(lambda: None), broken)

    assert [line["error"] for line in lines if line["event"] == "registration.failed"] == ["RuntimeError"] * 2
    assert_tells_no_secret(lines)


def test_a_client_that_cannot_be_made_does_not_end_the_loop(world):
    def broken(name: str, connection: ConnectionSettings) -> MailjetClient:
        raise ValueError(connection.secret_key)

    clock = Clock(lambda: None)
    looping(world, clock, client_factory=broken)

    assert clock.seconds == 15


def test_a_stop_does_not_wait_for_mailjet(world):
    world.mailjet.set_slow(1.0)

    async def run() -> float:
        loop, stop, asked = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def connect(name: str, connection: ConnectionSettings) -> MailjetClient:
            loop.call_soon(asked.set)
            return MailjetClient(connection.base_url, KEY, SECRET)

        task = asyncio.create_task(world.registrar(client_factory=connect).run(stop, always))
        await asked.wait()
        began = loop.time()
        stop.set()
        await asyncio.wait_for(task, 20)
        return loop.time() - began

    assert asyncio.run(run()) < 0.5


def test_the_lease_is_kept_while_mailjet_is_slow(world):
    """Or a second replica would take over and make the same callbacks."""
    world.mailjet.set_slow(0.3)
    stop, asked = asyncio.Event(), []

    async def may_lead() -> bool:
        asked.append(len(world.mailjet.callbacks()))
        if len(asked) == 4:
            stop.set()
        return True

    asyncio.run(asyncio.wait_for(world.registrar().run(stop, may_lead, poll_seconds=0.02), 20))

    assert asked == [0, 0, 0, 0]  # all of them before the first call was answered


def test_no_line_of_a_whole_life_tells_a_password(world):
    world.mailjet.put_callback(KEY, "open", FOREIGN)
    with structlog.testing.capture_logs() as lines:
        world.register()
        world.set(WEBHOOKS__ORDERS__ON_CONFLICT="replace").register()
        world.mailjet.set_down(True)
        world.register()
        world.mailjet.set_down(False)
        world.unregister()

    assert len(lines) > 4
    assert_tells_no_secret(lines)


@pytest.mark.parametrize(
    ("failures", "every", "retry_after", "jitter", "expected"),
    [
        pytest.param(1, 300, 0, 0, 5, id="the first"),
        pytest.param(3, 300, 0, 0, 20, id="doubles"),
        pytest.param(99, 300, 0, 0, 300, id="never longer than the interval"),
        pytest.param(99, 86400, 0, 0, 300, id="nor than five minutes"),
        pytest.param(99, 0, 0, 0, 300, id="without an interval"),
        pytest.param(1, 300, 60, 0, 60, id="as Mailjet asks"),
        pytest.param(1, 300, 1e9, 0, 3600, id="within reason"),
        pytest.param(1, 300, 0, 1, 6, id="a fifth of jitter"),
    ],
)
def test_retry_delay(failures, every, retry_after, jitter, expected):
    assert retry_delay(failures, every_seconds=every, retry_after_seconds=retry_after, jitter=jitter) == expected


# --- REST ------------------------------------------------------------------------------------------------------------


def rest(world: World, key: str = "full") -> TestClient:
    app = app_of(build_router(world.settings, world.database, KEYS, world.registrar()))
    return TestClient(app, headers={"authorization": f"Bearer {key}"})


def test_webhooks_are_listed_with_the_state_of_each_callback(world):
    world.set(WEBHOOKS__ORDERS__EVENTS="open,click", WEBHOOKS__ANT__EVENTS="click").mailjet.put_callback(
        KEY, "open", FOREIGN
    )
    event = make_event(world.database, webhook="orders", type="open", received_at=NOON)
    make_event(world.database, webhook="orders", type="open", occurred_at=event["occurred_at"] - timedelta(days=1))
    world.register()

    answer = rest(world, "read").get("/v1/webhooks")

    assert answer.status_code == 200
    assert_tells_no_secret(answer.text)
    page = answer.json()
    assert (page["next_cursor"], page["has_more"]) == (None, False)
    ant, orders = page["data"]
    assert (ant["name"], ant["registration"], ant["callback_url"]) == (
        "ant", "ok", "https://jethook:***@hooks.example.com/webhooks/ant",
    )  # fmt: skip
    assert orders["registration"] == "degraded"
    opened, clicked = orders["callbacks"]
    assert opened == {
        "type": "open", "backup": False, "state": "foreign", "held_by": SHOWN,
        "mailjet_id": opened["mailjet_id"], "last_event_at": "2026-05-03T12:00:00Z",
        "rhythm": {"state": "learning", "expected_by": None, "silent_since": None},
        "checked_at": "2026-05-03T12:00:00Z", "error": None,
    }  # fmt: skip
    assert (clicked["state"], clicked["held_by"], clicked["last_event_at"]) == ("shared", "ant", None)
    assert clicked["mailjet_id"] == ant["callbacks"][0]["mailjet_id"]


def test_a_webhook_shows_by_when_something_should_have_come(world):
    world.set(WEBHOOKS__ORDERS__EVENTS="open,click,spam", WEBHOOKS__ORDERS__SILENT_AFTER_SECONDS='{"spam": 0}')
    later = NOON + timedelta(hours=2)

    def write(connection):
        silence.make_rows(connection, [("orders", "open"), ("orders", "click")])
        silence.record(connection, {("orders", "open"): silence.Expected(later, NOON)})
        silence.record(connection, {("orders", "click"): silence.Expected(later)})

    world.database.write(write)

    callbacks = rest(world).get("/v1/webhooks/orders").json()["callbacks"]

    assert {c["type"]: c["rhythm"] for c in callbacks} == {
        "open": {"state": "silent", "expected_by": "2026-05-03T14:00:00Z", "silent_since": "2026-05-03T12:00:00Z"},
        "click": {"state": "heard", "expected_by": "2026-05-03T14:00:00Z", "silent_since": None},
        "spam": {"state": "off", "expected_by": None, "silent_since": None},
    }


def test_before_the_first_look_callbacks_are_pending(world):
    webhook = rest(world).get("/v1/webhooks/orders").json()

    assert webhook["registration"] == "degraded"
    assert {(c["state"], c["checked_at"]) for c in webhook["callbacks"]} == {("pending", None)}
    assert rest(world).get("/v1/webhooks/nobody").json()["code"] == "webhook_not_found"


def test_a_webhook_that_shares_a_broken_callback_is_degraded(world):
    world.set(WEBHOOKS__ORDERS__EVENTS="click", WEBHOOKS__ANT__EVENTS="click").mailjet.put_callback(
        KEY, "click", FOREIGN
    )
    world.register()

    webhook = rest(world).get("/v1/webhooks/orders").json()

    assert (webhook["registration"], webhook["callbacks"][0]["state"]) == ("degraded", "shared")
    assert "ant" in webhook["callbacks"][0]["error"]


def test_a_backup_has_a_callback_of_its_own(world):
    world.set(WEBHOOKS__ORDERS__EVENTS="open", WEBHOOKS__ORDERS__BACKUP_URL="https://standby.example").register()

    callbacks = rest(world).get("/v1/webhooks/orders").json()["callbacks"]

    assert [(c["backup"], c["state"]) for c in callbacks] == [(False, "ok"), (True, "ok")]


def test_registering_by_rest_registers_that_webhook_now(world):
    answer = rest(world).post("/v1/webhooks/orders/register")

    assert answer.status_code == 200
    assert answer.json()["registration"] == "ok"
    assert world.urls() == dict.fromkeys(EVENT_TYPES, OURS)


def test_registering_by_rest_needs_a_full_key_and_a_known_name(world):
    assert rest(world, "read").post("/v1/webhooks/orders/register").status_code == 403
    assert rest(world, "none").post("/v1/webhooks/orders/register").status_code == 401
    assert rest(world).post("/v1/webhooks/nobody/register").json()["code"] == "webhook_not_found"


def test_registering_while_mailjet_is_down_is_a_502_and_the_states_tell(world):
    world.mailjet.set_down(True)

    answer = rest(world).post("/v1/webhooks/orders/register")

    assert (answer.status_code, answer.json()["code"]) == (502, "mailjet_unavailable")
    webhook = rest(world).get("/v1/webhooks/orders").json()
    assert {c["state"] for c in webhook["callbacks"]} == {"error"}


def test_registering_without_a_public_url_is_a_409_that_names_it(world):
    world.unset("PUBLIC_URL")

    answer = rest(world).post("/v1/webhooks/orders/register")

    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "JETHOOK_PUBLIC_URL" in answer.json()["detail"]
    webhook = rest(world).get("/v1/webhooks/orders").json()
    assert (webhook["registration"], webhook["callback_url"]) == ("off", None)


def test_without_keys_the_url_to_register_by_hand_is_shown(world):
    webhook = rest(world.unset("CONNECTIONS__DEFAULT__SECRET_KEY")).get("/v1/webhooks/orders").json()

    assert webhook["registration"] == "off"
    assert webhook["callback_url"] == "https://jethook:***@hooks.example.com/webhooks/orders"


def test_the_openapi_document_describes_the_shape(world):
    schemas = rest(world).get("/openapi.json").json()["components"]["schemas"]

    assert set(schemas["WebhookModel"]["example"]) == set(schemas["WebhookModel"]["properties"])
    # FastAPI leaves nulls out of examples.
    assert set(schemas["WebhookModel"]["example"]["callbacks"][0]) <= set(schemas["CallbackModel"]["properties"])


# --- what is worth telling -------------------------------------------------------------------------------------------


def test_a_fault_is_told_once_and_its_end_too_over_restarts(world):
    world.register()
    assert world.herald.news() == []

    world.mailjet.put_callback(KEY, "open", FOREIGN)
    world.register()
    (change,) = world.herald.stored
    assert (change.type, change.webhook, change.connection) == ("jethook.registration.failed", "orders", "default")
    assert (change.error, change.details["state"]) == ("a callback of somebody else holds the slot", "foreign")
    assert world.herald.news() == [("failed", "orders", "open")]
    for _ in range(3):  # each as after a restart, by whichever replica or command
        world.register()
    assert world.herald.news() == []

    world.set(WEBHOOKS__ORDERS__ON_CONFLICT="replace").register()
    assert world.herald.news() == [("recovered", "orders", "open")]
    world.register()
    assert world.herald.news() == []


def test_when_mailjet_does_not_answer_that_is_one_piece_of_news_for_each_webhook(world):
    world.set(WEBHOOKS__ANALYTICS__EVENTS="open,click").register()
    world.mailjet.set_down(True)

    world.register()
    world.register()

    assert [change.count for change in world.herald.stored] == [5, 2]
    assert "503" in str(world.herald.stored[0].error)
    assert_tells_no_secret(world.herald.stored)
    assert world.herald.news() == [
        ("failed", "orders", "sent,bounce,spam,blocked,unsub"), ("failed", "analytics", "open,click"),
    ]  # fmt: skip
    world.mailjet.set_down(False)
    world.register()
    assert [word for word, _, _ in world.herald.news()] == ["recovered", "recovered"]


def test_a_callback_that_could_not_be_made_is_told_and_one_that_was_taken_away_on_purpose_is_not(world):
    world.mailjet.fail_next(1, 400, {"ErrorInfo": "", "ErrorMessage": "no", "StatusCode": 400}, method="POST")
    world.register()
    ((word, _, slot),) = world.herald.news()
    assert word == "failed"
    world.register()
    assert world.herald.news() == [("recovered", "orders", slot)]

    world.unregister()
    world.register()

    assert world.herald.news() == []


def test_a_dry_run_and_a_revived_callback_are_no_news(world):
    world.mailjet.put_callback(KEY, "open", FOREIGN)
    world.register(dry_run=True)
    assert world.herald.news() == []
    world.set(WEBHOOKS__ORDERS__ON_CONFLICT="replace").register()
    world.mailjet.mark_dead(KEY, "sent")
    world.register()

    assert world.herald.news() == []


def test_what_is_told_is_stored_with_what_was_found_or_not_at_all(world, monkeypatch):
    world.mailjet.put_callback(KEY, "open", FOREIGN)

    def refuse(*_: object) -> None:
        raise sa.exc.OperationalError("statement", {}, Exception("gone"))

    alerts = Alerts({"pager": SinkSettings(url="http://pager.invalid", events=("jethook.*",))}, world.database,
                    instance="jethook", replica="here")  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(queries, "record_checked", refuse)
        with pytest.raises(DatabaseFault):
            asyncio.run(world.registrar(herald=alerts).reconcile())
    asyncio.run(world.registrar(herald=alerts).reconcile())
    asyncio.run(world.registrar(herald=alerts).reconcile())

    with world.database.reading() as connection:
        (raw,) = connection.execute(sa.select(Event.__table__.c.raw)).scalars()
        owed = connection.execute(sa.select(Delivery.__table__.c.sink, Delivery.__table__.c.type)).all()
    assert json.loads(raw) | {"time": 0, "at": ""} == {
        "event": "jethook.registration.failed", "time": 0, "at": "", "instance": "jethook", "replica": "here",
        "webhook": "orders", "connection": "default", "error": "a callback of somebody else holds the slot", "count": 1,
        "types": "open", "state": "foreign",
    }  # fmt: skip
    assert [tuple(row) for row in owed] == [("pager", "jethook.registration.failed")]
