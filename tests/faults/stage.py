"""What every fault plays on: a database, a sink, load, services to end, and the last word on what was lost."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from app.db import Database
from app.models import Delivery, Event
from app.simulator.mailjet import DEFAULT_KEYS, StandInMailjet
from app.simulator.server import LocalServer
from app.simulator.sink import Answer, ReceivedRequest, SampleSink
from tests.e2e import kill9
from tests.e2e.service import ROOT, ServiceProcess, audit_differences, ids_in, until
from tests.postgres import PostgresServer

RATE = 250.0  # events a second: a busy account, and far from what the machine carries
WELL_SECONDS = 60.0
RETRIES = ",".join(["0.3"] * 400)  # nothing is given up for what lasts half a minute
T = TypeVar("T")
INSIDE = Path(__file__).parent / "inside"

events: sa.Table = Event.__table__  # type: ignore[attr-defined]
deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]


class Skipped(Exception):
    """This machine cannot do it; says why."""


class Sink:
    """Accepts, or refuses a share of what comes; knows what it accepted, first sendings apart from replays."""

    def __init__(self) -> None:
        self.sample = SampleSink(keep=0, keep_ids=1)
        self.sample.answer_with(self._choose)
        self.accepted: Counter[str] = Counter()
        self.replayed: Counter[str] = Counter()
        self.refused_share = 0.0
        self.batches: list[bytes] | None = None  # the bodies, where events come in batches
        self._random = random.Random(1)

    def _choose(self, request: ReceivedRequest) -> Answer:
        if self._random.random() < self.refused_share:
            return Answer(503)
        if self.batches is not None:
            self.batches.append(request.body)
            return Answer()
        is_replay = (b"x-jethook-replay", b"true") in request.raw_headers
        (self.replayed if is_replay else self.accepted)[request.webhook_id or ""] += 1
        return Answer()


@dataclass(slots=True)
class Outcome:
    """What one fault came to. Counts of events; seconds from the fault's end until a post was taken, and until
    everything was at its sink. `told` are figures of its own, `wrong` what must not be."""

    fault: str
    database: str
    acknowledged: int = 0
    stored: int = 0
    delivered: int = 0
    repeats: int = 0
    posted_again: int = 0
    again_seconds: float = 0.0
    well_seconds: float = 0.0
    told: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Stage:
    """One fault's. `environment` is that of every service; `server` runs the database where it is PostgreSQL."""

    def __init__(self, folder: Path, database_url: str, server: PostgresServer | None = None) -> None:
        self.folder = folder
        self.database_url = database_url
        self.server = server
        self.is_sqlite = database_url.startswith("sqlite")
        self.sink = Sink()
        self.mailjet = StandInMailjet()
        self._sink_server, self._mailjet_server = LocalServer(self.sink.sample), LocalServer(self.mailjet)
        self.services: list[ServiceProcess] = []
        self.acknowledged: set[str] = set()
        self.erased: set[str] = set()
        self.owed: list[bytes] = []
        self.again: list[float] = []
        self.well_seconds = 0.0
        self.posted_again = 0
        self.told: list[str] = []
        self.wrong: list[str] = []
        self._ended_at = 0.0
        self._loads = 0
        self._stack = ExitStack()

    def __enter__(self) -> Stage:
        self._sink_server.start()
        self._mailjet_server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for service in self.services:
            service.close()
        self._stack.close()
        self._sink_server.stop()
        self._mailjet_server.stop()

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Something that lasts as long as the stage."""
        return self._stack.enter_context(context)

    # --- services ---

    def service(self, environment: Mapping[str, str] | None = None, *, url: str | None = None) -> ServiceProcess:
        """Not started yet. Orders to die are heeded from the file `die-N.json` of its number N."""
        number = len(self.services)
        ours = {
            "JETHOOK_SINKS__CRM__URL": self._sink_server.url, "JETHOOK_SINKS__CRM__RETRY_SCHEDULE_SECONDS": RETRIES,
            "JETHOOK_SINKS__CRM__BREAKER_COOLDOWN_SECONDS": "1", "JETHOOK_LOG_LEVEL": "info",
            "PYTHONPATH": f"{INSIDE}:{ROOT}", "FAULTS_DIE": str(self._order(number)),
        }  # fmt: skip
        made = ServiceProcess(self.folder, url or self.database_url, {**ours, **(environment or {})})
        self.services.append(made)
        return made

    def mailjet_environment(self) -> dict[str, str]:
        """Of a service that registers its callbacks at the stand-in."""
        ((key, secret),) = DEFAULT_KEYS.items()
        return {
            "JETHOOK_PUBLIC_URL": "https://hooks.example.com", "MJ_APIKEY_PUBLIC": key, "MJ_APIKEY_PRIVATE": secret,
            "JETHOOK_CONNECTIONS__DEFAULT__BASE_URL": self._mailjet_server.url,
        }  # fmt: skip

    def order_death(self, service: ServiceProcess, statement: str, moment: str, *, nth: int = 1) -> None:
        """Let it kill itself at a statement, see `inside/sitecustomize.py`."""
        order = {"statement": statement, "moment": moment, "nth": nth, "after": random.Random(nth).uniform(0, 0.002)}
        path = self._order(self.services.index(service))
        path.with_suffix(".new").write_text(json.dumps(order))
        path.with_suffix(".new").rename(path)

    def await_death(self, service: ServiceProcess, seconds: float = 60) -> None:
        """By SIGKILL, as ordered; then it may be started again."""
        code = service.wait(seconds)
        assert code == -9, f"it ended with {code}: {service.logs[-2000:]}"
        self._order(self.services.index(service)).unlink()
        self.fault_ended()

    def _order(self, number: int) -> Path:
        return self.folder / f"die-{number}.json"

    # --- load ---

    @contextmanager
    def load(self, *services: ServiceProcess, rate: float = RATE) -> Iterator[list[kill9.Load]]:
        """Shared evenly; what was acknowledged counts afterwards, the rest is posted again by `settle`."""
        self._loads += 1
        with ExitStack() as stack:
            loads = [
                stack.enter_context(kill9.Load(one.callback_url(), self._loads * 100 + n, rate / len(services)))
                for n, one in enumerate(services)
            ]
            for load in loads:
                assert load.first_answer.wait(20), f"nothing was acknowledged: {load.statuses}"
            yield loads
        for load in loads:
            self.acknowledged |= set().union(*(ids_in(body) for body in load.acknowledged))
            self.owed += load.unanswered

    def run_on(self, seconds: float) -> None:
        """Let the load go on for a while."""
        threading.Event().wait(seconds)

    def fault_ended(self) -> None:
        """From here on it could be well again."""
        self._ended_at = time.monotonic()

    def await_taking(self, load: kill9.Load, seconds: float = 40) -> None:
        """Until a post is acknowledged again."""
        before = len(load.acknowledged)
        until(
            lambda: len(load.acknowledged) > before, "an acknowledged post", seconds=seconds,
            detail=lambda: f"{load.statuses}; {self.services[0].logs[-3000:]}",
        )  # fmt: skip
        self.again.append(time.monotonic() - self._ended_at)

    def settle(self, service: ServiceProcess) -> None:
        """Post again what was not answered, as Mailjet does, and wait until all of it is at its sink."""
        give_up = time.monotonic() + WELL_SECONDS
        self.posted_again += len(self.owed)
        while self.owed and time.monotonic() < give_up:
            taken = kill9._post_again(service.callback_url(), self.owed)
            self.acknowledged |= taken
            self.owed = [body for body in self.owed if not ids_in(body) <= taken]
        self.wrong += [f"{len(self.owed)} posts are never acknowledged"] if self.owed else []
        until(lambda: self._nothing_left(service), "everything at its sink", seconds=WELL_SECONDS, detail=self._missing)
        self.well_seconds = max(self.well_seconds, time.monotonic() - self._ended_at)

    def _nothing_left(self, service: ServiceProcess) -> bool:
        wanted = self.acknowledged - self.erased
        return wanted <= self.sink.accepted.keys() and service.get("/v1/sinks/crm")["backlog"] == 0

    def _missing(self) -> str:
        missing = self.acknowledged - self.erased - self.sink.accepted.keys()
        return f"{len(missing)} missing, {sorted(missing)[:3]}; {self.states()}"

    # --- the last word ---

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        database = Database(self.database_url)
        try:
            with database.reading() as connection:
                yield connection
        finally:
            database.close()

    def states(self) -> dict[str, int]:
        with self.reading() as connection:
            found = connection.execute(sa.select(deliveries.c.state, sa.func.count()).group_by(deliveries.c.state))
            return {str(state): int(count) for state, count in found}

    def stop(self) -> None:
        """Every service that runs, in order."""
        for service in self.services:
            if service._process is not None and (code := service.terminate()) != 0:
                self.wrong.append(f"a service ended with {code}")

    def outcome(self, fault: str) -> Outcome:
        """Judges what is in the database, and asks `jethook audit`."""
        with self.reading() as connection:
            stored = set(connection.execute(sa.select(events.c.id)).scalars())
            owed = set(connection.execute(sa.select(deliveries.c.event_id)).scalars())
            self.wrong += _integrity(connection) if self.is_sqlite else []
        self._compare(stored, owed)
        accepted = self.sink.accepted
        return Outcome(
            fault, "sqlite" if self.is_sqlite else "postgresql", len(self.acknowledged), len(stored), len(accepted),
            sum(accepted.values()) - len(accepted), self.posted_again, max(self.again, default=0.0), self.well_seconds,
            self.told, self.wrong,
        )  # fmt: skip

    def _compare(self, stored: set[str], owed: set[str]) -> None:
        wanted = self.acknowledged - self.erased
        for what, these in {
            "acknowledged and not stored": wanted - stored,
            "stored and never acknowledged": stored - wanted,
            "stored and not at the sink": stored - self.sink.accepted.keys(),
            "at the sink and never acknowledged": self.sink.accepted.keys() - self.acknowledged,
            "without a delivery": stored - owed,
            "deliveries without an event": owed - stored,
        }.items():
            if these:
                self.wrong.append(f"{len(these)} {what}")
        unsettled = {state: count for state, count in self.states().items() if state != "delivered"}
        self.wrong += [f"not delivered: {unsettled}"] if unsettled else []
        self.wrong += [f"audit: {difference}" for difference in audit_differences(self.database_url)]


def _integrity(connection: sa.Connection) -> list[str]:
    found: list[Any] = list(connection.exec_driver_sql("PRAGMA integrity_check").scalars().all())
    return [] if found == ["ok"] else [f"integrity_check: {found[:3]}"]
