"""Rules that change in one place count on all nodes, for clients that are connected too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from broker.codec.packets import V5, Connect, Disconnect, Publish
from tests.kit.broker_process import ROOT
from tests.kit.mqtt_client import MqttClient
from tests.multinode.nodes import SOON_S, Nodes, cluster

NODES = ("a", "b")

DENIED = 0x87


async def ctl(nodes: Nodes, *arguments: str) -> str:
    """`rookery ctl rules`, as an operator would."""
    command = [sys.executable, "-m", "broker", "ctl", "rules", *arguments, "--store", nodes.store_url]
    done = await trio.run_process(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_stdout=True, stderr=subprocess.STDOUT, check=False
    )
    output = done.stdout.decode()
    assert done.returncode == 0, output
    return output


@asynccontextmanager
async def connected(nodes: Nodes, name: str, client_id: str) -> AsyncIterator[MqttClient]:
    address = nodes.address(name)
    async with await MqttClient.open(address.host, address.port) as client:
        connack = await client.connect(Connect(V5, client_id, True, 60))
        assert connack.reason_code == 0
        yield client


async def until_published(client: MqttClient, topic: str, allowed: bool) -> None:
    """Publish until the answer is this one."""
    with trio.fail_after(SOON_S):
        while (await client.publish(topic, b"", 1) < 0x80) != allowed:
            await trio.sleep(0.01)


async def until_subscribed(client: MqttClient, topic_filter: str) -> None:
    """Subscribe until it is granted."""
    with trio.fail_after(SOON_S):
        while (await client.subscribe(topic_filter, qos=1)).reason_codes[0] >= 0x80:
            await trio.sleep(0.01)


async def expect_removed(client: MqttClient, topic_filter: str) -> None:
    """Messages may come before it."""
    while not isinstance(packet := await client.receive(SOON_S), Disconnect):
        pass
    assert packet.reason_code == DENIED
    assert packet.properties is not None
    assert topic_filter in (packet.properties.reason_string or "")


async def until_kept_from(client: MqttClient, publisher: MqttClient) -> None:
    """Publish until a message to down/secret does not come before one to down/open."""
    with trio.fail_after(SOON_S):
        while True:
            await publisher.publish("down/secret", b"", 1)
            await publisher.publish("down/open", b"", 1)
            first = await client.expect(Publish)
            if first.topic_name == "down/open":
                return
            assert (await client.expect(Publish)).topic_name == "down/open"


async def test_stored_rules(tmp_path: Path) -> None:
    async with (
        cluster(tmp_path, NODES, arguments=("--authorization", "store")) as nodes,
        connected(nodes, "a", "publisher") as publisher,
        connected(nodes, "a", "one") as one,
        connected(nodes, "b", "two") as two,
    ):
        for client in (one, two):
            client.auto_ack = True
            assert await client.publish("up/x", b"", 1) == DENIED
            assert (await client.subscribe("down/#")).reason_codes == [DENIED]
        await ctl(nodes, "add", "10", "allow", "all", "up/#", "down/#")
        await until_published(publisher, "up/x", True)
        for client in (one, two):
            await until_published(client, "up/x", True)
            await until_subscribed(client, "down/#")
        await publisher.publish("down/secret", b"1", 1)
        for client in (one, two):
            assert (await client.expect(Publish)).payload == b"1"
        # What a rule keeps from a subscription is not delivered any more; the subscription stands.
        await ctl(nodes, "add", "05", "deny", "subscribe", "down/secret")
        await until_kept_from(one, publisher)
        await two.drain()
        await until_kept_from(two, publisher)
        await ctl(nodes, "remove", "10")
        await expect_removed(one, "down/#")
        await expect_removed(two, "down/#")


def write(path: Path, rules: Sequence[dict[str, object]]) -> None:
    """Put rules in place of those in a file, at once."""
    lines: list[str] = []
    for rule in rules:
        lines.append("[[rule]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in rule.items()]
    new = path.with_suffix(".new")
    new.write_text("\n".join(lines) + "\n")
    os.replace(new, path)


@pytest.mark.parametrize("kind", ["rules_file", "acl_file"])
async def test_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rules"
    allowed: dict[str, object] = {"permission": "allow", "topics": ["t/#"]}

    def change(open_: bool) -> None:
        if kind == "rules_file":
            write(path, [allowed] if open_ else [])
        else:
            new = path.with_suffix(".new")
            new.write_text("topic readwrite t/#\n" if open_ else "topic read nothing\n")
            os.replace(new, path)

    change(True)
    async with cluster(tmp_path, NODES, arguments=("--authorization", f"{kind}?path={path}")) as nodes:
        # Not one block: the clients are gone before the third comes.
        async with connected(nodes, "a", "one") as one, connected(nodes, "b", "two") as two:
            for client in (one, two):
                assert await client.publish("t/x", b"", 1) < 0x80
                assert (await client.subscribe("t/y")).reason_codes == [2]
            change(False)
            for client in (one, two):
                await expect_removed(client, "t/y")
        async with connected(nodes, "b", "three") as three:
            assert await three.publish("t/x", b"", 1) == DENIED
            # A file that is wrong changes nothing; the next one counts.
            path.write_text("nonsense\n")
            change(True)
            await until_published(three, "t/x", True)
