"""Small requests that could cost much: filters, properties, wills, sessions, groups (G15)."""

from __future__ import annotations

from itertools import product

import pytest

from broker.codec.encode import encode
from broker.codec.packets import (
    V5,
    V311,
    Connect,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Pubrec,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
    Will,
)
from tests.abuse.siege import MIB, meanwhile, siege
from tests.abuse.world import AbusedNode, in_parallel, new_name
from tests.kit.mqtt_client import MqttClient, properties


@pytest.fixture
def arguments() -> tuple[str, ...]:
    return ("--max-subscriptions-per-client", "2000")


@pytest.mark.parametrize("topic", ["/" * 200, "/" * 65_535, "a/" * 30_000, "+/" * 200 + "#", "+/" * 32_000 + "+"])
async def test_g15_a_bomb_of_levels(node: AbusedNode, topic: str) -> None:
    """Refused by their number, as filters and as topics, a hundred at a time."""
    async with siege(node):

        async def bomb() -> None:
            client = await node.client()
            for _ in range(20):
                assert (await client.subscribe(topic)).reason_codes[0] >= 0x80
            if "+" not in topic:
                await client.send(Publish(topic, b"x", 1, False, False, 1))
                answer = await client.receive()
                assert getattr(answer, "reason_code", 0) >= 0x80
            await client.close()

        await meanwhile(node, bomb)


async def test_g15_a_bomb_of_wildcards(node: AbusedNode) -> None:
    """Every pattern of `+` and names over twelve levels, and topics that match thousands of them: each is looked at a
    bounded number of times, and bystanders go on."""
    root = new_name()
    patterns = [f"{root}/" + "/".join(levels) for levels in product("+a", repeat=10)]
    async with siege(node, 48 * MIB):
        client = await node.client()
        await client.send(Subscribe(1, [SubscriptionRequest(each, 0) for each in patterns]))
        await client.receive()
        publisher = await node.client()
        await publisher.publish(f"{root}/" + "/".join("a" * 10), b"all", 1)
        await client.expect(Publish)

        async def flood() -> None:
            # Each topic is another one: no route is remembered for it.
            for number in range(20):
                await publisher.publish(f"{root}/" + "/".join("a" * 9) + f"/{new_name()}{number}", b"", 1)

        await meanwhile(node, flood)
        await client.close()
        await publisher.close()


async def test_g15_a_bomb_of_hashes(node: AbusedNode) -> None:
    """Two hundred filters that overlap: one message for each publication, not two hundred."""
    root = new_name()
    names = [root, *(f"l{n}" for n in range(180))]
    filters = ["/".join((*names[: n + 1], "#")) for n in range(180)]
    async with siege(node):
        clients = [await node.client(V311) for _ in range(10)]
        for client in clients:
            await client.send(Subscribe(1, [SubscriptionRequest(each, 0) for each in filters]))
            await client.receive()
        publisher = await node.client()

        async def flood() -> None:
            await publisher.publish("/".join(names), b"x", 1)
            for client in clients:
                await client.expect(Publish)
                await client.expect_nothing()

        await meanwhile(node, flood)
        await in_parallel(10, lambda number: clients[number].close())
        await publisher.close()


async def test_g15_a_bomb_of_subscriptions(node: AbusedNode) -> None:
    """Twenty sessions with all that each may have; when they go, their memory comes back."""

    async def subscribe(_number: int) -> None:
        client = await node.client()
        root = new_name()
        for start in range(0, 2000, 500):
            await client.send(
                Subscribe(1, [SubscriptionRequest(f"{root}/{n}/+/#", 1) for n in range(start, start + 500)])
            )
            await client.receive()
        await client.close()

    async with siege(node, 64 * MIB):
        await in_parallel(20, subscribe)
        names = ("mqtt_subscriptions", "mqtt_cluster_subscriptions")
        await node.until(lambda: sum(map(node.counter, names)) <= 2, "the end of all subscriptions")


@pytest.mark.parametrize("count", [128, 129, 2000])
async def test_g15_a_bomb_of_user_properties(node: AbusedNode, count: int) -> None:
    topic = new_name()
    reader = await node.client()
    await reader.subscribe(topic, qos=0)
    async with siege(node):
        client = await node.client()
        pairs = tuple((f"k{n % 3}", "v") for n in range(count))
        await client.send(Publish(topic, b"x", properties=properties(user_properties=pairs)))
        if count > 128:
            await client.expect_disconnect(0x97)
            await reader.expect_nothing()
        else:
            got = (await reader.expect(Publish)).properties
            assert got is not None and tuple(got.user_properties) == pairs
        await client.close()


async def test_g15_a_bomb_of_retained_messages_and_wide_filters(node: AbusedNode) -> None:
    root = new_name()
    publisher = await node.client(V311)
    await publisher.send(*[Publish(f"{root}/{n % 50}/{n}", bytes(100), 0, True) for n in range(2000)])
    await publisher.expect_nothing()
    async with siege(node, 48 * MIB):

        async def greedy(_number: int) -> None:
            client = await node.client()
            for topic_filter in ("+/#", "#", "+/+/+", f"{root}/+/#"):
                await client.send(Subscribe(1, [SubscriptionRequest(topic_filter, 0)]))
                await client.receive()
            await client.close()

        async def flood() -> None:
            await in_parallel(5, greedy)

        await meanwhile(node, flood)
    await publisher.send(*[Publish(f"{root}/{n % 50}/{n}", b"", 0, True) for n in range(2000)])
    await publisher.expect_nothing()


@pytest.mark.parametrize("arguments", [("--max-packet-size-before-auth", "128KiB")])
async def test_g15_a_bomb_of_wills(node: AbusedNode) -> None:
    """Fifty of them, nearly the most that a will can have, due at the same moment: bounded for whoever reads slowly."""
    topic = new_name()
    slow = await node.slow_client()
    await slow.subscribe(topic, qos=0)
    size = 60_000
    async with siege(node, 64 * MIB):
        clients = []
        for _ in range(50):
            client = await node.open()
            await client.connect(Connect(V5, new_name(), True, 0, will=Will(topic, bytes(size), 0, False)))
            clients.append(client)
        before = node.rss_bytes()
        await in_parallel(50, lambda number: clients[number].abort())
        await node.goes_on(3)
        assert node.rss_bytes() - before < 24 * MIB


async def test_g15_a_bomb_of_sessions(node: AbusedNode) -> None:
    """A session that never expires costs its record in the store and no connection: what bounds their number is who
    may connect (authentication) and `session_expiry_interval` of the client, not the node."""

    async def leave(number: int) -> None:
        for _ in range(20):
            client = await MqttClient.open(node.host, node.port)
            block = properties(session_expiry_interval=30)
            await client.connect(Connect(V5, new_name(), True, 0, properties=block))
            await client.subscribe(f"bomb/{number}/#", qos=1)
            await client.close()

    async with siege(node, 24 * MIB):
        await in_parallel(25, leave)


async def test_g15_a_bomb_of_shared_groups(node: AbusedNode) -> None:
    """A thousand group names of one client: they go with it."""
    topic = new_name()
    async with siege(node, 48 * MIB):
        client = await node.client()
        await client.send(Subscribe(1, [SubscriptionRequest(f"$share/g{n}/{topic}", 0) for n in range(1000)]))
        await client.receive()
        publisher = await node.client()
        await publisher.publish(topic, b"x", 1)
        assert len(await client.collect(Publish, 1000)) == 1000
        await client.close()
        await publisher.close()
        await node.until_gauge("mqtt_cluster_shared_groups", 0)


async def test_g15_unsubscribing_from_what_never_was(node: AbusedNode) -> None:
    async with siege(node):
        client = await node.client()

        async def flood() -> None:
            await client.send(Unsubscribe(1, [f"never/{n}" for n in range(1000)]))
            assert set((await client.expect(Unsuback)).reason_codes) == {0x11}

        await meanwhile(node, flood)
        await client.close()


async def test_g15_packet_ids_that_are_never_given_back(node: AbusedNode) -> None:
    """A subscriber that never acknowledges has as many in flight as it may; a publisher that never releases as well."""
    topic = new_name()
    async with siege(node):
        deaf = await node.client(V311)
        await deaf.subscribe(topic, qos=2)
        publisher = await node.client(V311)
        for start in range(0, 400, 50):
            await publisher.send(*[Publish(topic, b"x", 1, False, False, start + n) for n in range(1, 51)])
            await publisher.collect(Puback, 50)
        received = [packet for packet in await deaf.drain() if isinstance(packet, Publish)]
        assert len(received) == 100
        assert len({packet.packet_id for packet in received}) == 100
        hoarder = await node.client(V311)
        await hoarder.send(*[Publish("nobody", b"", 2, False, False, n) for n in range(1, 65_536, 8)])
        await hoarder.collect(Pubrec, len(range(1, 65_536, 8)))
        await hoarder.send(Pingreq())
        await hoarder.expect(Pingresp)
        for client in (deaf, publisher, hoarder):
            await client.close()


async def test_g15_a_bomb_of_aliases(node: AbusedNode) -> None:
    """Each alias of the longest topic, over and over: what a client may keep is bounded by their number."""
    async with siege(node, 24 * MIB):
        client = await node.client()
        for turn in range(5):
            for alias in range(1, 65):
                topic = f"{turn}/{alias}/".ljust(60_000, "x")
                await client.send(Publish(topic, b"", properties=properties(topic_alias=alias)))
        await client.expect_nothing()
        await client.send_raw(bytes(encode(Publish("a", b"", properties=properties(topic_alias=65)), V5)))
        await client.expect_disconnect(0x94)
        await client.close()
