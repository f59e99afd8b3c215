"""Servers and helpers as processes of their own, on loopback, ended with the block that started them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """A running server and its children."""

    port: int
    process: psutil.Process

    def cpu_seconds(self) -> float:
        times = [p.cpu_times() for p in self._family()]
        return float(sum(t.user + t.system for t in times))

    def rss_bytes(self) -> int:
        return int(sum(p.memory_info().rss for p in self._family()))

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours without what would set Jethook or Django up, plus `extra`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JETHOOK_", "DJANGO_", "MJ_", "PYTHON"))}
    return kept | {"PYTHONPATH": str(ROOT)} | dict(extra)


@contextlib.contextmanager
def serving(
    arguments: Sequence[str], *, port: int, folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run `python ARGUMENTS` until the block ends; it begins once the port answers HTTP.

    Killed at the end: what it keeps lies in `folder`, which is thrown away. Raises RuntimeError with the log's end
    when it does not start.
    """
    with tempfile.TemporaryFile(dir=folder) as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment(env or {}), stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            server = Server(port, psutil.Process(process.pid))
            if not _answers(server, process):
                log.seek(0)
                raise RuntimeError(f"{arguments} did not start:\n{log.read()[-3000:].decode(errors='replace')}")
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _answers(server: Server, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            server.get("/")
            return True
        time.sleep(0.05)
    return False


def run_json(arguments: Sequence[str], *, seconds: float) -> Any:
    """What `python ARGUMENTS` prints, as JSON. Raises RuntimeError when it fails or takes longer than `seconds`."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment({}), stdin=subprocess.DEVNULL,
            capture_output=True, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{arguments[:2]} took longer than {seconds} s") from None
    if done.returncode:
        raise RuntimeError(f"{arguments[:2]} failed:\n{done.stderr[-3000:].decode(errors='replace')}")
    return json.loads(done.stdout)


def run_quietly(arguments: Sequence[str], *, folder: Path, env: Mapping[str, str]) -> None:
    """Run `python ARGUMENTS` to its end. Raises CalledProcessError."""
    subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(env), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, timeout=60, check=True,
    )  # fmt: skip
