"""`RedisCluster`: the cluster port on Redis or Valkey, composed of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import cast

import trio

from broker.errors import ClusterError, StateError, StoreUnavailable
from broker.log import get_logger
from broker.message import Message
from cluster.api import (
    PAGE_LIMIT,
    Attachment,
    AttachRequest,
    ClusterEvents,
    Extension,
    GroupMemberState,
    GroupTarget,
    NodeTarget,
    Poller,
    Publication,
    QueuedMessage,
    Readiness,
    SessionRef,
    StoredSubscription,
    StoreHealth,
    Target,
)
from cluster.keys import (
    NODE_STREAM,
    OWNER_STREAM,
    ROUTES_LOG,
    ROUTES_VERSION,
    SERVED,
    Keys,
    partition_of,
    session_id,
)
from cluster.policy import SERVED_RELEASED_S, ClusterLimits
from cluster.records import pack_body
from cluster.redis.address import Deployment
from cluster.redis.arrivals import Arrivals, Attached
from cluster.redis.callbacks import Then, call_stored
from cluster.redis.calls import gather
from cluster.redis.deployment import feed_groups, make_feed_link, make_link
from cluster.redis.durability import Demand
from cluster.redis.feed import Feed, Stream
from cluster.redis.generations import Generations
from cluster.redis.groups import Groups
from cluster.redis.lanes import Outbox
from cluster.redis.link import RedisLink
from cluster.redis.membership import Membership
from cluster.redis.node_routes import NodeRoutes
from cluster.redis.nodes import Nodes
from cluster.redis.pipeline import Part
from cluster.redis.publish import Item, PartitionLane
from cluster.redis.reaper import Reaper
from cluster.redis.repair import Repair
from cluster.redis.retained import Retained
from cluster.redis.routes import Routes
from cluster.redis.sessions import Sessions
from cluster.redis.settle import SettleBox, Settler
from cluster.redis.signals import Signals
from cluster.redis.takeover import Takeover
from cluster.redis.timers import Timers
from cluster.redis.versions import Versions

#: Message ids whose partitions are remembered, for their memory to be cut short at PUBREL.
_REMEMBERED_IDS = 10_000
_TARGET_BYTES = 100
_LEAVE_S = 0.5
_DEFAULT_DEMAND = Demand()

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
    """A `Cluster` whose state lies in Redis or Valkey: a node of all that use the same store and namespace."""

    def __init__(
        self,
        address: Deployment,
        node_name: str,
        limits: ClusterLimits,
        namespace: str,
        partitions: int,
        demand: Demand = _DEFAULT_DEMAND,
    ) -> None:
        self.node_name = node_name
        self._address = address
        self._limits = limits
        self._keys = Keys(namespace, partitions)
        self._count = partitions
        self._poller = _LatePoller()
        self._link = make_link(
            address,
            self._poller,
            demand=demand,
            namespace=namespace,
            on_up=self._up,
            on_ready=self._ready_again,
            on_down=self._down,
        )
        self._generations = Generations(self._keys)
        self._outbox = Outbox()
        self._member = Membership(node_name, self._keys)
        self._member.on_beat, self._member.on_gone = self._beaten, self._members_gone
        self._reaper = Reaper(self._keys, self._gather, limits)
        self._member.on_dead = self._reaper.wanted
        self._signals = Signals(address, self._poller, self._keys, self._member)
        self._attached = Attached(partitions)
        self._versions = Versions(self._keys.routes + ROUTES_VERSION, self._link, self._extend)
        self._routes = Routes(
            self._keys, self._link, self._poller.wake, self._member, self._outbox, self._versions, self._attached
        )
        self._node_routes = NodeRoutes(self._routes, self._member)
        self._groups = Groups(self._keys, self._link, self._poller, self._member, limits, self._node_routes)
        self._arrivals = Arrivals(self._attached, self._groups)
        self._partitions = [
            PartitionLane(number, partitions, prefix, self._link, self._member, self._outbox, limits, self)
            for number, prefix in enumerate(self._keys.partitions)
        ]
        self._nodes = Nodes(
            self._keys, self._link, self._member, self._outbox, self._messages_dropped, self._poller.wake
        )
        self._settling = SettleBox()
        self._settlers = [
            Settler(prefix, self._link, self._settling, self._session_lost) for prefix in self._keys.partitions
        ]
        self._retained = Retained(self._keys, self._link, self._poller, self._member, self._outbox, self._versions)
        self._repair = Repair(self._keys, self._link, self._routes)
        self._takeover = Takeover(self._keys, self._link, self._member, self._signals, self._poller.wake)
        self._sessions = Sessions(
            self._keys, self._link, self._member, self._repair, self._takeover, self._generations, limits
        )
        self._timers = Timers(self._keys, self._link, self._poller, self._member, self._repair)
        self._feeds: list[Feed] = []
        self._events: ClusterEvents | None = None
        self._available = False
        #: Whether this is the only member, asked once in a turn.
        self._alone: bool | None = None
        #: Publications that need nothing of the store but that this is the only member.
        self._ready: list[Publication] = []
        #: Those that need nothing at all, or are refused.
        self._answered: list[Publication] = []
        self._pending_bytes = 0
        self._served: dict[bytes, set[bytes]] = {}
        self._lost: set[bytes] = set()

    # Life

    async def serve(self, events: ClusterEvents, poller: Poller, *, task_status: object) -> None:
        """See `Cluster.serve`."""
        self._poller.poller = poller
        self._events = self._versions.events = self._arrivals.events = events
        self._groups.events = self._takeover.events = events
        failures: list[ClusterError] = []
        await self._link.connect()
        try:
            await self._member.join(self._link.call)
            self._available = True
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._link.keep_connected)
                nursery.start_soon(self._watch, nursery.cancel_scope, failures)
                try:
                    await self._enter(events, nursery)
                except ClusterError as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()
                else:
                    cast("trio.TaskStatus[None]", task_status).started()
                    nursery.start_soon(self._timers.serve, events)
            if failures:
                raise failures[0]
        finally:
            await self._leave()
            for feed in self._feeds:
                feed.close()
            self._signals.close()
            self._link.close()

    async def _watch(self, scope: trio.CancelScope, failures: list[ClusterError]) -> None:
        """Beats. What ends that ends everything here."""
        try:
            await self._member.serve(self._link)
        except ClusterError as error:
            failures.insert(0, error)
        scope.cancel()

    async def _enter(self, events: ClusterEvents, nursery: trio.Nursery) -> None:
        """Learns what is there, listens, and returns when every other node knows of this one."""
        await nursery.start(self._signals.serve)
        nursery.start_soon(self._reaper.serve)
        nursery.start_soon(self._settling.serve, self._poller.wake)
        await self._repair.repair_all()
        routes, nodes = await self._routes.load()
        await self._retained.load()
        events.restore(routes, nodes)
        self._feeds = self._make_feeds()
        for feed in self._feeds:
            await nursery.start(feed.serve)
        for task in (
            self._routes.serve,
            self._node_routes.serve,
            self._nodes.serve,
            self._retained.serve,
            self._groups.serve,
            self._takeover.serve,
        ):
            nursery.start_soon(task)
        await self._member.admitted(self._link.call)

    def _make_feeds(self) -> list[Feed]:
        """The route log first: who subscribed is known before what was stored for it."""
        log = Stream(self._keys.routes + ROUTES_LOG, self._routes.adopt, self._routes.reload)
        log.cursor = self._versions.number

        def loaded(version: int) -> None:
            log.cursor = version

        self._routes.on_loaded = loaded
        own = self._keys.node(self._member.member)
        pushed = Stream(
            own + NODE_STREAM,
            self._arrivals.pushed,
            lambda: None,  # nothing else has these messages
            lambda before, size: ("FCALL", "rk1_trim", 1, own, before, size),
            ("FCALL", "rk1_open", 1, own, NODE_STREAM),
        )
        streams = [log, *(self._owner_stream(number) for number in range(self._count)), pushed]
        by_key = {stream.key: stream for stream in streams}
        feeds = []
        for keys in feed_groups(self._address, by_key):

            def connect(feed: Feed, key: bytes = keys[0]) -> RedisLink:
                return make_feed_link(self._address, self._poller, key, on_up=feed.up)

            feeds.append(Feed([by_key[key] for key in keys], connect, self._poller.wake))
        return feeds

    def _owner_stream(self, number: int) -> Stream:
        prefix = self._keys.partitions[number]
        name = OWNER_STREAM + self._member.member
        return Stream(
            prefix + name,
            partial(self._arrivals.stored, number),
            partial(self._arrivals.missed, number),
            lambda before, _: ("XTRIM", prefix + name, "MINID", before),
            ("FCALL", "rk1_open", 1, prefix, name),
        )

    async def _leave(self) -> None:
        if self._member.incarnation and not self._member.superseded:
            for settler in self._settlers:
                settler.pump(everything=True)
            with trio.move_on_after(_LEAVE_S, shield=True):
                try:
                    await self._member.leave(self._link.call)
                except ClusterError as error:
                    _log.warning("cluster.leave_failed", reason=str(error)[:200])

    async def _up(self, link: RedisLink) -> None:
        """On each new connection to a primary, before anything else is sent on it."""
        await self._generations.register(link.setup_call, link.serves)
        if self._member.incarnation and link.serves(self._keys.members):
            await self._member.beat(link.setup_call)

    def _ready_again(self) -> None:
        if not self._member.incarnation:
            return
        self._available = True
        self._member.link_up()
        self._groups.link_up()
        if self._events is not None:
            self._events.store_changed(True)
        self._poller.wake()

    def _down(self, _: Exception) -> None:
        self._available = False
        self._member.link_down()
        if self._events is not None:
            self._events.store_changed(False)

    def _beaten(self) -> None:
        """A beat was answered."""
        if self._member.readmitted:
            self._member.readmitted = False
            self._emptied()
        for feed in self._feeds:
            feed.tick()
        self._outbox.retry()
        self._poller.wake()

    def _emptied(self) -> None:
        """Nothing that this node knows of the store is there any more."""
        self._retained.forget()
        if self._events is not None:
            self._events.store_emptied()
        for feed in self._feeds:
            feed.check_again()
        self._routes.reload()
        self._node_routes.announce_again()

    def _members_gone(self, members: Sequence[bytes]) -> None:
        for member in members:
            if self._events is not None:
                self._events.node_gone(member)
            self._nodes.gone(member)
        self._poller.wake()

    def _messages_dropped(self, reason: str, count: int) -> None:
        if self._events is not None:
            self._events.messages_dropped(reason, count)

    async def _gather(self, commands: Sequence[tuple[Part, ...]]) -> list[object]:
        return await gather(self._link, self._poller, commands)

    def health(self) -> StoreHealth:
        """See `Cluster.health`."""
        server = self._link.server
        return StoreHealth(
            str(server.get("server", "redis")),
            str(server.get("version", "")),
            self._link.durability,
            self._available,
            self._link.round_trip_ms,
            [member.decode("utf-8", "replace") for member in self._member.members],
            self._groups.states,
        )

    def now_ms(self) -> int:
        """See `Cluster.now_ms`."""
        return self._member.now_ms()

    def alone(self) -> bool:
        """See `Cluster.alone`."""
        return self._member.alone()

    def holds_lease(self) -> bool:
        """See `Cluster.holds_lease`."""
        return self._member.holds_lease()

    # Sessions

    async def attach(self, request: AttachRequest) -> Attachment:
        """See `Cluster.attach`."""
        identifier = session_id(request.client_id)
        self._settlers[partition_of(identifier, self._count)].pump(everything=True)
        self._attached.coming(identifier)
        try:
            attachment = await self._sessions.attach(request)
            after = 0
            if not self.alone():
                self._takeover.began(identifier)  # who wants the session waits until it is known here
                try:
                    after = await self._look_around(attachment.ref, request.expiry_s)
                finally:
                    self._takeover.attached(identifier, request.client_id)
            self._attached.attach(attachment.ref, after)
        finally:
            self._attached.came(identifier)
        return attachment

    async def _look_around(self, ref: SessionRef, expiry_s: int) -> int:
        """Others may have changed the session until now: returns when their changes of its routes are known here, with
        the number of the last entry that may be about its past."""
        partition = partition_of(ref.session_id, self._count)
        prefix = self._keys.partitions[partition]
        done = False
        try:
            caught_up = trio.Event()
            self._versions.newest(caught_up.set)
            last = await self._link.call("FCALL", "rk1_open", 1, prefix, OWNER_STREAM + self._member.member)
            await caught_up.wait()
            done = True
            return int(last[2:]) if isinstance(last, bytes) else 0
        finally:
            if not done:
                # The caller will not know that it has a session.
                self._takeover.began(ref.session_id)
                self._link.command(
                    ("FCALL", "rk1_detach", 1, prefix, ref.session_id, ref.token, expiry_s, 0, 0),
                    lambda _: self._takeover.detached(ref.session_id),
                    resend=True,
                )

    async def detach(self, ref: SessionRef, expiry_s: int, sent_seq: int, will: bool) -> None:
        """See `Cluster.detach`. While the store is away it waits: the call survives lost connections."""
        self._settlers[partition_of(ref.session_id, self._count)].pump(everything=True)
        self._attached.detach(ref)
        self._node_routes.detached(ref)
        if await self._sessions.detach(ref, expiry_s, sent_seq, will):
            self._timers.wake()

    async def subscribe(self, ref: SessionRef, subscriptions: Sequence[StoredSubscription], persistent: bool) -> None:
        """See `Cluster.subscribe`."""
        if persistent:
            await self._sessions.subscribe(ref, subscriptions)
        else:
            await self._node_routes.subscribe(ref, [each.topic_filter for each in subscriptions])
        await self._retained.catch_up([each.topic_filter for each in subscriptions])

    async def unsubscribe(self, ref: SessionRef, topic_filters: Sequence[str], persistent: bool) -> None:
        """See `Cluster.unsubscribe`."""
        if persistent:
            await self._sessions.unsubscribe(ref, topic_filters)
        else:
            self._node_routes.unsubscribe(ref, topic_filters)
            await trio.lowlevel.checkpoint()

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
            self._answered.append(publication)
            return
        message = publication.message
        targets, groups, nodes = publication.targets, publication.groups, publication.nodes
        if publication.delay_s:
            self._delay(publication)
            return
        alone = self._alone
        if alone is None:
            alone = self._alone = self.alone()
        if not (targets or groups or publication.retain):
            if not message.qos:
                if nodes:
                    self._nodes.send(nodes, pack_body(message), None)
                self._answered.append(publication)
                return
            if alone and not nodes:
                self._ready.append(publication)
                return
        stores = targets or groups or nodes or publication.retain
        item = Item(publication, pack_body(message) if stores else b"", self._finished)
        if message.qos and not alone:
            item.waiting = 1
            self._versions.add(item)
        if publication.retain:
            item.size = len(item.body) + _TARGET_BYTES
            self._pending_bytes += item.size
            self._retained.add(item)
        self._send(item, targets, groups, nodes)

    def _send(
        self,
        item: Item,
        targets: Sequence[Target],
        groups: Sequence[GroupTarget],
        nodes: Sequence[NodeTarget],
    ) -> None:
        """Adds to the lanes."""
        publication = item.publication
        size = len(item.body) + _TARGET_BYTES * (1 + len(targets))
        item.size += size
        self._pending_bytes += size
        count, partitions, version = self._count, self._partitions, self._versions.number
        for target in targets:
            identifier = target.session_id
            lane = partitions[(identifier[0] << 8 | identifier[1]) % count]
            lane.pending.append((item, target, version))
            if not lane.dirty:
                lane.touch()
        item.waiting += len(targets) + len(groups)
        for group in groups:
            lane = partitions[partition_of(group.group_id, count)]
            lane.groups.append((item, group))
            lane.touch()
        if nodes:
            if publication.message.qos:
                item.waiting += len(nodes)
                self._nodes.send(nodes, item.body, item)
            else:
                self._nodes.send(nodes, item.body, None)
        if publication.deduplicate:
            self._remember(
                publication.message.message_id,
                (*(target.session_id for target in targets), *(group.group_id for group in groups)),
            )

    def _delay(self, publication: Publication) -> None:
        message = publication.message
        item = Item(publication, pack_body(message), self._finished)
        item.waiting = 1
        item.size = len(item.body) + _TARGET_BYTES
        self._pending_bytes += item.size
        lane = self._partitions[partition_of(message.message_id, self._count)]
        lane.delays.append((item, self.now_ms() + publication.delay_s * 1000))
        lane.touch()

    def _extend(self, item: Item, found: Extension) -> None:
        """Newer routes matched in addition."""
        if not item.body:
            item.body = pack_body(item.publication.message)
        self._send(item, found.targets, found.groups, found.nodes)

    def _finished(self, item: Item) -> None:
        self._pending_bytes -= item.size
        call_stored(item.publication)

    def _remember(self, message_id: bytes, identifiers: Iterable[bytes]) -> None:
        prefixes = {self._keys.partitions[partition_of(identifier, self._count)] for identifier in identifiers}
        if len(self._served) >= _REMEMBERED_IDS:
            del self._served[next(iter(self._served))]
        self._served.setdefault(message_id, set()).update(prefixes)

    def forward(self, nodes: Sequence[NodeTarget], family: int, frame: bytes) -> None:
        """See `Cluster.forward`."""
        self._nodes.forward(nodes, family, frame)

    def generation(self, partition: int) -> int:
        """See `publish.Stores`."""
        return self._generations.numbers[partition]

    def stale(self, then: Callable[[int], None]) -> None:
        """See `publish.Stores`."""
        self._versions.newest(lambda: then(self._versions.number))
        self._poller.wake()

    def group_stored(self, group_id: bytes, entry_id: bytes, depth: int) -> bool:
        """See `publish.Stores`."""
        return self._groups.stored(group_id, entry_id, depth)

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

    def group_acknowledge(
        self, group_id: bytes, entry_id: bytes, then: Then | None, keep_for: bytes = b"", again: bool = False
    ) -> None:
        """See `Cluster.group_acknowledge`."""
        self._groups.acknowledge(group_id, entry_id, then, keep_for, again)

    def flush(self) -> None:
        """See `Cluster.flush`."""
        self._alone = None
        if self._answered:
            answered, self._answered = self._answered, []
            for publication in answered:
                call_stored(publication)
        if self._ready:
            self._answer_ready()
        if self._attached.looks:
            self._arrivals.flush()
        self._takeover.flush()
        if self._settling.due:
            self._settling.pump()
        self._groups.flush()
        if self._outbox.due and self._member.holds_lease():
            self._outbox.pump()
        self._versions.flush()
        self._link.flush()
        for feed in self._feeds:
            feed.flush()
        self._signals.flush()

    def _answer_ready(self) -> None:
        """Those for sessions of this node alone: once it is sure that there is no other node."""
        if self.alone():
            ready, self._ready = self._ready, []
            for publication in ready:
                call_stored(publication)
        elif len(self._member.members) > 1:
            ready, self._ready = self._ready, []
            for publication in ready:
                item = Item(publication, b"", self._finished)
                item.waiting = 1
                self._versions.add(item)
                # Others may have subscribed since it was matched.
                if (found := publication.rematch()) is not None:
                    self._extend(item, found)

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

    async def group_members(self, topic_filter: str, strategy: str, members: Sequence[GroupMemberState]) -> None:
        """See `Cluster.group_members`."""
        await self._groups.members(topic_filter, strategy, members)
