"""CONNECT: section 3.1 of both standards, but wills and sessions."""

from __future__ import annotations

import pytest

from broker.codec.packets import PINGRESP, PUBLISH, V5, V31, Connack, Connect, Will
from broker.reasons import (
    CLIENT_IDENTIFIER_NOT_VALID,
    PROTOCOL_ERROR,
    SESSION_TAKEN_OVER,
    UNSUPPORTED_PROTOCOL_VERSION,
)
from tests.conformance import wire
from tests.conformance.peers import Peers
from tests.conformance.statements import EVERY_STORE, statement
from tests.kit.mqtt_client import ConnectionClosed, frame, properties

NO_CONNECT = {
    "PUBLISH": b"\x30\x03\x00\x01t",
    "SUBSCRIBE": b"\x82\x06\x00\x01\x00\x01t\x00",
    "PINGREQ": b"\xc0\x00",
    "DISCONNECT": b"\xe0\x00",
    "AUTH": b"\xf0\x00",
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nUser-Agent: none\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
}


@statement(v5="MQTT-3.1.0-1 MQTT-3.2.0-1 MQTT-3.14.0-1", v311="MQTT-3.1.0-1 MQTT-3.2.0-1")
@pytest.mark.parametrize("first", NO_CONNECT)
async def test_a_first_packet_other_than_connect_closes_without_a_word(peers: Peers, version: int, first: str) -> None:
    client = await peers.open(version)
    await client.send_raw(NO_CONNECT[first])
    await client.expect_closed()


@statement(v5="MQTT-3.1.0-2 MQTT-3.2.0-2", v311="MQTT-3.1.0-2")
async def test_a_second_connect_closes(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.send(Connect(version, client.client_id))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.1.0-2 MQTT-3.2.0-2", v311="MQTT-3.1.0-2")
async def test_a_second_connect_in_the_same_write_closes(peers: Peers, version: int) -> None:
    client = await peers.open(version)
    packet = Connect(version, peers.client_id())
    await client.send(packet, packet)
    await client.expect(Connack)
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.1.2-1", v311="MQTT-3.1.2-1")
@pytest.mark.parametrize("name", [b"MQTTX", b"mqtt", b"", b"MQIsdp", b"AMQP"])
async def test_another_protocol_name_is_not_served(peers: Peers, version: int, name: bytes) -> None:
    client = await peers.open(version)
    await client.send_raw(wire.connect(version, wire.text(b"c"), name=name))
    if version == V5:
        await peers.refused(client, UNSUPPORTED_PROTOCOL_VERSION)
        return
    # Under another name it is not processed as MQTT 3.1.1: it is closed, at most after a refusal.
    try:
        await client.receive()
    except ConnectionClosed:
        return
    assert client.last_raw == b"\x20\x02\x00\x01"
    await client.expect_closed()


@statement(v5="MQTT-3.1.2-2 MQTT-3.2.2-6 MQTT-3.2.2-7 MQTT-3.2.2-8")
@pytest.mark.parametrize("level", [6, 7, 0x45, 0x85, 0xFF])
async def test_an_unknown_version_that_looks_like_5_gets_0x84(peers: Peers, level: int) -> None:
    client = await peers.open(V5)
    await client.send_raw(wire.connect(V5, wire.text(b"c"), level=level))
    connack = await client.expect(Connack)
    assert connack.reason_code == UNSUPPORTED_PROTOCOL_VERSION
    assert not connack.session_present
    await client.expect_closed()


@statement(v311="MQTT-3.1.2-2 MQTT-3.2.2-4 MQTT-3.2.2-5")
@pytest.mark.parametrize("level", [0, 1, 2, 3])
async def test_an_unknown_level_below_5_gets_return_code_1(peers: Peers, version: int, level: int) -> None:
    client = await peers.open(version)
    await client.send_raw(wire.connect(version, wire.text(b"c"), level=level))
    await client.expect(Connack)
    assert client.last_raw == b"\x20\x02\x00\x01"
    await client.expect_closed()


@statement(v5="MQTT-3.1.2-3 MQTT-3.1.4-1", v311="MQTT-3.1.2-3 MQTT-3.1.4-1")
async def test_the_reserved_connect_flag_closes(peers: Peers, version: int) -> None:
    client = await peers.open(version)
    await client.send_raw(wire.connect(version, wire.text(b"c"), flags=0x03))
    await peers.refused(client)


def _will_fields(version: int) -> bytes:
    return wire.properties_of(version) + wire.text(b"will") + wire.text(b"payload")


@statement(
    v5="MQTT-3.1.2-11 MQTT-3.1.2-12 MQTT-3.1.2-13 MQTT-3.1.4-1",
    v311="MQTT-3.1.2-11 MQTT-3.1.2-13 MQTT-3.1.2-14 MQTT-3.1.2-15 MQTT-3.1.4-1",
)
@pytest.mark.parametrize("flags", [0x0A, 0x12, 0x1A, 0x22, 0x1E])
async def test_contradictory_will_flags_close(peers: Peers, version: int, flags: int) -> None:
    client = await peers.open(version)
    fields = _will_fields(version) if flags & 4 else b""
    await client.send_raw(wire.connect(version, wire.text(b"c") + fields, flags))
    await peers.refused(client)


@statement(v5="MQTT-3.1.2-12", v311="MQTT-3.1.2-14")
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_every_will_qos_is_accepted(peers: Peers, version: int, qos: int) -> None:
    client = await peers.connect(version, will=Will(peers.topic(), b"", qos, False))
    await client.disconnect()


MISSING = {
    "client id": (0x02, b""),
    "will": (0x06, wire.text(b"c")),
    "will payload": (0x06, wire.text(b"c") + b"\x00\x04will"),
    "user name": (0x82, wire.text(b"c")),
    "password": (0xC2, wire.text(b"c") + wire.text(b"user")),
}


@statement(
    v5="MQTT-3.1.2-9 MQTT-3.1.2-17 MQTT-3.1.2-19 MQTT-3.1.3-3 MQTT-3.1.4-1",
    v311="MQTT-3.1.2-9 MQTT-3.1.2-19 MQTT-3.1.2-21 MQTT-3.1.3-3 MQTT-3.1.4-1",
)
@pytest.mark.parametrize("missing", MISSING)
async def test_a_missing_payload_field_closes(peers: Peers, version: int, missing: str) -> None:
    flags, payload = MISSING[missing]
    if missing == "will payload":
        payload = wire.text(b"c") + wire.properties_of(version) + wire.text(b"will")
    client = await peers.open(version)
    await client.send_raw(wire.connect(version, payload, flags))
    await peers.refused(client)


@statement(
    v5="MQTT-3.1.2-16 MQTT-3.1.2-18 MQTT-3.1.4-1",
    v311="MQTT-3.1.2-11 MQTT-3.1.2-18 MQTT-3.1.2-20 MQTT-3.1.4-1",
)
@pytest.mark.parametrize(
    ("flags", "surplus"),
    [(0x02, wire.text(b"user")), (0x82, wire.text(b"user") + wire.text(b"pass")), (0x02, wire.text(b"w") * 2)],
    ids=["user name", "password", "will"],
)
async def test_a_payload_field_without_its_flag_closes(peers: Peers, version: int, flags: int, surplus: bytes) -> None:
    client = await peers.open(version)
    await client.send_raw(wire.connect(version, wire.text(b"c") + surplus, flags))
    await peers.refused(client)


@statement(v311="MQTT-3.1.2-22")
async def test_a_password_without_a_user_name_closes(peers: Peers, version: int) -> None:
    client = await peers.open(version)
    await client.send_raw(wire.connect(version, wire.text(b"c") + wire.text(b"pass"), 0x42))
    await client.expect_closed()


@statement(v5="MQTT-3.1.2-19")
async def test_version_5_allows_a_password_without_a_user_name(peers: Peers) -> None:
    client = await peers.open()
    await client.send_raw(wire.connect(V5, wire.text(peers.client_id().encode()) + wire.text(b"pass"), 0x42))
    assert (await client.expect(Connack)).reason_code == 0


@statement(
    v5="MQTT-3.1.3-1 MQTT-3.1.2-9 MQTT-3.1.2-17 MQTT-3.1.2-19",
    v311="MQTT-3.1.3-1 MQTT-3.1.2-9 MQTT-3.1.2-19 MQTT-3.1.2-21",
)
async def test_the_payload_fields_are_read_in_order(peers: Peers, version: int) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic, version)
    client = await peers.open(version)
    payload = wire.text(peers.client_id().encode()) + wire.properties_of(version)
    payload += wire.text(topic.encode()) + wire.text(b"last words") + wire.text(b"user") + wire.text(b"password")
    await client.send_raw(wire.connect(version, payload, 0xC6))
    assert (await client.expect(Connack)).reason_code == 0
    await client.close()
    await observer.take(b"last words")


BAD_STRING_FIELDS = ("client id", "will topic", "user name")


@statement(
    v5="MQTT-1.5.4-1 MQTT-1.5.4-2 MQTT-3.1.3-4 MQTT-3.1.3-11 MQTT-3.1.3-12",
    v311="MQTT-1.5.3-1 MQTT-1.5.3-2 MQTT-3.1.3-4 MQTT-3.1.3-10 MQTT-3.1.3-11",
)
@pytest.mark.parametrize("raw", wire.BAD_TEXTS, ids=lambda raw: raw.hex())
@pytest.mark.parametrize("field", BAD_STRING_FIELDS)
async def test_bad_strings_in_connect_close(peers: Peers, version: int, field: str, raw: bytes) -> None:
    flags, payload = {
        "client id": (0x02, wire.text(raw)),
        "will topic": (0x06, wire.text(b"c") + wire.properties_of(version) + wire.text(raw) + wire.text(b"p")),
        "user name": (0x82, wire.text(b"c") + wire.text(raw)),
    }[field]
    client = await peers.open(version)
    await client.send_raw(wire.connect(version, payload, flags))
    await peers.refused(client)


@statement(v5="MQTT-3.1.3-5", v311="MQTT-3.1.3-5")
@pytest.mark.parametrize(
    "client_id",
    ["7", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ"],
)
async def test_client_ids_of_letters_and_digits_are_accepted(peers: Peers, version: int, client_id: str) -> None:
    client = await peers.connect(version, client_id=client_id)
    assert client.connack is not None
    assert client.connack.reason_code == 0
    if client.connack.properties is not None:
        assert client.connack.properties.assigned_client_identifier is None
    await client.disconnect()


@statement(
    v5="MQTT-3.1.3-6 MQTT-3.1.3-7 MQTT-3.2.2-16",
)
@pytest.mark.parametrize("clean_start", [True, False])
async def test_an_empty_client_id_is_replaced_by_a_new_one(peers: Peers, clean_start: bool) -> None:
    first = await peers.connect(client_id="", clean_start=clean_start, session_expiry_interval=60)
    second = await peers.connect(client_id="", clean_start=clean_start)
    assert first.client_id
    assert second.client_id
    assert first.client_id != second.client_id
    # The session goes by the assigned name.
    topic = peers.topic()
    await first.subscribe(topic)
    await first.disconnect()
    again = await peers.connect(client_id=first.client_id, persistent=True)
    assert again.connack is not None
    assert again.connack.session_present
    await second.publish(topic, b"x", 1)
    await again.take(b"x")


@statement(v311="MQTT-3.1.3-6")
async def test_two_empty_client_ids_are_two_clients(peers: Peers, version: int) -> None:
    topic = peers.topic()
    clients = [await peers.connect(version, client_id="") for _ in range(3)]
    for client in clients:
        await client.subscribe(topic)
    await clients[0].publish(peers.topic("other"), b"", 1)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", 1)
    for client in clients:
        await client.take(b"x")


@statement(v311="MQTT-3.1.3-8 MQTT-3.1.3-9 MQTT-3.2.2-4 MQTT-3.2.2-5")
async def test_an_empty_client_id_with_a_session_to_keep_is_refused(peers: Peers, version: int) -> None:
    client = await peers.open(version)
    connack = await client.connect(Connect(version, "", clean_start=False))
    assert connack.reason_code == CLIENT_IDENTIFIER_NOT_VALID
    assert client.last_raw == b"\x20\x02\x00\x02"
    await client.expect_closed()


@statement(
    v5="MQTT-3.1.4-3 MQTT-3.1.3-2",
    v311="MQTT-3.1.4-2 MQTT-3.1.3-2",
    stores=EVERY_STORE,
)
async def test_a_client_id_in_use_goes_to_the_new_connection(peers: Peers, version: int) -> None:
    old = await peers.connect(version)
    new = await peers.connect(version, client_id=old.client_id)
    await old.expect_disconnect(SESSION_TAKEN_OVER)
    await new.expect_nothing()


@statement(v5="MQTT-3.1.4-3", v311="MQTT-3.1.4-2")
async def test_versions_take_over_from_each_other(peers: Peers, version: int) -> None:
    other = 9 - version
    old = await peers.connect(other)
    new = await peers.connect(version, client_id=old.client_id)
    await old.expect_disconnect(SESSION_TAKEN_OVER)
    await new.expect_nothing()


@statement(v5="MQTT-3.1.4-5 MQTT-3.2.0-1 MQTT-3.2.2-1", v311="MQTT-3.1.4-4 MQTT-3.2.0-1")
async def test_connack_comes_first(peers: Peers, version: int) -> None:
    topic = peers.topic()
    publisher = await peers.connect(version)
    sleeper = await peers.connect(version, persistent=True)
    await sleeper.subscribe(topic)
    await sleeper.disconnect()
    await publisher.publish(topic, b"x", 1)
    client = await peers.open(version)
    values = properties(session_expiry_interval=60) if version == V5 else None
    # The queued message does not overtake CONNACK, nor does the answer to what follows CONNECT at once.
    connect = Connect(version, sleeper.client_id, clean_start=False, properties=values)
    await client.send(connect)
    await client.send_raw(b"\xc0\x00")
    connack = await client.expect(Connack)
    assert connack.reason_code == 0
    assert client.last_raw[2] == 1
    assert {(await client.receive()).kind for _ in range(2)} == {PINGRESP, PUBLISH}


@statement(v5="MQTT-3.1.4-6 MQTT-3.2.0-1", v311="MQTT-3.1.4-5")
async def test_nothing_is_processed_after_a_refused_connect(peers: Peers, version: int) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic, version)
    client = await peers.open(version)
    bad = wire.connect(version, wire.text(b"c"), level=9 if version == V5 else 2)
    await client.send_raw(bad + wire.publish(version, topic.encode(), b"smuggled"))
    await client.expect(Connack)
    await client.expect_closed()
    await observer.expect_nothing()


@statement(v5="MQTT-3.1.4-6 MQTT-3.1.4-1", v311="MQTT-3.1.4-5 MQTT-3.1.4-1 MQTT-3.2.2-6")
async def test_nothing_is_processed_after_a_malformed_connect(peers: Peers, version: int) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic, version)
    client = await peers.open(version)
    bad = wire.connect(version, wire.text(b"c"), flags=0x03)
    await client.send_raw(bad + wire.publish(version, topic.encode(), b"smuggled"))
    await peers.refused(client)
    await observer.expect_nothing()


@statement(v5="MQTT-3.1.4-1")
@pytest.mark.parametrize(
    "block",
    [
        b"\x21\x00\x00",  # Receive Maximum 0
        b"\x27\x00\x00\x00\x00",  # Maximum Packet Size 0
        b"\x19\x02",  # Request Response Information 2
        b"\x17\x02",  # Request Problem Information 2
        b"\x21\x00\x01\x21\x00\x01",  # Receive Maximum twice
        b"\x16\x00\x01x",  # Authentication Data without a method
        b"\x0b\x01",  # Subscription Identifier
        b"\x7e\x00",
    ],
    ids=lambda block: block.hex(),
)
async def test_bad_connect_properties_close(peers: Peers, block: bytes) -> None:
    client = await peers.open()
    await client.send_raw(wire.connect(V5, wire.text(b"c"), properties=block))
    await peers.refused(client)


@statement(v311="MQTT-3.1.2-1 MQTT-3.1.4-4")
async def test_version_3_1_is_served_under_its_own_name(peers: Peers, version: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic, version)
    old = await peers.open(V31)
    await old.send_raw(frame(0x10, wire.text(b"MQIsdp") + b"\x03\x02\x00\x00" + wire.text(peers.client_id().encode())))
    await old.expect(Connack)
    assert old.last_raw == b"\x20\x02\x00\x00"
    await old.publish(topic, b"from 3.1", 2)
    await subscriber.take(b"from 3.1")
    await old.disconnect()
