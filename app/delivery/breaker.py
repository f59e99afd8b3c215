"""One sink's health. A pure state machine; the time comes in, seconds on any clock that only goes forward.

Closed: everything is sent. Open: nothing is, and nothing waits in vain, since an open breaker uses up no attempts.
Half open: one delivery probes; its result closes the breaker or opens it again for twice as long.

It opens on failures in a row, and on their share among the requests of the last minute: a sink that answers one request
in ten is as good as down, and never fails often enough in a row where many requests are under way.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LONGEST_COOLDOWN = 10  # times the first one
SHARE_SECONDS = 60.0  # what is older does not count into the share of failures
SHARE_OF_AT_LEAST = 20  # requests; and twice as many as would open it in a row: two of three say nothing


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Breaker:
    """`failures` in a row open it, or a share of them above `failure_rate` (1: never); after `cooldown` seconds it
    lets one probe through."""

    failures: int
    cooldown: float
    failure_rate: float = 1.0
    opened_by: int = 0  # the failures that opened it last: in a row, or those of the share
    _in_a_row: int = 0
    _opened: int = 0  # times in a row that it opened without a success between
    _open_until: float | None = None
    _probing: bool = False
    _by_share: bool = False  # what opened it
    # Requests and failures of this half of the minute and of the one before; it began at `_half_at`.
    _half_at: float = 0.0
    _tried: int = 0
    _failed: int = 0
    _tried_before: int = 0
    _failed_before: int = 0

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

    def succeeded(self, now: float) -> bool:
        """Count a success; True if it is closed now. What was under way when a share of failures opened it, in which
        successes are to be expected, does not close it."""
        if self._open_until is not None:
            if self._by_share and not self._probing:
                return False
            self.reset()
            return True
        self._in_a_row = self._opened = 0
        self._count(now, is_failure=False)
        return True

    def failed(self, now: float, *, is_answer: bool = False) -> bool:
        """Count a failure; True if it opened the breaker. What was under way when it opened does not count again.

        `is_answer`: the sink refused this one request, being well itself: it counts in a row, and not in the share.
        """
        if self._open_until is not None and not self._probing:
            return False
        self._in_a_row += 1
        self._count(now, is_failure=not is_answer)
        in_a_row = self._in_a_row >= self.failures
        if not (self._probing or in_a_row or self._fails_too_often()):
            return False
        if not self._probing:
            self._by_share = not in_a_row
            self.opened_by = self._failed + self._failed_before if self._by_share else self._in_a_row
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
        self._tried = self._failed = self._tried_before = self._failed_before = 0

    def _count(self, now: float, *, is_failure: bool) -> None:
        if now - self._half_at >= SHARE_SECONDS / 2:
            is_next = now - self._half_at < SHARE_SECONDS
            self._tried_before, self._failed_before = (self._tried, self._failed) if is_next else (0, 0)
            self._half_at, self._tried, self._failed = now, 0, 0
        self._tried += 1
        self._failed += is_failure

    def _fails_too_often(self) -> bool:
        tried = self._tried + self._tried_before
        if tried < max(SHARE_OF_AT_LEAST, 2 * self.failures):
            return False
        return self._failed + self._failed_before > self.failure_rate * tried
