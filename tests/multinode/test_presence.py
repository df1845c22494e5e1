"""Presence between three nodes: what is told of a client comes in the order of its connections, wherever they were."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from broker.codec.packets import Disconnect, Publish
from tests.kit.mqtt_client import MqttClient
from tests.multinode.conftest import NAMES, Everywhere, StartCluster, session
from tests.multinode.nodes import SOON_S

pytestmark = pytest.mark.timeout(120)

ALL = "$SYS/brokers/+/clients/+/+"
OPEN = ("--sys-access", "all")
_HOPS = 24


class Told:
    """What one subscriber hears of one client: (event, epoch, node)."""

    def __init__(self, client: MqttClient, client_id: str) -> None:
        self.client = client
        self.events: list[tuple[str, int, str]] = []
        self.whole: list[dict[str, Any]] = []
        self._level = f"/{client_id}/"

    async def until(self, event: str, count: int) -> None:
        """Read until an event came so often."""
        with trio.fail_after(SOON_S):
            while sum(each[0] == event for each in self.events) < count:
                message = await self.client.take()
                if self._level in message.topic_name:
                    told = json.loads(message.payload)
                    self.events.append((message.topic_name.rpartition("/")[2], told["epoch"], told["node"]))
                    self.whole.append(told)

    def check(self) -> None:
        """One connection after the other, each with its beginning and its end."""
        epochs = [epoch for event, epoch, _ in self.events if event == "connected"]
        assert epochs == sorted(set(epochs)), self.events
        expected = [(event, epoch) for epoch in epochs for event in ("connected", "disconnected")]
        assert [each[:2] for each in self.events] == expected[: len(self.events)]


@pytest.mark.parametrize("takes_over", [True, False])
@pytest.mark.parametrize("persistent", [True, False])
async def test_a_client_that_goes_from_node_to_node(
    start_cluster: StartCluster, at_own: Everywhere, takes_over: bool, persistent: bool
) -> None:
    at_own.nodes = await start_cluster(*OPEN)
    hopper = at_own("a").client_id()
    spies: dict[str, Told] = {}
    for name in NAMES:
        for kind in ("ephemeral", "persistent", "qos0"):
            peers = at_own(name)
            client = await peers.connect(client_id=f"{kind}-{name}", persistent=kind == "persistent")
            await client.subscribe(ALL, qos=0 if kind == "qos0" else 1)
            spies[f"{kind}-{name}"] = Told(client, hopper)
    absent = await session(at_own("b"), "absent")
    await absent.subscribe(ALL, qos=1)
    await absent.send(Disconnect(0))
    await absent.close()
    before: MqttClient | None = None
    for hop in range(_HOPS):
        peers = at_own(NAMES[hop * 2 % 3 if hop % 4 else hop // 4 % 3])
        client = await peers.connect(client_id=hopper, persistent=persistent)
        if before is not None and takes_over:
            await before.close()
        if not takes_over:
            await client.send(Disconnect(0))
            await client.expect_closed()
            await client.close()
        else:
            before = client
    ends = _HOPS - takes_over
    for name, spy in spies.items():
        await spy.until("connected", _HOPS)
        await spy.until("disconnected", ends)
        assert len(spy.events) == _HOPS + ends, name
        spy.check()
    absent = await session(at_own("c"), "absent", True)
    told = Told(absent, hopper)
    await told.until("connected", _HOPS)
    await told.until("disconnected", ends)
    told.check()


async def test_a_node_that_is_killed(start_cluster: StartCluster, at_own: Everywhere) -> None:
    """Nobody is there to tell of the end of each client: that the node is gone, and the next epoch, do."""
    nodes = at_own.nodes = await start_cluster(*OPEN)
    spy = await at_own("b").connect(client_id="spy")
    await spy.subscribe(ALL, qos=1)
    told = Told(spy, "c")
    await session(at_own("a"), "c")
    await told.until("connected", 1)
    gone = await at_own("b").subscriber("$SYS/brokers/+/gone", qos=1)
    nodes.kill("a")
    message = await gone.expect(Publish, SOON_S)
    assert message.topic_name == "$SYS/brokers/a/gone"
    assert json.loads(message.payload)["node"] == "a"
    client = await session(at_own("c"), "c", True)
    await told.until("connected", 2)
    first, second = (each[1] for each in told.events if each[0] == "connected")
    assert second > first
    await client.send(Disconnect(0))
    await told.until("disconnected", 1)
    assert told.events[-1] == ("disconnected", second, "c")


async def test_a_node_that_is_stopped_tells_of_all_its_clients(start_cluster: StartCluster, at_own: Everywhere) -> None:
    nodes = at_own.nodes = await start_cluster(*OPEN)
    spy = await at_own("b").connect(client_id="spy")
    await spy.subscribe("$SYS/brokers/a/clients/+/disconnected", qos=1)
    peers = at_own("a")
    for number in range(50):
        await peers.connect(client_id=f"c{number}", persistent=number % 2 == 0)
    await nodes.terminate("a")
    with trio.fail_after(SOON_S):
        found = {json.loads((await spy.take()).payload)["clientid"] for _ in range(50)}
    assert found == {f"c{number}" for number in range(50)}


async def test_values_are_those_of_the_node_that_one_is_connected_to(
    start_cluster: StartCluster, at_own: Everywhere
) -> None:
    at_own.nodes = await start_cluster(*OPEN, "--sys-interval", "1s")
    for name in NAMES:
        peers = at_own(name)
        client = await peers.subscriber("$SYS/brokers/+/version", qos=0)
        await client.take()
        for _ in range(2):  # none of other nodes, each second
            assert (await client.take()).topic_name == f"$SYS/brokers/{name}/version"
        everybody = await peers.subscriber("$SYS/brokers", qos=0)
        assert (await everybody.take()).payload == b"a,b,c"
