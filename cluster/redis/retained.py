"""Retained messages: a mirror of the topic names in this node, the messages in 16 hashes of the store."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import cast

from broker.errors import ClusterError
from broker.log import get_logger
from broker.message import Message
from broker.topics.retained import RetainedIndex
from cluster.api import Poller
from cluster.keys import RETAINED, Keys, shard_of
from cluster.policy import MAX_CALL_BYTES, MAX_CALL_SESSIONS
from cluster.records import FORMAT, unpack_message
from cluster.redis.calls import gather
from cluster.redis.lanes import Lane, Outbox
from cluster.redis.link import RedisLink
from cluster.redis.membership import Membership
from cluster.redis.pipeline import Part, Pipeline
from cluster.redis.publish import Item
from cluster.redis.requests import result

_SCAN_COUNT = 500
_RECORD_HEAD = bytes((FORMAT,))

_log = get_logger("cluster")


class RetainedLane(Lane):
    """Retained messages of one shard: set or, with an empty payload, removed."""

    __slots__ = ("_items", "_retained", "pending")

    def __init__(self, prefix: bytes, link: Pipeline, member: Membership, outbox: Outbox, retained: Retained) -> None:
        super().__init__(prefix, link, member, outbox)
        self.pending: deque[Item] = deque()
        self._items: list[Item] = []
        self._retained = retained

    def has_more(self) -> bool:
        """See `Lane`."""
        return bool(self.pending)

    def build(self) -> tuple[Part, ...] | None:
        """See `Lane`. Either sets or removals, since only these may run in a full store."""
        if not self.pending:
            return None
        sets = bool(self.pending[0].publication.message.payload)
        arguments: list[Part] = []
        size = 0
        while self.pending and len(self._items) < MAX_CALL_SESSIONS and size < MAX_CALL_BYTES:
            item = self.pending[0]
            message = item.publication.message
            if bool(message.payload) is not sets:
                break
            self.pending.popleft()
            self._items.append(item)
            arguments.append(message.topic)
            if sets:
                arguments.append(_RECORD_HEAD + item.body)
            size += len(item.body)
        return (b"rk1_retain" if sets else b"rk1_unretain", *arguments)

    def done(self, value: bytes) -> None:
        """See `Lane`."""
        items, self._items = self._items, []
        for item in items:
            self._retained.answered(item)
            item.answered()

    def failed(self, error: ClusterError, full: bool) -> bool:
        """See `Lane`. A full store refuses all that set something and do not wait, as in the other lanes; a removal
        goes on, but for those of topics whose older message waits."""
        refused, self._items = self._items, []
        removals: list[Item] = []
        waiting: list[Item] = []
        if full:
            items = [*refused, *self.pending]
            refused = []
            topics: set[bytes] = set()
            for item in items:
                message = item.publication.message
                if not message.payload and message.topic not in topics:
                    removals.append(item)
                elif message.payload and not item.publication.patient:
                    refused.append(item)
                else:
                    topics.add(message.topic)
                    waiting.append(item)
            self.pending = deque(removals + waiting)
        for item in refused:
            item.publication.error = error
            self._retained.answered(item)
            item.answered()
        return bool(waiting) and not removals


class Retained:
    """The retained set: `index` knows a topic from `publish` on, until its removal was answered."""

    def __init__(self, keys: Keys, link: RedisLink, poller: Poller, member: Membership, outbox: Outbox) -> None:
        self.index = RetainedIndex()
        self._link = link
        self._poller = poller
        self._prefixes = keys.retained
        self._lanes = [RetainedLane(prefix, link, member, outbox, self) for prefix in keys.retained]
        #: Topics whose latest publication is not answered yet.
        self._latest: dict[bytes, Item] = {}

    def add(self, item: Item) -> None:
        """A publication with `retain`."""
        message = item.publication.message
        if message.payload:
            topic = message.topic.decode()
            self.index.add(topic)
            self.index.touch(topic)
        self._latest[message.topic] = item
        item.waiting += 1
        lane = self._lanes[shard_of(message.topic)]
        lane.pending.append(item)
        lane.touch()

    def answered(self, item: Item) -> None:
        """The store has written or refused it."""
        message = item.publication.message
        if self._latest.get(message.topic) is not item:
            return
        del self._latest[message.topic]
        if not message.payload and item.publication.error is None:
            self.index.discard(message.topic.decode())

    def forget(self) -> None:
        """The store is empty; what is on its way to it is not."""
        self.index = RetainedIndex()
        for topic, item in self._latest.items():
            if item.publication.message.payload:
                self.index.add(topic.decode())

    async def load(self) -> None:
        """Fills the mirror from the store."""
        for prefix in self._prefixes:
            cursor: object = b"0"
            while True:
                reply = await self._link.call("HSCAN", prefix + RETAINED, cast(bytes, cursor), "COUNT", _SCAN_COUNT)
                cursor, fields = cast("list[object]", reply)
                for topic in cast("list[bytes]", fields)[::2]:
                    self.index.add(topic.decode())
                if cursor == b"0":
                    break

    async def values(self, topics: Sequence[str], now_ms: int) -> list[Message | None]:
        """See `Cluster.retained_values`. What is not written yet counts as written."""
        found: dict[str, Message | None] = {}
        wanted: dict[int, list[str]] = {}
        for topic in topics:
            name = topic.encode()
            pending = self._latest.get(name)
            if pending is None:
                wanted.setdefault(shard_of(name), []).append(topic)
            else:
                message = pending.publication.message
                found[topic] = message if message.payload and message.remaining_s(now_ms) else None
        stamps = {topic: self.index.stamp_of(topic) for group in wanted.values() for topic in group}
        replies = await gather(
            self._link,
            self._poller,
            [("HMGET", self._prefixes[shard] + RETAINED, *group) for shard, group in wanted.items()],
        )
        for (shard, group), reply in zip(wanted.items(), replies, strict=True):
            for topic, record in zip(group, cast("list[bytes | None]", result(reply)), strict=True):
                found[topic] = self._value(shard, topic, record, now_ms, stamps[topic])
        return [found[topic] for topic in topics]

    def _value(self, shard: int, topic: str, record: bytes | None, now_ms: int, stamp: int) -> Message | None:
        if record is None:
            self._forget(topic, stamp)
            return None
        message = unpack_message(record)
        if message is None:
            _log.warning("cluster.unknown_record", kind="retained", format=record[0])
            return None
        if message.remaining_s(now_ms) != 0:
            return message

        def expired(reply: object) -> None:
            if reply == 1:
                self._forget(topic, stamp)

        self._link.command(("FCALL", "rk1_expire_retained", 1, self._prefixes[shard], topic, record), expired)
        return None

    def _forget(self, topic: str, stamp: int) -> None:
        """The store has no such topic, or had none: unless it was published since the stamp."""
        if topic.encode() not in self._latest and self.index.stamp_of(topic) == stamp:
            self.index.discard(topic)
