"""G15 to G17 with three nodes: bounds that are counted, a node without its store, and rolling restarts."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trio

from broker.codec.packets import V5, V311, Connack, Connect, Disconnect, Puback, Publish
from tests.conformance.peers import Peers
from tests.history import availability
from tests.history.client import Profile
from tests.history.run import always, recorded, require
from tests.integration.exchange import gather, metric, numbered, publish_many
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import ConnectionClosed, MqttClient
from tests.multinode.conftest import NAMES, Everywhere, StartCluster, session
from tests.multinode.nodes import SOON_S, Nodes

pytestmark = pytest.mark.timeout(90)


def dropped(nodes: Nodes, reason: str) -> float:
    """What all nodes dropped for a reason."""
    sample = f'mqtt_messages_dropped_total{{reason="{reason}"}}'
    return sum(metric(nodes[name], sample) for name in nodes.live)


def ready(node: BrokerProcess) -> bool:
    """What /readyz of a node says."""
    try:
        with urllib.request.urlopen(f"http://{node.http}/readyz", timeout=10) as response:
            return int(response.status) == 200
    except urllib.error.HTTPError:
        return False


async def until_ready(node: BrokerProcess, expected: bool) -> None:
    """Wait until a node says that it is ready, or not."""
    with trio.fail_after(SOON_S):
        while await trio.to_thread.run_sync(ready, node) is not expected:
            await trio.sleep(0.05)


async def test_g15_a_full_queue_refuses_and_counts(nodes: Nodes, at: Everywhere, topic: str) -> None:
    away = await session(at("a"), at("a").client_id())
    await away.subscribe(f"{topic}/+", qos=1)
    await away.disconnect()
    before = dropped(nodes, "queue_full")
    async with trio.open_nursery() as nursery:
        for name in NAMES:
            publisher = await at(name).connect()
            nursery.start_soon(publish_many, publisher, f"{topic}/{name}", numbered(name, 400), 1)
    back = await session(at("b"), away.client_id, True)
    got = await gather(back, 1000)
    await back.expect_nothing()
    require(availability.counted(1200, len(got), dropped(nodes, "queue_full") - before))
    # What was refused is the newest: each publisher's messages are there up to some place, in order.
    for name in NAMES:
        mine = [message.payload for message in got if message.topic_name.endswith(f"/{name}")]
        assert mine == sorted(mine, key=lambda payload: int(payload[1:]))


async def test_g15_a_full_group_queue_refuses_and_counts(start_cluster: StartCluster, at_own: Everywhere) -> None:
    nodes = at_own.nodes = await start_cluster("--max-group-queue", "200")
    member = await session(at_own("a"), "member")
    await member.subscribe("$share/g/t", qos=1)
    await member.disconnect()
    for name in NAMES:
        publisher = await at_own(name).connect()
        await publish_many(publisher, "t", numbered(name, 100), 1)
    member = await session(at_own("c"), "member", True)
    got = await gather(member, 200)
    await member.expect_nothing()
    require(availability.counted(300, len(got), dropped(nodes, "group_queue_full")))


async def test_g16_a_node_without_its_store_promises_nothing(
    start_cluster: StartCluster, at_own: Everywhere, topic: str
) -> None:
    nodes = at_own.nodes = await start_cluster("--store-grace", "1h", proxied=True)
    readers = {name: await at_own(name).subscriber(f"{topic}/#", qos=1) for name in NAMES}
    local = await at_own("a").subscriber(f"zero/{topic}", qos=0)
    cut, other = await at_own("a").connect(), await at_own("b").connect()
    nodes.proxies["a"].cut()
    await cut.send(Publish(f"{topic}/1", b"one", 1, False, False, 1))
    await cut.send(Publish(f"zero/{topic}", b"zero"))
    assert (await local.expect(Publish)).payload == b"zero"  # QoS 0 between clients of the node goes on
    await until_ready(nodes["a"], False)
    for version in (V5, V311):
        client = await at_own("a").open(version)
        await client.send(Connect(version, f"new{version}", True, 0))
        try:
            answer = await client.receive(30)
        except ConnectionClosed:
            continue
        assert isinstance(answer, Connack) and answer.reason_code == 0x88
    # The other nodes do not notice.
    await other.publish(f"{topic}/2", b"two", 1)
    await readers["b"].take(b"two")
    await readers["c"].take(b"two")
    assert ready(nodes["b"]) and ready(nodes["c"])
    with trio.move_on_after(1.0):
        packet = await cut.receive(30)
        raise AssertionError(f"{packet} without a store")
    nodes.proxies["a"].resume()
    assert (await cut.expect(Puback, 40)).packet_id == 1
    await until_ready(nodes["a"], True)
    for name in ("b", "c"):
        await readers[name].take(b"one")
    got = {message.payload for message in await gather(readers["a"], 2)}
    assert got == {b"one", b"two"}


async def test_g16_a_node_that_was_away_for_longer_than_its_lease_joins_again(
    start_cluster: StartCluster, at_own: Everywhere, topic: str
) -> None:
    nodes = at_own.nodes = await start_cluster("--store-grace", "1h", "--will-failover-grace", "0s", proxied=True)
    kept = await session(at_own("a"), "kept")
    await kept.subscribe(topic, qos=1)
    publisher = await at_own("b").connect()
    nodes.proxies["a"].cut()
    logs = [nodes[name].log_path for name in ("b", "c")]
    with trio.fail_after(SOON_S):
        while not any("cluster.reaped member=a:" in log.read_text() for log in logs):
            await trio.sleep(0.05)
    await publisher.publish(topic, b"meanwhile", 1)
    nodes.proxies["a"].resume()
    # Its clients are sent away: what they had belongs to nobody now, and they find it wherever they go.
    try:
        while not isinstance(await kept.receive(40), Disconnect):
            pass
        await kept.expect_closed(40)
    except ConnectionClosed:
        pass
    await until_ready(nodes["a"], True)
    kept = await session(at_own("a"), "kept", True)
    await kept.take(b"meanwhile")
    await publisher.publish(topic, b"again", 1)
    await kept.take(b"again")


async def test_g17_a_rolling_restart(start_cluster: StartCluster, tmp_path: Path) -> None:
    nodes = await start_cluster("--drain-rate", "1000")
    async with recorded(nodes, tmp_path) as run:
        for index in range(9):
            qos = 1 + index % 2
            run.client(
                f"s{index}", NAMES[index % 3], Profile(expiry_s=600, subscriptions=((f"t/{qos}/#", qos),), hold=index)
            )
        publishers = [run.client(f"p{index}", NAMES[index % 3], Profile(expiry_s=600)) for index in range(6)]
        await run.ready()
        stopping = False

        async def publish(index: int) -> None:
            while not stopping:
                publishers[index].publish(f"t/{1 + index % 2}/{index}", 1 + index % 2)
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            for index in range(6):
                nursery.start_soon(publish, index)
            for name in NAMES:
                run.history.fault("restart", name)
                assert await nodes.restart(name) == 0
            stopping = True
        timeline = await run.drain()
        require([*always(timeline), *availability.disconnections(timeline, NAMES)])
        # MQTT 5 clients are told to go elsewhere, and nobody is cut off.
        left = [each for each in timeline.connections.values() if each.closed_at < timeline.end and not each.left]
        assert left and all(each.disconnected in (0x8B, 0x9C, 0x9D) for each in left)


async def test_g17_clients_are_told_where_to_go(start_cluster: StartCluster, at_own: Everywhere, topic: str) -> None:
    nodes = at_own.nodes = await start_cluster("--server-reference", "other.example:1883")
    new: MqttClient = await at_own("a").connect()
    old = await at_own("a").connect(V311)
    peers: Peers = at_own("b")
    watching = await peers.subscriber(f"{topic}/w")
    assert await nodes.terminate("a") == 0
    packet = await new.expect(Disconnect)
    assert packet.reason_code in (0x8B, 0x9C)
    assert packet.properties is not None and packet.properties.server_reference == "other.example:1883"
    await old.expect_closed()
    await watching.expect_nothing()
