"""Signals: SIGHUP takes new settings, SIGTERM sends the clients away and keeps what they were promised."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio

from broker.codec.packets import Connack, Connect, Disconnect, Will
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
