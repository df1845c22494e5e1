"""Data representation and packet format: chapters 1 and 2 of both standards."""

from __future__ import annotations

import pytest

from broker.codec.packets import V5, Connack, Pingresp, Publish, Suback, SubscriptionRequest
from broker.reasons import MALFORMED_PACKET, PROTOCOL_ERROR
from tests.conformance import wire
from tests.conformance.peers import Peers
from tests.conformance.statements import statement
from tests.kit.mqtt_client import frame

FIELDS = ("topic", "filter", "unsubscribe")


def _packet_with_text(version: int, field: str, raw: bytes) -> bytes:
    if field == "topic":
        return wire.publish(version, raw)
    if field == "filter":
        return wire.subscribe(version, raw)
    return wire.unsubscribe(version, raw)


@statement(
    v5="MQTT-1.5.4-1 MQTT-3.3.2-1 MQTT-3.8.3-1 MQTT-3.10.3-1",
    v311="MQTT-1.5.3-1 MQTT-3.3.2-1 MQTT-3.8.3-1 MQTT-3.10.3-1",
)
@pytest.mark.parametrize("raw", wire.ILL_FORMED_TEXTS, ids=lambda raw: raw.hex())
@pytest.mark.parametrize("field", FIELDS)
async def test_ill_formed_utf8_closes(peers: Peers, version: int, field: str, raw: bytes) -> None:
    client = await peers.connect(version)
    await client.send_raw(_packet_with_text(version, field, raw))
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(v5="MQTT-1.5.4-2 MQTT-4.7.3-2", v311="MQTT-1.5.3-2 MQTT-4.7.3-2")
@pytest.mark.parametrize("field", FIELDS)
async def test_a_nul_character_closes(peers: Peers, version: int, field: str) -> None:
    client = await peers.connect(version)
    await client.send_raw(_packet_with_text(version, field, wire.NUL_TEXT))
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(v5="MQTT-1.5.4-3", v311="MQTT-1.5.3-3")
async def test_a_byte_order_mark_is_a_character(peers: Peers, version: int) -> None:
    marked = "\ufeff" + peers.topic("bom\ufeff")
    subscriber = await peers.subscriber(marked, version)
    await subscriber.subscribe(marked.replace("\ufeff", ""))
    publisher = await peers.connect(version)
    await publisher.publish(marked, b"x")
    received = await subscriber.take(b"x")
    assert received.topic_name == marked
    assert subscriber.last_raw.count(b"\xef\xbb\xbf") == 2
    await publisher.publish(marked.removeprefix("\ufeff"), b"stripped")
    await subscriber.expect_nothing()


@statement(v5="MQTT-1.5.5-1")
async def test_a_remaining_length_of_needless_bytes_closes(peers: Peers) -> None:
    client = await peers.connect()
    await client.send_raw(b"\xc0\x80\x00")
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(v5="MQTT-1.5.5-1")
async def test_a_property_length_of_needless_bytes_closes(peers: Peers) -> None:
    client = await peers.connect()
    await client.send_raw(frame(0x30, wire.text(b"t") + b"\x80\x00"))
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(v5="MQTT-1.5.5-1")
@pytest.mark.parametrize("packet_size", [129, 130, 131, 16_386, 16_387, 16_388])
async def test_the_server_writes_the_shortest_remaining_length(peers: Peers, packet_size: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic)
    publisher = await peers.connect()
    payload = b"p" * (packet_size - len(topic) - 6)
    await publisher.publish(topic, payload)
    # The client's framing refuses any length that is longer than it has to be.
    await subscriber.take(payload)


@statement(v5="MQTT-1.5.7-1")
@pytest.mark.parametrize("raw", wire.BAD_TEXTS, ids=lambda raw: raw.hex())
@pytest.mark.parametrize("half", ["key", "value"])
async def test_both_halves_of_a_user_property_are_strings(peers: Peers, half: str, raw: bytes) -> None:
    client = await peers.connect()
    key, value = (raw, b"v") if half == "key" else (b"k", raw)
    await client.send_raw(wire.publish(V5, b"t", properties=b"\x26" + wire.text(key) + wire.text(value)))
    await client.expect_disconnect(MALFORMED_PACKET)


ID = b"\x00\x01"
RESERVED_FLAGS = {
    "PUBACK": (0x41, ID),
    "PUBREC": (0x51, ID),
    "PUBREL 0000": (0x60, ID),
    "PUBREL 1010": (0x6A, ID),
    "PUBCOMP": (0x72, ID),
    "SUBSCRIBE 0000": (0x80, None),
    "SUBSCRIBE 0011": (0x83, None),
    "UNSUBSCRIBE 0000": (0xA0, None),
    "UNSUBSCRIBE 1010": (0xAA, None),
    "PINGREQ": (0xC1, b""),
    "DISCONNECT": (0xE2, b""),
}


@statement(
    v5="MQTT-2.1.3-1 MQTT-3.6.1-1 MQTT-3.8.1-1 MQTT-3.10.1-1 MQTT-3.14.1-1 MQTT-4.13.1-1 MQTT-4.13.2-1",
    v311="MQTT-2.2.2-1 MQTT-2.2.2-2 MQTT-3.6.1-1 MQTT-3.8.1-1 MQTT-3.10.1-1 MQTT-3.14.1-1 MQTT-4.8.0-1",
)
@pytest.mark.parametrize("packet", RESERVED_FLAGS)
async def test_reserved_fixed_header_flags_close(peers: Peers, version: int, packet: str) -> None:
    first_byte, body = RESERVED_FLAGS[packet]
    if body is None:
        options = b"\x00" if packet.startswith("SUB") else b""
        body = ID + wire.properties_of(version) + wire.text(b"t") + options
    client = await peers.connect(version)
    await client.send_raw(frame(first_byte, body))
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(v5="MQTT-2.1.3-1", v311="MQTT-2.2.2-1 MQTT-2.2.2-2")
async def test_reserved_flags_of_connect_close(peers: Peers, version: int) -> None:
    client = await peers.open(version)
    await client.send_raw(wire.connect(version, wire.text(b"c"), first_byte=0x12))
    await peers.refused(client)


@statement(v5="MQTT-4.13.1-1", v311="MQTT-4.8.0-1")
@pytest.mark.parametrize("first_byte", [0x00, 0x20, 0x90, 0xB0, 0xD0])
async def test_packet_types_that_no_client_sends_close(peers: Peers, version: int, first_byte: int) -> None:
    client = await peers.connect(version)
    body = {0x20: b"\x00\x00", 0x90: b"\x00\x01\x00\x00", 0xB0: b"\x00\x01\x00\x00"}.get(first_byte, b"")
    await client.send_raw(frame(first_byte, body))
    await client.expect_disconnect(MALFORMED_PACKET if first_byte == 0 else PROTOCOL_ERROR)


@statement(v311="MQTT-4.8.0-1")
async def test_auth_is_no_packet_of_version_3(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.send_raw(b"\xf0\x00")
    await client.expect_closed()


@statement(v5="MQTT-4.13.1-1", v311="MQTT-4.8.0-1")
@pytest.mark.parametrize("first_byte", [0x32, 0x40, 0x62, 0x82, 0xA2])
async def test_truncated_packets_close(peers: Peers, version: int, first_byte: int) -> None:
    client = await peers.connect(version)
    await client.send_raw(frame(first_byte, b"\x00"))
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(v5="MQTT-4.13.1-1", v311="MQTT-4.8.0-1")
async def test_a_remaining_length_of_five_bytes_closes(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.send_raw(b"\x30\x80\x80\x80\x80\x01")
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(v5="MQTT-2.2.1-2", v311="MQTT-2.3.1-5")
async def test_qos_0_has_no_packet_id(peers: Peers, version: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic, version)
    publisher = await peers.connect(version)
    # What would be a packet id belongs to the payload.
    await publisher.send_raw(wire.publish(version, topic.encode(), b"\x00\x07payload"))
    await subscriber.expect(Publish)
    assert subscriber.last_raw == wire.publish(version, topic.encode(), b"\x00\x07payload")


@statement(v5="MQTT-2.2.1-3", v311="MQTT-2.3.1-1")
@pytest.mark.parametrize("packet", ["PUBLISH 1", "PUBLISH 2", "SUBSCRIBE", "UNSUBSCRIBE"])
async def test_packet_id_zero_closes(peers: Peers, version: int, packet: str) -> None:
    data = {
        "PUBLISH 1": wire.publish(version, b"t", first_byte=0x32, packet_id=0),
        "PUBLISH 2": wire.publish(version, b"t", first_byte=0x34, packet_id=0),
        "SUBSCRIBE": wire.subscribe(version, b"t", packet_id=0),
        "UNSUBSCRIBE": wire.unsubscribe(version, b"t", packet_id=0),
    }[packet]
    client = await peers.connect(version)
    await client.send_raw(data)
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(
    v5="MQTT-2.2.1-4 MQTT-4.3.2-1 MQTT-4.3.3-1",
    v311="MQTT-2.3.1-4 MQTT-4.3.2-1 MQTT-4.3.3-1",
)
async def test_open_messages_of_the_server_have_different_packet_ids(peers: Peers, version: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic, version)
    publisher = await peers.connect(version)
    for number in range(16):
        await publisher.publish(topic, b"%d" % number, 1 + number % 2)
    packet_ids = [publish.packet_id for publish in await subscriber.collect(Publish, 16)]
    assert 0 not in packet_ids
    assert len(set(packet_ids)) == 16


@statement(v5="MQTT-2.2.2-1")
async def test_no_properties_are_a_property_length_of_zero(peers: Peers) -> None:
    topic = peers.topic()
    subscriber = await peers.connect()
    suback = await subscriber.subscribe(SubscriptionRequest(topic, 1))
    assert subscriber.last_raw == frame(0x90, suback.packet_id.to_bytes(2, "big") + b"\x00\x01")
    publisher = await peers.connect()
    await publisher.publish(topic, b"x", 1)
    received = await subscriber.expect(Publish)
    expected = wire.publish(V5, topic.encode(), b"x", first_byte=0x32, packet_id=received.packet_id)
    assert subscriber.last_raw == expected
    unsuback = await subscriber.unsubscribe(topic)
    assert subscriber.last_raw == frame(0xB0, unsuback.packet_id.to_bytes(2, "big") + b"\x00\x00")


@statement(v5="MQTT-4.13.1-1")
@pytest.mark.parametrize(
    ("block", "reason_code"),
    [
        (b"\x7f\x00", MALFORMED_PACKET),  # no such property
        (b"\x11\x00\x00\x00\x01", MALFORMED_PACKET),  # session expiry interval is none of PUBLISH
        (b"\x01\x02", PROTOCOL_ERROR),  # payload format indicator is 0 or 1
        (b"\x01\x00\x01\x00", PROTOCOL_ERROR),  # twice
        (b"\x02\x00\x00", MALFORMED_PACKET),  # cut short
    ],
    ids=["unknown", "misplaced", "value", "twice", "short"],
)
async def test_bad_properties_close(peers: Peers, block: bytes, reason_code: int) -> None:
    client = await peers.connect()
    await client.send_raw(wire.publish(V5, b"t", properties=block))
    await client.expect_disconnect(reason_code)


@statement(v5="MQTT-4.2.0-1", v311="MQTT-7.1.1-1 MQTT-7.0.0-2")
async def test_tcp_may_cut_packets_anywhere(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.open(version)
    stream = (
        wire.connect(version, wire.text(peers.client_id().encode()))
        + wire.subscribe(version, topic.encode(), packet_id=7)
        + wire.publish(version, topic.encode(), b"x" * 200)
        + b"\xc0\x00"
    )
    for position in range(len(stream)):
        await client.send_raw(stream[position : position + 1])
    await client.expect(Connack)
    await client.expect(Suback)
    assert (await client.expect(Publish)).payload == b"x" * 200
    await client.expect(Pingresp)


@statement(v5="MQTT-4.2.0-1", v311="MQTT-7.1.1-1")
async def test_many_packets_may_arrive_at_once(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.open(version)
    stream = wire.connect(version, wire.text(peers.client_id().encode()))
    stream += wire.subscribe(version, topic.encode(), packet_id=7)
    for number in range(500):
        stream += wire.publish(version, topic.encode(), b"%d" % number)
    await client.send_raw(stream)
    await client.expect(Connack)
    await client.expect(Suback)
    assert [p.payload for p in await client.collect(Publish, 500)] == [b"%d" % n for n in range(500)]


@statement(v5="MQTT-4.13.1-1", v311="MQTT-4.8.0-1")
async def test_a_bad_packet_of_one_client_disturbs_no_other(peers: Peers, version: int) -> None:
    topic = peers.topic()
    other = await peers.subscriber(topic, version)
    bad = await peers.connect(version)
    await bad.publish(topic, b"before", 1)
    await bad.send_raw(wire.publish(version, topic.encode(), b"same write") + b"\x00\x00")
    await bad.expect_disconnect(MALFORMED_PACKET)
    await other.take(b"before")
    await other.take(b"same write")
    await other.expect_nothing()
