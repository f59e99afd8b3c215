"""The wall clock jumps under load: ahead by an hour and by 100 days, and back to before the start.

What is shifted is what the product reads (`app.clock`, `time.time`), see `inside/sitecustomize.py`; monotonic clocks go
on, as they do when a real clock is set. Deliveries have to arrive, and retention must not delete what is not old.
"""

from __future__ import annotations

from pathlib import Path

from tests.e2e.service import ServiceProcess, until
from tests.faults.kills import HURRY, _left, add_old_events
from tests.faults.stage import Stage

HOUR, DAY = 3600.0, 86_400.0
JUMPS = (HOUR, 100 * DAY, -2 * HOUR, 0.0)
KEPT, KEPT_DAYS = 500, 60  # too young to go by a clock that is right, too old 100 days later


def jumps(stage: Stage) -> None:
    clock = stage.folder / "clock"
    _set(clock, 0)
    service = stage.service({"FAULTS_CLOCK": str(clock), "FAULTS_HURRY": HURRY}).start()
    stage.sink.refused_share = 0.2  # what waits for a retry while the clock jumps must not wait for days
    young = add_old_events(stage.database_url, KEPT, KEPT_DAYS)
    with stage.load(service, rate=200) as (load,):
        for offset in JUMPS:
            _set(clock, offset)
            stage.fault_ended()
            stage.await_taking(load)
            stage.run_on(2.5)
            if offset > 10 * DAY:
                _must_be_held(stage, service)
        stage.fault_ended()
    kept = _left(stage, young)
    stage.told.append(f"{kept} of {KEPT} events of {KEPT_DAYS} days kept 100 days ahead")
    stage.wrong += [] if kept == KEPT else [f"{KEPT - kept} events deleted by a wrong clock"]
    stage.acknowledged |= set(young)
    stage.sink.accepted.update(young)  # they were delivered long ago
    stage.settle(service)


def _must_be_held(stage: Stage, service: ServiceProcess) -> None:
    until(lambda: service.log_lines("retention.held"), "retention to say that it waits", seconds=15)
    ahead = service.metric("jethook_clock_ahead_seconds")
    stage.told.append(f"retention waits, clock {ahead / DAY:.0f} days ahead")


def _set(clock: Path, seconds: float) -> None:
    new = clock.with_suffix(".new")
    new.write_text(str(seconds))
    new.rename(clock)
