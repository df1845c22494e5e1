"""G7 to G10 between three nodes: sessions go where their clients go, and have one owner."""

from __future__ import annotations

import os
import signal
from contextlib import aclosing

import pytest
import trio

from broker.codec.packets import V5, V311, Disconnect, Puback, Pubcomp, Publish, Pubrec, Pubrel
from tests.integration.exchange import gather, numbered, payloads, publish_many, publishing
from tests.kit.mqtt_client import ConnectionClosed, MqttClient, UnexpectedPacket
from tests.multinode.conftest import NAMES, Everywhere, StartCluster, session
from tests.multinode.nodes import until_buried

pytestmark = pytest.mark.timeout(90)


async def test_g7_a_session_moves_with_all_that_is_in_flight(at: Everywhere, topic: str) -> None:
    name = at("a").client_id()
    client = await session(at("a"), name, receive_maximum=60)
    await client.subscribe(f"{topic}/in", qos=2)
    publisher = await at("b").connect()
    other = await session(at("c"), at("c").client_id())
    await other.subscribe(f"{topic}/out")
    await publish_many(publisher, f"{topic}/in", numbered("m", 150), 2)
    first = await client.collect(Publish, 60)
    for message in first[:40]:
        await client.send(Pubrec(message.packet_id))
    released = await client.collect(Pubrel, 40)
    for release in released[:20]:
        await client.send(Pubcomp(release.packet_id))
    second = await client.collect(Publish, 20)
    # The other direction: three ids, one released, one past PUBREC, one without an answer perhaps.
    for packet_id in (1, 2, 3):
        await client.send(Publish(f"{topic}/out", b"%d" % packet_id, 2, False, False, packet_id))
        assert (await client.expect(Pubrec)).packet_id == packet_id
    await client.send(Pubrel(1))
    assert (await client.expect(Pubcomp)).packet_id == 1
    await client.abort()

    client = await session(at("b"), name, True, receive_maximum=60)
    ids = {message.packet_id: message.payload for message in (*first, *second)}
    past = {release.packet_id for release in released[20:]}
    handled = {message.payload for message in (*first, *second)}
    again: set[int] = set()
    client.auto_ack = True
    open_releases = set(past)
    while len(handled) < 150 or open_releases:
        packet = await client.receive()
        if isinstance(packet, Pubrel):
            open_releases.discard(packet.packet_id)
            ids.pop(packet.packet_id, None)
            continue
        assert isinstance(packet, Publish)
        if packet.packet_id in ids and ids[packet.packet_id] == packet.payload:
            assert packet.dup
            again.add(packet.packet_id)
            continue
        assert packet.payload not in handled and not packet.dup
        handled.add(packet.payload)
    # What was past PUBREC was released again, and not sent again.
    assert not past & again
    client.auto_ack = False
    for packet_id in (2, 3):
        await client.send(Publish(f"{topic}/out", b"%d" % packet_id, 2, False, True, packet_id))
        while not isinstance(packet := await client.receive(), Pubrec):
            assert isinstance(packet, Pubrel)
        await client.send(Pubrel(packet_id))
        while not isinstance(packet := await client.receive(), Pubcomp):
            pass
    for packet_id in (1, 2, 3):
        await other.take(b"%d" % packet_id)
    await other.expect_nothing()


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize("persistent", [False, True], ids=["ephemeral", "persistent"])
async def test_g8_the_older_connection_is_told_and_closed(
    at: Everywhere, topic: str, version: int, persistent: bool
) -> None:
    name = at("a").client_id()
    publisher = await at("b").connect()
    before = await at("a").connect(version, client_id=name, persistent=persistent)
    await before.subscribe(topic, qos=1)
    for number in range(12):
        await publisher.publish(topic, b"%d" % number, 1)
        await before.take(b"%d" % number)
        node = NAMES[(number + 1) % 3]
        client = await at(node).connect(version, client_id=name, persistent=persistent)
        assert client.connack is not None and client.connack.session_present is persistent
        await before.expect_disconnect(0x8E)
        if not persistent:
            await client.subscribe(topic, qos=1)
        before = client
    await publisher.publish(topic, b"end", 1)
    await before.take(b"end")


async def test_g8_many_connect_at_the_same_time(at: Everywhere, topic: str) -> None:
    """Whoever is left in the end is one, and has the session."""
    name = at("a").client_id()
    first = await session(at("a"), name)
    await first.subscribe(topic, qos=1)
    clients: list[MqttClient] = []

    async def connect(number: int) -> None:
        try:
            clients.append(await session(at(NAMES[number % 3]), name))
        except UnexpectedPacket:
            return  # a newer one came before it was accepted

    for _ in range(5):
        async with trio.open_nursery() as nursery:
            for number in range(9):
                nursery.start_soon(connect, number)
    publisher = await at("b").connect()
    await publisher.publish(topic, b"one", 1)
    got: list[bytes] = []
    left = 0
    for client in (first, *clients):
        try:
            got += payloads([packet for packet in await client.drain() if isinstance(packet, Publish)])
            left += 1
        except ConnectionClosed:
            continue
    assert left == 1 and got == [b"one"]


@pytest.mark.parametrize("woken", ["before", "after"], ids=["within-the-lease", "after-the-lease"])
async def test_g8_a_paused_node_wakes_and_can_change_nothing(
    start_cluster: StartCluster, at_own: Everywhere, topic: str, woken: str
) -> None:
    nodes = at_own.nodes = await start_cluster("--will-failover-grace", "1s")
    old = await session(at_own("a"), "moved")
    await old.subscribe(f"{topic}/+", qos=2)
    publisher = await at_own("b").connect()
    await publish_many(publisher, f"{topic}/1", numbered("one", 5), 1)
    await publish_many(publisher, f"{topic}/2", numbered("two", 5), 2)
    held = await old.collect(Publish, 10)
    observer = await session(at_own("c"), "observer")
    await observer.subscribe(f"from/{topic}")
    nodes.pause("a")
    try:
        # What the old connection says now is read by a node that does not know yet that it lost the session.
        for message in held:
            await old.send(Puback(message.packet_id) if message.qos == 1 else Pubrec(message.packet_id))
        await old.send(Publish(f"from/{topic}", b"staged", 2, False, False, 9))
        new = await session(at_own("b"), "moved", True)
        again = await new.collect(Publish, 10)
        assert [(m.packet_id, m.payload, m.dup) for m in again] == [(m.packet_id, m.payload, True) for m in held]
        await publisher.publish(f"{topic}/3", b"newer", 1)
        newer = await new.expect(Publish)
        assert newer.payload == b"newer"
        if woken == "after":
            # Others have buried it when they say so; it must find out by itself.
            await until_buried(nodes, "a")
    finally:
        os.kill(nodes["a"].pid, signal.SIGCONT)
    while True:
        try:
            packet = await old.receive(30)
        except ConnectionClosed:
            break
        # Neither what was sent after the takeover, nor an end of an exchange.
        assert isinstance(packet, Disconnect) or (isinstance(packet, Publish) and packet.payload != b"newer"), packet
        if isinstance(packet, Disconnect):
            assert packet.reason_code in (0x8E, 0x89, 0x8B)
    # Nothing that the old connection said has had an effect: all is still there, on a third node.
    await new.abort()
    third = await session(at_own("c"), "moved", True)
    rest = await third.collect(Publish, 11)
    assert [m.payload for m in rest] == [m.payload for m in (*again, newer)]
    assert all(m.dup for m in rest[:10])
    await third.send(Publish(f"from/{topic}", b"fresh", 2, False, False, 9))
    assert (await third.expect(Pubrec)).packet_id == 9
    await third.send(Pubrel(9))
    assert (await third.expect(Pubcomp)).packet_id == 9
    await observer.take(b"fresh")
    await observer.expect_nothing()


async def test_g9_sessions_of_a_killed_node_are_usable_at_once(
    start_cluster: StartCluster, at_own: Everywhere, topic: str
) -> None:
    nodes = at_own.nodes = await start_cluster()
    publisher = await at_own("b").connect()
    clients = [await session(at_own("a"), f"c{number}") for number in range(20)]
    for number, client in enumerate(clients):
        await client.subscribe(f"{topic}/{number}", f"{topic}/all", qos=2)
    for number in range(20):
        await publish_many(publisher, f"{topic}/{number}", numbered(f"{number}-", 10), 2)
    held = [await client.collect(Publish, 10) for client in clients]
    nodes.kill("a")
    # Nobody waits for the lease: this is done long before it has run out.
    for number in range(20):
        client = await session(at_own("bc"[number % 2]), f"c{number}", True)
        again = await client.collect(Publish, 10)
        assert [(m.packet_id, m.payload, m.dup) for m in again] == [
            (m.packet_id, m.payload, True) for m in held[number]
        ]
        clients[number] = client
    await publisher.publish(f"{topic}/all", b"to all", 1)
    for client in clients:
        assert (await client.expect(Publish)).payload == b"to all"


async def test_g9_what_was_acked_by_a_killed_node_comes(
    start_cluster: StartCluster, at_own: Everywhere, topic: str
) -> None:
    nodes = at_own.nodes = await start_cluster()
    away = await session(at_own("b"), "away")
    await away.subscribe(f"{topic}/+", qos=1)
    live = await at_own("c").subscriber(f"{topic}/+", qos=1)
    await away.disconnect()
    publisher = await at_own("a").connect()
    acked: list[bytes] = []
    async with aclosing(publishing(publisher, f"{topic}/t", numbered("m", 100_000), 1)) as acks:
        async for payload in acks:
            acked.append(payload)
            if len(acked) == 300:
                nodes.kill("a")
    away = await session(at_own("c"), "away", True)
    got = payloads(await gather(away, len(acked)))
    assert got[: len(acked)] == acked
    assert payloads(await gather(live, len(acked))) == acked


@pytest.mark.timeout(60)
async def test_g10_sessions_expire_in_time_on_any_node(
    start_cluster: StartCluster, at_own: Everywhere, topic: str
) -> None:
    nodes = at_own.nodes = await start_cluster("--will-failover-grace", "1s")
    short = await session(at_own("a"), "short", session_expiry_interval=2)
    await short.subscribe(topic, qos=1)
    await short.disconnect()
    dying = await session(at_own("a"), "dying", session_expiry_interval=2)
    await dying.subscribe(topic, qos=1)
    long = await session(at_own("a"), "long", session_expiry_interval=60)
    await long.subscribe(topic, qos=1)
    await session(at_own("b"), "short", True, session_expiry_interval=2)
    nodes.kill("a")
    await at_own("c").elapse(16)  # lease, a beat, the interval, and the tolerance of five seconds
    assert long.client_id == "long"
    await session(at_own("c"), "long", True, session_expiry_interval=60)
    await session(at_own("b"), "dying", False)
