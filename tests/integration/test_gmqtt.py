"""gmqtt (asyncio) against the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import gmqtt
import pytest
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

from tests.kit.broker_process import BrokerProcess

DEADLINE_S = 30.0


def run(scenario: Coroutine[object, object, None]) -> None:
    """Run a scenario on an event loop of its own, with a deadline."""

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario

    asyncio.run(bounded())


class Client:
    """A gmqtt client whose events are awaited."""

    def __init__(self, node: BrokerProcess, client_id: str, *, clean: bool = True, **options: object) -> None:
        self._node = node
        self.client: Any = gmqtt.Client(client_id, clean_session=clean, **options)
        self.client.set_config({"reconnect_retries": 0})
        self.messages: asyncio.Queue[tuple[str, bytes, int, dict[str, Any]]] = asyncio.Queue()
        self.subscribed: asyncio.Queue[tuple[int, ...]] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.connect_properties: dict[str, Any] = {}
        self.session_present = False
        self.client.on_message = self._on_message
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = lambda client, packet, exc=None: self.gone.set()
        self.client.on_subscribe = lambda client, mid, codes, props: self.subscribed.put_nowait(tuple(codes))

    def _on_message(self, client: object, topic: str, payload: bytes, qos: int, props: dict[str, Any]) -> int:
        self.messages.put_nowait((topic, payload, qos, props))
        return 0

    def _on_connect(self, client: object, flags: int, code: int, props: dict[str, Any]) -> None:
        self.session_present = bool(flags & 1)
        self.connect_properties = props

    async def connect(self, version: int = MQTTv50) -> Client:
        """Connect."""
        await self.client.connect(self._node.host, self._node.port, version=version)
        return self

    async def subscribe(self, topic_filter: str, qos: int = 2, **options: object) -> tuple[int, ...]:
        """Subscribe and return the reason codes."""
        self.client.subscribe(topic_filter, qos, **options)
        return await self.subscribed.get()

    async def close(self) -> None:
        """Disconnect."""
        await self.client.disconnect()


@pytest.mark.parametrize("subscriber_version", [MQTTv311, MQTTv50])
@pytest.mark.parametrize("publisher_version", [MQTTv311, MQTTv50])
def test_every_qos(node: BrokerProcess, topic: str, publisher_version: int, subscriber_version: int) -> None:
    async def scenario() -> None:
        subscriber = await Client(node, f"gm-s-{topic[-6:]}").connect(subscriber_version)
        publisher = await Client(node, f"gm-p-{topic[-6:]}").connect(publisher_version)
        for granted in range(3):
            assert await subscriber.subscribe(f"{topic}/{granted}", granted) == (granted,)
        for granted in range(3):
            for qos in range(3):
                publisher.client.publish(f"{topic}/{granted}", f"at {qos}", qos=qos)
        got = [await subscriber.messages.get() for _ in range(9)]
        assert sorted((name[-1], payload, qos) for name, payload, qos, _ in got) == [
            (str(granted), b"at %d" % qos, min(qos, granted)) for granted in range(3) for qos in range(3)
        ]
        await publisher.close()
        await subscriber.close()

    run(scenario())


def test_properties_and_identifiers(node: BrokerProcess, topic: str) -> None:
    async def scenario() -> None:
        client = await Client(node, f"gm-{topic[-8:]}").connect()
        assert client.connect_properties["receive_maximum"] == [100]
        await client.subscribe(topic, 1, subscription_identifier=7)
        client.client.publish(
            topic,
            "x",
            qos=1,
            user_property=[("b", "1"), ("a", "2"), ("b", "3")],
            content_type="text/plain",
            response_topic="r/t",
            correlation_data=b"c-1",
            message_expiry_interval=1000,
        )
        _, payload, qos, props = await client.messages.get()
        assert (payload, qos) == (b"x", 1)
        assert [tuple(pair) for pair in props["user_property"]] == [("b", "1"), ("a", "2"), ("b", "3")]
        assert (props["content_type"], props["response_topic"]) == (["text/plain"], ["r/t"])
        assert props["correlation_data"] == [b"c-1"]
        assert props["subscription_identifier"] == [7]
        assert 990 < props["message_expiry_interval"][0] <= 1000
        await client.close()

    run(scenario())


def test_session_and_will(node: BrokerProcess, topic: str) -> None:
    async def scenario() -> None:
        name = f"gm-{topic[-8:]}"
        watcher = await Client(node, f"{name}-w").connect()
        await watcher.subscribe(f"{topic}/will", 1)
        will = gmqtt.Message(f"{topic}/will", "gone", qos=1, user_property=[("a", "1")])
        client = await Client(node, name, clean=False, session_expiry_interval=600, will_message=will).connect()
        assert not client.session_present
        await client.subscribe(f"{topic}/in", 2)
        client.client._connection._transport.abort()
        _, payload, _, props = await watcher.messages.get()
        assert payload == b"gone"
        assert [tuple(pair) for pair in props["user_property"]] == [("a", "1")]
        for number in range(20):
            watcher.client.publish(f"{topic}/in", str(number), qos=1 + number % 2)
        again = await Client(node, name, clean=False, session_expiry_interval=600).connect()
        assert again.session_present
        got = [await again.messages.get() for _ in range(20)]
        for qos in (1, 2):
            assert [int(m[1]) for m in got if m[2] == qos] == [n for n in range(20) if 1 + n % 2 == qos]
        await again.close()
        await watcher.close()

    run(scenario())


def test_takeover(node: BrokerProcess, topic: str) -> None:
    async def scenario() -> None:
        name = f"gm-{topic[-8:]}"
        older = await Client(node, name).connect()
        newer = await Client(node, name).connect()
        await older.gone.wait()
        assert await newer.subscribe(topic, 1) == (1,)
        await newer.close()

    run(scenario())
