"""Which life of the store this is: after one that may have lost writes, sessions jump over packet ids in flight."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, cast

from broker.errors import ClusterError
from cluster.keys import Keys

if TYPE_CHECKING:
    from cluster.redis.pipeline import Part
    from cluster.redis.requests import Then

Call = Callable[..., Awaitable[object]]
Command = Callable[["tuple[Part, ...]", "Then"], None]


class Generations:
    """The number of the store's present life for each partition; the first call of a session under a newer one jumps
    over the packet ids that may be in flight, and forgets at which version of the route table it last unsubscribed.

    In a Redis Cluster a partition and the route table may lie on two servers: the life is that of both."""

    def __init__(self, keys: Keys) -> None:
        #: By partition; 0: not known yet, nothing is compared.
        self.numbers = [0] * len(keys.partitions)
        #: Called with the prefix of a partition, or of the route table, whose store has another life than it had on the
        #: connection before.
        self.on_changed: Callable[[bytes], None] = lambda _: None
        self._lives: dict[bytes, bytes] = {}
        #: What was registered for each partition.
        self._registered: dict[bytes, bytes] = {}
        self._keys = keys

    async def register(self, call: Call, serves: Callable[[bytes], bool] | None = None) -> None:
        """On each new connection, before anything else; `serves` tells which prefixes live on that server (all).
        Raises StoreUnavailable."""
        replid = await replication_id(call)
        if serves is None or serves(self._keys.routes):
            self._lives_on(self._keys.routes, replid)
        for position, prefix in enumerate(self._keys.partitions):
            if serves is not None and not serves(prefix):
                continue
            while (life := self._life(replid)) and self._registered.get(prefix) != life:
                self._numbered(position, life, await call("FCALL", "rk1_generation", 1, prefix, life))
            self._lives_on(prefix, replid)

    def renew(self, command: Command) -> None:
        """Registers the partitions of other servers anew, if that of the route table has another life. To be called
        again and again: what cannot be reached now is left out."""
        for position, prefix in enumerate(self._keys.partitions):
            life = self._life(self._lives.get(prefix, b""))
            if life and self._registered.get(prefix) != life:
                command(("FCALL", "rk1_generation", 1, prefix, life), partial(self._numbered, position, life))

    def _life(self, replid: bytes) -> bytes:
        """Of a partition whose server has this replication id; b"" as long as it is not known."""
        routes = self._lives.get(self._keys.routes)
        return replid + b":" + routes if replid and routes else b""

    def _numbered(self, position: int, life: bytes, number: object) -> None:
        if isinstance(number, int):
            self._registered[self._keys.partitions[position]] = life
            self.numbers[position] = max(self.numbers[position], number)

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
