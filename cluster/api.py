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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from broker.message import Message

#: How long a node may go on without an answer of the store before others take it for dead.
LEASE_S = 6.0

#: Reads of a queue and of retained values return at most this many records.
PAGE_LIMIT = 100

#: Packet id of a queued message is 1 + (seq mod SEQ_MODULUS) (GUARANTEES section 4, rule 1).
SEQ_MODULUS = 57344

#: What a target of a publication got instead of a sequence number.
REFUSED_FULL = -1
REFUSED_GONE = -2


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
    """One subscription of one persistent session in the route table, as restored when a node starts."""

    __slots__ = ("birth", "client_id", "session_id", "subscription")

    def __init__(self, session_id: bytes, client_id: str, birth: int, subscription: StoredSubscription) -> None:
        self.session_id = session_id
        self.client_id = client_id
        self.birth = birth
        self.subscription = subscription


class StoredWill:
    """A will at rest: the message (its `message_id` makes it effectively once) and its delay in seconds."""

    __slots__ = ("delay_s", "message")

    def __init__(self, message: Message, delay_s: int) -> None:
        self.message = message
        self.delay_s = delay_s


class AttachRequest:
    """A client connects. `expiry_s` is the Session Expiry Interval (0: ends with the connection,
    0xFFFFFFFF: never). `will` replaces whatever will the session had."""

    __slots__ = ("clean_start", "client_id", "expiry_s", "will")

    def __init__(self, client_id: str, clean_start: bool, expiry_s: int, will: StoredWill | None = None) -> None:
        self.client_id = client_id
        self.clean_start = clean_start
        self.expiry_s = expiry_s
        self.will = will


class Attachment:
    """The session as found by `attach`.

    `last_seq` is the highest sequence number ever given, `lowest_seq` the lowest that is still queued or in
    release (last_seq + 1 if none). Queued messages with seq <= `sent_seq` may have been sent before and are
    resent with DUP. `releasing` are seqs past PUBREC waiting for PUBCOMP, `inbound` maps packet ids
    of inbound QoS 2 to message ids. `ended_will` is the will of an older session that `clean_start` ended
    while its will was still due: the caller publishes it.
    """

    __slots__ = (
        "ended_subscriptions",
        "ended_will",
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
    """A message of a shared subscription's queue; `entry_id` names it until `group_acknowledge`.

    `kept_for` is the session id that it was given to for good (QoS 2), or b"".
    """

    __slots__ = ("entry_id", "kept_for", "message")

    def __init__(self, entry_id: bytes, message: Message, kept_for: bytes = b"") -> None:
        self.entry_id = entry_id
        self.message = message
        self.kept_for = kept_for


class Target:
    """A persistent session that a publication must reach; `seq` is filled in when it is stored."""

    __slots__ = ("birth", "qos", "retain", "seq", "session_id", "subscription_ids")

    def __init__(
        self,
        session_id: bytes,
        birth: int,
        qos: int,
        retain: bool,
        subscription_ids: Sequence[int],
    ) -> None:
        self.session_id = session_id
        self.birth = birth
        self.qos = qos
        self.retain = retain
        self.subscription_ids = subscription_ids
        #: > 0 once stored; REFUSED_FULL (queue bound) or REFUSED_GONE (session wiped since) otherwise.
        self.seq = 0


class GroupTarget:
    """A shared-subscription group that a publication must reach; `entry_id` is filled in when stored
    and stays b"" where the group's bound refused the message."""

    __slots__ = ("entry_id", "group_id")

    def __init__(self, group_id: bytes) -> None:
        self.group_id = group_id
        self.entry_id = b""


class Publication:
    """One message on its way into the store: into queues, into group queues, and into the retained set.

    `retain` stores the message as the topic's retained one (or clears it if the payload is empty).
    `deduplicate` (QoS 2, wills): targets that already got `message.message_id` get no second copy
    and report the seq 0. Subclasses override `stored`.
    """

    __slots__ = ("deduplicate", "error", "groups", "message", "retain", "targets")

    def __init__(
        self,
        message: Message,
        targets: Sequence[Target] = (),
        groups: Sequence[GroupTarget] = (),
        retain: bool = False,
        deduplicate: bool = False,
    ) -> None:
        self.message = message
        self.targets = targets
        self.groups = groups
        self.retain = retain
        self.deduplicate = deduplicate
        #: None: everything is as safe as the durability class says. Else nothing may be acked.
        self.error: Exception | None = None

    @property
    def patient(self) -> bool:
        """What a full store does with it: False: refuses it (StoreFull). True: it waits, before everything that came
        later for the same session, group or retained topic, until there is room. Asked anew each time the store
        has no room, so whoever does not wait any more may say so."""
        return False

    def stored(self) -> None:
        """Called exactly once when the store has answered (or, with `error` set, has refused)."""


class ClusterEvents(Protocol):
    """What the cluster tells the broker."""

    def restore(self, routes: Iterable[Route]) -> None:
        """The route table at start, before the first client."""

    async def will_due(self, client_id: str, will: StoredWill) -> None:
        """A will is to be published now; when this returns without error it is marked as done."""

    async def session_ended(
        self, client_id: str, session_id: bytes, birth: int, subscriptions: Sequence[StoredSubscription]
    ) -> None:
        """A session expired and is gone from the store; its will went before. A younger one may be in its place."""

    def session_lost(self, ref: SessionRef) -> None:
        """Another connection owns the session now: close this one (Session taken over)."""

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
    """What a node knows about its store. `durability` is a class of GUARANTEES section 2."""

    __slots__ = ("available", "durability", "kind", "round_trip_ms", "version")

    def __init__(self, kind: str, version: str, durability: str, available: bool, round_trip_ms: float) -> None:
        self.kind = kind
        self.version = version
        self.durability = durability
        self.available = available
        self.round_trip_ms = round_trip_ms


class Cluster(Protocol):
    """State that outlives a connection and, with a real store, a node."""

    async def serve(self, events: ClusterEvents, poller: Poller, *, task_status: object) -> None:
        """Joins, calls `events.restore`, reports started, then keeps the lease and the timers until cancelled;
        on cancellation it gives up the lease (sessions were detached before).

        Raises ClusterError with a one-line reason if the store cannot be used. `task_status` is trio's.
        """

    def health(self) -> StoreHealth:
        """Without I/O."""

    def now_ms(self) -> int:
        """Store time (epoch, ms) as well as this node knows it. Without I/O."""

    def alone(self) -> bool:
        """True while this is surely the only live member and a beat was answered in the last 2 s:
        messages for its own ephemeral sessions then need no store before the ack."""

    async def attach(self, request: AttachRequest) -> Attachment:
        """Takes ownership of the client's session, creating it if need be. Atomic; after StoreUnavailable
        the outcome is unknown and attaching again is right. Raises StoreUnavailable, StoreFull (new session only)."""

    async def detach(self, ref: SessionRef, expiry_s: int, sent_seq: int, will: bool) -> None:
        """The connection is gone. `will` keeps the session's will to be published after its delay
        (`will_due`); else it is deleted. With `expiry_s` 0 the session ends at once (a will that is kept is
        then due at once). Idempotent. Raises StoreUnavailable; ignores a session that is owned by another token."""

    async def subscribe(self, ref: SessionRef, subscriptions: Sequence[StoredSubscription]) -> None:
        """Stores subscriptions of a persistent session and their routes; replaces equal filters. Idempotent.
        Raises SessionLost, StoreUnavailable, StoreFull."""

    async def unsubscribe(self, ref: SessionRef, topic_filters: Sequence[str]) -> None:
        """Idempotent. Raises SessionLost, StoreUnavailable."""

    def publish(self, publication: Publication) -> None:
        """Adds to the batch of this turn; `publication.stored` follows."""

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

    async def retained_values(self, topics: Sequence[str]) -> list[Message | None]:
        """The retained messages of at most PAGE_LIMIT topics; None where there is none (any more) or it expired.
        Raises StoreUnavailable."""

    async def declare_group(self, group_id: bytes, exists: bool) -> None:
        """A first member of the shared-subscription group subscribed, or its last one is gone: then the queue
        is deleted. Groups without a persistent member are also deleted when a node starts. Idempotent."""

    async def group_page(self, group_id: bytes, after_entry_id: bytes, limit: int) -> list[GroupEntry]:
        """Up to `limit` entries of the group's queue after `after_entry_id` (b"" for all), oldest first."""

    def group_acknowledge(
        self,
        group_id: bytes,
        entry_id: bytes,
        then: Callable[[Exception | None], None] | None,
        keep_for: bytes = b"",
    ) -> None:
        """The entry is done with: remove it. With `keep_for`, a session id, it stays and is that session's for good.
        Batched; `then`, if given, is called when the store has answered."""
