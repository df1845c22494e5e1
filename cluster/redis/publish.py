"""Publications on their way: parts that wait for answers, and one lane of messages per partition."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from broker.errors import ClusterError
from cluster.api import GroupTarget, Publication, Target
from cluster.policy import MAX_CALL_BYTES, MAX_CALL_SESSIONS, ClusterLimits
from cluster.records import pack_arguments, queue_prefix, unpack_answer
from cluster.redis.lanes import Lane, Outbox
from cluster.redis.membership import Membership
from cluster.redis.pipeline import Part, Pipeline

T = TypeVar("T")

#: What a target costs in a call besides the body.
_TARGET_BYTES = 64


class Item:
    """A publication with the number of answers that it waits for."""

    __slots__ = ("body", "finished", "publication", "waiting")

    def __init__(self, publication: Publication, body: bytes, finished: Callable[[Item], None]) -> None:
        self.publication = publication
        self.body = body
        self.waiting = 0
        self.finished = finished

    def answered(self) -> None:
        """One part was answered; the last one ends the publication."""
        self.waiting -= 1
        if self.waiting == 0:
            self.finished(self)


class PartitionLane(Lane):
    """Messages for the sessions and groups of one partition."""

    __slots__ = ("_arguments", "_group_pairs", "_pairs", "groups", "pending")

    def __init__(
        self, prefix: bytes, link: Pipeline, member: Membership, outbox: Outbox, limits: ClusterLimits
    ) -> None:
        super().__init__(prefix, link, member, outbox)
        self.pending: deque[tuple[Item, Target]] = deque()
        self.groups: deque[tuple[Item, GroupTarget]] = deque()
        self._pairs: list[tuple[Item, Target]] = []
        self._group_pairs: list[tuple[Item, GroupTarget]] = []
        self._arguments = (limits.max_queued_messages, limits.max_queued_bytes, limits.max_group_queue)

    def has_more(self) -> bool:
        """See `Lane`."""
        return bool(self.pending) or bool(self.groups)

    def build(self) -> tuple[Part, ...] | None:
        """See `Lane`. Bodies go once, sessions with all their messages, both bounded."""
        bodies: list[bytes] = []
        ids: list[bytes] = []
        sessions: dict[bytes, list[object]] = {}
        order: dict[bytes, list[tuple[Item, Target]]] = {}
        size = body_index = id_index = 0
        last: Item | None = None
        pending = self.pending
        while pending and size < MAX_CALL_BYTES:
            pair = pending[0]
            item, target = pair
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
            if item is not last:
                last = item
                bodies.append(item.body)
                body_index = len(bodies)
                id_index = self._index_of_id(item, ids)
            session += (body_index, queue_prefix(target.qos, target.retain, target.subscription_ids), id_index)
            size += len(item.body) + _TARGET_BYTES
        groups: list[tuple[bytes, int, int]] = []
        while self.groups and size < MAX_CALL_BYTES and len(groups) < MAX_CALL_SESSIONS:
            item, group = self.groups.popleft()
            bodies.append(item.body)
            groups.append((group.group_id, len(bodies), self._index_of_id(item, ids)))
            self._group_pairs.append((item, group))
            size += len(item.body) + _TARGET_BYTES
        if not bodies:
            return None
        for pairs in order.values():
            self._pairs += pairs
        return (b"rk1_enqueue", *self._arguments, pack_arguments((bodies, list(sessions.values()), groups, ids)))

    def _index_of_id(self, item: Item, ids: list[bytes]) -> int:
        """The place of the message id among those to remember; 0 for none."""
        if not item.publication.deduplicate:
            return 0
        ids.append(item.publication.message.message_id)
        return len(ids)

    def done(self, value: bytes) -> None:
        """See `Lane`."""
        answers = unpack_answer(value)
        pairs, self._pairs = self._pairs, []
        groups, self._group_pairs = self._group_pairs, []
        for (item, target), seq in zip(pairs, answers, strict=False):
            target.seq = seq  # type: ignore[assignment]
            item.waiting -= 1
            if item.waiting == 0:
                item.finished(item)
        for (item, group), entry_id in zip(groups, answers[len(pairs) :], strict=True):
            group.entry_id = entry_id  # type: ignore[assignment]
            item.answered()

    def failed(self, error: ClusterError, full: bool) -> bool:
        """See `Lane`. A full store refuses everything that does not wait, also what is not in this call: so nothing
        overtakes what is refused, and what waits is alone in the lane until more comes."""
        pairs, self._pairs = self._pairs, []
        groups, self._group_pairs = self._group_pairs, []
        refused: list[Item] = []
        if full:
            pairs += self.pending
            groups += self.groups
            self.pending = deque(_patient(pairs, refused))
            self.groups = deque(_patient(groups, refused))
        else:
            refused += [item for item, _ in pairs]
            refused += [item for item, _ in groups]
        waiting = full and self.has_more()
        for item in refused:
            item.publication.error = error
            item.answered()
        return waiting


def _patient(pairs: Sequence[tuple[Item, T]], refused: list[Item]) -> list[tuple[Item, T]]:
    """Those that wait for room, in their order; the others go to `refused`."""
    waiting: list[tuple[Item, T]] = []
    for pair in pairs:
        if pair[0].publication.patient:
            waiting.append(pair)
        else:
            refused.append(pair[0])
    return waiting
