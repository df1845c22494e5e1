"""Retained messages: section 3.3.1.3 of both standards."""

from __future__ import annotations

import pytest

from broker.codec.packets import Suback, Subscribe, SubscriptionRequest
from tests.conformance.peers import Peers
from tests.conformance.statements import EVERY_STORE, statement
from tests.kit.mqtt_client import MqttClient, properties


async def no_retained(peers: Peers, client: MqttClient) -> None:
    """The client gets no retained message any more: those of a later subscription come first otherwise."""
    marker = peers.topic(f"marker{client.next_packet_id()}")
    publisher = await peers.connect(client.version)
    await publisher.publish(marker, b"marker", 1, retain=True)
    await client.subscribe(marker, qos=0)
    await client.take(b"marker")
    await client.expect_nothing()


@statement(
    v5="MQTT-3.3.1-5 MQTT-3.3.1-9",
    v311="MQTT-3.3.1-5 MQTT-3.3.1-6 MQTT-3.3.1-7 MQTT-3.3.1-8",
    stores=EVERY_STORE,
)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_the_last_retained_message_goes_to_new_subscribers(peers: Peers, version: int, qos: int) -> None:
    topic = peers.topic()
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"first", 2, retain=True)
    await publisher.publish(topic, b"last", qos, retain=True)
    subscriber = await peers.connect(version)
    await subscriber.subscribe(topic)
    received = await subscriber.take(b"last")
    assert received.retain
    assert received.qos == qos
    await no_retained(peers, subscriber)


@statement(v5="MQTT-3.3.1-9", v311="MQTT-3.3.1-6", stores=EVERY_STORE)
async def test_every_matching_topic_is_sent(peers: Peers, version: int) -> None:
    publisher = await peers.connect(version)
    names = {peers.topic(f"{a}/{b}") for a in "xyz" for b in "12345"}
    for name in names:
        await publisher.publish(name, name.encode(), 1, retain=True)
    subscriber = await peers.connect(version)
    await subscriber.subscribe(peers.topic("#"))
    received = [await subscriber.take() for _ in names]
    assert {publish.topic_name for publish in received} == names
    one = await peers.connect(version)
    await one.subscribe(peers.topic("+/3"))
    assert {(await one.take()).topic_name for _ in "xyz"} == {peers.topic(f"{a}/3") for a in "xyz"}
    await no_retained(peers, one)


@statement(
    v5="MQTT-3.3.1-6 MQTT-3.3.1-7",
    v311="MQTT-3.3.1-10 MQTT-3.3.1-11",
    stores=EVERY_STORE,
)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_an_empty_retained_message_removes(peers: Peers, version: int, qos: int) -> None:
    topic = peers.topic()
    established = await peers.subscriber(topic, version)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"kept", 1, retain=True)
    await publisher.publish(topic, b"", qos, retain=True)
    await established.take(b"kept")
    removal = await established.take(b"")
    assert not removal.retain
    late = await peers.connect(version)
    await late.subscribe(topic)
    await no_retained(peers, late)


@statement(v5="MQTT-3.3.1-7", v311="MQTT-3.3.1-11")
async def test_an_empty_retained_message_is_not_stored(peers: Peers, version: int) -> None:
    topic = peers.topic()
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"", 1, retain=True)
    late = await peers.connect(version)
    await late.subscribe(topic)
    await no_retained(peers, late)


@statement(v5="MQTT-3.3.1-8", v311="MQTT-3.3.1-12", stores=EVERY_STORE)
@pytest.mark.parametrize("payload", [b"other", b""])
async def test_without_retain_nothing_is_stored_or_removed(peers: Peers, version: int, payload: bytes) -> None:
    topic = peers.topic()
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"kept", 1, retain=True)
    await publisher.publish(topic, payload, 1)
    late = await peers.connect(version)
    await late.subscribe(topic)
    assert (await late.take(b"kept")).retain
    await no_retained(peers, late)


@statement(v5="MQTT-3.3.1-12", v311="MQTT-3.3.1-9")
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_established_subscriptions_get_retain_0(peers: Peers, version: int, qos: int) -> None:
    topic = peers.topic()
    subscriber = await peers.subscriber(topic, version)
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"x", qos, retain=True)
    assert not (await subscriber.take(b"x")).retain
    await publisher.publish(topic, b"y", qos)
    assert not (await subscriber.take(b"y")).retain


@statement(v5="MQTT-3.3.1-13", stores=EVERY_STORE)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_retain_as_published(peers: Peers, qos: int) -> None:
    topic = peers.topic()
    subscriber = await peers.connect()
    await subscriber.subscribe(SubscriptionRequest(topic, 2, retain_as_published=True))
    publisher = await peers.connect()
    for retain in (True, False):
        await publisher.publish(topic, b"x", qos, retain=retain)
        assert (await subscriber.take(b"x")).retain == retain


@statement(v5="MQTT-3.3.1-12 MQTT-3.3.1-13")
async def test_retain_as_published_holds_for_queued_messages(peers: Peers) -> None:
    plain, keeping = peers.topic("plain"), peers.topic("keeping")
    subscriber = await peers.connect(persistent=True)
    await subscriber.subscribe(SubscriptionRequest(keeping, 1, retain_as_published=True), plain)
    await subscriber.disconnect()
    publisher = await peers.connect()
    for name in (plain, keeping):
        await publisher.publish(name, b"x", 1, retain=True)
    again = await peers.connect(client_id=subscriber.client_id, persistent=True)
    received = {p.topic_name: p.retain for p in [await again.take(), await again.take()]}
    assert received == {plain: False, keeping: True}


@statement(v5="MQTT-3.3.1-12 MQTT-3.3.1-13")
async def test_retain_as_published_of_another_subscriber_changes_nothing(peers: Peers) -> None:
    topic = peers.topic()
    plain = await peers.subscriber(topic)
    keeping = await peers.connect()
    await keeping.subscribe(SubscriptionRequest(topic, 2, retain_as_published=True))
    publisher = await peers.connect()
    for qos in (0, 1, 2):
        await publisher.publish(topic, b"x", qos, retain=True)
        assert not (await plain.take(b"x")).retain
        assert (await keeping.take(b"x")).retain


@statement(v5="MQTT-3.3.1-9 MQTT-3.8.4-4", v311="MQTT-3.8.4-3", stores=EVERY_STORE)
async def test_subscribing_again_sends_retained_messages_again(peers: Peers, version: int) -> None:
    topic = peers.topic()
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"kept", 1, retain=True)
    subscriber = await peers.connect(version)
    for _ in range(3):
        await subscriber.subscribe(topic)
        assert (await subscriber.take(b"kept")).retain


@statement(v5="MQTT-3.3.1-10", stores=EVERY_STORE)
async def test_retain_handling_1_sends_for_new_subscriptions_only(peers: Peers) -> None:
    topic = peers.topic()
    publisher = await peers.connect()
    await publisher.publish(topic, b"kept", 1, retain=True)
    subscriber = await peers.connect(persistent=True)
    request = SubscriptionRequest(topic, 1, retain_handling=1)
    await subscriber.subscribe(request)
    await subscriber.take(b"kept")
    await subscriber.subscribe(request)
    await no_retained(peers, subscriber)
    await subscriber.disconnect()
    # The subscription still exists after a reconnect.
    again = await peers.connect(client_id=subscriber.client_id, persistent=True)
    await again.subscribe(request)
    await no_retained(peers, again)
    await again.unsubscribe(topic)
    await again.subscribe(request)
    await again.take(b"kept")


@statement(v5="MQTT-3.3.1-11")
async def test_retain_handling_2_sends_none(peers: Peers) -> None:
    topic = peers.topic()
    publisher = await peers.connect()
    await publisher.publish(topic, b"kept", 1, retain=True)
    subscriber = await peers.connect()
    await subscriber.subscribe(SubscriptionRequest(topic, 1, retain_handling=2))
    await no_retained(peers, subscriber)
    await publisher.publish(topic, b"live", 1, retain=True)
    await subscriber.take(b"live")


@statement(v5="MQTT-3.3.1-9 MQTT-3.8.4-1", v311="MQTT-3.8.4-1", stores=EVERY_STORE)
async def test_suback_comes_before_the_retained_messages(peers: Peers, version: int) -> None:
    topic = peers.topic()
    publisher = await peers.connect(version)
    await publisher.publish(topic, b"kept", 1, retain=True)
    subscriber = await peers.connect(version)
    await subscriber.send(Subscribe(9, [SubscriptionRequest(topic, 1)]))
    await subscriber.expect(Suback)
    await subscriber.take(b"kept")


@statement(v5="MQTT-3.3.4-3 MQTT-3.3.2-17")
async def test_retained_messages_keep_properties_and_carry_the_identifier(peers: Peers) -> None:
    topic = peers.topic()
    publisher = await peers.connect()
    sent = properties(user_properties=[("k", "v"), ("k", "v")], content_type="c")
    await publisher.publish(topic, b"kept", 1, retain=True, properties=sent)
    subscriber = await peers.connect()
    await subscriber.subscribe(topic, properties=properties(subscription_identifiers=[3]))
    got = (await subscriber.take(b"kept")).properties
    assert got is not None
    assert list(got.subscription_identifiers) == [3]
    assert list(got.user_properties) == [("k", "v"), ("k", "v")]
    assert got.content_type == "c"
