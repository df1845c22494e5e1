"""Waiting until what was written is safe: WAIT and WAITAOF, once for all that was sent before."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from broker.log import get_logger
from cluster.redis.pipeline import Part, pack

if TYPE_CHECKING:
    from cluster.redis.address import StoreAddress

#: The key of the mark is there for good: the store is asked to let it go in ten years.
MARK_S = 315_360_000

_log = get_logger("store")


class Barrier:
    """Two commands that follow durable ones on the same connection: `mark` writes, `wait` waits until that is safe.

    The mark is there because the store waits for what this connection wrote, and a repeated call may find that it was
    executed already, by way of another connection, and write nothing. EXPIRE also works in a full store.
    """

    __slots__ = ("local", "mark", "replicas", "short_since_s", "timeout_s", "wait")

    def __init__(
        self,
        mark_key: bytes,
        local: int,
        replicas: int,
        timeout_s: float,
        aof: bool,
        short_since_s: float | None = None,
    ) -> None:
        self.local = local
        self.replicas = replicas
        self.timeout_s = timeout_s
        timeout_ms = max(1, int(timeout_s * 1000))
        wait: tuple[Part, ...] = ("WAITAOF", local, replicas, timeout_ms) if aof else ("WAIT", replicas, timeout_ms)
        self.mark = pack(("EXPIRE", mark_key, MARK_S))
        self.wait = pack(wait)
        #: Since when (time.monotonic) too few have what is written; None: enough have it.
        self.short_since_s = short_since_s

    def enough(self, reply: object, address: StoreAddress) -> bool:
        """What `wait` was answered with: whether as many have it as must."""
        if isinstance(reply, list):
            local, replicas = cast("list[int]", reply)
        else:
            local, replicas = self.local, cast(int, reply)
        short = local < self.local or replicas < self.replicas
        if short != (self.short_since_s is not None):
            self.short_since_s = time.monotonic() if short else None
            if short:
                _log.warning(
                    "store.not_durable", store=str(address), local=local, replicas=replicas, needed=self.replicas
                )
            else:
                _log.info("store.durable_again", store=str(address))
        return not short
