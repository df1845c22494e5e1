"""A node that an operator drains: it stays, its clients go, and it takes them again."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import urllib.request
from pathlib import Path

import pytest
import trio

from broker.codec.packets import Disconnect, Pingreq, Pingresp
from tests.integration.conftest import PeersOf, StartNode
from tests.kit.api import ADMIN_ARGUMENTS, admin_of
from tests.kit.broker_process import BrokerProcess


async def test_the_address_may_be_taken_meanwhile(start_node: StartNode, peers_of: PeersOf) -> None:
    node = start_node("--node-name", "n", *ADMIN_ARGUMENTS, store="memory", http="127.0.0.1:0")
    peers = peers_of(node)
    client = await peers.connect()

    def steer() -> None:
        with admin_of(node) as admin:
            assert admin.post("/nodes/n/drain").status_code == 204
            with socket.create_server((node.host, node.port)):
                answer = admin.post("/nodes/n/undrain")
                assert answer.status_code == 409, answer.text
                assert str(node.port) in answer.json()["detail"]
                assert admin.get("/nodes/n").json()["status"] == "draining"
            assert admin.post("/nodes/n/undrain").status_code == 204
            assert admin.get("/nodes/n").json()["status"] == "ready"

    await trio.to_thread.run_sync(steer)
    assert (await client.expect(Disconnect)).reason_code == 0x8B
    await peers.connect()


async def test_a_drained_worker_comes_back_behind_the_shared_port(start_node: StartNode, peers_of: PeersOf) -> None:
    node = start_node("--workers", "2", "--node-name", "n", *ADMIN_ARGUMENTS, store="embedded", http="127.0.0.1:0")
    peers = peers_of(node)

    def steer(what: str) -> dict[str, int]:
        with admin_of(node) as admin:
            if what:
                answer = admin.post(f"/nodes/n-1/{what}")
                assert answer.status_code == 204, answer.text
                with urllib.request.urlopen(f"http://{node.http}/readyz", timeout=10) as ready:
                    shown = json.load(ready)
                assert shown["status"] == "ready"  # the other one serves
                expected = "draining" if what == "drain" else "ready"
                assert [each["status"] for each in shown["workers"]] == [expected, "ready"]
            return {each["node"]: each["connections"] for each in admin.get("/nodes").json()["items"]}

    await trio.to_thread.run_sync(steer, "drain")
    for _ in range(8):
        await peers.connect()
    assert await trio.to_thread.run_sync(steer, "") == {"n-1": 0, "n-2": 8}
    await trio.to_thread.run_sync(steer, "undrain")
    with trio.fail_after(20):
        while not (await trio.to_thread.run_sync(steer, ""))["n-1"]:
            await peers.connect()


def _ready(node: BrokerProcess) -> str:
    with admin_of(node) as admin:
        answer = admin.get(f"http://{node.http}/readyz")
        status = str(answer.json()["status"])
        assert (answer.status_code == 200) == (status == "ready")
        return status


async def _logged(node: BrokerProcess, event: str) -> None:
    with trio.fail_after(20):
        while event not in node.log():
            await trio.sleep(0.01)


def _steer(node: BrokerProcess, what: str) -> None:
    with admin_of(node) as admin:
        assert admin.post(f"/nodes/n/{what}").status_code == 204


async def test_who_sends_clients_here_has_drain_delay_to_hear_of_it(start_node: StartNode, peers_of: PeersOf) -> None:
    delay = ("--drain-delay", "1h")
    node = start_node("--node-name", "n", *delay, *ADMIN_ARGUMENTS, store="memory", http="127.0.0.1:0")
    peers = peers_of(node)
    early = await peers.connect()
    await trio.to_thread.run_sync(_steer, node, "drain")
    assert await trio.to_thread.run_sync(_ready, node) == "draining"
    late = await peers.connect()
    await trio.to_thread.run_sync(_steer, node, "undrain")
    assert await trio.to_thread.run_sync(_ready, node) == "ready"
    await trio.to_thread.run_sync(_steer, node, "drain")
    for client in (early, late):
        await client.send(Pingreq())
        await client.expect(Pingresp)
    os.kill(node.pid, signal.SIGTERM)  # the first of two that end the delay
    await _logged(node, "node.stopping")  # two at once could be taken for one


async def test_a_drained_node_that_is_stopped_does_not_wait_again(start_node: StartNode, peers_of: PeersOf) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "rookery.toml"
        config.write_text('drain_delay = "300ms"\n')
        arguments = ("--node-name", "n", "--config", str(config), *ADMIN_ARGUMENTS)
        node = start_node(*arguments, store="memory", http="127.0.0.1:0")
        peers = peers_of(node)
        client = await peers.connect()
        await trio.to_thread.run_sync(_steer, node, "drain")
        assert (await client.expect(Disconnect)).reason_code == 0x8B
        with pytest.raises(OSError, match="failed"):
            await peers.connect()
        config.write_text('drain_delay = "1h"\n')
        os.kill(node.pid, signal.SIGHUP)
        await _logged(node, "node.reloaded")
        assert await trio.to_thread.run_sync(node.terminate) == 0
