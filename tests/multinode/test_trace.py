"""Traces of a cluster: started on one node, about what happens on any, read and followed anywhere."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from broker.codec.packets import Connect
from tests.kit.api import ADMIN, ADMIN_ARGUMENTS, PREFIX
from tests.kit.mqtt_client import DEADLINE_S, MqttClient
from tests.kit.redis_server import redis_server
from tests.multinode.conftest import NAMES, StartCluster
from tests.multinode.nodes import ALWAYS, SOON_S, Nodes


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Three nodes with an API for all tests here but those that kill nodes."""
    with redis_server(aof=True, options=ALWAYS) as store:
        url = f"redis://127.0.0.1:{store.address.port}/0"
        made = Nodes(tmp_path_factory.mktemp("traced"), url, NAMES, ADMIN_ARGUMENTS)
        try:
            trio.run(made.start)
            yield made
        finally:
            made.stop()


@pytest.fixture
async def nodes(shared: Nodes) -> AsyncIterator[Nodes]:
    """Traces of a test are stopped after it."""
    yield shared
    async with api_of(shared, "a") as api:
        for trace in (await api.get("/traces")).json()["items"]:
            if trace["running"]:
                await api.post(f"/traces/{trace['id']}/stop")


@asynccontextmanager
async def api_of(nodes: Nodes, name: str) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://{nodes[name].http}{PREFIX}"
    async with httpx.AsyncClient(base_url=url, auth=ADMIN, timeout=DEADLINE_S, trust_env=False) as api:
        yield api


async def connect(nodes: Nodes, name: str, client_id: str, version: int = 5) -> MqttClient:
    client = await MqttClient.open(nodes[name].host, nodes[name].port, version)
    assert (await client.connect(Connect(version, client_id, True))).reason_code == 0
    return client


async def start(api: httpx.AsyncClient, **arguments: object) -> dict[str, Any]:
    answer = await api.post("/traces", json=arguments)
    assert answer.status_code == 201, answer.text
    trace: dict[str, Any] = answer.json()
    assert trace["nodes"] == ["a", "b", "c"] and trace["running"]
    return trace


async def lines_of(api: httpx.AsyncClient, trace: dict[str, Any], limit: int = 1000) -> list[dict[str, Any]]:
    """All lines, in parts."""
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = await api.get(f"/traces/{trace['id']}/lines", params={"cursor": cursor, "limit": limit})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert page["missing_nodes"] == [] and len(page["items"]) <= limit
        found += page["items"]
        cursor = page["cursor"]
    return found


async def until(api: httpx.AsyncClient, trace: dict[str, Any], node: str, text: str) -> dict[str, Any]:
    """The first line of a node with this text."""
    with trio.fail_after(SOON_S):
        while True:
            for line in await lines_of(api, trace):
                if line["node"] == node and text in line["text"]:
                    return line


async def test_a_client_of_another_node(nodes: Nodes) -> None:
    async with api_of(nodes, "a") as a, api_of(nodes, "c") as c:
        trace = await start(a, client_id="traced", payload=True)
        async with await connect(nodes, "b", "traced") as client, await connect(nodes, "a", "other") as other:
            await client.subscribe("to/traced", qos=1)
            await other.publish("to/traced", b"hello", qos=1)
            assert (await client.take()).payload == b"hello"
            await client.publish("from/traced", b"back", qos=1)
        out = await until(a, trace, "b", 'PUBLISH "to/traced" QoS 1')
        assert (out["direction"], out["client_id"], out["details"]["payload"]) == ("out", "traced", "hello")
        await until(c, trace, "b", 'PUBLISH "from/traced" QoS 1')
        await until(c, trace, "b", "the connection ends")
        lines = await lines_of(a, trace, 3)
        assert lines == await lines_of(c, trace, 1000)
        assert {line["node"] for line in lines} == {"b"}
        stopped = (await c.post(f"/traces/{trace['id']}/stop")).json()
        assert not stopped["running"] and stopped["lines"] == len(lines) + 3  # each node tells of the end
        assert len(await lines_of(a, trace, 2)) == len(lines) + 3


async def test_a_topic_on_both_nodes(nodes: Nodes) -> None:
    async with api_of(nodes, "c") as api:
        async with (
            await connect(nodes, "a", "sender") as sender,
            await connect(nodes, "a", "sender4", 4) as sender4,
            await connect(nodes, "b", "receiver") as receiver,
        ):
            await receiver.subscribe("way/+")
            trace = await start(api, topic_filter="way/#")
            for qos in (0, 1, 2):
                await sender.publish(f"way/{qos}", b"x", qos=qos)
                await receiver.take()
            await sender4.publish("way/4", b"x")
            await receiver.take()
            await sender.publish("elsewhere", b"x", qos=1)
        for topic, publisher in (("way/0", "sender"), ("way/1", "sender"), ("way/2", "sender"), ("way/4", "sender4")):
            route = await until(api, trace, "a", f'"{topic}" QoS')
            assert route["client_id"] == publisher and route["details"]["nodes"] == ["b"]
            assert (await until(api, trace, "b", f'PUBLISH "{topic}"'))["client_id"] == "receiver"
            await until(api, trace, "b", f'"{topic}" QoS')
        assert not any("elsewhere" in line["text"] for line in await lines_of(api, trace))


async def test_following_from_any_node(nodes: Nodes) -> None:
    async with api_of(nodes, "a") as a, api_of(nodes, "c") as c, trio.open_nursery() as nursery:
        trace = await start(a, client_id="traced")
        before = await connect(nodes, "b", "traced")
        seen: list[dict[str, Any]] = []
        news, receive = trio.open_memory_channel[dict[str, Any]](1000)

        async def follow() -> None:
            async with c.stream("GET", f"/traces/{trace['id']}/follow", timeout=SOON_S) as stream:
                assert stream.status_code == 200
                async for text in stream.aiter_lines():
                    if text.startswith("data:"):
                        seen.append(json.loads(text[5:]))
                        news.send_nowait(seen[-1])
            news.close()

        nursery.start_soon(follow)
        with trio.fail_after(SOON_S):
            async for line in receive:
                if "CONNACK" in line["text"]:
                    break
        await before.publish("t", b"", qos=1)
        with trio.fail_after(SOON_S):
            async for line in receive:
                if "PUBACK" in line["text"]:
                    break
        await before.close()
        assert (await a.post(f"/traces/{trace['id']}/stop")).status_code == 200
        with trio.fail_after(SOON_S):  # the stream ends with the trace
            async for _ in receive:
                pass
        assert {line["node"] for line in seen if "the trace ends" in line["text"]} == {"a", "b", "c"}
        for node in ("a", "b", "c"):
            numbers = [line["seq"] for line in seen if line["node"] == node]
            assert numbers == list(range(1, len(numbers) + 1))


async def test_nodes_that_come_and_go(start_cluster: StartCluster) -> None:
    nodes = await start_cluster(*ADMIN_ARGUMENTS)
    async with api_of(nodes, "b") as b:
        async with api_of(nodes, "a") as a:
            trace = await start(a, client_id="traced", duration_s=600)
        nodes.kill("a")
        await nodes.terminate("c")
        await nodes.start("c")
        with trio.fail_after(SOON_S):
            while True:
                [known] = (await b.get("/traces")).json()["items"]
                if "c" in known["nodes"]:
                    break
        async with await connect(nodes, "c", "traced"):
            pass
        with trio.fail_after(SOON_S):
            while True:
                answer = (await b.get(f"/traces/{trace['id']}/lines")).json()
                if any(line["node"] == "c" and "CONNACK" in line["text"] for line in answer["items"]):
                    break
        assert (await b.post(f"/traces/{trace['id']}/stop")).json()["running"] is False


def cursor_of(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_what_cannot_be_traced(nodes: Nodes) -> None:
    async with api_of(nodes, "a") as api:
        for wrong in (
            {},
            {"client_id": "c", "ip": "127.0.0.1"},
            {"topic_filter": "a/#/b"},
            {"topic_filter": "$share/g/t"},
            {"topic_filter": "$rookery/#"},
            {"ip": "nowhere"},
            {"client_id": "c", "duration_s": 0},
            {"client_id": "c", "duration_s": 3601},
        ):
            assert (await api.post("/traces", json=wrong)).status_code == 400, wrong
        assert (await api.get("/traces/none/lines")).status_code == 404
        assert (await api.get("/traces/none/follow")).status_code == 404
        assert (await api.post("/traces/none/stop")).status_code == 404
        trace = await start(api, client_id="c")
        for cursor in ("!", cursor_of({"a": 2**70}), cursor_of({"a": -1}), cursor_of([])):
            answer = await api.get(f"/traces/{trace['id']}/lines", params={"cursor": cursor})
            assert answer.status_code == 400, cursor
        answer = await api.get(f"/traces/{trace['id']}/lines", params={"cursor": cursor_of({"a": 2**53})})
        assert answer.status_code == 200 and answer.json()["items"] == []
        for _ in range(9):
            await start(api, client_id="c")
        assert (await api.post("/traces", json={"client_id": "c"})).status_code == 409
