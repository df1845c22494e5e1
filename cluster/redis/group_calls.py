"""What nodes are done with of groups' queues: acknowledged, returned and kept entries, one call per partition.

A call has a number, by which the store knows it if it is sent again: after a lost connection, or since it was refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, cast

from broker.errors import ClusterError, StoreUnavailable
from broker.log import get_logger
from cluster.policy import MAX_CALL_SESSIONS
from cluster.records import pack_arguments
from cluster.redis.callbacks import Then, call_then
from cluster.redis.links import Link
from cluster.redis.membership import Membership
from cluster.redis.pipeline import Part
from cluster.redis.requests import result

ACKNOWLEDGED, RETURNED, KEPT = range(3)

_log = get_logger("cluster")

#: At most so many entries in one call.
_MAX_ENTRIES: Final = 1000


#: At most so many entries become one settlement.
_MAX_JOINED: Final = 100

#: What became of entries (a kind), their group, their ids, the session that keeps it, and who wants to know when the
#: store has it. It is one entry, but for acknowledged ones that nobody wants to know of.
Settlement = tuple[int, bytes, list[bytes], bytes, "Then | None"]

#: Of one group: its queue's length (negative: gone), and entries for this node, flat.
GroupAnswer = tuple[int, list[bytes]]
#: Takes the settled ones, the answer for each group, and whether the call was repeated.
Answered = Callable[[list[Settlement], list[tuple[bytes, GroupAnswer]], bool], None]


class GroupSettler:
    """The way of one partition. One call is under way at a time; meanwhile the next is gathered."""

    __slots__ = (
        "_answered",
        "_batch",
        "_busy",
        "_call",
        "_link",
        "_member",
        "_names",
        "_number",
        "_prefix",
        "_refused",
        "_repeated",
        "_waiting",
        "dirty",
    )

    def __init__(self, prefix: bytes, link: Link, member: Membership, answered: Answered) -> None:
        self._prefix = prefix
        self._link = link
        self._member = member
        self._answered = answered
        self._waiting: deque[Settlement] = deque()
        #: What the call under way settles, of which groups, and the call.
        self._batch: list[Settlement] = []
        self._names: list[bytes] = []
        self._call: tuple[Part, ...] = ()
        self._busy = self._repeated = False
        #: The call under way is to be sent again.
        self._refused = False
        self._number = 0
        #: Whoever sets it pumps at the end of the turn.
        self.dirty = False

    def add(self, settlement: Settlement) -> None:
        """Goes out with the next call."""
        self._waiting.append(settlement)

    def acknowledge(self, group_id: bytes, entry_ids: Sequence[bytes]) -> None:
        """The same for acknowledged ones, oldest first, that nobody wants to know of."""
        if self._waiting:
            kind, last, known, _, then = self._waiting[-1]
            if last == group_id and kind == ACKNOWLEDGED and then is None and len(known) < _MAX_JOINED:
                known += entry_ids
                return
        self._waiting.append((ACKNOWLEDGED, group_id, list(entry_ids), b"", None))

    def link_up(self) -> None:
        """On a new connection the call under way is sent again, and may have been executed before."""
        self._repeated = self._busy

    def retry(self) -> None:
        """The store takes calls: what it refused goes out once more."""
        if self._refused:
            self._refused = False
            self._send()

    def pump(self) -> None:
        """Sends what waits, unless a call is under way: then that one's answer sends it."""
        self.dirty = False
        if self._busy or not self._waiting:
            return
        batch: list[Settlement] = []
        groups: dict[bytes, tuple[list[bytes], list[bytes], list[bytes]]] = {}
        waiting = self._waiting
        last: bytes | None = None
        count = 0
        while waiting and count < _MAX_ENTRIES:
            each = waiting[0]
            kind, group_id, entry_ids, session_id, _ = each
            if group_id is not last:
                found = groups.get(group_id)
                if found is None:
                    if len(groups) == MAX_CALL_SESSIONS:
                        break
                    found = groups[group_id] = ([], [], [])
                lists, last = found, group_id
            waiting.popleft()
            batch.append(each)
            lists[kind].extend(entry_ids)
            count += len(entry_ids)
            if kind == KEPT:
                lists[KEPT].append(session_id)
        self._busy = True
        self._number += 1
        self._batch, self._names = batch, list(groups)
        self._call = (
            b"FCALL",
            b"rk1_group_settle",
            b"1",
            self._prefix,
            self._member.node,
            self._member.incarnation_text,
            pack_arguments([(group_id, *lists) for group_id, lists in groups.items()]),
            self._number,
        )
        self._send()

    def _send(self) -> None:
        self._link.command(self._call, self._done, resend=True, durable=True)

    def _done(self, reply: object) -> None:
        error: Exception | None = None
        answers: list[GroupAnswer] = []
        try:
            answers = cast("list[GroupAnswer]", result(reply))
            if not answers:
                self._member.fenced()
                error = StoreUnavailable("this node was taken for dead")
        except StoreUnavailable:
            # Under the same number, since it may have been executed before: and nothing overtakes it.
            self._refused = True
            return
        except ClusterError as failure:
            error = failure
            _log.error("cluster.call_failed", call="rk1_group_settle", error=str(failure)[:200])
        batch, self._batch, self._call = self._batch, [], ()
        repeated, self._busy, self._repeated = self._repeated, False, False
        if error is None:
            self._answered(batch, list(zip(self._names, answers, strict=True)), repeated)
        for *_, then in batch:
            if then is not None:
                call_then(then, error)
        if not self.dirty:
            self.pump()
