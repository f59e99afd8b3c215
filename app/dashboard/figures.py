"""Deliverability from counts: which shares matter, and from where on they hurt. Pure.

The bounds are the ones mailbox providers name: complaints above a thousandth, lasting failures above two hundredths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

COMPLAINTS_BOUND = 0.001
BOUNCES_BOUND = 0.02
BLOCKED_BOUND = 0.02
LEAST = 100  # messages; below that a share says nothing


@dataclass(frozen=True, slots=True)
class Figure:
    """One share from 0 to 1; `bound` is where it begins to hurt, None where more is better."""

    name: str
    share: float | None
    count: int
    of: int
    bound: float | None = None

    @property
    def state(self) -> str:
        """`bad` beyond the bound, `warn` near it, `few` where there is too little to say, else `ok`."""
        if self.bound is None or self.share is None:
            return "ok"
        if self.of < LEAST:
            return "few"
        return "bad" if self.share > self.bound else "warn" if self.share > 0.75 * self.bound else "ok"


def figures(counts: Mapping[str, float]) -> list[Figure]:
    """From events by type. Of what was tried (sent, bounced, blocked), and of what was sent."""
    sent, bounced, blocked = (int(counts.get(name, 0)) for name in ("sent", "bounce", "blocked"))
    tried = sent + bounced + blocked
    spam, opens, clicks = (int(counts.get(name, 0)) for name in ("spam", "open", "click"))
    return [
        _figure("Delivered", sent, tried),
        _figure("Bounced", bounced, tried, BOUNCES_BOUND),
        _figure("Blocked", blocked, tried, BLOCKED_BOUND),
        _figure("Complaints", spam, sent, COMPLAINTS_BOUND),
        _figure("Opens", opens, sent),
        _figure("Clicks", clicks, sent),
    ]


def _figure(name: str, count: int, of: int, bound: float | None = None) -> Figure:
    return Figure(name, count / of if of else None, count, of, bound)
