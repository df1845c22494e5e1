"""Which member of a shared subscription gets a message: by the strategy, of those that may read it."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import Final

from broker.message import Message
from broker.routes import GroupMember
from cluster.api import HASH_CLIENTID, HASH_TOPIC, LEAST_INFLIGHT, RANDOM, STICKY

#: Strategies that look at the message.
CHOSEN: Final = frozenset((STICKY, HASH_TOPIC, HASH_CLIENTID))


class Turns:
    """Whose turn it is among the connected members of this node."""

    __slots__ = ("_next", "strategy")

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        self._next = 0

    def hash(self, message: Message) -> int:
        """For the strategies that look at the message."""
        if self.strategy == STICKY:
            return 0
        return zlib.crc32(message.topic if self.strategy == HASH_TOPIC else message.publisher)

    def pick(self, online: Sequence[GroupMember], message: Message) -> GroupMember | None:
        """The next member that has room in its window."""
        count = len(online)
        if self.strategy == LEAST_INFLIGHT:
            return _freest(online, message)
        at = random.randrange(count) if self.strategy == RANDOM and count else self._next
        for _ in range(count):
            at = (at + 1) % count
            member = online[at]
            session = member.subscriber.session
            if session is not None and member.ready and session.idle() and may_read(member, message):
                self._next = at
                return member
        return None

    def deal(self, rooms: Sequence[int], count: int) -> list[list[int]]:
        """As `pick` for `count` messages that all members may read, of those with `rooms` in their windows, which is
        enough for all: the places of the messages that each gets."""
        left = list(rooms)
        dealt: list[list[int]] = [[] for _ in rooms]
        size = len(rooms)
        at = self._next
        for place in range(count):
            if self.strategy == LEAST_INFLIGHT:
                at = left.index(max(left))
            else:
                if self.strategy == RANDOM:
                    at = random.randrange(size)
                at = (at + 1) % size
                while left[at] <= 0:
                    at = (at + 1) % size
            left[at] -= 1
            dealt[at].append(place)
        if self.strategy != LEAST_INFLIGHT:
            self._next = at
        return dealt

    def pick_any(self, online: Sequence[GroupMember], message: Message) -> GroupMember | None:
        """The next member, for a message at QoS 0; there is one at least."""
        count = len(online)
        self._next = (self.hash(message) if self.strategy in CHOSEN else self._next + 1) % count
        member = online[self._next]
        if may_read(member, message):
            return member
        others = (online[(self._next + step) % count] for step in range(1, count))
        return next((each for each in others if may_read(each, message)), None)


def _freest(online: Sequence[GroupMember], message: Message) -> GroupMember | None:
    best: GroupMember | None = None
    most = 0
    for member in online:
        session = member.subscriber.session
        if session is not None and member.ready and session.idle() and may_read(member, message):
            credit = session.credit() - session.promised
            if credit > most:
                best, most = member, credit
    return best


def if_idle(member: GroupMember) -> GroupMember | None:
    """The member, if it has room in its window."""
    session = member.subscriber.session
    return member if session is not None and member.ready and session.idle() else None


def may_read(member: GroupMember, message: Message) -> bool:
    """Whether the message may be delivered to the member."""
    connection = member.subscriber.connection
    return connection is None or connection.gate is None or connection.gate.lets(message.topic)
