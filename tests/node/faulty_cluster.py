"""A cluster in memory that a test can slow down, fill up and take away, and that plays another node."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import trio

from broker.codec.runs import split_run
from broker.errors import ClusterError, StoreFull, StoreUnavailable
from broker.message import Message
from broker.topics.names import is_shared
from cluster import keys
from cluster.api import (
    Attachment,
    AttachRequest,
    AttachThen,
    ClusterEvents,
    Extension,
    GroupMemberState,
    NodeRoute,
    NodeTarget,
    Publication,
    QueuedMessage,
    Route,
    RouteChange,
    SessionRef,
    StoredSubscription,
    Target,
)
from cluster.memory import MemoryCluster
from cluster.memory.state import Call, Session
from cluster.policy import ClusterLimits


class Gate:
    """Passes calls while open; while shut they wait, and `waiting` says how many do."""

    def __init__(self) -> None:
        self._open = trio.Event()
        self._open.set()
        self.waiting = 0

    def shut(self) -> None:
        self._open = trio.Event()

    def open(self) -> None:
        self._open.set()

    @property
    def closed(self) -> bool:
        return not self._open.is_set()

    async def passed(self) -> None:
        self.waiting += 1
        await self._open.wait()
        self.waiting -= 1


class FaultyCluster(MemoryCluster):
    """A memory cluster that a test can slow down, fill up and take away.

    `held` keeps back the answers of the batch. `full` refuses what adds data, or lets it wait. `down` fails what
    waits for an answer and keeps the batch. The gates keep coroutines waiting: `attaching` before the session is
    changed, `attached` after it was, `paged` after the page was read, `subscribing` and `subscribed` likewise.

    Another node is what the test makes of it with `elsewhere`, `change_routes` and the `events`. What is sent there is
    in `forwarded` and, of publications, in `pushed`; QoS 0 messages for persistent sessions there in `passed_on`.
    """

    def __init__(self, limits: ClusterLimits) -> None:
        super().__init__("a", limits)
        self.held = False
        #: What is published now is stored, and then waits for the version of the route table.
        self.doubtful = False
        self._doubted: list[Publication] = []
        self._full = False
        #: What waits for room.
        self._waiting: list[Publication | Call] = []
        self.down = False
        self.single = True
        self.attaching = Gate()
        self.attached = Gate()
        self.paged = Gate()
        self.retained_read = Gate()
        self.group_told = Gate()
        self.unsubscribing = Gate()
        self.forwarded: list[tuple[list[bytes], int, bytes]] = []
        self.pushed: list[tuple[bytes, bool, list[bytes], bytes]] = []
        self.passed_on: list[tuple[bytes, bytes]] = []
        #: Numbers of group entries that were given back.
        self.returned: list[int] = []
        self._members: dict[str, Sequence[GroupMemberState]] = {}
        self._attaching_then: deque[tuple[AttachRequest, AttachThen]] = deque()
        #: The store takes its time about sessions that no task waits for.
        self.unanswered = False
        self.subscribing = Gate()
        self.subscribed = Gate()
        self.publications = 0
        #: Whether other nodes take runs of QoS 1.
        self.relaying = False

    @property
    def events(self) -> ClusterEvents:
        """The broker."""
        assert self._events is not None
        return self._events

    def alone(self) -> bool:
        return self.single

    @property
    def full(self) -> bool:
        """Refuses what adds data, or lets it wait."""
        return self._full

    @full.setter
    def full(self, full: bool) -> None:
        self._full = full
        if self._poller is not None:
            self._poller.wake()

    def flush(self) -> None:
        self._attach_now()
        if not self.held and not self.down:
            self._batch = self._waiting + self._batch
            self._waiting = []
            if self.full:
                # What waits goes before everything that comes later.
                self._waiting = [item for item in self._batch if isinstance(item, Publication) and item.patient]
                self._batch = [item for item in self._batch if item not in self._waiting]
            super().flush()

    def publish(self, publication: Publication) -> None:
        self.publications += 1
        if self.doubtful:
            self._doubted.append(publication)
        super().publish(publication)

    def _finished(self, publication: Publication) -> None:
        if publication not in self._doubted:
            super()._finished(publication)

    def prove(self) -> None:
        """The version is known: what waited for it is answered."""
        doubted, self._doubted = self._doubted, []
        for publication in doubted:
            super()._finished(publication)

    def forward(self, nodes: Sequence[NodeTarget], family: int, run: bytes, count: int) -> None:
        self.forwarded += [([node.node for node in nodes], family, frame) for frame in split_run(run, count)]

    def relays(self) -> bool:
        return self.relaying

    # -- another node

    def elsewhere(self, client_id: str, *filters: str, options: int = 2) -> bytes:
        """A persistent session that is connected to another node, with these subscriptions; returns its id."""
        self._births += 1
        session_id = keys.session_id(client_id)
        session = self._sessions[session_id] = Session(client_id, session_id, self._births)
        session.token = b"another node"
        session.expiry_s = 1000
        for topic_filter in filters:
            session.subscriptions[topic_filter] = StoredSubscription(topic_filter, options)
            if is_shared(topic_filter):
                self._groups.join(topic_filter, session_id, session.birth)
        self.change_routes(*(self.session_route(client_id, name, options) for name in filters))
        return session_id

    def session_route(self, client_id: str, topic_filter: str, options: int = 2, removed: bool = False) -> RouteChange:
        """A change of the subscriptions of a persistent session."""
        session = self._sessions[keys.session_id(client_id)]
        stored = StoredSubscription(topic_filter, options)
        return RouteChange(removed, Route(session.session_id, client_id, session.birth, stored))

    @staticmethod
    def route_change(route: Route, removed: bool = False) -> RouteChange:
        """A change of the subscriptions of any persistent session."""
        return RouteChange(removed, route)

    def under_way(self) -> list[Publication]:
        """Messages without an answer."""
        return [item for item in self._batch if isinstance(item, Publication)]

    def steal(self, client_id: str) -> None:
        """Another node takes the session, and asks nobody."""
        self._sessions[keys.session_id(client_id)].token = b"another node"

    def put(self, client_id: str, payload: bytes) -> tuple[int, Message]:
        """Another node stores a QoS 1 message for a session; returns its seq too."""
        session = self._sessions[keys.session_id(client_id)]
        message = Message(b"t", payload, 1, False)
        target = Target(session.session_id, session.birth, 1, False, ())
        self._enqueue(target, message, None)
        return target.seq, message

    def change_routes(self, *changes: RouteChange) -> list[Extension | None]:
        """Another node changed the route table; returns what the messages on their way have in addition."""
        self.events.routes_changed(changes)
        return [publication.rematch() for publication in self.under_way()]

    def _store(self, publication: Publication) -> None:
        if self.full:
            publication.error = StoreFull("full")
        else:
            super()._store(publication)
            message = publication.message
            packets = publication.packets
            for node in publication.nodes if not publication.payloads else ():
                for each in (message,) if packets is None else packets.messages():
                    self.pushed.append((node.node, node.live, list(node.groups), each.payload))
            for target in publication.targets:
                if not target.qos:
                    self.passed_on.append((target.session_id, message.payload))

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("down")

    def attach_then(self, request: AttachRequest, then: AttachThen) -> None:
        if self.down or self.attaching.closed or self.attached.closed:
            super().attach_then(request, then)
            return
        assert self._poller is not None
        self._attaching_then.append((request, then))
        self._poller.wake()

    def _attach_now(self) -> None:
        """As a store answers: later, in a turn."""
        while self._attaching_then and not self.unanswered:
            request, then = self._attaching_then.popleft()
            outcome: Attachment | Exception
            try:
                outcome = self.attach_now(request)
            except ClusterError as error:
                outcome = error
            then(outcome)

    async def attach(self, request: AttachRequest) -> Attachment:
        await self.attaching.passed()
        self._check()
        attachment = await super().attach(request)
        await self.attached.passed()
        return attachment

    async def detach(self, ref: SessionRef, expiry_s: int, sent_seq: int, will: bool) -> None:
        self._check()
        await super().detach(ref, expiry_s, sent_seq, will)

    async def subscribe(self, ref: SessionRef, subscriptions: Sequence[StoredSubscription], persistent: bool) -> None:
        await self.subscribing.passed()
        self._check()
        if self.full:
            raise StoreFull("full")
        await super().subscribe(ref, subscriptions, persistent)
        await self.subscribed.passed()

    async def unsubscribe(self, ref: SessionRef, topic_filters: Sequence[str], persistent: bool) -> None:
        await self.unsubscribing.passed()
        self._check()
        await super().unsubscribe(ref, topic_filters, persistent)

    async def page(self, ref: SessionRef, after_seq: int, limit: int) -> list[QueuedMessage]:
        self._check()
        messages = await super().page(ref, after_seq, limit)
        await self.paged.passed()
        return messages

    def told_members(self, topic_filter: str) -> dict[str, tuple[bool, int]]:
        """What the node says of its connected members: whether they are persistent, and their windows."""
        names = {session.session_id: session.client_id for session in self._sessions.values()}
        return {names[member.session_id]: (member.persistent, member.window) for member in self._members[topic_filter]}

    def group_acknowledge(
        self,
        group_id: bytes,
        entry_id: bytes,
        then: Callable[[Exception | None], None] | None,
        keep_for: bytes = b"",
        again: bool = False,
    ) -> None:
        if again:
            self.returned.append(int(entry_id))
        super().group_acknowledge(group_id, entry_id, then, keep_for, again)

    async def group_members(self, topic_filter: str, strategy: str, members: Sequence[GroupMemberState]) -> None:
        self._members[topic_filter] = members
        self._check()
        await super().group_members(topic_filter, strategy, members)
        await self.group_told.passed()

    async def retained_values(self, topics: Sequence[str]) -> list[Message | None]:
        self._check()
        values = await super().retained_values(topics)
        await self.retained_read.passed()
        return values

    def fail(self) -> None:
        """The store goes away."""
        self.down = True
        self.events.store_changed(False)

    def recover(self) -> None:
        """It is there again."""
        self.down = False
        self.events.store_changed(True)

    def waiting(self) -> int:
        """Publications that wait for room."""
        return len(self._waiting)

    def queue_length(self, client_id: str) -> int:
        """Messages in the queue of a persistent session."""
        return sum(len(session.queue) for session in self._sessions.values() if session.client_id == client_id)

    def inbound_ids(self, client_id: str) -> set[int]:
        """Packet ids of inbound QoS 2 that the store keeps."""
        return {
            packet_id
            for session in self._sessions.values()
            if session.client_id == client_id
            for packet_id in session.inbound
        }

    def inbound_messages(self, client_id: str) -> list[bytes]:
        """Message ids of inbound QoS 2 that the store keeps."""
        sessions = [session for session in self._sessions.values() if session.client_id == client_id]
        return [message_id for session in sessions for message_id in session.inbound.values()]

    def owned(self, client_id: str) -> int:
        """How many sessions of this client id have an owner."""
        return sum(session.client_id == client_id and session.token != b"" for session in self._sessions.values())


def node_route(node: bytes, topic_filter: str, removed: bool = False) -> RouteChange:
    """Another node has a filter, or has it no longer."""
    return RouteChange(removed, node=NodeRoute(node, topic_filter))
