"""What arrived: exact counts of lost, repeated and reordered messages, and latencies in buckets."""

from __future__ import annotations

from loadtest.result import Percentiles

_HALF = 32  # buckets per power of two: no bucket is wider than 1/32 of its value, so its middle is 1.6 % off at most
_HALF_BITS = 5


class History:
    """The messages of one publisher on their way to one audience: a subscriber, or a group that shares them.

    Sequence numbers count from 0. `next` is one above the highest that arrived, `missing` are those below it that
    did not: together they say exactly what arrived, in as many bytes as there are gaps.
    """

    __slots__ = ("duplicated", "missing", "next")

    def __init__(self) -> None:
        self.next = 0
        self.missing: set[int] = set()
        self.duplicated = 0

    def arrived(self, sequence: int) -> bool:
        """Note one arrival; False if this message was there before."""
        if sequence >= self.next:
            self.missing.update(range(self.next, sequence))
            self.next = sequence + 1
            return True
        if sequence in self.missing:
            self.missing.discard(sequence)
            return True
        self.duplicated += 1
        return False

    @property
    def received(self) -> int:
        """Messages that arrived, each counted once."""
        return self.next - len(self.missing)

    def lost(self, sent: int) -> int:
        """Messages of the `sent` ones that did not arrive."""
        return sent - self.received


class Flow:
    """One publisher's messages as one subscriber sees them; a shared history belongs to several flows.

    A caller who finds `sequence == history.next` and `shared` false may set `history.next` itself: the quick way.
    """

    __slots__ = ("_last", "history", "number", "reordered", "shared")

    def __init__(self, number: int, history: History, shared: bool) -> None:
        self.number = number
        self.history = history
        self.shared = shared
        self.reordered = 0
        self._last = -1

    def arrived(self, sequence: int) -> bool:
        """Note the arrival of a message; False if it was there before."""
        last = self._last if self.shared else self.history.next - 1
        if not self.history.arrived(sequence):
            return False
        if sequence < last:
            self.reordered += 1
        else:
            self._last = sequence
        return True


class Histogram:
    """Durations in nanoseconds, in buckets that grow with the value."""

    __slots__ = ("_buckets", "_sum_ns", "count", "longest_ns")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._sum_ns = 0
        self.count = 0
        self.longest_ns = 0

    def add(self, duration_ns: int, times: int = 1) -> None:
        """Count a duration; a negative one (two clocks) counts as 0."""
        value = max(duration_ns, 0)
        shift = max(value.bit_length() - _HALF_BITS - 1, 0)
        bucket = shift * _HALF + (value >> shift)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + times
        self._sum_ns += value * times
        self.count += times
        if value > self.longest_ns:
            self.longest_ns = value

    def merge(self, other: Histogram) -> None:
        """Add what another one counted."""
        for bucket, times in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + times
        self._sum_ns += other._sum_ns
        self.count += other.count
        self.longest_ns = max(self.longest_ns, other.longest_ns)

    def percentile_ms(self, percent: float) -> float | None:
        """Return the smallest duration that `percent` of all do not exceed (within 1.6 %), None if there is none."""
        if not self.count:
            return None
        rank = max(percent / 100 * self.count, 1)
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return min(_middle_ns(bucket), self.longest_ns) / 1e6
        raise AssertionError("the ranks are among the counts")

    def percentiles(self) -> Percentiles:
        """Return what reports tell of it."""
        if not self.count:
            return Percentiles()
        p50, p90, p99, p999 = (self.percentile_ms(percent) for percent in (50, 90, 99, 99.9))
        return Percentiles(self.count, self._sum_ns / self.count / 1e6, p50, p90, p99, p999, self.longest_ns / 1e6)

    def buckets(self) -> list[tuple[float, int]]:
        """Return the buckets that are not empty: the upper bound in milliseconds, and how many durations."""
        return [(_upper_ns(bucket) / 1e6, self._buckets[bucket]) for bucket in sorted(self._buckets)]


def _upper_ns(bucket: int) -> int:
    shift = max(bucket // _HALF - 1, 0)
    return (bucket - shift * _HALF + 1) << shift


def _middle_ns(bucket: int) -> float:
    shift = max(bucket // _HALF - 1, 0)
    return float(((bucket - shift * _HALF) << shift) + ((1 << shift) - 1) / 2)
