"""The cluster port in the memory of one process: nothing outlives it, everything else is as with a real store.

Like a store it answers in `flush`, in the order of the calls; so it is also the fast reference that the
contract suite holds against `cluster.redis`.
"""

from __future__ import annotations

import heapq
import secrets
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import trio

from broker.errors import NotOwner, SessionLost, StateError
from broker.log import get_logger
from broker.message import Message
from broker.topics.names import is_shared
from broker.topics.retained import RetainedIndex
from cluster import keys
from cluster.api import (
    PAGE_LIMIT,
    REFUSED_FULL,
    REFUSED_GONE,
    Attachment,
    AttachRequest,
    AttachThen,
    ClusterEvents,
    GroupMemberState,
    GroupTarget,
    NodeTarget,
    Poller,
    Publication,
    QueuedMessage,
    Route,
    RouteChange,
    SessionRef,
    StoredSubscription,
    StoredWill,
    StoreHealth,
    Target,
    shared_group_id,
)
from cluster.inspection import Inspection
from cluster.memory.delayed import Delayed
from cluster.memory.groups import Groups
from cluster.memory.inspection import MemoryInspection
from cluster.memory.registry import MemoryRegistry
from cluster.memory.state import (
    ACKNOWLEDGE,
    DELAYED,
    EXPIRY,
    FIRED,
    GROUP_ACKNOWLEDGE,
    RECEIVED,
    RELEASE,
    RESERVE,
    WILL,
    Call,
    FiredWill,
    Served,
    Session,
    Then,
)
from cluster.policy import NEVER_EXPIRES, TIMER_LEASE_S, ClusterLimits
from cluster.registry import Registry
from cluster.telemetry import LinkCounters, Telemetry

_log = get_logger("cluster")


class MemoryCluster:
    """A `Cluster` without a store: one node, state until the process ends."""

    def __init__(self, node_name: str, limits: ClusterLimits) -> None:
        self.node_name = node_name
        self.registry: Registry = MemoryRegistry()
        self._limits = limits
        self._sessions: dict[bytes, Session] = {}
        self._births = 0
        #: Of the last connection.
        self._epoch = 0
        self._batch: list[Publication | Call] = []
        self._index = RetainedIndex()
        self._retained: dict[str, Message] = {}
        self._groups = Groups(limits.max_group_queue)
        self._delayed = Delayed(limits.max_delayed, self._delay, self._run_timers, self.now_ms)
        self._served = Served()
        self._timers: list[tuple[float, int, int, Session | FiredWill | Message]] = []
        self._timer_number = 0
        self._wake = trio.Event()
        self._events: ClusterEvents | None = None
        self._poller: Poller | None = None
        self._lost: set[bytes] = set()
        self._epoch_offset_s: float | None = None
        self.inspection: Inspection = MemoryInspection(
            self, self._sessions, self._retained, self._groups, self._delayed
        )

    # Life

    async def serve(self, events: ClusterEvents, poller: Poller, *, task_status: object) -> None:
        """See `Cluster.serve`."""
        self._events = events
        self._poller = poller
        events.restore([], [])
        cast("trio.TaskStatus[None]", task_status).started()
        while True:
            self._wake = trio.Event()
            await self._work_off_timers(events)
            self._delayed.publish(events)
            with trio.move_on_at(self._timers[0][0]) if self._timers else trio.CancelScope():
                await self._wake.wait()

    def health(self) -> StoreHealth:
        """See `Cluster.health`."""
        return StoreHealth("memory", "", "memory", True, 0.0, [f"{self.node_name}:1"])

    def now_ms(self) -> int:
        """See `Cluster.now_ms`. Agrees with the trio clock, so that tests may jump over time."""
        if self._epoch_offset_s is None:
            self._epoch_offset_s = time.time() - trio.current_time()
        return int((trio.current_time() + self._epoch_offset_s) * 1000)

    def telemetry(self) -> Telemetry:
        """See `Cluster.telemetry`. There is no way to go."""
        return Telemetry(LinkCounters())

    @property
    def events(self) -> ClusterEvents | None:
        """Whom to tell."""
        return self._events

    def alone(self) -> bool:
        """See `Cluster.alone`."""
        return True

    def holds_lease(self) -> bool:
        """See `Cluster.holds_lease`."""
        return True

    # Sessions

    def attach_then(self, request: AttachRequest, then: AttachThen) -> None:
        """See `Cluster.attach_then`."""
        then(partial(self.attach, request))

    async def attach(self, request: AttachRequest) -> Attachment:
        """See `Cluster.attach`."""
        await trio.lowlevel.checkpoint()
        return self.attach_now(request)

    def attach_now(self, request: AttachRequest) -> Attachment:
        """As `attach`."""
        sid = keys.session_id(request.client_id)
        session = self._sessions.get(sid)
        if (
            session is not None
            and request.identity is not None
            and session.identity not in (None, request.identity)
            and (session.token or not request.may_end(session.identity))
        ):
            raise NotOwner("the session of this client id belongs to another user")
        ended_will: StoredWill | None = None
        ended_subscriptions: list[StoredSubscription] = []
        present = session is not None and not request.clean_start and session.expiry_s > 0
        if session is not None and not present:
            ended_subscriptions = list(session.subscriptions.values())
            if session.will_at >= 0:
                ended_will = session.will
            self.delete(session)
            session = None
        if session is None:
            self._births += 1
            session = Session(request.client_id, sid, self._births, self.now_ms())
            self._sessions[sid] = session
        session.token = secrets.token_bytes(16)
        if session.identity is None:
            session.identity = request.identity
        session.expiry_s = request.expiry_s
        session.expires_at = session.will_at = -1.0
        session.will = request.will
        self._epoch = max(self._epoch + 1, self.now_ms())
        lowest = min(min(session.queue, default=session.seq + 1), min(session.releasing, default=session.seq + 1))
        return Attachment(
            SessionRef(request.client_id, sid, session.birth, session.token),
            present,
            list(session.subscriptions.values()),
            session.seq,
            lowest,
            session.sent_seq,
            sorted(session.releasing),
            dict(session.inbound),
            ended_will,
            ended_subscriptions,
            self._epoch,
        )

    async def connected(self, client_id: str, identity: str) -> bool:
        """See `Cluster.connected`."""
        await trio.lowlevel.checkpoint()
        session = self._sessions.get(keys.session_id(client_id))
        return session is not None and bool(session.token) and session.identity in (None, identity)

    async def detach(self, ref: SessionRef, expiry_s: int, sent_seq: int, will: bool) -> None:
        """See `Cluster.detach`."""
        await trio.lowlevel.checkpoint()
        self._acknowledge_now(ref)
        session = self._owned(ref)
        if session is None:
            return
        session.token = b""
        session.expiry_s = expiry_s
        session.sent_seq = max(session.sent_seq, sent_seq)
        if not will:
            session.will = None
        now = trio.current_time()
        if expiry_s == 0:
            self.delete(session)
            if session.will is not None:
                self._arm(now, FIRED, FiredWill(ref.client_id, session.will, None))
            return
        if session.will is not None:
            if session.will.delay_s == 0:
                # Due already: no reconnect can cancel it any more [MQTT-3.1.3-9].
                session.wills_under_way += 1
                self._arm(now, FIRED, FiredWill(ref.client_id, session.will, session))
                session.will = None
            else:
                session.will_at = now + min(session.will.delay_s, expiry_s)
                self._arm(session.will_at, WILL, session)
        if expiry_s != NEVER_EXPIRES:
            session.expires_at = now + expiry_s
            self._arm(session.expires_at, EXPIRY, session)

    async def subscribe(self, ref: SessionRef, subscriptions: Sequence[StoredSubscription], persistent: bool) -> None:
        """See `Cluster.subscribe`."""
        await trio.lowlevel.checkpoint()
        session = self._owned_or_lost(ref)
        if persistent:
            self._add(session, subscriptions)

    def _add(self, session: Session, subscriptions: Sequence[StoredSubscription]) -> None:
        for subscription in subscriptions:
            topic_filter = subscription.topic_filter
            session.subscriptions[topic_filter] = subscription
            if is_shared(topic_filter):
                self._groups.join(topic_filter, session.session_id, session.birth)

    async def unsubscribe(self, ref: SessionRef, topic_filters: Sequence[str], persistent: bool) -> None:
        """See `Cluster.unsubscribe`."""
        await trio.lowlevel.checkpoint()
        self._remove(self._owned_or_lost(ref), topic_filters)

    def _remove(self, session: Session, topic_filters: Sequence[str]) -> None:
        for topic_filter in topic_filters:
            if session.subscriptions.pop(topic_filter, None) is not None and is_shared(topic_filter):
                self._groups.leave(shared_group_id(topic_filter), session.session_id, session.birth)

    def change_offline(self, session: Session, add: Sequence[StoredSubscription], remove: Sequence[str]) -> None:
        """For the inspection: changes subscriptions that no connection has, so the broker's table has to be told."""
        self._remove(session, remove)
        self._add(session, add)
        if self._events is not None:
            gone = [(True, StoredSubscription(topic_filter, 0)) for topic_filter in remove]
            changes = [
                RouteChange(removed, Route(session.session_id, session.client_id, session.birth, subscription))
                for removed, subscription in [*gone, *((False, each) for each in add)]
            ]
            self._events.routes_changed(changes)

    async def page(self, ref: SessionRef, after_seq: int, limit: int) -> list[QueuedMessage]:
        """See `Cluster.page`."""
        await trio.lowlevel.checkpoint()
        session = self._sessions.get(ref.session_id)
        if session is None or session.birth != ref.birth:
            return []
        # A queue is a dict in the order of its seqs.
        result: list[QueuedMessage] = []
        for seq, queued in session.queue.items():
            if seq > after_seq:
                result.append(queued)
                if len(result) >= min(limit, PAGE_LIMIT):
                    break
        return result

    # The batch

    def publish(self, publication: Publication) -> None:
        """See `Cluster.publish`."""
        if publication.retain and publication.message.payload:
            topic = publication.message.topic.decode()
            self._index.add(topic)
            self._index.touch(topic)
        self._batch.append(publication)

    def acknowledge(self, ref: SessionRef, seq: int, sent_seq: int) -> None:
        """See `Cluster.acknowledge`."""
        self._batch.append(Call(ACKNOWLEDGE, ref, seq, sent_seq, None))

    def received(self, ref: SessionRef, seq: int, sent_seq: int, then: Then) -> None:
        """See `Cluster.received`."""
        self._batch.append(Call(RECEIVED, ref, seq, sent_seq, then))

    def reserve(self, ref: SessionRef, packet_id: int, message_id: bytes, then: Then) -> None:
        """See `Cluster.reserve`."""
        self._batch.append(Call(RESERVE, ref, packet_id, 0, then, b"", message_id))

    def release(self, ref: SessionRef, packet_id: int, message_id: bytes, then: Then) -> None:
        """See `Cluster.release`."""
        self._batch.append(Call(RELEASE, ref, packet_id, 0, then, b"", message_id))

    def group_acknowledge(
        self, group_id: bytes, entry_id: bytes, then: Then | None, keep_for: bytes = b"", again: bool = False
    ) -> None:
        """See `Cluster.group_acknowledge`."""
        self._batch.append(Call(GROUP_ACKNOWLEDGE, None, int(again), 0, then, group_id, entry_id, keep_for))

    def group_done(self, group_id: bytes, entry_ids: Sequence[bytes]) -> None:
        """See `Cluster.group_done`."""
        for entry_id in entry_ids:
            self.group_acknowledge(group_id, entry_id, None)

    def forward(self, nodes: Sequence[NodeTarget], family: int, run: bytes, count: int) -> None:
        """See `Cluster.forward`. There are no other nodes."""

    def relays(self) -> bool:
        """See `Cluster.relays`. There are no other nodes."""
        return False

    def flush(self) -> None:
        """See `Cluster.flush`. What the answers add to the batch waits for the next flush."""
        batch = self._batch
        self._batch = []
        for item in batch:
            if isinstance(item, Publication):
                self._store(item)
                self._finished(item)
            else:
                self._perform(item)
        self._give_out()
        if self._batch and self._poller is not None:
            self._poller.wake()

    def _finished(self, publication: Publication) -> None:
        publication.stored()

    def _give_out(self) -> None:
        if self._events is not None:
            for group_id, entries, depth in self._groups.assign():
                self._events.group_entries(group_id, entries, depth)

    def _store(self, publication: Publication) -> None:
        message = publication.message
        if publication.delay_s:
            self._delayed.keep(publication)
            return
        if publication.retain:
            topic = message.topic.decode()
            if message.payload:
                self._retained[topic] = message
                self._index.add(topic)
            else:
                self._retained.pop(topic, None)
                self._index.discard(topic)
        targets, groups = publication.targets, publication.groups
        if publication.payloads:
            self._store_run(publication)
        else:
            served = self._served.of(message.message_id) if publication.deduplicate else None
            for target in targets:
                self._enqueue(target, message, served)
            for group in groups:
                self._enqueue_for_group(group, message, served)
        for target in targets:
            publication.reached(target)
        for group in groups:
            publication.given(group)

    def _store_run(self, publication: Publication) -> None:
        known = publication.message
        messages = [
            Message(known.topic, payload, known.qos, False, b"", -1, known.accepted_at_ms, b"", known.publisher)
            for payload in publication.payloads
        ]
        for target in publication.targets:
            seqs: list[int] = []
            for message in messages:
                self._enqueue(target, message, None)
                seqs.append(target.seq)
            target.seqs = seqs
        for group in publication.groups:
            entry_ids: list[bytes] = []
            chosen: list[bytes] = []
            depths: list[int] = []
            for message in messages:
                self._enqueue_for_group(group, message, None)
                entry, group.entry = group.entry, None
                entry_ids.append(b"" if entry is None else entry.entry_id)
                chosen.append(b"" if entry is None else entry.member)
                depths.append(group.depth)
            group.entry_ids, group.chosen, group.depths = entry_ids, chosen, depths

    def _enqueue(self, target: Target, message: Message, served: set[bytes] | None) -> None:
        if not target.qos:  # for sessions of other nodes
            return
        session = self._sessions.get(target.session_id)
        if session is None or session.birth != target.birth:
            target.seq = REFUSED_GONE
            return
        if served is not None and target.session_id in served:
            target.seq = 0
            return
        size = message.size()
        if len(session.queue) >= self._limits.max_queued_messages or (
            session.bytes + size > self._limits.max_queued_bytes
        ):
            target.seq = REFUSED_FULL
            return
        session.seq += 1
        target.seq = session.seq
        session.bytes += size
        session.queue[session.seq] = QueuedMessage(
            session.seq, message, target.qos, target.retain, target.subscription_ids
        )
        if served is not None:
            served.add(target.session_id)

    def _enqueue_for_group(self, target: GroupTarget, message: Message, served: set[bytes] | None) -> None:
        queue = self._groups.get(target.group_id)
        if queue is None:
            target.depth = REFUSED_GONE
            return
        if served is None:
            self._groups.add(target, queue, message, self.now_ms())
        elif target.group_id not in served and self._groups.add(target, queue, message, self.now_ms()):
            served.add(target.group_id)

    def _perform(self, call: Call) -> None:
        error: Exception | None = None
        if call.kind == GROUP_ACKNOWLEDGE:
            self._groups.settle(call.name, call.message_id, call.keep_for, bool(call.number))
        else:
            assert call.ref is not None
            session = self._owned(call.ref)
            if session is None:
                error = SessionLost(f"session of {call.ref.client_id[:64]!r} has another owner")
                self._report_lost(call.ref)
            else:
                self._change(session, call)
        if call.then is not None:
            call.then(error)

    def _change(self, session: Session, call: Call) -> None:
        if call.kind == RESERVE:
            session.inbound[call.number] = call.message_id
            return
        if call.kind == RELEASE:
            session.inbound.pop(call.number, None)
            self._served.release(call.message_id)
            return
        if call.sent_seq > session.sent_seq:
            session.sent_seq = call.sent_seq
        queued = session.queue.pop(call.number, None)
        if queued is not None:
            session.bytes -= queued.message.size()
        if call.kind == ACKNOWLEDGE:
            session.releasing.discard(call.number)
        elif queued is not None:
            session.releasing.add(call.number)

    def _owned(self, ref: SessionRef) -> Session | None:
        session = self._sessions.get(ref.session_id)
        if session is None or session.token != ref.token:
            return None
        return session

    def _owned_or_lost(self, ref: SessionRef) -> Session:
        session = self._owned(ref)
        if session is None:
            raise SessionLost(f"session of {ref.client_id[:64]!r} has another owner")
        return session

    def _report_lost(self, ref: SessionRef) -> None:
        if ref.token in self._lost or self._events is None:
            return
        if len(self._lost) >= 10_000:
            self._lost.clear()
        self._lost.add(ref.token)
        self._events.session_lost(ref)

    # Retained messages

    def retained_match(self, topic_filter: str) -> Iterator[str | None]:
        """See `Cluster.retained_match`."""
        return self._index.scan(topic_filter)

    def retained_children(self, prefix: Sequence[str]) -> Iterator[tuple[str, bool, int]]:
        """See `Cluster.retained_children`."""
        return self._index.children(prefix)

    async def retained_values(self, topics: Sequence[str]) -> list[Message | None]:
        """See `Cluster.retained_values`."""
        await trio.lowlevel.checkpoint()
        if len(topics) > PAGE_LIMIT:
            raise StateError(f"{len(topics)} topics asked for, at most {PAGE_LIMIT} at a time")
        now_ms = self.now_ms()
        result: list[Message | None] = []
        for topic in topics:
            message = self._retained.get(topic)
            if message is not None and message.remaining_s(now_ms) == 0:
                del self._retained[topic]
                self._index.discard(topic)
                message = None
            result.append(message)
        return result

    # Groups

    async def group_members(self, topic_filter: str, strategy: str, members: Sequence[GroupMemberState]) -> None:
        """See `Cluster.group_members`."""
        await trio.lowlevel.checkpoint()
        self._groups.connected(topic_filter, strategy, members)
        if self._poller is not None:
            self._poller.wake()

    # Timers

    def _arm(self, due: float, kind: int, what: Session | FiredWill | Message) -> None:
        self._timer_number += 1
        heapq.heappush(self._timers, (due, kind, self._timer_number, what))
        self._run_timers()

    def _run_timers(self) -> None:
        self._wake.set()

    def _delay(self, delay_s: float, message: Message) -> None:
        self._arm(trio.current_time() + delay_s, DELAYED, message)

    async def _work_off_timers(self, events: ClusterEvents) -> None:
        while self._timers and self._timers[0][0] <= trio.current_time():
            due, kind, _, what = heapq.heappop(self._timers)
            if isinstance(what, FiredWill):
                await self._publish_will(events, what)
            elif isinstance(what, Message):
                self._delayed.ripen(what)
            elif kind == WILL:
                if what.will_at == due and what.will is not None:
                    fired = FiredWill(what.client_id, what.will, what)
                    what.wills_under_way += 1
                    what.will_at = -1.0
                    what.will = None
                    await self._publish_will(events, fired)
            elif what.expires_at == due and self._sessions.get(what.session_id) is what:
                if what.wills_under_way:
                    what.expires_at = due + 1.0
                    self._arm(what.expires_at, EXPIRY, what)
                    continue
                self.delete(what)
                await events.session_ended(
                    what.client_id, what.session_id, what.birth, list(what.subscriptions.values())
                )

    async def _publish_will(self, events: ClusterEvents, fired: FiredWill) -> None:
        try:
            await events.will_due(fired.client_id, fired.will)
        except Exception as error:
            _log.warning("cluster.will_failed", client_id=fired.client_id, error=repr(error))
            self._arm(trio.current_time() + TIMER_LEASE_S, FIRED, fired)
        else:
            if fired.session is not None:
                fired.session.wills_under_way -= 1

    def delete(self, session: Session) -> None:
        """It ends, but for its will."""
        session.token = b""
        session.will_at = session.expires_at = -1.0
        del self._sessions[session.session_id]
        for topic_filter in session.subscriptions:
            if is_shared(topic_filter):
                self._groups.leave(shared_group_id(topic_filter), session.session_id, session.birth)

    def _acknowledge_now(self, ref: SessionRef) -> None:
        """What was acknowledged before a connection ended comes before its end, as on one link to a store."""
        rest: list[Publication | Call] = []
        for item in self._batch:
            if isinstance(item, Call) and item.ref is ref and item.kind == ACKNOWLEDGE:
                self._perform(item)
            else:
                rest.append(item)
        self._batch = rest
