"""Documents and counts of one process: see `cluster.registry`."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

import trio

from cluster.registry import Occupied


class MemoryRegistry:
    """Implements `cluster.registry.Registry`."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._version = 0
        self._documents: dict[str, dict[str, bytes]] = {}
        self._events: dict[str, deque[float]] = {}
        self._taken: Counter[str] = Counter()
        self._buckets: dict[str, tuple[float, float]] = {}

    async def version(self) -> int:
        """See `Registry`."""
        await trio.lowlevel.checkpoint()
        return self._version

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
        self._version += 1
        return self._version

    async def count(self, name: str, window_s: float) -> int:
        """See `Registry`."""
        await trio.lowlevel.checkpoint()
        now = self._clock()
        events = self._events.setdefault(name, deque())
        events.append(now)
        while events[0] <= now - window_s:
            events.popleft()
        return len(events)

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
        level, at = self._buckets.get(name, (burst, now))
        level = min(burst, level + (now - at) * rate)
        given = min(amount, int(level))
        self._buckets[name] = (level - given, now)
        return given
