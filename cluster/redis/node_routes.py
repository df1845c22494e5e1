"""The filters for which this node is in the route table: those of its ephemeral sessions, and its groups'."""

from __future__ import annotations

from collections.abc import Iterable

import trio

from broker.errors import ClusterError
from broker.log import get_logger
from broker.topics.names import is_shared
from cluster.api import SessionRef
from cluster.records import NODE_ROUTE, node_route_field
from cluster.redis.membership import Membership
from cluster.redis.routes import Routes, Write

#: A filter that nobody has any more stays in the table for up to so long, or comes back without a write.
_SWEEP_S = 1.0

_log = get_logger("cluster")


class NodeRoutes:
    """Counts subscribers per filter: only the first and the last of this node change the table. Where the last one's
    session ends, that is done a little later: a route too much costs no more than a message that nobody here takes."""

    def __init__(self, routes: Routes, member: Membership) -> None:
        self._routes = routes
        self._member = member
        #: Filters of ephemeral sessions, by the token of the session.
        self._sessions: dict[bytes, set[str]] = {}
        self._counts: dict[str, int] = {}
        self._groups: set[str] = set()
        #: In the table, or on the way there; and the writes that are on the way.
        self._announced: dict[str, Write | None] = {}
        self._idle: set[str] = set()

    async def subscribe(self, ref: SessionRef, topic_filters: Iterable[str]) -> None:
        """An ephemeral session has these too. Returns when the table says so. Raises StoreFull, ClusterError."""
        filters = [each for each in topic_filters if not is_shared(each)]
        own = self._sessions.setdefault(ref.token, set())
        for each in filters:
            if each not in own:
                own.add(each)
                self._counts[each] = self._counts.get(each, 0) + 1
        try:
            await self._announce(filters)
        except ClusterError:
            self._drop(ref.token, filters)
            raise

    async def unsubscribe(self, ref: SessionRef, topic_filters: Iterable[str]) -> None:
        """It has these no longer. Returns when the table says so. Raises ClusterError."""
        filters = list(topic_filters)
        self._drop(ref.token, filters)
        await self._withdraw_idle(self._idle.intersection(filters))

    def detached(self, ref: SessionRef) -> None:
        """The session is gone."""
        own = self._sessions.get(ref.token)
        if own is not None:
            self._drop(ref.token, list(own))

    def _drop(self, token: bytes, topic_filters: Iterable[str]) -> None:
        own = self._sessions.get(token)
        if own is None:
            return
        for each in topic_filters:
            if each in own:
                own.remove(each)
                self._counts[each] -= 1
                if not self._counts[each]:
                    del self._counts[each]
                    self._idle.add(each)
        if not own:
            del self._sessions[token]

    async def add(self, topic_filter: str) -> None:
        """This node has connected members of a shared subscription. Returns when the table says so."""
        self._groups.add(topic_filter)
        await self._announce([topic_filter])

    async def remove(self, topic_filter: str) -> None:
        """It has none any more. Returns when the table says so."""
        if topic_filter in self._groups:
            self._groups.remove(topic_filter)
            await self._routes.written(self._withdraw([topic_filter]))

    def _wanted(self, topic_filter: str) -> bool:
        return topic_filter in self._counts or topic_filter in self._groups

    async def _announce(self, topic_filters: Iterable[str]) -> None:
        """Returns when all are in the table, whoever asked for it first."""
        writes: dict[Write, None] = {}
        fresh: list[str] = []
        for each in topic_filters:
            if each not in self._announced:
                fresh.append(each)
            elif (write := self._announced[each]) is not None:
                writes[write] = None
        if fresh:
            writes[self._write(fresh)] = None
        for write in writes:
            await self._routes.written(write)

    def _write(self, topic_filters: Iterable[str]) -> Write:
        member = self._member.member
        filters = list(topic_filters)
        fields: list[bytes] = []
        for each in filters:
            fields += (node_route_field(member, each.encode()), NODE_ROUTE)

        def ended(write: Write) -> None:
            for each in filters:
                if self._announced.get(each) is write:
                    if write.error is None:
                        self._announced[each] = None
                    else:
                        del self._announced[each]

        write = self._routes.start(False, fields, ended)
        for each in filters:
            self._announced[each] = write
        return write

    def _withdraw(self, topic_filters: Iterable[str]) -> Write:
        fields: list[bytes] = []
        for each in topic_filters:
            self._announced.pop(each, None)
            fields += (node_route_field(self._member.member, each.encode()), b"")
        return self._routes.start(True, fields)

    @property
    def member(self) -> bytes:
        """Whose routes these are."""
        return self._member.member

    def compare(self, fields: Iterable[bytes]) -> None:
        """The table was loaded anew, and has these fields of this node: makes it as it shall be."""
        found = set(fields)
        names = {node_route_field(self._member.member, each.encode()): each for each in self._announced}
        lacking = [each for field, each in names.items() if field not in found and self._announced[each] is None]
        surplus = [field for field in found if field not in names]
        if lacking or surplus:
            _log.warning("cluster.node_routes_mended", written=len(lacking), removed=len(surplus))
        if lacking:
            self._write(lacking)
        if surplus:
            self._routes.start(True, [part for field in surplus for part in (field, b"")])

    def announce_again(self) -> None:
        """The store lost the table."""
        self._announced.clear()
        self._idle.clear()
        wanted = [*self._counts, *self._groups]
        if wanted:
            self._write(wanted)

    async def serve(self) -> None:
        """Withdraws what nobody wants any more; until cancelled."""
        while True:
            await trio.sleep(_SWEEP_S)
            try:
                await self._withdraw_idle(self._idle)
            except ClusterError as error:
                _log.warning("cluster.routes_delayed", reason=str(error)[:200])

    async def _withdraw_idle(self, topic_filters: Iterable[str]) -> None:
        idle = set(topic_filters)
        self._idle -= idle
        gone = [each for each in idle if each in self._announced and not self._wanted(each)]
        if gone:
            await self._routes.written(self._withdraw(gone))
