"""Hooks in a running node: the example of docs/hooks.md as it stands there, and hooks that misbehave."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import trio

from broker.codec.packets import V5, Connack, Connect, Publish
from tests.conformance.peers import Peers
from tests.integration import mosquitto
from tests.integration.conftest import PeersOf, _running
from tests.kit.broker_process import ROOT, BrokerFailed, BrokerProcess
from tests.kit.mqtt_client import MqttClient

PAGE = (ROOT / "docs" / "hooks.md").read_text("utf-8")

StartHooked = Callable[..., BrokerProcess]
DEADLINE_S = 20.0
POLL_S = 0.02


def block(title: str) -> str:
    """The code block below a line of the page."""
    found = re.search(rf"^{re.escape(title)}\n\n```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/hooks.md has no {title}"
    return found[1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartHooked]:
    """Starts a node in a folder with a module on PYTHONPATH, and a configuration."""
    mine: list[BrokerProcess] = []
    numbers = count()

    def make(module: str, source: str, toml: str, **files: str) -> BrokerProcess:
        folder = tmp_path / f"n{next(numbers)}"
        packages = folder / "packages"
        packages.mkdir(parents=True)
        (packages / f"{module}.py").write_text(source)
        (folder / "rookery.toml").write_text(toml)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)
        node = BrokerProcess(
            folder,
            "memory",
            http="127.0.0.1:0",
            arguments=("--config", "rookery.toml"),
            environment={"PYTHONPATH": f"{ROOT}:{packages}"},
        )
        node.start()
        mine.append(node)
        _running.append(node)
        return node

    yield make
    for node in mine:
        _running.remove(node)
        node.stop()


async def enter(peers: Peers, username: str, password: bytes, client_id: str = "") -> tuple[MqttClient, int]:
    client = await peers.open()
    await client.send(Connect(V5, client_id, True, 0, username=username, password=password))
    return client, (await client.expect(Connack)).reason_code


async def test_the_example_of_the_page(start: StartHooked, peers_of: PeersOf) -> None:
    devices = {"pump-1": {"serial": "A1", "field": "north"}}
    node = start("orchard", block("`orchard.py`:"), block("`rookery.toml`:"), devices__json=json.dumps(devices))
    peers = peers_of(node)
    assert (await enter(peers, "pump-1", b"A1", "test-1"))[1] == 0x87
    assert (await enter(peers, "pump-1", b"wrong"))[1] == 0x86
    assert (await enter(peers, "pump-2", b"A1"))[1] == 0x86
    login = ["-u", "pump-1", "-P", "A1"]
    with mosquitto.Subscriber(node, ["pump-1/#"], *login, "-i", "watcher", qos=1) as subscriber:
        mosquitto.publish(node, "pump-1/level", "7", *login, qos=1)
        received = subscriber.take()
        assert received.payload == "7" and received.user_properties == [("field", "north")]
        for more in (["-t", "pump-2/level", "-m", "7"], ["-t", "pump-1/level", "-m", "x" * 1001]):
            done = mosquitto.run("mosquitto_pub", node, *more, "-q", "1", *login)
            assert "not authori" in (done.stdout + done.stderr).lower()
    log = node.directory / "devices.log"
    with trio.fail_after(DEADLINE_S):
        while not log.exists() or "watcher left" not in log.read_text():
            await trio.sleep(POLL_S)
    assert log.read_text().splitlines()[0] == "watcher got pump-1/level"


BAD = """
import trio

class Bad:
    def __init__(self, options):
        pass

    async def publish(self, client, message):
        match message.topic:
            case "raise":
                raise RuntimeError("in a hook")
            case "exit":
                raise SystemExit
            case "wait":
                await trio.sleep_forever()
            case "moved":
                return message.replace(topic="elsewhere")
            case "wild":
                return message.replace(topic="a/#")

    async def deliver(self, client, message):
        raise RuntimeError("in a hook")
"""


@pytest.mark.parametrize("on_error", ["deny", "ignore"])
async def test_a_hook_that_fails_hurts_nobody(start: StartHooked, peers_of: PeersOf, on_error: str) -> None:
    node = start(
        "bad", BAD, f'[[hooks]]\ntype = "hook"\ntarget = "bad:Bad"\ntimeout = "50ms"\non_error = "{on_error}"\n'
    )
    peers = peers_of(node)
    client = await peers.connect()
    other = await peers.connect()
    await other.subscribe("#")
    for topic in ("raise", "exit", "wait", "wild"):
        refused = on_error == "deny" or topic == "wild"
        for qos in (1, 2):
            assert await client.publish(topic, b"x", qos) == (0x87 if refused else 0)
        if not refused:
            assert [(await other.take(b"x")).topic_name for _ in range(2)] == [topic, topic]
    await client.publish("moved", b"y", 1)
    assert (await other.take(b"y")).topic_name == "elsewhere"
    # QoS 0 in one chunk: order is kept though each waits, and what is refused is not sent.
    await client.send(*[Publish("raise" if number % 2 else "fine", b"%d" % number) for number in range(20)])
    wanted = [number for number in range(20) if on_error == "ignore" or not number % 2]
    for number in wanted:
        await other.take(b"%d" % number)
    assert node.log().count("method=publish") == 3
    async with await trio.open_tcp_stream("127.0.0.1", int(str(node.http).rpartition(":")[2].strip("/"))) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join([part async for part in stream]).decode()
    assert 'mqtt_hook_failures_total{hook="bad:Bad",method="publish",reason="timeout"} 2.0' in text
    told = 11 if on_error == "deny" else 27
    assert f'mqtt_hook_failures_total{{hook="bad:Bad",method="deliver",reason="error"}} {told}.0' in text
    await other.expect_nothing()


async def test_a_slow_hook_holds_only_its_client(start: StartHooked, peers_of: PeersOf) -> None:
    source = (
        "import trio\nclass Slow:\n    async def publish(self, client, message):\n"
        "        if message.topic == 'slow':\n            await trio.sleep_forever()\n"
        "hook = Slow()\n"
    )
    node = start("slow", source, '[[hooks]]\ntype = "hook"\ntarget = "slow:hook"\ntimeout = "60s"\n')
    peers = peers_of(node)
    held, free = await peers.connect(), await peers.connect()
    await held.send(Publish("slow", b"x"))
    await free.subscribe("fast")
    for number in range(50):
        await free.send(Publish("fast", b"%d" % number))
        await free.take(b"%d" % number)
    await held.close()


def test_a_hook_that_is_not_there(start: StartHooked) -> None:
    with pytest.raises(BrokerFailed, match="nowhere"):
        start("bad", BAD, '[[hooks]]\ntype = "hook"\ntarget = "nowhere:Bad"\n')
