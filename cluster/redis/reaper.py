"""Cleaning up after dead members: all they owned is fenced, then freed, a little at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import trio

from broker.errors import ClusterError
from broker.log import get_logger
from cluster.keys import Keys
from cluster.policy import ClusterLimits
from cluster.redis.pipeline import Part
from cluster.redis.requests import result

_REAP_SESSIONS = 200
_REAP_ROUTES = 1000
#: So many calls in one batch: the store serves nobody else meanwhile.
_AT_ONCE = 4

Calls = Callable[[Sequence[tuple[Part, ...]]], Awaitable[list[object]]]

_log = get_logger("cluster")


class Reaper:
    """Frees what members owned that the store gave this node to reap; whatever stops it, it may be repeated by any."""

    def __init__(self, keys: Keys, calls: Calls, limits: ClusterLimits) -> None:
        self._keys = keys
        self._calls = calls
        self._grace_ms = int(limits.will_failover_grace_s * 1000)
        self._margin = limits.inflight + 64
        self._publish_wills = int(limits.will_failover == "publish")
        self._dead: list[bytes] = []
        self._filled = trio.Event()

    def wanted(self, dead: Sequence[bytes]) -> None:
        """These are this node's to reap."""
        self._dead += [member for member in dead if member not in self._dead]
        self._filled.set()

    async def serve(self) -> None:
        """Until cancelled."""
        while True:
            await self._filled.wait()
            while self._dead:
                member = self._dead[0]
                try:
                    await self.reap(member)
                except ClusterError as error:
                    # The store hands it out again, to this node or to another.
                    _log.warning("cluster.reap_delayed", member=_text(member), reason=str(error)[:200])
                self._dead.pop(0)
            self._filled = trio.Event()

    async def reap(self, member: bytes) -> None:
        """Fences a dead member everywhere and frees all it owned. Idempotent. Raises ClusterError."""
        node, _, incarnation = member.rpartition(b":")
        left = [*self._keys.partitions, *self._keys.retained, self._keys.routes]
        while left:
            more: list[bytes] = []
            for first in range(0, len(left), _AT_ONCE):
                prefixes = left[first : first + _AT_ONCE]
                replies = await self._calls([self._command(prefix, node, incarnation) for prefix in prefixes])
                more += [
                    prefix for prefix, reply in zip(prefixes, replies, strict=True) if cast(int, result(reply)) > 0
                ]
            left = more
        result((await self._calls([("FCALL", "rk1_close", 1, self._keys.node(member))]))[0])
        # Where a node of the version before has put its library back, they are forgotten within the hour.
        await self._calls([("FCALL", "rk1_unplace", 1, self._keys.members, member)])
        result((await self._calls([("FCALL", "rk1_buried", 1, self._keys.members, member)]))[0])
        _log.info("cluster.reaped", member=_text(member))

    def _command(self, prefix: bytes, node: bytes, incarnation: bytes) -> tuple[Part, ...]:
        if prefix == self._keys.routes:
            return "FCALL", "rk1_reap_routes", 1, prefix, node, incarnation, _REAP_ROUTES
        return (
            "FCALL", "rk1_reap", 1, prefix, node, incarnation, self._grace_ms, _REAP_SESSIONS, self._margin,
            self._publish_wills,
        )  # fmt: skip


def _text(member: bytes) -> str:
    return member.decode("utf-8", "replace")
