"""G13: delayed messages of nodes that die before they are due."""

from __future__ import annotations

import time
from pathlib import Path

from broker.codec.packets import Connect
from tests.kit.mqtt_client import MqttClient, properties
from tests.multinode.nodes import Nodes, cluster

_DELAY_S = 4
_COUNT = 60


async def _client(nodes: Nodes, name: str, client_id: str) -> MqttClient:
    process = nodes[name]
    client = await MqttClient.open(process.host, process.port)
    await client.connect(Connect(5, client_id, False, 0, None, None, None, properties(session_expiry_interval=600)))
    return client


async def test_g13_delayed_messages_survive_the_death_of_their_node(tmp_path: Path) -> None:
    """Each comes once, not before its time, to a subscriber on another node."""
    async with (
        cluster(tmp_path, ("a", "b", "c")) as nodes,
        await _client(nodes, "b", "subscriber") as subscriber,
        await _client(nodes, "a", "publisher") as publisher,
        await _client(nodes, "b", "other") as other,
    ):
        await subscriber.subscribe("t/#", qos=2)
        began = time.monotonic()
        for number in range(_COUNT):
            await publisher.publish(f"$delayed/{_DELAY_S}/t/{number}", b"%d" % number, qos=1 + number % 2)
        nodes.kill("a")
        nodes.kill("c")
        got: list[int] = []
        first = 0.0
        while len(set(got)) < _COUNT:
            message = await subscriber.take()
            first = first or time.monotonic()
            got.append(int(message.payload))
            assert message.topic_name == f"t/{message.payload.decode()}"
        # Both clocks are of this machine; the store counts from when it was told.
        assert first - began >= _DELAY_S - 0.1
        # What came later than all of them would have come by the time that this one has.
        await other.publish("t/last", b"last", qos=1)
        last = await subscriber.take()
        assert last.payload == b"last"
        assert sorted(got) == list(range(_COUNT))
