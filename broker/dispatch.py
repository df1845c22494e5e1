"""The way of one message through the node.

Everything here is synchronous and happens within a turn of the reactor. What must be safe before it is
acknowledged goes to the cluster as a `Publication`; its answer comes back in a later turn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from broker.codec.packets import V5
from broker.codec.runs import split_run, topic_bounds
from broker.errors import PeerError
from broker.extensions import delayed
from broker.message import Message
from broker.metrics import Metrics
from broker.routes import AckSlot, Entry, Route, Subscriber
from broker.session.counted import CountedEncoding, encoding_of
from broker.session.encoding import Encoding
from broker.session.run import Run
from broker.table import Table, round_robin
from cluster.api import REFUSED_FULL, REFUSED_GONE, Cluster, Extension, GroupTarget, NodeTarget, Publication, Target

if TYPE_CHECKING:
    from broker.groups import Group


class Delivery(Publication):
    """A message that had to be stored, with what happens afterwards.

    `entries` and `route_groups` are what `targets` and `groups` were made of, in the same order."""

    __slots__ = ("_dispatch", "_route", "encoding", "entries", "route_groups", "slot")

    def __init__(
        self,
        dispatch: Dispatch,
        message: Message,
        encoding: Encoding | None,
        route: Route,
        targets: Sequence[Target],
        entries: Sequence[Entry],
        deduplicate: bool,
        slot: AckSlot | None,
    ) -> None:
        groups = [GroupTarget(group.group_id) for group in route.groups] if route.groups else ()
        super().__init__(message, targets, groups, message.retain, deduplicate, route.nodes)
        self._dispatch = dispatch
        self._route = route
        self.encoding = encoding
        self.entries = entries
        self.route_groups = route.groups
        self.slot = slot

    @property
    def patient(self) -> bool:
        """As the publisher is."""
        return self.slot is not None and self.slot.patient

    def rematch(self) -> Extension | None:
        """Add who was not known when it was matched. Ephemeral sessions of this node were: it is their node."""
        route = self._dispatch.route(self.message.topic)
        if route is self._route:
            return None
        self._route = route
        message = self.message
        known = {(target.session_id, target.birth) for target in self.targets if target.qos}
        targets: list[Target] = []
        entries: list[Entry] = []
        for item in route.entries:
            entry = item.without_own(message.publisher)
            if entry is None or not entry.subscriber.persistent:
                continue
            subscriber = entry.subscriber
            granted = min(entry.qos, message.qos)
            if granted and (subscriber.session_id, subscriber.birth) not in known:
                targets.append(make_target(entry, granted, message))
                entries.append(entry)
        groups = {group.group_id for group in self.groups}
        new_groups = [group for group in route.groups if group.group_id not in groups]
        group_targets = [GroupTarget(group.group_id) for group in new_groups]
        nodes = {node.node for node in self.nodes}
        new_nodes = [node for node in route.nodes if node.node not in nodes]
        if not targets and not new_groups and not new_nodes:
            return None
        self.targets = [*self.targets, *targets]
        self.entries = [*self.entries, *entries]
        self.groups = [*self.groups, *group_targets]
        self.route_groups = [*self.route_groups, *new_groups]
        self.nodes = [*self.nodes, *new_nodes]
        return Extension(targets, group_targets, new_nodes)

    def wants(self, target: Target) -> bool:
        """Whether the session has a subscription that matches."""
        return self._dispatch.matches(self.message, target)

    def reached(self, target: Target) -> None:
        """Send what was stored, if the session is here."""
        assert isinstance(target, EntryTarget)
        self.tell(target.entry, target, target.seq, self._encoded())

    def given(self, target: GroupTarget) -> None:
        """Offer it to the members that are here."""
        group = self.route_groups[self.groups.index(target)]
        self.note_depth(group, target.depth)
        if target.entry is not None:
            group.offer(target.entry, self._encoded())

    def _encoded(self) -> Encoding:
        encoding, message = self.encoding, self.message
        if encoding is None or message.expiry_s >= 0:
            remaining = message.remaining_s(self._dispatch.cluster.now_ms())
            if encoding is None or encoding.remaining_s != remaining:
                self.encoding = encoding = self._dispatch.encoding(message, remaining)
        return encoding

    def note_depth(self, group: Group, depth: int) -> None:
        """The length of a group's queue, or why it did not take the message."""
        if depth > 0:
            group.holding.depth = depth
        elif depth < 0:
            reason = "group_queue_full" if depth == REFUSED_FULL else "group_gone"
            self._dispatch.metrics.dropped[reason] += 1

    def stored(self) -> None:
        """Acknowledge."""
        slot = self.slot
        if slot is None:
            return
        if self.error is None:
            for target, group in zip(self.groups, self.route_groups, strict=True):
                if target.depth > 0 and group.hold(slot):
                    return
        slot.settle(self.error)

    def tell(self, entry: Entry, target: Target, seq: int, encoding: Encoding) -> None:
        """The store's answer for one session."""
        session = entry.subscriber.session
        if seq > 0:
            if session is not None:
                session.stored(seq, encoding, target.qos, target.retain, target.subscription_ids)
                self._dispatch.stored_ms = self.message.accepted_at_ms
            else:
                entry.subscriber.stored_seq = max(entry.subscriber.stored_seq, seq)
        elif seq < 0:
            self._dispatch.metrics.dropped["queue_full" if seq == REFUSED_FULL else "session_gone"] += 1
            for count in self._route.counts:
                count.dropped += 1
            if seq == REFUSED_GONE and entry.subscriber.connection is not None:
                entry.subscriber.connection.session_gone()
        elif target.qos:  # stored before, by a publication whose answer was lost
            if session is None:
                entry.subscriber.unsure = True
            elif session.persistent:
                session.look()


class Passing(Publication):
    """A QoS 0 message for sessions that may be connected elsewhere: nothing is waited for."""

    __slots__ = ("_dispatch",)

    def __init__(
        self, dispatch: Dispatch, message: Message, targets: Sequence[Target], nodes: Sequence[NodeTarget]
    ) -> None:
        super().__init__(message, targets, retain=message.retain, nodes=nodes)
        self._dispatch = dispatch

    def wants(self, target: Target) -> bool:
        """Whether the session has a subscription that matches."""
        return self._dispatch.matches(self.message, target)


class EntryTarget(Target):
    """A target that knows what it was made of."""

    __slots__ = ("entry",)

    entry: Entry


def make_target(entry: Entry, granted: int, message: Message) -> EntryTarget:
    """What the store shall keep for a session."""
    subscriber = entry.subscriber
    retain = message.retain and entry.retain_as_published
    target = EntryTarget(subscriber.session_id, subscriber.birth, granted, retain, entry.subscription_ids)
    target.entry = entry
    return target


class Dispatch(Table):
    """Delivery, to those here and by the cluster to all others."""

    def __init__(
        self,
        cluster: Cluster,
        metrics: Metrics,
        new_message_id: Callable[[], bytes],
        max_group_queue: int = 10_000,
        strategy_of: Callable[[str], str] = round_robin,
        delayed_available: bool = True,
    ) -> None:
        super().__init__(cluster, metrics, max_group_queue, strategy_of, delayed_available)
        self.new_message_id = new_message_id
        #: For whoever samples latency, and sets them back: a message was passed on at once; when the last one was
        #: accepted that was sent after it was stored, and that another node had sent (store time, 0: none was).
        self.passed = False
        self.stored_ms = self.remote_ms = 0
        #: Topics whose retained messages are about to be sent, with the sets of whoever wants to know of newer ones.
        self._in_hand: dict[bytes, list[set[bytes]]] = {}

    @contextmanager
    def in_hand(self, topics: Sequence[str]) -> Generator[set[bytes], None, None]:
        """The retained messages of these topics are read and sent now; gives the set of those published meanwhile."""
        newer: set[bytes] = set()
        names = [topic.encode() for topic in topics]
        for name in names:
            self._in_hand.setdefault(name, []).append(newer)
        try:
            yield newer
        finally:
            for name in names:
                waiting = self._in_hand[name]
                waiting[:] = [other for other in waiting if other is not newer]
                if not waiting:
                    del self._in_hand[name]

    def retained_passes(self, topic: bytes) -> None:
        """A retained message of this topic is on its way to all that match."""
        for newer in self._in_hand.get(topic, ()):
            newer.add(topic)

    # -- messages of clients of this node

    def publish(
        self,
        message: Message,
        route: Route,
        slot: AckSlot | None,
        deduplicate: bool = False,
        delivery: type[Delivery] = Delivery,
    ) -> bool:
        """Deliver a message. True if it may be acknowledged at once; otherwise `slot.settle` is called later.

        `deduplicate`: it may have been published before, here or by another node. The store knows who has it already
        (see `Publication`), and `given` who has no queue there and got it when it passed here.
        """
        if route.delay is not None:
            if route.delay.seconds:
                delayed.keep(self, message, route.delay, slot)
                return False
            message.topic = route.delay.topic
            route = self.route(message.topic)
        before = self.given.note(message.message_id) if deduplicate else 0
        qos = message.qos
        counts = route.counts
        if counts:
            for count in counts:
                count.received[qos] += 1
        if message.retain:
            self.retained_passes(message.topic)
            if not message.accepted_at_ms:
                message.accepted_at_ms = self.cluster.now_ms()
        if qos and not route.entries and not route.groups:
            if not message.retain and self.cluster.alone():
                return True
            if not message.accepted_at_ms:
                message.accepted_at_ms = self.cluster.now_ms()
            self.cluster.publish(delivery(self, message, None, route, (), (), deduplicate, slot))
            return False
        encoding = CountedEncoding(message, message.expiry_s, counts) if counts else Encoding(message, message.expiry_s)
        if not qos:
            self._publish_qos0(message, route, encoding, before)
            return True
        targets: list[Target] | None = None
        entries: list[Entry] | None = None
        for item in route.entries:
            entry = item
            if item.no_local and item.subscriber.session_id == message.publisher:
                if item.own is None:
                    continue  # [MQTT-3.8.3-3]
                entry = item.own
            granted = entry.qos if entry.qos < qos else qos
            subscriber = entry.subscriber
            if subscriber.persistent and (granted or subscriber.connection is None):
                # At QoS 0 only whoever is connected to another node gets it: nobody if there is none.
                if not granted and (before or self.cluster.alone()):
                    continue
                if targets is None or entries is None:
                    targets, entries = [], []
                targets.append(make_target(entry, granted, message))
                entries.append(entry)
            elif entry.since < before:
                continue
            elif not granted:
                if not deduplicate or not self.had(subscriber, message):
                    self._send_qos0(entry, encoding, message)
            else:
                session = subscriber.session
                if session is not None:
                    session.deliver(
                        encoding, granted, message.retain and entry.retain_as_published, entry.subscription_ids
                    )
                    self.passed = True
        if targets is None and not route.groups and not message.retain and self.cluster.alone():
            return True
        if not message.accepted_at_ms:
            message.accepted_at_ms = self.cluster.now_ms()
        self.cluster.publish(delivery(self, message, encoding, route, targets or (), entries or (), deduplicate, slot))
        return False

    def _publish_qos0(self, message: Message, route: Route, encoding: Encoding, before: int) -> None:
        """`before` is its number in `given`: then only sessions without a queue on other nodes may not have got it."""
        targets: list[Target] = []
        for item in route.entries:
            entry = item.without_own(message.publisher)
            if entry is None:
                continue
            if entry.subscriber.connection is not None:
                if entry.since >= before and not self.had(entry.subscriber, message):
                    self._send_qos0(entry, encoding, message)
                    self.passed = True
            elif entry.subscriber.persistent and not before and not self.cluster.alone():
                targets.append(make_target(entry, 0, message))
        nodes = route.nodes
        if route.groups and not before:
            nodes = self._group_copies(message, route, encoding)
        if message.retain or targets or nodes:
            self.cluster.publish(Passing(self, message, targets, nodes))

    def matches(self, message: Message, target: Target) -> bool:
        """Whether the session still has a subscription that matches."""
        for item in self.route(message.topic).entries:
            subscriber = item.subscriber
            if subscriber.session_id == target.session_id and subscriber.birth == target.birth:
                return item.without_own(message.publisher) is not None
        return False

    def had(self, subscriber: Subscriber, message: Message) -> bool:
        """Whether a persistent session got a copy at QoS 0 before of a message that may come twice; it gets it now."""
        if not message.message_id or not subscriber.persistent:
            return False
        return self.copies.note(message.message_id + subscriber.session_id) > 0

    def _group_copies(self, message: Message, route: Route, encoding: Encoding) -> Sequence[NodeTarget]:
        """Give a QoS 0 message to a member of each group, here or elsewhere; returns all nodes that get it."""
        elsewhere: dict[bytes, list[bytes]] = {}
        for group in route.groups:
            node = group.choose_node(message)
            if node:
                elsewhere.setdefault(node, []).append(group.group_id)
            else:
                group.give_qos0(message, encoding)
        if not elsewhere:
            return route.nodes
        nodes = [NodeTarget(node.node, True, elsewhere.pop(node.node, ())) for node in route.nodes]
        return [*nodes, *(NodeTarget(node, False, groups) for node, groups in elsewhere.items())]

    def _send_qos0(self, entry: Entry, encoding: Encoding, message: Message) -> None:
        connection = entry.subscriber.connection
        if connection is not None:
            connection.send_qos0(encoding, message.retain and entry.retain_as_published, entry.subscription_ids)

    def forward_verbatim(
        self, receivers: Sequence[Subscriber], topic: bytes, run: bytes, family: int, body_at: int, count: int = 1
    ) -> bool:
        """Deliver QoS 0 packets without properties to plain receivers (`Route.live0`): the way with the least work.

        `run` is the packets as received, `count` of them (see `broker.codec.runs`), `body_at` where in each its payload
        (family 5: the empty property length) starts. Returns whether any of the receivers is not connected here.
        """
        others: list[Encoding] | None = None
        absent = False
        for subscriber in receivers:
            connection = subscriber.connection
            if connection is None:
                absent = True
                continue
            if connection.plain == family:
                connection.stream.write(run)
                connection.sent_qos0 += count
                continue
            if others is None:
                payload_at = body_at + (family == V5)
                others = [Encoding(Message(topic, frame[payload_at:], 0, False)) for frame in split_run(run, count)]
            for encoding in others:
                if connection.plain:
                    connection.stream.write(encoding.qos0(9 - family, False))
                    connection.sent_qos0 += 1
                else:
                    connection.send_qos0(encoding, False, ())
        return absent

    def forward_on(
        self, route: Route, topic: bytes, run: bytes, family: int, body_at: int, count: int, publisher: bytes
    ) -> None:
        """What `forward_verbatim` leaves: the packets go to other nodes, and to persistent sessions there."""
        if route.nodes:
            self.cluster.forward(route.nodes, family, run, count)
        if route.entries and not self.cluster.alone():
            away = [
                entry for entry in route.entries if entry.subscriber.connection is None and entry.subscriber.persistent
            ]
            for frame in split_run(run, count) if away else ():
                message = Message(topic, frame[body_at + (family == V5) :], 0, False, publisher=publisher)
                self.cluster.publish(Publication(message, [make_target(entry, 0, message) for entry in away]))

    # -- messages of other nodes: nothing of it leaves this one

    def arrived(self, message: Message, live: bool, groups: Iterable[bytes]) -> None:
        """A message of another node, for the ephemeral sessions here and for members of `groups` (QoS 0)."""
        try:
            route = self.route(message.topic)
        except PeerError:
            return
        encoding = encoding_of(message, message.remaining_s(self.cluster.now_ms()), route.counts)
        # The id of a client's QoS 2 message, a will or a delayed message: it may come by several nodes.
        before = self.given.note(message.message_id) if message.message_id else 0
        if message.retain:
            self.retained_passes(message.topic)
        for item in route.entries if live else ():
            if not item.subscriber.persistent:
                self._arrived_for(item, message, encoding, before)
        for group_id in groups if not before else ():
            group = self.groups.get(group_id)
            if group is not None:
                group.give_qos0(message, encoding)
            else:
                self.metrics.dropped["no_member_online"] += 1

    def _arrived_for(self, item: Entry, message: Message, encoding: Encoding, before: int = 0) -> None:
        entry = item.without_own(message.publisher)
        if entry is None or entry.since < before:
            return
        granted = min(entry.qos, message.qos)
        session = entry.subscriber.session
        if not granted:
            self._send_qos0(entry, encoding, message)
        elif session is not None:
            session.deliver(encoding, granted, message.retain and entry.retain_as_published, entry.subscription_ids)

    def run_published(self, route: Route, run: Run) -> None:
        """Messages of a client here for the ephemeral sessions of a route `TO_CLIENTS`, which get them at their QoS."""
        encodings: list[Encoding] = []
        for entry in route.entries:
            session = entry.subscriber.session
            if session is None:
                continue
            if not session.deliver_run(run):
                encodings = encodings or [Encoding(message) for message in run.messages()]
                for encoding in encodings:
                    session.deliver(encoding, run.qos, False, ())
            self.passed = True

    def packet_published(self, route: Route, before: bytes, after: bytes, family: int, publisher: bytes) -> None:
        """The same for a QoS 1 packet by itself; its packet id is between the two pieces."""
        encoding: Encoding | None = None
        for entry in route.entries:
            subscriber = entry.subscriber
            session = subscriber.session
            if session is None:
                continue
            connection = subscriber.connection
            if connection is not None and connection.plain == family:
                packet_id = session.claim()
                if packet_id:
                    connection.stream.write_parts(before, packet_id.to_bytes(2, "big"), after)
                    self.metrics.messages_sent[1] += 1
                    continue
            if encoding is None:
                payload = after[1:] if family == V5 else after
                encoding = Encoding(Message(route.topic, payload, 1, False, publisher=publisher))
            session.deliver(encoding, 1, False, ())
        self.passed = True

    def run_arrived(self, run: Run) -> None:
        """QoS 1 packets of another node, for the ephemeral sessions here."""
        route = self.routes.entries.get(run.topic)
        if route is None:
            try:
                route = self.route(run.topic)
            except PeerError:
                return
        if route.counts:
            for message in run.messages():
                self.arrived(message, True, ())
            return
        others: list[Entry] = []
        for entry in route.ephemeral():
            session = entry.subscriber.session
            if (
                session is None
                or not entry.qos
                or entry.subscription_ids
                or entry.no_local
                or not session.deliver_run(run)
            ):
                others.append(entry)
        for message in run.messages() if others else ():
            encoding = Encoding(message)
            for entry in others:
                self._arrived_for(entry, message, encoding)

    def frame_arrived(self, family: int, run: bytes, count: int = 1) -> None:
        """QoS 0 packets of another node (see `broker.codec.runs`), for the ephemeral sessions here."""
        start, body = topic_bounds(run)
        topic = run[start:body]
        route = self.routes.entries.get(topic)
        if route is None:
            try:
                route = self.route(topic)
            except PeerError:
                return
        if route.counts:
            for frame in split_run(run, count):
                self.arrived(Message(topic, frame[body + (family == V5) :], 0, False), True, ())
            return
        plain, others = route.arrivals()
        self.forward_verbatim(plain, topic, run, family, body, count)
        for frame in split_run(run, count) if others else ():
            message = Message(topic, frame[body + (family == V5) :], 0, False)
            encoding = Encoding(message)
            for entry in others:
                self._send_qos0(entry, encoding, message)
