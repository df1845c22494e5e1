"""Redis Cluster's map: which key has which slot, and which primary has it."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from broker.errors import ClusterError, StoreUnavailable
from cluster.redis.probe import ask

if TYPE_CHECKING:
    from cluster.redis.address import StoreAddress
    from cluster.redis.pipeline import Part

SLOTS = 16384
#: A server that does not tell the map in this time is not waited for.
ASK_S = 1.0

Place = tuple[str, int]

#: Where the key of a command stands, if not in the second place. XREAD and XREADGROUP: behind STREAMS.
_KEY_AT = {"FCALL": 3, "FCALL_RO": 3, "EVAL": 3, "EVALSHA": 3}
_KEYLESS = frozenset(("PING", "ECHO", "INFO", "TIME", "CONFIG", "FUNCTION", "CLUSTER", "ACL", "DBSIZE", "PUBLISH"))


def slot_of(key: bytes | str) -> int:
    """The slot of a key or channel."""
    raw = key if isinstance(key, bytes) else key.encode()
    start = raw.find(b"{") + 1
    end = raw.find(b"}", start)
    # Of the first pair of braces with something between them, only that counts.
    return crc_hqx(raw[start:end] if 0 < start < end else raw, 0) % SLOTS


def slot_of_command(parts: Sequence[Part]) -> int:
    """The slot that a command belongs to; -1 for any server."""
    name = parts[0]
    text = (name.decode() if isinstance(name, bytes) else str(name)).upper()
    position = _KEY_AT.get(text, 1)
    if position == 1:
        if text in _KEYLESS:
            return -1
        if text in ("XREAD", "XREADGROUP"):
            position = 1 + next(n for n, part in enumerate(parts) if part in (b"STREAMS", "STREAMS"))
    elif parts[2] in (0, b"0", "0"):
        return -1
    return slot_of(cast("bytes | str", parts[position]))


async def read_map(servers: Iterable[StoreAddress]) -> list[tuple[int, int, Place]]:
    """First slot, last slot and primary of each range, as the first of `servers` that answers has it.

    Raises ClusterError, StoreUnavailable where trying again may help, with the reason of the first that does not."""
    first: ClusterError | None = None
    for server in servers:
        try:
            return _ranges(await ask(server, "CLUSTER", "SLOTS", timeout_s=ASK_S), server)
        except ClusterError as error:
            first = first or error
    raise first or StoreUnavailable("the Redis Cluster has no servers")


def _ranges(reply: object, server: StoreAddress) -> list[tuple[int, int, Place]]:
    ranges: list[tuple[int, int, Place]] = []
    try:
        for start, end, primary, *_ in cast("list[list[int | list[bytes | int | None]]]", reply):
            host, port = cast("list[bytes | int | None]", primary)[:2]
            # No host: the one that we asked, by whatever name we know it.
            name = host.decode() if isinstance(host, bytes) and host not in (b"", b"?") else server.host
            ranges.append((int(cast(int, start)), int(cast(int, end)), (name, int(cast(int, port)))))
    except (TypeError, ValueError):
        raise ClusterError(f"store {server}: unexpected answer to CLUSTER SLOTS: {reply!r:.80}") from None
    return ranges


class SlotOwner:
    """Finds the primary of one slot: for a link that has to do with that slot alone."""

    __slots__ = ("_known", "_seeds", "_slot")

    def __init__(self, seeds: Sequence[StoreAddress], slot: int) -> None:
        self._seeds = tuple(seeds)
        self._slot = slot
        self._known: tuple[StoreAddress, ...] = ()

    async def find(self) -> StoreAddress:
        """Raises ClusterError, with StoreUnavailable for a slot without a server."""
        seed = self._seeds[0]
        ranges = await read_map(dict.fromkeys((*self._known, *self._seeds)))
        places = dict.fromkeys(place for _, _, place in ranges)
        self._known = tuple(replace(seed, host=host, port=port) for host, port in places)
        for start, end, (host, port) in ranges:
            if start <= self._slot <= end:
                return replace(seed, host=host, port=port)
        raise StoreUnavailable(f"the Redis Cluster has no server for slot {self._slot}")
