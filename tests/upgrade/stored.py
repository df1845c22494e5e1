"""What is put into a store through one node, and has to be there for another."""

from __future__ import annotations

from broker.codec.packets import Publish
from tests.conformance.peers import Peers
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import MqttClient

CLIENTS = [f"client-{number:02}" for number in range(40)]
TOPICS = [f"kept/{number:02}" for number in range(60)]


async def furnish(node: BrokerProcess) -> None:
    """Sessions and retained messages."""
    peers = Peers(node.host, node.port, "t")
    for client_id in CLIENTS:
        client = await peers.connect(client_id=client_id, persistent=True)
        await client.subscribe(f"to/{client_id}", qos=1)
        await client.close()
    publisher = await peers.connect()
    for topic in TOPICS:
        assert await publisher.publish(topic, topic.encode(), 1, retain=True) < 0x80
    for client_id in CLIENTS:
        assert not await publisher.publish(f"to/{client_id}", client_id.encode(), 1)
    await peers.close()


async def expect_all(node: BrokerProcess) -> None:
    """What `furnish` made is there."""
    peers = Peers(node.host, node.port, "t")
    for client_id in CLIENTS[::8]:
        client = await peers.connect(client_id=client_id, persistent=True)
        assert client.connack is not None and client.connack.session_present
        assert [each.payload for each in await _collect(client, 1)] == [client_id.encode()]
    reader = await peers.connect()
    await reader.subscribe("kept/#", qos=0)
    assert sorted(each.topic_name for each in await _collect(reader, len(TOPICS))) == TOPICS
    await peers.close()


async def _collect(client: MqttClient, count: int) -> list[Publish]:
    """So many messages."""
    return await client.collect(Publish, count)
