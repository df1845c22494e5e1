"""Shared subscriptions of the whole cluster, as operators see them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final, TypeVar, cast

import trio

from cluster.api import shared_group_id
from cluster.inspection import PLACE_BYTES, GroupInfo, GroupMember, group_id_of, group_place
from cluster.keys import GROUP_MEMBERS, GROUPS, SESSION, Keys, partition_of
from cluster.redis.asking import Asking
from cluster.redis.membership import Membership

#: Groups in one call: of those with small messages a call takes well under a millisecond.
_GROUPS: Final = 50
_NAMES: Final = 200

#: Members that are read at a time.
_MEMBERS: Final = 500

#: A page has at most so many bytes of names, or one item.
_PAGE_BYTES: Final = 1024 * 1024

#: The order of so many groups is read anew for each list. That of more is kept for so many times the time that it took
#: to learn, at most so long: so it never takes much of the store's time. That of very many is not kept.
_CHEAP: Final = 1000
_KEPT_TIMES: Final = 20.0
_KEPT_S: Final = 10.0
_KEPT_MAX: Final = 50_000

_PERSISTENT: Final = b"p"

_T = TypeVar("_T")


class GroupView:
    """Asks the store: it has all groups and their members; what they are called, and who the members are, stands beside
    and elsewhere, as ids are hashes. So there is no order in the store, and that of the names is learned here."""

    def __init__(self, keys: Keys, asking: Asking, member: Membership) -> None:
        self._prefixes = keys.partitions
        self._asking = asking
        self._member = member
        self._places: list[str] = []
        self._kept_until = 0.0
        self._reading = trio.Lock()

    async def page(self, after: str, limit: int, prefix: str) -> list[GroupInfo]:
        """See `Inspection.groups`."""
        places = await self._in_order()
        begin = prefix.encode("utf-8", "replace")[:PLACE_BYTES].hex()
        at = max(bisect_right(places, after), bisect_left(places, begin))
        found: list[GroupInfo] = []
        size = 0
        while at < len(places) and places[at].startswith(begin):
            chosen = [each for each in islice(places, at, at + min(_GROUPS, limit)) if each.startswith(begin)]
            at += len(chosen)
            groups = await self._states([group_id_of(each) for each in chosen])
            for each in chosen:
                info = groups.get(group_id_of(each))
                if info is None or not info.name.startswith(prefix):
                    continue  # it ended meanwhile, or the prefix is longer than what was compared
                found.append(info)
                size += len(info.topic_filter)
                if len(found) == limit or size >= _PAGE_BYTES:
                    return found
        return found

    async def one(self, name: str) -> GroupInfo | None:
        """See `Inspection.group`."""
        group_id = _id_of(name)
        found = (await self._states([group_id])).get(group_id)
        return found if found is not None and found.name == name else None

    async def members(self, name: str, limit: int) -> list[GroupMember]:
        """See `Inspection.group_members`."""
        group_id = _id_of(name)
        key = self._prefix(group_id) + GROUP_MEMBERS + group_id
        found: dict[bytes, GroupMember] = {}
        cursor: object = b"0"
        while True:
            reply = await self._asking.one("HSCAN", key, cast(bytes, cursor), "COUNT", _MEMBERS)
            cursor, flat = cast("tuple[bytes, list[bytes]]", reply)
            for session_id, record in zip(flat[::2], flat[1::2], strict=True):
                # Kind, birth as a double, the member where it is connected.
                found[session_id] = GroupMember(session_id, "", _node(record[9:]), record[:1] == _PERSISTENT)
            if cursor == b"0" or len(found) >= limit:
                break
        chosen = list(found.values())[:limit]
        await self._name(chosen)
        return chosen

    async def _in_order(self) -> Sequence[str]:
        """The places of all groups. Who waits while another one reads them takes what that one read."""
        async with self._reading:
            began = trio.current_time()
            if began < self._kept_until:
                return self._places
            self._places = []
            places = await self._read_places()
            now = trio.current_time()
            if _CHEAP < len(places) <= _KEPT_MAX:
                self._places = places
                self._kept_until = now + min(_KEPT_S, _KEPT_TIMES * (now - began))
            return places

    async def _read_places(self) -> list[str]:
        known = await self._asking.in_turns([("SMEMBERS", prefix + GROUPS) for prefix in self._prefixes])
        found: list[str] = []
        batches = [
            (prefix, batch)
            for prefix, group_ids in zip(self._prefixes, known, strict=True)
            for batch in _batches(list(cast("Iterable[bytes]", group_ids)), _NAMES)
        ]
        replies = await self._asking.in_turns(
            [("FCALL", "rk1_group_names", 1, prefix, PLACE_BYTES, *batch) for prefix, batch in batches]
        )
        for (_, batch), reply in zip(batches, replies, strict=True):
            found += map(group_place, cast("list[bytes]", reply), batch)
        await trio.lowlevel.checkpoint()
        found.sort()
        return found

    async def _states(self, group_ids: Iterable[bytes]) -> dict[bytes, GroupInfo]:
        """By id, of those that there are."""
        by_prefix: dict[bytes, list[bytes]] = {}
        for group_id in group_ids:
            by_prefix.setdefault(self._prefix(group_id), []).append(group_id)
        found: dict[bytes, GroupInfo] = {}
        while by_prefix:
            replies = await self._asking.in_turns(
                [("FCALL", "rk1_group_states", 1, prefix, *wanted) for prefix, wanted in by_prefix.items()]
            )
            left: dict[bytes, list[bytes]] = {}
            for (prefix, wanted), reply in zip(by_prefix.items(), replies, strict=True):
                states = cast("list[list[object]]", reply)
                for group_id, fields in zip(wanted, states, strict=False):
                    if fields:
                        found[group_id] = self._info(group_id, fields)
                if len(states) < len(wanted):
                    left[prefix] = wanted[len(states) :]
            by_prefix = left
        return found

    def _info(self, group_id: bytes, fields: list[object]) -> GroupInfo:
        name, strategy, length, oldest, sessions, flat = fields
        held: dict[str, int] = {}
        connected: dict[str, int] = {}
        values = cast("list[bytes | int]", flat)
        for member, count, here in zip(values[::3], values[1::3], values[2::3], strict=True):
            node = _node(cast(bytes, member))
            held[node] = held.get(node, 0) + cast(int, count)
            if here:
                connected[node] = connected.get(node, 0) + cast(int, here)
        pending = sum(held.values())
        age_ms = max(0, self._member.now_ms() - int(cast(bytes, oldest).partition(b"-")[0])) if oldest else 0
        return GroupInfo(
            group_id,
            cast(bytes, name).decode(),
            cast(bytes, strategy).decode(),
            cast(int, sessions),
            connected,
            max(0, cast(int, length) - pending),
            pending,
            held,
            cast(int, length),
            age_ms,
        )

    async def _name(self, members: Iterable[GroupMember]) -> None:
        for batch in _batches(list(members), _MEMBERS):
            names = await self._asking.all(
                [("HGET", self._prefix(each.session_id) + SESSION + each.session_id, "client") for each in batch]
            )
            for member, name in zip(batch, cast("list[bytes | None]", names), strict=True):
                member.client_id = (name or b"").decode()

    def _prefix(self, identifier: bytes) -> bytes:
        return self._prefixes[partition_of(identifier, len(self._prefixes))]


def _id_of(name: str) -> bytes:
    if not name.startswith("$"):
        with suppress(ValueError):
            return bytes.fromhex(name)
    return shared_group_id(name)


def _batches(each: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for first in range(0, len(each), size):
        yield each[first : first + size]


def _node(member: bytes) -> str:
    return member.rpartition(b":")[0].decode("utf-8", "replace")
