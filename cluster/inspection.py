"""What operators may ask of the whole cluster, and change, whatever node they ask: sessions, queues, groups, delayed
messages, and the store itself. `Cluster.inspection` has one.

Nothing here is for the hot path, and none of it needs to own what it looks at. What comes back is as of some moment
during the call, not one moment for all of it. All methods raise StoreUnavailable (of a change the outcome is unknown,
and doing it again is right), and ClusterError for what the store refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from broker.message import Message
    from cluster.api import QueuedMessage, StoredSubscription

#: Lists have at most so many items.
LIST_LIMIT: Final = 1000

#: Groups are ordered by so many bytes of their names: all of these are looked at for each list.
PLACE_BYTES: Final = 256

#: Where a delayed message stands: when it is due (store time, ms), the number of its partition, its message id.
Place = tuple[int, int, bytes]


class SessionState:
    """One session. `node` is the name of the node where its client is connected, "" if it is not (`connected`).

    `expiry_s` is the Session Expiry Interval (0: ends with its connection, 0xFFFFFFFF: never), `expires_at_ms` the
    store time at which it ends (0: not running out), `created_ms` that of its beginning (0: not known). `has_identity`:
    it belongs to a user. `subscriptions`, `queued`, `queued_bytes` as the store counts them; `oldest_ms` is the age of
    the oldest queued message (0: none); `in_flight` are queued messages that were sent and not acknowledged, as far as
    the store was told; `releasing` past PUBREC; `inbound` QoS 2 messages of the client that were not released."""

    __slots__ = (
        "birth",
        "client_id",
        "connected",
        "created_ms",
        "expires_at_ms",
        "expiry_s",
        "has_identity",
        "in_flight",
        "inbound",
        "node",
        "oldest_ms",
        "queued",
        "queued_bytes",
        "releasing",
        "subscriptions",
    )

    def __init__(
        self,
        client_id: str,
        birth: int,
        node: str,
        connected: bool,
        expiry_s: int,
        expires_at_ms: int,
        created_ms: int,
        has_identity: bool,
        subscriptions: int,
        queued: int,
        queued_bytes: int,
        oldest_ms: int,
        in_flight: int,
        releasing: int,
        inbound: int,
    ) -> None:
        self.client_id = client_id
        self.birth = birth
        self.node = node
        self.connected = connected
        self.expiry_s = expiry_s
        self.expires_at_ms = expires_at_ms
        self.created_ms = created_ms
        self.has_identity = has_identity
        self.subscriptions = subscriptions
        self.queued = queued
        self.queued_bytes = queued_bytes
        self.oldest_ms = oldest_ms
        self.in_flight = in_flight
        self.releasing = releasing
        self.inbound = inbound


class GroupMember:
    """A session of a shared subscription; `client_id` is "" if it is not known (any more), `node` the name of the node
    where it is connected, "" for none."""

    __slots__ = ("client_id", "node", "persistent", "session_id")

    def __init__(self, session_id: bytes, client_id: str, node: str, persistent: bool) -> None:
        self.session_id = session_id
        self.client_id = client_id
        self.node = node
        self.persistent = persistent


class GroupInfo:
    """A shared subscription; `topic_filter` is the whole `$share/name/filter`, "" where it is not known (made by a node
    of an older version). `members` sessions belong to it, `members_by_node` are those connected, by node name. `length`
    messages are in its queue: `lag` given to no node yet, `pending` given and not acknowledged, `pending_by_node` by
    node name; `oldest_ms` is the age of the oldest (0: none)."""

    __slots__ = (
        "group_id",
        "lag",
        "length",
        "members",
        "members_by_node",
        "oldest_ms",
        "pending",
        "pending_by_node",
        "strategy",
        "topic_filter",
    )

    def __init__(
        self,
        group_id: bytes,
        topic_filter: str,
        strategy: str,
        members: int,
        members_by_node: dict[str, int],
        lag: int,
        pending: int,
        pending_by_node: dict[str, int],
        length: int,
        oldest_ms: int,
    ) -> None:
        self.group_id = group_id
        self.topic_filter = topic_filter
        self.strategy = strategy
        self.members = members
        self.members_by_node = members_by_node
        self.lag = lag
        self.pending = pending
        self.pending_by_node = pending_by_node
        self.length = length
        self.oldest_ms = oldest_ms

    @property
    def name(self) -> str:
        """Its filter, or its id as hex where that is not known."""
        return self.topic_filter or self.group_id.hex()

    @property
    def place(self) -> str:
        """Where it stands among all groups: places sort as text."""
        return group_place(self.topic_filter.encode(), self.group_id)


@dataclass(frozen=True, slots=True)
class GroupTotals:
    """All shared subscriptions together: how many there are, the sums of what `GroupInfo` has of each, the `lag` of the
    one that has most, and the age of the oldest message of any (0: none)."""

    groups: int = 0
    lag: int = 0
    lag_max: int = 0
    pending: int = 0
    oldest_ms: int = 0


class DelayedMessage:
    """A message that is published at `due_ms`, store time. `delayed_id` is good for `after` and `cancel_delayed`; ids
    sort as text by the time that they are due."""

    __slots__ = ("delayed_id", "due_ms", "message")

    def __init__(self, delayed_id: str, due_ms: int, message: Message) -> None:
        self.delayed_id = delayed_id
        self.due_ms = due_ms
        self.message = message


class StoreMemory:
    """One primary server of the store. `limit_bytes` is its maxmemory (0: none), `host_bytes` the memory of its host
    (0: not known), `keys` how many keys its database has, those of other users of the store included."""

    __slots__ = ("address", "aof", "host_bytes", "keys", "limit_bytes", "replicas", "role", "used_bytes", "version")

    def __init__(
        self,
        address: str,
        used_bytes: int,
        limit_bytes: int,
        host_bytes: int,
        keys: int,
        version: str,
        role: str,
        replicas: int,
        aof: bool,
    ) -> None:
        self.address = address
        self.used_bytes = used_bytes
        self.limit_bytes = limit_bytes
        self.host_bytes = host_bytes
        self.keys = keys
        self.version = version
        self.role = role
        self.replicas = replicas
        self.aof = aof


class Inspection(Protocol):
    """See the module."""

    async def sessions(self, after: str, limit: int, prefix: str = "") -> list[SessionState]:
        """At most `limit` (<= LIST_LIMIT) persistent sessions (expiry over 0) of the whole cluster whose client ids
        begin with `prefix` and come behind `after`, in the order of these; [] at the end. Less than `limit` need not be
        the end. Sessions made by a node of an older version come in when they are next connected."""

    async def session(self, client_id: str) -> SessionState | None:
        """The session of a client, persistent or not; None if there is none."""

    async def subscriptions(self, client_id: str) -> list[StoredSubscription] | None:
        """What is stored of a session's subscriptions, in no order; None if there is no such session. The store has
        none of a session that ends with its connection: its node knows them."""

    async def end_session(self, client_id: str) -> bool:
        """End a session that nobody is connected with, as if it had expired, with its queue and routes; a will that
        waits for its delay is not published. False: there is none. Raises SessionConnected (nothing is changed)."""

    async def queue(self, client_id: str, after_seq: int, limit: int) -> list[QueuedMessage]:
        """Up to `limit` (<= PAGE_LIMIT) queued messages with seq > `after_seq`, in order; [] at the end, and without
        such a session. They stay where they are."""

    async def change_subscriptions(
        self, client_id: str, add: Sequence[StoredSubscription], remove: Sequence[str]
    ) -> bool:
        """Subscribe and unsubscribe for a session that nobody is connected with; when it returns, messages that any
        node receives from now on are matched with that (G5). Retained messages are not sent for it. Idempotent. False:
        there is no such session. Raises SessionConnected (nothing is changed: that node has to do it), StoreFull."""

    async def groups(self, after: str, limit: int, prefix: str = "") -> list[GroupInfo]:
        """At most `limit` (<= LIST_LIMIT) shared subscriptions that have members, whose names begin with `prefix`,
        behind the place `after` ("" for the beginning), ordered by name (as far as the first PLACE_BYTES bytes of it
        go); [] at the end. Less than `limit` need not be the end. What came within the last seconds may be missing
        where there are many."""

    async def group(self, name: str) -> GroupInfo | None:
        """The one of this name; None if it has no members."""

    async def group_members(self, name: str, limit: int) -> list[GroupMember]:
        """At most `limit` (<= LIST_LIMIT) members of it, any of them, in no order."""

    async def group_totals(self) -> GroupTotals:
        """What waits in all shared subscriptions of the cluster, with connected members or without; light enough to be
        asked every few seconds."""

    async def delayed(self, after: str, limit: int) -> list[DelayedMessage]:
        """At most `limit` (<= LIST_LIMIT) delayed messages behind the id `after` ("" for the beginning), by the time
        that they are due; [] at the end."""

    async def delayed_message(self, delayed_id: str) -> DelayedMessage | None:
        """The one of this id; None if there is none (any more), or it is being published. Raises ValueError for what is
        no such id."""

    async def cancel_delayed(self, delayed_id: str) -> bool:
        """Take a delayed message back. False: there is none, or it is being published. Raises ValueError for what is no
        such id."""

    async def memory(self) -> list[StoreMemory]:
        """Every primary server of the store; none without a store."""

    async def session_count(self) -> int:
        """How many persistent sessions there are, connected or not. Those that began before nodes kept a list of them
        count from their next connection on."""

    async def retained_count(self) -> tuple[int, int | None]:
        """How many retained messages there are, and the bytes that they take, where that is known without counting."""


def group_place(name: bytes, group_id: bytes) -> str:
    """The place of a group in the order of names; `name` is empty where it is not known."""
    return f"{(name or group_id.hex().encode())[:PLACE_BYTES].hex()}-{group_id.hex()}"


def group_id_of(place: str) -> bytes:
    """The id of the group at a place."""
    return bytes.fromhex(place.rpartition("-")[2])


def make_id(place: Place) -> str:
    """The id of the delayed message at a place; as text they sort as places do."""
    return f"{place[0]:015d}-{place[1]:04d}-{place[2].hex()}"


def parse_id(text: str) -> Place:
    """The opposite of `make_id`. Raises ValueError."""
    due, _, rest = text.partition("-")
    number, _, name = rest.partition("-")
    if not (len(due) == 15 and len(number) == 4 and due.isdecimal() and number.isdecimal() and text.isascii()):
        raise ValueError(f"no id of a delayed message: {text[:80]!r}")
    return int(due), int(number), bytes.fromhex(name)
