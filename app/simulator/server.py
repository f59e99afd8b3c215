"""An ASGI app on a loopback port of its own, in a thread, for as long as a `with` block lasts."""

import asyncio
import contextlib
import socket
import threading
from types import TracebackType
from typing import Any, Self, cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

DROP_EXTENSION = "jethook.drop"
"""Key in `scope["extensions"]` of a function that closes the connection at once, without an answer.

ASGI itself has no way to say that: an app that returns early is answered with 500 by the server.
"""


class LocalServer:
    """Serve `app` over HTTP, known by `url` before it starts.

    The port is taken when the object is made (0: any free one) and listened on from `start()` to `stop()`, so
    connections are refused before and after. A stopped server may start again, on the same port.

    Raises OSError when the port is taken, RuntimeError when the app's lifespan fails at the start.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        grace_seconds: float = 0.25,
        start_timeout_seconds: float = 30.0,
    ) -> None:
        self.app = app
        self.host = host
        self._grace_seconds = grace_seconds
        self._start_timeout_seconds = start_timeout_seconds
        self._socket: socket.socket | None = self._bind(port)
        self.port: int = self._socket.getsockname()[1]
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """`http://host:port`, no slash at the end."""
        return f"http://{_bracketed(self.host)}:{self.port}"

    def url_with(self, user: str, password: str, path: str = "") -> str:
        """The URL with HTTP Basic credentials in it, both already percent-encoded where needed."""
        return f"http://{user}:{password}@{_bracketed(self.host)}:{self.port}{path}"

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Return once requests are answered."""
        if self.running:
            raise RuntimeError("this server runs already")
        listener = self._socket or self._bind(self.port)
        self._socket = None
        server = _Server(self.app, self._grace_seconds)
        thread = threading.Thread(
            target=server.run_here, args=(listener,), name=f"local-server-{self.port}", daemon=True
        )
        self._server, self._thread = server, thread
        thread.start()
        if not server.settled.wait(self._start_timeout_seconds) or server.failure is not None or not server.started:
            self.stop()
            raise RuntimeError(f"the app on {self.url} did not start") from server.failure

    def stop(self) -> None:
        """Refuse new connections, let running requests end within `grace_seconds`, then cut them off."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._server is not None and self._thread is not None:
            self._server.ask_to_stop()
            self._thread.join(self._start_timeout_seconds)
            self._server, self._thread = None, None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _bind(self, port: int) -> socket.socket:
        listener = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            # A server that restarts on its port must not wait for the old connections' TIME_WAIT.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, port))
        except OSError:
            listener.close()
            raise
        return listener


class _Server(uvicorn.Server):
    """uvicorn without its polling: the stock loop looks every 0.1 s whether to stop, which adds up over a test run."""

    def __init__(self, app: ASGIApp, grace_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(
                cast("Any", self._with_drop(app)),
                # The caller's logging is the caller's business; two servers in a process share uvicorn's loggers.
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # `client` stays the real peer, by which _drop() finds the connection
                ws="none",
                workers=1,
                timeout_keep_alive=75,
            )
        )
        self.settled = threading.Event()
        self.failure: BaseException | None = None
        self._grace_seconds = grace_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def run_here(self, listener: socket.socket) -> None:
        """Serve until asked to stop; the body of the thread."""
        try:
            self.run(sockets=[listener])
        except BaseException as error:  # noqa: BLE001  SystemExit too: that is how uvicorn reports a failed lifespan
            self.failure = error
        finally:
            listener.close()
            self.settled.set()

    def ask_to_stop(self) -> None:
        """May be called from any thread, more than once."""
        self.should_exit = True
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed already
                self._loop.call_soon_threadsafe(self._stop.set)

    async def main_loop(self) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        await self.on_tick(0)
        self.settled.set()
        while not self.should_exit:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), timeout=1)
            await self.on_tick(0)  # renews the Date header

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state = self.server_state
        for server in self.servers:
            server.close()  # closes the listening socket as well
        for connection in list(state.connections):
            connection.shutdown()
        await self._wait_for_tasks(self._grace_seconds)
        await self._cut_connections()
        await self._wait_for_tasks(self._grace_seconds)  # an app that awaits its disconnect ends by itself
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        await self.lifespan.shutdown()

    async def _wait_for_tasks(self, seconds: float) -> None:
        if self.server_state.tasks:
            await asyncio.wait(list(self.server_state.tasks), timeout=seconds)

    async def _cut_connections(self) -> None:
        # Left open, their transports would be reported as unclosed when the loop goes away.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for _ in range(100):
            if not self.server_state.connections:
                break
            await asyncio.sleep(0)  # `connection_lost` comes with the loop's next rounds

    def _with_drop(self, app: ASGIApp) -> ASGIApp:
        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                scope.setdefault("extensions", {})[DROP_EXTENSION] = lambda: self._drop(scope["client"])
            await app(scope, receive, send)

        return serve

    def _drop(self, client: tuple[str, int]) -> None:
        for connection in list(self.server_state.connections):
            if getattr(connection, "client", None) == client:
                connection.transport.close()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
