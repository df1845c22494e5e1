"""The route table: written after the session itself, read when a node starts, followed by its log from then on."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import trio

from broker.errors import ClusterError, StoreUnavailable
from broker.log import get_logger
from cluster.api import NodeRoute, Route, RouteChange
from cluster.keys import ROUTES, ROUTES_VERSION, Keys
from cluster.records import pack_route, removed_route, route_birth, route_field, unpack_answer, unpack_route
from cluster.redis.lanes import Lane, Outbox
from cluster.redis.membership import Membership
from cluster.redis.pipeline import Part
from cluster.redis.versions import Versions, parse_version

if TYPE_CHECKING:
    from cluster.redis.links import Link

_SCAN_COUNT = 500
_MAX_CALL_ROUTES = 1000
_SET = 1
_RETRY_S = 0.2

_log = get_logger("cluster")


class Write:
    """Routes to set or to remove; `fields` alternates field and record, or field and birth."""

    __slots__ = ("done", "error", "fields", "removes", "then", "version")

    def __init__(self, removes: bool, fields: Sequence[Part], then: Callable[[Write], None] | None) -> None:
        self.removes = removes
        self.fields = fields
        self.then = then
        self.version = 0
        self.error: ClusterError | None = None
        self.done = trio.Event()

    def end(self, version: int, error: ClusterError | None) -> None:
        """It is written as this version of the table, or was refused."""
        self.version = version
        self.error = error
        if self.then is not None:
            self.then(self)
        self.done.set()


class RouteLane(Lane):
    """Changes of the route table, in the order in which they were asked for."""

    __slots__ = ("_writes", "pending")

    def __init__(self, prefix: bytes, link: Link, member: Membership, outbox: Outbox) -> None:
        super().__init__(prefix, link, member, outbox)
        self.pending: deque[Write] = deque()
        self._writes: list[Write] = []

    def has_more(self) -> bool:
        """See `Lane`."""
        return bool(self.pending)

    def build(self) -> tuple[Part, ...] | None:
        """See `Lane`. Either sets or removals, since only these may run in a full store."""
        if not self.pending:
            return None
        removes = self.pending[0].removes
        # Tells this change from another of the same number in another history of the store.
        arguments: list[Part] = [secrets.token_hex(4)]
        while self.pending and self.pending[0].removes is removes and len(arguments) < 2 * _MAX_CALL_ROUTES:
            write = self.pending.popleft()
            self._writes.append(write)
            arguments += write.fields
        return (b"rk1_remove_routes" if removes else b"rk1_set_routes", *arguments)

    def done(self, value: bytes) -> None:
        """See `Lane`."""
        self._end(parse_version(value)[0], None)

    def failed(self, error: ClusterError, full: bool) -> bool:
        """See `Lane`."""
        self._end(0, error)
        return False

    def _end(self, version: int, error: ClusterError | None) -> None:
        writes, self._writes = self._writes, []
        for write in writes:
            write.end(version, error)

    def fields(self) -> set[bytes]:
        """Of what is not written yet."""
        return {cast(bytes, field) for write in (*self._writes, *self.pending) for field in write.fields[::2]}


class Routes:
    """Changes the table, and keeps this node's table in line with it.

    The broker applies changes of the sessions that are connected here itself: in the log those are only counted."""

    def __init__(
        self,
        keys: Keys,
        link: Link,
        wake: Callable[[], None],
        member: Membership,
        outbox: Outbox,
        versions: Versions,
        attached: Container[bytes],
    ) -> None:
        self._keys = keys
        self._link = link
        self._wake = wake
        self._member = member
        self._versions = versions
        #: Session ids of the sessions connected here: their routes are the broker's own affair.
        self._attached = attached
        self._lane = RouteLane(keys.routes, link, member, outbox)
        #: Names of all routes, to know after a reload which are gone.
        self._fields: set[bytes] = set()
        #: Own changes since the reload under way began.
        self._touched: set[bytes] | None = None
        self._wanted = trio.Event()
        #: Set to where the log is to be read from, after a reload.
        self.on_loaded: Callable[[int], None] = lambda _: None
        #: Called after a reload with what the table has.
        self.on_reloaded: Callable[[Mapping[bytes, Route | NodeRoute | None]], None] = lambda _: None
        versions.on_foreign = self.reload

    # Changes by this node

    def start(self, removes: bool, fields: Sequence[Part], then: Callable[[Write], None] | None = None) -> Write:
        """Begins a change; `then` is called when it is written or refused."""
        write = Write(removes, fields, then)
        if self._touched is not None:
            self._touched.update(cast("Sequence[bytes]", fields[::2]))
        self._lane.pending.append(write)
        self._lane.touch()
        self._wake()
        return write

    async def written(self, write: Write) -> int:
        """Waits for a change, however long the store is away; returns the version. Raises StoreFull, ClusterError."""
        await write.done.wait()
        if write.error is not None:
            raise type(write.error)(str(write.error))
        return write.version

    async def set(
        self, session_id: bytes, birth: int, client_id: str, subscriptions: Sequence[tuple[bytes, bytes]]
    ) -> int:
        """Filters with packed subscriptions of a session were stored: now the routes. Returns the version."""
        fields: list[Part] = []
        for topic_filter, record in subscriptions:
            fields += (route_field(session_id, topic_filter), pack_route(birth, client_id, record))
        return await self.written(self.start(False, fields))

    async def remove(self, session_id: bytes, birth: int, topic_filters: Sequence[bytes]) -> int:
        """Filters of a session were removed. Returns the version."""
        fields: list[Part] = []
        for topic_filter in topic_filters:
            fields += (route_field(session_id, topic_filter), route_birth(birth))
        return await self.written(self.start(True, fields))

    # The table

    async def load(self) -> tuple[list[Route], list[NodeRoute]]:
        """The whole table; the log is to be read from the version that is adopted then. Raises ClusterError."""
        version, records = await self._read()
        self._fields = set(records)
        routes: list[Route] = []
        nodes: list[NodeRoute] = []
        for route in records.values():
            if isinstance(route, Route):
                routes.append(route)
            elif route is not None:
                nodes.append(route)
        self._versions.start(*version)
        return routes, nodes

    async def _read(self) -> tuple[tuple[int, bytes], dict[bytes, Route | NodeRoute | None]]:
        """The version first: the log from there on has whatever the scan misses."""
        reply = await self._link.call("GET", self._keys.routes + ROUTES_VERSION)
        version = parse_version(cast("bytes | None", reply))
        records: dict[bytes, Route | NodeRoute | None] = {}
        cursor: object = b"0"
        while True:
            reply = await self._link.call(
                "HSCAN", self._keys.routes + ROUTES, cast(bytes, cursor), "COUNT", _SCAN_COUNT
            )
            cursor, pairs = cast("list[object]", reply)
            found = cast("list[bytes]", pairs)
            for field, record in zip(found[::2], found[1::2], strict=True):
                records[field] = _route(field, record)
            if cursor == b"0":
                return version, records

    def adopt(self, entries: Sequence[tuple[int, Sequence[bytes]]]) -> None:
        """New entries of the log."""
        if self._touched is not None or not entries:
            return
        tags: list[tuple[int, bytes]] = []
        changes: list[RouteChange] = []
        for number, flat in entries:
            fields = _fields(flat)
            tags.append((number, fields[b"t"]))
            own = fields[b"o"] == self._member.member
            values = unpack_answer(fields[b"c"])
            for operation, field, value in zip(values[::3], values[1::3], values[2::3], strict=True):
                removed = operation != _SET
                (self._fields.discard if removed else self._fields.add)(cast(bytes, field))
                if not own or self._is_foreign(cast(bytes, field), ()):
                    _add_change(changes, removed, cast(bytes, field), cast(bytes, value))
        self._versions.adopt(entries[-1][0], tags, changes)

    def continues(self, number: int, flat: Sequence[bytes]) -> bool:
        """Whether this entry of the log is the one that was adopted under its number."""
        return self._versions.has(number, _fields(flat)[b"t"])

    def reload(self) -> None:
        """The log has a gap, or is not the one that was read so far."""
        if self._touched is None:
            _log.warning("cluster.routes_reloaded", version=self._versions.number)
            self._touched = self._lane.fields()
            self._wanted.set()

    async def serve(self) -> None:
        """Reloads the table where it has to; until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            while True:
                try:
                    version, records = await self._read()
                    break
                except StoreUnavailable:
                    await trio.sleep(_RETRY_S)
                except ClusterError as error:
                    _log.warning("cluster.routes_delayed", reason=str(error)[:200])
                    await trio.sleep(_RETRY_S)
            self._reloaded(version, records)

    def _reloaded(self, version: tuple[int, bytes], records: dict[bytes, Route | NodeRoute | None]) -> None:
        touched: Container[bytes] = self._touched or ()
        self._touched = None
        known, self._fields = self._fields, set(records)
        changes: list[RouteChange] = []
        for field in known - records.keys():
            if self._is_foreign(field, touched):
                _add_change(changes, True, field, b"")
        for field, route in records.items():
            if route is not None and self._is_foreign(field, touched):
                if isinstance(route, Route):
                    changes.append(RouteChange(False, route))
                else:
                    changes.append(RouteChange(False, None, route))
        self.on_loaded(version[0])
        self._versions.start(*version, changes)
        self._wake()
        self.on_reloaded(records)

    def _is_foreign(self, field: bytes, touched: Container[bytes]) -> bool:
        if field in touched:
            return False
        if field[:1] == b"s":
            return field[1:17] not in self._attached
        return not field.startswith(b"n" + self._member.member + b"\0")


def _fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _route(field: bytes, record: bytes) -> Route | NodeRoute | None:
    route = unpack_route(field, record)
    if route is None:
        _log.warning("cluster.unknown_record", kind="route", format=record[:1].hex())
    return route


def _add_change(changes: list[RouteChange], removed: bool, field: bytes, value: bytes) -> None:
    route = removed_route(field, value) if removed else _route(field, value)
    if isinstance(route, Route):
        changes.append(RouteChange(removed, route))
    elif route is not None:
        changes.append(RouteChange(removed, None, route))
