"""Documents and counts of one process: see `cluster.registry`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import trio

from cluster.registry import Occupied

#: Of the window of a counter.
_SLICES = 10


class _Counter:
    """Events by slices of a window."""

    __slots__ = ("_slices", "until")

    def __init__(self) -> None:
        self._slices: dict[int, int] = {}
        self.until = 0.0

    def add(self, now: float, width_s: float) -> int:
        """Counts one; returns how many are in the last slices."""
        slice_ = int(now / width_s)
        self._slices[slice_] = self._slices.get(slice_, 0) + 1
        self._slices = {each: count for each, count in self._slices.items() if each > slice_ - _SLICES}
        return sum(self._slices.values())


class MemoryRegistry:
    """Implements `cluster.registry.Registry`."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._version = 0
        self._versions: dict[str, int] = {}
        self._documents: dict[str, dict[str, bytes]] = {}
        self._counters: dict[str, _Counter] = {}
        self._taken: Counter[str] = Counter()
        self._buckets: dict[str, tuple[float, float]] = {}

    async def version(self) -> int:
        """See `Registry`."""
        await trio.lowlevel.checkpoint()
        return self._version

    async def versions(self) -> dict[str, int]:
        """See `Registry`."""
        await trio.lowlevel.checkpoint()
        return dict(self._versions)

    async def document(self, kind: str, name: str) -> bytes | None:
        """See `Registry`."""
        await trio.lowlevel.checkpoint()
        return self._documents.get(kind, {}).get(name)

    async def documents(self, kind: str) -> dict[str, bytes]:
        """See `Registry`."""
        await trio.lowlevel.checkpoint()
        return dict(self._documents.get(kind, {}))

    async def change(self, kind: str, changes: Mapping[str, bytes | None]) -> int:
        """See `Registry`."""
        await trio.lowlevel.checkpoint()
        known = self._documents.setdefault(kind, {})
        for name, value in changes.items():
            if value is None:
                known.pop(name, None)
            else:
                known[name] = value
        self._changed(kind)
        return self._version

    async def create(self, kind: str, name: str, document: bytes) -> bool:
        """See `Registry`."""
        await trio.lowlevel.checkpoint()
        known = self._documents.setdefault(kind, {})
        if name in known:
            return False
        known[name] = document
        self._changed(kind)
        return True

    def _changed(self, kind: str) -> None:
        self._version += 1
        self._versions[kind] = self._version

    async def remove(self, kind: str, documents: Mapping[str, bytes]) -> int:
        """See `Registry`."""
        await trio.lowlevel.checkpoint()
        known = self._documents.get(kind, {})
        gone = [name for name, value in documents.items() if known.get(name) == value]
        for name in gone:
            del known[name]
        if gone:
            self._changed(kind)
        return self._version

    async def count(self, name: str, window_s: float) -> int:
        """See `Registry`."""
        await trio.lowlevel.checkpoint()
        now = self._clock()
        counter = self._counters.pop(name, None) or _Counter()
        self._counters[name] = counter  # last: the first are those that were counted longest ago
        counter.until = now + window_s
        self._forget(now)
        return counter.add(now, window_s / _SLICES)

    def _forget(self, now: float) -> None:
        """Counters go away by themselves: two are looked at for each that may come."""
        for name in list(islice(self._counters, 2)):
            if self._counters[name].until <= now:
                del self._counters[name]

    async def occupy(self, places: Sequence[Occupied]) -> str | None:
        """See `Registry`."""
        await trio.lowlevel.checkpoint()
        for place in places:
            if self._taken[place.name] >= place.limit:
                return place.name
        self._taken.update(place.name for place in places)
        return None

    def vacate(self, names: Sequence[str]) -> None:
        """See `Registry`."""
        for name in names:
            self._taken[name] -= 1
            if self._taken[name] <= 0:
                del self._taken[name]

    async def recount(self, taken: Mapping[str, int]) -> None:
        """See `Registry`."""
        await trio.lowlevel.checkpoint()
        self._taken = Counter(taken)

    async def draw(self, name: str, amount: int, rate: float, burst: float) -> int:
        """See `Registry`."""
        await trio.lowlevel.checkpoint()
        now = self._clock()
        for other in list(islice(self._buckets, 2)):
            level, at = self._buckets[other]
            if other != name and level + (now - at) * rate >= burst:  # full again: as one that is new
                del self._buckets[other]
        level, at = self._buckets.pop(name, (burst, now))
        level = min(burst, level + (now - at) * rate)
        given = min(amount, int(level))
        self._buckets[name] = (level - given, now)
        return given
