"""Shared subscriptions: this node's members, and the entries of the groups' queues that the store gives them.

The store assigns entries to nodes by what their members may still take. What it gives this node comes in answers
and by the streams of the partitions; each entry is told to the broker once, until it is returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol, cast

import trio

from broker.errors import ClusterError, StoreUnavailable
from broker.log import get_logger
from cluster.api import (
    REFUSED_FULL,
    ClusterEvents,
    GroupEntry,
    GroupMemberState,
    Poller,
    shared_group_id,
)
from cluster.keys import Keys, partition_of
from cluster.policy import ClusterLimits
from cluster.records import pack_arguments, unpack_body, unpack_message
from cluster.redis.callbacks import Then
from cluster.redis.calls import gather
from cluster.redis.group_calls import ACKNOWLEDGED, KEPT, RETURNED, GroupAnswer, GroupSettler, Settlement
from cluster.redis.links import Link
from cluster.redis.membership import Membership
from cluster.redis.pipeline import Part
from cluster.redis.requests import result

#: How often the store is asked for the length of queues that are over half of their bound.
_DEPTH_POLL_S: Final = 0.05
#: Ids of entries that may be told a second time, of one group.
_MAX_EARLY: Final = 5000
#: Ids of entries that are done with and are known again, of one group; at most twice as many.
_MAX_DONE: Final = 1000
_INFO_VALUES: Final = 3
#: Lengths of a queue that is not there, and what the broker is told then.
_GONE: Final = -2
_UNKNOWN: Final = -1

_log = get_logger("cluster")


class NodeRoutes(Protocol):
    """The filters for which other nodes send messages here."""

    async def add(self, topic_filter: str) -> None:
        """Returns when the route table has it. Idempotent."""

    async def remove(self, topic_filter: str) -> None:
        """Returns when the route table has it no more. Idempotent."""


class _Group:
    """One group with members on this node."""

    __slots__ = (
        "applied",
        "busy",
        "done",
        "done_before",
        "early",
        "held",
        "members",
        "number",
        "returned_early",
        "routed",
        "strategy",
        "topic_filter",
    )

    def __init__(self, topic_filter: str) -> None:
        self.topic_filter = topic_filter
        self.strategy = ""
        self.members: Sequence[GroupMemberState] = ()
        #: Counts the changes of members that were wanted, and those that the store has.
        self.number = self.applied = 0
        #: Set when the change under way has ended.
        self.busy: trio.Event | None = None
        self.routed = False
        #: Entries that the broker has; True while one is on its way back.
        self.held: dict[bytes, bool] = {}
        #: Entries that came outside their turn: the stream or the answer to what added them will tell of them, too.
        self.early: set[bytes] = set()
        #: Those of them that went back: the stream may tell of them anew, but the call that added them was long ago.
        self.returned_early: set[bytes] = set()
        #: The last ones that were acknowledged, and those before: over connections that break word of them may come
        #: once more.
        self.done: set[bytes] = set()
        self.done_before: set[bytes] = set()


class Groups:
    """The groups of this node. Entries go to `events.group_entries` from within reactor turns."""

    def __init__(
        self,
        keys: Keys,
        link: Link,
        poller: Poller,
        member: Membership,
        limits: ClusterLimits,
        node_routes: NodeRoutes,
    ) -> None:
        self.events: ClusterEvents | None = None
        self._prefixes = keys.partitions
        self._link = link
        self._poller = poller
        self._member = member
        self._routes = node_routes
        self._half_full = limits.max_group_queue // 2
        self._groups: dict[bytes, _Group] = {}
        self._settlers = [GroupSettler(prefix, link, member, self._settled) for prefix in keys.partitions]
        self.dirty: list[GroupSettler] = []
        #: Groups over half of their bound; other nodes may empty them.
        self._over: set[bytes] = set()
        self._filled = trio.Event()

    # Members

    async def members(self, topic_filter: str, strategy: str, members: Sequence[GroupMemberState]) -> None:
        """See `Cluster.group_members`."""
        group_id = shared_group_id(topic_filter)
        group = self._groups.get(group_id)
        if group is None:
            if not members:
                return
            group = self._groups[group_id] = _Group(topic_filter)
        group.strategy, group.members = strategy, members
        group.number += 1
        await self._tell_members(group_id, group)

    async def tell_again(self, partition: int) -> None:
        """The store may have forgotten who the members in this partition are, and what this node was given. Raises
        ClusterError."""
        prefix = self._prefixes[partition]
        for group_id, group in list(self._groups.items()):
            if self._prefix(group_id) == prefix:
                group.number += 1
                await self._tell_members(group_id, group)
        # Or that the last one left.
        known = await self._link.call("SMEMBERS", prefix + b"ng:" + self._member.member)
        for group_id in cast("Iterable[bytes]", known):
            if group_id not in self._groups:
                reply = await self._in_turn(group_id, *self._members_call(group_id, "", "", ()))
                result(reply)
        self.missed(partition)

    async def _tell_members(self, group_id: bytes, group: _Group) -> None:
        wanted = group.number
        # Of changes that come while one is under way only the last one counts.
        while group.applied < wanted:
            if group.busy is not None:
                await group.busy.wait()
                continue
            group.busy = trio.Event()
            try:
                await self._apply(group_id, group)
            finally:
                group.busy.set()
                group.busy = None

    async def _apply(self, group_id: bytes, group: _Group) -> None:
        number, members = group.number, group.members
        if not members and group.routed:
            await self._routes.remove(group.topic_filter)
            group.routed = False
        reply = await self._in_turn(
            group_id, *self._members_call(group_id, group.topic_filter, group.strategy, members)
        )
        if cast("list[int]", result(reply))[0]:
            self._member.fenced()
            raise StoreUnavailable("this node was taken for dead")
        if members and not group.routed:
            await self._routes.add(group.topic_filter)
            group.routed = True
        group.applied = number
        if not members and group.number == number:
            del self._groups[group_id]

    def _members_call(
        self, group_id: bytes, topic_filter: str, strategy: str, members: Sequence[GroupMemberState]
    ) -> tuple[Part, ...]:
        return (
            "FCALL",
            "rk1_group_members",
            1,
            self._prefix(group_id),
            group_id,
            self._member.node,
            self._member.incarnation_text,
            strategy,
            pack_arguments([(each.session_id, each.birth, int(each.persistent), each.window) for each in members]),
            topic_filter.encode(),
        )

    async def _in_turn(self, group_id: bytes, *parts: Part) -> object:
        """The raw reply to `rk1_group_members`; entries in it are told before the turn ends."""
        done = trio.Event()
        replies: list[object] = []

        def answered(reply: object) -> None:
            replies.append(reply)
            done.set()
            if isinstance(reply, list) and not reply[0]:
                self._tell(group_id, (reply[1], reply[2]), False)

        self._link.command(parts, answered, resend=True, durable=True)
        self._poller.wake()
        await done.wait()
        return replies[0]

    # Entries

    def acknowledge(
        self, group_id: bytes, entry_id: bytes, then: Then | None, keep_for: bytes = b"", again: bool = False
    ) -> None:
        """See `Cluster.group_acknowledge`."""
        kind = KEPT if keep_for else RETURNED if again else ACKNOWLEDGED
        if again and (group := self._groups.get(group_id)):
            if entry_id in group.early:
                group.early.remove(entry_id)
                if len(group.returned_early) < _MAX_EARLY:
                    group.returned_early.add(entry_id)
            if entry_id in group.held:
                group.held[entry_id] = True
        settler = self._settler(group_id)
        if kind == ACKNOWLEDGED and then is None:
            settler.acknowledge(group_id, (entry_id,))
        else:
            settler.add((kind, group_id, [entry_id], keep_for, then))

    def acknowledge_all(self, group_id: bytes, entry_ids: Sequence[bytes]) -> None:
        """See `Cluster.group_done`."""
        self._settler(group_id).acknowledge(group_id, entry_ids)

    def _settler(self, group_id: bytes) -> GroupSettler:
        settler = self._settlers[partition_of(group_id, len(self._prefixes))]
        if not settler.dirty:
            settler.dirty = True
            self.dirty.append(settler)
        return settler

    def flush(self) -> None:
        """The end of a turn."""
        if self.dirty:
            dirty, self.dirty = self.dirty, []
            for settler in dirty:
                settler.pump()

    def stored(self, group_id: bytes, entry_id: bytes, depth: int) -> bool:
        """A message was stored in a group; `entry_id` if this node is to give it to a member, else b"". Returns
        whether that is new: the broker does not have it yet."""
        if depth > self._half_full or depth == REFUSED_FULL:
            self._note_depth(group_id, depth)
        if not entry_id:
            return False
        group = self._groups.get(group_id)
        if group is not None and entry_id in group.returned_early:
            group.returned_early.remove(entry_id)
            return False
        return self._is_new(group_id, entry_id, True)

    def run_stored(self, group_id: bytes, entry_ids: Sequence[bytes], depths: Sequence[int]) -> Sequence[bytes]:
        """The same for several; returns them with b"" for what is not new."""
        group = self._groups.get(group_id)
        if (
            group is None
            or b"" in entry_ids
            or group.early
            or group.returned_early
            or max(depths) > self._half_full
            or not group.held.keys().isdisjoint(entry_ids)
            or not group.done.isdisjoint(entry_ids)
            or not group.done_before.isdisjoint(entry_ids)
        ):
            return [
                entry_id if self.stored(group_id, entry_id, depth) else b""
                for entry_id, depth in zip(entry_ids, depths, strict=True)
            ]
        group.held.update(dict.fromkeys(entry_ids, False))
        return entry_ids

    def given(self, flat: Sequence[object], bodies: Sequence[bytes]) -> None:
        """Another call gave this node entries: the part of a partition stream's entry that is about groups, for each
        {group id, entry id, member, kept for, number of the body, depth}."""
        entries: dict[bytes, list[GroupEntry]] = {}
        depths: dict[bytes, int] = {}
        values = iter(flat)
        for group_id, entry_id, member, kept, number, depth in zip(*[values] * 6, strict=True):
            name = cast(bytes, group_id)
            depths[name] = cast(int, depth)
            if not self._is_new(name, cast(bytes, entry_id), True):
                continue
            message = unpack_body(bodies[cast(int, number) - 1])
            entry = GroupEntry(cast(bytes, entry_id), message, cast(bytes, kept), cast(bytes, member))
            entries.setdefault(name, []).append(entry)
        for name, depth in depths.items():
            self._note_depth(name, depth)
            if name in entries or name in self._over:
                self._call_events(name, entries.get(name, []), depth)

    def missed(self, partition: int) -> None:
        """What the stream of this partition told of may be incomplete: ask what the groups there gave this node."""
        for group_id in self._groups:
            if partition_of(group_id, len(self._prefixes)) == partition:
                self._ask_held(group_id, b"-")
        self._poller.wake()

    def retry(self) -> None:
        """The store takes calls: what it refused goes out."""
        for settler in self._settlers:
            settler.retry()

    def link_up(self) -> None:
        """There is a new store connection; calls are sent again."""
        for settler in self._settlers:
            settler.link_up()

    def _ask_held(self, group_id: bytes, after: bytes) -> None:
        def answered(reply: object) -> None:
            if not isinstance(reply, list):
                return  # the next connection, or the next jump, asks again
            self._tell(group_id, (_GONE, reply), True)
            if reply:
                self._ask_held(group_id, reply[-4])
                self._poller.wake()

        self._link.command(
            (
                "FCALL",
                "rk1_group_held",
                1,
                self._prefix(group_id),
                group_id,
                self._member.node,
                self._member.incarnation_text,
                after,
            ),
            answered,
            resend=True,
        )

    def _settled(self, batch: list[Settlement], answers: list[tuple[bytes, GroupAnswer]], repeated: bool) -> None:
        # These answers have all that this node holds: the stream may have told of it, or is about to.
        full: set[bytes] = {group_id for group_id, _ in answers} if repeated else set()
        groups = self._groups
        for kind, group_id, entry_ids, _, _ in batch:
            group = groups.get(group_id)
            if group is None:
                continue
            held = group.held
            if kind == ACKNOWLEDGED:
                group.done.update(entry_ids)
            for entry_id in entry_ids:
                coming = held.get(entry_id)
                if coming is None:
                    full.add(group_id)
                elif kind == ACKNOWLEDGED or (kind == RETURNED and coming):
                    # Else it was given to this node again before this answer.
                    del held[entry_id]
        for group_id, _ in answers:
            group = groups.get(group_id)
            if group is not None and len(group.done) >= _MAX_DONE:
                group.done_before, group.done = group.done, set()
        for group_id, answer in answers:
            self._tell(group_id, answer, group_id in full)
            if group_id in full and answer[1]:
                # Perhaps it was the first page of what this node holds.
                self._ask_held(group_id, answer[1][-4])

    def _tell(self, group_id: bytes, answer: GroupAnswer, early: bool) -> None:
        """Entries in an answer; `early`: perhaps also those that the stream, or another answer, will tell of."""
        depth, flat = answer
        group = self._groups.get(group_id)
        self._note_depth(group_id, depth)
        entries: list[GroupEntry] = []
        for entry_id, member, kept, record in zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True):
            if not self._is_new(group_id, entry_id, False):
                continue
            if group is not None and early and len(group.early) < _MAX_EARLY:
                group.early.add(entry_id)
            message = unpack_message(record)
            if message is None:
                _log.warning("cluster.unknown_record", kind="group", format=record[0])
            else:
                entries.append(GroupEntry(entry_id, message, kept, member))
        if entries or group_id in self._over:
            self._call_events(group_id, entries, depth)

    def _is_new(self, group_id: bytes, entry_id: bytes, in_turn: bool) -> bool:
        """Whether the broker is to be told of this entry now."""
        group = self._groups.get(group_id)
        if group is None:
            # The last member left while the entry was on its way.
            self.acknowledge(group_id, entry_id, None, again=True)
            return False
        if in_turn and entry_id in group.early:
            group.early.discard(entry_id)
            return False
        if group.held.get(entry_id) is False:
            return False
        if entry_id in group.done or entry_id in group.done_before:
            self.acknowledge(group_id, entry_id, None)  # a store that came back without its last writes has it again
            return False
        group.held[entry_id] = False
        return True

    def _call_events(self, group_id: bytes, entries: Sequence[GroupEntry], depth: int) -> None:
        if self.events is None:
            return
        try:
            self.events.group_entries(group_id, entries, max(depth, _UNKNOWN))
        except Exception:
            _log.exception("cluster.callback_failed")

    # Lengths

    def _note_depth(self, group_id: bytes, depth: int) -> None:
        if depth > self._half_full or depth == REFUSED_FULL:
            self._over.add(group_id)
            self._filled.set()

    async def serve(self) -> None:
        """Follows the lengths of the queues, until cancelled."""
        while True:
            if not self._over:
                self._filled = trio.Event()
                await self._filled.wait()
            await trio.sleep(_DEPTH_POLL_S)
            try:
                await self._poll_over()
            except ClusterError as error:
                _log.warning("cluster.groups_unknown", reason=str(error)[:200])

    async def _poll_over(self) -> None:
        for group_id, depth in (await self._depths(list(self._over))).items():
            if depth <= self._half_full:
                self._over.discard(group_id)
            self._call_events(group_id, (), depth)

    async def _depths(self, group_ids: Sequence[bytes]) -> dict[bytes, int]:
        by_prefix: dict[bytes, list[bytes]] = {}
        for group_id in group_ids:
            prefix = self._prefix(group_id)
            if self._link.up_for(prefix):
                by_prefix.setdefault(prefix, []).append(group_id)
        replies = await gather(
            self._link,
            self._poller,
            [("FCALL", "rk1_group_info", 1, prefix, *names) for prefix, names in by_prefix.items()],
        )
        depths: dict[bytes, int] = {}
        for names, reply in zip(by_prefix.values(), replies, strict=True):
            values = iter(cast("list[int | bytes]", result(reply)))
            for name, lag, pending, _ in zip(names, *[values] * _INFO_VALUES, strict=True):
                depths[name] = max(cast(int, lag), 0) + cast(int, pending)
        return depths

    def _prefix(self, group_id: bytes) -> bytes:
        return self._prefixes[partition_of(group_id, len(self._prefixes))]
