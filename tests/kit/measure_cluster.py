"""What a queued QoS 1 message costs: `python -m tests.kit.measure_cluster [sessions] [messages per session and turn]`.

Each turn publishes to every session, waits until all is stored, and acknowledges it. Prints CPU time per message of
this process (reactor and the making of the messages included) and of the store's main thread, acknowledgement included.
"""

from __future__ import annotations

import sys
import time

import trio

from broker.log import configure
from broker.message import Message
from cluster.api import Cluster, Publication, SessionRef, Target
from cluster.memory import MemoryCluster
from cluster.policy import ClusterLimits
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import World, served
from tests.kit.redis_server import RedisServer, redis_server

MESSAGES = 20_000


class _Turn:
    def __init__(self, cluster: Cluster, left: int) -> None:
        self.cluster = cluster
        self.left = left
        self.done = trio.Event()


class _Measured(Publication):
    __slots__ = ("ref", "turn")

    def __init__(self, ref: SessionRef, turn: _Turn) -> None:
        super().__init__(Message(b"a/b/c", b"x" * 64, 1, False), (Target(ref.session_id, ref.birth, 1, False, ()),))
        self.ref = ref
        self.turn = turn

    def stored(self) -> None:
        seq = self.targets[0].seq
        turn = self.turn
        turn.cluster.acknowledge(self.ref, seq, seq)
        turn.left -= 1
        if not turn.left:
            turn.done.set()


async def _run(world: World, sessions: int, each: int) -> int:
    refs = [(await world.connect(f"c{number}")).ref for number in range(sessions)]
    turns = max(1, MESSAGES // (sessions * each))
    for _ in range(turns):
        turn = _Turn(world.cluster, sessions * each)
        for _ in range(each):
            for ref in refs:
                world.cluster.publish(_Measured(ref, turn))
        world.poller.wake()
        await turn.done.wait()
    await world.settle(refs[0])
    return turns * sessions * each


def _cpu_s(server: RedisServer) -> float:
    with server.client() as client:
        info = client.info("cpu")
    return float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])


async def _measure(name: str, cluster: Cluster, server: RedisServer, sessions: int, each: int) -> None:
    async with served(cluster) as world:
        store_s, own_s, began_s = _cpu_s(server), time.process_time(), time.perf_counter()
        count = await _run(world, sessions, each)
        took_s = time.perf_counter() - began_s
        own_us = (time.process_time() - own_s) / count * 1e6
        store_us = (_cpu_s(server) - store_s) / count * 1e6
        print(f"{name:12} {count / took_s:9.0f} messages/s   node {own_us:5.1f} us   store {store_us:5.1f} us")  # noqa: T201


def main() -> None:
    """Memory, then Redis without and with an append-only file."""
    configure("error")
    sessions, each = (int(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) == 3 else (100, 1)
    limits = ClusterLimits(max_queued_messages=1_000_000)
    for name, aof in (("memory", False), ("redis", False), ("redis, AOF", True)):
        with redis_server(unix=True, aof=aof) as server:
            cluster: Cluster = MemoryCluster("m", limits)
            if name != "memory":
                cluster = RedisCluster(server.address, "m", limits, "m", 16)
            trio.run(_measure, name, cluster, server, sessions, each)


if __name__ == "__main__":
    main()
