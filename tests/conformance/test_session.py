"""Sessions: clean start, session present, expiry, takeover, resending. Sections 3.1.2, 3.2.2, 4.1 and 4.4."""

from __future__ import annotations

import pytest

from broker.codec.packets import (
    V5,
    Connect,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
)
from broker.reasons import PROTOCOL_ERROR, SESSION_TAKEN_OVER
from tests.conformance.peers import Peers
from tests.conformance.statements import EVERY_STORE, statement
from tests.kit.mqtt_client import MqttClient, properties


def present(client: MqttClient) -> bool:
    """Return Session Present of the client's CONNACK."""
    assert client.connack is not None
    return client.connack.session_present


@statement(
    v5="MQTT-3.1.2-4 MQTT-3.1.4-4 MQTT-3.2.2-2",
    v311="MQTT-3.1.2-6 MQTT-3.1.4-3 MQTT-3.2.2-1",
    stores=EVERY_STORE,
)
async def test_clean_start_discards_the_session(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version, persistent=True)
    await client.subscribe(topic)
    await client.disconnect()
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"queued", 1)
    clean = await peers.connect(version, client_id=client.client_id)
    assert not present(clean)
    await publisher.publish(topic, b"unheard", 1)
    await clean.expect_nothing()
    # And nothing of the old session is left behind for the next one.
    await clean.disconnect()
    again = await peers.connect(version, client_id=client.client_id, persistent=True)
    assert not present(again)
    await again.expect_nothing()


@statement(
    v5="MQTT-3.1.2-5 MQTT-3.1.2-23 MQTT-3.2.2-3 MQTT-3.1.3-2 MQTT-4.5.0-1",
    v311="MQTT-3.1.2-4 MQTT-3.1.2-5 MQTT-3.2.2-2 MQTT-3.1.3-2 MQTT-4.1.0-1 MQTT-4.5.0-1",
    stores=EVERY_STORE,
)
async def test_a_session_is_resumed_with_its_subscriptions_and_messages(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version, persistent=True)
    await client.subscribe(topic)
    await client.disconnect()
    publisher = await peers.connect(version)
    for number in range(6):
        await publisher.publish(topic, b"%d" % number, 1 + number % 2)
    again = await peers.connect(version, client_id=client.client_id, persistent=True)
    assert present(again)
    for number in range(6):
        received = await again.take(b"%d" % number)
        assert received.qos == 1 + number % 2
        assert not received.dup
    await publisher.publish(topic, b"live", 1)
    await again.take(b"live")


@statement(v5="MQTT-3.1.2-6 MQTT-3.2.2-3", v311="MQTT-3.1.2-4 MQTT-3.2.2-3", stores=EVERY_STORE)
async def test_without_a_session_a_new_one_is_made(peers: Peers, version: int) -> None:
    client = await peers.connect(version, persistent=True)
    assert not present(client)


@statement(v5="MQTT-3.1.2-6", v311="MQTT-3.1.2-6")
async def test_a_session_that_was_not_kept_is_not_present(peers: Peers, version: int) -> None:
    client = await peers.connect(version)
    await client.subscribe(peers.topic())
    await client.disconnect()
    again = await peers.connect(version, client_id=client.client_id, persistent=True)
    assert not present(again)
    publisher = await peers.connect(version)
    await publisher.publish(peers.topic(), b"x", 1)
    await again.expect_nothing()


@statement(v311="MQTT-3.1.2-7")
async def test_retained_messages_outlive_the_session(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version)
    await client.publish(topic, b"kept", 1, retain=True)
    await client.disconnect()
    await (await peers.connect(version, client_id=client.client_id)).disconnect()
    late = await peers.subscriber(topic, version)
    await late.take(b"kept")


@statement(v5="MQTT-4.1.0-1 MQTT-3.1.2-23", v311="MQTT-4.1.0-2", stores=EVERY_STORE)
async def test_a_takeover_hands_the_session_over(peers: Peers, version: int) -> None:
    topic = peers.topic()
    old = await peers.connect(version, persistent=True)
    await old.subscribe(topic)
    new = await peers.connect(version, client_id=old.client_id, persistent=True)
    await old.expect_disconnect(SESSION_TAKEN_OVER)
    assert present(new)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", 1)
    await new.take(b"x")


@statement(v5="MQTT-4.1.0-2", stores=EVERY_STORE)
async def test_an_expired_session_is_gone(peers: Peers) -> None:
    client = await peers.connect(session_expiry_interval=1)
    await client.subscribe(peers.topic())
    await client.disconnect()
    await peers.elapse(7)
    again = await peers.connect(client_id=client.client_id, persistent=True)
    assert not present(again)


@statement(v5="MQTT-4.1.0-2 MQTT-3.1.2-23")
@pytest.mark.parametrize(("connected", "at_the_end", "kept"), [(0xFFFFFFFF, 0, False), (1000, 2000, True)])
async def test_disconnect_changes_the_session_expiry(peers: Peers, connected: int, at_the_end: int, kept: bool) -> None:
    client = await peers.connect(session_expiry_interval=connected)
    await client.disconnect(Disconnect(0, properties(session_expiry_interval=at_the_end)))
    again = await peers.connect(client_id=client.client_id, persistent=True)
    assert present(again) == kept


@statement(v5="MQTT-4.13.1-1")
async def test_a_session_without_expiry_cannot_get_one_in_disconnect(peers: Peers) -> None:
    client = await peers.connect(session_expiry_interval=0)
    await client.send(Disconnect(0, properties(session_expiry_interval=5)))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(
    v5="MQTT-4.4.0-1 MQTT-3.3.1-1 MQTT-4.3.2-3 MQTT-4.3.3-3",
    v311="MQTT-4.4.0-1 MQTT-3.3.1-1 MQTT-4.3.2-1 MQTT-4.3.3-1 MQTT-4.6.0-1",
    stores=EVERY_STORE,
)
async def test_unacknowledged_messages_are_sent_again_in_order(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version, persistent=True)
    await client.subscribe(topic)
    publisher = await peers.connect(version)
    for number in range(5):
        await publisher.publish(topic, b"%d" % number, 1 + number % 2)
    first = await client.collect(Publish, 5)
    assert not any(publish.dup for publish in first)
    await client.send(Puback(first[2].packet_id))
    await client.expect_nothing()
    await client.close()
    again = await peers.connect(version, client_id=client.client_id, persistent=True)
    second = await again.collect(Publish, 4)
    assert all(publish.dup for publish in second)
    expected = [(p.packet_id, p.qos, p.payload) for number, p in enumerate(first) if number != 2]
    assert [(p.packet_id, p.qos, p.payload) for p in second] == expected
    await again.expect_nothing()


@statement(v5="MQTT-4.4.0-1", v311="MQTT-4.4.0-1", stores=EVERY_STORE)
async def test_messages_are_sent_again_after_a_takeover(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version, persistent=True)
    await client.subscribe(topic)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", 1)
    first = await client.expect(Publish)
    again = await peers.connect(version, client_id=client.client_id, persistent=True)
    second = await again.expect(Publish)
    assert (second.dup, second.packet_id, second.payload) == (True, first.packet_id, b"x")


@statement(
    v5="MQTT-4.4.0-1 MQTT-4.3.3-5 MQTT-4.3.3-6",
    v311="MQTT-4.4.0-1 MQTT-4.3.3-1",
    stores=EVERY_STORE,
)
async def test_after_pubrec_only_pubrel_is_sent_again(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version, persistent=True)
    await client.subscribe(topic)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", 2)
    publish = await client.expect(Publish)
    await client.send(Pubrec(publish.packet_id))
    assert (await client.expect(Pubrel)).packet_id == publish.packet_id
    await client.close()
    for _ in range(2):
        client = await peers.connect(version, client_id=client.client_id, persistent=True)
        assert (await client.expect(Pubrel)).packet_id == publish.packet_id
        await client.expect_nothing()
        await client.close()
    client = await peers.connect(version, client_id=client.client_id, persistent=True)
    await client.expect(Pubrel)
    await client.send(Pubcomp(publish.packet_id))
    await client.disconnect()
    last = await peers.connect(version, client_id=client.client_id, persistent=True)
    await publisher.publish(topic, b"marker", 1)
    await last.take(b"marker")


@statement(v311="MQTT-4.6.0-4", v5="MQTT-4.4.0-1")
async def test_pubrels_are_sent_again_in_the_order_of_the_pubrecs(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version, persistent=True)
    await client.subscribe(topic)
    publisher = await peers.connect(version)
    for number in range(4):
        await publisher.publish(topic, b"%d" % number, 2)
    packet_ids = [publish.packet_id for publish in await client.collect(Publish, 4)]
    for packet_id in packet_ids:
        await client.send(Pubrec(packet_id))
    assert [release.packet_id for release in await client.collect(Pubrel, 4)] == packet_ids
    await client.close()
    again = await peers.connect(version, client_id=client.client_id, persistent=True)
    assert [release.packet_id for release in await again.collect(Pubrel, 4)] == packet_ids


@statement(v5="MQTT-4.4.0-1 MQTT-4.3.2-3", v311="MQTT-4.3.2-1")
async def test_nothing_is_sent_again_on_a_connection_that_lives(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.subscriber(topic, version)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", 1)
    await publisher.publish(topic, b"y", 2)
    await client.collect(Publish, 2)
    await peers.elapse(2)
    await client.expect_nothing()


@statement(v5="MQTT-4.4.0-2 MQTT-4.3.3-4", stores=EVERY_STORE)
@pytest.mark.parametrize("qos", [1, 2])
async def test_a_refused_message_is_not_sent_again(peers: Peers, qos: int) -> None:
    topic = peers.topic()
    client = await peers.connect(persistent=True)
    await client.subscribe(topic)
    publisher = await peers.connect()
    await publisher.publish(topic, b"refused", qos)
    publish = await client.expect(Publish)
    answer = Puback(publish.packet_id, 0x83) if qos == 1 else Pubrec(publish.packet_id, 0x83)
    await client.send(answer)
    await client.expect_nothing()
    await client.close()
    again = await peers.connect(client_id=client.client_id, persistent=True)
    await publisher.publish(topic, b"marker", 1)
    await again.take(b"marker")


@statement(
    v5="MQTT-4.3.3-10 MQTT-4.4.0-1",
    v311="MQTT-4.3.3-2 MQTT-4.4.0-1",
    stores=EVERY_STORE,
)
@pytest.mark.parametrize("kept", [True, False], ids=["persistent", "ephemeral"])
async def test_inbound_qos_2_is_remembered_over_a_reconnect(peers: Peers, version: int, kept: bool) -> None:
    topic = peers.topic()
    subscriber = await peers.connect(version, persistent=kept)
    await subscriber.subscribe(topic)
    publisher = await peers.connect(version, persistent=True)
    await publisher.send(Publish(topic, b"once", 2, False, False, 9))
    await publisher.expect(Pubrec)
    await publisher.close()
    again = await peers.connect(version, client_id=publisher.client_id, persistent=True)
    await again.send(Publish(topic, b"once", 2, False, True, 9))
    assert (await again.expect(Pubrec)).packet_id == 9
    await again.send(Pubrel(9))
    assert (await again.expect(Pubcomp)).reason_code == 0
    await subscriber.take(b"once")
    await again.publish(topic, b"marker", 2)
    await subscriber.take(b"marker")


@statement(v5="MQTT-3.1.2-5 MQTT-3.1.2-23", v311="MQTT-3.1.2-4")
async def test_a_session_survives_a_change_of_version(peers: Peers, version: int) -> None:
    topic = peers.topic()
    client = await peers.connect(version, persistent=True)
    await client.subscribe(topic)
    await client.disconnect()
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", 1, properties=properties(content_type="c") if version == V5 else None)
    other = await peers.connect(9 - version, client_id=client.client_id, persistent=True)
    assert present(other)
    await other.take(b"x")


@statement(v5="MQTT-3.1.2-23")
async def test_version_5_without_an_expiry_interval_keeps_nothing(peers: Peers) -> None:
    client = await peers.open()
    await client.connect(Connect(V5, peers.client_id(), clean_start=False))
    await client.disconnect()
    again = await peers.connect(client_id=client.client_id, persistent=True)
    assert not present(again)
