"""Class `replicated` while the store has fewer replicas than must have a write."""

from __future__ import annotations

import pytest
import trio

from broker.errors import StoreUnavailable
from cluster.policy import ClusterLimits
from cluster.redis.durability import Demand
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import message, served, target
from tests.kit.redis_server import replicated_server


async def test_nobody_is_let_in_and_the_node_says_so_until_there_are_replicas_again() -> None:
    with replicated_server(1) as store:
        demand = Demand("replicated", timeout_s=0.5)
        async with served(RedisCluster(store.address, "a", ClusterLimits(), "n", 16, demand=demand)) as world:
            at = await world.connect("c")
            assert world.cluster.health().available
            store.servers[1].kill()
            # Nobody writes anything, and still:
            await world.events.within(lambda: not world.cluster.health().available)
            with pytest.raises(StoreUnavailable, match="replicas"):
                await world.connect("new")
            assert world.events.available == []
            await trio.to_thread.run_sync(store.servers[1].start)
            await world.events.within(lambda: world.cluster.health().available)
            new = await world.connect("new")
            assert await world.send(new, b"1") == [1]
            answered = await world.publish(message(), [target(at)])
            assert answered.error is None
