"""aiomqtt (asyncio) against the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import aiomqtt
import pytest
from aiomqtt import ProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.integration.paho_client import properties, publish_properties
from tests.kit.broker_process import BrokerProcess

DEADLINE_S = 30.0
VERSIONS = [ProtocolVersion.V31, ProtocolVersion.V311, ProtocolVersion.V5]


def run(scenario: Coroutine[object, object, None]) -> None:
    """Run a scenario on an event loop of its own, with a deadline."""

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario

    asyncio.run(bounded())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_qos(node: BrokerProcess, topic: str, version: ProtocolVersion) -> None:
    async def scenario() -> None:
        async with (
            aiomqtt.Client(node.host, node.port, identifier=f"aio-s{version}", protocol=version) as subscriber,
            aiomqtt.Client(node.host, node.port, identifier=f"aio-p{version}", protocol=version) as publisher,
        ):
            await subscriber.subscribe(f"{topic}/#", qos=2)
            for number in range(60):
                await publisher.publish(f"{topic}/{number}", str(number), qos=number % 3)
            got = []
            async for message in subscriber.messages:
                got.append((int(bytes(message.payload)), message.qos))
                if len(got) == 60:
                    break
            for qos in range(3):
                assert [pair for pair in got if pair[1] == qos] == [(n, qos) for n in range(60) if n % 3 == qos]

    run(scenario())


def test_many_at_once(node: BrokerProcess, topic: str) -> None:
    """Several windows of messages on their way at the same time."""

    async def scenario() -> None:
        async with (
            aiomqtt.Client(node.host, node.port, protocol=ProtocolVersion.V5) as subscriber,
            aiomqtt.Client(node.host, node.port, protocol=ProtocolVersion.V5) as publisher,
        ):
            await subscriber.subscribe(topic, qos=1)
            await asyncio.gather(*(publisher.publish(topic, str(number), qos=1) for number in range(500)))
            got = []
            async for message in subscriber.messages:
                got.append(int(bytes(message.payload)))
                if len(got) == 500:
                    break
            assert sorted(got) == list(range(500))

    run(scenario())


def test_will_retained_and_session(node: BrokerProcess, topic: str) -> None:
    async def scenario() -> None:
        will = aiomqtt.Will(f"{topic}/will", "gone", 1, True)
        session = properties(PacketTypes.CONNECT, SessionExpiryInterval=600)
        async with aiomqtt.Client(node.host, node.port, protocol=ProtocolVersion.V5) as watcher:
            await watcher.subscribe(f"{topic}/will", qos=1)
            client = aiomqtt.Client(
                node.host,
                node.port,
                identifier=f"aio-{topic[-8:]}",
                protocol=ProtocolVersion.V5,
                clean_start=False,
                properties=session,
                will=will,
            )
            await client.__aenter__()
            await client.subscribe(
                f"{topic}/in",
                options=SubscribeOptions(qos=2),
                properties=properties(PacketTypes.SUBSCRIBE, SubscriptionIdentifier=5),
            )
            client._client.socket().shutdown(2)  # type: ignore[union-attr]
            message = await anext(watcher.messages)
            assert (message.payload, message.retain) == (b"gone", False)
            with pytest.raises(aiomqtt.MqttError):
                await client.__aexit__(None, None, None)
                await client.publish("x", qos=1)
            await watcher.publish(
                f"{topic}/in", "waiting", qos=2, properties=publish_properties(UserProperty=[("a", "1"), ("a", "2")])
            )
            async with aiomqtt.Client(
                node.host,
                node.port,
                identifier=f"aio-{topic[-8:]}",
                protocol=ProtocolVersion.V5,
                clean_start=False,
                properties=session,
            ) as again:
                message = await anext(again.messages)
                assert (message.payload, message.qos) == (b"waiting", 2)
                assert message.properties is not None
                assert message.properties.UserProperty == [("a", "1"), ("a", "2")]  # type: ignore[attr-defined]
                assert message.properties.SubscriptionIdentifier == [5]  # type: ignore[attr-defined]
                await again.subscribe(f"{topic}/will")
                message = await anext(again.messages)
                assert (message.payload, message.retain) == (b"gone", True)

    run(scenario())


def test_shared(node: BrokerProcess, topic: str) -> None:
    async def scenario() -> None:
        async with (
            aiomqtt.Client(node.host, node.port, protocol=ProtocolVersion.V311) as one,
            aiomqtt.Client(node.host, node.port, protocol=ProtocolVersion.V5) as two,
            aiomqtt.Client(node.host, node.port) as publisher,
        ):
            for member in (one, two):
                await member.subscribe(f"$share/g/{topic}", qos=1)
            for number in range(20):
                await publisher.publish(topic, str(number), qos=1)
            got = [int(bytes((await anext(member.messages)).payload)) for member in (one, two) for _ in range(10)]
            assert sorted(got) == list(range(20))

    run(scenario())
