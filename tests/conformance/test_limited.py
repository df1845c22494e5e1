"""A node that supports less: Maximum QoS 1, no retained messages, no topic aliases."""

from __future__ import annotations

import pytest

from broker.codec.packets import PUBACK, PUBREC, Connect, Publish, Will
from broker.reasons import QOS_NOT_SUPPORTED, RETAIN_NOT_SUPPORTED, TOPIC_ALIAS_INVALID
from tests.conformance.peers import Peers
from tests.conformance.statements import statement
from tests.kit.mqtt_client import ConnectionClosed, properties

LIMITED = ("limited",)


@statement(v5="MQTT-3.2.2-9", stores=LIMITED)
async def test_the_limits_are_announced(peers: Peers) -> None:
    client = await peers.connect()
    assert client.connack is not None
    got = client.connack.properties
    assert got is not None
    assert got.maximum_qos == 1
    assert got.retain_available == 0
    assert got.topic_alias_maximum in (None, 0)


@statement(v5="MQTT-3.2.2-10", stores=LIMITED)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_every_requested_qos_is_still_accepted(peers: Peers, qos: int) -> None:
    topic = peers.topic()
    client = await peers.connect()
    (granted,) = (await client.subscribe(topic, qos=qos)).reason_codes
    assert granted <= qos
    publisher = await peers.connect()
    await publisher.publish(topic, b"x", 1)
    assert (await client.take(b"x")).qos == min(qos, 1)


@statement(v5="MQTT-3.2.2-12 MQTT-3.2.2-7", stores=LIMITED)
async def test_a_will_above_the_maximum_qos_is_refused(peers: Peers) -> None:
    client = await peers.open()
    connack = await client.connect(Connect(5, peers.client_id(), will=Will(peers.topic(), b"", 2, False)))
    assert connack.reason_code == QOS_NOT_SUPPORTED
    await client.expect_closed()


@statement(v5="MQTT-3.2.2-13 MQTT-3.2.2-7", stores=LIMITED)
async def test_a_retained_will_is_refused(peers: Peers) -> None:
    client = await peers.open()
    connack = await client.connect(Connect(5, peers.client_id(), will=Will(peers.topic(), b"", 0, True)))
    assert connack.reason_code == RETAIN_NOT_SUPPORTED
    await client.expect_closed()


@statement(v5="MQTT-4.13.1-1", stores=LIMITED)
@pytest.mark.parametrize(
    ("packet", "reason_code"),
    [
        (Publish("t", b"", 2, False, False, 1), QOS_NOT_SUPPORTED),
        (Publish("t", b"", 0, True), RETAIN_NOT_SUPPORTED),
        (Publish("t", b"", properties=properties(topic_alias=1)), TOPIC_ALIAS_INVALID),
    ],
    ids=["qos 2", "retain", "alias"],
)
async def test_what_is_not_supported_closes(peers: Peers, packet: Publish, reason_code: int) -> None:
    client = await peers.connect()
    await client.send(packet)
    await client.expect_disconnect(reason_code)


@statement(v311="MQTT-3.3.5-2", stores=LIMITED)
@pytest.mark.parametrize(
    "packet",
    [Publish("t", b"", 2, False, False, 1), Publish("t", b"", 1, True, False, 1)],
    ids=["qos 2", "retain"],
)
async def test_version_3_is_acknowledged_or_closed(peers: Peers, version: int, packet: Publish) -> None:
    client = await peers.connect(version)
    await client.send(packet)
    try:
        answer = await client.receive()
    except ConnectionClosed:
        return
    assert answer.kind == (PUBREC if packet.qos == 2 else PUBACK)
