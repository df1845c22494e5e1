"""A Redis Cluster that lost a shard: what needs nothing of that goes on."""

from __future__ import annotations

from cluster.keys import Keys, partition_of, session_id
from cluster.policy import ClusterLimits
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import served
from tests.kit.redis_server import server_cluster


async def test_without_a_shard_that_has_neither_routes_nor_members_the_others_go_on() -> None:
    keys = Keys("n", 16)
    with server_cluster(3, options=["--cluster-require-full-coverage", "no"]) as servers:
        needed = {servers.owner(keys.routes).address.port, servers.owner(keys.members).address.port}
        victim = next(each for each in servers.servers if each.address.port not in needed)
        live = [number for number, prefix in enumerate(keys.partitions) if servers.owner(prefix) is not victim]
        names = (f"c{number}" for number in range(10_000))
        reached = (name for name in names if partition_of(session_id(name), 16) in live)
        async with served(RedisCluster(servers.address, "a", ClusterLimits(), "n", 16)) as world:
            at = await world.connect(next(reached))
            gone = await world.connect(next(reached), expiry_s=1)
            await world.subscribe(at, "a/b")
            victim.kill()
            await world.cluster.detach(gone.ref, 1, 0, False)
            await world.events.until(lambda: world.events.ended)
            assert await world.send(at, b"1") == [1]
            assert world.events.available == []
