"""G11 and G12 between three nodes: wills and retained messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from broker.codec.packets import Disconnect, Publish, Will
from tests.history import checks
from tests.history.client import Profile
from tests.history.run import recorded, require
from tests.history.timeline import Timeline
from tests.kit.mqtt_client import MqttClient, properties
from tests.multinode.conftest import NAMES, Everywhere, StartCluster, session
from tests.multinode.nodes import Nodes

pytestmark = pytest.mark.timeout(90)


async def observers(at: Everywhere, topic: str, *names: str) -> list[MqttClient]:
    """A persistent and an ephemeral QoS 2 subscriber on each node."""
    result: list[MqttClient] = []
    for name in names:
        client = await session(at(name), at(name).client_id())
        await client.subscribe(f"{topic}/#", qos=2)
        result += [client, await at(name).subscriber(f"{topic}/#", qos=2)]
    return result


def will(topic: str, payload: bytes, delay_s: int = 0, retain: bool = False) -> Will:
    return Will(topic, payload, 2, retain, properties(will_delay_interval=delay_s) if delay_s else None)


async def test_g11_a_will_comes_once_on_every_node(at: Everywhere, topic: str) -> None:
    watching = await observers(at, topic, *NAMES)
    for node in NAMES:
        dying = await at(node).connect(will=will(f"{topic}/w", node.encode()))
        await dying.abort()
        for client in watching:
            await client.take(node.encode())
    for node in NAMES:
        leaving = await at(node).connect(will=will(f"{topic}/w", b"never"))
        await leaving.disconnect()
        leaving = await at(node).connect(will=will(f"{topic}/w", b"asked for"))
        await leaving.disconnect(Disconnect(0x04))
        for client in watching:
            await client.take(b"asked for")
    for client in watching:
        await client.expect_nothing()


async def test_g11_a_delayed_will_is_cancelled_on_another_node(at: Everywhere, topic: str) -> None:
    watching = await observers(at, topic, "a", "c")
    names = [at("a").client_id() for _ in range(2)]
    for name in names:
        dying = await session(at("a"), name, will=will(f"{topic}/{name}", b"gone", delay_s=2))
        await dying.abort()
    back = await session(at("b"), names[0], True)
    await at("c").elapse(3)
    for client in watching:
        message = await client.take(b"gone")
        assert message.topic_name == f"{topic}/{names[1]}"
        await client.expect_nothing()
    await back.disconnect()


async def test_g11_wills_of_a_killed_node(start_cluster: StartCluster, at_own: Everywhere, topic: str) -> None:
    nodes = at_own.nodes = await start_cluster("--will-failover-grace", "2s")
    watching = await observers(at_own, topic, "b", "c")
    expected: set[str] = set()
    for number in range(10):
        peers = at_own("a")
        made = will(f"{topic}/{number}", b"%d" % number, delay_s=number % 3)
        if number % 2:
            await session(peers, f"c{number}", will=made)
        else:
            await peers.connect(client_id=f"c{number}", will=made)
        expected.add(f"{topic}/{number}")
    nodes.kill("a")
    for number in (1, 2, 3):  # back in time: of the second the session ended with its connection, of the others not
        await session(at_own("bc"[number % 2]), f"c{number}")
        expected.discard(f"{topic}/{number}")
    for client in watching:
        got: set[str] = set()
        while len(got) < len(expected):
            with trio.fail_after(30):
                message = await client.receive(30)
            client.auto_ack = True
            if isinstance(message, Publish):
                assert message.topic_name not in got
                got.add(message.topic_name)
                client.auto_ack = False
        assert got == expected
    await at_own("b").elapse(2)
    for client in watching:
        client.auto_ack = True
        assert not [packet for packet in await client.drain() if isinstance(packet, Publish) and not packet.dup]


async def test_g12_what_was_acked_is_seen_on_every_node(at: Everywhere, topic: str) -> None:
    publishers = {name: await at(name).connect() for name in NAMES}
    for turn in range(30):
        here = NAMES[turn % 3]
        payload = b"%d" % turn
        await publishers[here].publish(f"{topic}/{turn % 7}/x", payload, 1 + turn % 2, retain=True)
        for there in NAMES:
            for topic_filter in (f"{topic}/{turn % 7}/x", f"{topic}/{turn % 7}/+"):
                reader = await at(there).connect()
                await reader.subscribe(topic_filter)
                message = await reader.take(payload)
                assert message.retain
                await reader.disconnect()
    for number in range(7):
        await publishers[NAMES[number % 3]].publish(f"{topic}/{number}/x", b"", 1, retain=True)
    for there in NAMES:
        reader = await at(there).connect()
        await reader.subscribe(f"{topic}/#")
        await reader.expect_nothing()


async def test_g12_all_nodes_agree_after_a_race(nodes: Nodes, topic: str, tmp_path: Path) -> None:
    """Writers on all nodes to the same topics, readers that come and go: nobody sees an old value, or none."""
    topics = [f"{topic}/{number}" for number in range(3)]
    async with recorded(nodes, tmp_path) as run:
        writers = [run.client(f"{topic}-w{node}", node, Profile(expiry_s=600)) for node in NAMES]
        await run.ready()
        for name in topics:
            writers[0].publish(name, 1, True)
        await writers[0].settled()
        done = False

        async def write(number: int) -> None:
            for turn in range(150):
                writers[number].publish(topics[turn % 3], 1 + number % 2, True)
                await writers[number].settled()

        async def read(node: str) -> None:
            turn = 0
            while not done:
                turn += 1
                reader = run.client(f"{topic}-r{node}{turn}", node, Profile(subscriptions=((f"{topic}/+", 1),)))
                with trio.fail_after(10):
                    # The retained value, or a live one instead of it.
                    await reader.until(lambda reader=reader: reader.seen >= set(topics))  # type: ignore[misc]
                reader.stop()

        async with trio.open_nursery() as readers:
            for node in NAMES:
                readers.start_soon(read, node)
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(write, number)
            done = True
        values = await run.retained_values(f"{topic}/#", topics)
        require(checks.retained(Timeline(run.history), values))
