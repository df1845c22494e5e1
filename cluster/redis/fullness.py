"""How full the store is. Publishers are refused, or wait, some time before it is full: so there is always room for what
must go on, and for what the store itself needs (GUARANTEES section 5, full store)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from broker.errors import ClusterError
from broker.log import get_logger
from cluster.policy import SOFT_FULL
from cluster.redis.durability import info_fields
from cluster.redis.lanes import Outbox

if TYPE_CHECKING:
    from cluster.redis.links import Link

_POLL_S: Final = 1.0

_log = get_logger("cluster")


def is_nearly_full(info: dict[str, str]) -> bool:
    """Whether `INFO memory` shows more used than the soft bound; without `maxmemory` there is none."""
    most = int(info.get("maxmemory", "0"))
    return most > 0 and int(info.get("used_memory", "0")) > SOFT_FULL * most


class Fullness:
    """Asks each primary once a second, and holds back what publishers add while one of them is nearly full."""

    def __init__(self, link: Link, outbox: Outbox) -> None:
        self._link = link
        self._outbox = outbox

    async def serve(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(_POLL_S)
            try:
                full = any([is_nearly_full(await self._memory_of(link)) for link in self._link.primaries()])
            except ClusterError:
                continue  # what is wrong with it is told elsewhere
            if full is not self._outbox.full:
                self._outbox.full = full
                (_log.warning if full else _log.info)("cluster.store_nearly_full", full=full, bound=f"{SOFT_FULL:.0%}")

    async def _memory_of(self, link: Link) -> dict[str, str]:
        return info_fields(await link.call("INFO", "memory"))
