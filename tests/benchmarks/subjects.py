"""What is measured: Jethook in its roles and the servers it is compared with. Each start has a database of its own."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.processes import Server, free_port, run_quietly, serving

CREDENTIALS = "jethook:benchmark-password"
WORKERS = 2  # of gunicorn: one for each core of the machine the targets were set on


@dataclass(frozen=True)
class Target:
    """Where the load generator posts to."""

    server: Server
    path: str
    keeps: bool = True


@contextlib.contextmanager
def empty_route(folder: Path) -> Iterator[Target]:
    port = free_port()
    with serving(["-m", "tests.benchmarks.empty_route", str(port)], port=port, folder=folder) as server:
        yield Target(server, "/", keeps=False)


@contextlib.contextmanager
def jethook(
    folder: Path, *, role: str, sinks: Sequence[str], extra: Mapping[str, str] | None = None
) -> Iterator[Target]:
    """The service as `jethook serve` runs it, on SQLite; `sinks` are URLs, `extra` more of the environment."""
    port = free_port()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        env = {
            "JETHOOK_DATABASE_URL": f"sqlite:///{own}/jethook.db",
            "JETHOOK_PORT": str(port),
            "JETHOOK_ROLE": role,
            "JETHOOK_API_KEYS": "benchmark-key",
            "JETHOOK_WEBHOOKS__DEFAULT__PASSWORDS": CREDENTIALS.partition(":")[2],
            "JETHOOK_LOG_LEVEL": "warning",
        }
        env |= {f"JETHOOK_SINKS__SINK{number}__URL": url for number, url in enumerate(sinks)}
        with serving(["-m", "app", "serve"], port=port, folder=Path(own), env=env | dict(extra or {})) as server:
            yield Target(server, "/webhooks/default")


@contextlib.contextmanager
def anymail(folder: Path, *, atomic: bool) -> Iterator[Target]:
    """django-anymail under gunicorn, each event one row through the ORM; `atomic`: one transaction a request."""
    port = free_port()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        env = {
            "DJANGO_SETTINGS_MODULE": "tests.benchmarks.anymail_site.settings",
            "BENCHMARK_DATABASE": f"{own}/anymail.db",
            "BENCHMARK_ATOMIC": "1" if atomic else "0",
            "BENCHMARK_CREDENTIALS": CREDENTIALS,
        }
        run_quietly(["-m", "django", "migrate", "--run-syncdb", "--verbosity", "0"], folder=Path(own), env=env)
        gunicorn = ["-m", "gunicorn", "tests.benchmarks.anymail_site.wsgi", "--bind", f"127.0.0.1:{port}"]
        options = ["--workers", str(WORKERS), "--log-level", "warning", "--no-control-socket"]
        with serving(gunicorn + options, port=port, folder=Path(own), env=env) as server:
            yield Target(server, "/anymail/mailjet/tracking/")


@dataclass(frozen=True)
class Sink:
    server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/events"

    def received(self) -> dict[str, Any]:
        """`requests`, `distinct` ids, `events` in them, `last_at` of the machine's monotonic clock."""
        report: dict[str, Any] = json.loads(self.server.get("/")[1])
        return report

    def arrivals(self) -> dict[str, float]:
        """A body's digest -> when it came first, on the machine's monotonic clock."""
        arrivals: dict[str, float] = json.loads(self.server.get("/arrivals")[1])
        return arrivals


@contextlib.contextmanager
def sink(folder: Path, manner: str = "ok") -> Iterator[Sink]:
    """`manner`: ok, refuse (503) or hang."""
    port = free_port()
    with serving(["-m", "tests.benchmarks.sink", str(port), manner], port=port, folder=folder) as server:
        yield Sink(server)
