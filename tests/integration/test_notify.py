"""What systemd hears from a node (sd_notify), over a real socket and with the sender's process id."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
import trio

from broker.codec.packets import Connect
from broker.notify import Notifier
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import MqttClient

Heard = list[dict[str, str]]


class Manager:
    """The other end: takes from `pid` only, as systemd does with NotifyAccess=main."""

    def __init__(self, folder: Path, abstract: bool) -> None:
        self.address = f"@rookery-test-{os.getpid()}-{folder.name}" if abstract else str(folder / "notify")
        self._socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    async def open(self) -> None:
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        await self._socket.bind(name)

    def close(self) -> None:
        self._socket.close()

    async def heard(self, pid: int, name: str, value: str = "1") -> Heard:
        """All up to the message that has this."""
        found: Heard = []
        with trio.fail_after(30):
            while not found or found[-1].get(name) != value:
                data, [(_, _, credentials)], _, _ = await self._socket.recvmsg(4096, socket.CMSG_SPACE(12))
                assert struct.unpack("3i", credentials)[0] == pid
                message = dict(line.split("=", 1) for line in data.decode().split("\n"))
                if set(message) != {"WATCHDOG"} or name == "WATCHDOG":
                    found.append(message)
        return found


@asynccontextmanager
async def managed(
    folder: Path, *arguments: str, abstract: bool = False, store: str = "memory", http: str = "off", **environment: str
) -> AsyncIterator[tuple[Manager, BrokerProcess]]:
    """A node that is ready, before anything of it was heard."""
    manager = Manager(folder, abstract)
    await manager.open()
    told = {"NOTIFY_SOCKET": manager.address, **environment}
    node = BrokerProcess(folder / "node", store, http=http, arguments=arguments, environment=told)
    try:
        await trio.to_thread.run_sync(node.start)
        yield manager, node
    finally:
        await trio.to_thread.run_sync(node.stop)
        manager.close()


async def test_a_life(tmp_path: Path) -> None:
    config = tmp_path / "rookery.toml"
    config.write_text('log_level = "info"\n')
    arguments = ("--config", str(config), "--drain-delay", "100s", "--drain-timeout", "20s")
    async with managed(tmp_path, *arguments, WATCHDOG_USEC="100000") as (manager, node):
        heard = await manager.heard(node.pid, "READY")
        assert not any("READY" in message for message in heard[:-1])
        assert heard[-1]["STATUS"] == "ready; 0 connections"
        async with await MqttClient.open(node.host, node.port) as client:
            await client.connect(Connect(5, "a"))
            await manager.heard(node.pid, "STATUS", "ready; 1 connections")
        for _ in range(3):
            await manager.heard(node.pid, "WATCHDOG")

        for text in ('log_level = "warning"\n', "no TOML"):  # however it ends, the manager must not wait for it
            config.write_text(text)
            os.kill(node.pid, signal.SIGHUP)
            begun, done = [each for each in await manager.heard(node.pid, "READY") if set(each) != {"STATUS"}]
            assert begun["RELOADING"] == "1" and int(begun["MONOTONIC_USEC"]) > 0 and "READY" not in begun
            assert "RELOADING" not in done

        os.kill(node.pid, signal.SIGTERM)
        [*_, last] = await manager.heard(node.pid, "STOPPING")
        assert int(last["EXTEND_TIMEOUT_USEC"]) > 120_000_000
        assert last["STATUS"].startswith("draining; ")
        await manager.heard(node.pid, "WATCHDOG")  # it lives while it drains
        os.kill(node.pid, signal.SIGHUP)  # the way to its end is not left
        await manager.heard(node.pid, "WATCHDOG")
        os.kill(node.pid, signal.SIGTERM)
        assert await trio.to_thread.run_sync(node.wait) == 0


async def test_of_workers_the_parent_tells(tmp_path: Path) -> None:
    arguments = ("--workers", "2")
    async with managed(tmp_path, *arguments, abstract=True, store="embedded") as (manager, node):
        assert (await manager.heard(node.pid, "READY"))[-1]["STATUS"] == "ready; 2 of 2 workers ready"
        os.kill(node.pid, signal.SIGHUP)
        heard = await manager.heard(node.pid, "READY")
        assert [set(each) - {"STATUS", "MONOTONIC_USEC"} for each in heard] == [{"RELOADING"}, {"READY"}]
        os.kill(node.pid, signal.SIGTERM)
        await manager.heard(node.pid, "STOPPING")


async def test_a_worker_that_stands_still_is_started_again(tmp_path: Path) -> None:
    """In the time after which the manager does so with the parent."""
    arguments = ("--workers", "2", "--node-name", "w")
    watched = managed(tmp_path, *arguments, store="embedded", http="127.0.0.1:0", WATCHDOG_USEC="6000000")
    async with watched as (manager, node):

        def workers() -> dict[str, int]:
            """The process ids of those that are ready."""
            try:
                with urllib.request.urlopen(f"http://{node.http}/readyz", timeout=30) as answer:
                    told = json.load(answer)
            except urllib.error.HTTPError as refusal:
                with refusal:
                    told = json.load(refusal)
            return {each["node"]: each["pid"] for each in told["workers"] if each["status"] == "ready"}

        await manager.heard(node.pid, "READY")
        before = await trio.to_thread.run_sync(workers)
        os.kill(before["w-2"], signal.SIGSTOP)
        with trio.fail_after(60):
            while (now := await trio.to_thread.run_sync(workers)).get("w-2") in (None, before["w-2"]):
                await manager.heard(node.pid, "WATCHDOG")
        assert now["w-1"] == before["w-1"]
        assert "worker.killed worker=w-2" in node.log()


async def test_a_manager_that_has_gone_is_in_nobodys_way(tmp_path: Path) -> None:
    async with managed(tmp_path, WATCHDOG_USEC="10000") as (manager, node):
        manager.close()
        (tmp_path / "notify").unlink()
        async with await MqttClient.open(node.host, node.port) as client:
            await client.connect(Connect(5, "a"))
        assert "notify" not in node.log()


async def test_a_manager_that_does_not_read_hears_later_what_counts(tmp_path: Path) -> None:
    manager = Manager(tmp_path, abstract=False)
    await manager.open()
    crowd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with closing(manager), closing(crowd), closing(Notifier(manager.address, 0.02)) as notifier:

        async def lines_after(*calls: Callable[[], None]) -> set[str]:
            """What comes of calls while there is no room, once there is."""
            with suppress(BlockingIOError):
                while True:
                    crowd.sendto(b"CROWD=1", manager.address)
            for call in calls:
                call()
            await manager.heard(os.getpid(), "CROWD")
            return set((await manager.heard(os.getpid(), "WATCHDOG"))[-1]) - {"WATCHDOG"}

        async with trio.open_nursery() as nursery:
            nursery.start_soon(notifier.serve, lambda: "fine")
            await manager.heard(os.getpid(), "STATUS", "fine")
            assert await lines_after(notifier.ready) == {"READY"}
            assert await lines_after() == set()  # once
            assert await lines_after(notifier.reloading, notifier.reloaded) == {"READY"}  # the last state
            assert await lines_after(notifier.reloading) == {"RELOADING", "MONOTONIC_USEC"}
            assert await lines_after(notifier.reloaded, lambda: notifier.stopping(1.0)) == {
                "STOPPING",
                "EXTEND_TIMEOUT_USEC",
            }
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "given, watchdog_s",
    [
        ({}, 0.0),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000"}, 30.0),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 0.0),
        ({"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "30000000"}, 0.0),
    ],
)
async def test_the_environment(given: dict[str, str], watchdog_s: float) -> None:
    environ = {**given, "OTHER": "x"}
    with closing(Notifier.take(environ)) as notifier:
        assert notifier.watchdog_s == watchdog_s and environ == {"OTHER": "x"}  # children are not meant
        if not given.get("NOTIFY_SOCKET", "").startswith("/"):
            notifier.ready()
            await notifier.serve(lambda: "never asked")  # returns: there is nobody to tell
