"""Publications of a turn, spread over the lanes, and answered when all of their parts are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from broker.errors import StoreUnavailable
from broker.session.run import Run
from cluster.api import Extension, GroupTarget, NodeTarget, Publication, Target
from cluster.keys import Keys, partition_of
from cluster.policy import ClusterLimits
from cluster.records import pack_bodies, pack_body
from cluster.redis.callbacks import call_stored
from cluster.redis.generations import Generations
from cluster.redis.groups import Groups
from cluster.redis.lanes import Outbox
from cluster.redis.membership import Membership, monotonic_s
from cluster.redis.nodes import Dropped, Nodes
from cluster.redis.publish import Item, PartitionLane
from cluster.redis.retained import Retained
from cluster.redis.versions import Versions

if TYPE_CHECKING:
    from cluster.redis.links import Link

#: Message ids whose partitions are remembered, for their memory to be cut short at PUBREL.
_REMEMBERED_IDS = 10_000
_TARGET_BYTES = 100


class Batch:
    """What `publish` gathers until the end of the turn. `nodes` are the lanes to other nodes."""

    def __init__(
        self,
        keys: Keys,
        link: Link,
        member: Membership,
        outbox: Outbox,
        limits: ClusterLimits,
        versions: Versions,
        generations: Generations,
        groups: Groups,
        retained: Retained,
        wake: Callable[[], None],
        dropped: Dropped,
    ) -> None:
        self.nodes = Nodes(keys, link, member, outbox, dropped, wake)
        self._keys = keys
        self._count = len(keys.partitions)
        self._member = member
        self._limits = limits
        self._versions = versions
        versions.extend = self._extend
        self._generations = generations
        #: See `publish.Stores`.
        self.group_stored = groups.stored
        self.group_run_stored = groups.run_stored
        self._retained = retained
        self._wake = wake
        self.partitions = [
            PartitionLane(number, self._count, prefix, link, member, outbox, limits, self)
            for number, prefix in enumerate(keys.partitions)
        ]
        #: Whether this is the only member, asked once in a turn.
        self._alone: bool | None = None
        #: Publications that need nothing of the store but that this is the only member.
        self._ready: list[Publication] = []
        #: Those that need nothing at all, or are refused.
        self._answered: list[Publication] = []
        self._pending_bytes = 0
        self._served: dict[bytes, set[bytes]] = {}

    def publish(self, publication: Publication) -> None:
        """See `Cluster.publish`."""
        if self._pending_bytes > self._limits.max_pending_bytes:
            publication.error = StoreUnavailable("too much waits for the store")
            self._answered.append(publication)
            return
        if publication.packets is not None:
            self._relay(publication, publication.packets)
            return
        message = publication.message
        targets, groups, nodes = publication.targets, publication.groups, publication.nodes
        if publication.delay_s:
            self._delay(publication)
            return
        alone = self._alone
        if alone is None:
            alone = self._alone = self._member.alone()
        if not (targets or groups or publication.retain):
            if not message.qos:
                if nodes:
                    self.nodes.send(nodes, pack_body(message), None)
                self._answered.append(publication)
                return
            if alone and not nodes:
                self._ready.append(publication)
                return
        stores = targets or groups or nodes or publication.retain
        if publication.payloads:
            item = Item(publication, b"", self._finished)
            item.bodies = pack_bodies(message, publication.payloads)
        else:
            item = Item(publication, pack_body(message) if stores else b"", self._finished)
        if message.qos and not alone:
            item.waiting = 1
            self._versions.add(item)
        if publication.retain:
            item.size = len(item.body) + _TARGET_BYTES
            self._pending_bytes += item.size
            self._retained.add(item)
        self._send(item, targets, groups, nodes)

    def _send(
        self,
        item: Item,
        targets: Sequence[Target],
        groups: Sequence[GroupTarget],
        nodes: Sequence[NodeTarget],
    ) -> None:
        """Adds to the lanes."""
        publication = item.publication
        size = (len(item.body) + _TARGET_BYTES * (1 + len(targets))) if not item.bodies else _run_size(item, targets)
        item.size += size
        self._pending_bytes += size
        count, partitions, version = self._count, self.partitions, self._versions.number
        for target in targets:
            identifier = target.session_id
            lane = partitions[(identifier[0] << 8 | identifier[1]) % count]
            lane.pending.append((item, target, version))
            if not lane.dirty:
                lane.touch()
        item.waiting += len(targets) + len(groups)
        for group in groups:
            lane = partitions[partition_of(group.group_id, count)]
            lane.groups.append((item, group))
            lane.touch()
        if nodes:
            if publication.message.qos:
                item.waiting += len(nodes)
                self.nodes.send(nodes, item.body, item)
            else:
                self.nodes.send(nodes, item.body, None)
        if publication.deduplicate:
            self._remember(
                publication.message.message_id,
                (*(target.session_id for target in targets), *(group.group_id for group in groups)),
            )

    def _relay(self, publication: Publication, packets: Run) -> None:
        item = Item(publication, b"", self._finished)
        item.waiting = 1 + len(publication.nodes)
        item.size = len(packets.data) + _TARGET_BYTES * packets.count
        self._pending_bytes += item.size
        self._versions.add(item)
        self.nodes.relay(publication.nodes, packets, item)

    def _delay(self, publication: Publication) -> None:
        message = publication.message
        item = Item(publication, pack_body(message), self._finished)
        item.waiting = 1
        item.size = len(item.body) + _TARGET_BYTES
        self._pending_bytes += item.size
        lane = self.partitions[partition_of(message.message_id, self._count)]
        lane.delays.append((item, monotonic_s() + publication.delay_s))
        lane.touch()

    def _extend(self, item: Item, found: Extension) -> None:
        """Newer routes matched in addition."""
        if not (item.body or item.bodies):
            item.body = pack_body(item.publication.message)
        self._send(item, found.targets, found.groups, found.nodes)

    def _finished(self, item: Item) -> None:
        self._pending_bytes -= item.size
        call_stored(item.publication)

    def _remember(self, message_id: bytes, identifiers: Iterable[bytes]) -> None:
        prefixes = {self._keys.partitions[partition_of(identifier, self._count)] for identifier in identifiers}
        if len(self._served) >= _REMEMBERED_IDS:
            del self._served[next(iter(self._served))]
        self._served.setdefault(message_id, set()).update(prefixes)

    def generation(self, partition: int) -> int:
        """See `publish.Stores`."""
        return self._generations.numbers[partition]

    def stale(self, then: Callable[[int], None]) -> None:
        """See `publish.Stores`."""
        self._versions.newest(lambda: then(self._versions.number))
        self._wake()

    def served(self, message_id: bytes) -> Iterable[bytes]:
        """The prefixes of the partitions that remember who got this message; asked once."""
        return self._served.pop(message_id, ())

    def flush(self) -> None:
        """The end of a turn: answers what waits for nothing."""
        self._alone = None
        if self._answered:
            answered, self._answered = self._answered, []
            for publication in answered:
                call_stored(publication)
        if self._ready:
            self._answer_ready()

    def _answer_ready(self) -> None:
        """Those for sessions of this node alone: now if it is still sure that there is no other node; else as those
        that come from now on, which must not overtake them."""
        ready, self._ready = self._ready, []
        if self._member.alone():
            for publication in ready:
                call_stored(publication)
        else:
            for publication in ready:
                item = Item(publication, b"", self._finished)
                item.waiting = 1
                self._versions.add(item)
                # Others may have subscribed since it was matched.
                if (found := publication.rematch()) is not None:
                    self._extend(item, found)


def _run_size(item: Item, targets: Sequence[Target]) -> int:
    return len(item.bodies) * (len(item.bodies[0]) + _TARGET_BYTES * (1 + len(targets)))
