"""kill -9 under load: what was answered 200 must be stored and reach its sink, however often the service dies.

`python -m tests.e2e.kill9 --rounds 20 --database sqlite` (or `postgresql`) prints a table and exits 1 on a loss. Load
comes from the engine of `jethook simulate`; what was not answered is posted again, as Mailjet does.
`jethook audit` has the last word.

With `--batch N` the sink takes batches of up to N; a batch that comes again under its id must hold the same events.
With `--probe` the sink refuses until its breaker is open, lets the probe hang, and the service is killed meanwhile.
With `--replay` every event is replayed afterwards, and the service killed as often again in the middle of that.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import sqlalchemy as sa

from app.db import Database
from app.delivery.batching import batch_id
from app.models import Delivery, Event
from app.simulator.posting import PostResult, Target, make_session, post
from app.simulator.server import LocalServer
from app.simulator.shaping import Body
from app.simulator.simulate import SimulateOptions, simulate
from app.simulator.sink import Answer, SampleSink
from tests.e2e.service import ServiceProcess, audit_differences, id_of, ids_in, until
from tests.postgres import running_postgres

PROBE_RATE = 100
# Its breaker opens soon and probes soon, and no delivery is given up for that.
SOON_OPEN = {
    "JETHOOK_SINKS__CRM__BREAKER_FAILURES": "3", "JETHOOK_SINKS__CRM__BREAKER_COOLDOWN_SECONDS": "0.5",
    "JETHOOK_SINKS__CRM__RETRY_SCHEDULE_SECONDS": ",".join(["0.2"] * 200),
}  # fmt: skip
RATE = 1500  # events a second: more than a busy account, less than fills the disk of a test machine
CAUGHT_UP_SECONDS = 60  # leases of a killed process run out after 12


@dataclass(slots=True)
class Round:
    """One life of the service, in events: under load, or in the middle of a replay."""

    acknowledged: int
    posted_again: int
    delivered: int


@dataclass(slots=True)
class Report:
    """Sets of event ids. `repeats` counts what a sink got more than once, each beyond the first."""

    rounds: list[Round] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    delivered: set[str] = field(default_factory=set)
    repeats: int = 0
    replayed: set[str] = field(default_factory=set)
    strange: list[str] = field(default_factory=list)  # what must not be, in words
    unsettled: int = 0
    seed: int = 1

    @property
    def not_stored(self) -> set[str]:
        return self.acknowledged - self.stored

    @property
    def not_delivered(self) -> set[str]:
        return self.stored - self.delivered

    @property
    def is_clean(self) -> bool:
        return not (self.not_stored or self.not_delivered or self.strange or self.unsettled)

    def __str__(self) -> str:
        return (
            f"acknowledged {len(self.acknowledged)}, stored {len(self.stored)}, delivered {len(self.delivered)},"
            f" repeats {self.repeats}; lost {len(self.not_stored)}, not delivered {len(self.not_delivered)},"
            f" unsettled {self.unsettled}, strange {self.strange[:5]}"
        )


class Load:
    """`simulate` on a thread of its own, for as long as a `with` block lasts."""

    def __init__(self, url: str, seed: int, rate: float = RATE) -> None:
        self._options = SimulateOptions(
            url=url, rate=rate, count=0, group=8, mixed=True, seed=seed, retries=0.05, duplicates=0.1, disorder=0.1,
            concurrency=16, timeout_seconds=10,
        )  # fmt: skip
        self.acknowledged: list[bytes] = []
        self.unanswered: list[bytes] = []
        self.statuses: Counter[int | str] = Counter()
        self.first_answer = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)

    async def _run(self) -> None:
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self._ready.set()
        await simulate(self._options, stop=self._stop, on_answer=self._note)

    def _note(self, body: Body, result: PostResult) -> None:
        self.statuses[result.status or result.failure or "broken"] += 1
        (self.acknowledged if result.is_acknowledged else self.unanswered).append(body.content)
        if result.is_acknowledged:
            self.first_answer.set()

    def __enter__(self) -> Load:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()


def run(
    database_url: str, folder: Path, *, rounds: int, seed: int = 1, tell: Callable[[str], None] = lambda line: None,
    batch: int = 1, replay: bool = False, probe: bool = False, rate: float = RATE,
) -> Report:  # fmt: skip
    """Kill the service `rounds` times at a random moment under load, let it catch up, and compare."""
    rng = random.Random(seed)
    report = Report(seed=seed)
    sink = SampleSink(keep_ids=10_000_000, keep=10_000_000)
    with LocalServer(sink) as server:
        environment = {
            "JETHOOK_SINKS__CRM__URL": server.url, "JETHOOK_SINKS__CRM__RETRY_SCHEDULE_SECONDS": "0.2,0.2,0.2",
            "JETHOOK_LOG_LEVEL": "warning", "JETHOOK_SINKS__CRM__BATCH_SIZE": str(batch),
            "JETHOOK_SINKS__CRM__BATCH_LINGER_SECONDS": "0.05",
        }  # fmt: skip
        if probe:
            environment |= SOON_OPEN
        service = ServiceProcess(folder, database_url, environment)
        owed: list[bytes] = []
        try:
            for number in range(1, rounds + 1):
                service.start()
                again = _post_again(service.callback_url(), owed)
                report.acknowledged |= again
                with Load(service.callback_url(), seed * 1000 + number, rate) as load:
                    load.first_answer.wait(10)
                    threading.Event().wait(rng.uniform(0.0, 1.2))  # the random moment
                    service.kill()
                answered = _ids(load.acknowledged)
                report.acknowledged |= answered
                owed = load.unanswered[:400]
                report.rounds.append(Round(len(answered), len(again), len(_events_at(sink, batch))))
                one = report.rounds[-1]
                tell(f"{number:5}  {one.acknowledged:12}  {one.posted_again:12}  {one.delivered:17}")
            service.start()
            report.acknowledged |= _post_again(service.callback_url(), owed)
            if probe:
                _probe(report, service, sink, rounds=rounds, rng=rng, tell=tell)
            _wait_until_caught_up(service, sink, report.acknowledged, batch)
            if replay:
                _replay(report, service, sink, rounds=rounds, rng=rng, tell=tell, batch=batch)
            assert service.terminate() == 0, service.logs[-3000:]
        finally:
            service.close()
        _compare(report, database_url, sink, batch)
    return report


def _probe(
    report: Report, service: ServiceProcess, sink: SampleSink, *, rounds: int, rng: random.Random,
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Kill it while one delivery probes a sink whose breaker is open."""

    def wait_for(state: str) -> None:
        until(lambda: service.get("/v1/sinks/crm")["breaker"] == state, f"a breaker that is {state}", seconds=40)

    for number in range(1, rounds + 1):
        sink.answer_always(Answer(503))
        with Load(service.callback_url(), report.seed * 7000 + number, PROBE_RATE) as load:
            wait_for("open")
            sink.answer_always(Answer.hanging())
            wait_for("half_open")
            threading.Event().wait(rng.uniform(0.0, 0.5))
            service.kill()
        sink.answer_always(Answer(200))
        report.acknowledged |= (answered := _ids(load.acknowledged))
        report.rounds.append(Round(len(answered), 0, sink.total))
        tell(f"{number:5}  {len(answered):12}  {'probe':>12}  {sink.total:17}")
        service.start()
        report.acknowledged |= _post_again(service.callback_url(), load.unanswered)


def _replay(
    report: Report, service: ServiceProcess, sink: SampleSink, *, rounds: int, rng: random.Random,
    tell: Callable[[str], None], batch: int,
) -> None:  # fmt: skip
    """Kill it in the middle of a replay of everything, at a rate by which it lasts as long as that takes."""
    stored = len(_events_at(sink, batch))
    rate = max(50.0, stored / (4.0 * rounds))
    answer = service.http.post("/v1/replays", json={"sink": "crm", "filter": {}, "rate_per_second": rate})
    assert answer.status_code in (200, 201, 202), answer.text
    path = f"/v1/replays/{answer.json()['id']}"
    for number in range(1, rounds + 1):
        before = len(_replayed(sink, batch))
        # In the middle: something of it came in this life, and the moment after is random.
        until(
            lambda b=before: len(_replayed(sink, batch)) > b or _has_ended(service, path),
            "a replayed event",
            seconds=40,
        )
        threading.Event().wait(rng.uniform(0.0, 0.6))
        came = len(_replayed(sink, batch))
        service.kill()
        report.rounds.append(Round(0, 0, came))
        tell(f"{number:5}  {'replay':>12}  {'':12}  {came:17}")
        service.start()
    left = stored / rate  # if hardly anything of it was done between the kills
    until(lambda: _has_ended(service, path), "the end of the replay", seconds=CAUGHT_UP_SECONDS + left)
    ended = service.get(path)
    report.replayed = _replayed(sink, batch)
    if (ended["state"], ended["done"]) != ("done", stored):
        report.strange.append(f"the replay of {stored} ended so: {ended}")
    if len(report.replayed) != stored:
        report.strange.append(f"{stored - len(report.replayed)} were not replayed")


def _has_ended(service: ServiceProcess, path: str) -> bool:
    return bool(service.get(path)["state"] != "running")


def _events_at(sink: SampleSink, batch: int) -> set[str]:
    """The ids of the events that came, alone or in batches."""
    if batch == 1:
        return set(sink.counts)
    return _ids({request.webhook_id: request.body for request in sink.requests}.values())


def _replayed(sink: SampleSink, batch: int) -> set[str]:
    marked = [request for request in sink.requests if (b"x-jethook-replay", b"true") in request.raw_headers]
    if batch == 1:
        return {str(request.webhook_id) for request in marked}
    return _ids({request.webhook_id: request.body for request in marked}.values())


def _post_again(url: str, bodies: Iterable[bytes]) -> set[str]:
    """Post until answered 200, as Mailjet repeats; the ids that are acknowledged now."""

    async def post_all() -> list[bytes]:
        target, slots, done = Target.parse(url), asyncio.Semaphore(16), []
        async with make_session(16, 10) as session:

            async def one(body: bytes) -> None:
                async with slots:
                    if (await post(session, target, body)).is_acknowledged:
                        done.append(body)

            await asyncio.gather(*(one(body) for body in bodies))
        return done

    return _ids(asyncio.run(post_all()))


def _ids(bodies: Iterable[bytes]) -> set[str]:
    return set().union(*(ids_in(body) for body in bodies))


def _wait_until_caught_up(service: ServiceProcess, sink: SampleSink, acknowledged: set[str], batch: int) -> None:
    def nothing_left() -> bool:
        return service.get("/v1/sinks/crm")["backlog"] == 0 and acknowledged <= _events_at(sink, batch)

    def detail() -> str:
        return f"{service.get('/v1/sinks/crm')}, {len(acknowledged - _events_at(sink, batch))} missing"

    # Seldom: leases have to run out, and who counts what is left takes the processor from who sends it.
    until(nothing_left, "every acknowledged event at its sink", seconds=CAUGHT_UP_SECONDS, every=0.25, detail=detail)


def _compare(report: Report, database_url: str, sink: SampleSink, batch: int) -> None:
    database = Database(database_url)
    try:
        with database.reading() as connection:
            events: sa.Table = Event.__table__  # type: ignore[attr-defined]
            deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]
            ids = list(connection.execute(sa.select(events.c.id)).scalars())
            states = Counter(connection.execute(sa.select(deliveries.c.state)).scalars())
            owed = set(connection.execute(sa.select(deliveries.c.event_id)).scalars())
            if database.is_sqlite:
                found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
                report.strange += [] if found == ["ok"] else [f"integrity_check: {len(found)} lines, {found[:3]}"]
    finally:
        database.close()
    report.strange += [f"audit: {difference}" for difference in audit_differences(database_url)]
    counts = sink.counts
    report.stored, report.delivered = set(ids), _events_at(sink, batch)
    report.repeats = sum(counts.values()) - len(counts)
    report.unsettled = sum(states.values()) - states["delivered"]
    if len(ids) != len(report.stored):
        report.strange.append("an event is stored twice")
    if owed != report.stored:
        report.strange.append(f"{len(owed ^ report.stored)} events without their delivery, or the reverse")
    if report.delivered - report.stored:
        report.strange.append(f"{len(report.delivered - report.stored)} delivered that are not stored")
    # A repeat carries the id of the very same content.
    if batch == 1:
        wrong = sum(1 for request in sink.requests if request.webhook_id != id_of(request.json()))
    else:
        wrong = sum(1 for request in sink.requests if request.webhook_id != batch_id(map(id_of, request.json())))
    report.strange += [f"{wrong} requests bear another id than that of what they hold"] if wrong else []
    large = sum(1 for request in sink.requests if batch > 1 and len(request.json()) > batch)
    report.strange += [f"{large} batches of more than {batch}"] if large else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="the sink's BATCH_SIZE")
    parser.add_argument("--replay", action="store_true", help="kill it in the middle of a replay as well")
    parser.add_argument("--probe", action="store_true", help="kill it while a delivery probes a refusing sink as well")
    options = parser.parse_args()

    def go(url: str, folder: Path) -> Report:
        return run(
            url, folder, rounds=options.rounds, seed=options.seed, tell=lambda line: print(line, flush=True),
            batch=options.batch, replay=options.replay, probe=options.probe,
        )  # fmt: skip

    print("round  acknowledged  posted again  delivered in all")
    with tempfile.TemporaryDirectory(prefix="jethook-kill9-") as name:
        folder = Path(name)
        if options.database == "sqlite":
            report = go(f"sqlite:///{folder / 'kill9.db'}", folder)
        else:
            with running_postgres() as server:
                with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
                    connection.execute("CREATE DATABASE kill9")
                report = go(f"{server.url}/kill9", folder)
    print(f"{options.database}, {options.rounds} rounds: {report}")
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
