"""PUBLISH: what is forwarded and how. Section 3.3 but retained messages."""

from __future__ import annotations

import pytest

from broker.codec.packets import V5, V31, V311, Publish, SubscriptionRequest
from broker.reasons import MALFORMED_PACKET, PROTOCOL_ERROR, TOPIC_ALIAS_INVALID, TOPIC_NAME_INVALID
from tests.conformance import wire
from tests.conformance.peers import Peers
from tests.conformance.statements import EVERY_STORE, statement
from tests.kit.mqtt_client import properties

PAIRS = [("b", "1"), ("a", "2"), ("b", "1"), ("b", "0"), ("", ""), ("ключ", "🔑")]


@statement(v5="MQTT-3.3.1-2 MQTT-4.3.1-1", v311="MQTT-3.3.1-2 MQTT-4.3.1-1")
async def test_qos_0_goes_out_without_dup(peers: Peers, version: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic, version)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"qos 0")
    await publisher.publish(topic, b"", 1)
    await subscriber.take(b"qos 0")
    low = await peers.subscriber(topic, version, qos=0)
    await publisher.publish(topic, b"lowered", 2)
    await low.expect(Publish)
    assert low.last_raw[0] == 0x30


@statement(v5="MQTT-3.3.1-2", v311="MQTT-3.3.1-2")
async def test_qos_0_with_dup_closes(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.send_raw(wire.publish(version, b"t", first_byte=0x38))
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(
    v5="MQTT-3.3.1-3 MQTT-4.3.2-2 MQTT-4.3.3-2",
    v311="MQTT-3.3.1-3 MQTT-4.3.2-1 MQTT-4.3.3-1",
    stores=EVERY_STORE,
)
@pytest.mark.parametrize("qos", [1, 2])
async def test_dup_is_not_passed_on(peers: Peers, version: int, qos: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic, version)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", qos, dup=True)
    received = await subscriber.take(b"x")
    assert not received.dup
    assert received.qos == qos


@statement(v5="MQTT-3.3.1-4", v311="MQTT-3.3.1-4")
async def test_qos_3_closes(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.send_raw(wire.publish(version, b"t", first_byte=0x36, packet_id=1))
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(v5="MQTT-3.3.2-2 MQTT-4.7.0-1", v311="MQTT-3.3.2-2 MQTT-4.7.1-1")
@pytest.mark.parametrize("topic_name", ["a/+", "#", "a/#", "+", "a+b", "a#b"])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_wildcard_in_a_topic_name_closes(peers: Peers, version: int, topic_name: str, qos: int) -> None:
    client = await peers.connect(version)
    packet_id = 1 if qos else None
    await client.send_raw(wire.publish(version, topic_name.encode(), first_byte=0x30 | qos << 1, packet_id=packet_id))
    await client.expect_disconnect(TOPIC_NAME_INVALID)


@statement(v5="MQTT-4.7.3-1", v311="MQTT-4.7.3-1")
async def test_an_empty_topic_name_closes(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.send_raw(wire.publish(version, b""))
    # Version 5 allows an empty name with a topic alias, so without one it breaks the protocol.
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.3.2-3", v311="MQTT-3.3.2-3")
async def test_forwarded_names_match_the_subscription(peers: Peers, version: int) -> None:
    base = peers.topic("")
    subscriber = await peers.subscriber(f"{base}+/x", version)
    publisher = await peers.connect(version)
    for name in ("a/x", "x", "a/b/x", "a/y", "/x", "b/x"):
        await publisher.publish(base + name, name.encode(), 1)
    names = []
    for _ in range(3):
        names.append((await subscriber.take()).topic_name.removeprefix(base))
    assert names == ["a/x", "/x", "b/x"]
    await subscriber.expect_nothing()


@statement(
    v5="MQTT-3.3.2-4 MQTT-3.3.2-15 MQTT-3.3.2-16 MQTT-3.3.2-17 MQTT-3.3.2-18 MQTT-3.3.2-20",
    stores=EVERY_STORE,
)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_properties_are_forwarded_unchanged(peers: Peers, qos: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic)
    publisher = await peers.connect()
    sent = properties(
        payload_format_indicator=1,
        response_topic="answers/here",
        correlation_data=b"\x00\x01\xfe\xff",
        content_type="text/plain; charset=utf-8",
        user_properties=PAIRS,
    )
    await publisher.publish(topic, "ø".encode(), qos, properties=sent)
    got = (await subscriber.take("ø".encode())).properties
    assert got is not None
    assert got.payload_format_indicator == 1
    assert got.response_topic == "answers/here"
    assert got.correlation_data == b"\x00\x01\xfe\xff"
    assert got.content_type == "text/plain; charset=utf-8"
    assert list(got.user_properties) == PAIRS


@statement(v5="MQTT-3.3.2-17 MQTT-3.3.2-18", stores=EVERY_STORE)
async def test_properties_are_kept_for_offline_sessions(peers: Peers) -> None:
    topic = peers.topic()
    subscriber = await peers.connect(persistent=True)
    await subscriber.subscribe(topic, properties=properties(subscription_identifiers=[77]))
    await subscriber.disconnect()
    publisher = await peers.connect()
    sent = properties(user_properties=PAIRS, correlation_data=b"c", response_topic="r", content_type="t")
    await publisher.publish(topic, b"x", 1, properties=sent)
    again = await peers.connect(client_id=subscriber.client_id, persistent=True)
    got = (await again.take(b"x")).properties
    assert got is not None
    assert list(got.user_properties) == PAIRS
    assert (got.correlation_data, got.response_topic, got.content_type) == (b"c", "r", "t")
    assert list(got.subscription_identifiers) == [77]


@statement(v5="MQTT-3.3.2-17")
async def test_version_3_subscribers_get_the_message_without_properties(peers: Peers) -> None:
    topic = peers.topic()
    old = await peers.subscriber(topic, V31)
    newer = await peers.subscriber(topic, V311)
    publisher = await peers.connect()
    await publisher.publish(topic, b"x", 0, properties=properties(user_properties=PAIRS))
    for client in (old, newer):
        await client.expect(Publish)
        assert client.last_raw == wire.publish(client.version, topic.encode(), b"x")


@statement(v5="MQTT-3.3.2-5")
async def test_an_expired_message_is_not_delivered(peers: Peers) -> None:
    topic = peers.topic()
    subscriber = await peers.connect(persistent=True)
    await subscriber.subscribe(topic)
    await subscriber.disconnect()
    publisher = await peers.connect()
    await publisher.publish(topic, b"old", 1, properties=properties(message_expiry_interval=1))
    await publisher.publish(topic, b"old too", 2, properties=properties(message_expiry_interval=1))
    await publisher.publish(topic, b"fresh", 1, properties=properties(message_expiry_interval=600))
    await peers.elapse(2)
    again = await peers.connect(client_id=subscriber.client_id, persistent=True)
    await again.take(b"fresh")
    await again.expect_nothing()


@statement(v5="MQTT-3.3.2-5")
async def test_an_expired_retained_message_is_not_delivered(peers: Peers) -> None:
    topic = peers.topic()
    publisher = await peers.connect()
    await publisher.publish(topic + "/1", b"old", 1, retain=True, properties=properties(message_expiry_interval=1))
    await publisher.publish(topic + "/2", b"fresh", 1, retain=True, properties=properties(message_expiry_interval=600))
    await peers.elapse(2)
    late = await peers.subscriber(topic + "/1")
    await late.subscribe(topic + "/2")
    await late.take(b"fresh")


@statement(v5="MQTT-3.3.2-6", stores=EVERY_STORE)
async def test_the_expiry_interval_is_forwarded_less_the_waiting_time(peers: Peers) -> None:
    topic = peers.topic()
    subscriber = await peers.connect(persistent=True)
    await subscriber.subscribe(topic)
    await subscriber.disconnect()
    publisher = await peers.connect()
    await publisher.publish(topic, b"x", 1, retain=True, properties=properties(message_expiry_interval=100))
    online = await peers.subscriber(topic)
    await peers.elapse(2)
    late = await peers.subscriber(topic)
    again = await peers.connect(client_id=subscriber.client_id, persistent=True)
    for client, most in ((online, 100), (late, 98), (again, 98)):
        got = (await client.take(b"x")).properties
        assert got is not None
        assert got.message_expiry_interval is not None
        assert 60 <= got.message_expiry_interval <= most


@statement(v5="MQTT-3.3.2-13 MQTT-3.3.2-19 MQTT-1.5.4-1 MQTT-1.5.4-2")
@pytest.mark.parametrize("raw", wire.BAD_TEXTS, ids=lambda raw: raw.hex())
@pytest.mark.parametrize("identifier", [0x08, 0x03], ids=["response topic", "content type"])
async def test_bad_strings_in_properties_close(peers: Peers, identifier: int, raw: bytes) -> None:
    client = await peers.connect()
    await client.send_raw(wire.publish(V5, b"t", properties=bytes((identifier,)) + wire.text(raw)))
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(v5="MQTT-3.3.2-14")
@pytest.mark.parametrize("name", ["a/+", "#", "a/#/b"])
async def test_wildcards_in_a_response_topic_close(peers: Peers, name: str) -> None:
    client = await peers.connect()
    await client.send(Publish("t", b"", properties=properties(response_topic=name)))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.3.4-6")
async def test_a_subscription_identifier_in_a_clients_publish_closes(peers: Peers) -> None:
    client = await peers.connect()
    await client.send_raw(wire.publish(V5, b"t", properties=b"\x0b\x01"))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.3.2-12")
async def test_every_topic_alias_up_to_the_maximum_is_accepted(peers: Peers) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(f"{topic}/+", qos=0)
    publisher = await peers.connect()
    assert publisher.connack is not None
    assert publisher.connack.properties is not None
    maximum = publisher.connack.properties.topic_alias_maximum
    assert maximum
    for alias in range(1, maximum + 1):
        await publisher.send(Publish(f"{topic}/{alias}", b"named", properties=properties(topic_alias=alias)))
    for alias in range(1, maximum + 1):
        await publisher.send(Publish("", b"aliased", properties=properties(topic_alias=alias)))
    for payload in (b"named", b"aliased"):
        for alias in range(1, maximum + 1):
            received = await subscriber.take(payload)
            assert received.topic_name == f"{topic}/{alias}"
            assert received.properties is None or received.properties.topic_alias is None


@statement(v5="MQTT-3.3.2-12")
@pytest.mark.parametrize("qos", [1, 2])
async def test_a_topic_alias_can_be_set_anew(peers: Peers, qos: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(f"{topic}/+")
    publisher = await peers.connect()
    one = properties(topic_alias=1)
    for name in ("a", "b"):
        await publisher.publish(f"{topic}/{name}", b"", qos, properties=one)
        await publisher.publish("", b"", qos, properties=one)
    names = [(await subscriber.take()).topic_name[-1] for _ in range(4)]
    assert names == ["a", "a", "b", "b"]


@statement(v5="MQTT-3.3.2-8 MQTT-3.3.2-9 MQTT-3.2.2-17")
@pytest.mark.parametrize("alias", ["zero", "above", "most"])
async def test_a_topic_alias_out_of_range_closes(peers: Peers, alias: str) -> None:
    client = await peers.connect()
    assert client.connack is not None
    assert client.connack.properties is not None
    maximum = client.connack.properties.topic_alias_maximum or 0
    value = {"zero": 0, "above": maximum + 1, "most": 65_535}[alias]
    await client.send_raw(wire.publish(V5, b"t", properties=b"\x23" + value.to_bytes(2, "big")))
    await client.expect_disconnect(TOPIC_ALIAS_INVALID)


@statement(v5="MQTT-4.13.1-1")
async def test_an_unset_topic_alias_closes(peers: Peers) -> None:
    client = await peers.connect()
    await client.send(Publish("", b"", properties=properties(topic_alias=1)))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.3.2-7")
async def test_topic_aliases_end_with_the_connection(peers: Peers) -> None:
    client = await peers.connect(persistent=True)
    await client.publish(peers.topic(), b"", 1, properties=properties(topic_alias=1))
    await client.disconnect()
    again = await peers.connect(client_id=client.client_id, persistent=True)
    await again.send(Publish("", b"", properties=properties(topic_alias=1)))
    await again.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.3.2-11 MQTT-3.1.2-26", stores=EVERY_STORE)
async def test_the_server_keeps_to_the_clients_topic_alias_maximum(peers: Peers) -> None:
    topic = peers.topic()
    subscriber = await peers.connect(topic_alias_maximum=2)
    await subscriber.subscribe(f"{topic}/+")
    publisher = await peers.connect()
    names: dict[int, str] = {}
    for round_ in range(3):
        for number in range(5):
            await publisher.publish(f"{topic}/{number}", b"%d" % round_, number % 3)
    for _ in range(3):
        for number in range(5):
            received = await subscriber.take()
            alias = None if received.properties is None else received.properties.topic_alias
            name = received.topic_name
            if alias is not None:
                assert 1 <= alias <= 2
                name = names[alias] = received.topic_name or names[alias]
            assert name == f"{topic}/{number}"


@statement(v5="MQTT-3.3.2-7 MQTT-3.1.2-26")
async def test_the_server_uses_no_alias_of_an_earlier_connection(peers: Peers) -> None:
    topic = peers.topic()
    subscriber = await peers.connect(persistent=True, topic_alias_maximum=10)
    await subscriber.subscribe(topic)
    publisher = await peers.connect()
    for _ in range(3):
        await publisher.publish(topic, b"", 1)
        await subscriber.take()
    await subscriber.disconnect()
    again = await peers.connect(client_id=subscriber.client_id, persistent=True, topic_alias_maximum=10)
    await publisher.publish(topic, b"", 1)
    assert (await again.take()).topic_name == topic


@statement(v5="MQTT-3.1.2-27")
@pytest.mark.parametrize("maximum", [None, 0])
async def test_without_a_topic_alias_maximum_no_alias_is_used(peers: Peers, maximum: int | None) -> None:
    topic = peers.topic()
    subscriber = await peers.connect(topic_alias_maximum=maximum)
    await subscriber.subscribe(topic)
    publisher = await peers.connect()
    for qos in (0, 0, 1, 1):
        await publisher.publish(topic, b"", qos)
        received = await subscriber.take()
        assert received.topic_name == topic
        assert received.properties is None or received.properties.topic_alias is None


@statement(v5="MQTT-3.3.4-2", v311="MQTT-3.3.5-1", stores=EVERY_STORE)
@pytest.mark.parametrize(("first", "second"), [(0, 2), (2, 0), (1, 0), (0, 1)])
async def test_overlapping_subscriptions_deliver_once_at_the_highest_qos(
    peers: Peers, version: int, first: int, second: int
) -> None:
    topic = peers.topic("a/b")
    subscriber = await peers.connect(version)
    await subscriber.subscribe(topic, qos=first)
    await subscriber.subscribe(peers.topic("a/+"), peers.topic("#"), qos=second)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", 2)
    assert (await subscriber.take(b"x")).qos == max(first, second)
    await subscriber.expect_nothing()


@statement(v5="MQTT-3.3.4-3 MQTT-3.3.4-4", stores=EVERY_STORE)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_single_copy_carries_all_subscription_identifiers(peers: Peers, qos: int) -> None:
    topic = peers.topic("a/b")
    subscriber = await peers.connect()
    await subscriber.subscribe(topic, properties=properties(subscription_identifiers=[1]))
    await subscriber.subscribe(peers.topic("a/+"), properties=properties(subscription_identifiers=[268_435_455]))
    await subscriber.subscribe(peers.topic("#"))
    publisher = await peers.connect()
    await publisher.publish(topic, b"x", qos)
    got = (await subscriber.take(b"x")).properties
    assert got is not None
    assert sorted(got.subscription_identifiers) == [1, 268_435_455]
    await subscriber.expect_nothing()


@statement(v5="MQTT-3.3.4-3")
async def test_equal_subscription_identifiers_may_be_sent_for_each_subscription(peers: Peers) -> None:
    topic = peers.topic("a/b")
    subscriber = await peers.connect()
    for topic_filter in (topic, peers.topic("a/+")):
        request = SubscriptionRequest(topic_filter, 1)
        await subscriber.subscribe(request, properties=properties(subscription_identifiers=[5]))
    publisher = await peers.connect()
    await publisher.publish(topic, b"x", 1)
    got = (await subscriber.take(b"x")).properties
    assert got is not None
    assert set(got.subscription_identifiers) == {5}
