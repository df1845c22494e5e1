"""Who gets a message: the node's table of subscriptions, and the way of one message through it.

Everything here is synchronous and happens within a turn of the reactor. What must be safe before it is
acknowledged goes to the cluster as a `Publication`; its answer comes back in a later turn.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager

from broker.codec.packets import V5
from broker.errors import MalformedPacket
from broker.groups import Group, GroupMember
from broker.message import Message
from broker.metrics import Metrics
from broker.routes import AckSlot, Entry, Route, Subscriber, Subscription, merge
from broker.session.encoding import Encoding
from broker.topics.cache import MatchCache
from broker.topics.names import check_topic_name, is_shared, split_shared
from broker.topics.trie import TopicTrie
from cluster.api import REFUSED_GONE, Cluster, GroupTarget, Publication, StoredSubscription, Target, shared_group_id

#: Topics whose routes are remembered.
ROUTE_CACHE_SIZE = 65536


class Delivery(Publication):
    """A message that had to be stored, with what happens afterwards."""

    __slots__ = ("_dispatch", "encoding", "entries", "route_groups", "slot")

    def __init__(
        self,
        dispatch: Dispatch,
        message: Message,
        encoding: Encoding,
        targets: Sequence[Target],
        entries: Sequence[Entry],
        groups: Sequence[GroupTarget],
        route_groups: Sequence[Group],
        retain: bool,
        deduplicate: bool,
        slot: AckSlot | None,
    ) -> None:
        super().__init__(message, targets, groups, retain, deduplicate)
        self._dispatch = dispatch
        self.encoding = encoding
        self.entries = entries
        self.route_groups = route_groups
        self.slot = slot

    @property
    def patient(self) -> bool:
        """As the publisher is."""
        return self.slot is not None and self.slot.patient

    def stored(self) -> None:
        """Acknowledge, and send what was stored to the sessions and members that are here."""
        slot = self.slot
        if self.error is not None:
            if slot is not None:
                slot.settle(self.error)
            return
        message = self.message
        if message.expiry_s >= 0 and self.targets:
            self.encoding = Encoding(message, message.remaining_s(self._dispatch.cluster.now_ms()))
        for target, entry in zip(self.targets, self.entries, strict=True):
            seq = target.seq
            session = entry.subscriber.session
            if seq > 0:
                if session is not None:
                    session.stored(seq, self.encoding, target.qos, target.retain, target.subscription_ids)
                else:
                    entry.subscriber.stored_seq = seq
            elif seq < 0:
                self._dispatch.metrics.dropped["queue_full" if seq == -1 else "session_gone"] += 1
                if seq == REFUSED_GONE and entry.subscriber.connection is not None:
                    entry.subscriber.connection.session_gone()
            elif session is not None and session.persistent:
                session.look()  # stored before, by a publication whose answer was lost
        for group_target, group in zip(self.groups, self.route_groups, strict=True):
            if group_target.entry_id:
                group.offer(group_target.entry_id, message, self.encoding)
                if slot is not None and group.hold(slot):
                    slot = None
            elif not self.deduplicate:
                self._dispatch.metrics.dropped["group_queue_full"] += 1
        if slot is not None:
            slot.settle(None)


class _Forgetful(MatchCache[Route]):
    """A cache that keeps nothing, so that no message takes the direct way."""

    __slots__ = ()

    def put(self, key: bytes, value: Route) -> None:
        """Keeps nothing."""


class Dispatch:
    """The subscriptions this node knows, and delivery."""

    def __init__(
        self, cluster: Cluster, metrics: Metrics, new_message_id: Callable[[], bytes], max_group_queue: int = 10_000
    ) -> None:
        self.cluster = cluster
        #: Publishers wait for their acknowledgements while a group with members has more than this.
        self.group_high_water = max_group_queue // 2
        self.metrics = metrics
        self.new_message_id = new_message_id
        self._own_ids = new_message_id()[:8]
        self.subscribers: dict[bytes, Subscriber] = {}
        self.groups: dict[bytes, Group] = {}
        self.routes: MatchCache[Route] = MatchCache(ROUTE_CACHE_SIZE)
        self._trie: TopicTrie[bytes, Subscription | Group] = TopicTrie()
        #: Topics whose retained messages are about to be sent, with the sets of whoever wants to know of newer ones.
        self._in_hand: dict[bytes, list[set[bytes]]] = {}
        #: Starts a task of the node; set before the first client.
        self.spawn: Callable[[Callable[[], Awaitable[None]]], None]

    # -- subscriptions

    def subscription_count(self) -> int:
        """Subscriptions, members of shared ones included."""
        return sum(len(subscriber.subscriptions) for subscriber in self.subscribers.values())

    def add(self, subscriber: Subscriber, stored: StoredSubscription) -> bool:
        """Add or replace a subscription; True if the filter is new for this session."""
        topic_filter = stored.topic_filter
        is_new = topic_filter not in subscriber.subscriptions
        subscription = Subscription(subscriber, stored.options, stored.subscription_identifier)
        subscriber.subscriptions[topic_filter] = subscription
        self.subscribers[subscriber.session_id] = subscriber
        share_name, plain = split_shared(topic_filter)
        if share_name:
            gid = shared_group_id(topic_filter)
            group = self.groups.get(gid)
            if group is None:
                group = self.groups[gid] = Group(gid, self, share_name, plain)
                self._trie.set(plain, gid, group)
                self.routes.invalidate(plain)
            group.join(GroupMember(subscriber, subscription))
        else:
            self._trie.set(plain, subscriber.session_id, subscription)
            self.routes.invalidate(plain)
        return is_new

    def remove(self, subscriber: Subscriber, topic_filter: str) -> Group | None:
        """Remove a subscription if it exists; returns the shared group that lost its last member, if so."""
        if subscriber.subscriptions.pop(topic_filter, None) is None:
            return None
        if not subscriber.subscriptions:
            self.subscribers.pop(subscriber.session_id, None)
        share_name, plain = split_shared(topic_filter)
        if not share_name:
            self._trie.discard(plain, subscriber.session_id)
            self.routes.invalidate(plain)
            return None
        gid = shared_group_id(topic_filter)
        group = self.groups[gid]
        group.part(subscriber)
        if group.members:
            return None
        del self.groups[gid]
        self._trie.discard(plain, gid)
        self.routes.invalidate(plain)
        return group

    def drop(self, subscriber: Subscriber) -> list[Group]:
        """Remove all subscriptions of a session that ended; returns the groups that lost their last member."""
        emptied = [self.remove(subscriber, topic_filter) for topic_filter in list(subscriber.subscriptions)]
        return [group for group in emptied if group is not None]

    def groups_of(self, subscriber: Subscriber) -> list[Group]:
        """The shared groups that the session is a member of."""
        names = subscriber.subscriptions
        return [self.groups[shared_group_id(name)] for name in names if is_shared(name)]

    # -- routes

    @property
    def suspended(self) -> bool:
        """The node may have been replaced by others: QoS 0 is dropped."""
        return isinstance(self.routes, _Forgetful)

    def suspend(self, suspended: bool) -> None:
        """The store was away for longer than the node's lease, or it is back."""
        self.routes = _Forgetful(1) if suspended else MatchCache(ROUTE_CACHE_SIZE)

    def route(self, topic: bytes) -> Route:
        """Where messages of this topic go. Raises PeerError if the topic name is invalid."""
        route = self.routes.entries.get(topic)
        if route is None:
            try:
                name = topic.decode()
            except UnicodeDecodeError:
                raise MalformedPacket("the topic name is not valid UTF-8") from None  # [MQTT-3.3.2-1]
            if "\x00" in name:
                raise MalformedPacket("the topic name contains U+0000")  # [MQTT-1.5.4-2]
            check_topic_name(name)
            route = merge(name, topic, self._trie.match(name))
            self.routes.put(topic, route)
        return route

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

    # -- messages

    def publish(
        self,
        message: Message,
        route: Route,
        publisher: Subscriber | None,
        slot: AckSlot | None,
        deduplicate: bool = False,
        again: bool = False,
    ) -> bool:
        """Deliver a message. True if it may be acknowledged at once; otherwise `slot.settle` is called later.

        `publisher` is the publishing session (No Local) and `deduplicate` as in `Publication`. `again`: the client
        repeats a QoS 2 message after it came back. The store knows who has it already; whoever has no queue there got
        it at the first time, if that was this node.
        """
        again = again and message.message_id.startswith(self._own_ids)
        encoding = Encoding(message, message.expiry_s)
        qos = message.qos
        if message.retain:
            for newer in self._in_hand.get(message.topic, ()):
                newer.add(message.topic)
            if not message.accepted_at_ms:
                message.accepted_at_ms = self.cluster.now_ms()
        if not qos:
            for item in route.entries:
                self._deliver_qos0(item, encoding, message, publisher)
            for group in route.groups:
                group.offer_qos0(message, encoding)
            if message.retain:
                self.cluster.publish(Publication(message, retain=True))
            return True
        targets: list[Target] | None = None
        entries: list[Entry] | None = None
        for item in route.entries:
            entry: Entry | None = item
            if item.no_local and item.subscriber is publisher:
                entry = item.own
                if entry is None:
                    continue  # [MQTT-3.8.3-3]
            else:
                entry = item
            granted = entry.qos if entry.qos < qos else qos
            subscriber = entry.subscriber
            if not granted:
                if not again:
                    self._deliver_qos0(entry, encoding, message, publisher)
            elif subscriber.persistent:
                if targets is None or entries is None:
                    targets, entries = [], []
                retain = message.retain and entry.retain_as_published
                targets.append(Target(subscriber.session_id, subscriber.birth, granted, retain, entry.subscription_ids))
                entries.append(entry)
            elif not again:
                session = subscriber.session
                if session is not None:
                    session.deliver(
                        encoding, granted, message.retain and entry.retain_as_published, entry.subscription_ids
                    )
        groups = route.groups
        if targets is None and not groups and not message.retain and self.cluster.alone():
            return True
        if not message.accepted_at_ms:
            message.accepted_at_ms = self.cluster.now_ms()
        self.cluster.publish(
            Delivery(
                self,
                message,
                encoding,
                targets or (),
                entries or (),
                [GroupTarget(group.group_id) for group in groups] if groups else (),
                groups,
                message.retain,
                deduplicate,
                slot,
            )
        )
        return False

    def _deliver_qos0(self, entry: Entry, encoding: Encoding, message: Message, publisher: Subscriber | None) -> None:
        if entry.no_local and entry.subscriber is publisher:
            if entry.own is None:
                return
            entry = entry.own
        connection = entry.subscriber.connection
        if connection is not None:
            connection.send_qos0(encoding, message.retain and entry.retain_as_published, entry.subscription_ids)

    def forward_verbatim(
        self, receivers: Sequence[Subscriber], topic: bytes, frame: bytes, family: int, body_at: int
    ) -> None:
        """Deliver a QoS 0 packet without properties to plain receivers (`Route.live0`): the way with the least work.

        `frame` is the packet as received, `body_at` where its payload (family 5: the empty property length) starts.
        """
        other: bytes | None = None
        for subscriber in receivers:
            connection = subscriber.connection
            if connection is None:
                continue
            if connection.plain == family:
                connection.stream.write(frame)
                connection.sent_qos0 += 1
                continue
            if other is None:
                encoding = Encoding(Message(topic, frame[body_at + 1 :] if family == V5 else frame[body_at:], 0, False))
                other = encoding.qos0(9 - family, False)
            if connection.plain:
                connection.stream.write(other)
                connection.sent_qos0 += 1
            else:
                connection.send_qos0(encoding, False, ())
