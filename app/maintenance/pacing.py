"""Long work in small slices beside a busy service: how large a slice is, and how long the pause after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

TARGET_SECONDS = 0.01  # of one slice: what a post may have to wait for it
SMALLEST, LARGEST = 20, 500
SHARE = 4  # the pause, in lengths of the slice before it: a fifth of the writer's time at most
SHORTEST_PAUSE_SECONDS = 0.002


def next_size(size: int, seconds: float) -> int:
    """The size of the slice after one of `size` rows that took so long. Never more than doubles or halves."""
    wanted = size * TARGET_SECONDS / max(seconds, 1e-4)
    return round(max(SMALLEST, size / 2, min(LARGEST, size * 2, wanted)))


class Pace:
    """Slices of one piece of work. `go_on` is asked between them and raises to end it."""

    def __init__(
        self, go_on: Callable[[], Awaitable[None]], *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self.size = 100
        self.slices = 0
        self.longest_seconds = 0.0
        self._last_seconds = 0.0
        self._go_on = go_on
        self._sleep = sleep

    @contextmanager
    def timed(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._last_seconds = time.monotonic() - started
        self.longest_seconds = max(self.longest_seconds, self._last_seconds)
        self.slices += 1
        self.size = next_size(self.size, self._last_seconds)

    async def rest(self) -> None:
        await self._sleep(max(SHORTEST_PAUSE_SECONDS, self._last_seconds * SHARE))
        await self._go_on()
