"""Processes that share a PostgreSQL die one after the other, by kill -9 at a random moment under load."""

from __future__ import annotations

import random
import time

import sqlalchemy as sa

from app.models import Lease
from tests.e2e.kill9 import Load
from tests.e2e.service import ServiceProcess, until
from tests.faults.mailjet import TYPES
from tests.faults.stage import Stage

TAKEOVER_SECONDS = 10.0
DUTIES = ("duties",)

leases: sa.Table = Lease.__table__  # type: ignore[attr-defined]


def roles(stage: Stage) -> None:
    """The receiver, then each of two workers."""
    receiver = stage.service({"JETHOOK_ROLE": "receive"})
    workers = [stage.service({"JETHOOK_ROLE": "deliver"}) for _ in range(2)]
    for one in (receiver, *workers):
        one.launch()
    for one in (receiver, *workers):
        one.wait_until_ready()
    rng = random.Random(5)
    with stage.load(receiver) as (load,):
        for one in (receiver, *workers):
            stage.run_on(rng.uniform(0.5, 1.5))
            one.kill()
            stage.fault_ended()
            one.start()
            stage.await_taking(load)
    stage.settle(receiver)
    stage.told.append("killed: the receiver, both workers")


def any_of_three(stage: Stage) -> None:
    """Each of three replicas once, the leader first; the others take its duties and its deliveries over."""
    replicas = [stage.service(stage.mailjet_environment()) for _ in range(3)]
    for replica in replicas:
        replica.launch()
    for replica in replicas:
        replica.wait_until_ready()
    until(lambda: all(_owner(stage, duty) for duty in DUTIES), "leaders")
    order = sorted(replicas, key=lambda one: _owner(stage, "duties") not in _tokens(one))
    takeovers: list[float] = []
    with stage.load(*replicas) as loads:
        for replica in order:
            stage.run_on(1)
            takeovers += _killed(stage, replica, loads[replicas.index(replica)])
    slowest = max(takeovers, default=0.0)
    stage.told.append(f"{len(takeovers)} duties taken over, the slowest after {slowest:.1f} s")
    stage.wrong += [f"a duty was taken over after {slowest:.1f} s"] if slowest > TAKEOVER_SECONDS else []
    _compare_callbacks(stage)
    stage.settle(replicas[0])


def _killed(stage: Stage, replica: ServiceProcess, load: Load) -> list[float]:
    """Seconds until each of its duties had another owner."""
    mine = _tokens(replica)
    held = [duty for duty in DUTIES if _owner(stage, duty) in mine]
    replica.kill()
    stage.fault_ended()
    began, took = time.monotonic(), {}
    until(
        lambda: all(_note(took, duty, began, _owner(stage, duty) not in mine) for duty in held),
        "another leader", seconds=20,
    )  # fmt: skip
    replica.start()
    stage.await_taking(load)
    return list(took.values())


def _note(took: dict[str, float], duty: str, began: float, over: bool) -> bool:
    if over:
        took.setdefault(duty, time.monotonic() - began)
    return over


def _owner(stage: Stage, duty: str) -> str | None:
    with stage.reading() as connection:
        return connection.execute(sa.select(leases.c.owner).where(leases.c.name == duty)).scalar_one_or_none()


def _tokens(replica: ServiceProcess) -> set[str]:
    """What it called itself, in all its lives."""
    return {line["owner"] for line in replica.log_lines("lease.gained")}


def _compare_callbacks(stage: Stage) -> None:
    writes = [request for request in stage.mailjet.requests if request.method != "GET"]
    callbacks = stage.mailjet.callbacks()
    stage.told.append(f"{len(callbacks)} callbacks at Mailjet by {len(writes)} writes")
    if (len(callbacks), len(writes)) != (TYPES, TYPES):
        stage.wrong.append(f"{len(callbacks)} callbacks by {len(writes)} writes")
