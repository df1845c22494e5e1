"""Documents, places and counts in the store: see `cluster.registry`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

import trio

from broker.errors import StoreUnavailable
from cluster.api import Poller
from cluster.keys import DOCUMENTS, DOCUMENTS_VERSION, DOCUMENTS_VERSIONS, Keys, name_id, partition_of
from cluster.redis.calls import gather
from cluster.redis.library import patched
from cluster.redis.links import Link
from cluster.redis.membership import Membership
from cluster.redis.pipeline import Part
from cluster.redis.requests import result
from cluster.registry import Occupied

#: How long an answer is waited for.
CALL_S: Final = 5.0
#: Documents in one portion.
PORTION: Final = 1000
#: Parts of a member's places: as in the library.
PLACE_PARTS: Final = 64


class RedisRegistry:
    """Implements `cluster.registry.Registry`. Documents and places lie at the members, which decide whose places count;
    counters and buckets are spread over the partitions."""

    def __init__(self, keys: Keys, link: Link, poller: Poller, member: Membership) -> None:
        self._keys = keys
        self._link = link
        self._poller = poller
        self._member = member

    async def version(self) -> int:
        """See `Registry`."""
        reply = await self._call("GET", self._keys.members + DOCUMENTS_VERSION)
        return int(cast(bytes, reply or 0))

    async def versions(self) -> dict[str, int]:
        """See `Registry`."""
        reply = await self._call("HGETALL", self._keys.members + DOCUMENTS_VERSIONS)
        found = cast("dict[bytes, bytes]", reply)
        return {kind.decode(): int(version) for kind, version in found.items()}

    async def document(self, kind: str, name: str) -> bytes | None:
        """See `Registry`."""
        return cast("bytes | None", await self._call("HGET", self._key(kind), encoded(name)))

    async def documents(self, kind: str) -> dict[str, bytes]:
        """See `Registry`."""
        found: dict[str, bytes] = {}
        cursor: bytes = b"0"
        while True:
            reply = await self._call("HSCAN", self._key(kind), cursor, "COUNT", PORTION)
            cursor, fields = cast("tuple[bytes, list[bytes]]", reply)
            for name, value in zip(fields[::2], fields[1::2], strict=True):
                found[decoded(name)] = value
            if cursor == b"0":
                return found

    async def change(self, kind: str, changes: Mapping[str, bytes | None]) -> int:
        """See `Registry`."""
        function, arguments = change_command(kind, changes)
        reply = await self._function(function, self._keys.members, *arguments, resend=True, durable=True)
        return cast(int, reply)

    async def create(self, kind: str, name: str, document: bytes) -> bool:
        """See `Registry`."""
        reply = await self._function(
            "rk1_create_document", self._keys.members, kind, encoded(name), document, durable=True
        )
        return bool(reply)

    async def remove(self, kind: str, documents: Mapping[str, bytes]) -> int:
        """See `Registry`."""
        arguments = [part for name, value in documents.items() for part in (encoded(name), b"=" + value)]
        reply = await self._function("rk1_remove_documents", self._keys.members, kind, *arguments, resend=True)
        return cast(int, reply)

    async def count(self, name: str, window_s: float) -> int:
        """See `Registry`."""
        identifier = name_id(name)
        reply = await self._function("rk1_count", self._prefix(identifier), identifier, int(window_s * 1000))
        return cast(int, reply)

    async def draw(self, name: str, amount: int, rate: float, burst: float) -> int:
        """See `Registry`."""
        identifier = name_id(name)
        reply = await self._function(
            "rk1_draw", self._prefix(identifier), identifier, amount, f"{rate:.6f}", f"{burst:.6f}"
        )
        return cast(int, reply)

    async def occupy(self, places: Sequence[Occupied]) -> str | None:
        """See `Registry`."""
        pairs: list[Part] = [part for place in places for part in (name_id(place.name), place.limit)]
        full = await self._function("rk1_occupy", self._keys.members, self._member.member, *pairs)
        return places[cast(int, full) - 1].name if full else None

    def vacate(self, names: Sequence[str]) -> None:
        """See `Registry`."""
        if names:
            self._link.command(
                ("FCALL", "rk1_vacate", 1, self._keys.members, self._member.member, *map(name_id, names))
            )
            self._poller.wake()

    async def recount(self, taken: Mapping[str, int]) -> None:
        """See `Registry`. All calls go out at once: what is taken and given back later comes after them."""
        parts: list[list[Part]] = [[] for _ in range(PLACE_PARTS)]
        for name, count in taken.items():
            identifier = name_id(name)
            parts[identifier[0] % PLACE_PARTS] += (identifier, count)
        member = self._member.member
        await patched(self._link, lambda: self._recount(member, parts))

    async def _recount(self, member: bytes, parts: Sequence[Sequence[Part]]) -> None:
        head = ("FCALL", "rk1_recount", 1, self._keys.members, member)
        replies = await gather(self._link, self._poller, [(*head, number, *part) for number, part in enumerate(parts)])
        for reply in replies:
            result(reply)

    def _key(self, kind: str) -> bytes:
        return self._keys.members + DOCUMENTS + kind.encode()

    def _prefix(self, identifier: bytes) -> bytes:
        return self._keys.partitions[partition_of(identifier, len(self._keys.partitions))]

    async def _function(
        self, name: str, prefix: bytes, *arguments: Part, resend: bool = False, durable: bool = False
    ) -> object:
        return await patched(
            self._link, lambda: self._call("FCALL", name, 1, prefix, *arguments, resend=resend, durable=durable)
        )

    async def _call(self, *parts: Part, resend: bool = False, durable: bool = False) -> object:
        with trio.move_on_after(CALL_S):
            return await self._link.call(*parts, resend=resend, durable=durable)
        raise StoreUnavailable(f"no answer of the store within {CALL_S:g} s")


def encoded(name: str) -> bytes:
    """A document's name in the store."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")


def decoded(name: bytes) -> str:
    """As it was given; what somebody else wrote may be no UTF-8 at all, and can be named all the same."""
    try:
        return name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return name.decode("utf-8", "surrogateescape")


def change_command(kind: str, changes: Mapping[str, bytes | None]) -> tuple[str, list[Part]]:
    """The function that carries out changes of documents, and its arguments behind the prefix."""
    removing = all(value is None for value in changes.values())
    arguments: list[Part] = [kind]
    for name, value in changes.items():
        arguments += (encoded(name), b"" if value is None else b"=" + value)
    return "rk1_remove_documents" if removing else "rk1_change_documents", arguments
