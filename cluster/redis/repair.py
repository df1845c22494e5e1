"""What follows a session's subscriptions: its routes, and its place in groups.

The function that changes a session marks the filters that changed; the mark goes when all that follows is done. So
after a crash in between, the marks say what is left to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from broker.topics.names import is_shared
from cluster.api import shared_group_id
from cluster.keys import ROUTES_MARKED, Keys, partition_of

if TYPE_CHECKING:
    from cluster.redis.links import Link
    from cluster.redis.pipeline import Part
    from cluster.redis.routes import Routes

_JOIN = "rk1_group_join"


class Repair:
    """Brings routes and group membership of persistent sessions in line with their subscriptions.

    Everything is idempotent, waits while the store is away, and raises StoreFull or ClusterError if it is refused."""

    def __init__(self, keys: Keys, link: Link, routes: Routes) -> None:
        self._keys = keys
        self._link = link
        self._routes = routes

    async def added(
        self, session_id: bytes, birth: int, client_id: str, records: Sequence[tuple[bytes, bytes]]
    ) -> None:
        """Filters with packed subscriptions were stored."""
        filters = [topic_filter for topic_filter, _ in records]
        # Whoever sees the route finds the group.
        await self._groups(_JOIN, session_id, birth, filters)
        await self._routes.set(session_id, birth, client_id, records)
        # Nothing waits for the mark to go.
        self._link.command(self._done(session_id, 0, [(name, birth) for name in filters]), None, resend=True)

    async def removed(self, session_id: bytes, birth: int, filters: Sequence[bytes]) -> None:
        """Filters were removed. When it returns, what is matched with older routes no longer reaches the session."""
        version = await self._routes.remove(session_id, birth, filters)
        await self._groups("rk1_group_leave", session_id, birth, filters)
        await self._link.call(
            *self._done(session_id, version, [(name, birth) for name in filters]), resend=True, durable=True
        )

    async def repair(self, prefix: bytes, session_id: bytes) -> None:
        """Whatever is marked of a session."""
        reply = await self._link.call("FCALL", "rk1_routes_wanted", 1, prefix, session_id)
        current, client, *marked = cast("list[bytes | int]", reply)
        client_id = cast(bytes, client).decode()
        present: list[tuple[bytes, bytes]] = []
        absent: dict[int, list[bytes]] = {}
        younger: list[tuple[bytes, int]] = []
        for topic_filter, birth, record in zip(marked[::3], marked[1::3], marked[2::3], strict=True):
            name = cast(bytes, topic_filter)
            if record:
                present.append((name, cast(bytes, record)))
                if birth != current:
                    younger.append((name, cast(int, birth)))
            else:
                absent.setdefault(cast(int, birth), []).append(name)
        for birth, filters in absent.items():
            await self.removed(session_id, birth, filters)
        if present:
            await self.added(session_id, cast(int, current), client_id, present)
        if younger:
            # Marked by an older session of this client, and set anew by this one.
            self._link.command(self._done(session_id, 0, younger), None, resend=True)

    async def repair_all(self) -> None:
        """Every mark in the store: what a dead node left."""
        for prefix in self._keys.partitions:
            marked = await self._link.call("ZRANGE", prefix + ROUTES_MARKED, 0, -1)
            for session_id in cast("list[bytes]", marked):
                await self.repair(prefix, session_id)

    def _prefix(self, identifier: bytes) -> bytes:
        return self._keys.partitions[partition_of(identifier, len(self._keys.partitions))]

    async def _groups(self, function: str, session_id: bytes, birth: int, filters: Sequence[bytes]) -> None:
        for topic_filter in filters:
            name = topic_filter.decode()
            if is_shared(name):
                group_id = shared_group_id(name)
                await self._link.call(
                    "FCALL",
                    function,
                    1,
                    self._prefix(group_id),
                    group_id,
                    session_id,
                    birth,
                    *((topic_filter,) if function == _JOIN else ()),
                    resend=True,
                    durable=True,
                )

    def _done(self, session_id: bytes, version: int, filters: Sequence[tuple[bytes, int]]) -> tuple[Part, ...]:
        arguments: list[Part] = [part for each in filters for part in each]
        return "FCALL", "rk1_routes_done", 1, self._prefix(session_id), session_id, version, *arguments
