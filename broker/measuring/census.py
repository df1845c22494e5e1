"""Counts of all connections of a node, taken in portions: a scrape must not hold the event loop."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import trio

from broker.codec.packets import V5, V31, V311

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.server import Server

#: Connections that are looked at before others get their turn.
PORTION: Final = 200

#: A census is good for so many times the time that it took.
_REST: Final = 10.0

_VERSIONS: Final = {0: "none", V31: "3.1", V311: "3.1.1", V5: "5"}


class Census:
    """The last one that was taken. `connections` is by `listener,version`, `sessions` by kind."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._good_until = 0.0
        self._taking: trio.Event | None = None
        self.connections: Counter[str] = Counter()
        self.sessions: Counter[str] = Counter()
        self.in_flight = 0
        self.queued = 0

    async def take(self) -> None:
        """Count anew, unless that was just done; callers at the same time share one."""
        if self._taking is not None:
            await self._taking.wait()
            return
        if time.monotonic() < self._good_until:
            return
        done = self._taking = trio.Event()
        try:
            await self._take()
        finally:
            self._taking = None
            done.set()

    async def _take(self) -> None:
        began = time.monotonic()
        connections: Counter[tuple[str, int]] = Counter()
        sessions: Counter[str] = Counter()
        in_flight = queued = 0
        everybody = list(self._server.connections)
        for at in range(0, len(everybody), PORTION):
            if at:
                await trio.lowlevel.checkpoint()
            for connection in everybody[at : at + PORTION]:
                connections[connection.listener.url, connection.version] += 1
                session = connection.session
                subscriber = connection.subscriber
                if session is None or subscriber is None:
                    continue
                sessions["persistent" if subscriber.persistent else "ephemeral"] += 1
                in_flight += len(session.inflight)
                queued += session.waiting() + _behind(connection)
        named: Counter[str] = Counter()
        for (listener, version), count in connections.items():
            named[f"{listener},{_VERSIONS.get(version, 'none')}"] += count
        self.connections, self.sessions = named, sessions
        self.in_flight, self.queued = in_flight, queued
        now = time.monotonic()
        self._good_until = now + _REST * (now - began) if len(everybody) > PORTION else 0.0


def _behind(connection: Connection) -> int:
    """Messages in the store that a session which is fed by pages was told of and has not sent."""
    session = connection.session
    return max(0, session.newest_seq - session.sent_seq) if session is not None and session.behind else 0
