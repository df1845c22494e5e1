"""Queues that run over: what was accepted stays, what is refused is counted, publishers see success (G2, G15)."""

from __future__ import annotations

import pytest

from broker.codec.packets import V5, Connack, Connect, Puback, Publish
from tests.abuse.conftest import Counted, Nodes, attended
from tests.abuse.world import AbusedNode, dropped, new_name
from tests.kit.mqtt_client import MqttClient, properties

BATCH = 50
GROUP_QUEUE = 40


async def _persistent(node: AbusedNode, client_id: str, **values: object) -> MqttClient:
    client = await node.open()
    await client.send(Connect(V5, client_id, False, properties=properties(session_expiry_interval=60, **values)))
    assert (await client.expect(Connack)).reason_code == 0
    return client


async def _flood(node: AbusedNode, topic: str, count: int, size: int = 0) -> list[int]:
    """Publish numbered messages at QoS 1; returns the reason codes of their PUBACKs."""
    client = await node.client()
    codes = []
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        await client.send(*[Publish(topic, b"%d" % n + bytes(size), 1, False, False, 1 + n) for n in numbers])
        codes += [ack.reason_code for ack in await client.collect(Puback, len(numbers))]
    await client.close()
    return codes


@pytest.mark.parametrize("store", ["memory", "embedded"])
async def test_g15_a_full_session_queue_refuses_the_newest(nodes: Nodes, store: str) -> None:
    async with attended(nodes.get(store=store)) as node:
        topic, client_id = new_name(), new_name()
        client = await _persistent(node, client_id)
        await client.subscribe(topic, qos=1)
        await client.disconnect()
        other = await node.client()
        await other.subscribe(topic, qos=0)
        before = node.counter(dropped("queue_full"))
        assert set(await _flood(node, topic, 1010)) == {0}
        assert node.counter(dropped("queue_full")) - before == 10
        assert len(await other.collect(Publish, 1010)) == 1010, "who reads gets all"
        again = await _persistent(node, client_id)
        received = 0
        while received < 1000:
            message = await again.expect(Publish)
            assert int(message.payload) == received
            await again.send(Puback(message.packet_id))
            received += 1
        await again.expect_nothing()
        assert set(await _flood(node, topic, 1)) == {0}, "there is room again"
        await again.take(b"0")


@pytest.mark.parametrize("store", ["memory", "embedded"])
async def test_g15_a_session_queue_of_8_mib(nodes: Nodes, store: str) -> None:
    async with attended(nodes.get(store=store)) as node:
        topic, client_id = new_name(), new_name()
        client = await _persistent(node, client_id)
        await client.subscribe(topic, qos=1)
        await client.disconnect()
        before = node.counter(dropped("queue_full"))
        assert set(await _flood(node, topic, 11, 1_000_000)) == {0}
        assert node.counter(dropped("queue_full")) - before == 3
        assert set(await _flood(node, topic, 1)) == {0}  # what is small still fits
        again = await _persistent(node, client_id)
        numbers = []
        for _ in range(9):
            message = await again.expect(Publish)
            numbers.append(int(message.payload.rstrip(b"\0")))
            await again.send(Puback(message.packet_id))
        assert numbers == [*range(8), 0]
        await again.expect_nothing()


async def test_g15_a_full_queue_of_an_ephemeral_session(node: AbusedNode, moved: Counted) -> None:
    topic = new_name()
    client = await node.client(V5, None, receive_maximum=1)
    await client.subscribe(topic, qos=1)
    assert set(await _flood(node, topic, 1010)) == {0}
    assert moved(dropped("queue_full")) == 9  # one is in flight
    for number in range(1001):
        await client.take(b"%d" % number)
    await client.expect_nothing()
    await _flood(node, topic, 1)
    await client.take(b"0")


@pytest.mark.parametrize("arguments", [("--max-group-queue", str(GROUP_QUEUE))])
async def test_g15_a_full_queue_of_a_shared_subscription(node: AbusedNode, moved: Counted) -> None:
    topic, client_id = new_name(), new_name()
    member = await _persistent(node, client_id)
    await member.subscribe(f"$share/g/{topic}", qos=1)
    await member.disconnect()
    assert set(await _flood(node, topic, GROUP_QUEUE + 7)) == {0}
    assert moved(dropped("group_queue_full")) == 7
    again = await _persistent(node, client_id)
    for number in range(GROUP_QUEUE):
        await again.take(b"%d" % number)
    await again.expect_nothing()
    assert await _flood(node, topic, 1) == [0]
    await again.take(b"0")


@pytest.mark.parametrize("arguments", [("--max-group-queue", str(GROUP_QUEUE))])
async def test_g15_members_of_a_shared_subscription_that_never_acknowledge(node: AbusedNode, moved: Counted) -> None:
    topic = new_name()
    members = [await node.client(V5, None, receive_maximum=5) for _ in range(3)]
    for member in members:
        await member.subscribe(f"$share/g/{topic}", qos=1)
    count = GROUP_QUEUE + 10
    client = await node.client()
    await client.send(*[Publish(topic, b"%d" % n, 1, False, False, 1 + n) for n in range(count)])
    # Publishers are held up while the members could still catch up, then the bound of the queue does the rest.
    assert {ack.reason_code for ack in await client.collect(Puback, count)} == {0}
    assert moved(dropped("group_queue_full")) == 10
    held = [packet for member in members for packet in await member.drain()]
    assert len(held) == 15, "nobody gets more than its Receive Maximum"
    # All leave but one: it gets everything that was accepted, once.
    last = await node.client()
    await last.subscribe(f"$share/g/{topic}", qos=1)
    for member in members:
        await member.close()
    numbers = [int((await last.take()).payload) for _ in range(GROUP_QUEUE)]
    assert sorted(numbers) == list(range(GROUP_QUEUE))
    await last.expect_nothing()
