"""Shared subscriptions: each message goes to one member, and stays in the group's queue until that member is done.

The queue is in the store. The node keeps the entries it has seen and not given away, up to a bound; what is
beyond is read in pages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from broker.errors import ClusterError
from broker.message import Message
from broker.routes import AckSlot, Subscriber, Subscription
from broker.session.encoding import Encoding
from broker.session.session import GroupDelivery, Session
from cluster.api import PAGE_LIMIT, REFUSED_FULL, GroupEntry, Publication, Target

if TYPE_CHECKING:
    from broker.dispatch import Dispatch

#: How long acknowledgements of publishers are kept back for a group that has too much to do.
HOLD_S = 5.0

#: Pause before an entry is offered again to a store that did not take it.
RETRY_S = 1.0

#: Entries that wait in the memory of the node.
WAITING_LIMIT = 1000


class GroupMember:
    """One session of a group, with the options of its subscription."""

    __slots__ = ("subscriber", "subscription")

    def __init__(self, subscriber: Subscriber, subscription: Subscription) -> None:
        self.subscriber = subscriber
        self.subscription = subscription

    @property
    def subscription_ids(self) -> Sequence[int]:
        """As they go into PUBLISH."""
        return (self.subscription.identifier,) if self.subscription.identifier else ()


class Handover(Publication):
    """A QoS 2 message of the group on its way into the queue of the persistent member that it was given to for good.

    The queue of the group keeps whose it is until this is stored, so that after a crash nobody else gets it.
    """

    __slots__ = ("_encoding", "_entry", "_group", "_promised", "_subscriber")

    def __init__(
        self,
        group: Group,
        subscriber: Subscriber,
        subscription_ids: Sequence[int],
        entry: GroupEntry,
        encoding: Encoding,
    ) -> None:
        target = Target(subscriber.session_id, subscriber.birth, 2, False, subscription_ids)
        super().__init__(entry.message, [target], deduplicate=True)
        self._group = group
        self._subscriber = subscriber
        self._entry = entry
        self._encoding = encoding
        self._promised = subscriber.session
        if self._promised is not None:
            self._promised.promised += 1

    def stored(self) -> None:
        """The session has it now: the group is done with it."""
        if self._promised is not None:
            self._promised.promised -= 1
        if self.error is not None:
            self._group.give_back_later(self._entry)
            return
        self._group.done(self._entry.entry_id)
        target = self.targets[0]
        session = self._subscriber.session
        if target.seq < 0:
            self._group.lost("queue_full" if target.seq == REFUSED_FULL else "session_gone")
        elif session is None:
            self._subscriber.stored_seq = max(self._subscriber.stored_seq, target.seq)
        elif target.seq:
            session.stored(target.seq, self._encoding, 2, False, target.subscription_ids)
        else:
            session.look()


class Group:
    """The members of one shared subscription on this node, and who is next."""

    __slots__ = (
        "_dispatch",
        "_held",
        "_last_id",
        "_missed",
        "_more",
        "_next",
        "_paging",
        "_refused",
        "_waiting",
        "depth",
        "group_id",
        "members",
        "share_name",
        "topic_filter",
    )

    def __init__(self, gid: bytes, dispatch: Dispatch, share_name: str, topic_filter: str) -> None:
        self.group_id = gid
        self.share_name = share_name
        self.topic_filter = topic_filter
        self.members: list[GroupMember] = []
        self._dispatch = dispatch
        self._held: deque[AckSlot] = deque()
        #: Entries that were stored since this node started and are not done.
        self.depth = 0
        #: Entries that the store could not hand over just now.
        self._refused: list[GroupEntry] = []
        self._next = 0
        self._waiting: deque[GroupEntry] = deque()
        #: The newest entry that came into memory; the store has entries after it while `_more`.
        self._last_id = b""
        self._more = False
        self._paging = False
        #: A message was stored since the page that is under way was asked for.
        self._missed = False

    def join(self, member: GroupMember) -> None:
        """Add a member, or change its options."""
        self.members = [other for other in self.members if other.subscriber is not member.subscriber]
        self.members.append(member)

    def part(self, subscriber: Subscriber) -> None:
        """Remove a member."""
        self.members = [other for other in self.members if other.subscriber is not subscriber]
        self.member_left()

    def member_left(self) -> None:
        """Nobody is held up for a group without connected members."""
        if self._held and not self.online():
            self.release()

    def backlog(self) -> None:
        """Entries of an earlier life of this node may be in the store: read them when a member is there."""
        self._more = True

    # -- giving out

    def offer_qos0(self, message: Message, encoding: Encoding) -> None:
        """Send a QoS 0 message to one connected member, or drop it."""
        members = self.members
        for _ in range(len(members)):
            self._next = (self._next + 1) % len(members)
            member = members[self._next]
            connection = member.subscriber.connection
            if connection is not None:
                connection.send_qos0(encoding, False, member.subscription_ids)
                return
        self._dispatch.metrics.dropped["no_member_online"] += 1

    def offer(self, entry_id: bytes, message: Message, encoding: Encoding) -> None:
        """A message was stored in the group's queue: give it to a member, or let it wait its turn."""
        entry = GroupEntry(entry_id, message)
        self.depth += 1
        if self._more:  # behind: it is read in its turn, perhaps after the page that is under way
            self._missed = True
            self.feed()
            return
        self._last_id = entry_id
        if self._waiting or not self._give(entry, encoding):
            if len(self._waiting) >= WAITING_LIMIT:
                self._more = True
                self._last_id = self._waiting[-1].entry_id
                return
            self._waiting.append(entry)
            self._set_hungry()

    def feed(self) -> None:
        """A member has room: give out what waits, in order."""
        waiting = self._waiting
        now_ms = self._dispatch.cluster.now_ms()
        while waiting:
            entry = waiting[0]
            remaining = entry.message.remaining_s(now_ms)
            if remaining == 0:
                self._dispatch.metrics.dropped["expired"] += 1
                self.done(entry.entry_id)
            elif not self._give(entry, Encoding(entry.message, remaining)):
                self._set_hungry()
                return
            waiting.popleft()
        if self._more and not self._paging:
            if self._pick(False) is None:
                self._set_hungry()
                return
            self._paging = True
            self._dispatch.spawn(self.page)

    async def page(self) -> None:
        """Read the next entries of the queue."""
        self._missed = False
        try:
            entries = await self._dispatch.cluster.group_page(self.group_id, self._last_id, PAGE_LIMIT)
        except ClusterError:
            self._paging = False
            self._set_hungry()
            return
        self._paging = False
        if entries:
            self._last_id = entries[-1].entry_id
            self._waiting.extend(entries)
        self._more = bool(entries) or self._missed
        self.feed()

    def give_back(self, entries: Sequence[GroupEntry]) -> None:
        """A member left before it acknowledged these (oldest first): others get them, before anything newer."""
        merged = sorted([*entries, *self._waiting], key=_entry_order)
        self._waiting = deque(merged)
        if merged:
            self.feed()

    def give_back_later(self, entry: GroupEntry) -> None:
        """The store did not take what was to be done with this one: try again after a while."""
        if not self._refused:
            self._dispatch.spawn(self._try_again)
        self._refused.append(entry)

    async def _try_again(self) -> None:
        await trio.sleep(RETRY_S)
        entries, self._refused = self._refused, []
        self.give_back(entries)

    def lost(self, reason: str) -> None:
        """Count a message that reaches nobody."""
        self._dispatch.metrics.dropped[reason] += 1

    def done(self, entry_id: bytes) -> None:
        """The entry may leave the queue."""
        self._dispatch.cluster.group_acknowledge(self.group_id, entry_id, None)
        self._less()

    # -- backpressure

    def hold(self, slot: AckSlot) -> bool:
        """Keep back a publisher's acknowledgement while members have a long queue to do; False if not needed."""
        if self.depth <= self._dispatch.group_high_water or not self.online():
            return False
        if not self._held:
            self._dispatch.spawn(self._hold_a_while)
        self._held.append(slot)
        return True

    def online(self) -> bool:
        """A member is connected."""
        return any(member.subscriber.session is not None for member in self.members)

    async def _hold_a_while(self) -> None:
        """Members that do not move in this time do not hold anybody up: the queue's bound does the rest."""
        await trio.sleep(HOLD_S)
        self.release()

    def release(self) -> None:
        """Let all waiting acknowledgements go."""
        while self._held:
            self._held.popleft().settle(None)

    def _less(self) -> None:
        self.depth = max(0, self.depth - 1)
        if self._held and self.depth <= self._dispatch.group_high_water:
            self._held.popleft().settle(None)

    def _pick(self, advance: bool = True) -> GroupMember | None:
        """The next member in turn that has room in its window."""
        members = self.members
        count = len(members)
        at = self._next
        for _ in range(count):
            at = (at + 1) % count
            member = members[at]
            session = member.subscriber.session
            if session is not None and session.idle():
                if advance:
                    self._next = at
                return member
        return None

    def _give(self, entry: GroupEntry, encoding: Encoding) -> bool:
        if entry.kept_for:
            self._give_owner(entry, encoding)
            return True
        member = self._pick()
        if member is None:
            return False
        subscriber = member.subscriber
        session, connection = subscriber.session, subscriber.connection
        assert session is not None and connection is not None
        qos = min(entry.message.qos, member.subscription.qos)
        if qos == 1:
            delivery = GroupDelivery(self, entry.entry_id, entry.message, member.subscription_ids)
            if not session.deliver_group(encoding, 1, delivery):
                self.done(entry.entry_id)
        elif qos == 0:
            connection.send_qos0(encoding, False, member.subscription_ids)
            self.done(entry.entry_id)
        elif subscriber.persistent:
            self._keep(member, session, entry, encoding)
        else:
            self._take(member, session, entry, encoding)
        return True

    def _keep(self, member: GroupMember, session: Session, entry: GroupEntry, encoding: Encoding) -> None:
        """A QoS 2 message for a persistent member: first the store knows whose it is, then it moves [MQTT-4.8.2-5]."""
        session_id = member.subscriber.session_id

        def kept(error: Exception | None) -> None:
            session.promised -= 1
            if error is not None:
                self.give_back_later(entry)
                return
            entry.kept_for = session_id
            self._give_owner(entry, encoding)

        session.promised += 1
        self._dispatch.cluster.group_acknowledge(self.group_id, entry.entry_id, kept, session_id)

    def _give_owner(self, entry: GroupEntry, encoding: Encoding) -> None:
        """Move a message into the queue of the session that it belongs to, or drop it if that has ended."""
        subscriber = self._dispatch.subscribers.get(entry.kept_for)
        if subscriber is None:
            self.done(entry.entry_id)
            self.lost("session_gone")
            return
        subscription = subscriber.subscriptions.get(f"$share/{self.share_name}/{self.topic_filter}")
        ids = (subscription.identifier,) if subscription is not None and subscription.identifier else ()
        self._dispatch.cluster.publish(Handover(self, subscriber, ids, entry, encoding))

    def _take(self, member: GroupMember, session: Session, entry: GroupEntry, encoding: Encoding) -> None:
        """A QoS 2 message for an ephemeral member: it is nobody else's from now on [MQTT-4.8.2-5]."""

        def taken(error: Exception | None) -> None:
            session.promised -= 1
            if error is not None:
                self.give_back_later(entry)
                return
            self._less()
            if session.closed:
                self.lost("session_gone")
            else:
                session.deliver(encoding, 2, False, member.subscription_ids)

        session.promised += 1
        self._dispatch.cluster.group_acknowledge(self.group_id, entry.entry_id, taken)

    def _set_hungry(self) -> None:
        for member in self.members:
            session = member.subscriber.session
            if session is not None:
                session.hungry = True


def _entry_order(entry: GroupEntry) -> tuple[int, int]:
    """Stream ids are `<ms>-<n>`: they sort as numbers."""
    ms, _, number = entry.entry_id.partition(b"-")
    return int(ms), int(number or b"0")
