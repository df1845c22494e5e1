"""Retained messages: a mirror of the topic names in this node, the messages in 16 hashes of the store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import trio

from broker.errors import ClusterError
from broker.log import get_logger
from broker.message import Message
from broker.topics.names import has_wildcard, is_shared
from broker.topics.retained import RetainedIndex
from cluster.api import Poller
from cluster.keys import RETAINED, RETAINED_LOG, RETAINED_VERSION, Keys, shard_of
from cluster.policy import MAX_CALL_BYTES, MAX_CALL_SESSIONS
from cluster.records import FORMAT, unpack_answer, unpack_message
from cluster.redis.calls import gather
from cluster.redis.lanes import Lane, Outbox
from cluster.redis.membership import Membership
from cluster.redis.pipeline import Part
from cluster.redis.publish import Item
from cluster.redis.requests import result
from cluster.redis.versions import Versions

if TYPE_CHECKING:
    from cluster.redis.links import Link

_SCAN_COUNT = 500
_LOG_COUNT = 1000
_CATCH_UP_S = 1.0
_RECORD_HEAD = bytes((FORMAT,))

_log = get_logger("cluster")


class RetainedLane(Lane):
    """Retained messages of one shard: set or, with an empty payload, removed."""

    __slots__ = ("_items", "_retained", "pending")

    def __init__(self, prefix: bytes, link: Link, member: Membership, outbox: Outbox, retained: Retained) -> None:
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

    def __init__(
        self, keys: Keys, link: Link, poller: Poller, member: Membership, outbox: Outbox, versions: Versions
    ) -> None:
        self.index = RetainedIndex()
        self._link = link
        self._member = member
        self._versions = versions
        self._poller = poller
        self._prefixes = keys.retained
        self._lanes = [RetainedLane(prefix, link, member, outbox, self) for prefix in keys.retained]
        #: Topics whose latest publication is not answered yet.
        self._latest: dict[bytes, Item] = {}
        #: Up to which change of its names the index knows each shard.
        self._cursors = [0] * len(keys.retained)
        #: What the log says at these places; None: not known.
        self._marks: list[bytes | None] = [None] * len(keys.retained)
        #: Shards whose store may have another history than the one that the index is of.
        self._doubtful: set[int] = set()
        self._catching_up = trio.Lock()

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
        if item.checked:
            self._versions.read(item)
        if self._latest.get(message.topic) is not item:
            return
        del self._latest[message.topic]
        if not message.payload and item.publication.error is None:
            self.index.discard(message.topic.decode())

    def forget(self) -> None:
        """The store is empty; what is on its way to it is not."""
        self.index = RetainedIndex()
        self._cursors = [0] * len(self._cursors)
        self._marks = [None] * len(self._cursors)
        for topic, item in self._latest.items():
            if item.publication.message.payload:
                self.index.add(topic.decode())

    def doubt(self, serves: Callable[[bytes], bool]) -> None:
        """There is a new connection to the server that has these prefixes: it may have lost what was read, and others
        may have written on since."""
        self._doubtful.update(shard for shard, prefix in enumerate(self._prefixes) if serves(prefix))

    async def load(self) -> None:
        """Fills the mirror from the store. Raises ClusterError."""
        shards = range(len(self._prefixes))
        for shard, version in zip(shards, await self._read_versions(shards), strict=True):
            await self._load_shard(shard, version)

    async def _read_versions(self, shards: Sequence[int]) -> list[int]:
        replies = await gather(
            self._link, self._poller, [("GET", self._prefixes[shard] + RETAINED_VERSION) for shard in shards]
        )
        return [int(cast("bytes | None", result(reply)) or 0) for reply in replies]

    async def _load_shard(self, shard: int, version: int) -> None:
        """The names of one shard, as of this version or later."""
        before = {topic for topic in self.index if shard_of(topic.encode()) == shard}
        stamps = {topic: self.index.stamp_of(topic) for topic in before}
        cursor: object = b"0"
        while True:
            reply = await self._link.call(
                "HSCAN", self._prefixes[shard] + RETAINED, cast(bytes, cursor), "COUNT", _SCAN_COUNT
            )
            cursor, fields = cast("list[object]", reply)
            for name in cast("list[bytes]", fields)[::2]:
                topic = name.decode()
                before.discard(topic)
                if name not in self._latest:
                    self.index.add(topic)
            if cursor == b"0":
                break
        for topic in before:
            self._forget(topic, stamps[topic])
        await self._moved([(shard, version)])

    async def _moved(self, places: Sequence[tuple[int, int]]) -> None:
        """The index knows these shards up to these changes, in the history that is in the store now."""
        for (shard, version), mark in zip(places, await self._read_marks(places), strict=True):
            self._cursors[shard], self._marks[shard] = version, mark

    async def _read_marks(self, places: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """What the log says at a place of each shard; None if that is not there any more."""
        replies = await gather(
            self._link,
            self._poller,
            [
                ("XRANGE", self._prefixes[shard] + RETAINED_LOG, b"0-%d" % version, b"0-%d" % version)
                for shard, version in places
            ],
        )
        found = [cast("list[tuple[bytes, list[bytes]]]", result(reply)) for reply in replies]
        return [b"".join(entries[0][1]) if entries else None for entries in found]

    async def _doubts(self, doubtful: set[int]) -> set[int]:
        """Those of these shards whose store has another history than before, as far as that can be told."""
        self._doubtful -= doubtful
        places = [(shard, self._cursors[shard]) for shard in doubtful if self._cursors[shard]]
        try:
            marks = await self._read_marks(places)
        except ClusterError:
            self._doubtful |= doubtful
            raise
        return {
            shard for (shard, _), mark in zip(places, marks, strict=True) if mark is None or mark != self._marks[shard]
        }

    async def catch_up(self, topic_filters: Sequence[str]) -> None:
        """When it returns, the mirror knows all that matches and was stored before. Raises ClusterError."""
        if self._member.alone():
            return
        filters = [each for each in topic_filters if not is_shared(each)]
        exact = [each.encode() for each in filters if not has_wildcard(each)]
        if len(exact) < len(filters):
            await self._catch_up(range(len(self._prefixes)))
            return
        replies = await gather(
            self._link,
            self._poller,
            [("HEXISTS", self._prefixes[shard_of(topic)] + RETAINED, topic) for topic in exact],
        )
        for topic, reply in zip(exact, replies, strict=True):
            if result(reply) and topic not in self._latest:
                self.index.add(topic.decode())

    async def _catch_up(self, shards: Sequence[int]) -> None:
        # Whoever comes while another is at it has to look for itself: what it must see may be younger.
        async with self._catching_up:
            foreign = await self._doubts(self._doubtful.intersection(shards))
            versions = await self._read_versions(shards)
            alone = self._member.alone()
            moved: list[tuple[int, int]] = []
            for shard, version in zip(shards, versions, strict=True):
                if shard in foreign or version < self._cursors[shard]:
                    await self._load_shard(shard, version)  # another history of the store
                elif version > self._cursors[shard]:
                    if alone:
                        moved.append((shard, version))  # nobody else changed anything
                    else:
                        await self._read_log(shard, version)
            if moved:
                await self._moved(moved)

    async def _read_log(self, shard: int, version: int) -> None:
        while self._cursors[shard] < version:
            cursor, clock = self._cursors[shard], self.index.clock
            reply = await self._link.call(
                "XRANGE", self._prefixes[shard] + RETAINED_LOG, b"(0-%d" % cursor, "+", "COUNT", _LOG_COUNT
            )
            entries = cast("list[tuple[bytes, list[bytes]]]", reply)
            if not entries or int(entries[0][0][2:]) != cursor + 1:
                await self._load_shard(shard, version)
                return
            for entry_id, fields in entries:
                values = unpack_answer(fields[1])
                for present, name in zip(values[::2], values[1::2], strict=True):
                    if name in self._latest:
                        continue  # what is on its way from here comes later
                    topic = cast(bytes, name).decode()
                    if present:
                        self.index.add(topic)
                    elif self.index.stamp_of(topic) <= clock:
                        self.index.discard(topic)
                self._cursors[shard], self._marks[shard] = int(entry_id[2:]), b"".join(fields)

    async def serve(self) -> None:
        """Keeps the mirror from falling far behind; until cancelled."""
        while True:
            await trio.sleep(_CATCH_UP_S)
            shards = [shard for shard, prefix in enumerate(self._prefixes) if self._link.up_for(prefix)]
            try:
                await self._catch_up(shards)
            except ClusterError as error:
                _log.warning("cluster.retained_delayed", reason=str(error)[:200])

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
