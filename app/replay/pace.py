"""When the deliveries of a replay with a rate are due. Pure; whole microseconds since 1970.

Each has a slot; slots are at least one gap apart, over slices, pauses and restarts alike. A gap is rounded up, so no
second, wherever it starts, holds more than the rate allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SECOND = 1_000_000
# Slots closer together than this share a moment: the worker claims what is due at one moment in one transaction.
TICK = 100_000


def gap_of(per_second: float) -> int:
    """Microseconds from one slot to the next."""
    return math.ceil(SECOND / per_second)


def next_slots(first: int, gap: int, *, now: int, most: int) -> Sequence[int]:
    """The slots from `first` on, none of them past, that lie within the next second; at most `most`."""
    start = max(first, now)
    return range(start, now + SECOND, gap)[: max(0, most)]


def due_at(slot: int, gap: int) -> int:
    """When the delivery of this slot is due."""
    return -(-slot // TICK) * TICK if gap < TICK else slot
