"""What a cluster of three nodes costs with many sessions: `python -m tests.multinode.scale --sessions 100000`.

Sessions are made through the protocol, by many connections at a time over all nodes: each client connects with a
session that outlives it, subscribes to three filters and leaves. All filters are distinct, of four levels. Then a
publish to one of all the sessions is timed, a node is started anew and timed, and a node that owns a third of the
sessions is killed and timed until it is reaped.

`--routes 100000` measures instead what a route costs in the memory of a node: so many distinct filters of few sessions,
so that the sessions themselves weigh nothing.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from broker.codec.encode import encode
from broker.codec.packets import V5, Connect, Disconnect, Subscribe, SubscriptionRequest
from broker.codec.primitives import FrameBuffer
from cluster.policy import ClusterLimits
from cluster.redis.address import StoreAddress
from cluster.redis.store import RedisCluster
from tests.conformance.peers import Peers
from tests.kit.cluster_world import served
from tests.kit.mqtt_client import properties
from tests.kit.redis_server import RedisServer, redis_server
from tests.multinode.nodes import Nodes, cluster

NAMES = ("a", "b", "c")
FILTERS = 3
IN_PARALLEL = 200
SAMPLES = 500
HOUR_S = 3600
#: Of each session where routes are measured, and of each of its SUBSCRIBE packets.
MANY_FILTERS, AT_ONCE = 500, 100


def filters_of(number: int) -> list[str]:
    """The filters of a session: all its own."""
    return [f"site/{number % 97}/device/{number}/{kind}" for kind in ("command", "config", "state")]


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def make_sessions(nodes: Nodes, first: int, count: int, subscribe: bool = True) -> float:
    """Make sessions that are not connected afterwards; returns the seconds it took."""
    began = time.perf_counter()
    numbers = iter(range(first, first + count))

    async def worker(name: str) -> None:
        address = nodes.address(name)
        for number in numbers:
            await _session(address.host, address.port, number, subscribe)

    async with trio.open_nursery() as nursery:
        for index in range(IN_PARALLEL):
            nursery.start_soon(worker, NAMES[index % len(NAMES)])
    return time.perf_counter() - began


async def _session(host: str, port: int, number: int, subscribe: bool) -> None:
    """One session in two round trips: what would be a test elsewhere is only load here."""
    stream = trio.socket.socket()
    with stream:
        await stream.connect((host, port))
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connect = Connect(V5, f"c{number}", False, 0, properties=properties(session_expiry_interval=HOUR_S))
        requests = [SubscriptionRequest(topic_filter, 1) for topic_filter in filters_of(number)]
        await stream.send(encode(connect, V5) + (encode(Subscribe(1, requests), V5) if subscribe else b""))
        frames = FrameBuffer()
        left = 2 if subscribe else 1
        while left:
            data = await stream.recv(4096)
            if not data:
                raise RuntimeError(f"the node closed the connection of c{number}")
            frames.feed(data)
            for first_byte, body in frames:
                if (first_byte >> 4 == 2 and body[1]) or (first_byte >> 4 == 9 and max(body[3:]) > 2):
                    raise RuntimeError(f"c{number} was refused: {body.hex()}")
                left -= 1
        await stream.send(encode(Disconnect(), V5))
        await stream.recv(1)


async def routing_ms(nodes: Nodes, sessions: int) -> tuple[float, float]:
    """Milliseconds until a QoS 1 publish to one session among all is acknowledged: median and 99th percentile."""
    address = nodes.address("b")
    peers = Peers(address.host, address.port, "scale")
    publisher = await peers.connect()
    times: list[float] = []
    for sample in range(SAMPLES):
        number = sample * 7919 % sessions
        topic = f"site/{number % 97}/device/{number}/command"
        began = time.perf_counter()
        await publisher.publish(topic, b"x" * 64, 1)
        times.append((time.perf_counter() - began) * 1000)
    await peers.close()
    return statistics.median(times), sorted(times)[int(len(times) * 0.99)]


async def own(port: int, count: int) -> None:
    """Be a node that owns so many of the sessions: as many connections would need too many descriptors here."""
    cluster_node = RedisCluster(StoreAddress(port=port), "d", ClusterLimits(), "rookery", 16)
    async with served(cluster_node) as world:
        numbers = iter(range(count))

        async def worker() -> None:
            for number in numbers:
                await world.connect(f"c{number}")

        async with trio.open_nursery() as nursery:
            for _ in range(IN_PARALLEL):
                nursery.start_soon(worker)
        say("owner")
        await trio.sleep_forever()


def owned(store: RedisServer, node: str) -> int:
    """How many sessions a node owns, as the store has it."""
    with store.client() as client:
        return sum(client.scard(key) for key in client.scan_iter(f"*own:{node}:*", count=10_000))


async def reaping(nodes: Nodes, store: RedisServer, sessions: int) -> float:
    """Kill a fourth node that owns a third; returns the seconds until the others have reaped it."""
    third, port = str(sessions // 3), str(store.address.port)
    command = [sys.executable, "-m", "tests.multinode.scale", "--own", port, "--sessions", third]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        while (line := await trio.to_thread.run_sync(owner.stdout.readline)).strip() != "owner":
            assert line, "the owner has ended"
        assert owned(store, "d") == sessions // 3
        began = time.monotonic()
    finally:
        owner.kill()
        owner.wait()
    logs = [nodes[name].log_path for name in NAMES]
    while not any("cluster.reaped member=d:" in log.read_text(errors="replace") for log in logs):
        if time.monotonic() - began > 600:
            raise RuntimeError("the node was not reaped in ten minutes")
        await trio.sleep(0.02)
    taken_s = time.monotonic() - began
    assert owned(store, "d") == 0
    return taken_s


async def measure(sessions: int) -> None:
    """Print a line for each figure."""
    with tempfile.TemporaryDirectory(prefix="rookery-scale-") as folder, redis_server(aof=True) as store:
        async with cluster(Path(folder), NAMES, store=store) as nodes:
            empty = {name: rss_bytes(nodes[name].pid) for name in NAMES}
            taken_s = await make_sessions(nodes, 0, sessions)
            routes = sessions * FILTERS
            each_s = sessions / taken_s
            say(f"{sessions} sessions of {FILTERS} subscriptions made in {taken_s:.1f} s ({each_s:.0f} a second)")
            await trio.sleep(3)  # for the logs of routes to be read everywhere: what follows measures memory
            for name in NAMES:
                grown = rss_bytes(nodes[name].pid) - empty[name]
                say(
                    f"node {name}: {rss_bytes(nodes[name].pid) / 2**20:.0f} MiB, "
                    f"{grown / routes:.0f} bytes per route of {routes} distinct filters, with the sessions"
                )
            held = rss_bytes(store.pid)
            say(f"store: {held / 2**20:.0f} MiB, {held / sessions:.0f} bytes per session")
            median, tail = await routing_ms(nodes, sessions)
            say(f"publish to one session among all, to the PUBACK: {median:.2f} ms, 99th percentile {tail:.2f} ms")
            began = time.perf_counter()
            await nodes.restart("c")
            say(f"a node was stopped and started in {time.perf_counter() - began:.2f} s")
            nodes.kill("c")
            began = time.perf_counter()
            await nodes.start("c")
            say(f"a killed node started, accepting clients, in {time.perf_counter() - began:.2f} s")
            fresh = rss_bytes(nodes["c"].pid)
            say(f"node c after its start: {fresh / 2**20:.0f} MiB, {(fresh - empty['c']) / routes:.0f} bytes per route")
            taken_s = await reaping(nodes, store, sessions)
            say(f"a dead node that owned a third was reaped {taken_s:.2f} s after its death, its lease of 6 s included")


async def measure_routes(filters: int, persistent: bool) -> None:
    """Print what a route costs on each node; the sessions are those of node a."""
    with tempfile.TemporaryDirectory(prefix="rookery-scale-") as folder, redis_server(aof=True) as store:
        async with cluster(Path(folder), NAMES, store=store) as nodes:
            peers = {name: Peers(nodes[name].host, nodes[name].port, "scale") for name in NAMES}
            empty = {name: rss_bytes(nodes[name].pid) for name in NAMES}
            names = [topic_filter for number in range(filters // FILTERS + 1) for topic_filter in filters_of(number)]
            began = time.perf_counter()
            for first in range(0, filters, MANY_FILTERS):
                client = await peers["a"].connect(persistent=persistent)
                for start in range(first, min(first + MANY_FILTERS, filters), AT_ONCE):
                    await client.subscribe(*names[start : min(start + AT_ONCE, filters)], qos=1)
            taken_s = time.perf_counter() - began
            for name in NAMES:
                # Its acknowledgement says that the node knows of all routes before it.
                await (await peers[name].connect()).publish("t", b"", 1)
            grown = [f"{name} {(rss_bytes(nodes[name].pid) - empty[name]) / filters:.0f}" for name in NAMES]
            say(
                f"{filters} distinct filters of {'persistent' if persistent else 'ephemeral'} sessions on node a, made "
                f"in {taken_s:.1f} s: bytes per route on node {', '.join(grown)}"
            )
            for each in peers.values():
                await each.close()


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--routes", type=int, metavar="FILTERS", help="only measure what this many routes cost")
    parser.add_argument("--own", type=int, metavar="PORT", help="only own so many sessions of the store there")
    options = parser.parse_args()
    if options.own:
        trio.run(own, options.own, options.sessions)
    elif options.routes:
        for persistent in (True, False):
            trio.run(measure_routes, options.routes, persistent)
    else:
        trio.run(measure, options.sessions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
