"""The port between a broker node and what all nodes share.

The broker knows the cluster by this module alone. `cluster.memory` and `cluster.redis` implement
`Cluster`; one contract suite runs against both.

Calls come in two shapes. Rare, slow ones (attach, subscribe, a page of a queue) are coroutines. Those of
the hot path (`publish`, `acknowledge`, ...) only append to the current batch and return at once; `flush`
sends the batch in one write, and answers arrive as plain calls (`Publication.stored`, the `then`
callables), each exactly once and in the order of the calls of one session, from within a reactor turn.
After a lost store connection the unanswered suffix is sent again in order; nothing is answered twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from broker.message import Message
from broker.session.run import Run
from cluster.inspection import Inspection
from cluster.registry import Registry
from cluster.telemetry import Telemetry

#: How long a node may go on without an answer of the store before others take it for dead.
LEASE_S = 6.0

#: Reads of a queue and of retained values return at most this many records.
PAGE_LIMIT = 100

#: Packet id of a queued message is 1 + (seq mod SEQ_MODULUS) (GUARANTEES section 4, rule 1).
SEQ_MODULUS = 57344

#: What a target of a publication got instead of a sequence number.
REFUSED_FULL = -1
REFUSED_GONE = -2

#: How a shared subscription chooses the member that gets a message. The first four look at what members may still
#: take; STICKY, HASH_TOPIC and HASH_CLIENTID name one member, whose node keeps the message until that has room.
ROUND_ROBIN = "round_robin"
RANDOM = "random"
LOCAL = "local"
LEAST_INFLIGHT = "least_inflight"
STICKY = "sticky"
HASH_TOPIC = "hash_topic"
HASH_CLIENTID = "hash_clientid"
STRATEGIES = (ROUND_ROBIN, RANDOM, LOCAL, LEAST_INFLIGHT, STICKY, HASH_TOPIC, HASH_CLIENTID)


def shared_group_id(topic_filter: str) -> bytes:
    """The 128-bit id of a shared subscription; `topic_filter` is the whole `$share/name/filter` [MQTT-4.8.2-1]."""
    return hashlib.blake2b(topic_filter.encode("utf-8", "surrogatepass"), digest_size=16, person=b"group").digest()


class SessionRef:
    """One ownership of one session: what every call that changes the session must carry.

    `session_id` is the 128-bit hash of the client id, `birth` tells apart sessions that had the same
    client id one after the other, `token` names this ownership; the store refuses any other.
    """

    __slots__ = ("birth", "client_id", "session_id", "token")

    def __init__(self, client_id: str, session_id: bytes, birth: int, token: bytes) -> None:
        self.client_id = client_id
        self.session_id = session_id
        self.birth = birth
        self.token = token


class StoredSubscription:
    """A subscription as the store keeps it; `topic_filter` is as the client sent it, `$share/` included.

    `subscription_identifier` is 0 for none. `options` is the subscription options byte of MQTT 5
    (QoS in bits 0-1, No Local 2, Retain As Published 3, Retain Handling 4-5).
    """

    __slots__ = ("options", "subscription_identifier", "topic_filter")

    def __init__(self, topic_filter: str, options: int, subscription_identifier: int = 0) -> None:
        self.topic_filter = topic_filter
        self.options = options
        self.subscription_identifier = subscription_identifier


class Route:
    """One subscription of one persistent session in the route table."""

    __slots__ = ("birth", "client_id", "session_id", "subscription")

    def __init__(self, session_id: bytes, client_id: str, birth: int, subscription: StoredSubscription) -> None:
        self.session_id = session_id
        self.client_id = client_id
        self.birth = birth
        self.subscription = subscription


class NodeRoute:
    """A filter that a live node has connected, ephemeral sessions for; for `$share/name/filter`: connected members of
    any kind. `node` is `<name>:<incarnation>`."""

    __slots__ = ("node", "topic_filter")

    def __init__(self, node: bytes, topic_filter: str) -> None:
        self.node = node
        self.topic_filter = topic_filter


class RouteChange:
    """A change of the route table that another node made (or a reload found): exactly one of `session`, `node` is set.

    For a removal only the ids and `topic_filter` count; `birth` of a removed session's route is that of the change:
    a younger session keeps its route."""

    __slots__ = ("node", "removed", "session")

    def __init__(self, removed: bool, session: Route | None = None, node: NodeRoute | None = None) -> None:
        self.removed = removed
        self.session = session
        self.node = node


class StoredWill:
    """A will at rest: the message (its `message_id` makes it effectively once) and its delay in seconds."""

    __slots__ = ("delay_s", "message")

    def __init__(self, message: Message, delay_s: int) -> None:
        self.message = message
        self.delay_s = delay_s


#: The identity of clients that nobody checked.
NOBODY: Final = ""


class AttachRequest:
    """A client connects. `expiry_s` is the Session Expiry Interval (0: ends with the connection,
    0xFFFFFFFF: never). `will` replaces whatever will the session had. `identity` is whose session it is ("": that of
    clients that nobody checked); None: that does not matter, and stays as it is. With another one the session is
    refused; but a clean start with an identity that was proved may end one of nobody's, while nobody has it."""

    __slots__ = ("clean_start", "client_id", "expiry_s", "identity", "will")

    def __init__(
        self,
        client_id: str,
        clean_start: bool,
        expiry_s: int,
        will: StoredWill | None = None,
        identity: str | None = None,
    ) -> None:
        self.client_id = client_id
        self.clean_start = clean_start
        self.expiry_s = expiry_s
        self.will = will
        self.identity = identity

    def may_end(self, identity: str | None) -> bool:
        """Whether a session of this other identity, which nobody is connected with, makes way for a new one."""
        return self.clean_start and identity == NOBODY and bool(self.identity)


class Attachment:
    """The session as found by `attach`.

    `last_seq` is the highest sequence number ever given, `lowest_seq` the lowest that is still queued or in
    release (last_seq + 1 if none). Queued messages with seq <= `sent_seq` may have been sent before and are
    resent with DUP. `releasing` are seqs past PUBREC waiting for PUBCOMP, `inbound` maps packet ids
    of inbound QoS 2 to message ids. `ended_will` is the will of an older session that `clean_start` ended
    while its will was still due: the caller publishes it. `epoch` grows with every attach of this client id, on
    whatever node and whatever became of the session in between; it is about store time in ms.
    """

    __slots__ = (
        "ended_subscriptions",
        "ended_will",
        "epoch",
        "inbound",
        "last_seq",
        "lowest_seq",
        "ref",
        "releasing",
        "sent_seq",
        "session_present",
        "subscriptions",
    )

    def __init__(
        self,
        ref: SessionRef,
        session_present: bool,
        subscriptions: list[StoredSubscription],
        last_seq: int = 0,
        lowest_seq: int = 1,
        sent_seq: int = 0,
        releasing: list[int] | None = None,
        inbound: dict[int, bytes] | None = None,
        ended_will: StoredWill | None = None,
        ended_subscriptions: list[StoredSubscription] | None = None,
        epoch: int = 0,
    ) -> None:
        self.ref = ref
        self.session_present = session_present
        self.subscriptions = subscriptions
        self.last_seq = last_seq
        self.lowest_seq = lowest_seq
        self.sent_seq = sent_seq
        self.releasing = releasing if releasing is not None else []
        self.inbound = inbound if inbound is not None else {}
        self.ended_will = ended_will
        self.ended_subscriptions = ended_subscriptions if ended_subscriptions is not None else []
        self.epoch = epoch


class QueuedMessage:
    """A message of a session's queue. `qos` is the delivery QoS, `retain` the flag to send,
    `subscription_ids` all identifiers of the matching subscriptions."""

    __slots__ = ("message", "qos", "retain", "seq", "subscription_ids")

    def __init__(self, seq: int, message: Message, qos: int, retain: bool, subscription_ids: Sequence[int]) -> None:
        self.seq = seq
        self.message = message
        self.qos = qos
        self.retain = retain
        self.subscription_ids = subscription_ids


class GroupEntry:
    """A message of a shared subscription's queue that this node has to give to one of its members; `entry_id` names it
    until `group_acknowledge`.

    `kept_for` is the session id that it was given to for good (QoS 2; perhaps by a node that died), or b"".
    `member` is the session id that the strategy chose (b"": any member of this node).
    """

    __slots__ = ("entry_id", "kept_for", "member", "message")

    def __init__(self, entry_id: bytes, message: Message, kept_for: bytes = b"", member: bytes = b"") -> None:
        self.entry_id = entry_id
        self.message = message
        self.kept_for = kept_for
        self.member = member


class GroupMemberState:
    """A connected member of a shared subscription on this node, as the store knows it: `window` is how many
    unacknowledged messages it may have (GUARANTEES section 6)."""

    __slots__ = ("birth", "persistent", "session_id", "window")

    def __init__(self, session_id: bytes, birth: int, persistent: bool, window: int) -> None:
        self.session_id = session_id
        self.birth = birth
        self.persistent = persistent
        self.window = window


class Target:
    """A persistent session that a publication must reach; `seq` is filled in when it is stored.

    With `qos` 0 nothing is stored: the session gets it if it is connected to another node. With `after_seq` >= 0
    nothing is stored if a message of the same topic came into the queue behind that seq: this one is older, and 0 is
    reported.
    """

    __slots__ = ("after_seq", "birth", "qos", "retain", "seq", "seqs", "session_id", "subscription_ids")

    def __init__(
        self,
        session_id: bytes,
        birth: int,
        qos: int,
        retain: bool,
        subscription_ids: Sequence[int],
        after_seq: int = -1,
    ) -> None:
        self.session_id = session_id
        self.birth = birth
        self.qos = qos
        self.retain = retain
        self.subscription_ids = subscription_ids
        self.after_seq = after_seq
        #: > 0 once stored; REFUSED_FULL (queue bound) or REFUSED_GONE (session wiped since) otherwise.
        self.seq = 0
        #: Instead of `seq` where the publication has `payloads`: one for each.
        self.seqs: Sequence[int] = ()


class GroupTarget:
    """A shared-subscription group that a publication must reach (QoS 1 and 2), filled in when it is stored.

    `entry` is set if this node is to give it to one of its members. `depth` is then the number of entries in the
    group's queue, or REFUSED_FULL (bound), REFUSED_GONE (no such group), 0 for a message id that the group had before.

    Where the publication has `payloads`, there is one for each of `entry_ids` (b"" for what is not for this node),
    `chosen` (`GroupEntry.member`) and `depths` instead.
    """

    __slots__ = ("chosen", "depth", "depths", "entry", "entry_ids", "group_id")

    def __init__(self, group_id: bytes) -> None:
        self.group_id = group_id
        self.entry: GroupEntry | None = None
        self.depth = 0
        self.entry_ids: Sequence[bytes] = ()
        self.chosen: Sequence[bytes] = ()
        self.depths: Sequence[int] = ()


class NodeTarget:
    """Another node that a publication must reach: its ephemeral sessions that match (`live`), and for QoS 0 one
    member each of `groups` (group ids). `node` is `<name>:<incarnation>`."""

    __slots__ = ("groups", "live", "node")

    def __init__(self, node: bytes, live: bool = True, groups: Sequence[bytes] = ()) -> None:
        self.node = node
        self.live = live
        self.groups = groups


class Extension:
    """What `Publication.rematch` found in addition."""

    __slots__ = ("groups", "nodes", "targets")

    def __init__(self, targets: Sequence[Target], groups: Sequence[GroupTarget], nodes: Sequence[NodeTarget]) -> None:
        self.targets = targets
        self.groups = groups
        self.nodes = nodes


class Publication:
    """One message on its way into the store: into queues, into group queues, to other nodes, and into the retained set.

    `retain` stores the message as the topic's retained one (or clears it if the payload is empty).
    `deduplicate` (QoS 2, wills): targets that already got `message.message_id` get no second copy
    and report the seq 0. With `delay_s` nothing of this happens now: the message is kept, and comes back with
    `ClusterEvents.delayed_due`. With `packets` it is these, which go to other nodes as they are and nowhere else;
    `message` says what they have in common. Only where `Cluster.relays` is true.

    A message of QoS 1 or 2 is answered only when the route table that it was matched with is known to have been the
    newest when the message came (G5). Where it was not, `rematch` is called with the newer one in force.
    Subclasses override `stored`, and those that were matched `rematch` and `wants`.

    With `payloads`, which have one length, it stands for so many messages that follow each other and are alike but for
    that: at QoS 1, not retained, for sessions and groups alone. Each of them is stored as it would be by itself.
    """

    __slots__ = (
        "deduplicate",
        "delay_s",
        "error",
        "groups",
        "message",
        "nodes",
        "packets",
        "payloads",
        "retain",
        "targets",
    )

    def __init__(
        self,
        message: Message,
        targets: Sequence[Target] = (),
        groups: Sequence[GroupTarget] = (),
        retain: bool = False,
        deduplicate: bool = False,
        nodes: Sequence[NodeTarget] = (),
        delay_s: int = 0,
        packets: Run | None = None,
    ) -> None:
        self.message = message
        self.packets = packets
        self.targets = targets
        self.groups = groups
        self.nodes = nodes
        self.retain = retain
        self.deduplicate = deduplicate
        self.delay_s = delay_s
        self.payloads: Sequence[bytes] = ()
        #: None: everything is as safe as the durability class says. Else nothing may be acked.
        self.error: Exception | None = None

    @property
    def patient(self) -> bool:
        """What a full store does with it: False: refuses it (StoreFull). True: it waits, before everything that came
        later for the same session, group or retained topic, until there is room. Asked anew each time the store
        has no room, so whoever does not wait any more may say so."""
        return False

    def rematch(self) -> Extension | None:
        """Routes changed while it was on its way: add what matches now and was not there before to `targets`, `groups`
        and `nodes`, and return it; None if there is nothing. Called in the order of `publish`."""
        return None

    def wants(self, target: Target) -> bool:
        """Whether the session still matches: it unsubscribed from something since the message was matched."""
        return True

    def reached(self, target: Target) -> None:
        """The store answered for a session: called once for each of `targets`, unless that was refused with an error.
        What one session is told of keeps the order of its queue, however long other parts of a publication take."""

    def given(self, target: GroupTarget) -> None:
        """The same for one of `groups`. What one group is given by this and by `ClusterEvents.group_entries` keeps the
        order of its queue."""

    def stored(self) -> None:
        """Called exactly once when the store has answered for all parts (or, with `error` set, has refused): what the
        publisher waits for. After `reached` and `given`."""


class ClusterEvents(Protocol):
    """What the cluster tells the broker."""

    def restore(self, routes: Iterable[Route], nodes: Iterable[NodeRoute]) -> None:
        """The route table at start, before the first client."""

    def routes_changed(self, changes: Sequence[RouteChange]) -> None:
        """Other nodes changed the route table; in order. `Publication.rematch` of what is on its way follows."""

    def node_gone(self, node: bytes) -> None:
        """Another node is dead: nothing is routed there any more."""

    def deliver(self, message: Message, live: bool, groups: Sequence[bytes]) -> None:
        """A message of another node: for the matching ephemeral sessions here if `live`, and (QoS 0) for one connected
        member of each of `groups`. It is as safe as it will be: nothing waits for an answer."""

    def deliver_frame(self, family: int, run: bytes, count: int = 1) -> None:
        """QoS 0 PUBLISH packets without properties, for the matching ephemeral sessions here; family 4 or 5. `count` of
        them, which differ in the payload alone (see `broker.codec.runs`)."""

    def deliver_packets(self, packets: Run) -> None:
        """QoS 1 PUBLISH packets of a client of another node, for the matching ephemeral sessions here."""

    def deliver_stored(
        self,
        session_id: bytes,
        seq: int,
        message: Message | None,
        qos: int,
        retain: bool,
        subscription_ids: Sequence[int],
    ) -> None:
        """Another node stored a message for a session that is connected here: as `Publication.stored` tells of those
        from here. seq 0: a QoS 0 message that is not stored. `message` None: look into the queue (`Session.look`)."""

    def group_entries(self, group_id: bytes, entries: Sequence[GroupEntry], depth: int) -> None:
        """The store gave this node messages of a group, for its members. Those it cannot give away go back with
        `group_acknowledge(..., again=True)`. `depth` is the length of the group's queue (-1: not known); while
        that is over half of its bound this is also called without entries, several times a second, so that
        publishers which are held up go on."""

    def delayed_due(self, message: Message, then: Callable[[Exception | None], None]) -> None:
        """A delayed message is to be published now, in the order of the calls; it is marked as done when `then(None)`
        is called, at once or later, and comes again after `then(error)`. It may also come again without that."""

    def messages_dropped(self, reason: str, count: int) -> None:
        """Messages that reach nobody, for the counters."""

    async def will_due(self, client_id: str, will: StoredWill) -> None:
        """A will is to be published now; when this returns without error it is marked as done."""

    async def session_ended(
        self, client_id: str, session_id: bytes, birth: int, subscriptions: Sequence[StoredSubscription]
    ) -> None:
        """A session expired and is gone from the store; its will went before. A younger one may be in its place."""

    def session_lost(self, ref: SessionRef) -> None:
        """Another connection owns the session now: close this one (Session taken over)."""

    def subscriptions(self, ref: SessionRef) -> Sequence[StoredSubscription] | None:
        """What the session has here now, with changes that the store does not have yet; None where it is not connected
        here any more, or is not persistent. The store came back, and perhaps without its last writes."""

    def session_wanted(self, client_id: str) -> bool:
        """A client with this id connects to another node: close the connection here (Session taken over), which
        detaches it. False if there is none."""

    def store_changed(self, available: bool) -> None:
        """The store became reachable or unreachable."""

    def store_emptied(self) -> None:
        """The store came back without its data: no session that this node knows exists any more."""


class Readiness(Protocol):
    """What a poller calls when a file descriptor is ready; neither may block or raise."""

    def readable(self) -> None:
        """Data, end of file or an error waits."""

    def writable(self) -> None:
        """There is room to write again."""


class Poller(Protocol):
    """The part of the reactor that a store connection needs."""

    def register(self, fd: int, handler: Readiness) -> None:
        """Watch for reading."""

    def watch_writable(self, fd: int, wanted: bool) -> None:
        """Watch for writing too, or no longer."""

    def unregister(self, fd: int) -> None:
        """Forget the descriptor; call before closing it."""

    def wake(self) -> None:
        """Work was added outside a turn: run one soon, so that it is flushed."""


class StoreHealth:
    """What a node knows of its store and its cluster. `durability` is a class of GUARANTEES section 2. `members` are
    the live nodes, `<name>:<incarnation>`, with this one."""

    __slots__ = ("available", "durability", "kind", "members", "round_trip_ms", "version")

    def __init__(
        self,
        kind: str,
        version: str,
        durability: str,
        available: bool,
        round_trip_ms: float,
        members: Sequence[str] = (),
    ) -> None:
        self.kind = kind
        self.version = version
        self.durability = durability
        self.available = available
        self.round_trip_ms = round_trip_ms
        self.members = members


#: What `attach_then` tells: the attachment, an error, or what is to be awaited for one of them.
AttachThen = Callable[[Attachment | Exception | Callable[[], Awaitable[Attachment]]], None]


class Cluster(Protocol):
    """State that outlives a connection and, with a real store, a node. `registry` is what else the nodes share,
    `inspection` what operators may ask and change."""

    registry: Registry
    inspection: Inspection

    async def serve(self, events: ClusterEvents, poller: Poller, *, task_status: object) -> None:
        """Joins, calls `events.restore`, reports started, then keeps the lease and the timers until cancelled;
        on cancellation it gives up the lease (sessions were detached before).

        Raises ClusterError with a one-line reason if the store cannot be used, Fenced if other nodes buried this one.
        `task_status` is trio's.
        """

    def health(self) -> StoreHealth:
        """Without I/O."""

    def telemetry(self) -> Telemetry:
        """What this node counts of its way to the store. Without I/O."""

    def now_ms(self) -> int:
        """Store time (epoch, ms) as well as this node knows it. Without I/O."""

    def alone(self) -> bool:
        """True while this is surely the only live member and a beat was answered in the last 2 s:
        messages for its own ephemeral sessions then need no store before the ack."""

    def holds_lease(self) -> bool:
        """False once this node may have been taken for dead, by a clock that also counts while it was paused. Asked at
        the beginning of every turn: without I/O."""

    async def attach(self, request: AttachRequest) -> Attachment:
        """Takes ownership of the client's session, creating it if need be; another node that has it is asked to let it
        go, and fenced if it does not within a second. Atomic; after StoreUnavailable
        the outcome is unknown and attaching again is right. Raises StoreUnavailable, StoreFull (new session only), and
        NotOwner for a session of another identity, before anybody is asked and anything is changed (G19)."""

    def attach_then(self, request: AttachRequest, then: AttachThen) -> None:
        """As `attach`, without a task where one answer of the store is enough: `then` is called once, later, with the
        attachment, with the error that `attach` would have raised, or (perhaps at once) with what is still to be
        awaited for one of them: whoever gets that has to. Nothing ends it early: it takes as long as the store does."""

    async def connected(self, client_id: str, identity: str) -> bool:
        """Whether a connection of this identity owns the session now, on whatever node. Raises StoreUnavailable."""

    async def detach(self, ref: SessionRef, expiry_s: int, sent_seq: int, will: bool) -> None:
        """The connection is gone. `will` keeps the session's will to be published after its delay
        (`will_due`); else it is deleted. With `expiry_s` 0 the session ends at once (a will that is kept is
        then due at once). Routes of an ephemeral session go too. Idempotent. Raises StoreUnavailable; ignores a
        session that is owned by another token."""

    async def subscribe(self, ref: SessionRef, subscriptions: Sequence[StoredSubscription], persistent: bool) -> None:
        """Tells all nodes of subscriptions, which the caller's own table has already; stores those of a persistent
        session. Replaces equal filters. When it returns, a message that any node receives from now on is delivered
        (G5), and `retained_match` knows all that was stored before. Idempotent.
        Raises SessionLost, StoreUnavailable, StoreFull."""

    async def unsubscribe(self, ref: SessionRef, topic_filters: Sequence[str], persistent: bool) -> None:
        """When it returns, no message that any node receives from now on is queued for these. Idempotent.
        Raises SessionLost, StoreUnavailable."""

    def publish(self, publication: Publication) -> None:
        """Adds to the batch of this turn; `publication.stored` follows."""

    def forward(self, nodes: Sequence[NodeTarget], family: int, run: bytes, count: int) -> None:
        """Adds a run of QoS 0 PUBLISH packets, as they came (see `broker.codec.runs`; family 4: MQTT 3, 5: MQTT 5), to
        the batch of this turn: for the matching ephemeral sessions of other nodes. In order with `publish`. Nothing
        follows."""

    def relays(self) -> bool:
        """Whether all other nodes understand packets of QoS 1 as they came, see `Publication`."""

    def flush(self) -> None:
        """The end of a turn: sends the batch."""

    async def page(self, ref: SessionRef, after_seq: int, limit: int) -> list[QueuedMessage]:
        """Up to `limit` (<= PAGE_LIMIT) queued messages with seq > `after_seq`, in order, over any gaps; [] at the end.
        Records of an unknown format are skipped and reported, never dropped. Raises StoreUnavailable."""

    def acknowledge(self, ref: SessionRef, seq: int, sent_seq: int) -> None:
        """The receiver is done with it (PUBACK, PUBCOMP, or the message is dropped): remove it from the queue
        and from the releasing set. Batched; `sent_seq` is the highest seq sent."""

    def received(self, ref: SessionRef, seq: int, sent_seq: int, then: Callable[[Exception | None], None]) -> None:
        """PUBREC came: seq goes from the queue to the releasing set; PUBREL may leave once `then(None)` is called."""

    def reserve(
        self, ref: SessionRef, packet_id: int, message_id: bytes, then: Callable[[Exception | None], None]
    ) -> None:
        """Keeps the message id of an inbound QoS 2 packet id (persistent sessions), before its message is published."""

    def release(
        self, ref: SessionRef, packet_id: int, message_id: bytes, then: Callable[[Exception | None], None]
    ) -> None:
        """PUBREL came: the packet id is free again; PUBCOMP may leave when `then(None)` is called."""

    def retained_match(self, topic_filter: str) -> Iterator[str | None]:
        """Topics with a retained message that match, lazily, from the node's mirror; the cost is what it returns.
        None comes now and then where much was looked at and little found: time to let others work.
        The mirror knows a topic from the moment `publish` was called. Stays valid while topics come and go."""

    def retained_children(self, prefix: Sequence[str]) -> Iterator[tuple[str, bool, int]]:
        """The levels that follow these levels ([]: the first ones) in topics with a retained message, from the node's
        mirror, in no order: level, whether the topic that ends there has a message, and how many topics lie below it.
        Lazily: the cost is what is taken. Stays valid while topics come and go."""

    async def retained_values(self, topics: Sequence[str]) -> list[Message | None]:
        """The retained messages of at most PAGE_LIMIT topics; None where there is none (any more) or it expired.
        Raises StoreUnavailable."""

    async def group_members(self, topic_filter: str, strategy: str, members: Sequence[GroupMemberState]) -> None:
        """These are the connected members of a shared subscription (`$share/name/filter`) on this node: all of them,
        each time. When it returns the group has its queue, and other nodes know of members here. A group exists as
        long as any session is a member, connected or (persistent ones, by `subscribe`) not. Entries follow with
        `group_entries`: never more unacknowledged ones than the windows of the members together. Idempotent.
        Raises StoreUnavailable."""

    def group_acknowledge(
        self,
        group_id: bytes,
        entry_id: bytes,
        then: Callable[[Exception | None], None] | None,
        keep_for: bytes = b"",
        again: bool = False,
    ) -> None:
        """The entry is done with: remove it. With `keep_for`, a session id, it stays and is that session's for good.
        With `again` it goes to another member, before anything newer: perhaps on another node, perhaps here.
        Batched; `then`, if given, is called when the store has answered."""

    def group_done(self, group_id: bytes, entry_ids: Sequence[bytes]) -> None:
        """These entries are done with, oldest first: as `group_acknowledge` without `then` for each."""
