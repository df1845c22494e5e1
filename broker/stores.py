"""Which implementation of the cluster port a node runs on, and where its store is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlencode

import trio

from broker.config import Settings
from broker.errors import ClusterError, ConfigError
from cluster.api import Cluster
from cluster.layout import StoreStatus
from cluster.memory import MemoryCluster
from cluster.policy import ClusterLimits
from cluster.redis import status
from cluster.redis.address import Deployment, StoreAddress, parse_store_url
from cluster.redis.datadir import running_socket
from cluster.redis.direct import Direct
from cluster.redis.documents import Documents
from cluster.redis.durability import Demand
from cluster.redis.embedded import EmbeddedServer
from cluster.redis.migrating import Migrator
from cluster.redis.store import RedisCluster

T = TypeVar("T")

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
    return store_address(settings)


def store_address(settings: Settings) -> Address:
    """Of a store with a URL. Raises ConfigError."""
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


@contextmanager
def open_documents(settings: Settings) -> Iterator[Documents]:
    """The documents of a cluster (users, rules, bans), for commands: without being a member, and without trio.

    An embedded store is that of the node that runs on `data_dir`. Raises ClusterError, ConfigError; the methods of what
    it gives raise ClusterError."""
    documents = Documents(_reachable(settings), settings.namespace)
    try:
        yield documents
    finally:
        documents.close()


def store_status(settings: Settings) -> StoreStatus:
    """What operators want to know of the store. Raises ClusterError, ConfigError."""
    return _with_store(settings, lambda direct: status.read_status(direct, settings.namespace))


def migrate_store(settings: Settings, say: Callable[[str], None], dry_run: bool) -> bool:
    """Moves the store to the layout of this version, and says how far it comes; returns whether there was anything to
    do. Raises ClusterError, ConfigError."""

    def work(direct: Direct) -> bool:
        migrator = Migrator(direct, settings.namespace, say)
        return migrator.dry_run() if dry_run else migrator.run()

    return _with_store(settings, work)


def remove_library(settings: Settings, name: str) -> list[str]:
    """Removes a function library of another version; returns from which servers. Raises ClusterError, ConfigError."""
    return _with_store(settings, lambda direct: status.remove_library(direct, settings.namespace, name))


def _with_store(settings: Settings, work: Callable[[Direct], T]) -> T:
    """What `work` returns, for commands: without being a member.

    An embedded store is that of the node that runs on `data_dir`; if none does, it is started for as long as `work`
    takes. Raises ClusterError, ConfigError."""
    if settings.store != "embedded" or _has_server(settings):
        return _worked(_reachable(settings), work)
    if not (settings.data_dir / "appendonlydir").exists():
        raise ClusterError(f"nothing is stored in the data directory {str(settings.data_dir)!r}")

    async def run() -> T:
        server = EmbeddedServer(settings.data_dir)
        await server.start()
        try:
            return await trio.to_thread.run_sync(_worked, server.address, work)
        finally:
            await server.stop()

    return trio.run(run)


def _worked(address: Address, work: Callable[[Direct], T]) -> T:
    direct = Direct(address)
    try:
        return work(direct)
    finally:
        direct.close()


def _has_server(settings: Settings) -> bool:
    try:
        return bool(running_socket(settings.data_dir))
    except ClusterError:
        return False


def _reachable(settings: Settings) -> Address:
    """The store as it can be reached from another process than the node."""
    if settings.store == "memory":
        raise ConfigError("store = 'memory': what a node keeps in its memory cannot be reached from outside")
    if settings.store == "embedded":
        return StoreAddress(path=running_socket(settings.data_dir))
    return store_address(settings)
