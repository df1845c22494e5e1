"""The queues of shared subscriptions in the memory of one process, and how entries are given to the node."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Final

from broker.message import Message
from cluster.api import (
    HASH_CLIENTID,
    HASH_TOPIC,
    REFUSED_FULL,
    ROUND_ROBIN,
    STICKY,
    GroupEntry,
    GroupMemberState,
    GroupTarget,
    shared_group_id,
)

#: Strategies that name a member; its node keeps what waits for it.
NAMING: Final = frozenset({STICKY, HASH_TOPIC, HASH_CLIENTID})
#: Unacknowledged entries of a group whose strategy names members: more than their windows, as one may be full.
NAMED_WINDOW: Final = 1000


class GroupState:
    """What waits in a queue: `lag` messages given to nobody yet, `pending` given and not acknowledged, the age of the
    oldest of all in ms (0: none)."""

    __slots__ = ("lag", "oldest_ms", "pending")

    def __init__(self, lag: int, pending: int, oldest_ms: int) -> None:
        self.lag = lag
        self.pending = pending
        self.oldest_ms = oldest_ms


class _Stored:
    """An entry as the queue keeps it; `given` while the node has it."""

    __slots__ = ("added_ms", "given", "kept_for", "message")

    def __init__(self, message: Message, added_ms: int) -> None:
        self.message = message
        self.added_ms = added_ms
        self.given = False
        self.kept_for = b""


class GroupQueue:
    """One group. `joined` are persistent members, connected or not, with their births; `members` the connected ones."""

    __slots__ = (
        "_bound",
        "_chosen",
        "_entries",
        "_kept_waiting",
        "_over",
        "_pending",
        "_waiting",
        "_window",
        "joined",
        "members",
        "strategy",
    )

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._entries: dict[bytes, _Stored] = {}
        #: Ids of what is given to nobody, as heaps; those of removed entries stay until they come up.
        self._waiting: list[bytes] = []
        self._kept_waiting: list[bytes] = []
        self._pending = 0
        #: How many may be pending.
        self._window = 0
        #: The member that STICKY chose.
        self._chosen = b""
        #: The queue was over half of its bound when the node was told last.
        self._over = False
        self.joined: dict[bytes, int] = {}
        self.members: dict[bytes, GroupMemberState] = {}
        self.strategy = ROUND_ROBIN

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def deserted(self) -> bool:
        """No session is a member any more."""
        return not self.joined and not self.members

    def state(self, now_ms: int) -> GroupState:
        """For operators and metrics."""
        oldest = next(iter(self._entries.values()), None)
        age_ms = max(0, now_ms - oldest.added_ms) if oldest is not None else 0
        return GroupState(len(self._entries) - self._pending, self._pending, age_ms)

    def connected(self, strategy: str, members: Sequence[GroupMemberState]) -> None:
        """These are the connected members now."""
        self.strategy = strategy
        self.members = {member.session_id: member for member in members}
        named = strategy in NAMING and bool(members)
        self._window = NAMED_WINDOW if named else sum(member.window for member in members)

    def add(self, target: GroupTarget, entry_id: bytes, message: Message, now_ms: int) -> bool:
        """Put a message at the end, and fill in `target`; False if the queue is full."""
        if len(self._entries) >= self._bound:
            target.depth = REFUSED_FULL
            return False
        self._entries[entry_id] = _Stored(message, now_ms)
        target.depth = len(self._entries)
        self._over = self._over or target.depth > self._bound // 2
        if not self._waiting and self._credit() > 0:
            target.entry = self._give(entry_id)
        else:
            heappush(self._waiting, entry_id)
        return True

    def settle(self, entry_id: bytes, keep_for: bytes, again: bool) -> None:
        """The node is done with an entry, keeps it for a session, or gives it back."""
        entry = self._entries.get(entry_id)
        if entry is None:
            return
        if keep_for:
            entry.kept_for = keep_for
        elif not again:
            del self._entries[entry_id]
            self._pending -= entry.given
        elif entry.given:
            entry.given = False
            self._pending -= 1
            heappush(self._kept_waiting if entry.kept_for else self._waiting, entry_id)

    def assign(self) -> tuple[list[GroupEntry], bool]:
        """What is to be given out now, oldest first, and whether the node has to be told of the queue's length."""
        given: list[GroupEntry] = []
        while self._kept_waiting and self.members:
            entry_id = heappop(self._kept_waiting)
            if entry_id in self._entries:
                given.append(self._give(entry_id))
        credit = self._credit()
        while self._waiting and credit > 0:
            entry_id = heappop(self._waiting)
            if entry_id in self._entries:
                given.append(self._give(entry_id))
                credit -= 1
        over, self._over = self._over, len(self._entries) > self._bound // 2
        return given, over or bool(given)

    def _credit(self) -> int:
        return self._window - self._pending

    def _give(self, entry_id: bytes) -> GroupEntry:
        entry = self._entries[entry_id]
        entry.given = True
        self._pending += 1
        member = b"" if entry.kept_for else self._choose(entry.message)
        return GroupEntry(entry_id, entry.message, entry.kept_for, member)

    def _choose(self, message: Message) -> bytes:
        """The member that the strategy names, b"" where it names none."""
        if self.strategy == STICKY:
            if self._chosen not in self.members:
                self._chosen = random.choice(list(self.members))
            return self._chosen
        if self.strategy == HASH_TOPIC:
            return self._rendezvous(message.topic)
        if self.strategy == HASH_CLIENTID:
            return self._rendezvous(message.publisher)
        return b""

    def _rendezvous(self, key: bytes) -> bytes:
        """A member that comes or goes moves only its own share of the keys."""
        return max(self.members, key=lambda sid: hashlib.blake2b(key, digest_size=8, key=sid).digest())


class Groups:
    """All groups, by id."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._entry_number = 0
        self._queues: dict[bytes, GroupQueue] = {}
        #: What they are called.
        self._names: dict[bytes, str] = {}
        #: Groups that may have something to give out.
        self._changed: dict[bytes, GroupQueue] = {}

    def get(self, group_id: bytes) -> GroupQueue | None:
        """None if nobody is a member."""
        return self._queues.get(group_id)

    def join(self, topic_filter: str, session_id: bytes, birth: int) -> None:
        """A persistent session subscribed."""
        self._open(topic_filter).joined[session_id] = birth

    def leave(self, group_id: bytes, session_id: bytes, birth: int) -> None:
        """A persistent session unsubscribed or ended; a younger one of the same client stays."""
        queue = self._queues.get(group_id)
        if queue is not None and queue.joined.get(session_id, birth + 1) <= birth:
            del queue.joined[session_id]
            self._close_deserted(group_id, queue)

    def connected(self, topic_filter: str, strategy: str, members: Sequence[GroupMemberState]) -> None:
        """These are the connected members now."""
        group_id = shared_group_id(topic_filter)
        queue = self._open(topic_filter) if members else self._queues.get(group_id)
        if queue is None:
            return
        queue.connected(strategy, members)
        self._changed[group_id] = queue
        self._close_deserted(group_id, queue)

    def add(self, target: GroupTarget, queue: GroupQueue, message: Message, now_ms: int) -> bool:
        """Put a message into a group's queue; False if that is full."""
        self._entry_number += 1
        return queue.add(target, b"%016d" % self._entry_number, message, now_ms)

    def settle(self, group_id: bytes, entry_id: bytes, keep_for: bytes, again: bool) -> None:
        """See `GroupQueue.settle`."""
        queue = self._queues.get(group_id)
        if queue is not None:
            queue.settle(entry_id, keep_for, again)
            self._changed[group_id] = queue

    def assign(self) -> list[tuple[bytes, list[GroupEntry], int]]:
        """What the node has to be told: group, entries for it, length of the queue."""
        result: list[tuple[bytes, list[GroupEntry], int]] = []
        if self._changed:
            changed, self._changed = self._changed, {}
            for group_id, queue in changed.items():
                entries, tell = queue.assign()
                if tell:
                    result.append((group_id, entries, len(queue)))
        return result

    def all(self) -> list[tuple[bytes, str, GroupQueue]]:
        """Id, `$share/name/filter` and queue of each."""
        return [(group_id, self._names[group_id], queue) for group_id, queue in self._queues.items()]

    def _open(self, topic_filter: str) -> GroupQueue:
        group_id = shared_group_id(topic_filter)
        queue = self._queues.get(group_id)
        if queue is None:
            self._names[group_id] = topic_filter
            queue = self._queues[group_id] = GroupQueue(self._bound)
        return queue

    def _close_deserted(self, group_id: bytes, queue: GroupQueue) -> None:
        if queue.deserted:
            del self._queues[group_id], self._names[group_id]
            self._changed.pop(group_id, None)
