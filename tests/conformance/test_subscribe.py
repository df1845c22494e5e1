"""SUBSCRIBE and UNSUBSCRIBE: sections 3.8 to 3.11."""

from __future__ import annotations

import pytest

from broker.codec.packets import (
    V5,
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
from broker.reasons import MALFORMED_PACKET, NO_SUBSCRIPTION_EXISTED, PROTOCOL_ERROR, TOPIC_FILTER_INVALID
from tests.conformance import wire
from tests.conformance.peers import Peers
from tests.conformance.statements import EVERY_STORE, statement
from tests.kit.mqtt_client import frame, properties

BAD_FILTERS = ("a/#/b", "a#", "#a", "a+", "+a/b", "a/b+/c", "##", "a/+#")


@statement(
    v5="MQTT-3.8.4-1 MQTT-3.8.4-2 MQTT-2.2.1-6 MQTT-3.8.4-6 MQTT-3.8.4-7 MQTT-3.9.3-1 MQTT-3.9.3-2 MQTT-3.8.4-5",
    v311="MQTT-3.8.4-1 MQTT-3.8.4-2 MQTT-2.3.1-7 MQTT-3.8.4-4 MQTT-3.8.4-5 MQTT-3.9.3-1 MQTT-3.9.3-2",
    stores=EVERY_STORE,
)
@pytest.mark.parametrize("packet_id", [1, 0x100, 0xFFFF])
async def test_suback_answers_each_filter_in_order(peers: Peers, version: int, packet_id: int) -> None:
    client = await peers.connect(version)
    asked = [2, 0, 1, 0, 2, 2, 1]
    requests = [SubscriptionRequest(peers.topic(str(n)), qos) for n, qos in enumerate(asked)]
    await client.send(Subscribe(packet_id, requests))
    suback = await client.expect(Suback)
    assert suback.packet_id == packet_id
    assert list(suback.reason_codes) == asked
    publisher = await peers.connect(version)
    for n, qos in enumerate(asked):
        await publisher.publish(peers.topic(str(n)), b"%d" % n, 2)
        assert (await client.take(b"%d" % n)).qos == qos


@statement(v5="MQTT-3.8.4-6 MQTT-3.9.3-1 MQTT-3.9.3-2", v311="MQTT-3.8.4-5 MQTT-3.9.3-1 MQTT-3.9.3-2")
async def test_a_bad_filter_fails_alone(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    good = peers.topic()
    suback = await client.subscribe(good, "a/#/b", good + "/+", qos=1)
    assert list(suback.reason_codes) == [1, TOPIC_FILTER_INVALID if version == V5 else 0x80, 1]
    publisher = await peers.connect(version)
    await publisher.publish(good, b"x", 1)
    await client.take(b"x")


@statement(v5="MQTT-4.7.1-1 MQTT-4.7.1-2", v311="MQTT-4.7.1-2 MQTT-4.7.1-3")
@pytest.mark.parametrize("topic_filter", BAD_FILTERS)
async def test_misplaced_wildcards_are_refused(peers: Peers, version: int, topic_filter: str) -> None:
    client = await peers.connect(version)
    suback = await client.subscribe(topic_filter)
    assert list(suback.reason_codes) == [TOPIC_FILTER_INVALID if version == V5 else 0x80]
    await client.expect_nothing()


@statement(v5="MQTT-4.7.3-1", v311="MQTT-4.7.3-1")
async def test_an_empty_filter_is_refused(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.send(Subscribe(1, [SubscriptionRequest("", 0)]))
    suback = await client.expect(Suback)
    assert list(suback.reason_codes) == [TOPIC_FILTER_INVALID if version == V5 else 0x80]


@statement(v5="MQTT-3.8.3-2", v311="MQTT-3.8.3-3")
async def test_subscribe_without_a_filter_closes(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.send_raw(frame(0x82, b"\x00\x01" + wire.properties_of(version)))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.10.3-2", v311="MQTT-3.10.3-2")
async def test_unsubscribe_without_a_filter_closes(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.send_raw(frame(0xA2, b"\x00\x01" + wire.properties_of(version)))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.8.3-5", v311="MQTT-3.8.3-4")
@pytest.mark.parametrize("options", [0x40, 0x80, 0xC1])
async def test_reserved_option_bits_close(peers: Peers, version: int, options: int) -> None:
    client = await peers.connect(version)
    await client.send_raw(wire.subscribe(version, b"t", options))
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(v311="MQTT-3.8.3-4")
@pytest.mark.parametrize("options", [0x03, 0x04, 0x08, 0x10, 0x20])
async def test_version_3_has_no_options_but_the_qos(peers: Peers, version: int, options: int) -> None:
    client = await peers.connect(version)
    await client.send_raw(wire.subscribe(version, b"t", options))
    await client.expect_closed()


@statement(v5="MQTT-4.13.1-1")
@pytest.mark.parametrize("options", [0x03, 0x30])
async def test_undefined_option_values_close(peers: Peers, options: int) -> None:
    client = await peers.connect()
    await client.send_raw(wire.subscribe(V5, b"t", options))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-4.13.1-1")
@pytest.mark.parametrize("block", [b"\x0b\x00", b"\x0b\x01\x0b\x02"], ids=["zero", "two"])
async def test_bad_subscription_identifiers_close(peers: Peers, block: bytes) -> None:
    client = await peers.connect()
    await client.send_raw(wire.subscribe(V5, b"t", properties=block))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.8.3-3", stores=EVERY_STORE)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_no_local(peers: Peers, qos: int) -> None:
    topic = peers.topic()
    client = await peers.connect()
    await client.subscribe(SubscriptionRequest(topic, 2, no_local=True))
    other = await peers.subscriber(topic)
    await client.publish(topic, b"own", qos)
    await other.take(b"own")
    await client.expect_nothing()
    publisher = await peers.connect()
    await publisher.publish(topic, b"other's", qos)
    await client.take(b"other's")


@statement(v5="MQTT-3.8.3-3")
async def test_no_local_leaves_overlapping_subscriptions_alone(peers: Peers) -> None:
    topic = peers.topic("a")
    client = await peers.connect()
    await client.subscribe(SubscriptionRequest(topic, 2, no_local=True))
    await client.subscribe(peers.topic("+"), qos=0)
    await client.send(Publish(topic, b"own"))
    assert (await client.expect(Publish)).qos == 0
    await client.expect_nothing()


@statement(v5="MQTT-3.8.3-4")
async def test_no_local_on_a_shared_subscription_closes(peers: Peers) -> None:
    client = await peers.connect()
    await client.send_raw(wire.subscribe(V5, b"$share/g/t", 0x04))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.8.4-3", v311="MQTT-3.8.4-3", stores=EVERY_STORE)
async def test_the_same_filter_replaces_the_subscription(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version)
    publisher = await peers.connect(version)
    for qos in (2, 0, 1):
        await client.subscribe(topic, qos=qos)
        await publisher.publish(topic, b"x", 2)
        assert (await client.take(b"x")).qos == qos
        await client.expect_nothing()


@statement(v5="MQTT-3.8.4-3")
async def test_a_replacement_takes_new_options_and_identifier(peers: Peers) -> None:
    topic = peers.topic()
    client = await peers.connect()
    await client.subscribe(
        SubscriptionRequest(topic, 1, no_local=True), properties=properties(subscription_identifiers=[1])
    )
    await client.subscribe(
        SubscriptionRequest(topic, 1, retain_as_published=True), properties=properties(subscription_identifiers=[2])
    )
    publisher = await peers.connect()
    await publisher.publish(topic, b"x", 1, retain=True)
    got = await client.take(b"x")
    assert got.retain
    assert got.properties is not None
    assert list(got.properties.subscription_identifiers) == [2]
    await client.subscribe(SubscriptionRequest(topic, 1, retain_handling=2))
    await publisher.publish(topic, b"y", 1)
    got = await client.take(b"y")
    assert got.properties is None or not got.properties.subscription_identifiers
    await client.send(Publish(topic, b"own"))
    assert (await client.expect(Publish)).payload == b"own"


@statement(v5="MQTT-3.8.4-4", v311="MQTT-3.8.4-3", stores=EVERY_STORE)
async def test_a_replacement_loses_nothing(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version)
    await client.subscribe(topic, qos=1)
    publisher = await peers.connect(version)
    client.auto_ack = True
    received: list[bytes] = []
    subacks = 0
    for n in range(20):
        await publisher.send(Publish(topic, b"%02d" % n, 1, False, False, n + 1))
        await client.send(Subscribe(100 + n, [SubscriptionRequest(topic, 1)]))
    while len(received) < 20 or subacks < 20:
        packet = await client.receive()
        if isinstance(packet, Publish):
            received.append(packet.payload)
        elif isinstance(packet, Suback):
            subacks += 1
    assert received == [b"%02d" % n for n in range(20)]


@statement(v5="MQTT-3.8.4-5", v311="MQTT-3.8.4-4")
async def test_one_filter_twice_in_a_packet_acts_as_two_packets(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version)
    suback = await client.subscribe(SubscriptionRequest(topic, 2), SubscriptionRequest(topic, 0))
    assert list(suback.reason_codes) == [2, 0]
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", 2)
    assert (await client.take(b"x")).qos == 0
    await client.expect_nothing()


@statement(v5="MQTT-3.8.4-8", v311="MQTT-3.8.4-6", stores=EVERY_STORE)
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("published", [0, 1, 2])
async def test_delivery_is_at_the_lower_qos(peers: Peers, version: int, granted: int, published: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version)
    assert list((await client.subscribe(topic, qos=granted)).reason_codes) == [granted]
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", published)
    assert (await client.take(b"x")).qos == min(granted, published)


@statement(
    v5="MQTT-3.10.4-1 MQTT-3.10.4-4 MQTT-3.10.4-5 MQTT-3.10.4-6 MQTT-3.11.3-1 MQTT-3.11.3-2 MQTT-2.2.1-6",
    v311="MQTT-3.10.4-1 MQTT-3.10.4-4 MQTT-3.10.4-5 MQTT-3.10.4-6 MQTT-2.3.1-7",
    stores=EVERY_STORE,
)
@pytest.mark.parametrize("packet_id", [1, 0xFFFF])
async def test_unsuback_answers_each_filter_in_order(peers: Peers, version: int, packet_id: int) -> None:
    base = peers.topic("")
    client = await peers.connect(version)
    await client.subscribe(base + "a", base + "+/x", base + "keep")
    filters = [base + "none", base + "+/x", base + "A", base + "a", base + "#"]
    await client.send(Unsubscribe(packet_id, filters))
    unsuback = await client.expect(Unsuback)
    assert unsuback.packet_id == packet_id
    if version == V5:
        none = NO_SUBSCRIPTION_EXISTED
        assert list(unsuback.reason_codes) == [none, 0, none, 0, none]
    else:
        assert client.last_raw == frame(0xB0, packet_id.to_bytes(2, "big"))
    publisher = await peers.connect(version)
    for name in ("a", "z/x", "keep"):
        await publisher.publish(base + name, name.encode(), 1)
    await client.take(b"keep")
    await client.expect_nothing()


@statement(v5="MQTT-3.10.4-2", v311="MQTT-3.10.4-2", stores=EVERY_STORE)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_after_unsuback_nothing_is_added(peers: Peers, version: int, qos: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version, persistent=True)
    await client.subscribe(topic)
    await client.unsubscribe(topic)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", qos)
    await client.expect_nothing()
    await client.disconnect()
    await publisher.publish(topic, b"y", qos)
    again = await peers.connect(version, client_id=client.client_id, persistent=True)
    await again.subscribe(topic)
    await publisher.publish(topic, b"marker", 1)
    await again.take(b"marker")


@statement(v5="MQTT-3.10.4-3", v311="MQTT-3.10.4-3", stores=EVERY_STORE)
async def test_a_delivery_that_began_is_completed_after_unsubscribe(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version, persistent=True)
    await client.subscribe(topic)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"1", 1)
    await publisher.publish(topic, b"2", 2)
    one, two = await client.collect(Publish, 2)
    await client.unsubscribe(topic)
    await client.send(Pubrec(two.packet_id))
    assert (await client.expect(Pubrel)).packet_id == two.packet_id
    await client.close()
    again = await peers.connect(version, client_id=client.client_id, persistent=True)
    resent = [await again.receive(), await again.receive()]
    assert {type(packet) for packet in resent} == {Publish, Pubrel}
    await again.send(Puback(one.packet_id), Pubcomp(two.packet_id))
    await again.expect_nothing()


@statement(v5="MQTT-3.10.4-4 MQTT-3.10.4-5", v311="MQTT-3.10.4-5")
async def test_unsubscribe_without_any_subscription_is_answered(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    unsuback = await client.unsubscribe(peers.topic())
    if version == V5:
        assert list(unsuback.reason_codes) == [NO_SUBSCRIPTION_EXISTED]
