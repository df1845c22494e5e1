"""Subscribers that are slow: what they were sent waits for its acknowledgement, or does not even leave.

Nothing is measured per message. A few times a second all connections are looked at, in portions: one whose oldest
unacknowledged message is the same as before, or that has not taken any output, is slow from then on. So times are as
exact as the pause between two looks, which grows with the number of connections: looking takes less than a hundredth
of the time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.server import Server

#: Entries that are kept: the slowest.
LIST_MAX: Final = 100

#: What a client was slow with.
ACKNOWLEDGEMENT: Final = "acknowledgement"
OUTPUT: Final = "output"

_PORTION: Final = 500
_PAUSE_S: Final = 0.1
#: Pauses are so many times as long as the looks.
_REST: Final = 100


class Slow:
    """The slowest moment of one client, for one reason."""

    __slots__ = ("at_ms", "client_id", "last_ms", "latency_ms", "reason", "username")

    def __init__(self, client_id: str, username: str | None, reason: str) -> None:
        self.client_id = client_id
        self.username = username
        self.reason = reason
        self.latency_ms = self.last_ms = 0
        self.at_ms = 0

    def shown(self, node: str) -> dict[str, Any]:
        """For JSON."""
        return {
            "client_id": self.client_id,
            "username": self.username,
            "node": node,
            "reason": self.reason,
            "latency_ms": self.latency_ms,
            "last_ms": self.last_ms,
            "at_ms": self.at_ms,
        }


class SlowSubscribers:
    """Those of one node. `threshold_s` 0: nobody is slow, and nobody looked at."""

    def __init__(self, server: Server) -> None:
        self.threshold_s = 0.5
        self.expiry_s = 300.0
        self._server = server
        self._found: dict[tuple[str, str], Slow] = {}
        #: The oldest message of connections that owe an acknowledgement, and when it was seen first.
        self._owed: dict[Connection, tuple[int, float]] = {}

    def entries(self) -> list[Slow]:
        """Slowest first."""
        first = self._server.now_ms - int(self.expiry_s * 1000)
        self._found = {key: each for key, each in self._found.items() if each.at_ms >= first}
        return sorted(self._found.values(), key=lambda each: -each.latency_ms)

    def clear(self) -> int:
        """Forget all; returns how many there were."""
        count = len(self._found)
        self._found.clear()
        return count

    async def serve(self) -> None:
        """Look, until cancelled."""
        while True:
            took_s = await self.look() if self.threshold_s else 0.0
            await trio.sleep(max(_PAUSE_S, self.threshold_s / 4, _REST * took_s))

    async def look(self) -> float:
        """Look at all connections once; returns the seconds that this took, without what others did meanwhile."""
        owed: dict[Connection, tuple[int, float]] = {}
        everybody = list(self._server.connections)
        took_s = 0.0
        for at in range(0, len(everybody), _PORTION):
            if at:
                await trio.lowlevel.checkpoint()
            began = time.perf_counter()
            self._look_at(everybody[at : at + _PORTION], owed)
            took_s += time.perf_counter() - began
        self._owed = owed
        if len(self._found) > 2 * LIST_MAX:
            self._found = {(each.client_id, each.reason): each for each in self.entries()[:LIST_MAX]}
        return took_s

    def _look_at(self, connections: Iterable[Connection], owed: dict[Connection, tuple[int, float]]) -> None:
        now = self._server.reactor.clock()
        threshold = self.threshold_s
        before = self._owed
        for connection in connections:
            session = connection.session
            if session is None:
                continue
            stalled = connection.stream.stalled_since
            if stalled and now - stalled >= threshold:
                self._slow(connection, OUTPUT, now - stalled)
            oldest = session.oldest()
            if oldest:
                known = before.get(connection)
                if known is None or known[0] != oldest:
                    owed[connection] = oldest, now
                else:
                    owed[connection] = known
                    if now - known[1] >= threshold:
                        self._slow(connection, ACKNOWLEDGEMENT, now - known[1])

    def _slow(self, connection: Connection, reason: str, for_s: float) -> None:
        key = connection.client_id, reason
        entry = self._found.get(key)
        if entry is None:
            principal = connection.principal
            username = principal.username if principal is not None else None
            entry = self._found[key] = Slow(connection.client_id, username, reason)
        entry.last_ms = int(for_s * 1000)
        entry.latency_ms = max(entry.latency_ms, entry.last_ms)
        entry.at_ms = self._server.now_ms
