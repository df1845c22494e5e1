"""Messages for the ephemeral sessions of other nodes: one lane to the in-stream of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

import trio

from broker.codec.runs import split_run
from broker.errors import ClusterError
from broker.session.run import Run
from cluster.api import NodeTarget
from cluster.keys import Keys
from cluster.layout import RUNS
from cluster.policy import MAX_CALL_BYTES
from cluster.records import PUSHED_MESSAGE, PUSHED_RUN, pack_push
from cluster.redis.lanes import Lane, Outbox
from cluster.redis.membership import Membership, monotonic_s
from cluster.redis.pipeline import Part
from cluster.redis.publish import Item

if TYPE_CHECKING:
    from cluster.redis.links import Link

#: How long publications wait for a node whose stream is full before it counts as overloaded (GUARANTEES section 6).
OVERLOADED_S: Final = 5.0
_RETRY_S = 0.05
#: QoS 0 messages beyond so many calls' worth are dropped.
_MAX_CHUNKS = 32
_MESSAGE_BYTES = 32

Dropped = Callable[[str, int], None]


class _Chunk:
    """What goes in one call: the flat list of `pack_push`, and who waits for the answer."""

    __slots__ = ("items", "parts", "size")

    def __init__(self) -> None:
        self.parts: list[object] = []
        self.items: list[Item] = []
        self.size = 0

    def count(self) -> int:
        """The number of messages."""
        at = count = 0
        parts = self.parts
        while at < len(parts):
            kind = cast(int, parts[at])
            count += cast(int, parts[at + 2]) if kind > PUSHED_RUN else 1
            at += 5 if kind > PUSHED_RUN else 4 if kind == PUSHED_MESSAGE else 2
        return count


class NodeLane(Lane):
    """What goes to one other node."""

    __slots__ = ("_busy_since_s", "_chunk", "_chunks", "_dropped", "_gone", "_last", "_nodes", "blocked", "overloaded")

    def __init__(
        self, prefix: bytes, link: Link, member: Membership, outbox: Outbox, nodes: Nodes, dropped: Dropped
    ) -> None:
        super().__init__(prefix, link, member, outbox)
        self._nodes = nodes
        self._dropped = dropped
        self._last = _Chunk()
        self._chunks: deque[_Chunk] = deque((self._last,))
        #: Of the call that was built last.
        self._chunk: _Chunk | None = None
        self._busy_since_s = 0.0
        #: The stream is full: the call under way is tried again in a moment.
        self.blocked = False
        #: It was full for so long that nothing waits for it any more.
        self.overloaded = False
        self._gone = False

    def packets(self, family: int, run: bytes, count: int) -> None:
        """QoS 0 packets as they came."""
        chunk = self._last
        if chunk.size >= MAX_CALL_BYTES:
            if len(self._chunks) >= _MAX_CHUNKS:
                self._dropped("node_overloaded", count)
                return
            chunk = self._next_chunk()
        if count == 1:
            chunk.parts += (family, run)
        elif self._member.lowest_feature >= RUNS:
            chunk.parts += (PUSHED_RUN + family, run, count, 0, b"")
        else:
            for frame in split_run(run, count):
                chunk.parts += (family, frame)
        chunk.size += len(run) + _MESSAGE_BYTES * count
        if not self.dirty:
            self.touch()

    def relay(self, packets: Run, item: Item) -> None:
        """QoS 1 packets as they came; `item` is told when they are there."""
        chunk = self._last
        if chunk.size >= MAX_CALL_BYTES:
            chunk = self._next_chunk()
        chunk.parts += (
            PUSHED_RUN + packets.family,
            packets.data,
            packets.count,
            packets.accepted_at_ms,
            packets.publisher,
        )
        chunk.size += len(packets.data) + _MESSAGE_BYTES * packets.count
        chunk.items.append(item)
        if not self.dirty:
            self.touch()

    def message(self, body: bytes, target: NodeTarget, item: Item | None) -> None:
        """A packed message; `item`, of QoS 1 or 2, is told when it is there."""
        chunk = self._last
        if chunk.size >= MAX_CALL_BYTES:
            if item is None and len(self._chunks) >= _MAX_CHUNKS:
                self._dropped("node_overloaded", 1)
                return
            chunk = self._next_chunk()
        chunk.parts += (PUSHED_MESSAGE, body, target.live, target.groups)
        chunk.size += len(body) + _MESSAGE_BYTES
        if item is not None:
            chunk.items.append(item)
        if not self.dirty:
            self.touch()

    def _next_chunk(self) -> _Chunk:
        self._last = _Chunk()
        self._chunks.append(self._last)
        return self._last

    def pump(self) -> None:
        """See `Lane`."""
        if self.blocked or self._gone:
            self.dirty = False
        else:
            super().pump()

    def has_more(self) -> bool:
        """See `Lane`."""
        return bool(self._chunks[0].parts)

    def build(self) -> tuple[Part, ...] | None:
        """See `Lane`. All that gathered, up to the bound of a call."""
        chunk = self._chunks[0]
        if not chunk.parts:
            return None
        self._chunks.popleft()
        if not self._chunks:
            self._next_chunk()
        self._chunk = chunk
        return (b"rk1_push", pack_push(chunk.parts))

    def done(self, value: bytes) -> None:
        """See `Lane`. A node without a stream is dead: nobody waits for it."""
        self.overloaded = False
        self._busy_since_s = 0.0
        self._end(None)

    def _end(self, error: ClusterError | None) -> None:
        chunk, self._chunk = self._chunk, None
        if chunk is not None:
            _answer(chunk.items, error)

    def busy(self) -> None:
        """See `Lane`. Publishers wait for a while (they are not acknowledged); then its messages are dropped."""
        now_s = monotonic_s()
        self._busy_since_s = self._busy_since_s or now_s
        if self.overloaded or now_s - self._busy_since_s > OVERLOADED_S:
            self.overloaded = True
            self._call = None
            if self._chunk is not None:
                self._dropped("node_overloaded", self._chunk.count())
            self._end(None)
            if self.has_more():
                self.touch()
        else:
            self.blocked = True
            self._nodes.blocked(self)

    def failed(self, error: ClusterError, full: bool) -> bool:
        """See `Lane`. In a full store what does not wait is refused, whichever call it is in."""
        if not full:
            self._end(error)
            return False
        first, self._chunk = self._chunk, None
        waiting: deque[_Chunk] = deque()
        refused: list[Item] = []
        for chunk in (first, *self._chunks):
            if chunk is None:
                continue
            patient: list[Item] = []
            for item in chunk.items:
                (patient if item.publication.patient else refused).append(item)
            if patient:
                chunk.items = patient
                waiting.append(chunk)
            elif chunk.parts:
                self._dropped("store_full", chunk.count() - sum(map(_messages, chunk.items)))
        self._chunks = waiting
        self._next_chunk()
        _answer(refused, error)
        return bool(waiting)

    def abandon(self) -> None:
        """The node is dead: nobody waits for it any more."""
        self._gone = True
        chunks, self._chunks = self._chunks, deque()
        self._next_chunk()
        self._end(None)
        for chunk in chunks:
            _answer(chunk.items, None)


def _messages(item: Item) -> int:
    packets = item.publication.packets
    return 1 if packets is None else packets.count


def _answer(items: Sequence[Item], error: ClusterError | None) -> None:
    for item in items:
        if error is not None:
            item.publication.error = error
        item.answered()


class Nodes:
    """The lanes to all other nodes, made when there is something to send."""

    def __init__(
        self,
        keys: Keys,
        link: Link,
        member: Membership,
        outbox: Outbox,
        dropped: Dropped,
        wake: Callable[[], None],
    ) -> None:
        self._keys = keys
        self._link = link
        self._member = member
        self._outbox = outbox
        self._dropped = dropped
        self._wake = wake
        self._lanes: dict[bytes, NodeLane] = {}
        self._blocked: list[NodeLane] = []
        self._filled = trio.Event()

    def _lane(self, node: bytes) -> NodeLane:
        lane = self._lanes.get(node)
        if lane is None:
            lane = self._lanes[node] = NodeLane(
                self._keys.node(node), self._link, self._member, self._outbox, self, self._dropped
            )
        return lane

    def forward(self, nodes: Sequence[NodeTarget], family: int, run: bytes, count: int) -> None:
        """See `Cluster.forward`."""
        lanes = self._lanes
        for target in nodes:
            lane = lanes.get(target.node)
            if lane is None:
                lane = self._lane(target.node)
            lane.packets(family, run, count)

    def relays(self) -> bool:
        """See `Cluster.relays`."""
        return self._member.lowest_feature >= RUNS

    def relay(self, targets: Sequence[NodeTarget], packets: Run, item: Item) -> None:
        """QoS 1 packets to each; `item` has to count an answer of each already."""
        for target in targets:
            self._lane(target.node).relay(packets, item)

    def send(self, targets: Sequence[NodeTarget], body: bytes, item: Item | None) -> None:
        """A packed message to each; `item` has to count an answer of each already."""
        for target in targets:
            self._lane(target.node).message(body, target, item)

    def gone(self, node: bytes) -> None:
        """It is dead."""
        lane = self._lanes.pop(node, None)
        if lane is not None:
            lane.abandon()

    def blocked(self, lane: NodeLane) -> None:
        """Its stream is full."""
        self._blocked.append(lane)
        self._filled.set()

    async def serve(self) -> None:
        """Tries again where a stream was full; until cancelled."""
        while True:
            await self._filled.wait()
            await trio.sleep(_RETRY_S)
            self._filled = trio.Event()
            blocked, self._blocked = self._blocked, []
            for lane in blocked:
                lane.blocked = False
                lane.touch()
            self._wake()
