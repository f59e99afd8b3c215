"""Deliverability: which shares matter, and from where on they hurt. Pure.

The bounds are the ones mailbox providers name: complaints above a thousandth, failures above two hundredths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BOUNDS = {"bounce": 0.02, "blocked": 0.02, "complaint": 0.001, "least": 100}
"""Shares, and the least number of messages about which a share says something."""


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
        if self.of < BOUNDS["least"]:
            return "few"
        return "bad" if self.share > self.bound else "warn" if self.share > 0.75 * self.bound else "ok"


def figures(row: Mapping[str, Any]) -> list[Figure]:
    """From a row of statistics; opens and clicks are people's, and a deferral is no attempt that has ended."""
    counts, rates, machines, deferred = row["counts"], row["rates"], row["automated"], row["deferred"]
    sent, bounced, blocked, spam, opens, clicks = (
        int(counts.get(name, 0)) for name in ("sent", "bounce", "blocked", "spam", "open", "click")
    )
    bounced, blocked = bounced - deferred["bounce"], blocked - deferred["blocked"]
    tried = sent + bounced + blocked
    return [
        Figure("Delivered", rates["delivery"], sent, tried),
        Figure("Bounced", rates["bounce"], bounced, tried, BOUNDS["bounce"]),
        Figure("Blocked", blocked / tried if tried else None, blocked, tried, BOUNDS["blocked"]),
        Figure("Complaints", rates["complaint"], spam, sent, BOUNDS["complaint"]),
        Figure("Opened", rates["open"], opens - machines["open"], sent),
        Figure("Clicked", rates["click"], clicks - machines["click"], sent),
    ]
