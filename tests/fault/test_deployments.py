"""Stores of more than one server that lose one while clients use everything at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
import trio

from tests.fault.faults import kill_node
from tests.fault.world import World, endure
from tests.history.run import require
from tests.kit.redis_server import RedisServer, replicated_server, sentinels, server_cluster
from tests.multinode.nodes import ALWAYS

pytestmark = pytest.mark.timeout(150)

#: Sentinels need their time to agree; then nodes find the new primary.
FAILOVER_S = 60.0


async def test_g16_a_sentinel_failover_loses_nothing_that_was_acked(tmp_path: Path) -> None:
    """The class `replicated`: what was acknowledged is on a replica, and the one that is promoted has it."""
    with replicated_server(1, aof=True) as store, sentinels(store) as watchers:

        async def fail_over(made: World) -> None:
            before = store.primary()
            made.begin("kill -9 of the primary")
            # What a node takes out of the store (a delayed message that is due) waits for no replica: one that is far
            # behind would give it again. docs/redis.md says so; here the replica has just caught up.
            await trio.to_thread.run_sync(_caught_up, before)
            await trio.to_thread.run_sync(before.kill)
            with trio.fail_after(FAILOVER_S):
                while (after := await trio.to_thread.run_sync(_primary, store.servers, before)) is None:
                    await trio.sleep(0.1)
            # One failover: on a busy machine the new primary may be silent as long as the old one was, and the other
            # server, which is about to be a replica again, is behind.
            for watcher in watchers.seeds:
                with redis.Redis(port=watcher.port) as sentinel:
                    sentinel.execute_command("SENTINEL", "SET", "mymaster", "down-after-milliseconds", 60_000)
            # The old primary comes back as a replica: without one nothing is acknowledged.
            before.command += ["--replicaof", "127.0.0.1", str(after.address.port)]
            await trio.to_thread.run_sync(before.start)
            made.end("another primary, and a replica")

        hosts = ",".join(f"127.0.0.1:{address.port}" for address in watchers.seeds)
        _, _, problems = await endure(
            tmp_path,
            fail_over,
            store=store.servers[0],
            store_url=f"redis+sentinel://{hosts}/mymaster",
            arguments=("--durability", "replicated"),
            after_s=4.0,
        )
    require(problems)


def _caught_up(primary: RedisServer) -> None:
    with primary.client() as client:
        assert client.execute_command("WAIT", 1, 10_000) == 1


def _primary(servers: list[RedisServer], before: RedisServer) -> RedisServer | None:
    for server in servers:
        if server is not before:
            with server.client() as client:
                if client.info("replication")["role"] == "master":
                    return server
    return None


async def test_g9_g16_a_node_on_a_redis_cluster_is_killed_and_then_a_server_of_it(tmp_path: Path) -> None:
    with server_cluster(3, options=("--appendonly", "yes", *ALWAYS)) as store:

        async def kill_both(made: World) -> None:
            await kill_node(made)
            victim = made.run.random.choice(store.primaries)
            made.begin("kill -9 of a server")
            await trio.to_thread.run_sync(victim.kill)
            await trio.sleep(1.0)
            await trio.to_thread.run_sync(victim.start)
            made.end("server started again")

        hosts = ",".join(f"127.0.0.1:{server.address.port}" for server in store.primaries)
        _, _, problems = await endure(
            tmp_path, kill_both, store=store.primaries[0], store_url=f"redis+cluster://{hosts}", after_s=4.0
        )
    require(problems)
