"""Limits that hold for a whole cluster: places, bans, guessed passwords, tenants; and G19 across nodes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from broker.codec.packets import V5, Connect, Publish
from tests.integration.exchange import metric, numbered
from tests.integration.guarded import (
    CLOSED,
    PROXIED,
    SOON_S,
    code,
    dropped,
    knock,
    leave,
    rookery,
    until,
    users_file,
)
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import MqttClient
from tests.multinode.nodes import LOOPBACK, Nodes, cluster

pytestmark = pytest.mark.timeout(90)

__all__ = ["leave"]  # the fixture


@asynccontextmanager
async def two(folder: Path, *arguments: str) -> AsyncIterator[Nodes]:
    """Two nodes whose listeners believe PROXY headers."""

    def prepare(nodes: Nodes) -> None:
        def make(name: str, store_url: str) -> BrokerProcess:
            return BrokerProcess(
                nodes.folder / name,
                store_url,
                listen=(PROXIED,),
                http=LOOPBACK,
                arguments=("--node-name", name, *nodes.arguments),
            )

        nodes.make = make

    async with cluster(folder, ("a", "b"), arguments=arguments, prepare=prepare) as nodes:
        yield nodes


HOST = "192.0.2.7"


async def test_places_are_those_of_all_nodes(tmp_path: Path) -> None:
    users = users_file(tmp_path, "anna", "bob")
    async with two(tmp_path, "--max-connections-per-user", "2", "--authentication", users) as nodes:
        a, b = nodes["a"], nodes["b"]
        first, _ = await knock(a, "c1", "anna", host=HOST)
        second, _ = await knock(b, "c2", "anna", host=HOST)
        for node in (a, b):
            assert await code(node, "c3", "anna", host=HOST) == 0x97
            assert await code(node, "c3", "bob", host=HOST) == 0
        # One that goes to another node takes its place along.
        moved, found = await knock(b, "c1", "anna", host=HOST)
        assert found == 0
        await dropped(first, 0x8E)
        assert await code(a, "c3", "anna", host=HOST) == 0x97
        await moved.publish("t", b"x", 1)
        await second.disconnect()
        await until(a, 0, "c3", "anna", host=HOST)


async def test_places_of_a_killed_node_are_free(tmp_path: Path) -> None:
    async with two(tmp_path, "--max-connections-per-ip", "2") as nodes:
        for number in range(2):
            assert (await knock(nodes["b"], f"b{number}", host=HOST))[1] == 0
        assert await code(nodes["a"], "c", host=HOST) == 0x97
        nodes.kill("b")
        await until(nodes["a"], 0, "c", host=HOST)


async def test_a_ban_counts_everywhere_at_once(tmp_path: Path) -> None:
    async with two(tmp_path) as nodes:
        inside = {name: (await knock(nodes[name], f"bad-{name}", host=HOST))[0] for name in "ab"}
        stays = {name: (await knock(nodes[name], f"good-{name}", host="192.0.2.9"))[0] for name in "ab"}
        await trio.to_thread.run_sync(
            lambda: rookery("ctl", "bans", "add", "--store", nodes.store_url, "--ip", f"{HOST}/32", "--for", "1h")
        )
        async with trio.open_nursery() as nursery:
            for client in inside.values():
                nursery.start_soon(dropped, client, 0x98)
        for name in "ab":
            assert await code(nodes[name], "other", host=HOST) == CLOSED
            await stays[name].publish("t", b"x", 1)
        await trio.to_thread.run_sync(
            lambda: rookery("ctl", "bans", "remove", "--store", nodes.store_url, "--ip", HOST)
        )
        for name in "ab":
            await until(nodes[name], 0, "other", host=HOST)


async def test_guessing_on_many_nodes_gains_nothing(tmp_path: Path) -> None:
    users = users_file(tmp_path, "anna")
    async with two(tmp_path, "--login-failures-limit", "6", "--authentication", users) as nodes:
        for number in range(7):
            node = nodes["ab"[number % 2]]
            assert await code(node, "x", f"user{number}", b"wrong", host=HOST) == 0x86
        for name in "ab":
            await until(nodes[name], CLOSED, "x", "anna", host=HOST)
            assert await code(nodes[name], "x", "anna", host="192.0.2.9") == 0


async def test_flapping_between_nodes(tmp_path: Path) -> None:
    async with two(tmp_path, "--flapping-limit", "4", "--flapping-window", "10m") as nodes:
        for number in range(5):
            client, found = await knock(nodes["ab"[number % 2]], "c", host=HOST)
            assert found == 0
            await client.disconnect()
        for name in "ab":
            await until(nodes[name], 0x8A, "c", host=HOST)
            assert await code(nodes[name], "d", host=HOST) == 0


#: Nobody checks user names here: the tenant is what stands before the hyphen in the client id.
TENANT_OF_ID = ("--client-attributes", "attribute?name=tenant&value=${clientid}&match=^([a-z]*)-")


async def test_a_tenant_has_one_rate(tmp_path: Path) -> None:
    rate = ("--tenant", "${client_attrs.tenant}", "--tenant-message-rate", "100", *TENANT_OF_ID)
    async with two(tmp_path, *rate) as nodes:
        reader, _ = await knock(nodes["a"], "reader", host=HOST)
        await reader.subscribe("t/#")
        senders = {name: (await knock(nodes[name], f"t-{name}", host=HOST))[0] for name in "ab"}
        started = time.monotonic()

        async def send(name: str) -> None:
            for payload in numbered("m", 250):
                await senders[name].send(Publish(f"t/{name}", payload))

        async with trio.open_nursery() as nursery:
            for name in senders:
                nursery.start_soon(send, name)
            with trio.fail_after(60):
                for _ in range(500):
                    await reader.expect(Publish, 60)
        # 500 messages at 100 a second, with 100 in the bucket.
        assert time.monotonic() - started > 3.0
        assert sum(metric(nodes[name], 'mqtt_limits_total{reason="paused_tenant"}') for name in "ab") >= 1


async def test_g19_on_another_node(tmp_path: Path) -> None:
    users = users_file(tmp_path, "anna", "bob")
    async with two(tmp_path, "--authentication", users) as nodes:
        mine, _ = await knock(nodes["a"], "c", "anna", host=HOST)
        await mine.subscribe("t", qos=1)
        for name in "ab":
            assert await code(nodes[name], "c", "bob", host=HOST) == 0x87
        # It was not even noticed.
        await mine.publish("other", b"x", 1)
        again = await MqttClient.open(nodes["b"].host, nodes["b"].port)
        async with again:
            await again.send_raw(f"PROXY TCP4 {HOST} 127.0.0.1 4000 1883\r\n".encode())
            connack = await again.connect(Connect(V5, "c", True, 0, username="anna", password=b"right"))
            assert connack.reason_code == 0
            with trio.fail_after(SOON_S):
                while True:
                    packet = await mine.receive()
                    if not isinstance(packet, Publish):
                        break
            assert getattr(packet, "reason_code", 0) == 0x8E
