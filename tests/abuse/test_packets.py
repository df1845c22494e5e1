"""Single packets that break the rules: the reason code of the standard, a counter, and nobody else notices (G15)."""

from __future__ import annotations

import pytest

from broker.codec.packets import V5, V31, V311, Puback, Pubcomp, Publish, Pubrec, Pubrel, Suback
from tests.abuse.conftest import Counted
from tests.abuse.world import AbusedNode, disconnects, new_name, packet_errors
from tests.conformance.wire import BAD_TEXTS, ILL_FORMED_TEXTS, NUL_TEXT, publish, subscribe, text, unsubscribe
from tests.kit.mqtt_client import frame

MALFORMED = 0x81
PROTOCOL = 0x82
NAMES = {
    MALFORMED: "malformed_packet",
    PROTOCOL: "protocol_error",
    0x90: "topic_name_invalid",
    0x94: "topic_alias_invalid",
    0x95: "packet_too_large",
    0x97: "quota_exceeded",
}

#: What any version has to refuse on an open connection: name -> bytes (or a function of the version), reason code.
ANY_VERSION = {
    "type 0": (b"\x00\x00", MALFORMED),
    "remaining length of 5 bytes": (b"\x30\x80\x80\x80\x80\x01", MALFORMED),
    "CONNACK from a client": (b"\x20\x02\x00\x00", PROTOCOL),
    "SUBACK from a client": (b"\x90\x03\x00\x01\x00", PROTOCOL),
    "UNSUBACK from a client": (b"\xb0\x02\x00\x01", PROTOCOL),
    "PINGRESP from a client": (b"\xd0\x00", PROTOCOL),
    "PINGREQ with a body": (b"\xc0\x01\x00", MALFORMED),
    "PUBLISH at QoS 3": (b"\x36\x05\x00\x01a\x00\x01", MALFORMED),
    "PUBLISH without anything": (b"\x30\x00", MALFORMED),
    "PUBLISH of one byte": (b"\x30\x01\x00", MALFORMED),
    "PUBLISH shorter than its topic": (b"\x30\x05\x00\x09abc", MALFORMED),
    "PUBLISH shorter than its topic, next packet behind": (
        b"\x30\x05\x00\x09abc\xc0\x00\xc0\x00\xc0\x00\xc0\x00",
        0x81,
    ),
    "PUBLISH without its packet id": (b"\x32\x03\x00\x01a", MALFORMED),
    "PUBLISH with half a packet id": (b"\x32\x04\x00\x01a\x00", MALFORMED),
    "PUBLISH with packet id 0": (b"\x32\x06\x00\x01a\x00\x00\x00", PROTOCOL),
    "PUBACK without packet id": (b"\x40\x00", MALFORMED),
    "PUBACK with half a packet id": (b"\x40\x01\x00", MALFORMED),
    "PUBACK with packet id 0": (b"\x40\x02\x00\x00", PROTOCOL),
    "PUBREC with packet id 0": (b"\x50\x02\x00\x00", PROTOCOL),
    "PUBREL with packet id 0": (b"\x62\x02\x00\x00", PROTOCOL),
    "PUBCOMP with packet id 0": (b"\x70\x02\x00\x00", PROTOCOL),
    "SUBSCRIBE without anything": (b"\x82\x00", MALFORMED),
    "UNSUBSCRIBE without anything": (b"\xa2\x00", MALFORMED),
}

VERSION_5 = {
    "remaining length that is not the shortest": (b"\x30\x88\x00\x00\x03abc\x00xy", MALFORMED),
    "PUBLISH with DUP at QoS 0": (publish(V5, b"a", first_byte=0x38), MALFORMED),
    "PUBLISH without properties": (b"\x30\x03\x00\x01a", MALFORMED),
    "PUBLISH to nowhere": (publish(V5, b""), PROTOCOL),
    "PUBLISH to an unknown alias": (publish(V5, b"", properties=b"\x23\x00\x07"), PROTOCOL),
    "topic alias 0": (publish(V5, b"a", properties=b"\x23\x00\x00"), 0x94),
    "topic alias 65": (publish(V5, b"a", properties=b"\x23\x00\x41"), 0x94),
    "topic alias 65,535": (publish(V5, b"a", properties=b"\x23\xff\xff"), 0x94),
    "topic alias twice": (publish(V5, b"a", properties=b"\x23\x00\x01\x23\x00\x01"), PROTOCOL),
    "unknown property": (publish(V5, b"a", properties=b"\x7f\x00"), MALFORMED),
    "property of another packet": (publish(V5, b"a", properties=b"\x21\x00\x01"), MALFORMED),
    "property of the server": (publish(V5, b"a", properties=b"\x0b\x01"), PROTOCOL),
    "property cut off": (publish(V5, b"a", properties=b"\x02\x00\x00"), MALFORMED),
    "property length beyond the packet": (frame(0x30, text(b"a") + b"\x7f" + b"\x01\x01"), MALFORMED),
    "property length of 5 bytes": (frame(0x30, text(b"a") + b"\x80\x80\x80\x80\x01"), MALFORMED),
    "payload format 2": (publish(V5, b"a", properties=b"\x01\x02"), PROTOCOL),
    "response topic with a wildcard": (publish(V5, b"a", properties=b"\x08" + text(b"a/#")), PROTOCOL),
    "user property that is no UTF-8": (publish(V5, b"a", properties=b"\x26" + text(b"\xff") + text(b"")), MALFORMED),
    "129 user properties": (frame(0x30, text(b"a") + b"\x85\x05" + b"\x26\x00\x00\x00\x00" * 129), 0x97),
    "100,000 user properties": (frame(0x30, text(b"a") + b"\xa0\xc2\x1e" + b"\x26\x00\x00\x00\x00" * 100_000), 0x97),
    "129 user properties in SUBSCRIBE": (
        frame(0x82, b"\x00\x01\x85\x05" + b"\x26\x00\x00\x00\x00" * 129 + text(b"a") + b"\x00"),
        0x97,
    ),
    "129 user properties in PUBACK": (frame(0x40, b"\x00\x01\x00\x85\x05" + b"\x26\x00\x00\x00\x00" * 129), 0x97),
    "129 user properties in DISCONNECT": (frame(0xE0, b"\x00\x85\x05" + b"\x26\x00\x00\x00\x00" * 129), 0x97),
    "PUBACK with a reason code of another packet": (b"\x40\x03\x00\x01\x92", PROTOCOL),
    "PUBREL with flags 0": (b"\x60\x02\x00\x01", MALFORMED),
    "PUBACK with flags": (b"\x41\x02\x00\x01", MALFORMED),
    "SUBSCRIBE with flags 0": (subscribe(V5, b"a", first_byte=0x80), MALFORMED),
    "SUBSCRIBE with packet id 0": (subscribe(V5, b"a", packet_id=0), PROTOCOL),
    "SUBSCRIBE of nothing": (b"\x82\x03\x00\x01\x00", PROTOCOL),
    "SUBSCRIBE at QoS 3": (subscribe(V5, b"a", 3), PROTOCOL),
    "SUBSCRIBE with retain handling 3": (subscribe(V5, b"a", 0x30), PROTOCOL),
    "SUBSCRIBE with reserved bits": (subscribe(V5, b"a", 0x40), MALFORMED),
    "SUBSCRIBE without options": (b"\x82\x06\x00\x01\x00\x00\x01a", MALFORMED),
    "SUBSCRIBE with identifier 0": (subscribe(V5, b"a", properties=b"\x0b\x00"), PROTOCOL),
    "SUBSCRIBE with two identifiers": (subscribe(V5, b"a", properties=b"\x0b\x01\x0b\x02"), PROTOCOL),
    "no local on a shared subscription": (subscribe(V5, b"$share/g/a", 4), PROTOCOL),
    "UNSUBSCRIBE with flags 0": (unsubscribe(V5, b"a", first_byte=0xA0), MALFORMED),
    "UNSUBSCRIBE with packet id 0": (unsubscribe(V5, b"a", packet_id=0), PROTOCOL),
    "UNSUBSCRIBE of nothing": (b"\xa2\x03\x00\x01\x00", PROTOCOL),
    "DISCONNECT with flags": (b"\xe1\x00", MALFORMED),
    "DISCONNECT with a reason code of the server": (b"\xe0\x01\x8d", PROTOCOL),
    "DISCONNECT that makes the session outlive it": (b"\xe0\x07\x00\x05\x11\x00\x00\x00\x05", PROTOCOL),
    "AUTH without a method": (b"\xf0\x00", PROTOCOL),
    "AUTH where CONNECT named no method": (frame(0xF0, b"\x18\x04\x15" + text(b"X")), PROTOCOL),
    "AUTH with flags": (b"\xf1\x00", MALFORMED),
}

VERSION_3 = {
    "AUTH": (b"\xf0\x00", MALFORMED),
    "PUBACK with a reason code": (b"\x40\x03\x00\x01\x00", MALFORMED),
    "SUBSCRIBE of nothing": (b"\x82\x02\x00\x01", PROTOCOL),
    "SUBSCRIBE at QoS 3": (subscribe(V311, b"a", 3), MALFORMED),
    "UNSUBSCRIBE of nothing": (b"\xa2\x02\x00\x01", PROTOCOL),
    "DISCONNECT with a body": (b"\xe0\x01\x00", MALFORMED),
}


async def _refused(node: AbusedNode, moved: Counted, version: int, data: bytes, reason_code: int) -> None:
    client = await node.client(version)
    await client.send_raw(data)
    await client.expect_disconnect(reason_code)
    await node.until(lambda: moved(packet_errors(NAMES[reason_code])) == 1, "the counter's move")
    assert moved(disconnects(NAMES[reason_code])) == 1


@pytest.mark.parametrize("version", [V31, V311, V5])
@pytest.mark.parametrize("name", ANY_VERSION)
async def test_g15_a_bad_packet_of_any_version(node: AbusedNode, moved: Counted, name: str, version: int) -> None:
    await _refused(node, moved, version, *ANY_VERSION[name])


@pytest.mark.parametrize("name", VERSION_5)
async def test_g15_a_bad_packet_of_version_5(node: AbusedNode, moved: Counted, name: str) -> None:
    await _refused(node, moved, V5, *VERSION_5[name])


@pytest.mark.parametrize("name", VERSION_3)
async def test_g15_a_bad_packet_of_version_3(node: AbusedNode, moved: Counted, name: str) -> None:
    await _refused(node, moved, V311, *VERSION_3[name])


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize("topic_name", [b"a/+", b"#", b"a/b#/c", b"/".join([b"x"] * 201)], ids=repr)
async def test_g15_an_invalid_topic_name(node: AbusedNode, moved: Counted, topic_name: bytes, version: int) -> None:
    await _refused(node, moved, version, publish(version, topic_name), 0x90)


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize("raw", BAD_TEXTS, ids=lambda raw: raw.hex())
async def test_g15_a_topic_name_that_is_no_utf_8(node: AbusedNode, moved: Counted, raw: bytes, version: int) -> None:
    await _refused(node, moved, version, publish(version, raw), MALFORMED)


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize("raw", BAD_TEXTS, ids=lambda raw: raw.hex())
async def test_g15_a_topic_filter_that_is_no_utf_8(node: AbusedNode, moved: Counted, raw: bytes, version: int) -> None:
    await _refused(node, moved, version, subscribe(version, raw), MALFORMED)


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize("raw", BAD_TEXTS, ids=lambda raw: raw.hex())
async def test_g15_an_unsubscribe_that_is_no_utf_8(node: AbusedNode, raw: bytes, version: int) -> None:
    client = await node.client(version)
    await client.send_raw(unsubscribe(version, raw))
    await client.expect_disconnect(MALFORMED)


async def test_g15_an_empty_topic_name_in_version_3(node: AbusedNode, moved: Counted) -> None:
    await _refused(node, moved, V311, publish(V311, b""), 0x90)


@pytest.mark.parametrize("version", [V31, V311, V5])
async def test_g15_a_second_connect(node: AbusedNode, moved: Counted, version: int) -> None:
    name = b"MQIsdp" if version == V31 else b"MQTT"
    head = text(name) + bytes((version, 2, 0, 0)) + (b"\x00" if version == V5 else b"")
    await _refused(node, moved, version, frame(0x10, head + text(b"other")), PROTOCOL)


@pytest.mark.parametrize("body", [b"", text(b"MQTT") + b"\x09\x02\x00\x00", text(b"?") + b"\x05"], ids=bytes.hex)
async def test_g15_a_second_connect_that_is_bad_itself(node: AbusedNode, moved: Counted, body: bytes) -> None:
    # 0x84 has no place in DISCONNECT, and what is wrong is that it is the second.
    await _refused(node, moved, V5, frame(0x10, body), PROTOCOL)


@pytest.mark.parametrize(
    "topic_filter", [b"", b"a/#/b", b"a#", b"a+/b", b"$share/", b"$share//a", b"$share/g", b"$share/g/"]
)
@pytest.mark.parametrize("version", [V311, V5])
async def test_g15_an_invalid_filter_is_refused_alone(node: AbusedNode, topic_filter: bytes, version: int) -> None:
    client = await node.client(version)
    await client.send_raw(subscribe(version, topic_filter))
    assert list((await client.expect(Suback)).reason_codes) == [0x8F if version == V5 else 0x80]
    await client.expect_nothing()


async def test_g15_a_filter_of_201_levels_is_refused_alone(node: AbusedNode) -> None:
    client = await node.client()
    suback = await client.subscribe("/".join(["x"] * 201), "/".join(["x"] * 200))
    assert list(suback.reason_codes) == [0x8F, 2]


@pytest.mark.parametrize("version", [V311, V5])
async def test_g15_topics_of_65535_bytes_are_ordinary(node: AbusedNode, version: int) -> None:
    topic = (new_name() * 6554)[:65535]
    client = await node.client(version)
    assert list((await client.subscribe(topic, qos=1)).reason_codes) == [1]
    assert await (await node.client(V5)).publish(topic, b"x", 1) == 0
    assert (await client.take(b"x")).topic_name == topic


async def test_g15_acknowledgements_of_what_was_never_sent(node: AbusedNode) -> None:
    client = await node.client()
    await client.send(*[Puback(packet_id) for packet_id in range(1, 200)])
    await client.send(*[Pubcomp(packet_id) for packet_id in range(1, 200)])
    await client.expect_nothing()  # [MQTT-4.3.2-1]: nobody to tell, and no harm
    await client.send(Pubrec(7))
    released = await client.expect(Pubrel)
    assert (released.packet_id, released.reason_code) == (7, 0x92)
    await client.send(Pubrel(9))
    completed = await client.expect(Pubcomp)
    assert (completed.packet_id, completed.reason_code) == (9, 0x92)
    assert await client.publish(new_name(), b"", 2) < 0x80


async def test_g15_acknowledgements_of_what_was_never_sent_in_version_3(node: AbusedNode) -> None:
    client = await node.client(V311)
    await client.send(Puback(1), Pubcomp(2), Pubrel(9))
    assert (await client.expect(Pubcomp)).packet_id == 9
    await client.expect_nothing()


async def test_g15_pubrel_twice(node: AbusedNode) -> None:
    client = await node.client()
    await client.send(Publish(new_name(), b"", 2, False, False, 5))
    await client.expect(Pubrec)
    await client.send(Pubrel(5), Pubrel(5))
    codes = [packet.reason_code for packet in await client.collect(Pubcomp, 2)]
    assert codes == [0, 0x92]


async def test_g15_puback_for_qos_2(node: AbusedNode, moved: Counted) -> None:
    client = await node.client()
    topic = new_name()
    await client.subscribe(topic, qos=2)
    await (await node.client()).publish(topic, b"", 2)
    await client.send(Puback((await client.expect(Publish)).packet_id))
    await client.expect_disconnect(PROTOCOL)
    assert moved(packet_errors("protocol_error")) == 1


async def test_g15_pubrec_for_qos_1(node: AbusedNode, moved: Counted) -> None:
    client = await node.client()
    topic = new_name()
    await client.subscribe(topic, qos=1)
    await (await node.client()).publish(topic, b"", 1)
    await client.send(Pubrec((await client.expect(Publish)).packet_id))
    await client.expect_disconnect(PROTOCOL)
    assert moved(packet_errors("protocol_error")) == 1


@pytest.mark.parametrize("raw", [*ILL_FORMED_TEXTS, NUL_TEXT], ids=lambda raw: raw.hex())
async def test_g15_a_will_that_is_no_utf_8_is_never_published(node: AbusedNode, moved: Counted, raw: bytes) -> None:
    client = await node.open()
    payload = text(b"") + b"\x00" + text(raw) + text(b"")
    await client.send_raw(frame(0x10, text(b"MQTT") + b"\x05\x06\x00\x00\x00" + payload))
    await client.expect_closed()
    assert moved(packet_errors("malformed_packet")) == 1
