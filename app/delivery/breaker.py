"""One sink's health. A pure state machine; the time comes in, seconds on any clock that only goes forward.

Closed: everything is sent. Open: nothing is, and nothing waits in vain, since an open breaker uses up no attempts.
Half open: one delivery probes; its result closes the breaker or opens it again for twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LONGEST_COOLDOWN = 10  # times the first one


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Breaker:
    """`failures` in a row open it; after `cooldown` seconds it lets one probe through."""

    failures: int
    cooldown: float
    _in_a_row: int = 0
    _opened: int = 0  # times in a row that it opened without a success between
    _open_until: float | None = None
    _probing: bool = False

    def state(self, now: float) -> BreakerState:
        if self._open_until is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._probing or now >= self._open_until else BreakerState.OPEN

    def free_slots(self, now: float, slots: int) -> int:
        """How many of `slots` may be used now: all, one for a probe, or none."""
        if self._open_until is None:
            return slots
        return min(slots, 1) if now >= self._open_until and not self._probing else 0

    def reopens_at(self) -> float | None:
        """When the next probe may go; None while closed or while one is under way."""
        return None if self._probing else self._open_until

    def started(self, now: float) -> None:
        """A delivery was sent; while half open that is the probe."""
        if self._open_until is not None and now >= self._open_until:
            self._probing = True

    def succeeded(self) -> None:
        self.reset()

    def failed(self, now: float) -> bool:
        """Count a failure; True if it opened the breaker. What was under way when it opened does not count again."""
        if self._open_until is not None and not self._probing:
            return False
        self._in_a_row += 1
        if not self._probing and self._in_a_row < self.failures:
            return False
        factor = min(2**self._opened, LONGEST_COOLDOWN)
        self._opened = min(self._opened + 1, 8)
        self._open_until = now + self.cooldown * factor
        self._probing = False
        return True

    def abandoned(self) -> None:
        """The probe ended without telling anything (the service stops, the sink was paused)."""
        self._probing = False

    def reset(self) -> None:
        self._in_a_row = 0
        self._opened = 0
        self._open_until = None
        self._probing = False
