"""A histogram of plain numbers: cheap enough for every turn, and summed over processes like any list."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

#: Seconds from half a millisecond to ten seconds: turns, round trips, deliveries.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0)

#: How many of something are done at a time.
SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


class Histogram:
    """How often a value was at most each of `bounds`, which ascend. Seconds for times, plain counts for sizes."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        #: Values up to each bound and above the one before it; the last are those above all.
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def packed(self) -> list[float]:
        """The counts, then the sum: for JSON. Packed histograms of equal bounds are added number by number."""
        return [*self.counts, self.sum]

    def add(self, other: Histogram) -> None:
        """Count all that `other` counted too. Raises ValueError where the bounds differ."""
        if other.bounds != self.bounds:
            raise ValueError(f"bounds differ: {self.bounds} and {other.bounds}")
        self.counts = [one + two for one, two in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum
