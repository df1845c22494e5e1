"""The node's table of subscriptions: those of its own clients, of persistent sessions anywhere, and of other nodes.

Changes by clients of this node are made here first and told to the others then; those by other nodes come as
`RouteChange`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from broker.errors import MalformedPacket, PeerError
from broker.extensions.delayed import PREFIX as DELAYED
from broker.extensions.delayed import Delay
from broker.extensions.system_filters import PREFIX as SYSTEM
from broker.extensions.system_filters import SystemFilters
from broker.given import Given
from broker.groups import Group
from broker.message import Message
from broker.metrics import Metrics
from broker.reasons import NOT_AUTHORIZED, TOPIC_NAME_INVALID
from broker.routes import GroupMember, RemoteNode, Route, Subscriber, Subscription, merge
from broker.session.counted import CountedEncoding, TopicCount
from broker.session.encoding import Encoding
from broker.topics.cache import MatchCache
from broker.topics.names import MAX_BYTES, check_topic_name, is_shared, split_shared
from broker.topics.trie import TopicTrie
from cluster.api import ROUND_ROBIN, Cluster, NodeRoute, RouteChange, StoredSubscription, shared_group_id
from cluster.api import Route as SessionRoute

#: Topics whose routes are remembered.
ROUTE_CACHE_SIZE = 65536


def round_robin(share_name: str) -> str:
    """The strategy of shared subscriptions that nobody chose one for."""
    return ROUND_ROBIN


class Table:
    """Who wants what. `strategy_of` tells how the members of a shared subscription take turns, by its share name."""

    def __init__(
        self,
        cluster: Cluster,
        metrics: Metrics,
        max_group_queue: int = 10_000,
        strategy_of: Callable[[str], str] = round_robin,
        delayed_available: bool = True,
    ) -> None:
        self.cluster = cluster
        self.metrics = metrics
        self.max_group_queue = max_group_queue
        #: Publishers wait for their acknowledgements while a group with members has more than this.
        self.group_high_water = max_group_queue // 2
        self.delayed_available = delayed_available
        self.subscribers: dict[bytes, Subscriber] = {}
        self.groups: dict[bytes, Group] = {}
        self.nodes: dict[bytes, RemoteNode] = {}
        #: Subscriptions of ephemeral sessions, and of persistent ones, connected or not.
        self.counts = [0, 0]
        self.given = Given()
        #: Message ids with session ids: copies at QoS 0 for persistent sessions here, which come by several ways.
        self.copies = Given()
        #: Empty while `suspended`, so that no message takes the direct way.
        self.routes: MatchCache[Route] = MatchCache(ROUTE_CACHE_SIZE)
        #: The node may have been replaced by others: QoS 0 is dropped.
        self.suspended = False
        self._max_levels = self._max_bytes = MAX_BYTES
        self._strategy_of = strategy_of
        self._trie: TopicTrie[bytes, Subscription | Group | RemoteNode] = TopicTrie()
        self.system = SystemFilters()
        #: Finds who counts messages of a topic; None: nobody counts any.
        self.counting: Callable[[str], Sequence[TopicCount]] | None = None
        #: Starts a task of the node; set before the first client.
        self.spawn: Callable[[Callable[[], Awaitable[None]]], None]

    def _enter(self, topic_filter: str, key: bytes, value: Subscription | Group | RemoteNode) -> None:
        self._trie.set(topic_filter, key, value)
        self.routes.invalidate(topic_filter)
        if topic_filter.startswith(SYSTEM):
            self.system.add(topic_filter, key)

    def _leave(self, topic_filter: str, key: bytes) -> None:
        self._trie.discard(topic_filter, key)
        self.routes.invalidate(topic_filter)
        if topic_filter.startswith(SYSTEM):
            self.system.discard(topic_filter, key)

    # -- sessions

    def subscription_count(self) -> int:
        """Subscriptions, members of shared ones included."""
        return sum(self.counts)

    def route_count(self) -> int:
        """Filters of sessions, of other nodes and of shared subscriptions; each as often as somebody has it."""
        return len(self._trie)

    def add(self, subscriber: Subscriber, stored: StoredSubscription) -> bool:
        """Add or replace a subscription; True if the filter is new for this session."""
        topic_filter = stored.topic_filter
        known = subscriber.subscriptions.get(topic_filter)
        since = self.given.count if known is None else known.since
        subscription = Subscription(subscriber, stored.options, stored.subscription_identifier, since)
        subscriber.subscriptions[topic_filter] = subscription
        if known is None:
            self.counts[subscriber.persistent] += 1
        self.subscribers[subscriber.session_id] = subscriber
        share_name, plain = split_shared(topic_filter)
        if share_name:
            self._group(topic_filter).join(GroupMember(subscriber, subscription))
        else:
            self._enter(plain, subscriber.session_id, subscription)
        return known is None

    def set_persistent(self, subscriber: Subscriber, persistent: bool) -> None:
        """Whether the session outlives its connection; it may be another one than before."""
        if persistent != subscriber.persistent:
            for topic_filter in subscriber.subscriptions:
                self.routes.invalidate(topic_filter)
        count = len(subscriber.subscriptions)
        self.counts[subscriber.persistent] -= count
        self.counts[persistent] += count
        subscriber.persistent = persistent

    def remove(self, subscriber: Subscriber, topic_filter: str) -> None:
        """Remove a subscription if it exists."""
        if subscriber.subscriptions.pop(topic_filter, None) is None:
            return
        self.counts[subscriber.persistent] -= 1
        share_name, plain = split_shared(topic_filter)
        if share_name:
            group = self.groups[shared_group_id(topic_filter)]
            group.part(subscriber)
            self.tidy(group)
        else:
            self._leave(plain, subscriber.session_id)
        self._forget(subscriber)

    def drop(self, subscriber: Subscriber) -> None:
        """Remove all subscriptions of a session that ended."""
        for topic_filter in list(subscriber.subscriptions):
            self.remove(subscriber, topic_filter)

    def connected(self, subscriber: Subscriber) -> None:
        """`subscriber.session` and `connection` are set: the session is here now, with what `attach` found."""
        subscriber.later = None
        self.subscribers[subscriber.session_id] = subscriber
        for group in self.groups_of(subscriber):
            group.came(subscriber)

    def disconnected(self, subscriber: Subscriber) -> None:
        """They are None again."""
        for group in self.groups_of(subscriber):
            group.left(subscriber)
        later, subscriber.later = subscriber.later, None
        for change in later or ():
            self.apply(change)
        self._forget(subscriber)

    def _forget(self, subscriber: Subscriber) -> None:
        if (
            not subscriber.subscriptions
            and subscriber.session is None
            and self.subscribers.get(subscriber.session_id) is subscriber
        ):
            del self.subscribers[subscriber.session_id]

    def groups_of(self, subscriber: Subscriber) -> list[Group]:
        """The shared groups that the session is a member of."""
        names = subscriber.subscriptions
        return [self.groups[shared_group_id(name)] for name in names if is_shared(name)]

    # -- groups

    def _group(self, topic_filter: str) -> Group:
        group_id = shared_group_id(topic_filter)
        group = self.groups.get(group_id)
        if group is None:
            share_name, plain = split_shared(topic_filter)
            group = self.groups[group_id] = Group(group_id, self, share_name, plain, self._strategy_of(share_name))
        if not group.routed:
            group.routed = True
            self._enter(group.topic_filter, group_id, group)
        return group

    def tidy(self, group: Group) -> None:
        """Forget a group that nobody is a member of, here or anywhere, once the cluster knows of that."""
        if group.members or group.nodes:
            return
        if group.routed:
            group.routed = False
            self._leave(group.topic_filter, group.group_id)
        if not group.announcing.busy and self.groups.get(group.group_id) is group:
            del self.groups[group.group_id]

    # -- other nodes

    def apply(self, change: RouteChange) -> None:
        """Another node changed the table."""
        if change.session is not None:
            self._apply_session(change, change.session)
        elif change.node is not None:
            if change.removed:
                self._remove_node_route(change.node.node, change.node.topic_filter)
            else:
                self.add_node_route(change.node)

    def _apply_session(self, change: RouteChange, route: SessionRoute) -> None:
        subscriber = self.subscribers.get(route.session_id)
        topic_filter = route.subscription.topic_filter
        if subscriber is not None and subscriber.session is not None:
            # It was attached after all that came before: this is what a newer owner did, and the end is near.
            if subscriber.later is None:
                subscriber.later = []
            subscriber.later.append(change)
        elif change.removed:
            if subscriber is not None and subscriber.birth <= route.birth:
                self.remove(subscriber, topic_filter)
        else:
            self.add_route(route)

    def add_route(self, route: SessionRoute) -> None:
        """A subscription of a persistent session that is not connected here; of two lives the younger one counts."""
        subscriber = self.subscribers.get(route.session_id)
        if subscriber is not None and subscriber.birth != route.birth:
            if subscriber.birth > route.birth:
                return
            self.drop(subscriber)
            subscriber = None
        if subscriber is None:
            subscriber = Subscriber(route.session_id, route.client_id, route.birth, True)
        self.add(subscriber, route.subscription)

    def add_node_route(self, route: NodeRoute) -> None:
        """Another node has ephemeral sessions for a filter, or connected members of a shared subscription."""
        node = self.nodes.get(route.node)
        if node is None:
            node = self.nodes[route.node] = RemoteNode(route.node)
        topic_filter = route.topic_filter
        node.filters.add(topic_filter)
        if is_shared(topic_filter):
            self._group(topic_filter).node_came(route.node)
        else:
            self._enter(topic_filter, route.node, node)

    def _remove_node_route(self, member: bytes, topic_filter: str) -> None:
        node = self.nodes.get(member)
        if node is None or topic_filter not in node.filters:
            return
        node.filters.remove(topic_filter)
        if not node.filters:
            del self.nodes[member]
        if is_shared(topic_filter):
            group = self.groups[shared_group_id(topic_filter)]
            group.node_left(member)
            self.tidy(group)
        else:
            self._leave(topic_filter, member)

    def remove_node(self, member: bytes) -> None:
        """Another node is gone."""
        node = self.nodes.get(member)
        for topic_filter in list(node.filters) if node is not None else ():
            self._remove_node_route(member, topic_filter)

    # -- routes

    def suspend(self, suspended: bool) -> None:
        """The store was away for longer than the node's lease, or it is back."""
        self.suspended = suspended
        self.routes = MatchCache(ROUTE_CACHE_SIZE)

    def limit_topics(self, max_levels: int, max_bytes: int) -> None:
        """What clients may publish to from now on."""
        if (max_levels, max_bytes) != (self._max_levels, self._max_bytes):
            self._max_levels, self._max_bytes = max_levels, max_bytes
            self.suspend(self.suspended)  # without what was remembered

    def count_by(self, counting: Callable[[str], Sequence[TopicCount]] | None) -> None:
        """Have messages counted, of the topics that it finds somebody for; called again when it would find others."""
        self.counting = counting
        self.suspend(self.suspended)  # without what was remembered

    def counts_of(self, topic: bytes) -> Sequence[TopicCount]:
        """Who counts messages of a topic."""
        if self.counting is None:
            return ()
        try:
            return self.route(topic).counts
        except PeerError:
            return ()

    def encoding(self, message: Message, remaining_s: int) -> Encoding:
        """One for a message that did not come by its route, such as one of a queue."""
        if self.counting is None:
            return Encoding(message, remaining_s)
        counts = self.counts_of(message.topic)
        return CountedEncoding(message, remaining_s, counts) if counts else Encoding(message, remaining_s)

    def _refusal(self, topic: bytes) -> tuple[int, str]:
        """Why clients may not publish to a valid topic name: a reason code or 0, and a text."""
        if topic.startswith(b"$"):
            if topic.startswith(b"$SYS/"):
                return NOT_AUTHORIZED, "only the server publishes to $SYS/"
            if topic.startswith(b"$rookery/"):
                return NOT_AUTHORIZED, "$rookery/ is of the nodes alone"
            if topic.startswith(b"$share/"):
                return TOPIC_NAME_INVALID, "$share/ begins no topic name"
        if len(topic) > self._max_bytes:
            return TOPIC_NAME_INVALID, f"a topic name of {len(topic)} bytes, at most {self._max_bytes} are allowed"
        if topic.count(b"/") >= self._max_levels:
            return TOPIC_NAME_INVALID, f"a topic name of more than {self._max_levels} levels"
        return 0, ""

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
            refusal, text = self._refusal(topic)
            if topic.startswith(DELAYED):
                delay = Delay(topic, self.delayed_available)
                if delay.refusal:
                    refusal, text = delay.refusal, delay.text
                elif not refusal:
                    refusal, text = self._refusal(delay.topic)
                route = Route(name, topic, (), (), (), delay, refusal, text)
            else:
                counts = () if self.counting is None else self.counting(name)
                route = merge(name, topic, self._trie.match(name), refusal, text, counts)
            # Of $SYS/ there are as many topics as there are clients: they would take the place of others.
            if not self.suspended and not topic.startswith(b"$SYS/"):
                self.routes.put(topic, route)
        return route
