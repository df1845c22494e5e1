"""The connections of a node: who is connected, and everything about a connection that takes time."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from broker.access import Access
from broker.admin.inside import Inside
from broker.clearance import Hooks
from broker.codec.packets import Subscribe, Unsubscribe
from broker.connection import Connection
from broker.dispatch import Dispatch
from broker.errors import ClusterError, PeerError, SessionLost, StoreUnavailable
from broker.extensions.alarms import Alarms
from broker.extensions.presence import Presence
from broker.extensions.slow import SlowSubscribers
from broker.extensions.sys import SystemTopics
from broker.extensions.topic_counts import TopicCounts
from broker.gaps import Gaps
from broker.group_messages import entry_of
from broker.groups import Group
from broker.guard import Guard, NoGuard
from broker.limits.quiet import Quiet
from broker.log import get_logger
from broker.metrics import Metrics
from broker.opening import Opening
from broker.options.listener import Listener
from broker.recheck import Rechecking
from broker.remote import ClusterSide
from broker.session.machine import CLOSED
from broker.session.ports import GroupDelivery, GroupRun, StoredDelivery
from broker.session.quotas import Quotas
from broker.session.session import Session
from broker.session_side import SessionSide
from broker.subscribing import Subscribing
from broker.table import round_robin
from broker.tracing.traces import Traces
from broker.transport.api import Nobody, Stream
from broker.transport.reactor import Reactor
from cluster.api import LEASE_S, PAGE_LIMIT, Cluster, GroupEntry, StoredWill

if TYPE_CHECKING:
    from collections.abc import Iterable


#: Pause before a message is offered again to a full store.
FULL_RETRY_S = 1.0

#: What a drain takes at most where all of its time passed before: sessions may still wait for the store.
_LEAST_DRAIN_S = 5.0


class Server(ClusterSide):
    """Implements `cluster.api.ClusterEvents`."""

    def __init__(
        self,
        reactor: Reactor,
        cluster: Cluster,
        metrics: Metrics,
        quotas: Quotas,
        access: Access,
        *,
        connect_timeout_s: float = 10.0,
        stall_timeout_s: float = 30.0,
        output_buffer_bytes: int = 1024 * 1024,
        store_grace_s: float = 15.0,
        max_connections: int = 0,
        max_group_queue: int = 10_000,
        strategy_of: Callable[[str], str] = round_robin,
        delayed_available: bool = True,
        node_name: str = "",
        session_owner_any: bool = False,
        will_grace_s: float = 10.0,
        system_open: bool = True,
    ) -> None:
        super().__init__()
        self.reactor = reactor
        self.cluster = cluster
        self.metrics = metrics
        self.quotas = quotas
        self.access = access
        #: Clients without rules may subscribe below `$SYS/`.
        self.system_open = system_open
        #: Any identity may go on with the session of a client id (G19).
        self.session_owner_any = session_owner_any
        self.guard: Guard = NoGuard()
        self.quiet = Quiet()
        self.hooks: Hooks | None = None
        self.connect_timeout_s = connect_timeout_s
        self.stall_timeout_s = stall_timeout_s
        self.output_buffer_bytes = output_buffer_bytes
        self.store_grace_s = store_grace_s
        self.max_connections = max_connections
        self.log = get_logger("server")
        self.dispatch = Dispatch(cluster, metrics, _message_ids(), max_group_queue, strategy_of, delayed_available)
        self.dispatch.limit_topics(quotas.max_topic_levels, quotas.max_topic_bytes)
        self.subscribing = Subscribing(self)
        self.rechecking = Rechecking(self)
        self.opener = Opening(self)
        self.started_s = time.monotonic()
        self.system_topics = SystemTopics(self, node_name)
        self.inside = Inside(self)
        self.presence = Presence(self, node_name)
        self.alarms = Alarms(self, node_name)
        self.slow = SlowSubscribers(self)
        self.topic_counts = TopicCounts(self)
        self._gaps = Gaps(self.start)
        self.connections: set[Connection] = set()
        self.traces = Traces(self, node_name)
        #: Looked at on slow ways only; None while no trace runs.
        self.tracer: Traces | None = None
        #: The connection that owns each client id here, from CONNECT until its session was let go.
        self.clients: dict[str, Connection] = {}
        #: Nobody is let in, and those who are here are sent away; with `stopping` the node leaves after that.
        self.draining = self.stopping = False
        self._drained: trio.CancelScope | None = None
        self._sent_away_at = math.inf
        self._will_grace_s = will_grace_s
        #: Sessions with a will whose clients were sent away, by client id: set when one comes back, or the node leaves.
        self._awaited: dict[str, trio.Event] = {}
        #: Those who came back.
        self._back: set[str] = set()
        #: Nothing that is left of the connections is worth anything any more.
        self.abandoned = False
        self._nursery: trio.Nursery
        self._ending = 0
        self._all_ended = trio.Event()
        self._store_down: trio.CancelScope | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The nursery of everything that connections start."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.dispatch.spawn = self.start
            task_status.started()
            await trio.sleep_forever()

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` as a task; its errors are logged and touch nobody else."""
        self._nursery.start_soon(self._guard, work)

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:
            self.log.exception("server.task_failed")
        self.reactor.wake()

    @property
    def now_ms(self) -> int:
        """Store time."""
        return self.cluster.now_ms()

    def take_quotas(self, quotas: Quotas) -> None:
        """Other limits from now on."""
        self.quotas = quotas
        self.dispatch.limit_topics(quotas.max_topic_levels, quotas.max_topic_bytes)

    def authenticators(self, connection: Connection) -> list[str]:
        """Who is asked about a client of this listener, in order."""
        return [each.name for each in self.access.chain.asked(connection.listener.options)]

    def take_events(self, sys_interval_s: float, slow_threshold_s: float, slow_expiry_s: float) -> None:
        """What is told, from now on: how often the values below `$SYS/`, and who counts as slow for how long."""
        self.system_topics.interval_s = sys_interval_s
        self.slow.threshold_s, self.slow.expiry_s = slow_threshold_s, slow_expiry_s

    def recheck(self) -> None:
        """Users, rules or bans changed: whoever may not stay has to go, and what may not be read is not any more.

        Returns at once; called again before that is done, it begins anew then."""
        self.rechecking.all()

    def accept(self, stream: Stream, listener: Listener) -> None:
        """A client connected."""
        reason: str | None = None
        if self.draining:
            reason = "draining"
        elif self.max_connections and len(self.connections) >= self.max_connections:
            reason = "max_connections"
        else:
            reason = self.guard.accepts(stream, listener)
        if reason:
            self.metrics.rejected[reason] += 1
            if self.tracer is not None:
                self.tracer.rejected(stream, reason)
            stream.start(Nobody())
            stream.abort()
            return
        connection = Connection(stream, self, listener)
        self.connections.add(connection)
        self.metrics.connections += 1
        if self.tracer is not None:
            self.tracer.accepted(connection)
        stream.start(connection)

    # -- the end of a connection

    def connection_ended(self, connection: Connection) -> None:
        """The connection can do nothing more; called once, from within a turn or a task."""
        self.connections.discard(connection)
        self.opener.forget(connection)
        self.metrics.connections -= 1
        self.metrics.disconnects[connection.close_reason] += 1
        self.guard.left(connection)
        session = connection.session
        subscriber = connection.subscriber
        if session is None or subscriber is None:
            if connection.ref is not None:
                self.let_go(connection)
            return
        if self.hooks is not None and self.hooks.disconnects and connection.principal is not None:
            self.hooks.disconnected(connection.principal, connection.close_reason)
        self.log.debug("client.disconnected", client_id=connection.client_id, reason=connection.close_reason)
        self.presence.disconnected(connection)
        if subscriber.session is session:
            subscriber.session = None
            subscriber.connection = None
            self.dispatch.disconnected(subscriber)
        self._return_entries(session.take_group_entries())
        self.let_go(connection)

    def _return_entries(self, entries: Iterable[GroupDelivery | GroupRun]) -> None:
        by_group: dict[int, tuple[Group, list[GroupEntry]]] = {}
        for delivery in entries:
            group = delivery.group
            entry = entry_of(delivery) if isinstance(delivery, GroupRun) else delivery.entry
            assert isinstance(group, Group) and isinstance(entry, GroupEntry)
            by_group.setdefault(id(group), (group, []))[1].append(entry)
        for group, returned in by_group.values():
            group.give_back(returned)

    def let_go(self, connection: Connection) -> None:
        """Give the session back to the store, which tells when its will is due [MQTT-3.1.2-8]."""
        if self.abandoned:
            self.forget(connection)
            connection.dispose()
            return
        keep_will = connection.send_will and connection.has_will
        ends = connection.expiry_s == 0
        if self.stopping and keep_will:
            # Not given back: whoever reaps this node waits for `will_failover_grace` before the will goes out,
            # and a client that is back by then keeps it.
            self.forget(connection)
            return
        if ends:
            subscriber = connection.subscriber
            ref = connection.ref
            if subscriber is None and ref is not None:  # resumed, and gone before CONNACK
                subscriber = self.dispatch.subscribers.get(ref.session_id)
            # A persistent session that another connection took over goes on there.
            if (
                subscriber is not None
                and ref is not None
                and subscriber.birth == ref.birth
                and not (connection.lost and subscriber.persistent)
            ):
                self.dispatch.drop(subscriber)
        self._ending += 1

        sent_away = self.draining and keep_will

        async def work() -> None:
            try:
                back = sent_away and await self._comes_back(connection.client_id)
                if back or not (sent_away and self.stopping):
                    await self._detach(connection, keep_will and not back)
            finally:
                self.forget(connection)
                connection.dispose()
                self._ending -= 1
                if not self._ending:
                    self._all_ended.set()

        self.start(work)

    async def _comes_back(self, client_id: str) -> bool:
        """Whether a client with a will that was sent away connects to some node in time: then its will is not
        published, as if its connection had gone on there."""
        awaited = self._awaited[client_id] = trio.Event()
        with trio.move_on_after(self._will_grace_s):
            await awaited.wait()
        del self._awaited[client_id]
        back = client_id in self._back
        self._back.discard(client_id)
        return back

    def came_back(self, client_id: str) -> bool:
        """A client connects; True if it was sent away with a will, which is not published then."""
        awaited = self._awaited.get(client_id)
        if awaited is None:
            return False
        self._back.add(client_id)
        awaited.set()
        return True

    def session_wanted(self, client_id: str) -> bool:
        """See `ClusterEvents`."""
        return self.came_back(client_id) or super().session_wanted(client_id)

    async def _detach(self, connection: Connection, keep_will: bool) -> None:
        ref = connection.ref
        assert ref is not None
        await self.presence.gone(connection)
        sent_seq = connection.session.sent_seq if connection.session is not None else 0
        delay = 0.1
        while True:
            try:
                await self.cluster.detach(ref, connection.expiry_s, sent_seq, keep_will)
                return
            except StoreUnavailable:
                await trio.sleep(delay)
                delay = min(2 * delay, 2.0) * random.uniform(0.8, 1.2)

    def forget(self, connection: Connection) -> None:
        if self.clients.get(connection.client_id) is connection:
            del self.clients[connection.client_id]
        if connection.finished is not None:
            connection.finished.set()

    def publish_ended_will(self, will: StoredWill) -> None:
        """Publish the will of a session that a clean start ended; a full store is asked until it has room."""

        async def work() -> None:
            while True:
                try:
                    await self.publish_will(will)
                    return
                except ClusterError as error:
                    self.log.warning("will.delayed", error=str(error))
                    await trio.sleep(FULL_RETRY_S)

        self.start(work)

    # -- work for connections

    def change_subscriptions(self, connection: Connection, packet: Subscribe | Unsubscribe) -> None:
        """Carry out SUBSCRIBE or UNSUBSCRIBE."""

        async def work() -> None:
            try:
                if connection.machine.state != CLOSED:
                    await self.subscribing.change(connection, packet)
            except PeerError as error:
                connection.fail(error)
            except SessionLost:
                connection.lost = True
                connection.disconnect(0x8E, "another connection uses this client id")
            finally:
                connection.work_done()

        self.start(work)

    def fetch_page(self, connection: SessionSide, after_seq: int, limit: int) -> None:
        """Read a page of the session's queue."""
        session = connection.session
        ref = connection.ref
        assert session is not None and ref is not None

        async def work() -> None:
            try:
                messages = await self.cluster.page(ref, after_seq, min(limit, PAGE_LIMIT))
            except ClusterError:
                session.page_failed()
                return
            assert isinstance(connection, Connection)
            self.subscribing.screen(connection, messages)
            now_ms = self.now_ms
            session.page(
                [
                    StoredDelivery(
                        item.seq,
                        self.dispatch.encoding(item.message, item.message.remaining_s(now_ms)),
                        item.qos,
                        item.retain,
                        item.subscription_ids,
                    )
                    for item in messages
                ],
                not messages,
            )

        self.start(work)

    def group_done(self, delivery: GroupDelivery) -> None:
        """A member acknowledged a message of a shared subscription."""
        group, entry = delivery.group, delivery.entry
        assert isinstance(group, Group) and isinstance(entry, GroupEntry)
        group.done(entry)

    def watch_gap(self, session: Session) -> None:
        """See `Services`."""
        self._gaps.watch(session)

    # -- ClusterEvents

    def node_gone(self, node: bytes) -> None:
        """Another node is dead, or has left."""
        super().node_gone(node)
        self.system_topics.node_gone(node.decode().rpartition(":")[0])

    def store_changed(self, available: bool) -> None:
        """Without the store, clients are let go after a grace period; with it again, sessions go on."""
        if available:
            self.log.info("store.available")
            self.guard.store_available()
            if self.dispatch.suspended:
                self.dispatch.suspend(False)
            if self._store_down is not None:
                self._store_down.cancel()
                self._store_down = None
            for connection in self.connections:
                if connection.session is not None:
                    connection.session.drained(self.now_ms)
            return
        if self._store_down is not None:
            return
        self.log.warning("store.unavailable", grace_s=self.store_grace_s)
        scope = self._store_down = trio.CancelScope()

        async def work() -> None:
            with scope:
                before = min(LEASE_S, self.store_grace_s)
                await trio.sleep(before)
                self.dispatch.suspend(True)
                await trio.sleep(self.store_grace_s - before)
                await self._disconnect_all(0x89, "the store cannot be reached", 10.0)

        self.start(work)

    def store_emptied(self) -> None:
        """The sessions are gone: so are their routes, and clients have to begin anew."""
        for connection in list(self.connections):
            connection.disconnect(0x83, "the store lost its data")
        self.inside.reset()
        for subscriber in list(self.dispatch.subscribers.values()):
            if subscriber.connection is None or subscriber.session is not None:
                self.dispatch.drop(subscriber)

    def abandon(self, reason: str) -> None:
        """Drop all connections without a word to them or to the store."""
        self.abandoned = self.draining = self.stopping = True
        for connection in list(self.connections):
            connection.abort(reason)
        self.inside.reset()

    # -- draining

    async def drain(self, rate: float, timeout_s: float, server_reference: str = "") -> None:
        """Disconnect all clients at `rate` a second and wait until their sessions are stored.

        `server_reference` is where clients are told to go (MQTT 5), if not empty. The node leaves after that. If they
        are being sent away already, the time since counts: whoever stops a node that was drained waits once."""
        self.draining = self.stopping = True
        if self._drained is not None:
            self._drained.cancel()
        for awaited in self._awaited.values():
            awaited.set()
        left_s = self._sent_away_at + timeout_s - trio.current_time()
        with trio.move_on_after(min(timeout_s, max(left_s, _LEAST_DRAIN_S))):
            count = max(1, len(self.connections))
            await self._disconnect_all(0x8B, "the server is shutting down", count / rate, server_reference)
            while self._ending:
                self._all_ended = trio.Event()
                await self._all_ended.wait()

    def send_away(self, rate: float, server_reference: str = "") -> None:
        """Disconnect all clients at `rate` a second and let nobody in, until `welcome`."""
        if self.draining:
            return
        self.draining = True
        self._sent_away_at = trio.current_time()
        scope = self._drained = trio.CancelScope()

        async def work() -> None:
            with scope:
                count = max(1, len(self.connections))
                await self._disconnect_all(0x8B, "the server is drained", count / rate, server_reference)

        self.start(work)

    def welcome(self) -> None:
        """Let clients in again."""
        if self.stopping:
            return
        self.draining = False
        if self._drained is not None:
            self._drained.cancel()
            self._drained = None
        self._sent_away_at = math.inf

    async def _disconnect_all(self, reason_code: int, text: str, over_s: float, server_reference: str = "") -> None:
        connections = list(self.connections)
        pause = over_s / max(1, len(connections))
        owed = 0.0
        for connection in connections:
            connection.disconnect(reason_code, text, server_reference)
            owed += pause
            if owed > 0.05:
                await trio.sleep(owed)
                owed = 0.0


def _message_ids() -> Callable[[], bytes]:
    """16-byte ids: 8 random bytes of this process, then a number."""
    prefix = os.urandom(8)
    number = 0

    def new_message_id() -> bytes:
        nonlocal number
        number += 1
        return prefix + number.to_bytes(8, "big")

    return new_message_id
