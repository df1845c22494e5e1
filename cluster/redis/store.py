"""`RedisCluster`: the cluster port on Redis or Valkey, composed of its parts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import cast

import trio

from broker.errors import ClusterError, StateError
from broker.log import get_logger
from broker.message import Message
from cluster.api import (
    LEASE_S,
    PAGE_LIMIT,
    Attachment,
    AttachRequest,
    AttachThen,
    ClusterEvents,
    GroupMemberState,
    NodeTarget,
    Poller,
    Publication,
    QueuedMessage,
    SessionRef,
    StoredSubscription,
    StoreHealth,
)
from cluster.inspection import Inspection
from cluster.keys import (
    OWNER_STREAM,
    ROUTES_VERSION,
    SERVED,
    Keys,
    partition_of,
    session_id,
)
from cluster.policy import BEAT_S, SERVED_RELEASED_S, ClusterLimits
from cluster.redis.address import Deployment
from cluster.redis.arrivals import Arrivals, Attached
from cluster.redis.batch import Batch
from cluster.redis.callbacks import Then
from cluster.redis.calls import gather
from cluster.redis.deployment import make_link
from cluster.redis.durability import Demand
from cluster.redis.feed import Feed
from cluster.redis.following import make_feeds
from cluster.redis.fullness import Fullness
from cluster.redis.generations import Generations
from cluster.redis.groups import Groups
from cluster.redis.inspection import RedisInspection
from cluster.redis.lanes import Outbox
from cluster.redis.late_poller import LatePoller
from cluster.redis.link import RedisLink
from cluster.redis.membership import Membership
from cluster.redis.node_routes import NodeRoutes
from cluster.redis.pipeline import Part
from cluster.redis.reaper import Reaper
from cluster.redis.registry import RedisRegistry
from cluster.redis.repair import Repair
from cluster.redis.retained import Retained
from cluster.redis.routes import Routes
from cluster.redis.sessions import Sessions
from cluster.redis.settle import SettleBox, Settler
from cluster.redis.signals import Signals
from cluster.redis.takeover import Takeover
from cluster.redis.timers import Timers
from cluster.redis.verify import Verifier
from cluster.redis.versions import Versions
from cluster.registry import Registry
from cluster.telemetry import LinkCounters, Telemetry

_LEAVE_S = 0.5
_DEFAULT_DEMAND = Demand()

_log = get_logger("cluster")


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
        self._poller = LatePoller()
        self._counters = LinkCounters()
        self._link = make_link(
            address,
            self._poller,
            counters=self._counters,
            demand=demand,
            namespace=namespace,
            on_up=self._up,
            on_ready=self._ready_again,
            on_down=self._down,
            on_part=self._part_up,
        )
        self._generations = Generations(self._keys)
        self._outbox = Outbox()
        self._member = Membership(node_name, self._keys)
        self.registry: Registry = RedisRegistry(self._keys, self._link, self._poller, self._member)
        self._member.on_beat, self._member.on_gone = self._beaten, self._members_gone
        self._reaper = Reaper(self._keys, self._gather, limits)
        self._member.on_dead = self._reaper.wanted
        self._signals = Signals(address, self._poller, self._keys, self._member)
        self._attached = Attached(partitions)
        self._versions = Versions(self._keys.routes + ROUTES_VERSION, self._link)
        self._routes = Routes(
            self._keys, self._link, self._poller.wake, self._member, self._outbox, self._versions, self._attached
        )
        self._node_routes = NodeRoutes(self._routes, self._member)
        self._groups = Groups(self._keys, self._link, self._poller, self._member, limits, self._node_routes)
        self._arrivals = Arrivals(self._attached, self._groups)
        self._settling = SettleBox()
        self._settlers = [
            Settler(prefix, self._link, self._settling, self._session_lost) for prefix in self._keys.partitions
        ]
        self._retained = Retained(self._keys, self._link, self._poller, self._member, self._outbox, self._versions)
        self._batch = Batch(
            self._keys,
            self._link,
            self._member,
            self._outbox,
            limits,
            self._versions,
            self._generations,
            self._groups,
            self._retained,
            self._poller.wake,
            self._messages_dropped,
        )
        #: See `Cluster`; for every message or turn, so without a step in between.
        self.alone: Callable[[], bool] = self._member.alone
        self.holds_lease: Callable[[], bool] = self._member.holds_lease
        self.publish: Callable[[Publication], None] = self._batch.publish
        self.now_ms: Callable[[], int] = self._member.now_ms
        self.forward: Callable[[Sequence[NodeTarget], int, bytes, int], None] = self._batch.nodes.forward
        self.relays: Callable[[], bool] = self._batch.nodes.relays
        self._repair = Repair(self._keys, self._link, self._routes)
        self._takeover = Takeover(self._keys, self._link, self._member, self._signals, self._poller.wake)
        self._sessions = Sessions(
            self._keys, self._link, self._member, self._repair, self._takeover, self._generations, limits
        )
        self.inspection: Inspection = RedisInspection(
            self._keys, self._link, self._poller, self._member, self._sessions, self._repair, self._versions,
            lambda: self._events,
        )  # fmt: skip
        self._timers = Timers(self._keys, self._link, self._poller, self._member, self._repair)
        self._verifier = Verifier(
            self._keys, self._link, self._member, limits, self._takeover, self._attached, self._sessions,
            self._repair, self._groups, self._node_routes, self._session_lost,
        )  # fmt: skip
        self._generations.on_changed = self._verifier.changed
        self._routes.on_reloaded = self._verifier.reloaded
        self._feeds: list[Feed] = []
        self._events: ClusterEvents | None = None
        self._available = False
        self._lost: set[bytes] = set()
        #: The store lost its data.
        self._empty = trio.Event()

    # Life

    async def serve(self, events: ClusterEvents, poller: Poller, *, task_status: object) -> None:
        """See `Cluster.serve`."""
        self._poller.poller = poller
        self._events = self._versions.events = self._arrivals.events = events
        self._groups.events = self._takeover.events = self._verifier.events = events
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
        self._feeds = make_feeds(
            self._address,
            self._poller,
            self._keys,
            self._member.member,
            self._routes,
            self._versions.number,
            self._arrivals,
            self._attached,
        )
        for feed in self._feeds:
            await nursery.start(feed.serve)
        for task in (
            self._routes.serve,
            self._node_routes.serve,
            self._batch.nodes.serve,
            self._retained.serve,
            self._groups.serve,
            self._takeover.serve,
            self._verifier.serve,
            self._refill,
            Fullness(self._link, self._outbox).serve,
        ):
            nursery.start_soon(task)
        await self._member.admitted(self._link.call)

    async def _leave(self) -> None:
        if self._member.incarnation and not self._member.superseded:
            for settler in self._settlers:
                settler.pump(everything=True)
            try:
                with trio.move_on_after(_LEAVE_S, shield=True):
                    await self._member.leave(self._link.call)
            except ClusterError as error:
                _log.warning("cluster.leave_failed", reason=str(error)[:200])

    async def _up(self, link: RedisLink) -> None:
        """On each new connection to a primary, before anything else is sent on it."""
        if link.serves(self._keys.members):
            await self._member.look(link.setup_call)
        await self._generations.register(link.setup_call, link.serves)
        self._generations.renew(self._link.command)
        self._retained.doubt(link.serves)
        if self._member.incarnation and link.serves(self._keys.members):
            await self._member.beat(link.setup_call)

    def _ready_again(self) -> None:
        if not self._member.incarnation:
            return
        self._member.link_up()
        self._groups.link_up()
        self._tell(True)
        self._poller.wake()

    def _tell(self, available: bool) -> None:
        self._available = available
        if self._events is not None:
            self._events.store_changed(available)

    def _part_up(self) -> None:
        self._groups.link_up()
        if not self._available and self._serves_all():
            self._ready_again()

    def _serves_all(self) -> bool:
        return self._link.up_for(self._keys.members) and self._link.up_for(self._keys.routes)

    def _down(self, _: Exception) -> None:
        if not self._link.up_for(self._keys.members):
            self._member.link_down()
        if self._available and not self._serves_all():
            self._tell(False)

    def _beaten(self) -> None:
        """A beat was answered."""
        if self._member.readmitted:
            self._member.readmitted = False
            self._emptied()
        for link in self._link.primaries():
            link.probe()
        self._generations.renew(self._link.command)
        for feed in self._feeds:
            feed.tick()
        self._outbox.retry()
        self._settling.retry()
        self._groups.retry()
        self._poller.wake()

    def _emptied(self) -> None:
        """Nothing that this node knows of the store is there any more."""
        self._retained.forget()
        if self._events is not None:
            self._events.store_emptied()
        self._empty.set()

    async def _refill(self) -> None:
        """Where the store lost its data: this node's streams and routes are made anew, in this order."""
        while True:
            await self._empty.wait()
            self._empty = trio.Event()
            try:
                for feed in self._feeds:
                    await feed.check(self._link.call, True)
            except ClusterError as error:
                _log.warning("cluster.feed_delayed", reason=str(error)[:200])
                await trio.sleep(BEAT_S)
                self._empty.set()
                continue
            self._routes.reload()
            self._node_routes.announce_again()

    def _members_gone(self, members: Sequence[bytes]) -> None:
        for member in members:
            if self._events is not None:
                self._events.node_gone(member)
            self._batch.nodes.gone(member)
        self._forget_writers(members)
        self._poller.wake()

    def _forget_writers(self, members: Sequence[bytes]) -> None:
        """What dead members wrote into this node's stream has no successor."""
        live = {member.rpartition(b":")[0] for member in self._member.members}
        fields = [b"l:" + name for member in members if (name := member.rpartition(b":")[0]) not in live]
        if fields:
            self._link.command(("HDEL", self._keys.node(self._member.member) + b"fence", *fields))

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
            self._available and self._member.well() and self._link.short_s <= LEASE_S,
            self._link.round_trip_ms,
            [member.decode("utf-8", "replace") for member in self._member.members],
        )

    def telemetry(self) -> Telemetry:
        """See `Cluster.telemetry`."""
        link = self._link
        return Telemetry(self._counters, link.unanswered, link.pending_bytes, self._member.lease_age_s(), link.short_s)

    # Sessions

    async def attach(self, request: AttachRequest) -> Attachment:
        """See `Cluster.attach`."""
        identifier = self._coming(request)
        return await self._attach(request, identifier, lambda: self._sessions.attach(request, identifier))

    def attach_then(self, request: AttachRequest, then: AttachThen) -> None:
        """See `Cluster.attach_then`."""
        identifier = self._coming(request)

        def answered(outcome: Attachment | Exception | Callable[[], Awaitable[Attachment]]) -> None:
            if isinstance(outcome, Exception):
                self._attached.came(identifier)
            elif not isinstance(outcome, Attachment):
                then(partial(self._attach, request, identifier, outcome))
                return
            elif self.alone():
                self._attached.attach(outcome.ref, 0)
                self._attached.came(identifier)
            else:
                self._takeover.began(identifier)  # who wants the session waits until it is known here
                then(partial(self._known, request, identifier, outcome))
                return
            then(outcome)

        self._sessions.attach_then(request, identifier, answered)
        self._poller.wake()

    def _coming(self, request: AttachRequest) -> bytes:
        """A session is about to be attached."""
        identifier = session_id(request.client_id)
        self._settlers[partition_of(identifier, self._count)].pump(everything=True)
        self._attached.coming(identifier)
        return identifier

    async def _attach(
        self, request: AttachRequest, identifier: bytes, attach: Callable[[], Awaitable[Attachment]]
    ) -> Attachment:
        """Attach one that is coming."""
        try:
            attachment = await attach()
            if self.alone():
                self._attached.attach(attachment.ref, 0)
                self._attached.came(identifier)
                return attachment
            self._takeover.began(identifier)  # as above
        except BaseException:
            self._attached.came(identifier)
            raise
        return await self._known(request, identifier, attachment)

    async def _known(self, request: AttachRequest, identifier: bytes, attachment: Attachment) -> Attachment:
        """What others changed of an attached session is known here: then it is here."""
        try:
            try:
                after = await self._look_around(attachment.ref, request.expiry_s)
            finally:
                self._takeover.attached(identifier, request.client_id)
            self._attached.attach(attachment.ref, after)
        finally:
            self._attached.came(identifier)
        return attachment

    async def connected(self, client_id: str, identity: str) -> bool:
        """See `Cluster.connected`."""
        return await self._sessions.connected(client_id, identity)

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
            await self._node_routes.unsubscribe(ref, topic_filters)

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
        for prefix in self._batch.served(message_id):
            self._link.command(("EXPIRE", prefix + SERVED + message_id, SERVED_RELEASED_S))

    def group_acknowledge(
        self, group_id: bytes, entry_id: bytes, then: Then | None, keep_for: bytes = b"", again: bool = False
    ) -> None:
        """See `Cluster.group_acknowledge`."""
        self._groups.acknowledge(group_id, entry_id, then, keep_for, again)

    def group_done(self, group_id: bytes, entry_ids: Sequence[bytes]) -> None:
        """See `Cluster.group_done`."""
        self._groups.acknowledge_all(group_id, entry_ids)

    def flush(self) -> None:
        """See `Cluster.flush`. For every turn: what has nothing to do is not called."""
        self._batch.flush()
        if self._attached.looks:
            self._arrivals.flush()
        if self._takeover.later:
            self._takeover.flush()
        if self._settling.due:
            self._settling.pump()
        if self._groups.dirty:
            self._groups.flush()
        if self._outbox.due and self._member.holds_lease():
            self._outbox.pump()
        if self._versions.waiting:
            self._versions.flush()
        self._link.flush()
        for feed in self._feeds:
            feed.flush()
        self._signals.flush()

    # Retained messages

    def retained_match(self, topic_filter: str) -> Iterator[str | None]:
        """See `Cluster.retained_match`."""
        return self._retained.index.scan(topic_filter)

    def retained_children(self, prefix: Sequence[str]) -> Iterator[tuple[str, bool, int]]:
        """See `Cluster.retained_children`."""
        return self._retained.index.children(prefix)

    async def retained_values(self, topics: Sequence[str]) -> list[Message | None]:
        """See `Cluster.retained_values`."""
        if len(topics) > PAGE_LIMIT:
            raise StateError(f"{len(topics)} topics asked for, at most {PAGE_LIMIT} at a time")
        return await self._retained.values(topics, self.now_ms())

    # Groups

    async def group_members(self, topic_filter: str, strategy: str, members: Sequence[GroupMemberState]) -> None:
        """See `Cluster.group_members`."""
        await self._groups.members(topic_filter, strategy, members)
