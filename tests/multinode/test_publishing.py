"""G1 to G6 between three nodes: what is published on one reaches whom it must on the others."""

from __future__ import annotations

import random
from contextlib import aclosing
from itertools import cycle

import pytest
import trio

from broker.codec.packets import (
    V311,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
)
from tests.integration.exchange import WINDOW, gather, numbered, payloads, publish_many, publishing
from tests.kit.mqtt_client import MqttClient, properties
from tests.multinode.conftest import NAMES, Everywhere, session


async def test_g1_qos_0_comes_once_to_subscribers_of_all_nodes(at: Everywhere, topic: str) -> None:
    readers = [await at(name).subscriber(f"{topic}/#", qos=qos) for name in NAMES for qos in (0, 2)]
    away = await session(at("a"), "g1-away")
    await away.subscribe(f"{topic}/#", qos=2)
    await away.disconnect()
    publisher = await at("b").connect()
    sent = numbered("m", 200)
    for payload in sent:
        await publisher.send(Publish(f"{topic}/t", payload))
    for reader in readers:
        got = await reader.collect(Publish, 200)
        assert payloads(got) == sent
        assert all(not message.qos and not message.dup for message in got)
        await reader.expect_nothing()
    back = await session(at("c"), "g1-away", True)
    await back.expect_nothing()


async def test_g1_qos_0_comes_to_a_session_that_is_connected_elsewhere(at: Everywhere, topic: str) -> None:
    reader = await session(at("a"), at("a").client_id())
    await reader.subscribe(topic, qos=0)
    publisher = await at("b").connect()
    await publisher.publish(topic, b"zero", 0)
    await reader.take(b"zero")
    await publisher.publish(topic, b"granted zero", 2)
    await reader.take(b"granted zero")


@pytest.mark.parametrize("qos", [1, 2])
async def test_g2_what_was_acked_comes_everywhere(at: Everywhere, topic: str, qos: int) -> None:
    live = [await at(name).subscriber(f"{topic}/+", qos=qos) for name in NAMES]
    names = [at(name).client_id() for name in NAMES]
    for name, client_id in zip(NAMES, names, strict=True):
        away = await session(at(name), client_id)
        await away.subscribe(f"{topic}/#", qos=qos)
        await away.disconnect()
    publisher = await at("c").connect()
    sent = numbered("m", 300)
    await publish_many(publisher, f"{topic}/t", sent, qos)
    for client_id, name in zip(names, (*NAMES[1:], NAMES[0]), strict=True):
        live.append(await session(at(name), client_id, True))
    for reader in live:
        assert payloads(await gather(reader, 300)) == sent
        await reader.expect_nothing()


async def test_g3_a_retry_through_another_node_adds_no_copy(at: Everywhere, topic: str) -> None:
    connected = await session(at("c"), at("c").client_id())
    away = await session(at("a"), at("a").client_id())
    for reader in (connected, away):
        await reader.subscribe(topic)
    away_id = away.client_id
    await away.disconnect()
    name = at("a").client_id()
    for node in (*NAMES, "a"):
        publisher = await session(at(node), name)
        await publisher.send(Publish(topic, b"once", 2, False, node != "a", 7))
        assert (await publisher.expect(Pubrec)).packet_id == 7
        await publisher.abort()
    for node in ("b", "c"):
        publisher = await session(at(node), name, True)
        await publisher.send(Pubrel(7))
        assert (await publisher.expect(Pubcomp)).packet_id == 7
        await publisher.abort()
    # The id is free: on any node it names a new message now.
    publisher = await session(at("a"), name, True)
    await publisher.send(Publish(topic, b"another", 2, False, False, 7))
    await publisher.expect(Pubrec)
    await publisher.send(Pubrel(7))
    await publisher.expect(Pubcomp)
    for reader in (connected, await session(at("b"), away_id, True)):
        await reader.take(b"once")
        await reader.take(b"another")
        await reader.expect_nothing()


@pytest.mark.parametrize("qos", [1, 2])
async def test_g4_order_holds_while_the_subscriber_moves(at: Everywhere, topic: str, qos: int) -> None:
    name = at("a").client_id()
    client = await session(at("a"), name)
    await client.subscribe(topic, qos=qos)
    live = await at("c").subscriber(topic, qos=qos)
    publisher = await at("b").connect()
    sent = numbered("m", 600)
    got: list[bytes] = []
    known: set[int] = set()

    async def publish() -> None:
        await publish_many(publisher, topic, sent, qos)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        client.auto_ack = True
        taken = 0
        places = cycle("bca")
        while len(set(got)) < len(sent):
            packet = await client.receive()
            if isinstance(packet, Pubrel):
                known.discard(packet.packet_id)
                continue
            assert isinstance(packet, Publish)
            if packet.qos == 1 or packet.packet_id not in known:
                got.append(packet.payload)
            if packet.qos == 2:
                known.add(packet.packet_id)
            taken += 1
            if taken % 90 == 0:
                await client.abort()
                client = await session(at(next(places)), name, True)
                client.auto_ack = True
    first = list(dict.fromkeys(got))
    assert first == sent
    assert qos == 1 or got == sent
    assert payloads(await gather(live, 600)) == sent


# -- G5

_WORKERS = 24
_ROUNDS = 130


async def _race(at: Everywhere, topic: str, number: int, seed: int) -> None:
    """Subscribe on one node, publish on another right after the SUBACK, unsubscribe, publish again; on fresh topics."""
    choice = random.Random(seed * 1000 + number)
    here = choice.choice(NAMES)
    subscriber = await (session(at(here), at(here).client_id()) if number % 2 else at(here).connect())
    publishers = {name: await at(name).connect(V311 if number % 3 else 5) for name in NAMES}
    for turn in range(_ROUNDS):
        there = choice.choice([name for name in NAMES if name != here])
        # No filter of another turn matches: what is still on its way then may well come.
        level = f"{topic}/{number}/{turn}/x"
        filters = [level, f"{level}/#", f"{topic}/{number}/{turn}/+", f"+/{number}/{turn}/x", f"$share/g/{level}"]
        topic_filter = choice.choice(filters)
        qos = choice.choice([1, 2])
        payload = b"%d" % turn
        later = choice.choice(NAMES)
        try:
            await subscriber.subscribe(topic_filter, qos=qos)
            await publishers[there].publish(level, payload, choice.choice([1, 2]))
            await subscriber.take(payload)
            await subscriber.unsubscribe(topic_filter)
            await publishers[later].publish(level, b"late", choice.choice([1, 2]))
            await subscriber.expect_nothing()
        except AssertionError as error:
            kind = "persistent" if number % 2 else "ephemeral"
            error.add_note(f"{kind} on {here}: {topic_filter}, published on {there}, after the UNSUBACK on {later}")
            raise


async def test_g5_a_publish_after_the_suback_is_seen_on_every_node(at: Everywhere, topic: str) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(_WORKERS):
            nursery.start_soon(_race, at, topic, number, 1)


async def test_g5_while_messages_flow(at: Everywhere, topic: str) -> None:
    """A publisher that never stops: from the SUBACK on nothing is missing, after the UNSUBACK nothing comes."""
    publisher = await at("a").connect()
    last_acked = -1
    stop = False

    async def publish() -> None:
        nonlocal last_acked

        async with aclosing(publishing(publisher, topic, numbered("", 100_000), 1)) as acked:
            async for payload in acked:
                last_acked = int(payload)
                if stop:
                    return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        while last_acked < 10:
            await trio.lowlevel.checkpoint()
        for turn in range(60):
            reader = await at(NAMES[turn % 3]).connect()
            await reader.send(Subscribe(reader.next_packet_id(), [SubscriptionRequest(topic, 1)]))
            reader.auto_ack = True
            got: list[int] = []
            acked = -1
            while acked < 0 or len(got) < 5:
                packet = await reader.receive()
                if isinstance(packet, Suback):
                    acked = last_acked
                else:
                    assert isinstance(packet, Publish)
                    got.append(int(packet.payload))
            # What was sent before the SUBACK may come too; everything from there on has to, without a gap. The
            # publisher has a window of messages that were sent, and not acknowledged yet.
            assert got == list(range(got[0], got[0] + len(got)))
            assert got[0] <= acked + WINDOW + 1
            await _quiet(reader, topic)
            await reader.close()
        stop = True


async def _quiet(reader: MqttClient, topic: str) -> None:
    """Unsubscribe while messages come; after the UNSUBACK and one exchange nothing is on its way any more."""
    await reader.send(Unsubscribe(reader.next_packet_id(), [topic]))
    while not isinstance(await reader.receive(), Unsuback):
        pass
    await reader.drain()
    await reader.expect_nothing()


async def test_g6_expiry_counts_from_acceptance_on_any_node(at: Everywhere, topic: str) -> None:
    away = await session(at("a"), at("a").client_id())
    await away.subscribe(topic, qos=1)
    await away.disconnect()
    publisher = await at("b").connect()
    await publisher.publish(topic, b"short", 1, properties=properties(message_expiry_interval=1))
    await publisher.publish(topic, b"long", 1, properties=properties(message_expiry_interval=100))
    await at("a").elapse(2)
    back = await session(at("c"), away.client_id, True)
    message = await back.take(b"long")
    assert message.properties is not None and message.properties.message_expiry_interval is not None
    assert 80 <= message.properties.message_expiry_interval <= 98
    await back.expect_nothing()


async def test_g2_an_ack_of_many_publishers_at_once(at: Everywhere, topic: str) -> None:
    """Window after window from publishers on all nodes to a subscriber on each: the acks keep the order of sending."""
    readers = {name: await at(name).subscriber(f"{topic}/#", qos=1) for name in NAMES}
    sent = {name: numbered(name, 200) for name in NAMES}

    async def publish(name: str) -> None:
        publisher = await at(name).connect()
        for start in range(0, 200, 50):
            for number in range(start, start + 50):
                await publisher.send(Publish(f"{topic}/{name}", sent[name][number], 1, False, False, number + 1))
            acks = await publisher.collect(Puback, 50)
            assert [ack.packet_id for ack in acks] == list(range(start + 1, start + 51))

    async with trio.open_nursery() as nursery:
        for name in NAMES:
            nursery.start_soon(publish, name)
    for reader in readers.values():
        got = await gather(reader, 600)
        for name in NAMES:
            assert [m.payload for m in got if m.topic_name.endswith(f"/{name}")] == sent[name]
