"""What operators ask of the state in the memory of one process, and change: see `cluster.inspection`."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import trio

from broker.errors import SessionConnected
from broker.message import Message
from cluster import keys
from cluster.api import PAGE_LIMIT, QueuedMessage, StoredSubscription
from cluster.inspection import (
    LIST_LIMIT,
    DelayedMessage,
    GroupInfo,
    GroupMember,
    GroupTotals,
    SessionState,
    StoreMemory,
    group_place,
    make_id,
    parse_id,
)
from cluster.memory.delayed import Delayed
from cluster.memory.groups import GroupQueue, Groups
from cluster.memory.state import Session

if TYPE_CHECKING:
    from cluster.memory.cluster import MemoryCluster


class MemoryInspection:
    """Implements `cluster.inspection.Inspection`."""

    def __init__(
        self,
        cluster: MemoryCluster,
        sessions: Mapping[bytes, Session],
        retained: Mapping[str, Message],
        groups: Groups,
        delayed: Delayed,
    ) -> None:
        self._cluster = cluster
        self._sessions = sessions
        self._retained = retained
        self._groups = groups
        self._delayed = delayed

    async def sessions(self, after: str, limit: int, prefix: str = "") -> list[SessionState]:
        """See `Inspection`."""
        await trio.lowlevel.checkpoint()
        found = (
            each
            for each in self._sessions.values()
            if each.expiry_s and each.client_id > after and each.client_id.startswith(prefix)
        )
        return [self._state(each) for each in heapq.nsmallest(min(limit, LIST_LIMIT), found, key=_client_id)]

    async def session(self, client_id: str) -> SessionState | None:
        """See `Inspection`."""
        await trio.lowlevel.checkpoint()
        session = self._find(client_id)
        return self._state(session) if session is not None else None

    async def subscriptions(self, client_id: str) -> list[StoredSubscription] | None:
        """See `Inspection`."""
        await trio.lowlevel.checkpoint()
        session = self._find(client_id)
        return list(session.subscriptions.values()) if session is not None else None

    async def end_session(self, client_id: str) -> bool:
        """See `Inspection`."""
        await trio.lowlevel.checkpoint()
        session = self._free(client_id)
        if session is None:
            return False
        session.will = None
        self._cluster.delete(session)
        events = self._cluster.events
        if events is not None:
            ended = list(session.subscriptions.values())
            await events.session_ended(client_id, session.session_id, session.birth, ended)
        return True

    async def queue(self, client_id: str, after_seq: int, limit: int) -> list[QueuedMessage]:
        """See `Inspection`."""
        await trio.lowlevel.checkpoint()
        session = self._find(client_id)
        if session is None:
            return []
        found = [queued for seq, queued in session.queue.items() if seq > after_seq]
        return found[: min(limit, PAGE_LIMIT)]

    async def change_subscriptions(
        self, client_id: str, add: Sequence[StoredSubscription], remove: Sequence[str]
    ) -> bool:
        """See `Inspection`."""
        await trio.lowlevel.checkpoint()
        session = self._free(client_id)
        if session is None:
            return False
        added = {each.topic_filter for each in add}
        self._cluster.change_offline(session, add, [each for each in remove if each not in added])
        return True

    async def groups(self, after: str, limit: int, prefix: str = "") -> list[GroupInfo]:
        """See `Inspection`."""
        await trio.lowlevel.checkpoint()
        found = (
            (place, group_id, name, queue)
            for group_id, name, queue in self._groups.all()
            if name.startswith(prefix) and (place := group_place(name.encode(), group_id)) > after
        )
        chosen = heapq.nsmallest(min(limit, LIST_LIMIT), found, key=lambda each: each[0])
        return [self._group(group_id, name, queue) for _, group_id, name, queue in chosen]

    async def group(self, name: str) -> GroupInfo | None:
        """See `Inspection`."""
        await trio.lowlevel.checkpoint()
        group_id, queue = self._queue(name)
        return self._group(group_id, name, queue) if queue is not None else None

    async def group_members(self, name: str, limit: int) -> list[GroupMember]:
        """See `Inspection`."""
        await trio.lowlevel.checkpoint()
        _, queue = self._queue(name)
        if queue is None:
            return []
        members: list[GroupMember] = []
        for session_id in islice(_sessions(queue), min(limit, LIST_LIMIT)):
            session = self._sessions.get(session_id)
            node = self._cluster.node_name if session_id in queue.members else ""
            client_id = session.client_id if session is not None else ""
            members.append(GroupMember(session_id, client_id, node, session_id in queue.joined))
        return members

    def _queue(self, name: str) -> tuple[bytes, GroupQueue | None]:
        return next(((group_id, queue) for group_id, known, queue in self._groups.all() if known == name), (b"", None))

    def _group(self, group_id: bytes, topic_filter: str, queue: GroupQueue) -> GroupInfo:
        state = queue.state(self._cluster.now_ms())
        here = self._cluster.node_name
        return GroupInfo(
            group_id,
            topic_filter,
            queue.strategy,
            len(_sessions(queue)),
            {here: len(queue.members)} if queue.members else {},
            state.lag,
            state.pending,
            {here: state.pending} if queue.members else {},
            len(queue),
            state.oldest_ms,
        )

    async def group_totals(self) -> GroupTotals:
        """See `Inspection`."""
        await trio.lowlevel.checkpoint()
        states = [queue.state(self._cluster.now_ms()) for _, _, queue in self._groups.all()]
        return GroupTotals(
            len(states),
            sum(each.lag for each in states),
            max((each.lag for each in states), default=0),
            sum(each.pending for each in states),
            max((each.oldest_ms for each in states), default=0),
        )

    async def delayed(self, after: str, limit: int) -> list[DelayedMessage]:
        """See `Inspection`."""
        last = parse_id(after) if after else (0, -1, b"")
        await trio.lowlevel.checkpoint()
        found = [
            (place, message)
            for due_ms, message_id, message in self._delayed.places()
            if (place := (due_ms, 0, message_id)) > last
        ]
        chosen = heapq.nsmallest(min(limit, LIST_LIMIT), found, key=lambda each: each[0])
        return [DelayedMessage(make_id(place), place[0], message) for place, message in chosen]

    async def delayed_message(self, delayed_id: str) -> DelayedMessage | None:
        """See `Inspection`."""
        due_ms, _, message_id = parse_id(delayed_id)
        await trio.lowlevel.checkpoint()
        found = next((each for each in self._delayed.places() if each[:2] == (due_ms, message_id)), None)
        return DelayedMessage(delayed_id, due_ms, found[2]) if found is not None else None

    async def cancel_delayed(self, delayed_id: str) -> bool:
        """See `Inspection`."""
        due_ms, _, message_id = parse_id(delayed_id)
        await trio.lowlevel.checkpoint()
        return self._delayed.cancel(message_id, due_ms)

    async def memory(self) -> list[StoreMemory]:
        """See `Inspection`."""
        await trio.lowlevel.checkpoint()
        return []

    async def session_count(self) -> int:
        """See `Inspection`."""
        await trio.lowlevel.checkpoint()
        return sum(each.expiry_s > 0 for each in self._sessions.values())

    async def retained_count(self) -> tuple[int, int | None]:
        """See `Inspection`."""
        await trio.lowlevel.checkpoint()
        return len(self._retained), None

    def _find(self, client_id: str) -> Session | None:
        return self._sessions.get(keys.session_id(client_id))

    def _free(self, client_id: str) -> Session | None:
        """A session that nobody is connected with."""
        session = self._find(client_id)
        if session is not None and session.token:
            node = self._cluster.node_name
            raise SessionConnected(f"{client_id[:64]!r} is connected to node {node!r}", node)
        return session

    def _state(self, session: Session) -> SessionState:
        connected = bool(session.token)
        now_ms = self._cluster.now_ms()
        ends_in_s = session.expires_at - trio.current_time()
        oldest = next(iter(session.queue.values()), None)
        return SessionState(
            session.client_id,
            session.birth,
            self._cluster.node_name if connected else "",
            connected,
            session.expiry_s,
            0 if connected or session.expires_at < 0 else now_ms + int(ends_in_s * 1000),
            session.created_ms,
            bool(session.identity),
            len(session.subscriptions),
            len(session.queue),
            session.bytes,
            max(0, now_ms - oldest.message.accepted_at_ms) if oldest is not None else 0,
            sum(seq <= session.sent_seq for seq in session.queue),
            len(session.releasing),
            len(session.inbound),
        )


def _client_id(session: Session) -> str:
    return session.client_id


def _sessions(queue: GroupQueue) -> dict[bytes, None]:
    """All members of a group."""
    return dict.fromkeys((*queue.joined, *queue.members))
