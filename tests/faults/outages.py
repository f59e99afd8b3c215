"""The database goes away under load: crashed, stopped for a while, cut off, silent, or out of disk."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.kill9 import Load
from tests.e2e.service import until
from tests.faults.proxy import Line, Proxy
from tests.faults.stage import Skipped, Stage

GONE_SECONDS = 8.0
DISK_BYTES, SPARE_BYTES = 24 * 2**20, 12 * 2**20


def database_crash(stage: Stage) -> None:
    """`stop -m immediate`: the server ends as by a crash and recovers; twice."""
    assert stage.server is not None
    service = stage.service().start()
    with stage.load(service) as (load,):
        for _ in range(2):
            stage.run_on(1.5)
            stage.server.stop(how=signal.SIGQUIT)
            stage.run_on(0.5)
            stage.server.start()
            stage.fault_ended()
            stage.await_taking(load)
    _told(stage, load)
    stage.settle(service)


def database_gone(stage: Stage) -> None:
    """The fast shutdown ends every connection, and nobody listens for a while."""
    assert stage.server is not None
    service = stage.service().start()
    with stage.load(service) as (load,):
        stage.run_on(1)
        stage.server.stop()
        stage.run_on(GONE_SECONDS)
        stage.server.start()
        stage.fault_ended()
        stage.await_taking(load)
    _told(stage, load)
    stage.settle(service)


def network_cut(stage: Stage) -> None:
    """Every connection is reset, and new ones too."""
    _off_the_line(stage, Line.CUT)


def network_stall(stage: Stage) -> None:
    """Connections stay open and nothing comes through, longer than a post may wait for the database."""
    _off_the_line(stage, Line.STALLED, 20.0)


def _off_the_line(stage: Stage, line: Line, seconds: float = GONE_SECONDS) -> None:
    assert stage.server is not None
    proxy = stage.enter(Proxy(stage.server.port))
    service = stage.service(url=stage.database_url.replace(f":{stage.server.port}/", f":{proxy.port}/")).start()
    with stage.load(service) as (load,):
        stage.run_on(1)
        proxy.set(line)
        stage.run_on(seconds)
        proxy.set(Line.OPEN)
        stage.fault_ended()
        stage.await_taking(load)
    _told(stage, load)
    stage.settle(service)


def _told(stage: Stage, load: Load) -> None:
    """How posts were answered meanwhile: Mailjet posts again whatever is not 200, and gives up on a 4xx the sooner."""
    others = {str(status): count for status, count in load.statuses.items() if status != 200}
    stage.told.append("posts not 200: " + (", ".join(f"{status} x {n}" for status, n in sorted(others.items())) or "0"))
    wrong = [status for status in load.statuses if isinstance(status, int) and 400 <= status < 500]
    stage.wrong += [f"posts were answered {wrong}"] if wrong else []


# --- disk ------------------------------------------------------------------------------------------------------------


def disk_full(stage: Stage) -> None:
    """SQLite on a small tmpfs; then some room is given back."""
    if not can_mount():
        raise Skipped("a small tmpfs cannot be mounted here")
    folder, ballast = stage.enter(_small_disk(stage.folder / "disk"))
    stage.database_url = f"sqlite:///{folder / 'full.db'}"
    service = stage.service().start()
    with stage.load(service, rate=2000) as (load,):
        began = time.monotonic()
        until(lambda: load.statuses[503] > 20, "refused posts", seconds=60)
        stage.told.append(f"a tmpfs, full after {time.monotonic() - began:.0f} s")
        stage.run_on(2)
        if service.http.get("/livez").status_code != 200:
            stage.wrong.append("with a full disk it is not alive")
        ballast.unlink()
        stage.fault_ended()
        stage.await_taking(load)
    _told(stage, load)
    stage.settle(service)


@contextmanager
def _small_disk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """(a folder on a file system of its own, a file that takes the room to be given back)."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True)
    try:
        ballast = folder / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, SPARE_BYTES)
        yield folder, ballast
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as name:
        tried = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", name], capture_output=True, check=False
        )
        if tried.returncode == 0:
            subprocess.run(["umount", name], check=True)
    return tried.returncode == 0
