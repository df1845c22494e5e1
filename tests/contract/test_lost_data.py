"""A store that comes back without its data, and one that only was away."""

from __future__ import annotations

from typing import cast

import pytest
import trio

from cluster.api import REFUSED_GONE
from cluster.policy import ClusterLimits
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import message, served, target
from tests.kit.redis_server import RedisServer, redis_server


def make(server: RedisServer) -> RedisCluster:
    return RedisCluster(server.address, "a", ClusterLimits(), "n", 16)


@pytest.mark.parametrize("how", ["flushall", "restart"])
async def test_a_store_that_lost_everything_says_so(how: str) -> None:
    with redis_server(unix=True) as server, server.client() as client:
        async with served(make(server)) as world:
            await world.publish(message("r"), retain=True)
            if how == "flushall":
                client.flushall()
            else:
                await trio.to_thread.run_sync(server.restart)
            await world.events.until(lambda: "store emptied" in world.events.log)
            assert list(world.cluster.retained_match("#")) == []
            # Once: what is there now is all there is.
            at = await world.connect("c")
            assert await world.send(at, b"1") == [1]
            cluster = cast(RedisCluster, world.cluster)
            await cluster._member.beat(cluster._link.call)
            assert not cluster._member.readmitted
            assert world.events.log.count("store emptied") == 1


async def test_a_restart_that_loses_nothing_is_no_loss() -> None:
    with redis_server(unix=True, aof=True) as server:
        async with served(make(server)) as world:
            await world.publish(message("r"), retain=True)
            await trio.to_thread.run_sync(server.restart)
            await world.events.until(lambda: world.events.available == [False, True])
            cluster = cast(RedisCluster, world.cluster)
            assert not cluster._member.readmitted
            assert "store emptied" not in world.events.log
            assert list(world.cluster.retained_match("#")) == ["r"]


async def test_a_store_that_lost_everything_takes_its_node_back() -> None:
    with redis_server(unix=True) as server:
        async with served(make(server)) as world:
            at = await world.connect("c")
            await world.send(at, b"1")
            await world.publish(message("r"), retain=True)
            await trio.to_thread.run_sync(server.restart)
            await world.events.until(lambda: world.events.available == [False, True])
            lost = await world.publish(message(payload=b"2"), [target(at)])
            assert (lost.error, lost.targets[0].seq) == (None, REFUSED_GONE)
            world.cluster.acknowledge(at.ref, 1, 1)
            await world.events.until(lambda: world.events.lost)
            again = await world.connect("c")
            assert not again.session_present
            assert await world.send(again, b"3") == [1]
            assert await world.cluster.retained_values(["r"]) == [None]
