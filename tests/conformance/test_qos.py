"""The delivery protocols of QoS 1 and 2 and message order: sections 3.4 to 3.7, 4.3, 4.5 and 4.6."""

from __future__ import annotations

import pytest

from broker.codec.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel
from broker.reasons import NO_MATCHING_SUBSCRIBERS, PACKET_IDENTIFIER_NOT_FOUND, PAYLOAD_FORMAT_INVALID, PROTOCOL_ERROR
from tests.conformance.peers import Peers
from tests.conformance.statements import EVERY_STORE, statement
from tests.kit.mqtt_client import frame, properties


@statement(
    v5="MQTT-3.3.4-1 MQTT-2.2.1-5 MQTT-4.3.2-4 MQTT-4.3.3-8 MQTT-4.3.3-11 MQTT-3.4.2-1 MQTT-3.5.2-1 MQTT-3.7.2-1",
    v311="MQTT-3.3.4-1 MQTT-2.3.1-6 MQTT-4.3.2-2 MQTT-4.3.3-2",
    stores=EVERY_STORE,
)
@pytest.mark.parametrize("packet_id", [1, 2, 0x7FFF, 0xFF00, 0xFFFF])
async def test_a_publish_is_answered_as_its_qos_demands(peers: Peers, version: int, packet_id: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic, version)
    client = await peers.connect(version)
    await client.send(Publish(topic, b"0"))
    await client.expect_nothing()
    await client.send(Publish(topic, b"1", 1, False, False, packet_id))
    await client.expect(Puback)
    # Reason code 0 is left out, and version 3 has none.
    assert client.last_raw == frame(0x40, packet_id.to_bytes(2, "big"))
    await client.send(Publish(topic, b"2", 2, False, False, packet_id))
    await client.expect(Pubrec)
    assert client.last_raw == frame(0x50, packet_id.to_bytes(2, "big"))
    await client.send(Pubrel(packet_id))
    await client.expect(Pubcomp)
    assert client.last_raw == frame(0x70, packet_id.to_bytes(2, "big"))
    for payload in (b"0", b"1", b"2"):
        await subscriber.take(payload)


@statement(v5="MQTT-3.4.2-1 MQTT-3.5.2-1 MQTT-3.6.2-1 MQTT-3.7.2-1")
async def test_nobody_subscribed_is_told(peers: Peers) -> None:
    client = await peers.connect()
    assert await client.publish(peers.topic(), b"", 1) == NO_MATCHING_SUBSCRIBERS
    assert await client.publish(peers.topic(), b"", 2) == NO_MATCHING_SUBSCRIBERS


@statement(v311="MQTT-2.3.1-6 MQTT-3.3.4-1")
async def test_version_3_is_not_told_that_nobody_subscribed(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.publish(peers.topic(), b"", 1)
    assert client.last_raw == b"\x40\x02\x00\x01"


@statement(v5="MQTT-3.6.2-1 MQTT-2.2.1-5", v311="MQTT-4.3.3-1 MQTT-2.3.1-6")
async def test_the_server_releases_with_the_same_packet_id(peers: Peers, version: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic, version)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", 2)
    publish = await subscriber.expect(Publish)
    await subscriber.send(Pubrec(publish.packet_id))
    release = await subscriber.expect(Pubrel)
    assert subscriber.last_raw == frame(0x62, publish.packet_id.to_bytes(2, "big"))
    await subscriber.send(Pubcomp(release.packet_id))
    await subscriber.expect_nothing()


@statement(v5="MQTT-4.3.3-4 MQTT-3.6.2-1")
async def test_a_pubrec_of_0x10_is_released(peers: Peers) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic)
    publisher = await peers.connect()
    await publisher.publish(topic, b"x", 2)
    publish = await subscriber.expect(Publish)
    # A client may say 0x00 in its long form too.
    await subscriber.send_raw(frame(0x50, publish.packet_id.to_bytes(2, "big") + b"\x00\x00"))
    assert (await subscriber.expect(Pubrel)).packet_id == publish.packet_id


@statement(v5="MQTT-4.3.3-4")
@pytest.mark.parametrize("reason_code", [0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99])
async def test_a_refusing_pubrec_is_not_released(peers: Peers, reason_code: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic)
    publisher = await peers.connect()
    await publisher.publish(topic, b"x", 2)
    publish = await subscriber.expect(Publish)
    await subscriber.send(Pubrec(publish.packet_id, reason_code))
    await subscriber.expect_nothing()


@statement(v5="MQTT-4.3.2-5", v311="MQTT-4.3.2-2", stores=EVERY_STORE)
@pytest.mark.parametrize("dup", [False, True])
async def test_after_puback_the_packet_id_is_new(peers: Peers, version: int, dup: bool) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic, version)
    client = await peers.connect(version)
    for number in range(3):
        await client.send(Publish(topic, b"%d" % number, 1, False, dup, 7))
        assert (await client.expect(Puback)).packet_id == 7
    for number in range(3):
        await subscriber.take(b"%d" % number)


@statement(v5="MQTT-4.3.3-10 MQTT-4.3.3-12", v311="MQTT-4.3.3-2", stores=EVERY_STORE)
async def test_until_pubrel_a_repetition_is_not_delivered_again(peers: Peers, version: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic, version)
    client = await peers.connect(version)
    for dup in (False, True, True):
        await client.send(Publish(topic, b"once", 2, False, dup, 7))
        answer = await client.expect(Pubrec)
        assert (answer.packet_id, answer.reason_code) == (7, 0)
    await client.send(Pubrel(7))
    assert (await client.expect(Pubcomp)).packet_id == 7
    await client.send(Publish(topic, b"new", 2, False, True, 7))
    await client.expect(Pubrec)
    await subscriber.take(b"once")
    await subscriber.take(b"new")
    await subscriber.expect_nothing()


@statement(v5="MQTT-4.3.3-11 MQTT-3.7.2-1", v311="MQTT-4.3.3-2")
async def test_an_unknown_pubrel_is_completed(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.send(Pubrel(77))
    comp = await client.expect(Pubcomp)
    assert comp.packet_id == 77
    assert comp.reason_code == (PACKET_IDENTIFIER_NOT_FOUND if version == 5 else 0)
    await client.expect_nothing()


@statement(v5="MQTT-3.6.2-1")
async def test_an_unknown_pubrec_is_answered_by_pubrel_0x92(peers: Peers) -> None:
    client = await peers.connect()
    await client.send(Pubrec(77))
    release = await client.expect(Pubrel)
    assert (release.packet_id, release.reason_code) == (77, PACKET_IDENTIFIER_NOT_FOUND)


@statement(v5="MQTT-2.2.1-5", v311="MQTT-2.3.1-6")
async def test_unknown_acknowledgements_are_ignored(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.send(Puback(77), Pubcomp(78))
    await client.expect_nothing()


@statement(
    v5="MQTT-3.4.2-1 MQTT-3.5.2-1 MQTT-3.6.2-1 MQTT-3.7.2-1 MQTT-4.13.1-1",
)
@pytest.mark.parametrize("first_byte", [0x40, 0x50, 0x62, 0x70])
async def test_an_undefined_reason_code_closes(peers: Peers, first_byte: int) -> None:
    topic = peers.topic()
    client = await peers.connect()
    await client.subscribe(topic)
    await client.send_raw(frame(first_byte, b"\x00\x01\x7f\x00"))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-4.3.3-9", stores=("validating",))
async def test_after_a_refusing_pubrec_the_packet_id_is_new(peers: Peers) -> None:
    # This node refuses a payload that belies its format indicator.
    topic = peers.topic()
    subscriber = await peers.subscriber(topic)
    client = await peers.connect()
    utf8 = properties(payload_format_indicator=1)
    await client.send(Publish(topic, b"\xff", 2, False, False, 7, utf8))
    assert (await client.expect(Pubrec)).reason_code == PAYLOAD_FORMAT_INVALID
    await client.send(Publish(topic, b"right", 2, False, True, 7, utf8))
    assert (await client.expect(Pubrec)).reason_code == 0
    await client.send(Pubrel(7))
    assert (await client.expect(Pubcomp)).reason_code == 0
    await subscriber.take(b"right")


@statement(v5="MQTT-4.3.3-7", stores=EVERY_STORE)
async def test_a_message_that_was_sent_does_not_expire(peers: Peers) -> None:
    topic = peers.topic()
    subscriber = await peers.connect(persistent=True)
    await subscriber.subscribe(topic)
    publisher = await peers.connect()
    await publisher.publish(topic, b"x", 2, properties=properties(message_expiry_interval=1))
    first = await subscriber.expect(Publish)
    await subscriber.close()
    await peers.elapse(2)
    again = await peers.connect(client_id=subscriber.client_id, persistent=True)
    second = await again.expect(Publish)
    assert (second.packet_id, second.dup) == (first.packet_id, True)


@statement(v5="MQTT-4.3.3-13", stores=EVERY_STORE)
async def test_an_expired_message_is_acknowledged_to_the_end(peers: Peers) -> None:
    topic = peers.topic()
    await peers.subscriber(topic)
    client = await peers.connect()
    await client.send(Publish(topic, b"x", 2, False, False, 7, properties(message_expiry_interval=1)))
    await client.expect(Pubrec)
    await peers.elapse(2)
    await client.send(Pubrel(7))
    comp = await client.expect(Pubcomp)
    assert (comp.packet_id, comp.reason_code) == (7, 0)


@statement(v5="MQTT-4.5.0-1", v311="MQTT-4.5.0-1", stores=EVERY_STORE)
@pytest.mark.parametrize("qos", [1, 2])
async def test_an_accepted_message_reaches_every_session_that_matches(peers: Peers, version: int, qos: int) -> None:
    topic = peers.topic()
    online = [await peers.subscriber(topic, version) for _ in range(3)]
    offline = []
    for _ in range(3):
        client = await peers.connect(version, persistent=True)
        await client.subscribe(topic)
        await client.disconnect()
        offline.append(client.client_id)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", qos)
    await publisher.disconnect()
    for client in online:
        await client.take(b"x")
    for client_id in offline:
        client = await peers.connect(version, client_id=client_id, persistent=True)
        assert (await client.take(b"x")).qos == qos


@statement(
    v5="MQTT-4.6.0-5 MQTT-4.6.0-6",
    v311="MQTT-4.6.0-5 MQTT-4.6.0-6",
    stores=EVERY_STORE,
)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_messages_arrive_in_the_order_they_were_sent(peers: Peers, version: int, qos: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic, version)
    publisher = await peers.connect(version)
    packets = [Publish(topic, b"%d" % n, qos, False, False, n + 1 if qos else 0) for n in range(60)]
    await publisher.send(*packets)
    received: list[bytes] = []
    subscriber.auto_ack = True
    while len(received) < 60:
        packet = await subscriber.receive()
        if isinstance(packet, Publish):
            received.append(packet.payload)
    assert received == [b"%d" % n for n in range(60)]


@statement(v5="MQTT-4.6.0-5", v311="MQTT-4.6.0-6", stores=EVERY_STORE)
async def test_two_publishers_are_each_kept_in_order(peers: Peers, version: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic, version, qos=1)
    first, second = await peers.connect(version), await peers.connect(version)
    for n in range(30):
        await first.send(Publish(topic, b"a%02d" % n, 1, False, False, n + 1))
        await second.send(Publish(topic, b"b%02d" % n, 1, False, False, n + 1))
    payloads = [(await subscriber.take()).payload for _ in range(60)]
    for name in (b"a", b"b"):
        own = [payload for payload in payloads if payload.startswith(name)]
        assert own == sorted(own)


@statement(v311="MQTT-4.6.0-2 MQTT-4.6.0-3 MQTT-4.6.0-6", stores=EVERY_STORE)
@pytest.mark.parametrize("qos", [1, 2])
async def test_acknowledgements_come_in_the_order_of_the_messages(peers: Peers, version: int, qos: int) -> None:
    topic = peers.topic()
    await peers.connect(version)
    client = await peers.connect(version)
    await client.send(*[Publish(topic, b"", qos, False, False, n) for n in range(1, 51)])
    if qos == 1:
        packet_ids = [ack.packet_id for ack in await client.collect(Puback, 50)]
    else:
        packet_ids = [ack.packet_id for ack in await client.collect(Pubrec, 50)]
    assert packet_ids == list(range(1, 51))


@statement(v311="MQTT-4.6.0-4")
async def test_releases_come_in_the_order_of_the_pubrecs(peers: Peers, version: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic, version)
    publisher = await peers.connect(version)
    for n in range(10):
        await publisher.publish(topic, b"%d" % n, 2)
    packet_ids = [publish.packet_id for publish in await subscriber.collect(Publish, 10)]
    await subscriber.send(*[Pubrec(packet_id) for packet_id in packet_ids])
    assert [release.packet_id for release in await subscriber.collect(Pubrel, 10)] == packet_ids
