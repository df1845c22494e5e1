"""What client and node agree on in CONNECT and CONNACK, and that both keep to it."""

from __future__ import annotations

from broker.codec.packets import V5, V311, Connect, Puback, Publish, Pubrec, Pubrel, SubscriptionRequest
from tests.conformance.peers import Peers
from tests.integration.conftest import PeersOf, StartNode
from tests.integration.exchange import gather, metric, numbered, payloads, publish_many
from tests.kit.mqtt_client import properties

HTTP = "127.0.0.1:0"


async def test_the_receive_maximum_of_the_client(peers: Peers, topic: str) -> None:
    for persistent in (False, True):
        client = await peers.connect(receive_maximum=3, persistent=persistent)
        await client.subscribe(topic)
        publisher = await peers.connect()
        for payload in numbered("m", 9):
            await publisher.publish(topic, payload, 2)
        first = await client.collect(Publish, 3)
        await client.expect_nothing()
        await client.send(Pubrec(first[0].packet_id))
        await client.expect(Pubrel)
        await client.expect_nothing()  # PUBREC gives no credit, PUBCOMP does
        await client.abort()


async def test_qos_0_does_not_wait_for_the_window(peers: Peers, topic: str) -> None:
    client = await peers.connect(receive_maximum=1)
    await client.subscribe(topic)
    publisher = await peers.connect()
    await publisher.publish(topic, b"one", 1)
    await publisher.publish(topic, b"waits", 1)
    await publisher.publish(topic, b"passes", 0)
    held = await client.expect(Publish)
    assert (await client.expect(Publish)).payload == b"passes"
    await client.send(Puback(held.packet_id))
    await client.take(b"waits")


async def test_the_receive_maximum_of_the_node(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    peers = peers_of(start_node("--receive-maximum", "5"))
    client = await peers.connect()
    for packet_id in range(1, 7):
        await client.send(Publish(topic, b"x", 2, False, False, packet_id))
    await client.collect(Pubrec, 5)
    await client.expect_disconnect(0x93)
    # Version 3 cannot know of it: it is not read from until there is room.
    old = await peers.connect(V311)
    old.auto_ack = True
    await publish_many(old, topic, numbered("m", 60), 1)


async def test_the_maximum_packet_size_of_the_client(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    node = start_node(http=HTTP)
    peers = peers_of(node)
    for persistent in (False, True):
        client = await peers.connect(maximum_packet_size=100, persistent=persistent)
        await client.subscribe(topic)
        roomy = await peers.subscriber(topic)
        publisher = await peers.connect()
        for qos in range(3):
            await publisher.publish(topic, b"x" * 200, qos)
            await publisher.publish(topic, b"small", qos)
        got = await gather(client, 3)
        assert payloads(got) == [b"small"] * 3
        assert sorted(len(message.payload) for message in await gather(roomy, 6)) == [5, 5, 5, 200, 200, 200]
        await client.expect_nothing()
        await client.disconnect()
    assert metric(node, 'mqtt_messages_dropped_total{reason="packet_too_large"}') == 6


async def test_a_shared_message_that_is_too_large_for_a_member_is_not_in_the_way(peers: Peers, topic: str) -> None:
    small = await peers.connect(maximum_packet_size=100)
    await small.subscribe(f"$share/g/{topic}", qos=1)
    publisher = await peers.connect()
    await publisher.publish(topic, b"x" * 200, 1)
    await publisher.publish(topic, b"fits", 1)
    await small.take(b"fits")


async def test_the_maximum_packet_size_of_the_node(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    peers = peers_of(start_node("--max-packet-size", "32KiB"))
    client = await peers.connect()
    assert client.connack is not None and client.connack.properties is not None
    assert client.connack.properties.maximum_packet_size == 32 * 1024
    await client.publish(topic, b"x" * (32 * 1024 - len(topic) - 9), 1)
    await client.send(Publish(topic, b"x" * 32 * 1024, 1, False, False, 1))
    await client.expect_disconnect(0x95)
    old = await peers.connect(V311)
    await old.send(Publish(topic, b"x" * 32 * 1024, 1, False, False, 1))
    await old.expect_closed()


async def test_topic_aliases_of_the_client(peers: Peers, topic: str) -> None:
    reader = await peers.subscriber(f"{topic}/#")
    client = await peers.connect()
    await client.send(
        Publish(f"{topic}/a", b"1", 0, False, False, 0, properties(topic_alias=1)),
        Publish(f"{topic}/b", b"2", 0, False, False, 0, properties(topic_alias=64)),
        Publish("", b"3", 0, False, False, 0, properties(topic_alias=1)),
        Publish(f"{topic}/c", b"4", 0, False, False, 0, properties(topic_alias=1)),
        Publish("", b"5", 0, False, False, 0, properties(topic_alias=1)),
        Publish("", b"6", 0, False, False, 0, properties(topic_alias=64)),
    )
    got = await reader.collect(Publish, 6)
    assert [(m.topic_name[-1], m.payload) for m in got] == [
        ("a", b"1"),
        ("b", b"2"),
        ("a", b"3"),
        ("c", b"4"),
        ("c", b"5"),
        ("b", b"6"),
    ]
    assert not any(message.properties and message.properties.topic_alias for message in got)
    await client.send(Publish(f"{topic}/a", b"", 0, False, False, 0, properties(topic_alias=65)))
    await client.expect_disconnect(0x94)


async def test_topic_aliases_of_the_node(peers: Peers, topic: str) -> None:
    publisher = await peers.connect()
    client = await peers.connect(topic_alias_maximum=3)
    await client.subscribe(f"{topic}/#", qos=1)
    known: dict[int, str] = {}
    saved = 0
    for round_number in range(4):
        for level in range(5):
            name = f"{topic}/{level}"
            await publisher.publish(name, b"%d" % round_number, level % 2)
            message = await client.take()
            alias = message.properties.topic_alias if message.properties is not None else None
            if alias is not None:
                assert 1 <= alias <= 3
                if message.topic_name:
                    known[alias] = message.topic_name
                else:
                    saved += 1
            assert (message.topic_name or known[alias or 0]) == name
    assert saved


async def test_server_keep_alive(start_node: StartNode, peers_of: PeersOf) -> None:
    peers = peers_of(start_node("--max-keep-alive", "1s"))
    for asked, told in ((0, 1), (60, 1), (1, None)):
        client = await peers.connect(keep_alive_s=asked)
        assert client.connack is not None and client.connack.properties is not None
        assert client.connack.properties.server_keep_alive == told
    await client.expect_disconnect(0x8D)


async def test_reading_capabilities(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    """What is switched off is announced, and refused."""
    peers = peers_of(
        start_node(
            "--max-qos",
            "1",
            "--no-retain-available",
            "--no-wildcard-available",
            "--no-shared-available",
            "--no-subscription-ids-available",
            "--topic-alias-maximum",
            "0",
            "--session-expiry-max",
            "100s",
        )
    )
    client = await peers.connect(session_expiry_interval=1000)
    assert client.connack is not None
    told = client.connack.properties
    assert told is not None
    assert (told.maximum_qos, told.retain_available, told.wildcard_subscription_available) == (1, 0, 0)
    assert (told.shared_subscription_available, told.subscription_identifier_available) == (0, 0)
    assert (told.topic_alias_maximum, told.session_expiry_interval) == (None, 100)
    requests = [SubscriptionRequest(name, 2) for name in (topic, f"{topic}/+", f"$share/g/{topic}")]
    assert list((await client.subscribe(*requests)).reason_codes) == [1, 0xA2, 0x9E]
    for flags, reason_code in (((2, False), 0x9B), ((0, True), 0x9A)):
        client = await peers.connect()
        await client.send(Publish(topic, b"x", flags[0], flags[1], False, 1 if flags[0] else 0))
        await client.expect_disconnect(reason_code)


async def test_a_client_that_never_connects(start_node: StartNode, peers_of: PeersOf) -> None:
    peers = peers_of(start_node("--connect-timeout", "1s"))
    silent, slow = await peers.open(), await peers.open()
    await slow.send_raw(b"\x10\x20\x00\x04MQ")
    await silent.expect_closed()
    await slow.expect_closed()


async def test_an_assigned_client_identifier_can_be_used_again(peers: Peers, topic: str) -> None:
    client = await peers.connect(client_id="", clean_start=False, session_expiry_interval=600)
    name = client.client_id
    assert name
    await client.subscribe(topic, qos=1)
    await client.abort()
    again = await peers.connect(client_id=name, clean_start=False)
    assert again.connack is not None and again.connack.session_present
    old = await peers.open(V311)
    connack = await old.connect(Connect(V311, "", False, 0))
    assert connack.reason_code == 0x85
    assert (await peers.connect(V5, client_id="")).client_id != name
