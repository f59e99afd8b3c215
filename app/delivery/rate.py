"""A token bucket: at most so many requests a second, a second's worth at once after a rest. Pure; the time comes in."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenBucket:
    """`per_second` requests on average; `now` in seconds on a clock that only goes forward."""

    per_second: float
    _tokens: float = field(default=0.0, init=False)
    _at: float | None = field(default=None, init=False)

    def take(self, now: float) -> bool:
        """True if a request may go now, and counts it."""
        self._fill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def wait(self, now: float) -> float:
        """Seconds until `take` says yes."""
        self._fill(now)
        return max(0.0, (1.0 - self._tokens) / self.per_second)

    def _fill(self, now: float) -> None:
        most = max(1.0, self.per_second)
        if self._at is None:
            self._tokens = most
        elif now > self._at:
            self._tokens = min(most, self._tokens + (now - self._at) * self.per_second)
        self._at = now if self._at is None else max(now, self._at)
