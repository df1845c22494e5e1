"""Signals: SIGHUP takes new settings, SIGTERM sends the clients away and keeps what they were promised."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import trio

from broker.codec.packets import Connack, Connect, Disconnect, Publish, Will
from tests.integration.conftest import PeersOf, StartNode
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import MqttClient


async def _wait_for_log(node: BrokerProcess, event: str, times: int = 1) -> None:
    with trio.fail_after(10):
        while node.log().count(event) < times:
            await trio.sleep(0.01)


async def _announced_packet_size(node: BrokerProcess) -> int | None:
    async with await MqttClient.open(node.host, node.port) as client:
        connack = await client.connect(Connect(5, "reload"))
        assert connack.properties is not None
        return connack.properties.maximum_packet_size


async def test_sighup_takes_new_settings_and_names_those_that_need_a_restart(
    start_node: StartNode, tmp_path: Path
) -> None:
    config = tmp_path / "rookery.toml"
    config.write_text('max_packet_size = "100KiB"\n')
    node = start_node("--config", str(config))
    assert await _announced_packet_size(node) == 100 * 1024
    config.write_text('max_packet_size = "200KiB"\nmax_queued_messages = 5\n')
    os.kill(node.pid, signal.SIGHUP)
    await _wait_for_log(node, "node.reloaded")
    assert await _announced_packet_size(node) == 200 * 1024
    assert "node.restart_needed" in node.log()
    assert "max_queued_messages" in node.log()


async def test_sighup_with_a_broken_file_keeps_the_old_settings(start_node: StartNode, tmp_path: Path) -> None:
    config = tmp_path / "rookery.toml"
    config.write_text('max_packet_size = "100KiB"\n')
    node = start_node("--config", str(config))
    config.write_text('max_paket_size = "200KiB"\n')
    os.kill(node.pid, signal.SIGHUP)
    await _wait_for_log(node, "node.not_reloaded")
    assert "max_packet_size" in node.log()  # the nearest name
    assert await _announced_packet_size(node) == 100 * 1024


async def test_sigterm_sends_clients_away_with_a_reason_and_exits_0(start_node: StartNode, peers_of: PeersOf) -> None:
    node = start_node()
    clients = [await peers_of(node).connect() for _ in range(5)]
    old = await peers_of(node).connect(4)
    status: list[int] = []

    async def terminate() -> None:
        status.append(await trio.to_thread.run_sync(node.terminate))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminate)
        for client in clients:
            packet = await client.expect(Disconnect)
            assert packet.reason_code == 0x8B
            await client.expect_closed()
        await old.expect_closed()
    assert status == [0]


async def test_a_draining_node_says_so_before_it_stops_to_accept(start_node: StartNode, peers_of: PeersOf) -> None:
    node = start_node(
        *("--node-name", "n", "--drain-delay", "1h", "--server-reference", "other.example:1883"), http="127.0.0.1:0"
    )
    peers = peers_of(node)
    await peers.connect()
    status, body = await trio.to_thread.run_sync(_get, node, "/readyz")
    assert (status, body["status"], body["node"], body["connections"]) == (200, "ready", "n", 1)
    assert body["members"] == [body["member"]]
    os.kill(node.pid, signal.SIGTERM)
    await _wait_for_log(node, "node.stopping")
    status, body = await trio.to_thread.run_sync(_get, node, "/readyz")
    assert (status, body["status"]) == (503, "draining")
    status, body = await trio.to_thread.run_sync(_get, node, "/healthz")
    assert (status, body["status"], body["readiness"]) == (200, "alive", "draining")
    await peers.connect()  # a load balancer may need a moment to see it
    assert await trio.to_thread.run_sync(node.terminate) == 0


async def test_a_drained_client_is_told_where_to_go(start_node: StartNode, peers_of: PeersOf) -> None:
    node = start_node("--server-reference", "other.example:1883")
    client = await peers_of(node).connect()
    os.kill(node.pid, signal.SIGTERM)
    packet = await client.expect(Disconnect)
    assert packet.properties is not None
    assert packet.properties.server_reference == "other.example:1883"
    assert await trio.to_thread.run_sync(node.wait) == 0


def _get(node: BrokerProcess, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://{node.http}{path}", timeout=10) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


async def test_metrics_of_a_node(start_node: StartNode, peers_of: PeersOf) -> None:
    node = start_node(http="127.0.0.1:0")
    peers = peers_of(node)
    member = await peers.subscriber(f"$share/g/{peers.topic()}", qos=1)
    await (await peers.connect()).publish(peers.topic(), b"m", qos=1)
    await member.take(b"m")

    def metrics() -> dict[str, float]:
        with urllib.request.urlopen(f"http://{node.http}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    with trio.fail_after(20):
        # The store is asked for it now and then.
        while not (found := await trio.to_thread.run_sync(metrics)).get("mqtt_cluster_shared_groups"):
            await trio.sleep(0.05)
    assert found["mqtt_cluster_shared_group_lag"] == found["mqtt_cluster_shared_group_lag_max"] == 0
    assert sum(value for name, value in found.items() if name.startswith("mqtt_connections{")) == 2
    assert found["mqtt_cluster_members"] == 1
    assert found["mqtt_cluster_shared_groups"] == 1
    assert found["mqtt_store_available"] == 1
    assert found['mqtt_messages_received_total{qos="1"}'] == 1
    assert found['mqtt_messages_sent_total{qos="1"}'] == 1
    assert found["mqtt_bytes_received_total"] > 0


@pytest.mark.parametrize("topic_filter", ["$SYS/#", "$SYS/brokers/n/durability", "$SYS/brokers/+/durability"])
async def test_a_node_tells_its_durability(start_node: StartNode, peers_of: PeersOf, topic_filter: str) -> None:
    node = start_node("--node-name", "n", "--sys-interval", "0s", "--sys-access", "all", store="embedded")
    client = await peers_of(node).subscriber(topic_filter)
    told = await client.expect(Publish)
    assert (told.topic_name, told.payload, told.qos, told.retain) == ("$SYS/brokers/n/durability", b"aof", 0, True)
    await client.subscribe("#", "$SYS/brokers/other/durability")
    await client.expect_nothing()
    assert " durability=aof " in node.log()


async def test_a_second_sigterm_ends_the_drain(start_node: StartNode, peers_of: PeersOf) -> None:
    node = start_node("--drain-rate", "1", "--drain-timeout", "1h")
    for _ in range(30):
        await peers_of(node).connect()
    os.kill(node.pid, signal.SIGTERM)
    await _wait_for_log(node, "node.stopping")
    assert await trio.to_thread.run_sync(node.terminate) == 0
    assert "node.hurried" in node.log()
    assert "node.stopped" in node.log()


async def test_a_client_that_is_back_soon_after_a_restart_keeps_its_will(
    start_node: StartNode, peers_of: PeersOf
) -> None:
    node = start_node("--will-failover-grace", "2s", store="embedded")
    peers = peers_of(node)
    for name in ("back", "gone"):
        await peers.connect(client_id=name, persistent=True, will=Will(f"wills/{name}", b"gone", 1, False))
    watcher = await peers.connect(client_id="watcher", persistent=True)
    await watcher.subscribe("wills/+", qos=1)
    assert node.terminate() == 0
    node.start()
    back = await MqttClient.open(node.host, node.port)
    assert (await back.connect(_resume("back"))).session_present
    watcher = await MqttClient.open(node.host, node.port)
    assert isinstance(await watcher.connect(_resume("watcher")), Connack)
    will = await watcher.take(b"gone")
    assert will.topic_name == "wills/gone"
    await watcher.expect_nothing()
    await back.close()
    await watcher.close()


def _resume(client_id: str) -> Connect:
    from tests.kit.mqtt_client import properties

    return Connect(5, client_id, clean_start=False, properties=properties(session_expiry_interval=3600))
