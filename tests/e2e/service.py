"""The real service as a process of its own, on a loopback port, under the control of a test."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2

from app.ingest.identity import event_id
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
API_KEY = "e2e-key-Vb81Zq"
PASSWORD = "e2e-callback-password-7Hq2"
T = TypeVar("T")


class ServiceProcess:
    """`python -m app serve` in `folder`; the port is chosen once, so that it may start again after its end.

    `environment` adds to, and overrides, a webhook `orders` with an explicit password and one REST key. `files` is how
    many it may have open.
    """

    def __init__(
        self, folder: Path, database_url: str, environment: Mapping[str, str] | None = None, *, files: int | None = None
    ) -> None:
        self.folder = folder
        self._files = files
        self.port = free_port()
        self.environment = {
            "JETHOOK_DATABASE_URL": database_url,
            "JETHOOK_HOST": "127.0.0.1",
            "JETHOOK_PORT": str(self.port),
            "JETHOOK_LOG_FORMAT": "json",
            "JETHOOK_API_KEYS": API_KEY,
            "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": PASSWORD,
            **(environment or {}),
        }
        self._log = folder / f"service-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.http = httpx2.Client(base_url=self.url, headers={"authorization": f"Bearer {API_KEY}"}, timeout=30)

    # --- where it is ---

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def callback_url(self, webhook: str = "orders") -> str:
        """As it would be registered at Mailjet."""
        return f"http://jethook:{PASSWORD}@127.0.0.1:{self.port}/webhooks/{webhook}"

    @property
    def logs(self) -> str:
        """Everything it printed, in all its lives."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def log_lines(self, name: str) -> list[dict[str, Any]]:
        """The log lines of this name."""
        lines = [json.loads(line) for line in self.logs.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == name]

    # --- life ---

    def start(self) -> Self:
        """Return once `/readyz` answers 200. Raises AssertionError with its log when it does not."""
        self.launch()
        self.wait_until_ready()
        return self

    def launch(self) -> None:
        """Start without waiting, for services that start together."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        environment = {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **self.environment}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"], cwd=self.folder, env=environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        if self._files is not None:
            resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (self._files, self._files))

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, f"it ended with {self._process.returncode}:\n{self.logs[-4000:]}"
            with contextlib.suppress(httpx2.TransportError):
                return self.http.get("/readyz", timeout=5).status_code == 200
            return False

        until(ready, "the service to be ready", seconds=40, detail=lambda: self.logs[-4000:])

    def kill(self) -> None:
        """SIGKILL: no farewell of any kind."""
        self._end(signal.SIGKILL)

    def ask_to_stop(self) -> None:
        """SIGTERM, without waiting."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def terminate(self, seconds: float = 30) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM, seconds)

    def wait(self, seconds: float = 30) -> int:
        """The exit code of a service that was asked to stop."""
        assert self._process is not None
        code = self._process.wait(seconds)
        self._process = None
        return code

    def _end(self, how: signal.Signals, seconds: float = 30) -> int:
        assert self._process is not None
        self._process.send_signal(how)
        return self.wait(seconds)

    def close(self) -> None:
        self.http.close()
        if self._process is not None:
            self.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what tests do with it ---

    def post(self, body: object, webhook: str = "orders") -> httpx2.Response:
        """One POST as Mailjet makes it; `body` is JSON text, or what becomes it."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        return self.http.post(f"/webhooks/{webhook}", content=content, headers=headers, auth=("jethook", PASSWORD))

    def get(self, path: str) -> Any:
        response = self.http.get(path)
        assert response.status_code == 200, response.text
        return response.json()

    def metric(self, line: str) -> float:
        """The value of one sample, named as it stands in `/metrics`."""
        text = self.http.get("/metrics").text
        found = [part.rpartition(" ")[2] for part in text.splitlines() if part.startswith(line + " ")]
        assert len(found) == 1, f"{line} stands {len(found)} times in /metrics"
        return float(found[0])


def audit_differences(database_url: str) -> list[str]:
    """What `jethook audit` finds wrong, by its own words; the command's exit code must say the same."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    environment = {**kept, "PYTHONPATH": str(ROOT), "JETHOOK_DATABASE_URL": database_url}
    done = subprocess.run(
        [sys.executable, "-m", "app", "audit", "--json"], env=environment, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    if not done.stdout:
        return [done.stderr]
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1), done.stderr
    return [str(difference) for difference in report["differences"]]


class SinkFarm:
    """Many sample sinks on one port: what is posted to `/name` reaches `farm["name"]`."""

    def __init__(self, names: Sequence[str], **options: Any) -> None:
        self._sinks = {name: SampleSink(**options) for name in names}
        self.server = LocalServer(self)

    def __getitem__(self, name: str) -> SampleSink:
        return self._sinks[name]

    def url(self, name: str) -> str:
        return f"{self.server.url}/{name}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        name = "" if scope["type"] == "lifespan" else scope["path"].strip("/").partition("/")[0]
        await self._sinks.get(name, next(iter(self._sinks.values())))(scope, receive, send)

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()


def until(
    ask: Callable[[], T], wanted: str, *, seconds: float = 20, every: float = 0.02,
    detail: Callable[[], object] = lambda: "",
) -> T:  # fmt: skip
    """Ask until the answer is true and return it; a deadline instead of a sleep."""
    give_up = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < give_up, f"waited {seconds} s for {wanted}; {detail()}"
        time.sleep(every)


def id_of(event: Mapping[str, Any], webhook: str = "orders") -> str:
    """The id under which the service stores this event."""
    return event_id(webhook, int(event["time"]), dict(event))


def ids_in(content: bytes, webhook: str = "orders") -> set[str]:
    """The ids of all events in one body."""
    value = json.loads(content)
    return {id_of(event, webhook) for event in (value if isinstance(value, list) else [value])}


@contextlib.contextmanager
def closing_all(services: Sequence[ServiceProcess]) -> Iterator[Sequence[ServiceProcess]]:
    try:
        yield services
    finally:
        for service in services:
            service.close()
