"""A Redis Cluster that lost a shard: what needs nothing of that goes on."""

from __future__ import annotations

from typing import cast

import pytest
import redis
import trio

from cluster.keys import Keys, partition_of, session_id
from cluster.policy import ClusterLimits
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import served
from tests.kit.redis_server import server_cluster, wait_until


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


async def test_with_full_coverage_all_wait_for_any_shard() -> None:
    keys = Keys("n", 16)
    with server_cluster(3) as servers:
        needed = {servers.owner(keys.routes).address.port, servers.owner(keys.members).address.port}
        victim = next(each for each in servers.servers if each.address.port not in needed)
        live = [number for number, prefix in enumerate(keys.partitions) if servers.owner(prefix) is not victim]
        name = next(f"c{number}" for number in range(1000) if partition_of(session_id(f"c{number}"), 16) in live)
        async with served(RedisCluster(servers.address, "a", ClusterLimits(), "n", 16)) as world:
            at = await world.connect(name)
            await world.subscribe(at, "a/b")
            victim.pause()
            with servers.owner(keys.routes).client() as client:
                await trio.to_thread.run_sync(
                    wait_until, lambda: "cluster_state:fail" in str(client.execute_command("CLUSTER", "INFO"))
                )
                with pytest.raises(redis.exceptions.ClusterDownError):
                    client.exists(keys.routes)
            victim.resume()
            assert await world.send(at, b"1") == [1]


async def test_a_shard_that_lost_the_last_routes_holds_up_no_messages() -> None:
    keys = Keys("n", 16)
    with server_cluster(3) as servers:
        routes = servers.owner(keys.routes)
        others = [number for number, prefix in enumerate(keys.partitions) if servers.owner(prefix) is not routes]
        name = next(f"c{number}" for number in range(1000) if partition_of(session_id(f"c{number}"), 16) in others)
        async with served(RedisCluster(servers.address, "a", ClusterLimits(), "n", 16)) as world:
            at = await world.connect(name)
            await world.subscribe(at, "a", "b")
            with routes.client() as client:
                client.save()
            for _ in range(20):
                await world.subscribe(at, "c")
                del world.events.subscribed[at.ref.token]["c"]
                await world.cluster.unsubscribe(at.ref, ["c"], True)
            versions = cast(RedisCluster, world.cluster)._versions
            last = versions.number
            await trio.to_thread.run_sync(routes.restart)
            await world.events.within(lambda: versions.number < last)
            # The version of its last unsubscribe is one that the table will not reach for long.
            with trio.fail_after(10):
                assert [seq > 0 for seq in await world.send(at, b"1", b"2")] == [True, True]
