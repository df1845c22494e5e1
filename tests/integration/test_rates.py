"""Clients that send too fast are read more slowly, and nobody else is; clients that take too little are let go."""

from __future__ import annotations

import time

import trio

from broker.codec.packets import V5, Connect, Pingreq, Pingresp, Publish
from tests.conformance.peers import Peers
from tests.integration.conftest import PeersOf, StartNode
from tests.integration.exchange import metric, numbered
from tests.kit.mqtt_client import MqttClient

HTTP = "127.0.0.1:0"


async def counted(client: MqttClient, count: int) -> float:
    """Receives so many messages, in order; returns how long that took."""
    started = time.monotonic()
    for number in range(count):
        assert (await client.expect(Publish, 60)).payload == b"m%d" % number
    return time.monotonic() - started


async def flood(client: MqttClient, topic: str, count: int) -> None:
    """Sends them all at once; the node need not read them."""
    for payload in numbered("m", count):
        await client.send(Publish(topic, payload))


async def test_messages_of_one_client(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    # On a store that says nothing: no other work wakes the node.
    node = start_node("--message-rate", "100", store="memory", http=HTTP)
    peers = peers_of(node)
    reader = await peers.subscriber(topic)
    sender = await peers.connect(keep_alive_s=1)
    await flood(sender, topic, 400)
    # A burst of 100 at once, and the rest takes its three seconds: none is lost, and keep-alive does not end it.
    took = await counted(reader, 400)
    assert took > 2.0
    await sender.publish(topic, b"after", 1)
    assert metric(node, 'mqtt_limits_total{reason="paused_messages"}') >= 2


async def test_others_are_not_paused(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    peers = peers_of(start_node("--message-rate", "20"))
    sender, other = await peers.connect(), await peers.connect()
    await flood(sender, topic, 200)
    for _ in range(15):
        await other.publish(topic, b"x", 1)
    # Packets that are no messages need no tokens.
    for _ in range(100):
        await other.send(Pingreq())
        await other.expect(Pingresp)


async def test_bytes_of_one_client(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    node = start_node("--byte-rate", "100KiB", http=HTTP)
    peers = peers_of(node)
    reader = await peers.subscriber(topic)
    sender = await peers.connect()
    started = time.monotonic()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for _ in range(6):
                await sender.send(Publish(topic, bytes(64 * 1024)))

        nursery.start_soon(send)
        for _ in range(6):
            await reader.expect(Publish, 60)
    # 384 KiB, 100 of them at once, the last 64 beyond.
    assert time.monotonic() - started > 1.5
    assert metric(node, 'mqtt_limits_total{reason="paused_bytes"}') >= 1


async def test_a_listener_has_its_own_rate(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    node = start_node("--listen", "tcp://127.0.0.1:0?message_rate=10")
    reader = await peers_of(node).subscriber(topic)
    host, _, port = node.listeners[1].removeprefix("tcp://").partition("?")[0].rpartition(":")
    sender = await MqttClient.open(host, int(port))
    async with sender:
        await sender.connect(Connect(V5, "slow", True, 0))
        await flood(sender, topic, 30)
        assert await counted(reader, 30) > 1.0


async def test_a_paused_client_may_leave(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    """Nothing of it stays behind, and a newer connection with its client id is served at once."""
    node = start_node("--message-rate", "1", http=HTTP)
    peers = peers_of(node)
    for _ in range(3):
        sender = await peers.connect(client_id="hasty")
        await flood(sender, topic, 50)
    last = await peers.connect(client_id="hasty")
    await last.disconnect()
    with trio.fail_after(20):
        while metric(node, "mqtt_connections"):
            await trio.sleep(0.02)


async def test_a_paused_client_that_is_gone_gives_its_place_back(
    start_node: StartNode, peers_of: PeersOf, topic: str
) -> None:
    """Its messages that were read go out at once, and the next one finds its place."""
    node = start_node("--message-rate", "1", "--max-connections-per-ip", "2", http=HTTP)
    peers = peers_of(node)
    reader = await peers.subscriber(topic)
    for _ in range(4):
        sender = await peers.connect()
        await flood(sender, topic, 100)
        await sender.close()
        await counted(reader, 100)
        with trio.fail_after(20):
            while metric(node, "mqtt_connections") != 1:
                await trio.sleep(0.02)
    assert metric(node, 'mqtt_disconnects_total{reason="connection_lost"}') == 4


async def test_tenants(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    attribute = "attribute?name=tenant&value=${clientid}&match=^([a-z]*)-"
    rate = ("--tenant", "${client_attrs.tenant}", "--tenant-message-rate", "50")
    node = start_node(*rate, "--client-attributes", attribute, http=HTTP)
    peers = peers_of(node)
    readers = {name: await peers.subscriber(f"{topic}/{name}/+") for name in ("x", "y")}
    senders = [await _named(peers, "x") for _ in range(3)]
    for number, sender in enumerate(senders):
        await flood(sender, f"{topic}/x/{number}", 50)
    quick = await _named(peers, "y")
    await flood(quick, f"{topic}/y/0", 40)
    assert await counted(readers["y"], 40) < 60
    started = time.monotonic()
    got = [await readers["x"].expect(Publish, 60) for _ in range(150)]
    assert time.monotonic() - started > 0.5
    for number in range(3):
        mine = [each.payload for each in got if each.topic_name.endswith(f"/{number}")]
        assert mine == numbered("m", 50)
    assert metric(node, 'mqtt_limits_total{reason="paused_tenant"}') >= 1


async def _named(peers: Peers, tenant: str) -> MqttClient:
    client = await peers.open()
    await client.connect(Connect(V5, f"{tenant}-{peers.client_id()}", True, 0))
    return client


async def test_slow_consumers_are_let_go(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    node = start_node("--slow-consumer", "disconnect", "--output-buffer-bytes", "64KiB", http=HTTP)
    peers = peers_of(node)
    slow = await peers.subscriber(topic, qos=0)
    quick = await peers.subscriber(topic, qos=0)
    sender = await peers.connect()
    sent = 0
    with trio.fail_after(60):
        while not metric(node, 'mqtt_disconnects_total{reason="quota_exceeded"}'):
            for _ in range(10):
                await sender.send(Publish(topic, bytes(60_000)))
                await quick.expect(Publish)
                sent += 1
    assert sent < 2000
    assert metric(node, 'mqtt_disconnects_total{reason="quota_exceeded"}') == 1
    while isinstance(packet := await slow.receive(), Publish):
        pass
    assert getattr(packet, "reason_code", None) == 0x97
