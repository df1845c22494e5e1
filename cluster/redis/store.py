"""`RedisCluster`: the cluster port on one Redis or Valkey server, composed of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import trio

from broker.errors import ClusterError, StateError, StoreUnavailable
from broker.log import get_logger
from broker.message import Message
from broker.topics.names import is_shared
from cluster.api import (
    PAGE_LIMIT,
    Attachment,
    AttachRequest,
    ClusterEvents,
    GroupEntry,
    Poller,
    Publication,
    QueuedMessage,
    Readiness,
    Route,
    SessionRef,
    StoredSubscription,
    StoreHealth,
    shared_group_id,
)
from cluster.keys import GROUP_KEPT, GROUP_QUEUE, GROUPS, SERVED, Keys, partition_of, session_id
from cluster.policy import BEAT_S, SERVED_RELEASED_S, ClusterLimits
from cluster.records import pack_body, unpack_message
from cluster.redis import durability, library
from cluster.redis.address import StoreAddress
from cluster.redis.callbacks import Then, call_stored, call_then
from cluster.redis.calls import gather
from cluster.redis.lanes import Outbox
from cluster.redis.link import RedisLink
from cluster.redis.membership import Membership
from cluster.redis.publish import Item, PartitionLane
from cluster.redis.requests import result
from cluster.redis.retained import Retained
from cluster.redis.routes import Routes
from cluster.redis.sessions import Sessions
from cluster.redis.settle import SettleBox, Settler
from cluster.redis.timers import Timers

#: Message ids whose partitions are remembered, for their memory to be cut short at PUBREL.
_REMEMBERED_IDS = 10_000
_TARGET_BYTES = 100
_LEAVE_S = 0.5

_log = get_logger("cluster")


class _LatePoller:
    """The poller, which comes with `serve`, for parts that are made before."""

    __slots__ = ("poller",)

    def __init__(self) -> None:
        self.poller: Poller | None = None

    def _get(self) -> Poller:
        if self.poller is None:
            raise StateError("the cluster is not served yet")
        return self.poller

    def register(self, fd: int, handler: Readiness) -> None:
        self._get().register(fd, handler)

    def watch_writable(self, fd: int, wanted: bool) -> None:
        self._get().watch_writable(fd, wanted)

    def unregister(self, fd: int) -> None:
        self._get().unregister(fd)

    def wake(self) -> None:
        self._get().wake()


class RedisCluster:
    """A `Cluster` whose state lies in one Redis or Valkey server; one node per store and namespace."""

    def __init__(
        self, address: StoreAddress, node_name: str, limits: ClusterLimits, namespace: str, partitions: int
    ) -> None:
        self.node_name = node_name
        self._limits = limits
        self._keys = Keys(namespace, partitions)
        self._count = partitions
        self._poller = _LatePoller()
        self._link = RedisLink(address, self._poller, on_up=self._up, on_down=self._down)
        self._member = Membership(node_name, self._keys)
        self._outbox = Outbox()
        self._partitions = [
            PartitionLane(prefix, self._link, self._member, self._outbox, limits) for prefix in self._keys.partitions
        ]
        self._settling = SettleBox()
        self._settlers = [
            Settler(prefix, self._link, self._settling, self._session_lost) for prefix in self._keys.partitions
        ]
        self._retained = Retained(self._keys, self._link, self._poller, self._member, self._outbox)
        self._routes = Routes(self._keys, self._link, self._poller.wake, self._member, self._outbox)
        self._sessions = Sessions(self._keys, self._link, self._member, self._routes, limits)
        self._timers = Timers(self._keys, self._link, self._poller, self._member, self._routes)
        self._events: ClusterEvents | None = None
        self._available = False
        self._durability = "memory"
        #: Publications that need nothing of the store but that it is there.
        self._ready: list[Publication] = []
        self._refused: list[Publication] = []
        self._pending_bytes = 0
        self._served: dict[bytes, set[bytes]] = {}
        self._group_acks: dict[bytes, tuple[list[bytes], list[Then]]] = {}
        #: Entries of groups that belong to one session for good.
        self._kept: dict[bytes, set[bytes]] = {}
        self._lost: set[bytes] = set()

    # Life

    async def serve(self, events: ClusterEvents, poller: Poller, *, task_status: object) -> None:
        """See `Cluster.serve`."""
        self._poller.poller = poller
        self._events = events
        await self._link.connect()
        try:
            dead = await self._member.join(self._link.call)
            self._available = True
            await self._member.reap(self._gather, dead, self._limits)
            failures: list[ClusterError] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._link.keep_connected)
                nursery.start_soon(self._beat, nursery.cancel_scope)
                nursery.start_soon(self._settling.serve, self._poller.wake)
                try:
                    await self._restore(events)
                except ClusterError as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()
                else:
                    cast("trio.TaskStatus[None]", task_status).started()
                    nursery.start_soon(self._timers.serve, events)
            if failures:
                raise failures[0]
            raise ClusterError(
                f"another process with the node name {self.node_name!r} took over, or the store lost its data"
            )
        finally:
            await self._leave()
            self._link.close()

    async def _restore(self, events: ClusterEvents) -> None:
        await self._routes.repair_all()
        routes = await self._routes.load()
        await self._agree_on_groups(routes)
        await self._retained.load()
        events.restore(routes)

    async def _leave(self) -> None:
        if self._member.incarnation and not self._member.superseded:
            for settler in self._settlers:
                settler.pump(everything=True)
            with trio.move_on_after(_LEAVE_S, shield=True):
                await self._gather([("FCALL", "rk1_leave", 1, self._keys.members, self._member.member)])

    async def _up(self, _: RedisLink) -> None:
        """On each new connection, before anything else is sent on it."""
        call = self._link.setup_call
        self._durability = (await durability.durability(call, durability.Demand())).durability
        await library.ensure_loaded(call)
        if not self._member.incarnation:
            return
        await self._member.beat(call)
        self._available = True
        if self._events is not None:
            self._events.store_changed(True)
        self._poller.wake()

    def _down(self, _: Exception) -> None:
        self._available = False
        if self._events is not None:
            self._events.store_changed(False)

    async def _beat(self, scope: trio.CancelScope) -> None:
        while not self._member.superseded:
            await trio.sleep(BEAT_S)
            if not self._link.up:
                continue
            try:
                await self._member.beat(self._link.call)
            except ClusterError as error:
                _log.warning("cluster.beat_failed", reason=str(error)[:200])
                continue
            if self._member.readmitted:
                self._member.readmitted = False
                self._emptied()
            self._outbox.retry()
            if self._outbox.due:
                self._poller.wake()
        scope.cancel()

    def _emptied(self) -> None:
        """Nothing that this node knows of the store is there any more."""
        self._retained.forget()
        self._kept.clear()
        if self._events is not None:
            self._events.store_emptied()

    async def _gather(self, commands: Sequence[tuple[bytes | str | int | float, ...]]) -> list[object]:
        return await gather(self._link, self._poller, commands)

    def health(self) -> StoreHealth:
        """See `Cluster.health`."""
        server = self._link.server
        return StoreHealth(
            str(server.get("server", "redis")),
            str(server.get("version", "")),
            self._durability,
            self._available,
            self._link.round_trip_ms,
        )

    def now_ms(self) -> int:
        """See `Cluster.now_ms`."""
        return self._member.now_ms()

    def alone(self) -> bool:
        """See `Cluster.alone`."""
        return self._member.alone()

    # Sessions

    async def attach(self, request: AttachRequest) -> Attachment:
        """See `Cluster.attach`."""
        identifier = session_id(request.client_id)
        self._settlers[partition_of(identifier, self._count)].pump(everything=True)
        return await self._sessions.attach(request)

    async def detach(self, ref: SessionRef, expiry_s: int, sent_seq: int, will: bool) -> None:
        """See `Cluster.detach`. While the store is away it waits: the call survives lost connections."""
        self._settlers[partition_of(ref.session_id, self._count)].pump(everything=True)
        if await self._sessions.detach(ref, expiry_s, sent_seq, will):
            self._timers.wake()

    async def subscribe(self, ref: SessionRef, subscriptions: Sequence[StoredSubscription]) -> None:
        """See `Cluster.subscribe`."""
        await self._sessions.subscribe(ref, subscriptions)

    async def unsubscribe(self, ref: SessionRef, topic_filters: Sequence[str]) -> None:
        """See `Cluster.unsubscribe`."""
        await self._sessions.unsubscribe(ref, topic_filters)

    async def page(self, ref: SessionRef, after_seq: int, limit: int) -> list[QueuedMessage]:
        """See `Cluster.page`."""
        return await self._sessions.page(ref, after_seq, limit)

    def _session_lost(self, ref: SessionRef) -> None:
        if ref.token in self._lost or self._events is None:
            return
        if len(self._lost) >= 10_000:
            self._lost.clear()
        self._lost.add(ref.token)
        self._events.session_lost(ref)

    # The batch

    def publish(self, publication: Publication) -> None:
        """See `Cluster.publish`."""
        if self._pending_bytes > self._limits.max_pending_bytes:
            publication.error = StoreUnavailable("too much waits for the store")
            self._refused.append(publication)
            return
        message = publication.message
        targets, groups = publication.targets, publication.groups
        if not (targets or groups or publication.retain):
            self._ready.append(publication)
            return
        item = Item(publication, pack_body(message), self._finished)
        self._pending_bytes += len(item.body) + _TARGET_BYTES * (1 + len(targets))
        if publication.retain:
            self._retained.add(item)
        count, partitions = self._count, self._partitions
        for target in targets:
            identifier = target.session_id
            lane = partitions[(identifier[0] << 8 | identifier[1]) % count]
            lane.pending.append((item, target))
            if not lane.dirty:
                lane.touch()
        for group in groups:
            lane = partitions[partition_of(group.group_id, count)]
            lane.groups.append((item, group))
            lane.touch()
        item.waiting += len(targets) + len(groups)
        if publication.deduplicate:
            self._remember(
                message.message_id, (*(target.session_id for target in targets), *(g.group_id for g in groups))
            )

    def _finished(self, item: Item) -> None:
        self._pending_bytes -= len(item.body) + _TARGET_BYTES * (1 + len(item.publication.targets))
        call_stored(item.publication)

    def _remember(self, message_id: bytes, identifiers: Iterable[bytes]) -> None:
        prefixes = {self._keys.partitions[partition_of(identifier, self._count)] for identifier in identifiers}
        if len(self._served) >= _REMEMBERED_IDS:
            del self._served[next(iter(self._served))]
        self._served.setdefault(message_id, set()).update(prefixes)

    def acknowledge(self, ref: SessionRef, seq: int, sent_seq: int) -> None:
        """See `Cluster.acknowledge`."""
        identifier = ref.session_id
        self._settlers[(identifier[0] << 8 | identifier[1]) % self._count].acknowledge(ref, seq, sent_seq)

    def received(self, ref: SessionRef, seq: int, sent_seq: int, then: Then) -> None:
        """See `Cluster.received`."""
        self._settlers[partition_of(ref.session_id, self._count)].received(ref, seq, sent_seq, then)

    def reserve(self, ref: SessionRef, packet_id: int, message_id: bytes, then: Then) -> None:
        """See `Cluster.reserve`."""
        self._settlers[partition_of(ref.session_id, self._count)].reserve(ref, packet_id, message_id, then)

    def release(self, ref: SessionRef, packet_id: int, message_id: bytes, then: Then) -> None:
        """See `Cluster.release`."""
        self._settlers[partition_of(ref.session_id, self._count)].release(ref, packet_id, then)
        for prefix in self._served.pop(message_id, ()):
            self._link.command(("EXPIRE", prefix + SERVED + message_id, SERVED_RELEASED_S))

    def group_acknowledge(self, group_id: bytes, entry_id: bytes, then: Then | None, keep_for: bytes = b"") -> None:
        """See `Cluster.group_acknowledge`."""
        if keep_for:
            self._kept.setdefault(group_id, set()).add(entry_id)
            key = self._group_key(GROUP_KEPT, group_id)
            answered = None if then is None else _telling([then])
            self._link.command(("HSET", key, entry_id, keep_for), answered, resend=True)
            return
        entries, thens = self._group_acks.setdefault(group_id, ([], []))
        entries.append(entry_id)
        if then is not None:
            thens.append(then)

    def flush(self) -> None:
        """See `Cluster.flush`."""
        if self._refused:
            refused, self._refused = self._refused, []
            for publication in refused:
                call_stored(publication)
        if self._ready and self.alone():
            ready, self._ready = self._ready, []
            for publication in ready:
                call_stored(publication)
        if self._settling.due:
            self._settling.pump()
        if self._group_acks:
            self._acknowledge_groups()
        if self._outbox.due and self._link.up and self._member.holds_lease():
            self._outbox.pump()
        self._link.flush()

    def _acknowledge_groups(self) -> None:
        acks, self._group_acks = self._group_acks, {}
        for group, (entries, thens) in acks.items():
            self._link.command(("XDEL", self._group_key(GROUP_QUEUE, group), *entries), _telling(thens), resend=True)
            kept = self._kept.get(group)
            if kept and (gone := kept.intersection(entries)):
                kept -= gone
                if not kept:
                    del self._kept[group]
                self._link.command(("HDEL", self._group_key(GROUP_KEPT, group), *gone), None, resend=True)

    # Retained messages

    def retained_match(self, topic_filter: str) -> Iterator[str | None]:
        """See `Cluster.retained_match`."""
        return self._retained.index.scan(topic_filter)

    async def retained_values(self, topics: Sequence[str]) -> list[Message | None]:
        """See `Cluster.retained_values`."""
        if len(topics) > PAGE_LIMIT:
            raise StateError(f"{len(topics)} topics asked for, at most {PAGE_LIMIT} at a time")
        return await self._retained.values(topics, self.now_ms())

    # Groups

    def _group_key(self, kind: bytes, group_id: bytes) -> bytes:
        return self._keys.partitions[partition_of(group_id, self._count)] + kind + group_id

    async def declare_group(self, group_id: bytes, exists: bool) -> None:
        """See `Cluster.declare_group`."""
        prefix = self._keys.partitions[partition_of(group_id, self._count)]
        await self._link.call("FCALL", "rk1_group", 1, prefix, group_id, int(exists))

    async def group_page(self, group_id: bytes, after_entry_id: bytes, limit: int) -> list[GroupEntry]:
        """See `Cluster.group_page`."""
        start = b"(" + after_entry_id if after_entry_id else b"-"
        entries: list[GroupEntry] = []
        while not entries:
            reply = await self._link.call(
                "XRANGE", self._group_key(GROUP_QUEUE, group_id), start, "+", "COUNT", min(limit, PAGE_LIMIT)
            )
            found = cast("list[tuple[bytes, list[bytes]]]", reply)
            if not found:
                break
            for entry_id, fields in found:
                message = unpack_message(fields[1])
                start = b"(" + entry_id
                if message is None:
                    _log.warning("cluster.unknown_record", kind="group", format=fields[1][0])
                else:
                    entries.append(GroupEntry(entry_id, message))
        exactly = [entry for entry in entries if entry.message.qos == 2]
        if exactly:
            names = [entry.entry_id for entry in exactly]
            owners = await self._link.call("HMGET", self._group_key(GROUP_KEPT, group_id), *names)
            for entry, owner in zip(exactly, cast("list[bytes | None]", owners), strict=True):
                if owner is not None:
                    entry.kept_for = owner
                    self._kept.setdefault(group_id, set()).add(entry.entry_id)
        return entries

    async def _agree_on_groups(self, routes: Sequence[Route]) -> None:
        """Groups exist as long as they have a persistent member: others died with their node."""
        wanted = {shared_group_id(name) for route in routes if is_shared(name := route.subscription.topic_filter)}
        replies = await self._gather([("SMEMBERS", prefix + GROUPS) for prefix in self._keys.partitions])
        found = {each for reply in replies for each in cast("Iterable[bytes]", result(reply))}
        for group in found - wanted:
            await self.declare_group(group, False)
        for group in wanted - found:
            await self.declare_group(group, True)


def _telling(thens: Sequence[Then]) -> Callable[[object], None]:
    def answered(reply: object) -> None:
        error = _error_of(reply)
        for then in thens:
            call_then(then, error)

    return answered


def _error_of(reply: object) -> Exception | None:
    try:
        result(reply)
    except ClusterError as error:
        return error
    return None
