"""How many requests one caller may make: buckets of this process, by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

#: Buckets that are remembered; who was not seen for longest is forgotten first, which fills his bucket.
BUCKETS_MAX: Final = 4096


class Rates:
    """`rate` requests per second for each name, twice as many in a burst; 0: any number."""

    __slots__ = ("_buckets", "_clock", "_rate")

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def allows(self, name: str) -> bool:
        """Whether one more request is within the rate; it is counted."""
        if not self._rate:
            return True
        now = self._clock()
        tokens, since = self._buckets.pop(name, (2.0 * self._rate, now))
        tokens = min(tokens + (now - since) * self._rate, 2.0 * self._rate)
        allowed = tokens >= 1.0
        if len(self._buckets) >= BUCKETS_MAX:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[name] = (tokens - 1.0 if allowed else tokens, now)
        return allowed

    def give_back(self, name: str) -> None:
        """A request that was counted does not count."""
        known = self._buckets.get(name)
        if known is not None:
            self._buckets[name] = (min(known[0] + 1.0, 2.0 * self._rate), known[1])
