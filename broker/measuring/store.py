"""What only the store knows, of itself and of shared subscriptions: asked now and then, told at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from broker.errors import ClusterError
from broker.metrics_catalogue import Samples, Value

if TYPE_CHECKING:
    from cluster.api import Cluster
    from cluster.inspection import GroupTotals, StoreMemory

POLL_S: Final = 10.0

#: Shared subscriptions are looked at again after so many times the time that it took: many are looked at less often.
_REST: Final = 50.0


class StoreWatch:
    """Memory, sessions, retained messages and shared subscriptions as of the last look at each."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.memory: Sequence[StoreMemory] = ()
        self.retained: int | None = None
        self.sessions: int | None = None
        self.groups: GroupTotals | None = None
        self._groups_at_s = 0.0

    async def serve(self) -> None:
        """Looks every few seconds, until cancelled. What cannot be asked now is told as it was."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_store)
            nursery.start_soon(self._watch_groups)

    async def _watch_store(self) -> None:
        while True:
            try:
                self.memory = await self._cluster.inspection.memory()
                self.retained = (await self._cluster.inspection.retained_count())[0]
                self.sessions = await self._cluster.inspection.session_count()
            except ClusterError:
                pass  # what is wrong with it is told elsewhere
            await trio.sleep(POLL_S)

    async def _watch_groups(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self.groups = await self._cluster.inspection.group_totals()
                self._groups_at_s = time.monotonic()
            except ClusterError:
                pass
            await trio.sleep(max(POLL_S, _REST * (time.monotonic() - began)))

    def samples(self) -> Samples:
        """Without I/O."""
        used: dict[str, Value] = {each.address: each.used_bytes for each in self.memory}
        limits: dict[str, Value] = {each.address: each.limit_bytes or each.host_bytes for each in self.memory}
        keys: dict[str, Value] = {each.address: each.keys for each in self.memory}
        told: Samples = {
            "mqtt_cluster_store_memory_bytes": used,
            "mqtt_cluster_store_memory_limit_bytes": limits,
            "mqtt_cluster_store_keys": keys,
        }
        if self.retained is not None:
            told["mqtt_cluster_retained_messages"] = {"": self.retained}
        if self.sessions is not None:
            told["mqtt_cluster_sessions"] = {"": self.sessions}
        if self.groups is not None:
            told |= self._group_samples(self.groups)
        return told

    def _group_samples(self, groups: GroupTotals) -> Samples:
        oldest_s = groups.oldest_ms / 1000
        if oldest_s >= POLL_S:  # it stays where it is; a younger one was on its way
            oldest_s += time.monotonic() - self._groups_at_s
        return {
            "mqtt_cluster_shared_groups": {"": groups.groups},
            "mqtt_cluster_shared_group_lag": {"": groups.lag},
            "mqtt_cluster_shared_group_lag_max": {"": groups.lag_max},
            "mqtt_cluster_shared_group_pending": {"": groups.pending},
            "mqtt_cluster_shared_group_oldest_seconds": {"": oldest_s},
        }
