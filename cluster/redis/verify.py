"""What this node relies on after the store came back: it may lack the last writes, and nobody would ever notice.

For each partition whose store lives a new life: that its sessions are still those that are connected here, with all
their subscriptions, and that the groups know their members. For a route table that was loaded anew: that it has the
routes of this node and of its sessions. What is missing is written again; a session that is lost is let go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, cast

import trio

from broker.errors import ClusterError, SessionLost
from broker.log import get_logger
from cluster.api import ClusterEvents, NodeRoute, Route, SessionRef, StoredSubscription
from cluster.keys import ROUTES, Keys
from cluster.policy import MAX_CALL_SESSIONS, ClusterLimits
from cluster.records import node_route_field, pack_arguments, pack_subscription, route_field, unpack_route
from cluster.redis.arrivals import Attached
from cluster.redis.groups import Groups
from cluster.redis.links import Link
from cluster.redis.membership import Membership
from cluster.redis.node_routes import NodeRoutes
from cluster.redis.pipeline import Part
from cluster.redis.repair import Repair
from cluster.redis.sessions import Sessions
from cluster.redis.takeover import Takeover

#: Subscriptions in one call, unless a session alone has more; and routes that are looked at before others get a turn.
_MAX_SUBSCRIPTIONS: Final = 1000
_ROUTES_AT_ONCE: Final = 500
#: So many sessions are put right at the same time.
_AT_ONCE: Final = 20
_RETRY_S: Final = 0.2

Mend = Callable[[SessionRef, Sequence[str], Sequence[str]], Awaitable[None]]
Found = Mapping[bytes, Route | NodeRoute | None]

_log = get_logger("cluster")


class Verifier:
    """Compares and mends, a little at a time; whatever stops it, it begins again."""

    def __init__(
        self,
        keys: Keys,
        link: Link,
        member: Membership,
        limits: ClusterLimits,
        takeover: Takeover,
        attached: Attached,
        sessions: Sessions,
        repair: Repair,
        groups: Groups,
        node_routes: NodeRoutes,
        lost: Callable[[SessionRef], None],
    ) -> None:
        self.events: ClusterEvents | None = None
        self._prefixes = keys.partitions
        self._routes = keys.routes
        self._link = link
        self._member = member
        self._grace_ms = int(limits.will_failover_grace_s * 1000)
        self._margin = limits.inflight + 64
        self._publish_wills = int(limits.will_failover == "publish")
        self._takeover = takeover
        self._attached = attached
        self._sessions = sessions
        self._repair = repair
        self._groups = groups
        self._node_routes = node_routes
        self._lost = lost
        #: Partitions to look at, and the route table as it was loaded last.
        self._changed: set[int] = set()
        self._routes_changed = False
        self._table: Found | None = None
        self._wanted = trio.Event()
        #: Nothing is left to be looked at.
        self.idle = True
        self._slots = trio.Semaphore(_AT_ONCE)
        #: What stopped the last one of those that are put right at the same time.
        self._failure: ClusterError | None = None

    def changed(self, prefix: bytes) -> None:
        """The store of this partition, or of the route table, has a new life."""
        if prefix == self._routes:
            self._routes_changed = True
        else:
            self._changed.add(self._prefixes.index(prefix))
        self.idle = False
        self._wanted.set()

    def reloaded(self, table: Found) -> None:
        """The route table was loaded anew: all its fields, with what they say."""
        self._table = table
        self.idle = False
        self._wanted.set()

    async def serve(self) -> None:
        """Until cancelled."""
        while True:
            await self._wanted.wait()
            self.idle, self._wanted = False, trio.Event()
            while self._changed or self._routes_changed or self._table is not None:
                if not await self._turn():
                    await trio.sleep(_RETRY_S)
            self.idle = True

    async def _turn(self) -> bool:
        """All that is to be looked at now; False if something is left that cannot be done at once."""
        done = True
        for partition in sorted(self._changed):
            self._changed.discard(partition)
            if not await self._try(self._prefixes[partition], partial(self._verify, partition)):
                self._changed.add(partition)
                done = False
        if self._routes_changed:
            self._routes_changed = False
            if not await self._try(self._routes, self._verify_routes):
                self._routes_changed = True
                done = False
        table, self._table = self._table, None
        if table is not None and not await self._try(self._routes, partial(self._compare, table)):
            if self._table is None:
                self._table = table
            done = False
        return done

    async def _try(self, prefix: bytes, work: Callable[[], Awaitable[None]]) -> bool:
        if not self._link.up_for(prefix):
            return False
        self._failure = None
        try:
            await work()
            if self._failure is not None:
                raise self._failure
        except ClusterError as error:
            _log.warning("cluster.verify_delayed", reason=str(error)[:200])
            return False
        return True

    # Sessions and groups of a partition

    async def _verify(self, partition: int) -> None:
        refs = self._attached.refs_of_partition(partition)
        for batch in self._batches(refs):
            items = [
                (ref.session_id, ref.token, wanted is not None, [part for each in wanted or () for part in each])
                for ref, wanted in batch
            ]
            reply = await self._link.call("FCALL", "rk1_verify", 1, self._prefixes[partition], pack_arguments(items))
            async with trio.open_nursery() as nursery:
                for at, lost, lacking, surplus in cast("list[tuple[int, int, list[bytes], list[bytes]]]", reply):
                    ref = batch[at - 1][0]
                    if not self._attached.has(ref):
                        continue
                    if lost:
                        _log.warning("cluster.session_lost", client_id=ref.client_id[:64])
                        self._lost(ref)
                    else:
                        await self._slots.acquire()
                        nursery.start_soon(self._one, self._mend, ref, _text(lacking), _text(surplus))
        await self._disown(self._prefixes[partition])
        await self._groups.tell_again(partition)

    async def _disown(self, prefix: bytes) -> None:
        """Frees the sessions that the store has here, though their connections ended."""
        own = await self._link.call("SMEMBERS", prefix + b"own:" + self._member.member)
        strays = [sid for sid in cast("Iterable[bytes]", own) if not self._is_here(sid)]
        for first in range(0, len(strays), MAX_CALL_SESSIONS):
            arguments: list[Part] = []
            for sid in strays[first : first + MAX_CALL_SESSIONS]:
                token = await self._link.call("HGET", prefix + b"s:" + sid, "token")
                arguments += (sid, cast("bytes | None", token) or b"")
            pairs = zip(arguments[::2], arguments[1::2], strict=True)
            still = [part for sid, token in pairs if not self._is_here(cast(bytes, sid)) for part in (sid, token)]
            freed = await self._link.call(
                "FCALL",
                "rk1_disown",
                1,
                prefix,
                self._member.node,
                self._member.incarnation_text,
                self._grace_ms,
                self._margin,
                self._publish_wills,
                *still,
                durable=True,
            )
            _log.warning("cluster.sessions_freed", count=freed)

    def _is_here(self, session_id: bytes) -> bool:
        """It is, or the store is about to hear whether it is."""
        return self._attached.may_have(session_id) or self._takeover.busy(session_id)

    def _batches(
        self, refs: Sequence[SessionRef]
    ) -> Iterator[list[tuple[SessionRef, list[tuple[bytes, bytes]] | None]]]:
        """Sessions with their filters and packed subscriptions; None for those that have none in the store."""
        batch: list[tuple[SessionRef, list[tuple[bytes, bytes]] | None]] = []
        size = 0
        for ref in refs:
            wanted = self._wanted_by(ref)
            count = 0 if wanted is None else len(wanted)
            if batch and (len(batch) >= MAX_CALL_SESSIONS or size + count > _MAX_SUBSCRIPTIONS):
                yield batch
                batch, size = [], 0
            batch.append((ref, wanted))
            size += count
        if batch:
            yield batch

    def _subscriptions(self, ref: SessionRef) -> dict[str, StoredSubscription] | None:
        found = self.events.subscriptions(ref) if self.events is not None and self._attached.has(ref) else None
        return None if found is None else {each.topic_filter: each for each in found}

    def _wanted_by(self, ref: SessionRef) -> list[tuple[bytes, bytes]] | None:
        found = self._subscriptions(ref)
        return None if found is None else [(name.encode(), pack_subscription(each)) for name, each in found.items()]

    async def _one(self, mend: Mend, ref: SessionRef, lacking: Sequence[str], surplus: Sequence[str]) -> None:
        try:
            await mend(ref, lacking, surplus)
        except SessionLost:
            self._lost(ref)
        except ClusterError as error:
            self._failure = error
        finally:
            self._slots.release()

    async def _mend(self, ref: SessionRef, lacking: Sequence[str], surplus: Sequence[str]) -> None:
        """Stores what the session has here and not there, and removes what it has there and not here; the client may
        change its mind at any time, so it is the present that counts."""
        while lacking or surplus:
            wanted = self._subscriptions(ref)
            if wanted is None:
                return
            added = [name for name in lacking if name in wanted]
            removed = [name for name in surplus if name not in wanted]
            _log.warning(
                "cluster.session_mended", client_id=ref.client_id[:64], subscribed=len(added), unsubscribed=len(removed)
            )
            if added:
                await self._sessions.subscribe(ref, [wanted[name] for name in added])
            if removed:
                await self._sessions.unsubscribe(ref, removed)
            wanted = self._subscriptions(ref) or {}
            lacking = [name for name in removed if name in wanted]
            surplus = [name for name in added if name not in wanted]

    # The route table

    async def _verify_routes(self) -> None:
        """Reads the routes of this node and its sessions, and compares them."""
        own = await self._link.call("SMEMBERS", self._routes + b"nr:" + self._node_routes.member)
        self._node_routes.compare(cast("Iterable[bytes]", own))
        refs: list[SessionRef] = []
        fields: list[bytes] = []
        for ref in self._attached.refs():
            refs.append(ref)
            fields += [route_field(ref.session_id, name.encode()) for name in self._subscriptions(ref) or ()]
            if len(fields) >= _ROUTES_AT_ONCE or len(refs) >= _ROUTES_AT_ONCE:
                await self._compare_sessions(refs, await self._read(fields), {})
                refs, fields = [], []
        await self._compare_sessions(refs, await self._read(fields), {})

    async def _read(self, fields: Sequence[bytes]) -> dict[bytes, Route | NodeRoute | None]:
        table: dict[bytes, Route | NodeRoute | None] = {}
        for first in range(0, len(fields), _ROUTES_AT_ONCE):
            names = fields[first : first + _ROUTES_AT_ONCE]
            records = await self._link.call("HMGET", self._routes + ROUTES, *names)
            for field, record in zip(names, cast("list[bytes | None]", records), strict=True):
                if record is not None:
                    table[field] = unpack_route(field, record)
        return table

    async def _compare(self, table: Found) -> None:
        own = node_route_field(self._node_routes.member, b"")
        own_fields: set[bytes] = set()
        surplus: dict[bytes, list[str]] = {}
        for number, field in enumerate(table):
            if field.startswith(own):
                own_fields.add(field)
            elif field[:1] == b"s" and field[1:17] in self._attached:
                surplus.setdefault(field[1:17], []).append(field[17:].decode())
            if number % _ROUTES_AT_ONCE == _ROUTES_AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
        self._node_routes.compare(own_fields)
        refs = self._attached.refs()
        for first in range(0, len(refs), MAX_CALL_SESSIONS):
            await self._compare_sessions(refs[first : first + MAX_CALL_SESSIONS], table, surplus)
            await trio.lowlevel.checkpoint()

    async def _compare_sessions(
        self, refs: Sequence[SessionRef], table: Found, surplus: Mapping[bytes, Sequence[str]]
    ) -> None:
        async with trio.open_nursery() as nursery:
            for ref in refs:
                wanted = self._subscriptions(ref)
                if wanted is None:
                    continue
                lacking = [name for name, each in wanted.items() if not _has(table, ref, each)]
                gone = [name for name in surplus.get(ref.session_id, ()) if name not in wanted]
                if lacking or gone:
                    await self._slots.acquire()
                    nursery.start_soon(self._one, self._mend_routes, ref, lacking, gone)

    async def _mend_routes(self, ref: SessionRef, lacking: Sequence[str], surplus: Sequence[str]) -> None:
        """As `_mend`, for the routes alone."""
        while lacking or surplus:
            wanted = self._subscriptions(ref)
            if wanted is None:
                return
            added = [name for name in lacking if name in wanted]
            removed = [name for name in surplus if name not in wanted]
            if added:
                records = [(name.encode(), pack_subscription(wanted[name])) for name in added]
                await self._repair.added(ref.session_id, ref.birth, ref.client_id, records)
            if removed:
                await self._repair.removed(ref.session_id, ref.birth, [name.encode() for name in removed])
            wanted = self._subscriptions(ref) or {}
            lacking = [name for name in removed if name in wanted]
            surplus = [name for name in added if name not in wanted]


def _text(names: Sequence[bytes]) -> list[str]:
    return [each.decode() for each in names]


def _has(table: Found, ref: SessionRef, wanted: StoredSubscription) -> bool:
    route = table.get(route_field(ref.session_id, wanted.topic_filter.encode()))
    return (
        isinstance(route, Route)
        and route.birth == ref.birth
        and route.subscription.options == wanted.options
        and route.subscription.subscription_identifier == wanted.subscription_identifier
    )
