"""`--workers`: several nodes behind the same ports, and one parent that keeps them, answers for them and ends them."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from typing import Any

import pytest
import trio

from broker.codec.packets import Disconnect, Publish
from tests.conformance.peers import Peers
from tests.integration.conftest import PeersOf, StartNode
from tests.kit.api import ADMIN_ARGUMENTS, admin_of
from tests.kit.broker_process import BrokerFailed, BrokerProcess


def _fetch(node: BrokerProcess, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{node.http}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def _get(node: BrokerProcess, path: str) -> tuple[int, str]:
    return await trio.to_thread.run_sync(_fetch, node, path)


async def _workers(node: BrokerProcess) -> list[dict[str, Any]]:
    _, body = await _get(node, "/healthz")
    found = json.loads(body)["workers"]
    assert isinstance(found, list)
    return found


async def _metric(node: BrokerProcess, name: str) -> float:
    _, body = await _get(node, "/metrics")
    lines = [line for line in body.splitlines() if line.startswith((name + " ", name + "{"))]
    assert lines
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


async def _gone(*pids: int) -> None:
    with trio.fail_after(20):
        while any(_runs(pid) for pid in pids):
            await trio.sleep(0.02)


async def _log(node: BrokerProcess, event: str, times: int = 1) -> None:
    with trio.fail_after(20):
        while node.log().count(event) < times:
            await trio.sleep(0.02)


async def _one_on_each(node: BrokerProcess, peers: Peers) -> None:
    """Connects until every worker has at least one."""
    with trio.fail_after(20):
        while min([worker["connections"] for worker in await _workers(node)]) == 0:
            await peers.connect()


async def test_workers_share_a_port_and_answer_as_one(start_node: StartNode, peers_of: PeersOf) -> None:
    node = start_node("--workers", "2", "--node-name", "w", store="embedded", http="127.0.0.1:0")
    status, body = await _get(node, "/readyz")
    shown = json.loads(body)
    assert status == 200
    assert shown["status"] == "ready"
    assert [worker["node"] for worker in shown["workers"]] == ["w-1", "w-2"]
    assert {worker["durability"] for worker in shown["workers"]} == {"aof"}
    peers = peers_of(node)
    await _one_on_each(node, peers)
    connected = sum(worker["connections"] for worker in await _workers(node))
    assert await _metric(node, "mqtt_connections") == connected
    assert await _metric(node, 'mqtt_packets_received_total{type="CONNECT"}') == connected
    assert await trio.to_thread.run_sync(node.terminate) == 0


async def test_a_worker_that_is_killed_is_started_again(start_node: StartNode, peers_of: PeersOf) -> None:
    node = start_node("--workers", "2", "--node-name", "w", store="embedded", http="127.0.0.1:0")
    peers = peers_of(node)
    await _one_on_each(node, peers)
    received = 'mqtt_packets_received_total{type="CONNECT"}'
    counted = await _metric(node, received)
    before = await _workers(node)
    os.kill(before[0]["pid"], signal.SIGKILL)
    await _log(node, "worker.ended")
    with trio.fail_after(30):
        while True:
            now = await _workers(node)
            if now[0]["status"] == "ready":
                break
            assert (await _get(node, "/readyz"))[0] == 200  # the other one serves
            await trio.sleep(0.05)
    assert now[0]["pid"] != before[0]["pid"]
    assert now[1]["pid"] == before[1]["pid"]
    assert await _metric(node, received) >= counted
    await peers.connect()


async def test_a_worker_that_does_not_answer_is_named(start_node: StartNode) -> None:
    node = start_node("--workers", "2", "--node-name", "w", store="embedded", http="127.0.0.1:0")
    [first, second] = await _workers(node)
    os.kill(second["pid"], signal.SIGSTOP)
    try:
        status, body = await _get(node, "/readyz")
    finally:
        os.kill(second["pid"], signal.SIGCONT)
    assert (status, json.loads(body)["status"]) == (503, "does not answer")
    assert [worker["status"] for worker in json.loads(body)["workers"]] == ["ready", "does not answer"]
    with trio.fail_after(10):
        while (await _get(node, "/readyz"))[0] != 200:
            await trio.sleep(0.02)
    assert [worker["pid"] for worker in await _workers(node)] == [first["pid"], second["pid"]]


async def test_operators_are_answered_while_a_worker_stands_still(start_node: StartNode) -> None:
    node = start_node("--workers", "2", "--node-name", "w", *ADMIN_ARGUMENTS, store="embedded", http="127.0.0.1:0")

    def statuses() -> list[str]:
        with admin_of(node) as admin:
            answer = admin.get("/nodes")
            assert answer.status_code == 200, answer.text
            return [each["status"] for each in answer.json()["items"]]

    for number, worker in enumerate(await _workers(node)):
        os.kill(worker["pid"], signal.SIGSTOP)
        try:
            found = await trio.to_thread.run_sync(statuses)
        finally:
            os.kill(worker["pid"], signal.SIGCONT)
        assert found[number] == "does not answer"
        assert found[1 - number] == "ready"
        with trio.fail_after(10):
            while (await _get(node, "/readyz"))[0] != 200:
                await trio.sleep(0.02)


async def test_workers_end_when_their_parent_is_killed(start_node: StartNode) -> None:
    node = start_node("--workers", "2", "--node-name", "w", store="embedded", http="127.0.0.1:0")
    pids = [worker["pid"] for worker in await _workers(node)]
    node.kill()
    await _gone(*pids)
    node.start()  # and nothing of them is in the way


async def test_sigterm_drains_the_workers(start_node: StartNode, peers_of: PeersOf) -> None:
    node = start_node("--workers", "2", "--node-name", "w", store="embedded", http="127.0.0.1:0")
    peers = peers_of(node)
    await _one_on_each(node, peers)
    pids = [worker["pid"] for worker in await _workers(node)]
    client = await peers.connect()
    status: list[int] = []

    async def terminate() -> None:
        status.append(await trio.to_thread.run_sync(node.terminate))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminate)
        assert (await client.expect(Disconnect)).reason_code == 0x8B
    assert status == [0]
    assert not any(_runs(pid) for pid in pids)


async def test_a_second_sigterm_ends_the_drain_of_the_workers(start_node: StartNode) -> None:
    node = start_node(
        *("--workers", "2", "--node-name", "w", "--drain-delay", "1h", "--drain-timeout", "1h"),
        store="embedded",
        http="127.0.0.1:0",
    )
    os.kill(node.pid, signal.SIGTERM)
    await _log(node, "node.stopping", times=2)
    status, body = await _get(node, "/readyz")
    assert (status, json.loads(body)["status"]) == (503, "draining")
    assert await trio.to_thread.run_sync(node.terminate) == 0


async def test_sighup_reaches_the_workers(start_node: StartNode) -> None:
    node = start_node("--workers", "2", "--node-name", "w", store="embedded", http="127.0.0.1:0")
    os.kill(node.pid, signal.SIGHUP)
    await _log(node, "node.reloaded", times=2)


async def test_a_port_that_is_taken_is_told(start_node: StartNode) -> None:
    other = start_node(store="memory")
    with pytest.raises(BrokerFailed, match=r"ended with status 2:\nrookery: listen = .*Address already in use"):
        start_node("--workers", "2", "--listen", f"tcp://{other.host}:{other.port}", store="embedded")


async def test_workers_that_cannot_start_end_their_parent(start_node: StartNode) -> None:
    with pytest.raises(BrokerFailed, match="ended with status 1"):
        start_node("--workers", "2", store="redis://127.0.0.1:1/0")


async def test_clients_of_different_workers_exchange_messages(start_node: StartNode, peers_of: PeersOf) -> None:
    node = start_node("--workers", "2", "--node-name", "w", store="embedded", http="127.0.0.1:0")
    peers = peers_of(node)
    subscribers = [await peers.connect() for _ in range(6)]
    await _one_on_each(node, peers)
    for subscriber in subscribers:
        await subscriber.subscribe(peers.topic(), qos=1)
    publisher = await peers.connect()
    for number in range(5):
        await publisher.publish(peers.topic(), b"%d" % number, qos=1)
    for subscriber in subscribers:
        assert [packet.payload for packet in await subscriber.collect(Publish, 5)] == [b"0", b"1", b"2", b"3", b"4"]
