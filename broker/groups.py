"""Shared subscriptions: each message goes to one member, and stays in the group's queue until that member is done.

The queue is in the store, which gives each node no more of it than the windows of the node's connected members take.
Here it is decided which of these members gets what. An entry that none can take now waits in memory; where other
nodes have members too it does not wait long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import trio

from broker.announcing import RETRY_S, Announcing
from broker.choosing import CHOSEN, Turns, if_idle, may_read
from broker.gate import NOT_AUTHORIZED
from broker.group_messages import GroupMessages
from broker.handover import Handover
from broker.holding import Holding
from broker.message import Message
from broker.routes import AckSlot, GroupMember, Subscriber
from broker.session.encoding import Encoding
from broker.session.ports import GroupDelivery, GroupRun
from broker.session.session import Session
from cluster.api import (
    LOCAL,
    GroupEntry,
    GroupMemberState,
)

if TYPE_CHECKING:
    from broker.table import Table

#: How long an entry waits for a busy member here before the members of other nodes may have it.
PATIENCE_S = 1.0

#: How often an entry that no member here may read comes here before it is dropped. The store gives what comes back to
#: another node, and nobody knows which of them have a member that may read it: so all had it, but by a rare chance.
UNREAD_TRIES = 10
#: Entries that no member here may read and that went to other nodes: so many are remembered.
UNREAD_LIMIT = 10_000


class Group:
    """The members of one shared subscription, on this node and on others, and who of those here is next."""

    __slots__ = (
        "_given",
        "_here",
        "_named",
        "_next_node",
        "_refused",
        "_returned",
        "_table",
        "_turns",
        "_unread",
        "_waiting",
        "_watching",
        "announcing",
        "group_id",
        "holding",
        "members",
        "nodes",
        "online",
        "routed",
        "share_name",
        "strategy",
        "topic_filter",
    )

    def __init__(self, group_id: bytes, table: Table, share_name: str, topic_filter: str, strategy: str) -> None:
        self.group_id = group_id
        self.share_name = share_name
        self.topic_filter = topic_filter
        self.strategy = strategy
        self._table = table
        #: By session id: all sessions of this node and the persistent ones of others.
        self.members: dict[bytes, GroupMember] = {}
        #: Those that are connected here.
        self.online: list[GroupMember] = []
        #: Other nodes with connected members.
        self.nodes: list[bytes] = []
        #: Messages are matched with it.
        self.routed = False
        self.announcing = Announcing(table, self)
        self.holding = Holding(table)
        #: Ids of the entries that this node has to do with.
        self._here: set[bytes] = set()
        #: Entries that wait for any member, and for a certain one.
        self._waiting: deque[GroupEntry] = deque()
        self._named: dict[bytes, deque[GroupEntry]] = {}
        #: Entries that the store could not hand over just now, and those that it gets back once it knows who left.
        self._refused: list[GroupEntry] = []
        self._returned: list[GroupEntry] = []
        #: Entries that nobody here may read, and how often they came.
        self._unread: dict[bytes, int] = {}
        self._turns = Turns(strategy)
        self._next_node = 0
        #: How many entries that waited were given out; a task looks whether that moves.
        self._given = 0
        self._watching = False

    @property
    def name(self) -> str:
        """The whole filter."""
        return f"$share/{self.share_name}/{self.topic_filter}"

    # -- members

    def join(self, member: GroupMember) -> None:
        """Add a member, or change its options."""
        session_id = member.subscriber.session_id
        known = self.members.get(session_id)
        self.members[session_id] = member
        if known is not None and known in self.online:
            self.online[self.online.index(known)] = member
            member.ready = known.ready
        elif member.subscriber.session is not None:
            self.came(member.subscriber, False)

    def subscribed(self, subscriber: Subscriber) -> None:
        """SUBACK was sent."""
        member = self.members.get(subscriber.session_id)
        if member is not None:
            member.ready = True
            self.feed()

    def part(self, subscriber: Subscriber) -> None:
        """Remove a member."""
        self.left(subscriber)
        self.members.pop(subscriber.session_id, None)

    def came(self, subscriber: Subscriber, ready: bool = True) -> None:
        """A member is connected here."""
        member = self.members[subscriber.session_id]
        member.ready = ready
        self.online.append(member)
        self.announcing.changed()
        self.feed()

    def left(self, subscriber: Subscriber) -> None:
        """A member is not connected here any more; what it had comes back with `give_back`."""
        member = self.members.get(subscriber.session_id)
        if member not in self.online:
            return
        self.online.remove(member)
        self.announcing.changed()
        named = self._named.pop(subscriber.session_id, None)
        if named:
            self._send_back(named)
        if not self.online:
            self._return_waiting()
            if not self.nodes:  # nobody is held up for a group without connected members
                self.holding.release()

    def node_came(self, node: bytes) -> None:
        """Another node has connected members."""
        if node not in self.nodes:
            self.nodes.append(node)
            self._watch()

    def node_left(self, node: bytes) -> None:
        """It has none any more."""
        if node in self.nodes:
            self.nodes.remove(node)
            if not self.nodes and not self.online:
                self.holding.release()

    def member_states(self) -> list[GroupMemberState]:
        """The connected members here."""
        return [
            GroupMemberState(
                member.subscriber.session_id, member.subscriber.birth, member.subscriber.persistent, session.window
            )
            for member in self.online
            if (session := member.subscriber.session) is not None
        ]

    def members_told(self) -> None:
        """The cluster knows who is here, and who is not: what those had goes to others."""
        returned, self._returned = self._returned, []
        self._send_back(returned)
        self._table.tidy(self)

    # -- QoS 0

    def choose_node(self, message: Message) -> bytes | None:
        """Who gives a QoS 0 message to a member: another node, b"" for this one, or None where nobody is connected.

        In turn; the strategies that look at the message choose by it as long as the nodes stay the same.
        """
        nodes = self.nodes
        if not nodes:
            return b"" if self.online else None
        if self.online:
            if self.strategy == LOCAL:
                return b""
            nodes = [b"", *nodes]
        if self.strategy in CHOSEN:
            return nodes[self._turns.hash(message) % len(nodes)]
        self._next_node += 1
        return nodes[self._next_node % len(nodes)]

    def give_qos0(self, message: Message, encoding: Encoding) -> None:
        """Send a QoS 0 message to one member here, or drop it."""
        online = self.online
        if not online:
            self.lost("no_member_online")
            return
        member = self._turns.pick_any(online, message)
        if member is None:
            self.lost(NOT_AUTHORIZED)
            return
        connection = member.subscriber.connection
        if connection is not None:
            connection.send_qos0(encoding, False, member.subscription_ids)

    # -- giving out

    def offer(self, entry: GroupEntry, encoding: Encoding) -> None:
        """The store gave this node an entry: give it to a member, or let it wait its turn."""
        if entry.entry_id in self._here:
            return
        self._here.add(entry.entry_id)
        if entry.kept_for:
            self._give_owner(entry, encoding)
        elif entry.member:
            self._offer_named(entry, encoding)
        elif not self.online:
            self._send_back((entry,))
        elif self._waiting or not self._give(self._turns.pick(self.online, entry.message), entry, encoding):
            self._let_wait(entry)

    def offer_run(self, messages: GroupMessages, entry_ids: Sequence[bytes], chosen: Sequence[bytes]) -> None:
        """The same for the messages of a run; for none whose id is b""."""
        if not self._give_run(messages, entry_ids, chosen):
            for place, entry_id in enumerate(entry_ids):
                if entry_id:
                    self.offer(*messages.entry(place, entry_id, chosen[place]))

    def _give_run(self, messages: GroupMessages, entry_ids: Sequence[bytes], chosen: Sequence[bytes]) -> bool:
        """Give each to the member that would get it by itself. False, and nothing is done, if any is not to be given at
        once, or not to any member."""
        given = [entry_id for entry_id in entry_ids if entry_id]
        count = len(given)
        if not count or self._waiting or any(chosen) or not entry_ids[count - 1] or not self._here.isdisjoint(given):
            return False
        rooms: list[int] = []
        for member in self.online:
            connection, session = member.subscriber.connection, member.subscriber.session
            if connection is None or session is None or connection.gate is not None or not member.subscription.qos:
                return False
            rooms.append(session.credit() - session.promised if member.ready and session.idle() else 0)
        if sum(rooms) < count:
            return False
        self._here.update(given)
        for member, places in zip(self.online, self._turns.deal(rooms, count), strict=True):
            if places:
                self._give_places(member, messages, places, [given[at] for at in places])
        return True

    def _give_places(
        self, member: GroupMember, messages: GroupMessages, places: Sequence[int], entry_ids: Sequence[bytes]
    ) -> None:
        session = member.subscriber.session
        assert session is not None
        run = GroupRun(self, messages, places, entry_ids)
        if member.subscription.identifier or not session.deliver_group_run(messages.run.pick(places), run):
            for place, entry_id in zip(places, entry_ids, strict=True):
                self._give(member, *messages.entry(place, entry_id))

    def _let_wait(self, entry: GroupEntry) -> None:
        if self._anybody_for(entry):
            self._waiting.append(entry)
            self._set_hungry()
            self._watch()

    def _anybody_for(self, entry: GroupEntry) -> bool:
        """Whether some member here may read the entry. If not, it goes to another node, or nowhere."""
        if any(may_read(member, entry.message) for member in self.online):
            return True
        came = self._unread.pop(entry.entry_id, 0) + 1
        if not self.nodes or came > UNREAD_TRIES:
            self.lost(NOT_AUTHORIZED)
            self.done(entry)
        else:
            if len(self._unread) >= UNREAD_LIMIT:
                del self._unread[next(iter(self._unread))]
            self._unread[entry.entry_id] = came
            self._send_back((entry,))
        return False

    def _offer_named(self, entry: GroupEntry, encoding: Encoding) -> None:
        member = self.members.get(entry.member)
        if member is None or member not in self.online:
            self._send_back((entry,))
            return
        if not may_read(member, entry.message):  # not whom the strategy would choose, but somebody
            if not self._give(self._turns.pick(self.online, entry.message), entry, encoding):
                self._let_wait(entry)
            return
        queue = self._named.get(entry.member)
        if queue or not self._give(if_idle(member), entry, encoding):
            if queue is None:
                queue = self._named[entry.member] = deque()
            queue.append(entry)
            self._set_hungry()

    def take(self, entries: Iterable[GroupEntry]) -> None:
        """Entries that came otherwise than in answer to a publication; perhaps old ones."""
        now_ms = self._table.cluster.now_ms()
        for entry in entries:
            remaining = entry.message.remaining_s(now_ms)
            if remaining or entry.kept_for:
                self.offer(entry, self._table.encoding(entry.message, remaining))
            else:
                self._expired(entry)

    def feed(self) -> None:
        """A member has room: give out what waits, in order."""
        if self._named:
            for session_id, queue in list(self._named.items()):
                self._feed_from(queue, self.members[session_id])
                if not queue:
                    del self._named[session_id]
        if self._waiting:
            self._feed_from(self._waiting, None)
        if self._named or self._waiting:
            self._set_hungry()

    def _feed_from(self, queue: deque[GroupEntry], only: GroupMember | None) -> None:
        now_ms = self._table.cluster.now_ms()
        while queue:
            entry = queue[0]
            remaining = entry.message.remaining_s(now_ms)
            if remaining == 0:
                self._expired(entry)
            elif only is not None and not may_read(only, entry.message):
                self._let_wait(entry)
            else:
                member = self._turns.pick(self.online, entry.message) if only is None else if_idle(only)
                given = self._give(member, entry, self._table.encoding(entry.message, remaining))
                if not given and (only is not None or self._anybody_for(entry)):
                    return
            self._given += 1
            queue.popleft()

    def give_back(self, entries: Sequence[GroupEntry]) -> None:
        """A member left before it acknowledged these (oldest first): others get them, before anything newer."""
        now_ms = self._table.cluster.now_ms()
        for at, entry in enumerate(entries):
            if entry.member:
                self._send_back((entry,))
                continue
            encoding = self._table.encoding(entry.message, entry.message.remaining_s(now_ms))
            if encoding.remaining_s == 0:
                self._expired(entry)
            elif not self._give(self._turns.pick(self.online, entry.message), entry, encoding):
                if self.online and not self._anybody_for(entry):
                    continue
                # What waits is newer: it goes back with the rest, which the store gives out in order.
                waiting, self._waiting = self._waiting, deque()
                self._send_back([*entries[at:], *waiting])
                return

    def _send_back(self, entries: Iterable[GroupEntry]) -> None:
        """The store gives them to others; first it has to know who is not here any more."""
        if self.announcing.busy:
            self._returned += entries
            return
        for entry in entries:
            self._here.discard(entry.entry_id)
            self._table.cluster.group_acknowledge(self.group_id, entry.entry_id, None, again=True)

    def give_back_later(self, entry: GroupEntry) -> None:
        """The store did not take what was to be done with this one: try again after a while."""
        if not self._refused:
            self._table.spawn(self._try_again)
        self._refused.append(entry)

    async def _try_again(self) -> None:
        await trio.sleep(RETRY_S)
        entries, self._refused = sorted(self._refused, key=_entry_order), []
        now_ms = self._table.cluster.now_ms()
        anyones: list[GroupEntry] = []
        for entry in entries:
            if entry.kept_for:
                self._give_owner(entry, self._table.encoding(entry.message, entry.message.remaining_s(now_ms)))
            elif entry.member:
                self._here.discard(entry.entry_id)
                self.take((entry,))
            else:
                anyones.append(entry)
        self._waiting.extendleft(reversed(anyones))
        if self.online:
            self.feed()
            self._watch()
        else:
            self._return_waiting()

    def _return_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        self._send_back(waiting)

    def _watch(self) -> None:
        if self._waiting and self.nodes and not self._watching:
            self._watching = True
            self._table.spawn(self._wait_a_while)

    async def _wait_a_while(self) -> None:
        """Entries that nobody here takes go to members elsewhere."""
        while self._waiting and self.nodes:
            given = self._given
            await trio.sleep(PATIENCE_S)
            if given == self._given:
                self._return_waiting()
        self._watching = False

    def lost(self, reason: str) -> None:
        """Count a message that reaches nobody."""
        self._table.metrics.dropped[reason] += 1

    def _expired(self, entry: GroupEntry) -> None:
        self.lost("expired")
        self.done(entry)

    def done(self, entry: GroupEntry) -> None:
        """The entry may leave the queue."""
        if self._unread:
            self._unread.pop(entry.entry_id, None)
        self._here.discard(entry.entry_id)
        self._table.cluster.group_acknowledge(self.group_id, entry.entry_id, None)
        self.holding.less()

    def done_run(self, entry_ids: Sequence[bytes]) -> None:
        """The same for several."""
        for entry_id in entry_ids if self._unread else ():
            self._unread.pop(entry_id, None)
        self._here.difference_update(entry_ids)
        self._table.cluster.group_done(self.group_id, entry_ids)
        self.holding.less(len(entry_ids))

    def hold(self, slot: AckSlot, count: int = 1) -> bool:
        """Keep back a publisher's acknowledgement, of `count` messages, while connected members have a long queue to
        do; False if not."""
        return bool(self.online or self.nodes) and self.holding.hold(slot, count)

    # -- to one member

    def _give(self, member: GroupMember | None, entry: GroupEntry, encoding: Encoding) -> bool:
        if member is None:
            return False
        subscriber = member.subscriber
        session, connection = subscriber.session, subscriber.connection
        assert session is not None and connection is not None
        qos = min(entry.message.qos, member.subscription.qos)
        if qos == 1:
            if not session.deliver_group(encoding, 1, GroupDelivery(self, entry, member.subscription_ids)):
                self.done(entry)
        elif qos == 0:
            connection.send_qos0(encoding, False, member.subscription_ids)
            self.done(entry)
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
        self._table.cluster.group_acknowledge(self.group_id, entry.entry_id, kept, session_id)

    def _give_owner(self, entry: GroupEntry, encoding: Encoding) -> None:
        """Move a message into the queue of the session that it belongs to, or drop it if that has ended."""
        subscriber = self._table.subscribers.get(entry.kept_for)
        if subscriber is None:
            self.done(entry)
            self.lost("session_gone")
            return
        subscription = subscriber.subscriptions.get(self.name)
        ids = (subscription.identifier,) if subscription is not None and subscription.identifier else ()
        self._table.cluster.publish(Handover(self, subscriber, ids, entry, encoding))

    def _take(self, member: GroupMember, session: Session, entry: GroupEntry, encoding: Encoding) -> None:
        """A QoS 2 message for an ephemeral member: it is nobody else's from now on [MQTT-4.8.2-5]."""

        def taken(error: Exception | None) -> None:
            session.promised -= 1
            if error is not None:
                self.give_back_later(entry)
                return
            self._here.discard(entry.entry_id)
            self.holding.less()
            if session.closed:
                self.lost("session_gone")
            else:
                session.deliver(encoding, 2, False, member.subscription_ids)

        session.promised += 1
        self._table.cluster.group_acknowledge(self.group_id, entry.entry_id, taken)

    def _set_hungry(self) -> None:
        for member in self.online:
            session = member.subscriber.session
            if session is not None:
                session.hungry = True


def _entry_order(entry: GroupEntry) -> tuple[int, int]:
    """Stream ids are `<ms>-<n>`: they sort as numbers."""
    ms, _, number = entry.entry_id.partition(b"-")
    return int(ms), int(number or b"0")
