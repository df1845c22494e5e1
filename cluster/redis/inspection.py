"""What operators ask of sessions and of the store, and change: see `cluster.inspection`."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice, takewhile
from typing import Final, cast

import trio

from broker.errors import SessionConnected, StoreUnavailable
from cluster import keys as names
from cluster.api import PAGE_LIMIT, ClusterEvents, Poller, QueuedMessage, SessionRef, StoredSubscription
from cluster.inspection import (
    LIST_LIMIT,
    DelayedMessage,
    GroupInfo,
    GroupMember,
    GroupTotals,
    SessionState,
    StoreMemory,
)
from cluster.keys import RETAINED, SESSION, SESSION_INDEX, SUBSCRIPTIONS, Keys
from cluster.records import pack_subscription
from cluster.redis.asking import Asking
from cluster.redis.delayed import DelayedView
from cluster.redis.durability import info_fields
from cluster.redis.group_totals import TotalsView
from cluster.redis.group_view import GroupView
from cluster.redis.links import Link
from cluster.redis.membership import Membership
from cluster.redis.pipeline import Part
from cluster.redis.repair import Repair
from cluster.redis.sessions import ATTACH_S, Sessions, subscriptions_of
from cluster.redis.versions import Versions

#: Sessions in one call: none holds the store up for long.
_STATES: Final = 50
#: Pages of names of which none is that of a session, in a row, before whoever asks is told to come again.
_STALE_PAGES: Final = 20
#: Answers of functions that change a session: none, done, or its owner is told.
_NONE, _OWNED = 0, 2


class RedisInspection:
    """Implements `cluster.inspection.Inspection`."""

    def __init__(
        self,
        keys: Keys,
        link: Link,
        poller: Poller,
        member: Membership,
        sessions: Sessions,
        repair: Repair,
        versions: Versions,
        events: Callable[[], ClusterEvents | None],
    ) -> None:
        self._keys = keys
        self._link = link
        self._poller = poller
        self._member = member
        self._sessions = sessions
        self._repair = repair
        self._versions = versions
        self._events = events
        self._asking = Asking(link, poller)
        self._groups = GroupView(keys, self._asking, member)
        self._totals = TotalsView(keys, self._asking, member)
        self._delayed = DelayedView(keys, self._asking)

    # Sessions

    async def sessions(self, after: str, limit: int, prefix: str = "") -> list[SessionState]:
        """See `Inspection`. Names of sessions that a library of before ended are in the list yet, and leave it here."""
        limit = min(limit, LIST_LIMIT)
        start, end = after.encode(), prefix.encode()
        most = b"(" + end + b"\xff" if end else b"+"  # no byte of a client id is as high
        # Ids may be long: a partition is asked for little more than its share.
        share = min(limit, 2 * -(-limit // len(self._keys.partitions)) + 2)
        for _ in range(_STALE_PAGES):
            least = b"[" + end if start < end else b"(" + start
            pages = await self._asking.all(
                [
                    ("ZRANGE", each + SESSION_INDEX, least, most, "BYLEX", "LIMIT", 0, share)
                    for each in self._keys.partitions
                ]
            )
            ids = cast("list[list[bytes]]", pages)
            # Behind the last one of a full page there may be others of its partition.
            last = min((page[-1] for page in ids if len(page) == share), default=None)
            first = heapq.merge(*ids) if last is None else takewhile(last.__ge__, heapq.merge(*ids))
            found = list(islice(first, limit))
            client_ids = [name.decode() for name in found]
            states = await self._states(client_ids)
            there = [each for each in states if each is not None]
            if len(there) < len(found):
                await self._forget([name for name, each in zip(client_ids, states, strict=True) if each is None])
            if there or not found:
                return there
            start = found[-1]
        raise StoreUnavailable("names of many sessions that ended are being forgotten: ask again")

    async def session(self, client_id: str) -> SessionState | None:
        """See `Inspection`."""
        return (await self._states([client_id]))[0]

    def _batches(self, client_ids: Sequence[str]) -> list[tuple[bytes, list[tuple[bytes, str]]]]:
        """Session ids with client ids, by prefix, as many as one call is about."""
        by_prefix: dict[bytes, list[tuple[bytes, str]]] = {}
        for client_id in client_ids:
            session_id = names.session_id(client_id)
            by_prefix.setdefault(self._sessions.prefix(session_id), []).append((session_id, client_id))
        return [
            (prefix, group[first : first + _STATES])
            for prefix, group in by_prefix.items()
            for first in range(0, len(group), _STATES)
        ]

    async def _forget(self, client_ids: Sequence[str]) -> None:
        """Take them out of the list, unless there are such sessions by now."""
        await self._asking.all(
            [
                ("FCALL", "rk1_forget_sessions", 1, prefix, *(part for pair in batch for part in pair))
                for prefix, batch in self._batches(client_ids)
            ]
        )

    async def _states(self, client_ids: Sequence[str]) -> list[SessionState | None]:
        batches = self._batches(client_ids)
        replies = await self._asking.all(
            [
                ("FCALL", "rk1_session_states", 1, prefix, *(session_id for session_id, _ in batch))
                for prefix, batch in batches
            ]
        )
        found: dict[str, SessionState | None] = {}
        for (_, batch), reply in zip(batches, replies, strict=True):
            for (_, client_id), fields in zip(batch, cast("list[list[int | bytes]]", reply), strict=True):
                found[client_id] = self._state(client_id, fields) if fields else None
        return [found[client_id] for client_id in client_ids]

    def _state(self, client_id: str, fields: list[int | bytes]) -> SessionState:
        birth, expiry_s, owner, ends, created, somebodys, filters, queued, size, oldest, flying, releasing, inbound = (
            fields
        )
        # A dead owner's session is free, though nobody has freed it yet.
        connected = owner in self._member.members
        return SessionState(
            client_id,
            cast(int, birth),
            node_name(cast(bytes, owner)) if connected else "",
            connected,
            cast(int, expiry_s),
            0 if connected else int(float(ends or 0)),
            int(created or 0),
            bool(somebodys),
            cast(int, filters),
            cast(int, queued),
            cast(int, size),
            max(0, self._member.now_ms() - cast(int, oldest)) if oldest else 0,
            cast(int, flying),
            cast(int, releasing),
            cast(int, inbound),
        )

    async def subscriptions(self, client_id: str) -> list[StoredSubscription] | None:
        """See `Inspection`."""
        session_id = names.session_id(client_id)
        prefix = self._sessions.prefix(session_id)
        there, found = await self._asking.all(
            [("EXISTS", prefix + SESSION + session_id), ("HGETALL", prefix + SUBSCRIPTIONS + session_id)]
        )
        fields = cast("dict[bytes, bytes]", found)
        return subscriptions_of([part for item in fields.items() for part in item]) if there else None

    async def queue(self, client_id: str, after_seq: int, limit: int) -> list[QueuedMessage]:
        """See `Inspection`."""
        session_id = names.session_id(client_id)
        prefix = self._sessions.prefix(session_id)
        birth = await self._asking.one("HGET", prefix + SESSION + session_id, "birth")
        if birth is None:
            return []
        ref = SessionRef(client_id, session_id, int(cast(bytes, birth)), b"")
        return await self._sessions.page(ref, after_seq, min(limit, PAGE_LIMIT))

    async def end_session(self, client_id: str) -> bool:
        """See `Inspection`."""
        session_id = names.session_id(client_id)
        answer = await self._change("rk1_end_session", client_id, session_id)
        if answer is None:
            return False
        _, birth, _, found = cast("tuple[int, int, bytes, list[bytes]]", answer)
        ended = subscriptions_of(found)
        events = self._events()
        if events is not None:
            await events.session_ended(client_id, session_id, birth, ended)
        if ended:
            # Nobody waits for long: they are marked, and the timers go on with them.
            with trio.move_on_after(ATTACH_S):
                await self._sessions.repair_gone(self._sessions.prefix(session_id), session_id)
        return True

    async def change_subscriptions(
        self, client_id: str, add: Sequence[StoredSubscription], remove: Sequence[str]
    ) -> bool:
        """See `Inspection`."""
        session_id = names.session_id(client_id)
        records = {each.topic_filter.encode(): pack_subscription(each) for each in add}
        gone = [name for each in dict.fromkeys(remove) if (name := each.encode()) not in records]
        function = "rk1_change_subscriptions" if records else "rk1_remove_subscriptions"
        fields = [part for item in records.items() for part in item]
        answer = await self._change(function, client_id, session_id, len(gone), *gone, *fields)
        if answer is None:
            return False
        await self._asking.within(self._complete(client_id, session_id, cast(int, answer[1]), records, gone))
        return True

    async def _complete(
        self, client_id: str, session_id: bytes, birth: int, records: Mapping[bytes, bytes], gone: Sequence[bytes]
    ) -> None:
        """What follows a change of subscriptions; should it take too long, the timers go on with it."""
        await self._follow(client_id, session_id, birth, list(records.items()), gone)
        # The client may have connected meanwhile, and changed its mind about the same filters: its word counts.
        touched = [*records, *gone]
        if touched:
            key = self._sessions.prefix(session_id) + SUBSCRIPTIONS + session_id
            now = cast("list[bytes | None]", await self._asking.one("HMGET", key, *touched))
            stored = dict(zip(touched, now, strict=True))
            back = [(name, record) for name in gone if (record := stored[name]) is not None]
            await self._follow(client_id, session_id, birth, back, [each for each in records if stored[each] is None])
        # The table here has it from the log, as on the other nodes.
        await self._versions.caught_up(self._poller.wake)

    async def _follow(
        self,
        client_id: str,
        session_id: bytes,
        birth: int,
        added: Sequence[tuple[bytes, bytes]],
        removed: Sequence[bytes],
    ) -> None:
        if removed:
            await self._repair.removed(session_id, birth, removed)
        if added:
            await self._repair.added(session_id, birth, client_id, added)

    async def _change(
        self, function: str, client_id: str, session_id: bytes, *arguments: Part
    ) -> Sequence[object] | None:
        """The answer; None if there is no such session."""
        prefix = self._sessions.prefix(session_id)
        reply = await self._asking.one("FCALL", function, 1, prefix, session_id, *arguments, durable=True)
        answer = cast("Sequence[object]", reply)
        if answer[0] == _NONE:
            return None
        if answer[0] == _OWNED:
            node = node_name(cast(bytes, answer[1]))
            raise SessionConnected(f"{client_id[:64]!r} is connected to node {node!r}", node)
        return answer

    # Groups, delayed messages

    async def groups(self, after: str, limit: int, prefix: str = "") -> list[GroupInfo]:
        """See `Inspection`."""
        return await self._groups.page(after, min(limit, LIST_LIMIT), prefix)

    async def group(self, name: str) -> GroupInfo | None:
        """See `Inspection`."""
        return await self._groups.one(name)

    async def group_members(self, name: str, limit: int) -> list[GroupMember]:
        """See `Inspection`."""
        return await self._groups.members(name, min(limit, LIST_LIMIT))

    async def group_totals(self) -> GroupTotals:
        """See `Inspection`."""
        return await self._totals.add_up()

    async def delayed(self, after: str, limit: int) -> list[DelayedMessage]:
        """See `Inspection`."""
        return await self._delayed.page(after, min(limit, LIST_LIMIT))

    async def delayed_message(self, delayed_id: str) -> DelayedMessage | None:
        """See `Inspection`."""
        return await self._delayed.one(delayed_id)

    async def cancel_delayed(self, delayed_id: str) -> bool:
        """See `Inspection`."""
        return await self._delayed.cancel(delayed_id)

    # The store

    async def memory(self) -> list[StoreMemory]:
        """See `Inspection`."""
        found: list[StoreMemory] = []
        for link in self._link.primaries():
            info = info_fields(await self._asking.within(link.call("INFO")))
            found.append(
                StoreMemory(
                    str(link.address),
                    _number(info, "used_memory"),
                    _number(info, "maxmemory"),
                    _number(info, "total_system_memory"),
                    _keys_in(info.get(f"db{link.address.db}", "")),
                    str(link.server.get("version", "")) or info.get("redis_version", ""),
                    info.get("role", ""),
                    _number(info, "connected_slaves"),
                    info.get("aof_enabled") == "1",
                )
            )
        return found

    async def session_count(self) -> int:
        """See `Inspection`."""
        counts = await self._asking.all([("ZCARD", prefix + SESSION_INDEX) for prefix in self._keys.partitions])
        return sum(cast("Iterable[int]", counts))

    async def retained_count(self) -> tuple[int, int | None]:
        """See `Inspection`."""
        counts = await self._asking.all([("HLEN", prefix + RETAINED) for prefix in self._keys.retained])
        return sum(cast("Iterable[int]", counts)), None


def node_name(member: bytes) -> str:
    """The name of the node of a member, `<name>:<incarnation>`."""
    return member.rpartition(b":")[0].decode("utf-8", "replace")


def _number(info: dict[str, str], name: str) -> int:
    text = info.get(name, "")
    return int(text) if text.isdigit() else 0


def _keys_in(keyspace: str) -> int:
    """Of `keys=7,expires=2,...`."""
    first = keyspace.partition(",")[0].partition("=")[2]
    return int(first) if first.isdigit() else 0
