"""The sending half of the stand-in Mailjet: posts events to the callbacks that are registered there."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp

from app.simulator.callbacks import Callback
from app.simulator.mailjet import StandInMailjet
from app.simulator.outbox import Outbox, Parcel, SenderCounts, Slot
from app.simulator.posting import Target, make_session, post
from app.simulator.traffic import Event

__all__ = ["Sender", "SenderCounts", "SenderOptions"]


@dataclass(frozen=True, slots=True)
class SenderOptions:
    """Mailjet's own figures where they are known; tests make them short."""

    retry_seconds: float = 30.0
    group_seconds: float = 1.0
    failure_window_seconds: float = 24 * 3600.0
    timeout_seconds: float = 10.0
    concurrency: int = 32
    max_pending: int = 100_000
    """Events taken up and not yet answered; `send` waits while there are more."""


class Sender:
    """`async with Sender(mailjet) as sender: await sender.send(events)`, in one event loop.

    `api_key` None means the stand-in's first. `clock` gives seconds that never go back.
    """

    def __init__(
        self,
        mailjet: StandInMailjet,
        api_key: str | None = None,
        options: SenderOptions | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mailjet = mailjet
        self._api_key = api_key
        self._options = options or SenderOptions()
        self._clock = clock
        self._outbox = Outbox(
            self._find,
            self._kill,
            retry_seconds=self._options.retry_seconds,
            group_seconds=self._options.group_seconds,
            failure_window_seconds=self._options.failure_window_seconds,
        )
        self._session: aiohttp.ClientSession | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._posts: set[asyncio.Task[None]] = set()
        self._slots_free = asyncio.Semaphore(self._options.concurrency)
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()

    @property
    def counts(self) -> SenderCounts:
        return self._outbox.counts()

    async def start(self) -> None:
        self._session = make_session(self._options.concurrency, self._options.timeout_seconds)
        self._loop_task = asyncio.create_task(self._run(self._session))

    async def stop(self) -> None:
        """Stop at once: posts under way are broken off, what is pending is forgotten."""
        tasks = [task for task in (self._loop_task, *self._posts) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        self._session, self._loop_task = None, None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def send(self, events: Iterable[Event]) -> None:
        """Take events up for posting; returns before they are answered, but not while too many are pending."""
        for event in events:
            while self.counts.pending >= self._options.max_pending:
                await self._made_progress()
            self._outbox.add(event, self._clock())
            self._wake.set()

    async def drain(self, timeout_seconds: float = 30.0) -> SenderCounts:
        """Wait until everything was answered with 200 or given up. Raises TimeoutError, which says what is left."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self.counts.pending:
                    await self._made_progress()
        except TimeoutError as error:
            raise TimeoutError(f"not drained after {timeout_seconds} s: {self.counts}") from error
        return self.counts

    async def _made_progress(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    async def _run(self, session: aiohttp.ClientSession) -> None:
        while True:
            self._wake.clear()
            for parcel in self._outbox.take_due(self._clock()):
                await self._slots_free.acquire()
                task = asyncio.create_task(self._post(session, parcel))
                self._posts.add(task)
                task.add_done_callback(self._posts.discard)
            self._progress.set()  # parcels that were given up
            await self._until_next()

    async def _until_next(self) -> None:
        at = self._outbox.next_at()
        seconds = None if at is None else max(0.0, at - self._clock())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    async def _post(self, session: aiohttp.ClientSession, parcel: Parcel) -> None:
        try:
            is_acknowledged = await _deliver(session, parcel)
            self._outbox.record(parcel, is_acknowledged=is_acknowledged, now=self._clock())
        finally:
            self._slots_free.release()
            self._wake.set()
            self._progress.set()

    def _find(self, slot: Slot) -> Callback | None:
        return self._mailjet.find_callback(self._api_key, slot[0], is_backup=slot[1])

    def _kill(self, slot: Slot) -> None:
        self._mailjet.mark_dead(self._api_key, slot[0], is_backup=slot[1])


async def _deliver(session: aiohttp.ClientSession, parcel: Parcel) -> bool:
    try:
        target = Target.parse(parcel.url)
    except ValueError:
        return False  # a URL nobody can post to fails like one where nobody answers
    return (await post(session, target, parcel.body)).is_acknowledged
