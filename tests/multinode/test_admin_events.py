"""Events, alarms, slow subscribers and topic metrics of three nodes, asked for at any of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trio

from broker.codec.packets import Disconnect, Publish
from tests.kit.api import ADMIN, ADMIN_ARGUMENTS, PREFIX
from tests.multinode.conftest import NAMES, Everywhere, StartCluster
from tests.multinode.nodes import SOON_S, Nodes, until_buried

# httpx leaves the generators of a stream that has no end to the garbage collector.
pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@asynccontextmanager
async def _api(nodes: Nodes, name: str) -> AsyncIterator[httpx.AsyncClient]:
    base = f"http://{nodes[name].http}{PREFIX}"
    async with httpx.AsyncClient(base_url=base, auth=ADMIN, timeout=30, trust_env=False) as client:
        yield client


async def _items(api: httpx.AsyncClient, path: str) -> list[dict[str, Any]]:
    answer = await api.get(path)
    assert answer.is_success, answer.text
    assert answer.json()["missing_nodes"] == []
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


async def _until(api: httpx.AsyncClient, path: str) -> list[dict[str, Any]]:
    """Asks until there is something."""
    with trio.fail_after(SOON_S):
        while not (items := await _items(api, path)):
            await trio.sleep(0.05)
    return items


@asynccontextmanager
async def _stream(api: httpx.AsyncClient, path: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """What is told, once it is sure that all is."""
    async with api.stream("GET", path) as answer:
        assert answer.status_code == 200, answer.status_code

        async def told() -> AsyncIterator[dict[str, Any]]:
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))

        yield told()


async def test_clients_of_all_nodes_as_a_stream(start_cluster: StartCluster, at_own: Everywhere) -> None:
    nodes = at_own.nodes = await start_cluster(*ADMIN_ARGUMENTS)
    async with _api(nodes, "a") as api, _stream(api, "/events/clients?client_id=c") as told:
        for name in NAMES:
            await at_own(name).connect(client_id="other")
            client = await at_own(name).connect(client_id="c")
            await client.send(Disconnect(0))
            await client.expect_closed()
        with trio.fail_after(SOON_S):
            events = [await anext(told) for _ in range(6)]
        assert [(each["event"], each["node"]) for each in events] == [
            (event, name) for name in NAMES for event in ("connected", "disconnected")
        ]
        epochs = [each["epoch"] for each in events]
        assert epochs == sorted(epochs) and {each["clientid"] for each in events} == {"c"}


async def test_streams_of_a_node_that_was_taken_for_dead_end(start_cluster: StartCluster, at_own: Everywhere) -> None:
    nodes = at_own.nodes = await start_cluster(*ADMIN_ARGUMENTS)
    ends: dict[str, str] = {}
    async with _api(nodes, "a") as api:

        async def follow(path: str, task_status: trio.TaskStatus[None]) -> None:
            async with api.stream("GET", path, timeout=SOON_S) as answer:
                assert answer.status_code == 200
                task_status.started()
                names = [line async for line in answer.aiter_lines() if line.startswith("event:")]
            ends[path] = names[-1] if names else ""

        paths = ["/events/clients", "/events/alarms", "/stats/live"]
        with trio.fail_after(2 * SOON_S):
            async with trio.open_nursery() as nursery:
                for path in paths:
                    await nursery.start(follow, path)
                nodes.pause("a")
                await until_buried(nodes, "a")
                nodes.wake("a")
        assert ends == dict.fromkeys(paths, "event: error")
        with trio.fail_after(SOON_S):
            while (await api.get("/nodes")).status_code != 200:
                await trio.sleep(0.05)
        async with _stream(api, "/events/clients?client_id=c") as told:
            await at_own("b").connect(client_id="c")
            with trio.fail_after(SOON_S):
                assert (await anext(told))["event"] == "connected"


async def test_alarms_of_all_nodes(start_cluster: StartCluster, at_own: Everywhere) -> None:
    nodes = at_own.nodes = await start_cluster(*ADMIN_ARGUMENTS, "--max-connections", "10")
    async with _api(nodes, "a") as api, _stream(api, "/events/alarms") as told:
        clients = [await at_own("b").connect() for _ in range(9)]
        with trio.fail_after(SOON_S):
            raised = await anext(told)
        [alarm] = await _until(api, "/alarms")
        assert (alarm["name"], alarm["node"], alarm["severity"]) == ("connections_near_limit", "b", "warning")
        assert {**alarm, "event": "activate"} == raised
        for client in clients:
            await client.close()
        with trio.fail_after(SOON_S):
            over = await anext(told)
        assert (over["event"], over["name"], over["node"]) == ("deactivate", "connections_near_limit", "b")
        assert await _items(api, "/alarms") == []
        [past] = await _items(api, "/alarms/history")
        assert past["deactivated_at_ms"] == over["deactivated_at_ms"]
        assert (await api.delete("/alarms/history")).status_code == 204
        assert await _items(api, "/alarms/history") == []


async def test_slow_subscribers_of_all_nodes(start_cluster: StartCluster, at_own: Everywhere) -> None:
    nodes = at_own.nodes = await start_cluster(*ADMIN_ARGUMENTS, "--slow-threshold", "100ms")
    slow = await at_own("b").connect(client_id="slow")
    await slow.subscribe("t", qos=1)
    quick = await at_own("b").connect(client_id="quick")
    await quick.subscribe("t", qos=1)
    await (await at_own("c").connect()).publish("t", b"", qos=1)
    await quick.take()
    await slow.expect(Publish)
    async with _api(nodes, "a") as api:
        [entry] = await _until(api, "/slow-subscribers")
        assert (entry["client_id"], entry["node"], entry["reason"]) == ("slow", "b", "acknowledgement")
        assert entry["latency_ms"] >= 100


async def test_topic_metrics_of_all_nodes(start_cluster: StartCluster, at_own: Everywhere) -> None:
    nodes = at_own.nodes = await start_cluster(*ADMIN_ARGUMENTS)
    async with _api(nodes, "a") as api:
        for name in NAMES:
            client = await at_own(name).connect(client_id=f"s-{name}")
            client.auto_ack = True
            await client.subscribe("sensors/#", qos=1)
        answer = await api.post("/topic-metrics", json={"topic_filter": "sensors/+/x"})
        assert answer.status_code == 204, answer.text
        publisher = await at_own("b").connect()
        for number in range(10):
            await publisher.publish(f"sensors/{number}/x", b"", qos=number % 2)
            await publisher.publish(f"sensors/{number}/y", b"", qos=0)
        wanted = {"qos0": 15, "qos1": 15, "qos2": 0}
        with trio.fail_after(SOON_S):
            while (items := await _items(api, "/topic-metrics"))[0]["sent"] != wanted:
                await trio.sleep(0.05)
        assert items[0]["received"] == {"qos0": 5, "qos1": 5, "qos2": 0}
        async with httpx.AsyncClient(trust_env=False) as plain:
            metrics = (await plain.get(f"http://{nodes['b'].http}/metrics")).text
        assert 'mqtt_topic_messages_total{direction="received",filter="sensors/+/x"} 10.0' in metrics
        assert (await api.delete("/topic-metrics/" + quote("sensors/+/x", safe=""))).status_code == 204
        assert await _items(api, "/topic-metrics") == []
