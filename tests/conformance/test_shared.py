"""Shared subscriptions: section 4.8 of MQTT 5.0."""

from __future__ import annotations

import pytest

from broker.codec.packets import V5, Puback, Pubcomp, Publish, Pubrec, Pubrel, SubscriptionRequest
from broker.reasons import TOPIC_FILTER_INVALID
from tests.conformance.peers import Peers
from tests.conformance.statements import EVERY_STORE, statement
from tests.kit.mqtt_client import MqttClient

BAD_FILTERS = (
    *("$share/", "$share/g", "$share//t", "$share/g/", "$share/g+/t", "$share/g#/t", "$share/+/t", "$share/#/t"),
    *("$share/#", "$share/g/a#"),
)


async def received(*clients: MqttClient) -> list[list[bytes]]:
    """Return what each client has got so far, acknowledged."""
    payloads: list[list[bytes]] = []
    for client in clients:
        client.auto_ack = True
        payloads.append([packet.payload for packet in await client.drain() if isinstance(packet, Publish)])
    return payloads


async def members(peers: Peers, count: int, topic: str, version: int = V5, qos: int = 1) -> list[MqttClient]:
    """Return clients that share a subscription to the topic."""
    return [await peers.subscriber(f"$share/group/{topic}", version, qos) for _ in range(count)]


@statement(v5="MQTT-4.8.2-1 MQTT-4.8.2-2", stores=EVERY_STORE)
@pytest.mark.parametrize("spoken", [4, 5])
async def test_one_member_gets_each_message(peers: Peers, spoken: int) -> None:
    topic = peers.topic()
    group = await members(peers, 3, topic, spoken)
    other = await peers.subscriber(f"$share/other/{topic}", spoken, 1)
    plain = await peers.subscriber(topic, spoken, 1)
    publisher = await peers.connect(spoken)
    sent = [b"%d" % n for n in range(9)]
    for payload in sent:
        await publisher.publish(topic, payload, 1)
    got: list[bytes] = []
    for client in group:
        client.auto_ack = True
    for client in (other, plain):
        assert [(await client.take()).payload for _ in sent] == sent
    while len(got) < len(sent):
        for payloads in await received(*group):
            got += payloads
    assert sorted(got) == sent


@statement(v5="MQTT-4.8.2-1 MQTT-4.8.2-2")
@pytest.mark.parametrize("topic_filter", BAD_FILTERS)
async def test_bad_shared_filters_are_refused(peers: Peers, topic_filter: str) -> None:
    client = await peers.connect()
    suback = await client.subscribe(topic_filter)
    assert list(suback.reason_codes) == [TOPIC_FILTER_INVALID]


@statement(v5="MQTT-4.8.2-1")
async def test_filters_that_only_look_shared_are_plain(peers: Peers) -> None:
    client = await peers.connect()
    for topic in ("$shared/g/" + peers.topic(), "$SHARE/g/" + peers.topic()):
        assert list((await client.subscribe(topic, qos=1)).reason_codes) == [1]
        publisher = await peers.connect()
        await publisher.publish(topic, b"x", 1)
        await client.take(b"x")


@statement(v5="MQTT-4.8.2-3")
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("published", [0, 1, 2])
async def test_members_get_their_own_qos(peers: Peers, granted: int, published: int) -> None:
    topic = peers.topic()
    (member,) = await members(peers, 1, topic, qos=granted)
    publisher = await peers.connect()
    await publisher.publish(topic, b"x", published)
    assert (await member.take(b"x")).qos == min(granted, published)


@statement(v5="MQTT-3.3.1-9")
async def test_a_shared_subscription_gets_no_retained_messages(peers: Peers) -> None:
    topic = peers.topic()
    publisher = await peers.connect()
    await publisher.publish(topic, b"kept", 1, retain=True)
    (member,) = await members(peers, 1, topic)
    await publisher.publish(topic, b"live", 1)
    await member.take(b"live")


async def _cut_off(peers: Peers, topic: str, qos: int) -> tuple[MqttClient, MqttClient, Publish]:
    """Two members with sessions; one has been sent a message and loses its connection before acknowledging."""
    shared = SubscriptionRequest(f"$share/group/{topic}", qos)
    holder = await peers.connect(persistent=True, receive_maximum=5)
    await holder.subscribe(shared)
    publisher = await peers.connect()
    await publisher.publish(topic, b"x", qos)
    publish = await holder.expect(Publish)
    other = await peers.connect(persistent=True)
    await other.subscribe(shared)
    await holder.close()
    return holder, other, publish


@statement(v5="MQTT-4.8.2-4", stores=EVERY_STORE)
async def test_qos_2_is_completed_with_the_member_that_had_it(peers: Peers) -> None:
    topic = peers.topic()
    holder, other, publish = await _cut_off(peers, topic, 2)
    await other.expect_nothing()
    again = await peers.connect(client_id=holder.client_id, persistent=True)
    second = await again.expect(Publish)
    assert (second.packet_id, second.payload, second.dup) == (publish.packet_id, b"x", True)
    await again.send(Pubrec(second.packet_id))
    await again.expect(Pubrel)
    await again.send(Pubcomp(second.packet_id))
    await again.expect_nothing()
    await other.expect_nothing()


@statement(v5="MQTT-4.8.2-5", stores=EVERY_STORE)
async def test_qos_2_goes_to_nobody_else_when_the_session_ends(peers: Peers) -> None:
    topic = peers.topic()
    holder, other, _ = await _cut_off(peers, topic, 2)
    ender = await peers.connect(client_id=holder.client_id, clean_start=True)
    await ender.expect_nothing()
    publisher = await peers.connect()
    await publisher.publish(topic, b"marker", 2)
    await other.take(b"marker")
    await other.expect_nothing()


@statement(v5="MQTT-4.8.2-6", stores=EVERY_STORE)
@pytest.mark.parametrize("qos", [1, 2])
async def test_a_refused_message_goes_to_nobody_else(peers: Peers, qos: int) -> None:
    topic = peers.topic()
    shared = SubscriptionRequest(f"$share/group/{topic}", qos)
    first = await peers.connect()
    await first.subscribe(shared)
    publisher = await peers.connect()
    await publisher.publish(topic, b"refused", qos)
    publish = await first.expect(Publish)
    second = await peers.connect()
    await second.subscribe(shared)
    await first.send(Puback(publish.packet_id, 0x83) if qos == 1 else Pubrec(publish.packet_id, 0x83))
    await first.expect_nothing()
    await first.disconnect()
    await publisher.publish(topic, b"marker", qos)
    await second.take(b"marker")
    await second.expect_nothing()
