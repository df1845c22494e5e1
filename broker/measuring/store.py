"""What only the store knows of itself: asked now and then, told at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from broker.errors import ClusterError
from broker.metrics_catalogue import Samples, Value

if TYPE_CHECKING:
    from cluster.api import Cluster
    from cluster.inspection import StoreMemory

POLL_S: Final = 10.0


class StoreWatch:
    """The memory of the store as of the last look."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.memory: Sequence[StoreMemory] = ()
        self.retained: int | None = None

    async def serve(self) -> None:
        """Looks every few seconds, until cancelled. What cannot be asked now is told as it was."""
        while True:
            try:
                self.memory = await self._cluster.inspection.memory()
                self.retained = (await self._cluster.inspection.retained_count())[0]
            except ClusterError:
                pass  # what is wrong with it is told elsewhere
            await trio.sleep(POLL_S)

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
        return told
