"""Percentiles of very many durations in little memory: a histogram whose buckets grow by 2 percent. Pure."""

import math
from collections import Counter

GROWTH = 1.02
_LOG_GROWTH = math.log(GROWTH)
SHORTEST_SECONDS = 1e-6


class Latencies:
    """Add seconds, ask for percentiles; each is right to within 2 percent."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._count = 0
        self.longest_seconds = 0.0

    def add(self, seconds: float) -> None:
        self._buckets[math.ceil(math.log(max(seconds, SHORTEST_SECONDS) / SHORTEST_SECONDS) / _LOG_GROWTH)] += 1
        self._count += 1
        self.longest_seconds = max(self.longest_seconds, seconds)

    def percentile(self, share: float) -> float:
        """Seconds that the `share` (0 to 1) of the durations did not exceed; 0 when there are none."""
        wanted = math.ceil(share * self._count)
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return min(SHORTEST_SECONDS * GROWTH**bucket, self.longest_seconds)
        return 0.0
