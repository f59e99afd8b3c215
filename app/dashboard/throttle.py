"""Guesses at a key, held back. Each address has a few, and one more every few seconds; right keys cost nothing.

Kept in this process: N replicas allow N times as many. Keys are long and random, so that this is against noise and for
keys that somebody chose. Behind a proxy all callers share an address; then they share the guesses, too.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from threading import Lock

GUESSES = 10
SECONDS_A_GUESS = 6.0
MOST_ADDRESSES = 10_000


class Throttle:
    """A bucket of guesses for each address. Times are seconds of any clock that only goes forward."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # -> (guesses left, as of)

    def wait_seconds(self, address: str, now: float) -> int:
        """Whole seconds until this address may try again; 0: it may."""
        with self._lock:
            left = self._left(address, now)
        return 0 if left >= 1 else math.ceil((1 - left) * SECONDS_A_GUESS)

    def failed(self, address: str, now: float) -> None:
        with self._lock:
            self._buckets[address] = (max(self._left(address, now) - 1, 0.0), now)
            self._buckets.move_to_end(address)
            if len(self._buckets) > MOST_ADDRESSES:
                self._buckets.popitem(last=False)

    def _left(self, address: str, now: float) -> float:
        left, as_of = self._buckets.get(address, (float(GUESSES), now))
        return min(float(GUESSES), left + (now - as_of) / SECONDS_A_GUESS)
