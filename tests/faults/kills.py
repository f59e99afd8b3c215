"""kill -9 in the middle: of a commit, a claim, a completion, a migration, a replay, retention, an erasure, a rebuild.

The process ends itself with SIGKILL at a statement of our choice, once right after it, once within the commit, and once
after the commit before anybody was told. What follows is what any crash leaves: leases that must run out, work that
must be found again.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import httpx2
import sqlalchemy as sa

from app import ledger
from app.db import Database
from app.ledger import Entry
from app.simulator.traffic import make_events
from tests.benchmarks import filling
from tests.e2e.service import ServiceProcess, id_of, until
from tests.faults.stage import Stage, events

MOMENTS = ("statement", "commit", "committed")
STORED = "^INSERT INTO events"
CLAIMED = r"UPDATE deliveries SET .* RETURNING"
COMPLETED = r"^UPDATE deliveries SET state = .* FROM \(VALUES"
TAKEN_UP = r"^INSERT INTO deliveries .* DO UPDATE"
DELETED = "^DELETE FROM events"
CLEARED = "^DELETE FROM stat_counts"
MADE, NOTED = "CREATE TABLE deliveries", "INSERT INTO alembic_version"
MIGRATION_DEATHS = ((MADE, "statement"), (NOTED, "statement"), (NOTED, "commit"))  # the last one may be too late
HURRY = "app.maintenance.retention:ROUND_SECONDS=1,app.maintenance.retention:REST=1"
OLD_EVENTS, OLD_DAYS = 3000, 120
PERSON, MAILS = "ada@example.org", 400


def commit(stage: Stage) -> None:
    _lives(stage, STORED, nths=(20, 21, 30))


def claim(stage: Stage) -> None:
    stage.sink.refused_share = 0.3  # what is refused is claimed from the table again
    _lives(stage, CLAIMED, nths=(3, 5, 8))


def completion(stage: Stage) -> None:
    _lives(stage, COMPLETED, nths=(10, 11, 20))


def _lives(stage: Stage, statement: str, *, nths: Sequence[int], provoke: Callable[[int], None] | None = None) -> None:
    """One life for each moment, under load; then all has to be at its sink."""
    service = stage.service().start()
    for number, (moment, nth) in enumerate(zip(MOMENTS, nths, strict=True)):
        with stage.load(service) as (load,):
            stage.order_death(service, statement, moment, nth=nth)
            if provoke is not None:
                with suppress(httpx2.TransportError):
                    provoke(number)
            stage.await_death(service)
            service.start()
            stage.await_taking(load)
    stage.settle(service)


def migration(stage: Stage, deaths: Sequence[tuple[str, str]] = MIGRATION_DEATHS) -> None:
    """On the empty database; the next start finds either nothing or everything."""
    service = stage.service()
    for statement, moment in deaths:
        stage.order_death(service, statement, moment)
        service.launch()
        stage.await_death(service)
    service.start()
    with stage.load(service) as (load,):
        stage.await_taking(load)
        stage.run_on(1)
    stage.settle(service)


def replay(stage: Stage) -> None:
    """Of everything, begun once; every event comes to the sink again."""
    service = stage.service().start()
    with stage.load(service, rate=800):
        stage.run_on(2)
    stage.fault_ended()
    stage.settle(service)
    wanted = set(stage.acknowledged)
    path = _begin_replay(service, rate=len(wanted) / 6)
    for moment, nth in zip(MOMENTS, (2, 2, 2), strict=True):
        stage.order_death(service, TAKEN_UP, moment, nth=nth)
        stage.await_death(service)
        service.start()
    until(lambda: service.get(path)["state"] != "running", "the end of the replay", seconds=60)
    stage.well_seconds = time.monotonic() - stage._ended_at
    ended = service.get(path)
    until(lambda: wanted <= stage.sink.replayed.keys(), "every event again", seconds=20)
    if (ended["state"], ended["done"]) != ("done", len(wanted)):
        stage.wrong.append(f"the replay of {len(wanted)} ended so: {ended}")
    again = sum(stage.sink.replayed.values()) - len(stage.sink.replayed)
    stage.told.append(f"{len(stage.sink.replayed)} replayed, {again} of them more than once")


def _begin_replay(service: ServiceProcess, *, rate: float) -> str:
    answer = service.http.post("/v1/replays", json={"sink": "crm", "filter": {}, "rate_per_second": rate})
    assert answer.status_code in (200, 201, 202), answer.text
    return f"/v1/replays/{answer.json()['id']}"


def retention(stage: Stage) -> None:
    """Old events go while new ones come; what one life leaves the next one deletes."""
    left: list[int] = []
    service = stage.service({"FAULTS_HURRY": HURRY}).start()
    for moment in MOMENTS:
        stage.order_death(service, DELETED, moment, nth=3)
        with stage.load(service) as (load,):
            old = add_old_events(stage.database_url, OLD_EVENTS)
            stage.await_death(service)
            service.start()
            stage.await_taking(load)
        left.append(_left(stage, old))
        until(lambda old=old: _left(stage, old) == 0, "the old events to be gone", seconds=90)  # type: ignore[misc]
    stage.settle(service)
    stage.told.append(f"of {OLD_EVENTS} old events {' / '.join(map(str, left))} left by the dead, 0 at the end")


def add_old_events(database_url: str, count: int, days: float = OLD_DAYS) -> list[str]:
    """Events of that age, delivered then; their ids."""
    start = int(time.time() - days * 86_400)
    traffic = list(itertools.islice(make_events(time.time_ns() % 1000, count, start, step_seconds=1), count))
    event_rows, delivery_rows = filling.rows_of(traffic)
    ids = [row[0] for row in event_rows]

    def insert(connection: sa.Connection) -> None:
        filling._insert(connection, event_rows, delivery_rows)
        ledger.record(
            connection, Entry.MADE, events=[(event_id, filling.WEBHOOK) for event_id in ids],
            deliveries=[(event_id, filling.WEBHOOK, filling.SINK) for event_id in ids],
        )  # fmt: skip

    database = Database(database_url)
    try:
        database.write(insert)
    finally:
        database.close()
    return ids


def _left(stage: Stage, ids: Sequence[str]) -> int:
    with stage.reading() as connection:
        counting = sa.select(sa.func.count()).select_from(events).where(events.c.id.between(min(ids), max(ids)))
        return int(connection.execute(counting).scalar_one())


def erasure(stage: Stage) -> None:
    """Asked for once in each life, of a person with many events."""
    service = stage.service().start()
    for number, moment in enumerate(MOMENTS):
        mails = [_mail(number * MAILS + n) for n in range(MAILS)]
        assert service.post(mails).status_code == 200
        stage.acknowledged |= (ids := {id_of(mail) for mail in mails})
        until(lambda ids=ids: ids <= stage.sink.accepted.keys(), "the person's events at the sink")  # type: ignore[misc]
        stage.erased |= ids
        with stage.load(service) as (load,):
            stage.order_death(service, DELETED, moment)
            with suppress(httpx2.TransportError):
                service.http.delete(f"/v1/recipients/{PERSON}")
            stage.await_death(service)
            service.start()
            stage.await_taking(load)
        until(lambda: not service.get(f"/v1/events?email={PERSON}")["data"], "the person to be forgotten", seconds=30)
    stage.settle(service)
    stage.told.append(f"{len(stage.erased)} events of a person erased")


def _mail(number: int) -> dict[str, object]:
    return {"event": "sent", "time": int(time.time()), "email": PERSON, "MessageID": 90_000_000 + number}


def rebuild(stage: Stage) -> None:
    """`jethook rebuild stats` beside the service; the figures must be those of the events."""
    service = stage.service().start()
    order = stage.service()  # never started: its order is for the command
    for moment in MOMENTS:
        with stage.load(service):
            stage.run_on(1.5)  # something is counted
            stage.order_death(order, CLEARED, moment, nth=2)
            code = _rebuild(order)
            if code != -9:
                stage.wrong.append(f"the rebuild ended with {code}")
            stage.fault_ended()
            stage.run_on(0.5)
    stage._order(1).unlink()
    stage.settle(service)
    if code := _rebuild(order):
        stage.wrong.append(f"the last rebuild ended with {code}")
    until(lambda: _counted(service) == len(stage.acknowledged), "statistics that fit", detail=lambda: _counted(service))
    stage.told.append(f"{_counted(service)} events in the statistics")


def _rebuild(order: ServiceProcess) -> int:
    environment = {"PATH": os.environ["PATH"], **order.environment}
    command = [sys.executable, "-m", "app", "rebuild", "stats"]
    return subprocess.run(command, cwd=order.folder, env=environment, capture_output=True, check=False).returncode


def _counted(service: ServiceProcess) -> int:
    answer = service.get("/v1/stats?interval=day")
    return sum(sum(row["counts"].values()) for row in answer["data"])
