"""Publications on their way: parts that wait for answers, and one lane of messages per partition."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from broker.errors import ClusterError, StoreFull
from broker.log import get_logger
from cluster.api import REFUSED_GONE, GroupEntry, GroupTarget, Publication, Target
from cluster.policy import MAX_CALL_BYTES, MAX_CALL_SESSIONS, ClusterLimits
from cluster.records import FORMAT, pack_arguments, queue_prefix, unpack_answer
from cluster.redis.callbacks import call_given, call_reached
from cluster.redis.lanes import Lane, Outbox
from cluster.redis.membership import Membership, monotonic_s
from cluster.redis.pipeline import Part

if TYPE_CHECKING:
    from cluster.redis.links import Link

#: What a target costs in a call besides the body.
_TARGET_BYTES = 64
#: Messages for groups in one call: of one group, they keep the store busy for about 1 ms.
_MAX_FOR_GROUPS = 256
_RECORD_HEAD = bytes((FORMAT,))
#: Instead of a message id's place: QoS 0, nothing is stored.
_UNSTORED = -1
#: ... less a seq: only if nothing of the topic came behind that.
_AFTER = -2
#: Instead of a seq: the session unsubscribed from something since the message was matched.
_STALE = -3
#: A delayed message found room.
_KEPT = ord("1")
#: Where the arguments of `rk1_enqueue` have the store generation.
_GENERATION = 4

_log = get_logger("cluster")


class Item:
    """A publication with the number of answers that it waits for.

    `checked`: one of them is the version of the route table. `size` counts against what may wait for the store.
    `bodies` are those of a publication that stands for several messages; it has no other."""

    __slots__ = ("bodies", "body", "checked", "finished", "publication", "size", "waiting")

    def __init__(self, publication: Publication, body: bytes, finished: Callable[[Item], None]) -> None:
        self.publication = publication
        self.body = body
        self.bodies: Sequence[bytes] = ()
        self.waiting = 0
        self.finished = finished
        self.checked = False
        self.size = 0

    def answered(self) -> None:
        """One part was answered; the last one ends the publication."""
        self.waiting -= 1
        if self.waiting == 0:
            self.finished(self)


#: A message for a session, with the version of the route table that it was matched with.
Pair = tuple[Item, Target, int]


class Stores(Protocol):
    """What a lane of a partition has to do with the rest of the node."""

    def generation(self, partition: int) -> int:
        """The number of the store's generation there."""

    def stale(self, then: Callable[[int], None]) -> None:
        """Calls `then` with the version that is adopted, once that is one read after this call."""

    def group_stored(self, group_id: bytes, entry_id: bytes, depth: int) -> bool:
        """A message came into a group's queue, or (`depth` <= 0) did not; `entry_id` if it is for a member here.
        False if this node has got that entry already."""

    def group_run_stored(self, group_id: bytes, entry_ids: Sequence[bytes], depths: Sequence[int]) -> Sequence[bytes]:
        """The same for several; returns those ids, with b"" for each that is not for a member here, or that this node
        has got already."""


class PartitionLane(Lane):
    """Messages for the sessions and groups of one partition, and delayed ones."""

    __slots__ = (
        "_arguments",
        "_delayed",
        "_group_pairs",
        "_held",
        "_max_delayed",
        "_pairs",
        "_partition",
        "_stores",
        "delays",
        "groups",
        "pending",
    )

    def __init__(
        self,
        partition: int,
        partitions: int,
        prefix: bytes,
        link: Link,
        member: Membership,
        outbox: Outbox,
        limits: ClusterLimits,
        stores: Stores,
    ) -> None:
        super().__init__(prefix, link, member, outbox)
        self.pending: deque[Pair] = deque()
        self.groups: deque[tuple[Item, GroupTarget]] = deque()
        #: Messages to be kept, and when (by `monotonic_s`) they are due.
        self.delays: deque[tuple[Item, float]] = deque()
        self._pairs: list[Pair] = []
        self._group_pairs: list[tuple[Item, GroupTarget]] = []
        self._delayed: list[tuple[Item, float]] = []
        #: Nothing more goes out before what is stale was looked at.
        self._held = False
        self._partition = partition
        self._stores = stores
        self._arguments = (limits.max_queued_messages, limits.max_queued_bytes, limits.max_group_queue)
        self._max_delayed = max(limits.max_delayed // partitions, min(limits.max_delayed, 1))

    def has_more(self) -> bool:
        """See `Lane`."""
        return not self._held and bool(self.pending or self.groups or self.delays)

    def build(self) -> tuple[Part, ...] | None:
        """See `Lane`. Bodies go once, sessions with all their messages, both bounded."""
        if self._held:
            return None
        if self.delays:
            return self._build_delays()
        bodies: list[bytes] = []
        ids: list[bytes] = []
        sessions: dict[bytes, list[object]] = {}
        order: dict[bytes, list[Pair]] = {}
        size = body_index = id_index = 0
        last: Item | None = None
        pending = self.pending
        oldest = pending[0][2] if pending else 0
        while pending and size < MAX_CALL_BYTES:
            pair = pending[0]
            item, target, version = pair
            session = sessions.get(target.session_id)
            if session is None:
                if len(sessions) == MAX_CALL_SESSIONS:
                    break
                session = sessions[target.session_id] = [target.session_id, target.birth]
                order[target.session_id] = [pair]
            elif session[1] != target.birth:
                break
            else:
                order[target.session_id].append(pair)
            pending.popleft()
            if version < oldest:
                oldest = version
            if item.bodies:
                if item is not last:
                    last = item
                    body_index = len(bodies) + 1
                    bodies += item.bodies
                size += _add_run(session, item.bodies, body_index, target)
                continue
            if item is not last:
                last = item
                bodies.append(item.body)
                body_index = len(bodies)
                id_index = self._index_of_id(item, ids)
            after = target.after_seq
            session += (
                body_index,
                queue_prefix(target.qos, target.retain, target.subscription_ids),
                (id_index if after < 0 else _AFTER - after) if target.qos else _UNSTORED,
            )
            size += len(item.body) + _TARGET_BYTES
        groups: list[tuple[bytes, int, int]] = []
        group_ids: set[bytes] = set()
        while (
            self.groups
            and size < MAX_CALL_BYTES
            and len(groups) < _MAX_FOR_GROUPS
            and len(group_ids) < MAX_CALL_SESSIONS
        ):
            item, group = self.groups.popleft()
            group_ids.add(group.group_id)
            self._group_pairs.append((item, group))
            if item.bodies:
                first = len(bodies) + 1
                bodies += item.bodies
                groups += [(group.group_id, at, 0) for at in range(first, len(bodies) + 1)]
                size += len(item.bodies) * (len(item.bodies[0]) + _TARGET_BYTES)
                continue
            bodies.append(item.body)
            groups.append((group.group_id, len(bodies), self._index_of_id(item, ids)))
            size += len(item.body) + _TARGET_BYTES
        if not bodies:
            return None
        for pairs in order.values():
            self._pairs += pairs
        return (
            b"rk1_enqueue",
            *self._arguments,
            self._stores.generation(self._partition),
            oldest,
            pack_arguments((bodies, list(sessions.values()), groups, ids)),
        )

    def _build_delays(self) -> tuple[Part, ...]:
        batch: list[tuple[bytes, int, bytes]] = []
        size, now_s = 0, monotonic_s()
        while self.delays and size < MAX_CALL_BYTES and len(batch) < MAX_CALL_SESSIONS:
            item, due_s = self.delays.popleft()
            self._delayed.append((item, due_s))
            left_ms = max(0, int((due_s - now_s) * 1000))
            batch.append((item.publication.message.message_id, left_ms, _RECORD_HEAD + item.body))
            size += len(item.body) + _TARGET_BYTES
        return (b"rk1_delay", self._max_delayed, pack_arguments(batch))

    def renewed(self, call: tuple[Part, ...]) -> tuple[Part, ...]:
        """See `Lane`. The store may be another than the one it was built for."""
        if call[0] != b"rk1_enqueue":
            return call
        return (*call[:_GENERATION], self._stores.generation(self._partition), *call[_GENERATION + 1 :])

    def _index_of_id(self, item: Item, ids: list[bytes]) -> int:
        """The place of the message id among those to remember; 0 for none."""
        if not item.publication.deduplicate:
            return 0
        ids.append(item.publication.message.message_id)
        return len(ids)

    def done(self, value: bytes) -> None:
        """See `Lane`."""
        if self._delayed:
            self._delays_kept(value)
            return
        answers = unpack_answer(value)
        pairs, self._pairs = self._pairs, []
        groups, self._group_pairs = self._group_pairs, []
        stale: list[Pair] = []
        at = 0
        for pair in pairs:
            item, target, _ = pair
            seq = answers[at]
            if item.bodies:
                count = len(item.bodies)
                target.seqs = answers[at : at + count]  # type: ignore[assignment]
                at += count
            else:
                target.seq = seq  # type: ignore[assignment]
                at += 1
            if seq == _STALE:  # as are all of its session
                stale.append(pair)
                continue
            call_reached(item.publication, target)
            item.waiting -= 1
            if item.waiting == 0:
                item.finished(item)
        if groups:
            self._groups_stored(groups, answers[at:])
        if stale:
            self.pending.extendleft(reversed(stale))
            self._held = True
            count = len(stale)
            self._stores.stale(lambda version: self._look_again(count, version))

    def _groups_stored(self, groups: list[tuple[Item, GroupTarget]], answers: Sequence[int | bytes]) -> None:
        stored = self._stores.group_stored
        at = 0
        for item, group in groups:
            if item.bodies:
                end = at + 3 * len(item.bodies)
                entry_ids = answers[at:end:3]
                group.chosen = answers[at + 1 : end : 3]  # type: ignore[assignment]
                group.depths = depths = answers[at + 2 : end : 3]  # type: ignore[assignment]
                group.entry_ids = self._stores.group_run_stored(group.group_id, entry_ids, depths)  # type: ignore[arg-type]
                at = end
            else:
                entry_id, member, depth = answers[at : at + 3]
                at += 3
                group.depth = depth  # type: ignore[assignment]
                if stored(group.group_id, entry_id, depth):  # type: ignore[arg-type]
                    group.entry = GroupEntry(entry_id, item.publication.message, b"", member)  # type: ignore[arg-type]
            # Now, not when all parts are answered: what the group is given by the next answers is newer.
            call_given(item.publication, group)
            item.waiting -= 1
            if item.waiting == 0:
                item.finished(item)

    def _look_again(self, count: int, version: int) -> None:
        """The newest routes are known: what its session still wants goes out before all else."""
        self._held = False
        fresh: list[Pair] = []
        for _ in range(count):
            if not self.pending:  # a full store may have refused some
                break
            item, target, _ = self.pending.popleft()
            if _wants(item, target):
                fresh.append((item, target, version))
            else:
                target.seq = REFUSED_GONE
                target.seqs = [REFUSED_GONE] * len(item.bodies)
                call_reached(item.publication, target)
                item.answered()
        self.pending.extendleft(reversed(fresh))
        self.touch()

    def _delays_kept(self, value: bytes) -> None:
        delayed, self._delayed = self._delayed, []
        for (item, _), kept in zip(delayed, value, strict=True):
            if kept != _KEPT:
                item.publication.error = StoreFull("too many delayed messages")
            item.answered()

    def failed(self, error: ClusterError, full: bool) -> bool:
        """See `Lane`. A full store refuses everything that does not wait, also what is not in this call: so nothing
        overtakes what is refused, and what waits is alone in the lane until more comes."""
        pairs, self._pairs = self._pairs, []
        groups, self._group_pairs = self._group_pairs, []
        delayed, self._delayed = self._delayed, []
        refused: list[Item] = []
        unstored: list[Item] = []
        if full:
            for pair in (*pairs, *self.pending):
                if not pair[1].qos:
                    unstored.append(pair[0])
            self.pending = deque(pair for pair in (*pairs, *self.pending) if pair[1].qos and _waits(pair[0], refused))
            self.groups = deque(pair for pair in (*groups, *self.groups) if _waits(pair[0], refused))
            self.delays = deque(pair for pair in (*delayed, *self.delays) if _waits(pair[0], refused))
        else:
            refused += [pair[0] for pair in pairs]
            refused += [item for item, _ in groups]
            refused += [item for item, _ in delayed]
        waiting = full and self.has_more()
        for item in unstored:
            item.answered()
        for item in refused:
            item.publication.error = error
            item.answered()
        return waiting


def _add_run(session: list[object], bodies: Sequence[bytes], body_index: int, target: Target) -> int:
    """The messages of one item for a session; returns their size."""
    count = len(bodies)
    added: list[object] = [0, queue_prefix(target.qos, target.retain, target.subscription_ids), 0] * count
    added[::3] = range(body_index, body_index + count)
    session += added
    return count * (len(bodies[0]) + _TARGET_BYTES)


def _wants(item: Item, target: Target) -> bool:
    try:
        return item.publication.wants(target)
    except Exception:
        _log.exception("cluster.callback_failed")
        return True


def _waits(item: Item, refused: list[Item]) -> bool:
    """Whether it waits for room; else it goes to `refused`."""
    if item.publication.patient:
        return True
    refused.append(item)
    return False
