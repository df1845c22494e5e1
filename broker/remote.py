"""What the cluster tells a node: routes and messages of others, timers, sessions that others own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from broker.errors import PeerError
from broker.extensions import delayed
from broker.log import get_logger
from broker.message import Message
from broker.routes import AckSlot
from broker.session.encoding import Encoding
from broker.session.run import Run
from cluster.api import GroupEntry, NodeRoute, Route, RouteChange, SessionRef, StoredSubscription, StoredWill

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.dispatch import Dispatch
    from broker.metrics import Metrics
    from broker.transport.reactor import Reactor

_log = get_logger("cluster")


class Early:
    """What was stored for sessions that are being opened here, told of before the answer to `attach`."""

    def __init__(self) -> None:
        self._openings = 0
        self._seqs: dict[bytes, int] = {}

    @contextmanager
    def opening(self) -> Generator[None, None, None]:
        """A session is being opened."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """A session is being opened, until `end`."""
        self._openings += 1

    def end(self) -> None:
        self._openings -= 1
        if not self._openings and self._seqs:
            self._seqs.clear()

    def told(self, session_id: bytes, seq: int) -> None:
        """A message was stored for a session that is not here, or not yet; 0: under a seq that nobody knows."""
        if self._openings and seq > self._seqs.get(session_id, -1):
            self._seqs[session_id] = seq

    def take(self, session_id: bytes) -> int:
        """The last seq that was told for it; 0 if its queue has to be looked into, -1 if nothing was told."""
        return self._seqs.pop(session_id, -1)


class _StoredSlot(AckSlot):
    """Tells when a message is stored: before that, what made the cluster publish it must not be marked as done."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[Exception | None], None]) -> None:
        super().__init__()
        self._then = then

    def settle(self, error: Exception | None) -> None:
        self._then(error)


class ClusterSide:
    """The part of a `Server` that implements `ClusterEvents` towards other nodes and timers."""

    reactor: Reactor
    metrics: Metrics
    dispatch: Dispatch
    clients: dict[str, Connection]

    def __init__(self) -> None:
        self.early = Early()
        #: Those that this node ended.
        self.sessions_expired = 0
        #: The message of the last `deliver_stored` with its encoding: many sessions in a row get the same one.
        self._last: Encoding | None = None

    # -- the route table

    def restore(self, routes: Iterable[Route], nodes: Iterable[NodeRoute]) -> None:
        """The route table at start, before the first client."""
        for route in routes:
            self.dispatch.add_route(route)
        for node in nodes:
            self.dispatch.add_node_route(node)

    def routes_changed(self, changes: Sequence[RouteChange]) -> None:
        """Other nodes changed it."""
        for change in changes:
            self.dispatch.apply(change)

    def node_gone(self, node: bytes) -> None:
        """Another node is dead."""
        self.dispatch.remove_node(node)

    # -- messages

    def deliver(self, message: Message, live: bool, groups: Sequence[bytes]) -> None:
        """A message of another node."""
        self.dispatch.remote_ms = message.accepted_at_ms
        self.dispatch.arrived(message, live, groups)

    def deliver_frame(self, family: int, run: bytes, count: int = 1) -> None:
        """QoS 0 packets of another node."""
        self.dispatch.frame_arrived(family, run, count)

    def deliver_packets(self, packets: Run) -> None:
        """QoS 1 packets of another node."""
        self.dispatch.remote_ms = packets.accepted_at_ms
        self.dispatch.run_arrived(packets)

    def deliver_stored(
        self,
        session_id: bytes,
        seq: int,
        message: Message | None,
        qos: int,
        retain: bool,
        subscription_ids: Sequence[int],
    ) -> None:
        """Another node stored a message for a session of this one."""
        subscriber = self.dispatch.subscribers.get(session_id)
        session = subscriber.session if subscriber is not None else None
        if session is None or subscriber is None:
            if seq or message is None:
                self.early.told(session_id, seq)
                if subscriber is not None:
                    subscriber.stored_seq = max(subscriber.stored_seq, seq)
                    subscriber.unsure = subscriber.unsure or not seq
            return
        if message is None:
            session.look()
            return
        encoding = self._last
        if encoding is None or encoding.message is not message:
            remaining_s = message.remaining_s(self.dispatch.cluster.now_ms())
            encoding = self._last = self.dispatch.encoding(message, remaining_s)
        if message.retain:
            self.dispatch.retained_passes(message.topic)
        self.dispatch.remote_ms = message.accepted_at_ms
        if seq:
            session.stored(seq, encoding, qos, retain, subscription_ids)
        elif subscriber.connection is not None and not self.dispatch.had(subscriber, message):
            subscriber.connection.send_qos0(encoding, retain, subscription_ids)

    def group_entries(self, group_id: bytes, entries: Sequence[GroupEntry], depth: int) -> None:
        """The store gave this node entries of a group."""
        group = self.dispatch.groups.get(group_id)
        if group is None:  # the last member left meanwhile, and the cluster knows
            for entry in entries:
                self.dispatch.cluster.group_acknowledge(group_id, entry.entry_id, None, again=True)
            return
        if depth >= 0:
            group.holding.measured(depth)
        group.take(entries)

    def messages_dropped(self, reason: str, count: int) -> None:
        """Messages that reach nobody."""
        self.metrics.dropped[reason] += count

    # -- sessions

    async def session_ended(
        self, client_id: str, session_id: bytes, birth: int, subscriptions: Sequence[StoredSubscription]
    ) -> None:
        """A session expired."""
        _log.debug("session.expired", client_id=client_id)
        self.sessions_expired += 1
        subscriber = self.dispatch.subscribers.get(session_id)
        if subscriber is not None and subscriber.birth == birth:
            self.dispatch.drop(subscriber)

    def session_lost(self, ref: SessionRef) -> None:
        """The session has another owner."""
        connection = self.clients.get(ref.client_id)
        if connection is not None and connection.ref is ref:
            connection.lost = True
            connection.disconnect(0x8E, "another connection uses this client id")

    def subscriptions(self, ref: SessionRef) -> Sequence[StoredSubscription] | None:
        """What a persistent session of this node has."""
        connection = self.clients.get(ref.client_id)
        subscriber = connection.subscriber if connection is not None and connection.ref is ref else None
        if subscriber is None or not subscriber.persistent or subscriber.session is None:
            return None
        return [
            StoredSubscription(name, each.options, each.identifier) for name, each in subscriber.subscriptions.items()
        ]

    def session_wanted(self, client_id: str) -> bool:
        """A client with this id connects to another node."""
        connection = self.clients.get(client_id)
        if connection is None or connection.ref is None:
            # One that is being opened is not let go: which of the two is the older one nobody knows.
            return False
        connection.disconnect(0x8E, "another connection uses this client id")  # [MQTT-3.1.4-3]
        return True

    # -- timers

    async def will_due(self, client_id: str, will: StoredWill) -> None:
        """A delayed will, or one left by a node that died."""
        _log.info("will.due", client_id=client_id)
        await self.publish_will(will)

    async def publish_will(self, will: StoredWill) -> None:
        """Publish a will that is due, effectively once. Raises ClusterError if the store does not take it."""
        will.message.accepted_at_ms = self.dispatch.cluster.now_ms()
        settled = trio.Event()
        errors: list[Exception] = []

        def then(error: Exception | None) -> None:
            if error is not None:
                errors.append(error)
            settled.set()

        self._publish(will.message, then)
        await settled.wait()
        if errors:
            raise errors[0]

    def delayed_due(self, message: Message, then: Callable[[Exception | None], None]) -> None:
        """A delayed message is to be published; the store may not take it."""
        if delayed.wake_up(self.dispatch, message):
            self._publish(message, then)
        else:
            then(None)

    def _publish(self, message: Message, then: Callable[[Exception | None], None]) -> None:
        """Publish what may have been published before; `then` is called when it is stored, or will never be."""
        try:
            route = self.dispatch.route(message.topic)
            if route.delay is not None:
                route.delay.check()
        except PeerError:
            then(None)
            return
        if self.dispatch.publish(message, route, _StoredSlot(then), True):
            then(None)
        self.reactor.wake()
