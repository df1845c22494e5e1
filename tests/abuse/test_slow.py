"""Peers that do not read, hardly read, or only write: bounded memory, counted drops, nobody else notices (G15)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from broker.codec.encode import encode
from broker.codec.packets import (
    V5,
    V311,
    Connect,
    Packet,
    Puback,
    Publish,
    Pubrel,
    Subscribe,
    SubscriptionRequest,
)
from tests.abuse.conftest import Counted
from tests.abuse.world import AbusedNode, disconnects, dropped, in_parallel, new_name
from tests.kit.mqtt_client import MqttClient, properties

MIB = 1 << 20
STALL_S = 1

#: What a node may need on top for a flood: buffers of the allocator, reads of a turn, route caches.
SLACK = 24 * MIB


@pytest.fixture
def arguments() -> tuple[str, ...]:
    return ("--stall-timeout", f"{STALL_S}s")


async def _flood(node: AbusedNode, topic: str, total_bytes: int, size: int) -> None:
    """Publish at QoS 0 without a pause; returns when the node has handled it."""
    client = await node.client()
    packet = bytes(encode(Publish(topic, bytes(size)), V5))
    block = packet * max(1, 65_536 // len(packet))
    for _ in range(total_bytes // len(block)):
        await client.send_raw(block)
    await client.expect_nothing()
    await client.close()


async def _flood_qos_1(node: AbusedNode, topic: str, count: int, size: int) -> None:
    client = await node.client()
    for start in range(0, count, 50):
        await client.send(*[Publish(topic, bytes(size), 1, False, False, start + n) for n in range(1, 51)])
        assert {ack.reason_code for ack in await client.collect(Puback, 50)} == {0}
    await client.close()


@pytest.mark.parametrize("version", [V311, V5])
async def test_g15_a_subscriber_that_never_reads_qos_0(node: AbusedNode, moved: Counted, version: int) -> None:
    topic = new_name()
    slow = await node.slow_client(version)
    await slow.subscribe(topic, qos=0)
    reader = await node.client(version)
    await reader.subscribe(f"{topic}/other", qos=0)
    before = node.rss_bytes()
    await _flood(node, topic, 48 * MIB, 10_000)
    assert node.rss_bytes() - before < SLACK
    assert moved(dropped("output_full")) > 1000
    await _flood(node, f"{topic}/other", 70_000, 1000)
    assert len(await reader.collect(Publish, 60)) == 60
    await node.until(lambda: moved(disconnects("output_stalled")) == 1, "the end of the slow one")


async def test_g15_a_subscriber_that_never_reads_qos_1(node: AbusedNode, moved: Counted) -> None:
    topic = new_name()
    slow = await node.slow_client()
    await slow.subscribe(topic, qos=1)
    before = node.rss_bytes()
    await _flood_qos_1(node, topic, 400, 100_000)
    # What is in flight is shared with the output buffer at best, and the queue has its own bound.
    assert node.rss_bytes() - before < 20 * MIB + SLACK
    assert moved(dropped("queue_full")) > 200
    await node.until(lambda: moved(disconnects("output_stalled")) == 1, "the end of the slow one")


async def test_g15_many_subscribers_that_never_read(node: AbusedNode, moved: Counted) -> None:
    topic = new_name()
    for number in range(20):
        slow = await node.slow_client()
        await slow.subscribe(topic, qos=number % 2)
    before = node.rss_bytes()
    await _flood(node, topic, 16 * MIB, 4000)
    assert node.rss_bytes() - before < 20 * 2 * MIB + SLACK
    await node.until(lambda: moved(disconnects("output_stalled")) == 20, "the end of the slow ones")


async def test_g15_a_persistent_session_that_never_reads(node: AbusedNode, moved: Counted) -> None:
    topic = new_name()
    slow = await node.slow_client(V5, session_expiry_interval=60)
    await slow.subscribe(topic, qos=1)
    before = node.rss_bytes()
    await _flood_qos_1(node, topic, 2000, 20_000)
    assert node.rss_bytes() - before < 2 * 8 * MIB + SLACK
    assert moved(dropped("queue_full")) > 1000


@pytest.mark.parametrize("arguments", [("--stall-timeout", "1s", "--output-buffer-bytes", "64KiB")])
@pytest.mark.parametrize("kind", ["PUBREL", "PUBLISH"])
async def test_g15_a_client_that_asks_and_never_reads_the_answers(node: AbusedNode, moved: Counted, kind: str) -> None:
    """Answers cannot be dropped: whoever does not read them is not read from either."""
    topic = new_name()
    packets: dict[str, Packet] = {"PUBREL": Pubrel(1), "PUBLISH": Publish(topic, b"", 1, False, False, 1)}
    block = bytes(encode(packets[kind], V5))
    block *= max(1, 65_536 // len(block))
    slow = await node.slow_client()
    before = node.rss_bytes()
    most = 0

    async def send() -> None:
        for _ in range(1000):  # 64 MB, if it is taken
            await slow.send_raw(block)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_refused, send)
        while moved(disconnects("output_stalled")) == 0:
            most = max(most, node.rss_bytes())
            await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert most - before < 12 * MIB


async def test_g15_a_client_that_subscribes_faster_than_the_node_works(node: AbusedNode, moved: Counted) -> None:
    block = bytes(encode(Subscribe(1, [SubscriptionRequest(f"a/b#/{n}", 0) for n in range(100)]), V5))
    block *= 65_536 // len(block)
    client = await node.client()
    before = node.rss_bytes()
    most = 0

    async def send() -> None:
        for _ in range(300):
            await client.send_raw(block)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_refused, send)
        nursery.start_soon(_read_on, client)
        while moved('mqtt_packets_received_total{type="SUBSCRIBE"}') < 2000:
            most = max(most, node.rss_bytes())
            await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert most - before < 6 * MIB, "a packet that has to wait lets nothing more in"


async def _read_on(client: MqttClient) -> None:
    while True:
        await client.receive()


async def _until_refused(send: Callable[[], Awaitable[None]]) -> None:
    try:
        await send()
    except (trio.TooSlowError, trio.BrokenResourceError):
        return


async def test_g15_a_reader_of_one_byte_at_a_time(node: AbusedNode, moved: Counted) -> None:
    topic = new_name()
    slow = await node.slow_client()
    await slow.subscribe(topic, qos=0)
    await _flood(node, topic, 8 * MIB, 10_000)
    stream = slow._stream
    data = bytearray()
    while len(data) < 60_000:  # more than its kernel holds
        data += await stream.receive_some(1)
    packet = bytes(encode(Publish(topic, bytes(10_000)), V5))
    assert bytes(data) == (packet * 6)[:60_000]
    assert moved(dropped("output_full")) > 0


async def test_g15_a_slow_reader_of_qos_1_loses_nothing(node: AbusedNode) -> None:
    topic = new_name()
    slow = await node.slow_client()
    await slow.subscribe(topic, qos=1)
    publisher = await node.client()
    for number in range(200):
        assert await publisher.publish(topic, b"%d" % number + bytes(10_000), 1) == 0
    for number in range(200):
        message = await slow.take()
        assert int(message.payload.rstrip(b"\0")) == number
    await slow.expect_nothing()


async def test_g15_half_open_peers_are_found_by_keep_alive(node: AbusedNode, moved: Counted) -> None:
    """They subscribe and are never heard of again; the socket stays open on their side."""
    topic = new_name()
    gauge = node.counter("mqtt_connections")

    async def vanish(number: int) -> None:
        client = await node.slow_client(V5, keep_alive_s=1)
        await client.subscribe(topic, qos=number % 2)

    await in_parallel(20, vanish)
    await _flood(node, topic, 2 * MIB, 1000)
    await node.until(
        lambda: moved(disconnects("keep_alive_timeout")) + moved(disconnects("output_stalled")) == 20, "all ends"
    )
    await node.until_gauge("mqtt_connections", gauge)


async def test_g15_peers_that_reset_leave_nothing(node: AbusedNode) -> None:
    topic = new_name()
    before = node.descriptors()
    gauge = node.counter("mqtt_connections")

    async def reset(number: int) -> None:
        for _ in range(5):
            client = await node.slow_client()
            await client.subscribe(topic, qos=number % 3)
            publisher = await node.client()
            await publisher.publish(topic, bytes(100_000), number % 3)
            await client.abort()
            await publisher.abort()

    await in_parallel(20, reset)
    await node.until_gauge("mqtt_connections", gauge)
    await node.until(lambda: node.descriptors() <= before, "the closing of all descriptors")


async def test_g15_a_flood_into_nobody(node: AbusedNode, moved: Counted) -> None:
    before = node.rss_bytes()
    await in_parallel(4, lambda number: _flood(node, f"{new_name()}/{number}", 8 * MIB, 60))
    assert node.rss_bytes() - before < SLACK
    assert moved('mqtt_messages_received_total{qos="0"}') > 300_000


async def test_g15_a_flood_of_long_topics_is_not_remembered(node: AbusedNode) -> None:
    before = node.rss_bytes()
    client = await node.client(V311)
    for number in range(1500):
        await client.send(Publish(f"{number}/".ljust(60_000, "x"), b""))
    await client.expect_nothing()
    assert node.rss_bytes() - before < SLACK


async def test_g15_a_flood_of_retained_topics(node: AbusedNode, moved: Counted) -> None:
    root = new_name()
    count = 10_000
    publisher = await node.client(V311)

    async def set_all(payload: bytes) -> None:
        for start in range(0, count, 500):
            await publisher.send(
                *[Publish(f"{root}/{n % 100}/{n}", payload, 0, True) for n in range(start, start + 500)]
            )
        await publisher.expect_nothing()

    await set_all(bytes(1000))
    slow = await node.slow_client()
    await slow.subscribe(f"{root}/#", qos=0)
    reader = await node.client()
    await reader.send(Subscribe(1, [SubscriptionRequest(f"{root}/#", 0)]))
    await reader.receive()
    assert len(await reader.collect(Publish, count)) == count, "the slow one holds nobody up"
    # A thousand filters that look at everything and match nothing: the bystanders go on meanwhile.
    greedy = await node.client()
    await greedy.send(Subscribe(1, [SubscriptionRequest(f"{root}/+/+/none{n}", 0) for n in range(1000)]))
    await greedy.receive()
    await greedy.expect_nothing()
    await node.until(lambda: moved(disconnects("output_stalled")) == 1, "the end of the slow one")
    await set_all(b"")
    await (await node.client()).subscribe(f"{root}/#")


async def test_g15_connections_that_came_and_went_are_forgotten(node: AbusedNode) -> None:
    """Also those that promised to stay for long: a keep-alive of 65,535 s keeps nothing of a closed connection."""

    async def come_and_go(number: int) -> None:
        for turn in range(40):
            client = await MqttClient.open(node.host, node.port)
            block = properties(session_expiry_interval=0)
            await client.connect(Connect(V5, f"{root}-{number}-{turn}", True, 65_535, properties=block))
            await client.close()

    root = new_name()
    await in_parallel(25, come_and_go)
    before = node.rss_bytes()
    for _ in range(3):
        root = new_name()
        await in_parallel(25, come_and_go)
    assert node.rss_bytes() - before < 3000 * 4096
