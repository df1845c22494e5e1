"""The cluster port in the memory of one process."""

from __future__ import annotations

from cluster.memory.cluster import MemoryCluster

__all__ = ["MemoryCluster"]
