"""Which life of the store this is: after one that may have lost writes, sessions jump over packet ids in flight."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

from broker.errors import ClusterError
from cluster.keys import Keys

Call = Callable[..., Awaitable[object]]


class Generations:
    """The number of the store's present life for each partition; the first call of a session under a newer one jumps
    over the packet ids that may be in flight."""

    def __init__(self, keys: Keys) -> None:
        #: By partition; 0: not known yet, nothing is compared.
        self.numbers = [0] * len(keys.partitions)
        #: Called with the prefix of a partition, or of the route table, whose store has another life than it had on the
        #: connection before.
        self.on_changed: Callable[[bytes], None] = lambda _: None
        self._lives: dict[bytes, bytes] = {}
        self._keys = keys

    async def register(self, call: Call, serves: Callable[[bytes], bool] | None = None) -> None:
        """On each new connection, before anything else; `serves` tells which prefixes live on that server (all).
        Raises StoreUnavailable."""
        replid = await replication_id(call)
        for position, prefix in enumerate(self._keys.partitions):
            if serves is not None and not serves(prefix):
                continue
            number = await call("FCALL", "rk1_generation", 1, prefix, replid)
            self.numbers[position] = max(self.numbers[position], cast(int, number))
            self._lives_on(prefix, replid)
        if serves is None or serves(self._keys.routes):
            self._lives_on(self._keys.routes, replid)

    def _lives_on(self, prefix: bytes, replid: bytes) -> None:
        known = self._lives.get(prefix, replid)
        self._lives[prefix] = replid
        if known != replid:
            self.on_changed(prefix)


async def replication_id(call: Call) -> bytes:
    """It changes with each start of a server and each promotion. Raises ClusterError."""
    reply = cast(bytes, await call("INFO", "replication"))
    for line in reply.splitlines():
        name, _, value = line.partition(b":")
        if name == b"master_replid":
            return value.strip()
    raise ClusterError("the store does not tell its replication id (INFO replication)")
