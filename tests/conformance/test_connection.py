"""PINGREQ, keep alive and DISCONNECT: sections 3.1.2.10, 3.12 and 3.14."""

from __future__ import annotations

import pytest

from broker.codec.packets import V5, Connect, Pingresp
from broker.reasons import KEEP_ALIVE_TIMEOUT, MALFORMED_PACKET, PROTOCOL_ERROR, SESSION_TAKEN_OVER, SUCCESS
from tests.conformance import wire
from tests.conformance.peers import Peers
from tests.conformance.statements import statement
from tests.kit.mqtt_client import frame, properties


@statement(v5="MQTT-3.12.4-1", v311="MQTT-3.12.4-1")
async def test_pingreq_is_answered(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    for count in (1, 3):
        await client.send_raw(b"\xc0\x00" * count)
        await client.collect(Pingresp, count)
        assert client.last_raw == b"\xd0\x00"


@statement(v5="MQTT-4.13.1-1", v311="MQTT-4.8.0-1")
async def test_pingreq_with_a_body_closes(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.send_raw(b"\xc0\x01x")
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(v5="MQTT-3.1.2-22 MQTT-3.2.2-22 MQTT-3.14.4-2", v311="MQTT-3.1.2-24")
async def test_a_silent_client_is_disconnected(peers: Peers, version: int) -> None:
    client = await peers.connect(version, keep_alive_s=1)
    if client.connack is not None and client.connack.properties is not None:
        assert client.connack.properties.server_keep_alive is None
    await client.expect_disconnect(KEEP_ALIVE_TIMEOUT)


@statement(v5="MQTT-3.1.2-22", v311="MQTT-3.1.2-24")
async def test_any_packet_keeps_the_connection_alive(peers: Peers, version: int) -> None:
    client = await peers.connect(version, keep_alive_s=2)
    topic = peers.topic()
    for _ in range(3):
        await peers.elapse(1)
        # Not the barrier of publish: a QoS 0 PUBLISH has no answer, and counts as well.
        await client.send_raw(wire.publish(version, topic.encode()))
    await client.expect_nothing()


@statement(v5="MQTT-3.1.2-22", v311="MQTT-3.1.2-24")
async def test_a_keep_alive_of_zero_never_ends(peers: Peers, version: int) -> None:
    client = await peers.connect(version, keep_alive_s=0)
    await peers.elapse(3)
    await client.expect_nothing()


@statement(v5="MQTT-3.1.2-22", stores=("limited",))
async def test_a_server_keep_alive_overrules_the_clients(peers: Peers) -> None:
    client = await peers.connect(keep_alive_s=60)
    assert client.connack is not None
    assert client.connack.properties is not None
    assert client.connack.properties.server_keep_alive == 1
    await client.expect_disconnect(KEEP_ALIVE_TIMEOUT)


@statement(v5="MQTT-3.14.1-1 MQTT-4.13.2-1", v311="MQTT-3.14.1-1")
@pytest.mark.parametrize("first_byte", [0xE1, 0xE2, 0xE4, 0xE8])
async def test_reserved_flags_of_disconnect_close(peers: Peers, version: int, first_byte: int) -> None:
    client = await peers.connect(version)
    await client.send_raw(frame(first_byte, b""))
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(v5="MQTT-3.14.2-1")
@pytest.mark.parametrize("reason_code", [0x01, 0x7F, 0x87, 0x8B, 0x8E, 0xA2, 0xFF])
async def test_a_disconnect_reason_that_no_client_uses_closes(peers: Peers, reason_code: int) -> None:
    client = await peers.connect()
    await client.send_raw(frame(0xE0, bytes((reason_code, 0))))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.14.4-1 MQTT-3.14.4-2", v311="MQTT-3.14.4-3")
async def test_what_follows_disconnect_is_not_processed(peers: Peers, version: int) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic, version)
    client = await peers.connect(version)
    await client.send_raw(b"\xe0\x00" + wire.publish(version, topic.encode(), b"late"))
    await client.expect_closed()
    await observer.expect_nothing()


@statement(v5="MQTT-3.14.0-1 MQTT-3.2.2-7")
async def test_no_disconnect_before_connack(peers: Peers) -> None:
    client = await peers.open()
    await client.send_raw(wire.connect(V5, wire.text(b"c"), flags=0x03))
    await peers.refused(client)


@statement(v5="MQTT-3.14.2-1 MQTT-3.14.2-2 MQTT-3.14.4-1 MQTT-3.14.4-2 MQTT-4.13.2-1")
@pytest.mark.parametrize("cause", ["malformed", "takeover", "keep alive"])
async def test_the_servers_disconnect(peers: Peers, cause: str) -> None:
    client = await peers.connect(keep_alive_s=1 if cause == "keep alive" else 0, session_expiry_interval=100)
    reason_code = KEEP_ALIVE_TIMEOUT
    if cause == "malformed":
        reason_code = MALFORMED_PACKET
        await client.send_raw(b"\x00\x00")
    elif cause == "takeover":
        reason_code = SESSION_TAKEN_OVER
        await peers.connect(client_id=client.client_id)
    # One DISCONNECT with a listed reason code, and after it nothing but the close.
    packet = await client.expect_disconnect(reason_code)
    if packet.properties is not None:
        assert packet.properties.session_expiry_interval is None


@statement(v5="MQTT-3.14.4-2")
async def test_a_reason_of_success_in_the_long_form_is_accepted(peers: Peers) -> None:
    for body in (b"", b"\x00", b"\x00\x00"):
        client = await peers.connect()
        await client.send_raw(frame(0xE0, body))
        await client.expect_closed()


@statement(v5="MQTT-3.2.2-8 MQTT-3.2.2-1")
async def test_connack_announces_what_the_server_does(peers: Peers) -> None:
    client = await peers.open()
    connack = await client.connect(Connect(V5, peers.client_id(), properties=properties(session_expiry_interval=60)))
    assert connack.reason_code == SUCCESS
    got = connack.properties
    assert got is not None
    # Absent means: supported, without a limit of its own.
    assert got.maximum_qos is None
    assert got.retain_available in (None, 1)
    assert got.wildcard_subscription_available in (None, 1)
    assert got.subscription_identifier_available in (None, 1)
    assert got.shared_subscription_available in (None, 1)
    assert got.session_expiry_interval in (None, 60)
    assert (got.receive_maximum, got.topic_alias_maximum, got.maximum_packet_size) == (100, 64, 1_048_576)


@statement(v5="MQTT-4.13.1-1")
async def test_disconnect_with_unknown_property_closes(peers: Peers) -> None:
    client = await peers.connect()
    await client.send_raw(frame(0xE0, b"\x00\x02\x01\x01"))
    await client.expect_disconnect(MALFORMED_PACKET)
