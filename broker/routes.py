"""Subscriptions as the node matches them, and the routes that topics take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from broker.session.counted import TopicCount
from broker.session.encoding import Encoding
from broker.session.session import Session
from cluster.api import NodeTarget, RouteChange

if TYPE_CHECKING:
    from broker.extensions.delayed import Delay
    from broker.gate import Gate
    from broker.groups import Group
    from broker.transport.api import Stream


#: Where a run of packets of QoS 1 or 2 goes: to ephemeral sessions here, to queues of persistent ones or of groups, to
#: other nodes.
NO_WAY: Final = 0
TO_CLIENTS: Final = 1
TO_QUEUES: Final = 2
TO_NODES: Final = 3


class Receiver(Protocol):
    """The connection of a subscriber, as far as delivery goes.

    `plain` is 5 or 4 (for versions 3.1 and 3.1.1) while QoS 0 packets of that family may be written to `stream` as
    they are, and others with packet ids of its own; 0 while something stands in the way (topic aliases, a small
    maximum packet size, a full output buffer, a gate that has to look at them). `sent_qos0` counts QoS 0 ones written
    directly.
    """

    plain: int
    gate: Gate | None
    stream: Stream
    sent_qos0: int

    def session_gone(self) -> None:
        """The store has no such session any more."""

    def send_qos0(self, encoding: Encoding, retain: bool, subscription_ids: Sequence[int]) -> None:
        """Send at QoS 0, or drop and count."""


class AckSlot:
    """An acknowledgement that the publisher waits for; a subclass knows where it goes."""

    __slots__ = ()

    @property
    def patient(self) -> bool:
        """Whether the publisher waits until a full store has room (see `Publication`)."""
        return False

    def settle(self, error: Exception | None) -> None:
        """Everything is stored (or `error` says why it is not)."""


class Subscriber:
    """A session that has subscriptions or is connected here: persistent ones of all nodes, ephemeral ones of this."""

    __slots__ = (
        "birth",
        "client_id",
        "connection",
        "later",
        "persistent",
        "session",
        "session_id",
        "stored_seq",
        "subscriptions",
        "unsure",
    )

    def __init__(self, session_id: bytes, client_id: str, birth: int, persistent: bool) -> None:
        self.session_id = session_id
        self.client_id = client_id
        self.birth = birth
        self.persistent = persistent
        #: None while no connection of this node has it.
        self.session: Session | None = None
        self.connection: Receiver | None = None
        self.subscriptions: dict[str, Subscription] = {}
        #: The last message that was stored while no session was here to be told.
        self.stored_seq = 0
        #: There may be one of which nobody knows the seq.
        self.unsure = False
        #: Changes by other nodes while it was connected here: those of a newer owner, in force when this one has gone.
        self.later: list[RouteChange] | None = None


class Subscription:
    """One subscription with its options, ready to match."""

    __slots__ = ("identifier", "options", "since", "subscriber")

    def __init__(self, subscriber: Subscriber, options: int, identifier: int, since: int = 0) -> None:
        self.subscriber = subscriber
        self.options = options
        self.identifier = identifier
        #: `Given.count` when it was made.
        self.since = since

    @property
    def qos(self) -> int:
        """Maximum QoS granted."""
        return self.options & 3

    @property
    def no_local(self) -> bool:
        """Do not send the subscriber its own messages."""
        return bool(self.options & 4)

    @property
    def retain_as_published(self) -> bool:
        """Keep the RETAIN flag of live messages."""
        return bool(self.options & 8)


class GroupMember:
    """One session of a group, with the options of its subscription.

    What waits in the queue is not poured out to it before its SUBACK: until then it is not `ready`."""

    __slots__ = ("ready", "subscriber", "subscription")

    def __init__(self, subscriber: Subscriber, subscription: Subscription) -> None:
        self.subscriber = subscriber
        self.subscription = subscription
        self.ready = True

    @property
    def subscription_ids(self) -> Sequence[int]:
        """As they go into PUBLISH."""
        return (self.subscription.identifier,) if self.subscription.identifier else ()


class Entry:
    """What one session gets of a topic: one copy at the highest QoS with all subscription identifiers."""

    __slots__ = ("no_local", "own", "qos", "retain_as_published", "since", "subscriber", "subscription_ids")

    def __init__(self, subscriptions: Sequence[Subscription]) -> None:
        self.subscriber = subscriptions[0].subscriber
        self.qos = max(item.qos for item in subscriptions)  # [MQTT-3.3.4-2]
        self.retain_as_published = any(item.retain_as_published for item in subscriptions)
        self.subscription_ids = tuple(item.identifier for item in subscriptions if item.identifier)  # [MQTT-3.3.4-4]
        self.no_local = any(item.no_local for item in subscriptions)
        self.since = min(item.since for item in subscriptions)
        #: What the session gets of its own messages, where No Local makes a difference.
        self.own: Entry | None = None
        if self.no_local:
            others = [item for item in subscriptions if not item.no_local]
            if others:
                self.own = Entry(others)

    def without_own(self, publisher: bytes) -> Entry | None:
        """What the session gets of a message of this publisher (a session id); None: nothing [MQTT-3.8.3-3]."""
        return self.own if self.no_local and self.subscriber.session_id == publisher else self


class RemoteNode:
    """Another node, with the plain filters that it has ephemeral sessions for."""

    __slots__ = ("filters", "target")

    def __init__(self, member: bytes) -> None:
        self.target = NodeTarget(member)
        #: Those of shared subscriptions as well, with their `$share/name/`.
        self.filters: set[str] = set()


class Route:
    """All receivers of one topic, on all nodes.

    `live0` lists the sessions if QoS 0 packets may be passed on unchanged to all. At QoS 1 and 2, up to `run_qos`, runs
    of packets that are not retained may take the way `run_way`; 0: none. `nodes` are other nodes with matching
    ephemeral sessions. `delay` is set for a topic that only says when and where to publish. `refusal` is 0, or the
    reason code for clients that publish to the topic, and `text` why.
    """

    __slots__ = (
        "_arrivals",
        "_ephemeral",
        "counts",
        "delay",
        "entries",
        "groups",
        "live0",
        "nobody",
        "nodes",
        "refusal",
        "run_qos",
        "run_way",
        "text",
        "topic",
        "topic_name",
    )

    def __init__(
        self,
        topic_name: str,
        topic: bytes,
        entries: Sequence[Entry],
        groups: Sequence[Group],
        nodes: Sequence[NodeTarget] = (),
        delay: Delay | None = None,
        refusal: int = 0,
        text: str = "",
        counts: Sequence[TopicCount] = (),
    ) -> None:
        #: Who counts messages of the topic: then none takes the direct way.
        self.counts = counts
        self.refusal = refusal
        self.text = text
        self.topic_name = topic_name
        self.topic = topic
        self.entries = entries
        self.groups = groups
        self.nodes = nodes
        self.delay = delay
        #: What a publisher is told as "no matching subscribers".
        self.nobody = not entries and not groups and not nodes and delay is None
        simple = (
            not groups
            and delay is None
            and not refusal
            and not counts
            and not any(entry.no_local or entry.subscription_ids for entry in entries)
        )
        self.live0 = [entry.subscriber for entry in entries] if simple else None
        bare = delay is None and not refusal and not counts
        if groups and bare and not entries and not nodes:
            self.run_way, self.run_qos = TO_QUEUES, 1
        else:
            self.run_way, self.run_qos = self._way_of_runs() if simple else (NO_WAY, 0)
        self._arrivals: tuple[list[Subscriber], list[Entry]] | None = None
        self._ephemeral: list[Entry] | None = None

    def _way_of_runs(self) -> tuple[int, int]:
        """The one that all receivers have in common, and up to which QoS they get messages as these are."""
        entries = self.entries
        if not entries:
            return (TO_NODES, 1) if self.nodes else (NO_WAY, 0)
        granted = min(entry.qos for entry in entries)
        kept = sum(entry.subscriber.persistent for entry in entries)
        if self.nodes or not granted or kept not in (0, len(entries)):
            return NO_WAY, 0
        return (TO_QUEUES, 1) if kept else (TO_CLIENTS, granted)

    def leave_direct_ways(self) -> None:
        """Somebody follows the topic: each of its messages is looked at."""
        self.live0 = None
        self.run_way, self.run_qos = NO_WAY, 0

    def ephemeral(self) -> list[Entry]:
        """The ephemeral sessions here, for QoS 1 packets of another node."""
        found = self._ephemeral
        if found is None:
            found = self._ephemeral = [entry for entry in self.entries if not entry.subscriber.persistent]
        return found

    def arrivals(self) -> tuple[list[Subscriber], list[Entry]]:
        """The ephemeral sessions here, for a QoS 0 packet of another node: those that get it unchanged, and others."""
        found = self._arrivals
        if found is None:
            ephemeral = [entry for entry in self.entries if not entry.subscriber.persistent]
            plain = [entry.subscriber for entry in ephemeral if not entry.subscription_ids]
            found = self._arrivals = plain, [entry for entry in ephemeral if entry.subscription_ids]
        return found


def merge(
    topic_name: str,
    topic: bytes,
    matched: Iterable[Subscription | Group | RemoteNode],
    refusal: int = 0,
    text: str = "",
    counts: Sequence[TopicCount] = (),
) -> Route:
    """Combine overlapping subscriptions of each session, and of each other node."""
    by_subscriber: dict[bytes, list[Subscription]] = {}
    groups: list[Group] = []
    nodes: dict[bytes, NodeTarget] = {}
    for item in matched:
        if isinstance(item, Subscription):
            by_subscriber.setdefault(item.subscriber.session_id, []).append(item)
        elif isinstance(item, RemoteNode):
            nodes[item.target.node] = item.target
        else:
            groups.append(item)
    entries = [Entry(items) for items in by_subscriber.values()]
    return Route(topic_name, topic, entries, groups, tuple(nodes.values()), None, refusal, text, counts)
