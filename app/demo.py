"""`jethook demo`: the whole service on one machine, between a simulated Mailjet and a sample sink.

Nothing here is a shortcut: the service registers itself over HTTP, events come in as Mailjet posts them, and go out
signed. Everything is in a temporary folder and gone afterwards.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from rich.console import Console

from app.clock import utc_now
from app.logs import configure_logs
from app.main import Service, create_app
from app.serving import run
from app.settings import (
    ConnectionSettings,
    Settings,
    SinkSettings,
    WebhookSettings,
    load_settings,
)
from app.simulator.mailjet import DEFAULT_KEYS, SMS_TOKEN, StandInMailjet
from app.simulator.sender import Sender, SenderOptions
from app.simulator.server import LocalServer
from app.simulator.sink import ReceivedRequest, SampleSink
from app.simulator.traffic import make_events

SHOWN = 10  # one line in so many of what the sink got
PROGRESS_SECONDS = 5.0
ARRIVAL_LOOKS = 100  # five seconds, for what was answered and is not at the sink yet
EARLIER_EVENTS, EARLIER_SECONDS = 300, 86_400  # so that the dashboard and statistics have a day to show

out = Console(highlight=False, soft_wrap=True)


def run_demo(*, seconds: float, rate: float) -> int:
    """Run until Ctrl-C, or for `seconds`; the exit code."""
    asked = load_settings({k: v for k, v in os.environ.items() if k.upper() in ("JETHOOK_HOST", "JETHOOK_PORT")},
                          env_file=None)  # fmt: skip
    configure_logs("auto", "warning")
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    mailjet, sink = StandInMailjet(), SampleSink(secrets=[secret], on_request=_Printer())
    with (
        tempfile.TemporaryDirectory(prefix="jethook-demo-") as folder,
        LocalServer(mailjet) as mailjet_server,
        LocalServer(sink) as sink_server,
    ):
        settings = _settings(asked, Path(folder), mailjet_server.url, sink_server.url, secret)
        app = create_app(settings)
        _say_where(settings, app.state.service, mailjet_server.url, sink_server.url)
        traffic = _Traffic(mailjet, sink, app.state.service, rate=rate, seconds=seconds)
        traffic.start()
        try:
            return run(app, settings)
        finally:
            traffic.stop()


def _settings(asked: Settings, folder: Path, mailjet_url: str, sink_url: str, secret: str) -> Settings:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(asked.host, asked.host)  # noqa: S104
    api_key, secret_key = next(iter(DEFAULT_KEYS.items()))
    connection = ConnectionSettings(
        api_key=api_key, secret_key=SecretStr(secret_key), sms_token=SecretStr(SMS_TOKEN), base_url=mailjet_url
    )
    return Settings(
        host=asked.host,
        port=asked.port,
        public_url=f"http://{host}:{asked.port}",
        database_url=SecretStr(f"sqlite:///{folder / 'demo.db'}"),
        register_every_seconds=5,
        connections={"default": connection},
        webhooks={"demo": WebhookSettings()},
        sinks={"sample": SinkSettings(url=f"{sink_url}/mail-events", secrets=(SecretStr(secret),))},
    )


def _say_where(settings: Settings, service: Service, mailjet_url: str, sink_url: str) -> None:
    service_url = settings.public_url
    out.print("[bold]Jethook demo[/bold]: a simulated Mailjet sends events, a sample sink receives them.\n")
    out.print(f"  dashboard                   {service_url}/dashboard/sign-in?link={service.sessions.link(utc_now())}")
    out.print("                              (the link signs in once; after that, sign in with the REST key)")
    out.print(f"  REST and its documentation  {service_url}/docs")
    out.print(f"  simulated Mailjet           {mailjet_url}")
    out.print(f"  sample sink                 {sink_url}/mail-events")


class _Printer:
    """Shows one in ten of what the sink got."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, request: ReceivedRequest) -> None:
        self._seen += 1
        if self._seen % SHOWN == 1:
            event = request.json()
            out.print(
                f"sink got  {event.get('event', '?'):8} {event.get('email') or '-':32} "
                f"MessageID {event.get('MessageID')}  webhook-id {request.webhook_id}",
                markup=False,
            )


def _earlier_events(now: int) -> list[dict[str, Any]]:
    step_seconds = EARLIER_SECONDS / EARLIER_EVENTS
    return list(make_events(secrets.randbits(32), EARLIER_EVENTS, now - EARLIER_SECONDS, step_seconds=step_seconds))


class _Traffic(threading.Thread):
    """Waits until the service has registered itself, then is Mailjet: sends, and repeats what was not answered 200."""

    def __init__(
        self, mailjet: StandInMailjet, sink: SampleSink, service: Service, *, rate: float, seconds: float
    ) -> None:
        super().__init__(name="demo-traffic", daemon=True)
        self._mailjet = mailjet
        self._sink = sink
        self._service = service
        self._rate = rate
        self._seconds = seconds
        self._done = threading.Event()

    def stop(self) -> None:
        self._done.set()
        self.join(10)

    def run(self) -> None:
        while not self._done.is_set() and len(self._mailjet.callbacks()) < 7:
            self._done.wait(0.05)
        out.print(f"  REST key                    {self._service.made_api_key}\n")
        kinds = Counter(callback.event_type for callback in self._mailjet.callbacks())
        out.print(f"registered {sum(kinds.values())} callbacks at Mailjet: {', '.join(sorted(kinds))}")
        asyncio.run(self._send())
        if self._service.loop is not None and not self._service.stopping:
            self._service.loop.call_soon_threadsafe(self._service.on_stop_request)

    async def _send(self) -> None:
        started = time.monotonic()
        events = make_events(secrets.randbits(32), None, int(time.time()), step_seconds=1 / self._rate)
        sent, told = 0, started
        async with Sender(self._mailjet, options=SenderOptions(retry_seconds=2)) as sender:
            await sender.send(_earlier_events(int(time.time())))
            while not self._done.is_set() and not self._service.stopping:
                elapsed = time.monotonic() - started
                if self._seconds and elapsed >= self._seconds:
                    break
                await sender.send(self._mailjet.take_events())
                due = int(elapsed * self._rate) - sent
                if due > 0:
                    await sender.send([next(events) for _ in range(due)])
                    sent += due
                if time.monotonic() - told >= PROGRESS_SECONDS:
                    told = time.monotonic()
                    self._tell(sent, sender)
                await asyncio.sleep(0.1)
            if not self._service.stopping:
                await sender.drain(timeout_seconds=5)
                await self._wait_for_the_sink(sent + EARLIER_EVENTS)
                self._tell(sent, sender)

    async def _wait_for_the_sink(self, events: int) -> None:
        """The last line told shall not look as if some were lost that are on their way."""
        for _ in range(ARRIVAL_LOOKS):
            if self._sink.distinct >= events:
                return
            await asyncio.sleep(0.05)

    def _tell(self, sent: int, sender: Sender) -> None:
        counts = sender.counts
        out.print(
            f"sent {sent + EARLIER_EVENTS} events in {counts.posted} posts ({counts.acknowledged} answered 200),"
            f" sink got {self._sink.distinct}",
            style="dim",
        )
