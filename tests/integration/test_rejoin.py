"""A node that the others took for dead drops all it had and joins again in the same process."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from broker.codec.packets import Connect, Publish
from tests.integration.conftest import PeersOf, StartNode
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import MqttClient, properties
from tests.kit.ports import free_port
from tests.kit.redis_server import RedisServer, redis_server


@pytest.fixture
def store() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def _url(store: RedisServer) -> str:
    return f"redis://127.0.0.1:{store.address.port}/0"


def _fetch(node: BrokerProcess, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://{node.http}{path}", timeout=10) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


async def _health(node: BrokerProcess, path: str = "/readyz") -> tuple[int, dict[str, Any]]:
    return await trio.to_thread.run_sync(_fetch, node, path)


async def _try_health(node: BrokerProcess) -> dict[str, Any] | None:
    try:
        return (await _health(node))[1]
    except OSError:
        return None


async def _until(node: BrokerProcess, found: Callable[[int, dict[str, Any]], bool]) -> dict[str, Any]:
    with trio.fail_after(40):
        while True:
            status, body = await _health(node)
            if found(status, body):
                return body
            await trio.sleep(0.05)


async def test_a_paused_node_that_was_buried_drops_its_clients_and_joins_again(
    store: RedisServer, start_node: StartNode, peers_of: PeersOf
) -> None:
    paused = start_node("--node-name", "paused", store=_url(store), http="127.0.0.1:0")
    other = start_node("--node-name", "other", store=_url(store), http="127.0.0.1:0")
    before = await _until(paused, lambda _, body: len(body["members"]) == 2)
    peers = peers_of(paused)
    subscriber = await peers.subscriber(peers.topic("#"))
    publisher = await peers.connect()
    mover = await peers.connect(client_id="mover", persistent=True)
    await mover.subscribe(peers.topic("moved"), qos=1)

    os.kill(paused.pid, signal.SIGSTOP)
    try:
        stale = Publish(peers.topic("1"), b"stale", 1, packet_id=1)
        await publisher.send(Publish(peers.topic("0"), b"stale"), stale)
        await _until(other, lambda _, body: body["members"] == [body["member"]])
        moved = await MqttClient.open(other.host, other.port)
        assert (await moved.connect(_resuming("mover"))).session_present
    finally:
        os.kill(paused.pid, signal.SIGCONT)
    for client in (subscriber, publisher, mover):
        await client.expect_closed()  # and nothing else came before

    after = await _until(paused, lambda status, body: status == 200 and body["member"] != before["member"])
    assert len(after["members"]) == 2
    assert "node.fenced" in paused.log()
    assert "node.ready_again" in paused.log()
    again = await peers.subscriber(peers.topic("again"))
    sender = await peers_of(other).connect()
    await sender.publish(peers.topic("again"), b"new", qos=1)
    assert (await again.expect(Publish)).payload == b"new"
    await sender.publish(peers.topic("moved"), b"to the other node", qos=1)
    assert (await moved.expect(Publish)).payload == b"to the other node"
    await moved.close()
    assert await trio.to_thread.run_sync(paused.terminate) == 0


async def test_a_short_pause_costs_nothing(store: RedisServer, start_node: StartNode, peers_of: PeersOf) -> None:
    node = start_node("--node-name", "a", store=_url(store), http="127.0.0.1:0")
    _, before = await _health(node)
    peers = peers_of(node)
    subscriber = await peers.subscriber(peers.topic())
    os.kill(node.pid, signal.SIGSTOP)
    try:
        publisher = await MqttClient.open(node.host, node.port)  # the system accepts for it
    finally:
        os.kill(node.pid, signal.SIGCONT)
    await publisher.close()
    await (await peers.connect()).publish(peers.topic(), b"m", qos=1)
    assert (await subscriber.expect(Publish)).payload == b"m"
    _, after = await _health(node)
    assert after["member"] == before["member"]


async def test_a_node_alone_goes_on_after_a_long_pause(
    store: RedisServer, start_node: StartNode, peers_of: PeersOf
) -> None:
    node = start_node("--node-name", "a", store=_url(store), http="127.0.0.1:0")
    peers = peers_of(node)
    subscriber = await peers.subscriber(peers.topic())
    publisher = await peers.connect()
    os.kill(node.pid, signal.SIGSTOP)
    try:
        with trio.fail_after(20):
            while await trio.to_thread.run_sync(_has_lease, store):
                await trio.sleep(0.1)
        await publisher.send(Publish(peers.topic(), b"late", 0))
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert (await subscriber.expect(Publish)).payload == b"late"
    assert "node.fenced" not in node.log()


async def test_sigterm_ends_a_node_that_waits_for_its_store(tmp_path: Path, store: RedisServer) -> None:
    node = BrokerProcess(tmp_path / "n", _url(store), http=f"127.0.0.1:{free_port()}")
    store.pause()
    try:
        async with trio.open_nursery() as nursery:

            async def start() -> None:
                with pytest.raises(Exception, match="ended with status 0"):
                    await trio.to_thread.run_sync(node.start)

            nursery.start_soon(start)
            with trio.fail_after(20):
                while not node.log_path.exists() or not _handles_signals(node):
                    await trio.sleep(0.02)
                node.http = node.http_option
                while (found := await _try_health(node)) is None or found["status"] == "starting":
                    await trio.sleep(0.02)
            assert found["status"] == "joining the cluster"
            os.kill(node.pid, signal.SIGTERM)
    finally:
        store.resume()


def _has_lease(store: RedisServer) -> bool:
    with store.client() as client:
        seconds, micros = client.time()
        return bool(client.zcount("rookery:{c}:nodes", seconds * 1000 + micros // 1000, "+inf"))


def _handles_signals(node: BrokerProcess) -> bool:
    """Its handler for SIGTERM is there."""
    status = Path(f"/proc/{node.pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def _resuming(client_id: str) -> Any:
    return Connect(5, client_id, clean_start=False, properties=properties(session_expiry_interval=3600))
