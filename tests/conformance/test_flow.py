"""Receive Maximum and Maximum Packet Size: sections 3.1.2.11, 3.2.2.3, 3.3.4 and 4.9."""

from __future__ import annotations

import pytest

from broker.codec.packets import Connect, Puback, Pubcomp, Publish, Pubrec, Pubrel, Suback
from broker.reasons import (
    BAD_AUTHENTICATION_METHOD,
    PACKET_IDENTIFIER_NOT_FOUND,
    PACKET_TOO_LARGE,
    RECEIVE_MAXIMUM_EXCEEDED,
)
from tests.conformance import wire
from tests.conformance.peers import Peers
from tests.conformance.statements import EVERY_STORE, statement
from tests.kit.mqtt_client import MqttClient, frame, properties


def announced(client: MqttClient, name: str) -> int:
    """Return a number that the server announced in CONNACK."""
    assert client.connack is not None
    assert client.connack.properties is not None
    value = getattr(client.connack.properties, name)
    assert isinstance(value, int)
    return value


@statement(v5="MQTT-3.3.4-9 MQTT-4.9.0-1 MQTT-4.9.0-2", stores=EVERY_STORE)
@pytest.mark.parametrize("maximum", [1, 2, 3])
async def test_no_more_than_receive_maximum_are_open(peers: Peers, maximum: int) -> None:
    topic = peers.topic()
    client = await peers.connect(receive_maximum=maximum)
    await client.subscribe(topic)
    publisher = await peers.connect()
    for n in range(6):
        await publisher.publish(topic, b"%d" % n, 1)
    for n in range(6):
        if n == 0:
            window = await client.collect(Publish, maximum)
            await client.expect_nothing()
        oldest = window.pop(0)
        assert oldest.payload == b"%d" % n
        await client.send(Puback(oldest.packet_id))
        if n + maximum < 6:
            window.append(await client.expect(Publish))
        await client.expect_nothing()


@statement(v5="MQTT-3.3.4-9 MQTT-4.9.0-2", stores=EVERY_STORE)
async def test_qos_2_holds_its_place_until_pubcomp(peers: Peers) -> None:
    topic = peers.topic()
    client = await peers.connect(receive_maximum=1)
    await client.subscribe(topic)
    publisher = await peers.connect()
    await publisher.publish(topic, b"first", 2)
    await publisher.publish(topic, b"second", 2)
    first = await client.expect(Publish)
    await client.send(Pubrec(first.packet_id))
    await client.expect(Pubrel)
    await client.expect_nothing()
    await client.send(Pubcomp(first.packet_id))
    second = await client.expect(Publish)
    assert second.payload == b"second"


@statement(v5="MQTT-3.3.4-9 MQTT-4.9.0-2")
async def test_a_refusing_pubrec_frees_its_place(peers: Peers) -> None:
    topic = peers.topic()
    client = await peers.connect(receive_maximum=1)
    await client.subscribe(topic)
    publisher = await peers.connect()
    for payload in (b"first", b"second"):
        await publisher.publish(topic, payload, 2)
    first = await client.expect(Publish)
    await client.send(Pubrec(first.packet_id, 0x80))
    assert (await client.expect(Publish)).payload == b"second"


@statement(v5="MQTT-3.3.4-9 MQTT-4.9.0-2")
async def test_qos_0_needs_no_place(peers: Peers) -> None:
    topic = peers.topic()
    client = await peers.connect(receive_maximum=1)
    await client.subscribe(topic)
    publisher = await peers.connect()
    await publisher.publish(topic, b"one", 1)
    await publisher.publish(topic, b"zero", 0)
    assert (await client.expect(Publish)).payload == b"one"
    assert (await client.expect(Publish)).payload == b"zero"


@statement(v5="MQTT-3.3.4-9", stores=EVERY_STORE)
async def test_receive_maximum_holds_on_a_resumed_session(peers: Peers) -> None:
    topic = peers.topic()
    client = await peers.connect(persistent=True)
    await client.subscribe(topic)
    await client.disconnect()
    publisher = await peers.connect()
    for n in range(4):
        await publisher.publish(topic, b"%d" % n, 1)
    again = await peers.connect(client_id=client.client_id, persistent=True, receive_maximum=2)
    window = await again.collect(Publish, 2)
    await again.expect_nothing()
    await again.send(Puback(window[0].packet_id))
    assert (await again.expect(Publish)).payload == b"2"


@statement(v5="MQTT-3.3.4-10 MQTT-4.9.0-3", stores=EVERY_STORE)
async def test_a_full_window_delays_nothing_but_publish(peers: Peers) -> None:
    topic = peers.topic()
    client = await peers.connect(receive_maximum=1)
    await client.subscribe(topic)
    publisher = await peers.connect()
    for _ in range(3):
        await publisher.publish(topic, b"x", 1)
    await client.expect(Publish)
    suback = await client.subscribe(peers.topic("other"))
    assert list(suback.reason_codes) == [2]
    await client.publish(peers.topic("elsewhere"), b"", 1)
    await client.publish(peers.topic("elsewhere"), b"", 2)
    await client.unsubscribe(peers.topic("other"))
    await client.send(Pubrel(500))
    assert (await client.expect(Pubcomp)).reason_code == PACKET_IDENTIFIER_NOT_FOUND
    await client.expect_nothing()


@statement(v5="MQTT-3.3.4-7")
async def test_a_client_beyond_the_servers_receive_maximum_is_disconnected(peers: Peers) -> None:
    client = await peers.connect()
    maximum = announced(client, "receive_maximum")
    # QoS 2 without PUBREL stays open, so the count is exact however fast the server answers.
    await client.send(*[Publish("t", b"", 2, False, False, n) for n in range(1, maximum + 1)])
    await client.collect(Pubrec, maximum)
    await client.expect_nothing()
    await client.send(Publish("t", b"", 2, False, False, maximum + 1))
    await client.expect_disconnect(RECEIVE_MAXIMUM_EXCEEDED)


@statement(v5="MQTT-3.3.4-7", stores=EVERY_STORE)
async def test_a_client_within_the_servers_receive_maximum_is_served(peers: Peers) -> None:
    client = await peers.connect()
    maximum = announced(client, "receive_maximum")
    for _ in range(3):
        await client.send(*[Publish("t", b"", 1, False, False, n) for n in range(1, maximum + 1)])
        await client.collect(Puback, maximum)


@statement(v5="MQTT-3.2.2-15 MQTT-4.13.1-1")
async def test_a_packet_above_the_servers_maximum_size_is_refused(peers: Peers) -> None:
    client = await peers.connect()
    maximum = announced(client, "maximum_packet_size")
    head = wire.publish(5, b"t", b"x" * maximum)[:100]
    await client.send_raw(head)
    await client.expect_disconnect(PACKET_TOO_LARGE)


@statement(v5="MQTT-3.2.2-15")
async def test_a_packet_of_the_servers_maximum_size_is_served(peers: Peers) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic)
    client = await peers.connect()
    maximum = announced(client, "maximum_packet_size")
    # First byte, three or four bytes of length, topic with its length, property length.
    payload = b"x" * (maximum - 1 - 3 - 2 - len(topic) - 1)
    packet = wire.publish(5, topic.encode(), payload)
    assert len(packet) == maximum
    await client.send_raw(packet)
    assert (await subscriber.take()).payload == payload


@statement(v5="MQTT-3.1.2-24 MQTT-3.1.2-25", stores=EVERY_STORE)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_message_that_is_too_large_is_dropped_as_if_delivered(peers: Peers, qos: int) -> None:
    topic = peers.topic()
    client = await peers.connect(maximum_packet_size=200, receive_maximum=1, persistent=True)
    await client.subscribe(topic)
    other = await peers.subscriber(topic)
    publisher = await peers.connect()
    for _ in range(3):
        await publisher.publish(topic, b"x" * 300, qos)
    await publisher.publish(topic, b"small", qos)
    await client.take(b"small")
    for _ in range(3):
        await other.take(b"x" * 300)
    await client.disconnect()
    # It does not come back to a connection with room for it.
    again = await peers.connect(client_id=client.client_id, persistent=True)
    await publisher.publish(topic, b"marker", 1)
    await again.take(b"marker")


@statement(v5="MQTT-3.1.2-24")
async def test_a_packet_of_exactly_the_maximum_is_sent(peers: Peers) -> None:
    topic = peers.topic()
    publisher = await peers.connect()
    payload = b"x" * 50
    size = len(wire.publish(5, topic.encode(), payload, first_byte=0x32, packet_id=1))
    exact = await peers.connect(maximum_packet_size=size)
    await exact.subscribe(topic)
    small = await peers.connect(maximum_packet_size=size - 1)
    await small.subscribe(topic)
    await publisher.publish(topic, payload, 1)
    await publisher.publish(topic, b"marker", 1)
    await exact.take(payload)
    assert len(exact.last_raw) == size
    await small.take(b"marker")


@statement(v5="MQTT-3.1.2-24 MQTT-3.1.2-25")
async def test_the_maximum_holds_for_queued_and_retained_messages(peers: Peers) -> None:
    topic, retained = peers.topic(), peers.topic("retained")
    client = await peers.connect(persistent=True)
    await client.subscribe(topic)
    await client.disconnect()
    publisher = await peers.connect()
    for payload in (b"x" * 300, b"small"):
        await publisher.publish(topic, payload, 1)
    await publisher.publish(retained, b"x" * 300, 1, retain=True)
    await publisher.publish(retained + "/2", b"kept", 1, retain=True)
    again = await peers.connect(client_id=client.client_id, persistent=True, maximum_packet_size=200)
    await again.take(b"small")
    await again.subscribe(retained + "/#")
    await again.take(b"kept")


# What a small client gets answered with: every packet of the server that can carry a reason string.
@statement(
    v5="MQTT-3.4.2-2 MQTT-3.4.2-3 MQTT-3.5.2-2 MQTT-3.5.2-3 MQTT-3.6.2-2 MQTT-3.6.2-3 MQTT-3.7.2-2 MQTT-3.7.2-3 "
    "MQTT-3.9.2-1 MQTT-3.9.2-2 MQTT-3.11.2-1 MQTT-3.11.2-2 MQTT-3.1.2-24",
)
async def test_acknowledgements_stay_within_a_small_maximum(peers: Peers) -> None:
    small = 60
    client = await peers.connect(maximum_packet_size=small, request_problem_information=1)
    topic = peers.topic()
    await client.send(
        Publish(topic, b"", 1, False, False, 1),
        Publish(topic, b"", 2, False, False, 2),
        Pubrel(99),
        Pubrec(98),
    )
    await client.send_raw(wire.subscribe(5, b"a/#/" + b"x" * 100, packet_id=3))
    await client.send_raw(wire.unsubscribe(5, b"y" * 100, packet_id=4))
    kinds = set()
    for _ in range(6):
        packet = await client.receive()
        kinds.add(packet.kind)
        assert len(client.last_raw) <= small
    assert kinds == {4, 5, 6, 7, 9, 11}


@statement(v5="MQTT-3.14.2-3 MQTT-3.14.2-4 MQTT-3.1.2-24")
@pytest.mark.parametrize("maximum", [4, 60])
async def test_disconnect_stays_within_a_small_maximum(peers: Peers, maximum: int) -> None:
    client = await peers.open()
    connack_fits = maximum >= 60
    await client.send(Connect(5, peers.client_id(), properties=properties(maximum_packet_size=maximum)))
    if not connack_fits:
        # A CONNACK that says what the server has to say does not fit: the connection cannot be served.
        await client.expect_closed()
        return
    await client.receive()
    await client.send_raw(wire.publish(5, b"t" * 300 + b"/#"))
    await client.expect_disconnect(0x90)
    assert len(client.last_raw) <= maximum


@statement(v5="MQTT-3.2.2-19 MQTT-3.2.2-20 MQTT-3.1.2-24")
async def test_a_refusing_connack_stays_within_a_small_maximum(peers: Peers) -> None:
    client = await peers.open()
    values = properties(maximum_packet_size=8, authentication_method="NO-SUCH-METHOD-" + "X" * 100)
    connack = await client.connect(Connect(5, peers.client_id(), properties=values))
    assert connack.reason_code == BAD_AUTHENTICATION_METHOD
    assert len(client.last_raw) <= 8
    await client.expect_closed()


@statement(v5="MQTT-3.1.2-29")
async def test_without_problem_information_acknowledgements_carry_none(peers: Peers) -> None:
    topic = peers.topic()
    client = await peers.connect(request_problem_information=0)
    await client.send(
        Publish(topic, b"", 1, False, False, 1),
        Publish(topic, b"", 2, False, False, 2),
        Pubrel(99),
        Pubrec(98),
    )
    await client.send_raw(wire.subscribe(5, b"a/#/b", packet_id=3))
    await client.send_raw(wire.unsubscribe(5, b"y", packet_id=4))
    for _ in range(6):
        packet = await client.receive()
        assert getattr(packet, "properties", None) is None
    # PUBLISH keeps its own.
    await client.subscribe(topic)
    publisher = await peers.connect()
    await publisher.publish(topic, b"", 0, properties=properties(user_properties=[("a", "b")]))
    received = await client.expect(Publish)
    assert received.properties is not None


@statement(v5="MQTT-3.1.2-28")
@pytest.mark.parametrize("asked", [None, 0])
async def test_response_information_is_sent_only_if_asked_for(peers: Peers, asked: int | None) -> None:
    client = await peers.connect(request_response_information=asked)
    assert client.connack is not None
    assert client.connack.properties is None or client.connack.properties.response_information is None
    curious = await peers.connect(request_response_information=1)
    assert curious.connack is not None
    assert curious.connack.properties is not None
    assert curious.connack.properties.response_information


@statement(v5="MQTT-3.8.4-1 MQTT-4.9.0-3")
async def test_suback_carries_the_reason_of_a_failure_where_it_may(peers: Peers) -> None:
    client = await peers.connect(request_problem_information=1)
    await client.send_raw(wire.subscribe(5, b"a/#/b", packet_id=3))
    assert (await client.expect(Suback)).reason_codes[0] == 0x8F
    assert frame(0x90, client.last_raw[2:]) == client.last_raw
