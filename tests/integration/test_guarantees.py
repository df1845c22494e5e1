"""The numbered promises of one node: G1 to G7.

G10, G12 and G15 are in test_guarantees_bounds.py, G16 in test_outage.py, what outlives a restart in test_restart.py.
"""

from __future__ import annotations

import os
import signal

import pytest
import trio

from broker.codec.packets import (
    V5,
    V31,
    V311,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
)
from tests.conformance.peers import Peers
from tests.integration.conftest import PeersOf, StartNode
from tests.integration.exchange import (
    gather,
    numbered,
    payloads,
    publish_many,
    publishing,
    store_pid,
    write_at_once,
)
from tests.kit.mqtt_client import MqttClient, UnexpectedPacket, properties

VERSIONS = [V31, V311, V5]


def resumed(client: MqttClient) -> bool:
    """CONNACK says that the session is there; version 3.1 cannot tell."""
    assert client.connack is not None
    return client.connack.session_present or client.version == V31


# -- G1


@pytest.mark.parametrize("version", VERSIONS)
async def test_g1_qos_0_is_not_queued(peers: Peers, topic: str, version: int) -> None:
    name = peers.client_id()
    away = await peers.connect(version, client_id=name, persistent=True)
    await away.subscribe(f"{topic}/a", qos=2)
    await away.subscribe(f"{topic}/b", qos=0)
    await away.disconnect()
    publisher = await peers.connect(version)
    await publisher.publish(f"{topic}/a", b"at most once", 0)
    await publisher.publish(f"{topic}/b", b"granted 0", 2)
    await publisher.publish(f"{topic}/a", b"queued", 1)
    back = await peers.connect(version, client_id=name, persistent=True)
    await back.take(b"queued")
    await back.expect_nothing()


async def test_g1_qos_0_is_never_repeated(peers: Peers, topic: str) -> None:
    name = peers.client_id()
    subscriber = await peers.connect(client_id=name, persistent=True)
    await subscriber.subscribe(topic)
    publisher = await peers.connect()
    seen: list[bytes] = []
    for half in ("a", "b"):
        for payload in numbered(half, 100):
            await publisher.send(Publish(topic, payload))
        await publisher.expect_nothing()
        if half == "a":
            seen += payloads(await subscriber.collect(Publish, 50))
            await subscriber.abort()  # the rest of the first half may be lost, or not; not repeated
            subscriber = await peers.connect(client_id=name, persistent=True)
    await publisher.publish(topic, b"end", 1)
    while (message := await subscriber.take()).payload != b"end":
        assert message.qos == 0 and not message.dup
        seen.append(message.payload)
    assert len(seen) == len(set(seen))
    assert [payload for payload in seen if payload.startswith(b"b")] == numbered("b", 100)


# -- G2


async def test_g2_acked_messages_are_in_every_queue_when_the_node_is_killed(
    start_node: StartNode, peers_of: PeersOf, topic: str
) -> None:
    node = start_node(store="embedded")
    write_at_once(node)
    names = ["one", "two", "three", "member"]
    before = peers_of(node)
    for name in names:
        client = await before.connect(client_id=name, persistent=True)
        await client.subscribe(f"$share/g/{topic}/+" if name == "member" else f"{topic}/+", qos=1)
        await client.disconnect()
    publisher, bystander = await before.connect(), await before.connect()
    acked: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def publish() -> None:
            async for payload in publishing(publisher, f"{topic}/t", numbered("m", 900), 1):
                acked.append(payload)

        nursery.start_soon(publish)
        while len(acked) < 200:
            await trio.lowlevel.checkpoint()
        # From here on the store takes nothing in; what is acked nevertheless is lost.
        os.kill(store_pid(node), signal.SIGSTOP)
        for _ in range(20):
            await bystander.expect_nothing()
        os.kill(store_pid(node), signal.SIGKILL)
        node.kill()
    assert 200 <= len(acked) < 900
    node.start()
    after = peers_of(node)
    for name in names:
        client = await after.connect(client_id=name, persistent=True)
        assert resumed(client)
        missing = set(acked)
        while missing:
            try:
                missing.discard((await client.take()).payload)
            except UnexpectedPacket as error:
                raise AssertionError(f"{name} misses {sorted(missing)} of {len(acked)}: {error}") from None


async def test_g2_puback_says_it_was_retained(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    node = start_node(store="embedded")
    before = peers_of(node)
    publisher = await before.connect()
    for number in range(20):
        await publisher.publish(f"{topic}/{number}", b"kept", 1, retain=True)
    node.kill()
    node.start()
    after = peers_of(node)
    reader = await after.connect()
    await reader.subscribe(f"{topic}/#")
    got = await gather(reader, 20)
    assert {message.topic_name for message in got} == {f"{topic}/{number}" for number in range(20)}


# -- G3


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize("killed", [False, True], ids=["resumed", "killed"])
async def test_g3_a_repeated_publish_adds_no_copy(
    start_node: StartNode, peers_of: PeersOf, topic: str, version: int, killed: bool
) -> None:
    node = start_node(store="embedded")
    before = peers_of(node)
    name, reader_name = "g3-publisher", "g3-reader"
    reader = await before.connect(client_id=reader_name, persistent=True)
    await reader.subscribe(topic)
    await reader.disconnect()
    publisher = await before.connect(version, client_id=name, persistent=True)
    await publisher.send(Publish(topic, b"once", 2, False, False, 7))
    await publisher.expect(Pubrec)
    await publisher.abort()
    if killed:
        node.kill()
        node.start()
    after = peers_of(node)
    publisher = await after.connect(version, client_id=name, persistent=True)
    assert resumed(publisher)
    for _ in range(2):  # lost answers: the client repeats itself
        await publisher.send(Publish(topic, b"once", 2, False, True, 7))
        assert (await publisher.expect(Pubrec)).packet_id == 7
    for _ in range(2):
        await publisher.send(Pubrel(7))
        assert (await publisher.expect(Pubcomp)).packet_id == 7
    # PUBCOMP freed the id: the same one names a new message now.
    await publisher.send(Publish(topic, b"another", 2, False, False, 7))
    await publisher.expect(Pubrec)
    await publisher.send(Pubrel(7))
    await publisher.expect(Pubcomp)
    reader = await after.connect(client_id=reader_name, persistent=True)
    await reader.take(b"once")
    await reader.take(b"another")
    await reader.expect_nothing()


async def test_g3_a_repeated_publish_adds_no_copy_for_those_without_a_queue(peers: Peers, topic: str) -> None:
    name = peers.client_id()
    readers = [await peers.subscriber(topic, qos=qos) for qos in range(3)]
    away = await peers.connect(persistent=True)
    await away.subscribe(topic, qos=0)
    publisher = await peers.connect(client_id=name, persistent=True)
    for _ in range(3):
        await publisher.send(Publish(topic, b"once", 2, False, False, 7))
        await publisher.expect(Pubrec)
        await publisher.abort()
        publisher = await peers.connect(client_id=name, persistent=True)
        assert resumed(publisher)
    await publisher.send(Pubrel(7))
    await publisher.expect(Pubcomp)
    for reader in (*readers, away):
        await reader.take(b"once")
        await reader.expect_nothing()


@pytest.mark.parametrize("version", VERSIONS)
async def test_g3_exactly_once_whenever_the_receiver_breaks_off(peers: Peers, topic: str, version: int) -> None:
    name = peers.client_id()
    receiver = await peers.connect(version, client_id=name, persistent=True)
    await receiver.subscribe(topic)
    publisher = await peers.connect()
    for number in range(5):
        await publisher.publish(topic, b"%d" % number, 2)
        # The receiver breaks off before PUBREC, before PUBREL, after PUBREL, after PUBCOMP.
        message = await receiver.expect(Publish)
        assert (message.payload, message.dup) == (b"%d" % number, False)
        await receiver.abort()
        receiver = await peers.connect(version, client_id=name, persistent=True)
        again = await receiver.expect(Publish)
        assert (again.payload, again.packet_id, again.dup) == (message.payload, message.packet_id, True)
        await receiver.send(Pubrec(message.packet_id))
        assert (await receiver.expect(Pubrel)).packet_id == message.packet_id
        for _ in range(2):
            await receiver.abort()
            receiver = await peers.connect(version, client_id=name, persistent=True)
            assert (await receiver.expect(Pubrel)).packet_id == message.packet_id
        await receiver.send(Pubcomp(message.packet_id))
        await receiver.expect_nothing()
        await receiver.abort()
        receiver = await peers.connect(version, client_id=name, persistent=True)
        await receiver.expect_nothing()


async def test_g3_through_many_breaks(peers: Peers, topic: str) -> None:
    """Publisher and receiver break off again and again, in the middle of windows; nothing is lost or doubled."""
    sent = numbered("m", 300)
    names = peers.client_id(), peers.client_id()
    receiver = await peers.connect(client_id=names[1], persistent=True)
    await receiver.subscribe(topic)
    got: list[bytes] = []
    known: set[int] = set()  # packet ids of messages received and not released yet
    state: dict[int, tuple[bytes, bool]] = {}  # packet id -> payload, released

    async def publish() -> None:
        waiting = list(reversed(sent))
        packet_id = 0
        while waiting or state:
            client = await peers.connect(client_id=names[0], persistent=True)
            for open_id, (payload, released) in list(state.items()):
                await client.send(Pubrel(open_id) if released else Publish(topic, payload, 2, False, True, open_id))
            answers = 0
            while (waiting or state) and answers < 40:
                while waiting and len(state) < 20:
                    packet_id = packet_id % 65535 + 1
                    state[packet_id] = waiting.pop(), False
                    await client.send(Publish(topic, state[packet_id][0], 2, False, False, packet_id))
                answer = await client.receive()
                answers += 1
                if isinstance(answer, Pubrec):
                    state[answer.packet_id] = state[answer.packet_id][0], True
                    await client.send(Pubrel(answer.packet_id))
                else:
                    assert isinstance(answer, Pubcomp)
                    state.pop(answer.packet_id, None)
            await client.abort()

    async def receive() -> None:
        client = receiver
        while len(got) < len(sent) or known:
            for _ in range(30):
                if len(got) == len(sent) and not known:
                    break
                packet = await client.receive()
                if isinstance(packet, Publish):
                    if packet.packet_id not in known:
                        known.add(packet.packet_id)
                        got.append(packet.payload)
                    else:
                        assert packet.dup
                    await client.send(Pubrec(packet.packet_id))
                else:
                    assert isinstance(packet, Pubrel)
                    known.discard(packet.packet_id)
                    await client.send(Pubcomp(packet.packet_id))
            await client.abort()
            client = await peers.connect(client_id=names[1], persistent=True)
        # A reset can have taken the last PUBCOMP with it; a message it must not be.
        client.auto_ack = True
        assert all(isinstance(packet, Pubrel) for packet in await client.drain())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        nursery.start_soon(receive)
    assert sorted(got) == sorted(sent)


# -- G4


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [1, 2])
async def test_g4_order_with_small_windows_and_breaks(peers: Peers, topic: str, version: int, qos: int) -> None:
    sent = numbered("m", 400)
    name = peers.client_id()
    publisher = await peers.connect(version)
    live = await peers.subscriber(topic)

    async def connect() -> MqttClient:
        if version == V5:
            return await peers.connect(client_id=name, persistent=True, receive_maximum=7)
        return await peers.connect(version, client_id=name, persistent=True)

    receiver = await connect()
    await receiver.subscribe(topic)
    first: list[bytes] = []

    async def receive() -> None:
        client = receiver
        while len(first) < len(sent):
            for message in await gather(client, min(60, len(sent) - len(first))):
                if message.payload not in first:
                    first.append(message.payload)
            await client.abort()
            client = await connect()

    async def watch() -> None:
        assert payloads(await gather(live, len(sent))) == sent

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(watch)
        await publish_many(publisher, topic, sent, qos)
    assert first == sent


async def test_g4_order_of_redelivery_from_the_queue(peers: Peers, topic: str) -> None:
    name = peers.client_id()
    away = await peers.connect(client_id=name, persistent=True)
    await away.subscribe(topic)
    publisher = await peers.connect()
    await publish_many(publisher, topic, numbered("m", 80), 1)
    assert payloads(await away.collect(Publish, 80)) == numbered("m", 80)  # none acknowledged
    await away.abort()
    await publish_many(publisher, topic, numbered("n", 300), 1)
    back = await peers.connect(client_id=name, persistent=True)
    got = await gather(back, 380)
    assert payloads(got) == numbered("m", 80) + numbered("n", 300)
    assert all(message.dup for message in got[:80])
    assert not any(message.dup for message in got[80:])


# -- G6


async def test_g6_expired_messages_are_not_sent_and_the_rest_says_what_remains(peers: Peers, topic: str) -> None:
    name = peers.client_id()
    away = await peers.connect(client_id=name, persistent=True)
    await away.subscribe(f"{topic}/#")
    await away.subscribe(f"$share/g/{topic}/shared")
    await away.disconnect()
    blocked = await peers.connect(receive_maximum=1)
    await blocked.subscribe(topic, qos=1)
    publisher = await peers.connect()
    for payload, expiry_s in ((b"first", 500), (b"short", 2), (b"long", 500), (b"none", None)):
        expiry = properties(message_expiry_interval=expiry_s) if expiry_s is not None else None
        await publisher.publish(topic, payload, 1, properties=expiry)
        await publisher.publish(f"{topic}/kept/{payload.decode()}", payload, 1, retain=True, properties=expiry)
        await publisher.publish(f"{topic}/shared", payload, 1, properties=expiry)
    first = await blocked.expect(Publish)
    assert first.payload == b"first"
    await peers.elapse(3)

    def remaining(message: Publish) -> int | None:
        return message.properties.message_expiry_interval if message.properties is not None else None

    async def check(messages: list[Publish]) -> None:
        for message in messages:
            left = remaining(message)
            if message.payload == b"none":
                assert left is None
            else:
                assert left is not None and 400 < left <= 497
        assert b"short" not in payloads(messages)

    await blocked.send(Puback(first.packet_id))
    await check([await blocked.take(b"long"), await blocked.take(b"none")])
    await blocked.expect_nothing()
    back = await peers.connect(client_id=name, persistent=True)
    got = await gather(back, 12)
    await check(got)
    by_topic = [message.payload for message in got if message.topic_name == topic]
    assert by_topic == [b"first", b"long", b"none"]
    late = await peers.connect()
    await late.subscribe(f"{topic}/kept/#")
    kept = await gather(late, 3)
    await check(kept)
    await late.expect_nothing()


# -- G7


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize("end", ["disconnect", "abort", "kill"])
async def test_g7_session_present_means_everything_is_in_force(
    start_node: StartNode, peers_of: PeersOf, topic: str, version: int, end: str
) -> None:
    node = start_node(store="embedded")
    before = peers_of(node)
    client = await before.connect(version, client_id="g7", persistent=True)
    assert client.connack is not None and not client.connack.session_present
    await client.subscribe(f"{topic}/a", f"{topic}/b/+", f"$share/g/{topic}/c", qos=2)
    await client.unsubscribe(f"{topic}/a")
    publisher = await before.connect()
    await publisher.publish(f"{topic}/b/1", b"one", 1)
    await publisher.publish(f"{topic}/b/2", b"two", 2)
    await publisher.publish(f"{topic}/b/3", b"three", 2)
    sent = await client.collect(Publish, 3)
    assert payloads(sent) == [b"one", b"two", b"three"]
    await client.send(Pubrec(sent[1].packet_id))
    assert (await client.expect(Pubrel)).packet_id == sent[1].packet_id
    await client.send(Publish(f"{topic}/x", b"mine", 2, False, False, 9))
    await client.expect(Pubrec)
    if end == "disconnect":
        await client.disconnect()
    elif end == "abort":
        await client.abort()
    else:
        node.kill()
        node.start()
    after = peers_of(node)
    client = await after.connect(version, client_id="g7", persistent=True)
    assert resumed(client)
    # The same packet ids, in the same state.
    assert (await client.expect(Pubrel)).packet_id == sent[1].packet_id
    for old in (sent[0], sent[2]):
        again = await client.expect(Publish)
        assert (again.payload, again.packet_id, again.qos, again.dup) == (old.payload, old.packet_id, old.qos, True)
    await client.expect_nothing()
    # The inbound QoS 2 id is known: the client may go on with it.
    await client.send(Publish(f"{topic}/x", b"mine", 2, False, True, 9))
    await client.expect(Pubrec)
    await client.send(Pubrel(9))
    await client.expect(Pubcomp)
    await client.send(Puback(sent[0].packet_id), Pubcomp(sent[1].packet_id), Pubrec(sent[2].packet_id))
    await client.expect(Pubrel)
    await client.send(Pubcomp(sent[2].packet_id))
    # The subscriptions are in force.
    watcher = await after.subscriber(f"{topic}/#")
    publisher = await after.connect()
    await publisher.publish(f"{topic}/a", b"unsubscribed", 1)
    await publisher.publish(f"{topic}/b/4", b"four", 1)
    await publisher.publish(f"{topic}/c", b"five", 1)
    assert payloads(await gather(watcher, 3)) == [b"unsubscribed", b"four", b"five"]
    assert payloads(await gather(client, 2)) == [b"four", b"five"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_g7_a_clean_start_has_nothing(peers: Peers, topic: str, version: int) -> None:
    name = peers.client_id()
    old = await peers.connect(version, client_id=name, persistent=True)
    await old.subscribe(topic)
    publisher = await peers.connect()
    await publisher.publish(topic, b"lost with its session", 2)
    await old.expect(Publish)
    await old.abort()
    new = await peers.connect(version, client_id=name)
    assert new.connack is not None and not new.connack.session_present
    publisher = await peers.connect()
    assert await publisher.publish(topic, b"nobody", 1) == 0x10
    await new.expect_nothing()
