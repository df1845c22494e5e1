"""Shared subscriptions of the whole cluster, as operators see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, cast

from cluster.inspection import GroupInfo, GroupMember
from cluster.keys import GROUPS, SESSION, Keys, partition_of
from cluster.redis.asking import Asking
from cluster.redis.membership import Membership

#: Groups in one call.
_GROUPS: Final = 50
_PERSISTENT: Final = b"p"


class GroupView:
    """Asks the store: it has all groups and their members; what they are called, and who the members are, stands beside
    and elsewhere, as ids are hashes."""

    def __init__(self, keys: Keys, asking: Asking, member: Membership) -> None:
        self._prefixes = keys.partitions
        self._asking = asking
        self._member = member

    async def all(self) -> list[GroupInfo]:
        """See `Inspection.groups`."""
        known = await self._asking.all([("SMEMBERS", prefix + GROUPS) for prefix in self._prefixes])
        batches = [
            (prefix, batch)
            for prefix, group_ids in zip(self._prefixes, known, strict=True)
            for batch in _batches(sorted(cast("Iterable[bytes]", group_ids)))
        ]
        replies = await self._asking.all(
            [("FCALL", "rk1_group_states", 1, prefix, *batch) for prefix, batch in batches]
        )
        found: list[GroupInfo] = []
        for (_, batch), reply in zip(batches, replies, strict=True):
            for group_id, fields in zip(batch, cast("list[list[object]]", reply), strict=True):
                if fields:
                    found.append(self._info(group_id, fields))
        await self._name_members(found)
        return sorted(found, key=lambda each: (each.topic_filter, each.group_id))

    def _info(self, group_id: bytes, fields: list[object]) -> GroupInfo:
        name, strategy, length, oldest, holders, sessions = fields
        held: dict[str, int] = {}
        for member, count in _tuples(cast("list[bytes | int]", holders), 2):
            node = _node(cast(bytes, member))
            held[node] = held.get(node, 0) + cast(int, count)
        members = [
            GroupMember(session_id, "", _node(at), kind == _PERSISTENT)
            for session_id, kind, at in cast("Iterable[tuple[bytes, bytes, bytes]]", _tuples(sessions, 3))
        ]
        pending = sum(held.values())
        age_ms = max(0, self._member.now_ms() - int(cast(bytes, oldest).partition(b"-")[0])) if oldest else 0
        return GroupInfo(
            group_id,
            cast(bytes, name).decode(),
            cast(bytes, strategy).decode(),
            members,
            max(0, cast(int, length) - pending),
            pending,
            held,
            cast(int, length),
            age_ms,
        )

    async def _name_members(self, groups: Iterable[GroupInfo]) -> None:
        members = [member for group in groups for member in group.members]
        session_ids = list(dict.fromkeys(member.session_id for member in members))
        replies = await self._asking.all(
            [("HGET", self._prefix(session_id) + SESSION + session_id, "client") for session_id in session_ids]
        )
        clients = dict(zip(session_ids, cast("list[bytes | None]", replies), strict=True))
        for member in members:
            member.client_id = (clients[member.session_id] or b"").decode()

    def _prefix(self, identifier: bytes) -> bytes:
        return self._prefixes[partition_of(identifier, len(self._prefixes))]


def _batches(group_ids: list[bytes]) -> Iterator[list[bytes]]:
    for first in range(0, len(group_ids), _GROUPS):
        yield group_ids[first : first + _GROUPS]


def _tuples(flat: object, size: int) -> Iterable[tuple[object, ...]]:
    values = iter(cast("list[object]", flat))
    return zip(*[values] * size, strict=True)


def _node(member: bytes) -> str:
    return member.rpartition(b":")[0].decode("utf-8", "replace")
