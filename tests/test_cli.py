"""The command `jethook` as a person meets it: its exit codes, and sentences instead of tracebacks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app import __version__

ROOT = Path(__file__).parent.parent
Jethook = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def jethook(tmp_path: Path) -> Jethook:
    """Runs a command in an empty folder with nothing but the given environment."""

    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app", *arguments],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"} | environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


def test_version(jethook: Jethook):
    done = jethook("--version")

    assert (done.returncode, done.stdout) == (0, f"jethook {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("serve", "--nonsense"), ("register", "--webhook", "nobody"), ("simulate", "--count", "x")],
)
def test_wrong_usage_is_2(jethook: Jethook, arguments: tuple[str, ...]):
    done = jethook(*arguments)

    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["serve", "register", "config", "healthcheck"])
def test_wrong_settings_are_2_and_all_told(jethook: Jethook, command: str):
    done = jethook(command, JETHOOK_PROT="1", JETHOOK_PORT="[bold]", JETHOOK_SECRET_KEY="HUSH")

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "The settings do not fit:",
        "  JETHOOK_PROT: no such setting; did you mean JETHOOK_PORT?",
        "  JETHOOK_PORT: input should be a valid integer, unable to parse string as an integer",
        "  JETHOOK_SECRET_KEY: must have at least 16 characters",
    ]


def test_config_shows_the_settings_in_force_without_secrets(jethook: Jethook, tmp_path: Path):
    (tmp_path / ".env").write_text("JETHOOK_PORT=9000\nJETHOOK_HOST=0.0.0.0\n")

    done = jethook(
        "config",
        JETHOOK_PORT="9001",
        JETHOOK_API_KEYS="HUSH",
        MJ_APIKEY_PRIVATE="HUSH",
        JETHOOK_DATABASE_URL="postgresql://u:HUSH@db/jethook",
        JETHOOK_SINKS__CRM__URL="https://u:HUSH@crm.example.com/[b]?t=HUSH",
    )

    rows = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert done.returncode == 0
    assert "HUSH" not in done.stdout + done.stderr
    assert (rows["JETHOOK_PORT"], rows["JETHOOK_HOST"]) == ("9001", "0.0.0.0")
    assert rows["JETHOOK_SINKS__CRM__URL"] == "https://u:***@crm.example.com/[b]?t=***"
    assert rows["JETHOOK_WEBHOOKS__DEFAULT__EVENTS"] == "sent,open,click,bounce,spam,blocked,unsub"


def test_the_reference_needs_no_settings(jethook: Jethook):
    done = jethook("config", "--reference", JETHOOK_PROT="1")

    assert done.returncode == 0
    assert "| `JETHOOK_PUBLIC_URL` | unset | where Mailjet reaches us; unset: registration is off |" in done.stdout


def test_migrate_makes_the_schema_and_then_finds_it(jethook: Jethook, tmp_path: Path):
    first, second = jethook("migrate"), jethook("migrate")

    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout.endswith("(was empty)\n")
    assert second.stdout.endswith("(was there already)\n")
    assert (tmp_path / "jethook.db").is_file()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        pytest.param("/does/not/exist/jethook.db", "does not exist", id="no directory"),
        pytest.param("/proc/jethook.db", "unable to open database file", id="nobody may write there"),
        pytest.param("/proc", "is a directory", id="a directory"),
        pytest.param("/dev/null", "cannot be used", id="no database"),
        pytest.param("", "name a file", id="in memory"),
    ],
)
def test_a_database_that_cannot_be_opened_is_1_and_names_the_setting(jethook: Jethook, path: str, says: str):
    done = jethook("migrate", JETHOOK_DATABASE_URL=f"sqlite:///{path}")

    assert done.returncode == 1
    assert "JETHOOK_DATABASE_URL" in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_does_not_start_without_its_database(jethook: Jethook):
    done = jethook("serve", JETHOOK_DATABASE_URL="sqlite:////does/not/exist/jethook.db")

    assert (done.returncode, done.stdout) == (1, "")
    assert "JETHOOK_DATABASE_URL" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_is_not_writable_is_1_and_names_the_setting(jethook: Jethook, tmp_path: Path):
    tmp_path.chmod(0o500)

    done = jethook("migrate")

    assert done.returncode == 1
    assert "JETHOOK_DATABASE_URL" in done.stderr


def test_a_file_that_is_no_database_is_1(jethook: Jethook, tmp_path: Path):
    (tmp_path / "jethook.db").write_bytes(b"no database at all, but long enough to be looked at" * 50)

    done = jethook("migrate")

    assert done.returncode == 1
    assert "JETHOOK_DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_postgresql_that_is_not_there_is_1_without_its_password(jethook: Jethook):
    done = jethook("migrate", JETHOOK_DATABASE_URL="postgresql://u:HUSH@127.0.0.1:1/jethook")

    assert done.returncode == 1
    assert "JETHOOK_DATABASE_URL" in done.stderr
    assert "HUSH" not in done.stderr


def test_registration_without_a_public_url_says_what_is_missing(jethook: Jethook):
    done = jethook("register", "--json", MJ_APIKEY_PUBLIC="a", MJ_APIKEY_PRIVATE="b")

    assert "JETHOOK_PUBLIC_URL" in done.stdout
    assert "Traceback" not in done.stderr


# --- healthcheck -----------------------------------------------------------------------------------------------------


class _Probe(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def probed() -> Iterator[Callable[[int], int]]:
    """Starts something that answers `/readyz` with a status; gives its port."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int) -> int:
        handler = type("Probe", (_Probe,), {"status": status})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return int(server.server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_healthcheck_is_0_when_ready(jethook: Jethook, probed: Callable[[int], int], host: str):
    done = jethook("healthcheck", JETHOOK_PORT=str(probed(200)), JETHOOK_HOST=host)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_healthcheck_is_1_when_not_ready(jethook: Jethook, probed: Callable[[int], int]):
    done = jethook("healthcheck", JETHOOK_PORT=str(probed(503)))

    assert (done.returncode, done.stderr) == (1, "not ready: /readyz answered 503\n")


def test_healthcheck_is_1_when_nothing_is_there(jethook: Jethook):
    done = jethook("healthcheck", JETHOOK_PORT="1")

    assert done.returncode == 1
    assert done.stderr.startswith("no answer from 127.0.0.1:1: ")
