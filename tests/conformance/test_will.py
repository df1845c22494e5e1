"""Wills: sections 3.1.2.5, 3.1.3 and 3.14.4."""

from __future__ import annotations

import pytest

from broker.codec.packets import V5, Connect, Disconnect, Properties, Will
from broker.reasons import DISCONNECT_WITH_WILL_MESSAGE, KEEP_ALIVE_TIMEOUT, MALFORMED_PACKET, SESSION_TAKEN_OVER
from tests.conformance.peers import Peers
from tests.conformance.statements import EVERY_STORE, statement
from tests.kit.mqtt_client import properties


@statement(
    v5="MQTT-3.1.2-7 MQTT-3.1.2-8 MQTT-3.1.2-10",
    v311="MQTT-3.1.2-8 MQTT-3.1.2-10",
    stores=EVERY_STORE,
)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_lost_connection_publishes_the_will_once(peers: Peers, version: int, qos: int) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic, version)
    client = await peers.connect(version, will=Will(topic, b"gone", qos, False))
    await client.close()
    will = await observer.take(b"gone")
    assert will.qos == qos
    # A new connection under the same name has no will any more.
    again = await peers.connect(version, client_id=client.client_id)
    await again.close()
    marker = await peers.connect(version)
    await marker.publish(topic, b"marker", 1)
    await observer.take(b"marker")


@statement(v5="MQTT-3.1.2-8", v311="MQTT-3.1.2-8")
async def test_a_reset_connection_publishes_the_will(peers: Peers, version: int) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic, version)
    client = await peers.connect(version, will=Will(topic, b"gone", 1, False))
    await client.abort()
    await observer.take(b"gone")


@statement(v5="MQTT-3.1.2-8", v311="MQTT-3.1.2-8")
async def test_a_protocol_error_publishes_the_will(peers: Peers, version: int) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic, version)
    client = await peers.connect(version, will=Will(topic, b"gone", 1, False))
    await client.send_raw(b"\x00\x00")
    await client.expect_disconnect(MALFORMED_PACKET)
    await observer.take(b"gone")


@statement(v5="MQTT-3.1.2-8 MQTT-3.1.2-22", v311="MQTT-3.1.2-8 MQTT-3.1.2-24")
async def test_a_keep_alive_timeout_publishes_the_will(peers: Peers, version: int) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic, version)
    client = await peers.connect(version, keep_alive_s=1, will=Will(topic, b"gone", 1, False))
    await client.expect_disconnect(KEEP_ALIVE_TIMEOUT)
    await observer.take(b"gone")


@statement(v5="MQTT-3.1.2-8", v311="MQTT-3.1.2-8")
async def test_a_takeover_publishes_the_will(peers: Peers, version: int) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic, version)
    client = await peers.connect(version, will=Will(topic, b"gone", 1, False))
    await peers.connect(version, client_id=client.client_id)
    await client.expect_disconnect(SESSION_TAKEN_OVER)
    await observer.take(b"gone")


@statement(
    v5="MQTT-3.1.2-8 MQTT-3.1.2-10 MQTT-3.14.4-3",
    v311="MQTT-3.1.2-8 MQTT-3.1.2-10 MQTT-3.14.4-3",
    stores=EVERY_STORE,
)
async def test_disconnect_drops_the_will(peers: Peers, version: int) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic, version)
    client = await peers.connect(version, will=Will(topic, b"gone", 1, False))
    await client.disconnect()
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"marker", 1)
    await observer.take(b"marker")


@statement(v5="MQTT-3.1.2-8")
@pytest.mark.parametrize("reason_code", [DISCONNECT_WITH_WILL_MESSAGE, 0x80, 0x98])
async def test_disconnect_with_another_reason_publishes_the_will(peers: Peers, reason_code: int) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic)
    client = await peers.connect(will=Will(topic, b"gone", 1, False))
    await client.disconnect(Disconnect(reason_code))
    await observer.take(b"gone")


@statement(v311="MQTT-3.1.2-12")
async def test_without_a_will_nothing_is_published(peers: Peers, version: int) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic, version)
    client = await peers.connect(version, will=Will(topic, b"first", 1, False))
    await client.disconnect()
    again = await peers.connect(version, client_id=client.client_id)
    await again.close()
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"marker", 1)
    await observer.take(b"marker")


@statement(v5="MQTT-3.1.2-14 MQTT-3.1.2-15", v311="MQTT-3.1.2-16 MQTT-3.1.2-17", stores=EVERY_STORE)
@pytest.mark.parametrize("retain", [False, True])
async def test_will_retain(peers: Peers, version: int, retain: bool) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic, version)
    client = await peers.connect(version, will=Will(topic, b"gone", 1, retain))
    await client.close()
    assert not (await observer.take(b"gone")).retain
    late = await peers.connect(version)
    await late.subscribe(topic)
    if retain:
        assert (await late.take(b"gone")).retain
    await late.unsubscribe(topic)
    await late.expect_nothing()


@statement(v5="MQTT-3.1.3-10 MQTT-3.1.2-9")
async def test_will_properties_are_published(peers: Peers) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic)
    pairs = [("b", "1"), ("a", "2"), ("b", "1"), ("", "")]
    sent = properties(
        payload_format_indicator=1,
        message_expiry_interval=300,
        content_type="text/plain",
        response_topic="answers",
        correlation_data=b"\x00\xff",
        user_properties=pairs,
    )
    client = await peers.connect(will=Will(topic, b"gone", 1, False, sent))
    await client.close()
    got = (await observer.take(b"gone")).properties
    assert got is not None
    assert list(got.user_properties) == pairs
    assert got.payload_format_indicator == 1
    assert got.content_type == "text/plain"
    assert got.response_topic == "answers"
    assert got.correlation_data == b"\x00\xff"
    assert got.message_expiry_interval is not None
    assert 290 <= got.message_expiry_interval <= 300
    assert got.will_delay_interval is None


def _delayed(topic: str, delay_s: int) -> Will:
    return Will(topic, b"gone", 1, False, properties(will_delay_interval=delay_s))


@statement(v5="MQTT-3.1.2-8", stores=EVERY_STORE)
async def test_a_delayed_will_comes_after_its_delay(peers: Peers) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic)
    client = await peers.connect(will=_delayed(topic, 1), session_expiry_interval=300)
    await client.close()
    await peers.connect(client_id=peers.client_id())
    await observer.expect_nothing()
    await observer.take(b"gone")


@statement(v5="MQTT-3.1.2-8 MQTT-4.1.0-2")
async def test_the_end_of_the_session_cuts_the_will_delay(peers: Peers) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic)
    client = await peers.connect(will=_delayed(topic, 1000), session_expiry_interval=1)
    await client.close()
    await observer.take(b"gone")
    again = await peers.connect(client_id=client.client_id, clean_start=False)
    assert again.connack is not None
    assert not again.connack.session_present


@statement(v5="MQTT-3.1.2-8")
async def test_a_session_that_ends_with_its_connection_has_no_will_delay(peers: Peers) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic)
    client = await peers.connect(will=_delayed(topic, 1000))
    await client.close()
    await observer.take(b"gone")


@statement(v5="MQTT-3.1.2-8 MQTT-3.1.2-4")
async def test_clean_start_ends_the_session_and_so_the_will_delay(peers: Peers) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic)
    client = await peers.connect(will=_delayed(topic, 1000), session_expiry_interval=1000)
    await client.close()
    await peers.connect(client_id=client.client_id, clean_start=True)
    await observer.take(b"gone")


@statement(v5="MQTT-3.1.3-9 MQTT-3.1.2-8", stores=EVERY_STORE)
async def test_a_reconnect_within_the_delay_stops_the_will(peers: Peers) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic)
    client = await peers.connect(will=_delayed(topic, 1), session_expiry_interval=300)
    again = await peers.connect(client_id=client.client_id, persistent=True)
    await client.expect_disconnect(SESSION_TAKEN_OVER)
    await peers.elapse(3)
    await observer.expect_nothing()
    await again.disconnect()


@statement(v5="MQTT-3.1.2-8 MQTT-3.1.3-9")
async def test_a_new_connection_brings_its_own_will(peers: Peers) -> None:
    topic = peers.topic()
    observer = await peers.subscriber(topic)
    client = await peers.connect(will=_delayed(topic, 500), session_expiry_interval=300)
    await client.close()
    again = await peers.open(V5)
    will = Will(topic, b"second", 1, False)
    values: Properties = properties(session_expiry_interval=300)
    await again.connect(Connect(V5, client.client_id, clean_start=False, will=will, properties=values))
    await again.close()
    await observer.take(b"second")
