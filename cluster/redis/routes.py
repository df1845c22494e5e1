"""The route table: which sessions subscribed to what, written after the session itself, read when a node starts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

import trio

from broker.errors import ClusterError
from broker.log import get_logger
from cluster.api import Route
from cluster.keys import ROUTES, ROUTES_MARKED, Keys, partition_of
from cluster.records import pack_route, route_birth, route_field, unpack_route
from cluster.redis.lanes import Lane, Outbox
from cluster.redis.link import RedisLink
from cluster.redis.membership import Membership
from cluster.redis.pipeline import Part

_SCAN_COUNT = 500
_MAX_CALL_ROUTES = 1000

_log = get_logger("cluster")


class RouteChange:
    """Routes of one session to set or to remove; `fields` alternates field and record, or field and birth."""

    __slots__ = ("done", "error", "fields", "removes")

    def __init__(self, removes: bool, fields: list[Part]) -> None:
        self.removes = removes
        self.fields = fields
        self.error: ClusterError | None = None
        self.done = trio.Event()


class RouteLane(Lane):
    """Changes of the route table, in the order in which they were asked for."""

    __slots__ = ("_changes", "pending")

    def __init__(self, prefix: bytes, link: RedisLink, member: Membership, outbox: Outbox) -> None:
        super().__init__(prefix, link, member, outbox)
        self.pending: deque[RouteChange] = deque()
        self._changes: list[RouteChange] = []

    def has_more(self) -> bool:
        """See `Lane`."""
        return bool(self.pending)

    def build(self) -> tuple[Part, ...] | None:
        """See `Lane`. Either sets or removals, since only these may run in a full store."""
        if not self.pending:
            return None
        removes = self.pending[0].removes
        arguments: list[Part] = []
        while self.pending and self.pending[0].removes is removes and len(arguments) < 2 * _MAX_CALL_ROUTES:
            change = self.pending.popleft()
            self._changes.append(change)
            arguments += change.fields
        return (b"rk1_remove_routes" if removes else b"rk1_set_routes", *arguments)

    def done(self, value: bytes) -> None:
        """See `Lane`."""
        self._end(None)

    def failed(self, error: ClusterError, full: bool) -> bool:
        """See `Lane`."""
        self._end(error)
        return False

    def _end(self, error: ClusterError | None) -> None:
        changes, self._changes = self._changes, []
        for change in changes:
            change.error = error
            change.done.set()


class Routes:
    """Keeps the route table in line with the sessions.

    A session's function marks the filters that changed; the mark goes when the table is written. So after a crash
    in between the marks say what is left to do."""

    def __init__(
        self, keys: Keys, link: RedisLink, wake: Callable[[], None], member: Membership, outbox: Outbox
    ) -> None:
        self._keys = keys
        self._link = link
        self._wake = wake
        self._lane = RouteLane(keys.routes, link, member, outbox)

    async def change(self, removes: bool, fields: list[Part]) -> None:
        """Returns when the table is written, however long the store is away. Raises StoreFull, ClusterError."""
        change = RouteChange(removes, fields)
        self._lane.pending.append(change)
        self._lane.touch()
        self._wake()
        await change.done.wait()
        if change.error is not None:
            raise type(change.error)(str(change.error))

    async def set(
        self, session_id: bytes, birth: int, client_id: str, subscriptions: Sequence[tuple[bytes, bytes]]
    ) -> None:
        """Filters with packed subscriptions of a session were stored: now the routes, and the marks go."""
        fields: list[Part] = []
        for topic_filter, record in subscriptions:
            fields += (route_field(session_id, topic_filter), pack_route(birth, client_id, record))
        await self.change(False, fields)
        self._unmark(session_id, [(topic_filter, birth) for topic_filter, _ in subscriptions])

    async def remove(self, session_id: bytes, birth: int, topic_filters: Sequence[bytes]) -> None:
        """Filters of a session were removed."""
        fields: list[Part] = []
        for topic_filter in topic_filters:
            fields += (route_field(session_id, topic_filter), route_birth(birth))
        await self.change(True, fields)
        self._unmark(session_id, [(topic_filter, birth) for topic_filter in topic_filters])

    def _unmark(self, session_id: bytes, filters: Sequence[tuple[bytes, int]]) -> None:
        arguments: list[Part] = []
        for topic_filter, birth in filters:
            arguments += (topic_filter, birth)
        prefix = self._keys.partitions[partition_of(session_id, len(self._keys.partitions))]
        self._link.command(("FCALL", "rk1_routes_done", 1, prefix, session_id, *arguments), None, resend=True)

    async def repair(self, prefix: bytes, session_id: bytes) -> None:
        """Brings the marked routes of a session in line with it. Idempotent."""
        reply = await self._link.call("FCALL", "rk1_routes_wanted", 1, prefix, session_id)
        current, client, *marked = cast("list[bytes | int]", reply)
        client_id = cast(bytes, client).decode()
        present: list[tuple[bytes, bytes]] = []
        absent: dict[int, list[bytes]] = {}
        marks: list[tuple[bytes, int]] = []
        for topic_filter, birth, record in zip(marked[::3], marked[1::3], marked[2::3], strict=True):
            name = cast(bytes, topic_filter)
            marks.append((name, cast(int, birth)))
            if record:
                present.append((name, cast(bytes, record)))
            else:
                absent.setdefault(cast(int, birth), []).append(name)
        for birth, filters in absent.items():
            await self.remove(session_id, birth, filters)
        if present:
            await self.set(session_id, cast(int, current), client_id, present)
        self._unmark(session_id, marks)

    async def repair_all(self) -> None:
        """Every mark in the store: what a dead node left."""
        for prefix in self._keys.partitions:
            marked = await self._link.call("ZRANGE", prefix + ROUTES_MARKED, 0, -1)
            for session_id in cast("list[bytes]", marked):
                await self.repair(prefix, session_id)

    async def load(self) -> list[Route]:
        """The whole table."""
        routes: dict[bytes, Route] = {}
        cursor: object = b"0"
        while True:
            reply = await self._link.call(
                "HSCAN", self._keys.routes + ROUTES, cast(bytes, cursor), "COUNT", _SCAN_COUNT
            )
            cursor, pairs = cast("list[object]", reply)
            fields = cast("list[bytes]", pairs)
            for field, record in zip(fields[::2], fields[1::2], strict=True):
                route = unpack_route(field, record)
                if route is None:
                    _log.warning("cluster.unknown_record", kind="route", format=record[0])
                else:
                    routes[field] = route
            if cursor == b"0":
                return list(routes.values())
