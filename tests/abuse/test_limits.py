"""The bounds of GUARANTEES.md, section 6: up to each everything works, beyond it what is written there (G15)."""

from __future__ import annotations

import pytest

from broker.codec.encode import encode
from broker.codec.packets import (
    V5,
    V311,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
)
from broker.codec.primitives import remaining_length
from tests.abuse.conftest import Counted
from tests.abuse.world import AbusedNode, in_parallel, new_name, packet_errors
from tests.kit.mqtt_client import MqttClient, describe, frame, properties

MIB = 1 << 20
RECEIVE_MAXIMUM = 100
MAX_SUBSCRIPTIONS = 1000


def _publish_of(size: int, topic: str, version: int) -> bytes:
    """A PUBLISH at QoS 0 that is exactly so many bytes long."""
    name = topic.encode()
    overhead = 1 + len(remaining_length(size)) + 2 + len(name) + (version == V5)
    packet = bytes(encode(Publish(topic, bytes(size - overhead)), version))
    assert len(packet) == size
    return packet


@pytest.mark.parametrize("version", [V311, V5])
async def test_g15_the_largest_packet_is_taken_and_one_byte_more_is_not(
    node: AbusedNode, moved: Counted, version: int
) -> None:
    topic = new_name()
    client = await node.client(version)
    await client.subscribe(topic, qos=0)
    await client.send_raw(_publish_of(MIB, topic, version))
    assert len(client.last_raw) < 100
    assert (await client.expect(Publish)).topic_name == topic
    await client.send_raw(_publish_of(MIB + 1, topic, version))
    await client.expect_disconnect(0x95)
    await node.until(lambda: moved(packet_errors("packet_too_large")) == 1, "the count")


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize("head", [0x30, 0x32, 0x40, 0x82, 0xC0, 0xF0])
async def test_g15_256_mb_announced_and_nothing_sent(node: AbusedNode, moved: Counted, head: int, version: int) -> None:
    before = node.rss_bytes()
    client = await node.client(version)
    await client.send_raw(bytes((head,)) + b"\xff\xff\xff\x7f")
    await client.expect_disconnect(0x95)
    await node.until(lambda: moved(packet_errors("packet_too_large")) == 1, "the count")
    assert node.rss_bytes() - before < 16 * MIB


async def test_g15_many_who_announce_a_megabyte_cost_what_they_send(node: AbusedNode) -> None:
    before = node.rss_bytes()

    async def announce(_number: int) -> None:
        client = await node.client()
        await client.send_raw(b"\x30" + remaining_length(MIB - 10) + b"\x00\x01a")

    await in_parallel(100, announce)
    assert node.rss_bytes() - before < 20 * MIB


async def test_g15_a_large_packet_in_small_pieces_behind_a_turns_share(node: AbusedNode) -> None:
    topic = new_name()
    client = await node.client()
    await client.subscribe(topic, qos=0)
    small = bytes(encode(Publish("nobody/" + topic, b""), V5)) * 600
    large = _publish_of(300_000, topic, V5)
    await client.send_raw(small + large[:20_000])
    for start in range(20_000, len(large), 4001):
        await client.send_raw(large[start : start + 4001])
    assert len((await client.expect(Publish)).payload) > 299_000
    await client.expect_nothing()


async def test_g15_receive_maximum_at_qos_2(node: AbusedNode, moved: Counted) -> None:
    client = await node.client()
    topic = new_name()
    await client.send(*[Publish(topic, b"", 2, False, False, n) for n in range(1, RECEIVE_MAXIMUM + 1)])
    assert [packet.packet_id for packet in await client.collect(Pubrec, RECEIVE_MAXIMUM)][-1] == RECEIVE_MAXIMUM
    await client.expect_nothing()
    await client.send(Publish(topic, b"", 2, False, True, 1))  # a retry takes no more room
    assert (await client.expect(Pubrec)).packet_id == 1
    await client.send(Pubrel(50), Publish(topic, b"", 2, False, False, 1000))
    assert (await client.expect(Pubcomp)).packet_id == 50
    assert (await client.expect(Pubrec)).packet_id == 1000
    await client.send(Publish(topic, b"", 2, False, False, 1001))
    await client.expect_disconnect(0x93)
    assert moved(packet_errors("receive_maximum_exceeded")) == 1


async def test_g15_receive_maximum_counts_qos_1_beside_qos_2(node: AbusedNode) -> None:
    client = await node.client()
    topic = new_name()
    await client.send(*[Publish(topic, b"", 2, False, False, n) for n in range(1, RECEIVE_MAXIMUM)])
    await client.collect(Pubrec, RECEIVE_MAXIMUM - 1)
    for packet_id in (500, 500, 501):  # one at a time there is room for one
        await client.send(Publish(topic, b"", 1, False, False, packet_id))
        assert (await client.expect(Puback)).packet_id == packet_id


async def test_g15_version_3_knows_no_receive_maximum(node: AbusedNode) -> None:
    client = await node.client(V311)
    topic = new_name()
    subscriber = await node.client()
    await subscriber.subscribe(topic, qos=0)
    count = 3000
    await client.send(*[Publish(topic, b"%d" % n, 2, False, False, n) for n in range(1, count + 1)])
    assert len(await client.collect(Pubrec, count)) == count
    await client.send(*[Publish(topic, b"again", 2, False, True, n) for n in range(1, count + 1)])
    assert len(await client.collect(Pubrec, count)) == count
    await client.send(*[Pubrel(n) for n in range(1, count + 1)])
    assert len(await client.collect(Pubcomp, count)) == count
    assert [packet.payload for packet in await subscriber.collect(Publish, count)] == [
        b"%d" % n for n in range(1, count + 1)
    ]
    await subscriber.expect_nothing()


async def test_g15_a_reused_packet_id_at_qos_2_adds_no_copy(node: AbusedNode) -> None:
    topic = new_name()
    subscriber = await node.client()
    await subscriber.subscribe(topic, qos=2)
    client = await node.client()
    await client.send(*[Publish(topic, b"first", 2, False, False, 7)] * 3)
    assert [packet.packet_id for packet in await client.collect(Pubrec, 3)] == [7, 7, 7]
    await subscriber.take(b"first")
    await subscriber.expect_nothing()
    await client.send(Pubrel(7))
    await client.expect(Pubcomp)
    assert await client.publish(topic, b"second", 2) == 0
    await subscriber.take(b"second")


async def test_g15_all_topic_aliases(node: AbusedNode) -> None:
    client = await node.client()
    topic = new_name() + "x" * 60_000
    subscriber = await node.client()
    await subscriber.subscribe(topic, qos=0)
    for alias in range(1, 65):
        await client.send(Publish(topic, b"set", properties=properties(topic_alias=alias)))
    await client.send(*[Publish("", b"use", properties=properties(topic_alias=alias)) for alias in range(1, 65)])
    await client.expect_nothing()
    payloads = [packet.payload for packet in await subscriber.collect(Publish, 128)]
    assert payloads == [b"set"] * 64 + [b"use"] * 64


async def test_g15_topic_aliases_towards_a_client_are_bounded(node: AbusedNode) -> None:
    root = new_name()
    subscriber = await node.client(V5, None, topic_alias_maximum=65_535)
    await subscriber.subscribe(root + "/#", qos=0)
    client = await node.client()
    for number in range(300):
        await client.send(Publish(f"{root}/{number}", b""))
    await client.expect_nothing()
    aliases = set()
    for packet in await subscriber.collect(Publish, 300):
        block = packet.properties
        if block is not None and block.topic_alias is not None:
            aliases.add(block.topic_alias)
    assert max(aliases, default=0) <= 64


# Subscriptions


@pytest.mark.parametrize("version", [V311, V5])
async def test_g15_1001_subscriptions(node: AbusedNode, version: int) -> None:
    root = new_name()
    client = await node.client(version)
    names = [f"{root}/{number}" for number in range(MAX_SUBSCRIPTIONS)]
    for start in range(0, MAX_SUBSCRIPTIONS, 250):
        assert set((await client.subscribe(*names[start : start + 250], qos=1)).reason_codes) == {1}
    refused = 0x97 if version == V5 else 0x80
    assert list((await client.subscribe(f"{root}/more", qos=1)).reason_codes) == [refused]
    assert list((await client.subscribe(names[3], qos=0)).reason_codes) == [0], "a replacement is none more"
    await client.unsubscribe(names[0])
    assert list((await client.subscribe(f"{root}/more", qos=1)).reason_codes) == [1]
    assert await (await node.client()).publish(f"{root}/more", b"x", 1) == 0
    await client.take(b"x")


async def test_g15_thousands_of_filters_in_one_subscribe(node: AbusedNode) -> None:
    root = new_name()
    client = await node.client()
    requests = [SubscriptionRequest(f"{root}/+/{number}", 1) for number in range(20_000)]
    await client.send(Subscribe(1, requests))
    codes = list((await client.expect(Suback)).reason_codes)
    assert codes == [1] * MAX_SUBSCRIPTIONS + [0x97] * 19_000
    await client.send(Unsubscribe(2, [request.topic_filter for request in requests]))
    packets = [await client.receive()]
    assert describe(packets[0]).startswith("UNSUBACK")
    await client.expect_nothing()


async def test_g15_subscription_churn_leaves_nothing(node: AbusedNode) -> None:
    root = new_name()
    before = node.counter("mqtt_subscriptions")

    async def churn(number: int) -> None:
        client = await node.client()
        for turn in range(20):
            names = ["#", f"{root}/{turn}/#", f"+/{number}/+", f"$share/g{turn}/{root}/#", f"{root}/{number}/{turn}"]
            # What others publish comes in between: only the acknowledgements count here.
            await client.send(Subscribe(turn + 1, [SubscriptionRequest(name, 0) for name in names]))
            if turn % 7 == 6:
                break  # some leave without unsubscribing
            await client.send(Unsubscribe(turn + 1001, names))
        await client.drain()
        await client.close()

    await in_parallel(30, churn)
    await node.until_gauge("mqtt_subscriptions", before)


async def test_g15_packets_behind_a_disconnect_are_ignored(node: AbusedNode) -> None:
    topic = new_name()
    subscriber = await node.client()
    await subscriber.subscribe(topic, qos=0)
    client = await node.client()
    await client.send(Disconnect(), Publish(topic, b"late"))
    await client.expect_closed()
    await subscriber.expect_nothing()


async def test_g15_a_packet_that_never_ends_is_only_its_own_matter(node: AbusedNode) -> None:
    """Truncated packets of all kinds, each with the connection dropped in the middle."""
    whole = [
        bytes(encode(packet, V5))
        for packet in (
            Publish("a", b"x" * 100, 1, False, False, 1),
            Subscribe(1, [SubscriptionRequest("a/#", 1)]),
            Unsubscribe(1, ["a/#"]),
            Pubrel(1, 0x92),
            Disconnect(0x04),
        )
    ] + [frame(0xF0, b"\x18\x04\x15\x00\x01X")]

    async def drop(number: int) -> None:
        packet = whole[number % len(whole)]
        for cut in range(1, min(len(packet), 12)):
            client: MqttClient = await node.client()
            await client.send_raw(packet[:cut])
            if cut % 2:
                await client.abort()
            await client.close()

    before = node.counter("mqtt_connections")
    await in_parallel(len(whole), drop)
    await node.until_gauge("mqtt_connections", before)
