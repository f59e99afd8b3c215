"""Mailjet's API is down, then slow, then lies. Receiving goes on, and in the end every callback is there once."""

from __future__ import annotations

import time

from tests.e2e.service import ServiceProcess, until
from tests.faults.stage import Stage

NOTHING = {"Count": 0, "Data": [], "Total": 0}
TYPES = 7
WORSE_SECONDS = 5.0


def down(stage: Stage) -> None:
    """503 for everything from before the start."""
    stage.mailjet.set_down(True)
    _registered_in_the_end(stage, lambda: stage.mailjet.set_down(False))


def slow(stage: Stage) -> None:
    """Every call takes longer than anybody should wait."""
    stage.mailjet.set_slow(30)
    _registered_in_the_end(stage, lambda: stage.mailjet.set_slow(0))


def lying(stage: Stage) -> None:
    """It tells of no callbacks where there are some, does what it is asked for and hangs up, and answers 200 with
    HTML, or with half of its JSON."""
    mailjet = stage.mailjet
    mailjet.fail_next(2, 200, b"<html>We are back soon</html>")
    mailjet.fail_next(2, 200, b'{"Count": 7, "Data": [{"ID": 1')
    mailjet.lose_answers(4, method="POST")
    mailjet.fail_next(3, 200, NOTHING, method="GET")
    _registered_in_the_end(stage, lambda: None)


def _registered_in_the_end(stage: Stage, mend) -> None:
    service = stage.service({**stage.mailjet_environment(), "JETHOOK_REGISTER_EVERY_SECONDS": "2"}).start()
    with stage.load(service) as (load,):
        stage.run_on(WORSE_SECONDS)
        mend()
        stage.fault_ended()
        stage.await_taking(load)
        until(lambda: _is_registered(service), "every callback to be ours", seconds=60)
        stage.told.append(f"registered {time.monotonic() - stage._ended_at:.0f} s after")
        stage.run_on(3)  # another round changes nothing
    callbacks = stage.mailjet.callbacks()
    types = {callback.event_type for callback in callbacks}
    if len(callbacks) != TYPES or len(types) != TYPES:
        stage.wrong.append(f"{len(callbacks)} callbacks of {len(types)} types")
    others = {str(status): count for status, count in load.statuses.items() if status != 200}
    stage.wrong += [f"posts were answered {others}"] if others else []
    stage.told.append(f"{len(stage.mailjet.requests)} calls, posts not 200: {sum(others.values())}")
    stage.settle(service)


def _is_registered(service: ServiceProcess) -> bool:
    found = service.get("/v1/webhooks/orders")
    return bool(found["registration"] == "ok")
