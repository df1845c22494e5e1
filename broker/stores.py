"""Which implementation of the cluster port a node runs on, and where its store is."""

from __future__ import annotations

from urllib.parse import urlencode

import trio

from broker.config import Settings
from cluster.api import Cluster
from cluster.memory import MemoryCluster
from cluster.policy import ClusterLimits
from cluster.redis.address import Deployment, parse_store_url
from cluster.redis.durability import Demand
from cluster.redis.embedded import EmbeddedServer
from cluster.redis.store import RedisCluster

#: Where a store is that other processes can reach.
Address = Deployment


async def open_store(settings: Settings, nursery: trio.Nursery) -> Address | None:
    """Where the store is; an embedded one is started first, and runs in `nursery`. None: it is in this process.

    Raises ClusterError, ConfigError.
    """
    if settings.store == "memory":
        return None
    if settings.store == "embedded":
        return await nursery.start(EmbeddedServer(settings.data_dir).serve)  # type: ignore[no-any-return]
    of_sentinels = {
        name: value
        for name in ("sentinel_username", "sentinel_password")
        if (value := getattr(settings, name)) and "+sentinel:" in settings.store
    }
    url = settings.store
    if of_sentinels:
        url += ("&" if "?" in url else "?") + urlencode(of_sentinels)
    return parse_store_url(url, username=settings.store_username or None, password=settings.store_password or None)


def make_cluster(settings: Settings, address: Address | None) -> Cluster:
    """A member that has not joined yet."""
    limits = ClusterLimits(
        max_queued_messages=settings.max_queued_messages,
        max_queued_bytes=settings.max_queued_bytes,
        max_group_queue=settings.max_group_queue,
        will_failover_grace_s=settings.will_failover_grace_s,
        inflight=settings.max_inflight,
        max_delayed=settings.max_delayed_messages,
        will_failover=settings.will_failover,
    )
    if address is None:
        return MemoryCluster(settings.node_name, limits)
    demand = Demand(settings.durability, settings.durability_replicas, settings.durability_timeout_s)
    return RedisCluster(address, settings.node_name, limits, settings.namespace, settings.partition_count, demand)
