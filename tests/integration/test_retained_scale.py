"""Many retained messages: a search costs what it returns, and a flood of them stalls nobody."""

from __future__ import annotations

import trio

from broker.codec.packets import Puback, Publish
from tests.integration.conftest import PeersOf, StartNode
from tests.kit.mqtt_client import MqttClient

TOPICS = 20_000
SPECIAL = 10


async def _fill(client: MqttClient) -> None:
    for first in range(0, TOPICS, 100):
        await client.send(
            *(
                Publish(_topic(number), b"%d" % number, 1, True, packet_id=1 + number % 100)
                for number in range(first, first + 100)
            )
        )
        await client.collect(Puback, 100)


def _topic(number: int) -> str:
    return f"a/{number}/c" if number < SPECIAL else f"t/{number % 300}/x{number}"


async def test_all_retained_messages_arrive_paced_while_others_go_on(start_node: StartNode, peers_of: PeersOf) -> None:
    peers = peers_of(start_node())
    filler = await peers.connect()
    await _fill(filler)

    few = await peers.connect()
    await few.subscribe("a/+/c", qos=1)
    got = [await few.take() for _ in range(SPECIAL)]
    assert {packet.topic_name for packet in got} == {_topic(number) for number in range(SPECIAL)}
    await few.expect_nothing()

    everything = await peers.connect()
    bystander = await peers.connect()
    await bystander.subscribe("by/stander", qos=1)
    seen: set[str] = set()
    turns = 0

    async def read_all() -> None:
        await everything.subscribe("t/#", qos=1)
        while len(seen) < TOPICS - SPECIAL:
            packet = await everything.take()
            assert packet.retain
            assert packet.topic_name not in seen
            seen.add(packet.topic_name)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_all)
            while len(seen) < TOPICS - SPECIAL:
                await filler.publish("by/stander", b"x", 1)
                await bystander.take(b"x")
                turns += 1
    assert seen == {_topic(number) for number in range(SPECIAL, TOPICS)}
    # Between any two windows of retained messages somebody else got a message through.
    assert turns > TOPICS // 1000
