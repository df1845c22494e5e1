"""The numbered promises of one node about time, retained messages and bounds: G10, G12, G15."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from broker.codec.packets import (
    V5,
    V311,
    Connect,
    Disconnect,
    Publish,
    Pubrec,
    SubscriptionRequest,
    Will,
)
from tests.conformance.peers import Peers
from tests.integration.conftest import PeersOf, StartNode
from tests.integration.exchange import (
    gather,
    metric,
    numbered,
    payloads,
    publish_many,
)
from tests.kit.mqtt_client import MqttClient, properties

HTTP = "127.0.0.1:0"


# -- G10


async def test_g10_not_early_not_late_and_the_will_first(peers: Peers, topic: str) -> None:
    name = peers.client_id()
    watcher = await peers.subscriber(f"{topic}/will")
    will = Will(f"{topic}/will", b"gone", 1, False, properties(will_delay_interval=600))
    client = await peers.connect(client_id=name, will=will, session_expiry_interval=3)
    await client.subscribe(f"{topic}/in", qos=1)
    publisher = await peers.connect()
    await publisher.publish(f"{topic}/in", b"kept", 1)
    await client.abort()
    # Within its interval the session is there, with its queue.
    client = await peers.connect(client_id=name, clean_start=False, will=will, session_expiry_interval=3)
    assert client.connack is not None and client.connack.session_present
    await client.expect(Publish)
    await client.abort()
    left_at = time.monotonic()
    # The will waits longer than the session lives: it goes out when the session ends.
    assert (await watcher.expect(Publish, 3 + 5)).payload == b"gone"
    assert time.monotonic() - left_at >= 3
    with trio.fail_after(5):
        while await publisher.publish(f"{topic}/in", b"nobody", 1) != 0x10:
            pass
    client = await peers.connect(client_id=name, clean_start=False)
    assert client.connack is not None and not client.connack.session_present


async def test_g10_expiry_survives_a_kill(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    node = start_node(store="embedded")
    before = peers_of(node)
    for name, expiry_s in (("short", 1), ("long", 600)):
        client = await before.connect(client_id=name, clean_start=False, session_expiry_interval=expiry_s)
        await client.subscribe(f"{topic}/{name}")
        await client.disconnect()
    node.kill()
    node.start()
    after = peers_of(node)
    publisher = await after.connect()
    with trio.fail_after(1 + 5):
        while await publisher.publish(f"{topic}/short", b"anybody?", 1) != 0x10:
            pass
    for name, present in (("short", False), ("long", True)):
        client = await after.connect(client_id=name, clean_start=False)
        assert client.connack is not None and client.connack.session_present is present


async def test_g10_the_interval_of_disconnect_counts(peers: Peers, topic: str) -> None:
    ends, stays = peers.client_id(), peers.client_id()
    client = await peers.connect(client_id=ends, clean_start=False, session_expiry_interval=600)
    await client.disconnect(Disconnect(0, properties(session_expiry_interval=0)))
    client = await peers.connect(client_id=stays, clean_start=False, session_expiry_interval=1)
    await client.disconnect(Disconnect(0, properties(session_expiry_interval=600)))
    await peers.elapse(3)
    for name, present in ((ends, False), (stays, True)):
        client = await peers.connect(client_id=name, clean_start=False)
        assert client.connack is not None and client.connack.session_present is present


# -- G12


async def test_g12_the_last_acked_write_wins(peers: Peers, topic: str) -> None:
    one, two = await peers.connect(), await peers.connect()
    for number in range(50):
        await one.publish(topic, b"one %d" % number, 1 + number % 2, retain=True)
        await two.publish(topic, b"two %d" % number, 1 + number % 2, retain=True)
        reader = await peers.connect()
        await reader.subscribe(topic)
        message = await reader.take(b"two %d" % number)
        assert message.retain
        await reader.expect_nothing()
        await reader.disconnect()
    await one.publish(topic, b"", 1, retain=True)
    reader = await peers.subscriber(topic)
    await reader.expect_nothing()


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("persistent", [False, True])
async def test_g12_the_retained_value_or_the_live_one_never_neither(
    peers: Peers, topic: str, qos: int, persistent: bool
) -> None:
    """Subscribe while the value changes: what was acked before, or something newer, arrives, and the end does."""
    writer = await peers.connect()
    acked = 0
    done = False

    async def write() -> None:
        nonlocal acked
        number = 0
        while not done:
            number += 1
            await writer.publish(topic, b"%d" % number, max(qos, 1), retain=True)
            acked = number
        await writer.publish(topic, b"%d" % (number + 1), max(qos, 1), retain=True)
        acked = number + 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        while not acked:
            await trio.lowlevel.checkpoint()
        readers = []
        for _ in range(15):
            known = acked
            reader = await peers.connect(persistent=persistent)
            await reader.subscribe(topic, qos=qos)
            reader.auto_ack = True
            while not isinstance(first := await reader.receive(), Publish):
                pass
            assert int(first.payload) >= known
            readers.append((reader, int(first.payload)))
        done = True
    for reader, first_number in readers:
        last = first_number
        while last < acked:
            packet = await reader.receive()
            if isinstance(packet, Publish):
                assert int(packet.payload) >= last  # once something live came, nothing older follows
                last = int(packet.payload)


# -- G15


async def test_g15_the_session_queue_is_bounded_and_says_so(
    start_node: StartNode, peers_of: PeersOf, topic: str
) -> None:
    node = start_node("--max-queued-messages", "20", "--max-queued-bytes", "4KiB", http=HTTP)
    peers = peers_of(node)
    for name in ("count", "bytes"):
        client = await peers.connect(client_id=name, persistent=True)
        await client.subscribe(f"{topic}/{name}")
        await client.disconnect()
    publisher = await peers.connect()
    for payload in numbered("m", 30):
        await publisher.publish(f"{topic}/count", payload, 1)
    for payload in numbered("b" * 1000, 8):
        await publisher.publish(f"{topic}/bytes", payload, 2)
    client = await peers.connect(client_id="count", persistent=True)
    assert payloads(await gather(client, 20)) == numbered("m", 20)  # the newest are refused
    await client.expect_nothing()
    client = await peers.connect(client_id="bytes", persistent=True)
    small = await gather(client, 3)
    assert payloads(small) == numbered("b" * 1000, 3)
    await client.expect_nothing()
    assert metric(node, 'mqtt_messages_dropped_total{reason="queue_full"}') == 15
    # There is room again.
    await publisher.publish(f"{topic}/count", b"again", 1)
    client = await peers.connect(client_id="count", persistent=True)
    await client.take(b"again")


async def test_g15_the_queue_of_an_ephemeral_session_is_bounded(
    start_node: StartNode, peers_of: PeersOf, topic: str
) -> None:
    node = start_node("--max-queued-messages", "20", http=HTTP)
    peers = peers_of(node)
    slow = await peers.connect(receive_maximum=5)
    await slow.subscribe(topic)
    publisher = await peers.connect()
    await publish_many(publisher, topic, numbered("m", 40), 1)
    assert payloads(await gather(slow, 25)) == numbered("m", 25)
    await slow.expect_nothing()
    assert metric(node, 'mqtt_messages_dropped_total{reason="queue_full"}') == 15


async def test_g15_the_group_queue_is_bounded(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    node = start_node("--max-group-queue", "10", http=HTTP)
    peers = peers_of(node)
    member = await peers.connect(client_id="member", persistent=True)
    await member.subscribe(f"$share/g/{topic}", qos=1)
    await member.disconnect()
    publisher = await peers.connect()
    for payload in numbered("m", 15):
        await publisher.publish(topic, payload, 1)
    member = await peers.connect(client_id="member", persistent=True)
    assert payloads(await gather(member, 10)) == numbered("m", 10)
    await member.expect_nothing()
    assert metric(node, 'mqtt_messages_dropped_total{reason="group_queue_full"}') == 5


async def test_g15_in_flight_is_bounded_both_ways(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    node = start_node("--max-inflight", "10", "--receive-maximum", "10")
    peers = peers_of(node)
    receiver = await peers.connect()
    await receiver.subscribe(topic)
    publisher = await peers.connect()
    assert publisher.connack is not None and publisher.connack.properties is not None
    assert publisher.connack.properties.receive_maximum == 10
    await publish_many_in_turn(publisher, topic, 30)
    assert len(await receiver.drain()) == 10
    for packet_id in range(100, 111):
        await publisher.send(Publish(topic, b"x", 2, False, False, packet_id))
    for _ in range(10):
        await publisher.expect(Pubrec)
    await publisher.expect_disconnect(0x93)


async def publish_many_in_turn(client: MqttClient, topic: str, count: int) -> None:
    for payload in numbered("m", count):
        await client.publish(topic, payload, 1)


async def test_g15_packets_before_and_after_connect(peers: Peers, topic: str) -> None:
    stranger = await peers.open()
    await stranger.send(Connect(V5, "x" * 60_000, True, 0))
    await stranger.expect_closed()
    client = await peers.connect()
    assert client.connack is not None and client.connack.properties is not None
    largest = client.connack.properties.maximum_packet_size
    assert largest == 1024 * 1024
    await client.publish(topic, b"x" * (largest - len(topic) - 10), 1)
    await client.send_raw(b"\x30" + b"\x80\x80\x80\x01")  # 2 MiB are announced
    await client.expect_disconnect(0x95)


async def test_g15_a_session_has_so_many_filters(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    node = start_node("--max-subscriptions-per-client", "5")
    peers = peers_of(node)
    client = await peers.connect()
    filters = [SubscriptionRequest(f"{topic}/{number}", 1) for number in range(7)]
    assert list((await client.subscribe(*filters)).reason_codes) == [1, 1, 1, 1, 1, 0x97, 0x97]
    assert list((await client.subscribe(filters[0])).reason_codes) == [1]
    await client.unsubscribe(f"{topic}/0")
    assert list((await client.subscribe(filters[6])).reason_codes) == [1]
    old = await peers.connect(V311)
    suback = await old.subscribe(*filters)
    assert list(suback.reason_codes) == [1, 1, 1, 1, 1, 0x80, 0x80]


async def test_g15_a_slow_reader_is_dropped_from_and_then_let_go(
    start_node: StartNode, peers_of: PeersOf, topic: str
) -> None:
    node = start_node("--stall-timeout", "2s", "--output-buffer-bytes", "64KiB", http=HTTP)
    peers = peers_of(node)
    slow = await peers.connect()
    await slow.subscribe(f"{topic}/#", qos=0)
    fast = await peers.subscriber(topic)
    publisher = await peers.connect()
    payload = b"x" * 50_000
    resident_before = resident_kib(node.pid)
    for _ in range(40):
        for _ in range(10):
            await publisher.send(Publish(topic, payload))
        assert len(await gather(fast, 10)) == 10  # nobody else waits for it
    for _ in range(20):
        await publisher.publish(f"{topic}/more", payload)
    assert resident_kib(node.pid) - resident_before < 8 * 1024
    assert metric(node, 'mqtt_messages_dropped_total{reason="output_full"}') > 100
    with trio.fail_after(20):
        while not metric(node, 'mqtt_disconnects_total{reason="output_stalled"}'):
            await fast.expect_nothing()


def resident_kib(pid: int) -> int:
    """Memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


async def test_g15_so_many_connections(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    node = start_node("--max-connections", "3", http=HTTP)
    peers = peers_of(node)
    clients = [await peers.connect() for _ in range(3)]
    turned_away = await peers.open()
    await turned_away.expect_closed()
    assert metric(node, 'mqtt_connections_rejected_total{reason="max_connections"}') == 1
    await clients[0].disconnect()
    with trio.fail_after(10):
        while metric(node, "mqtt_connections") > 2:
            await clients[1].expect_nothing()
    await peers.connect()
