"""Users of a file: user name and password in all versions, SCRAM and re-authentication in version 5."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.codec.packets import V5, V31, V311, Auth, Connack, Connect, Disconnect, Publish
from tests.conformance.peers import Peers
from tests.integration import mosquitto
from tests.integration.conftest import STORE, PeersOf
from tests.integration.javascript import JavaScript
from tests.integration.paho_client import Paho
from tests.integration.scram import METHOD, Scram, answer, scram_connect
from tests.kit.broker_process import ROOT, BrokerProcess
from tests.kit.mqtt_client import UnexpectedPacket, properties


def add_user(path: Path, name: str, password: str) -> None:
    """`rookery passwd`, as an operator would."""
    done = subprocess.run(
        [sys.executable, "-m", "broker", "passwd", "--scram", str(path), name],
        input=f"{password}\n{password}\n",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one user."""
    path = tmp_path_factory.mktemp("users") / "users"
    add_user(path, "ann", "open, sesame")
    return path


@pytest.fixture(scope="module")
def node(users: Path) -> Iterator[BrokerProcess]:
    """A node with these users."""
    process = BrokerProcess(users.parent / "node", STORE, arguments=("--authentication", f"password_file?path={users}"))
    process.start()
    yield process
    process.stop()


@pytest.fixture
def peers(peers_of: PeersOf, node: BrokerProcess) -> Peers:
    """Raw clients of that node."""
    return peers_of(node)


@pytest.mark.parametrize("version", [3, 4, 5])
def test_mosquitto_with_user_and_password(node: BrokerProcess, topic: str, version: int) -> None:
    right = ["-u", "ann", "-P", "open, sesame"]
    with mosquitto.Subscriber(node, [topic], *right, version=version) as subscriber:
        mosquitto.publish(node, topic, "let in", *right, qos=1, version=version)
        assert subscriber.take().payload == "let in"
    for wrong in ([], ["-u", "ann", "-P", "wrong"], ["-u", "zoe", "-P", "open, sesame"], ["-u", "ann"]):
        done = mosquitto.run("mosquitto_pub", node, "-t", topic, "-m", "x", *wrong, version=version)
        assert done.returncode != 0
        assert "not authori" in (done.stdout + done.stderr).lower() or "bad user" in (done.stdout + done.stderr).lower()


@pytest.mark.parametrize("version", [V31, V311, V5])
async def test_reason_codes(peers: Peers, version: int) -> None:
    for username, password, new, old in (
        (None, None, 0x87, 5),
        ("ann", b"wrong", 0x86, 4),
        ("zoe", b"open, sesame", 0x86, 4),
    ):
        client = await peers.open(version)
        await client.send(Connect(version, "someone", True, 0, username=username, password=password))
        connack = await client.expect(Connack)
        assert connack.reason_code == (new if version == V5 else {5: 0x87, 4: 0x86}[old])
        await client.expect_closed()


def test_paho_with_user_and_password(node: BrokerProcess, topic: str) -> None:
    client = Paho(node)
    client.client.username_pw_set("ann", "open, sesame")
    with client:
        client.connect()
        assert client.reason is not None and client.reason.value == 0
        client.subscribe(topic)
        client.publish(topic, "x", 2)
        assert client.take().payload == b"x"
    refused = Paho(node)
    refused.client.username_pw_set("ann", "wrong")
    with refused:
        refused.connect()
        assert refused.reason is not None and refused.reason.value == 0x86


@pytest.mark.parametrize("method", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_scram(peers: Peers, topic: str, method: str) -> None:
    client = await peers.open()
    scram = Scram("ann", "open, sesame", method)
    connack = await scram_connect(client, scram, "scram")
    assert connack.reason_code == 0 and connack.properties is not None
    assert connack.properties.authentication_method == method
    scram.check(connack.properties.authentication_data)
    await client.subscribe(topic)
    await client.send(Publish(topic, b"authenticated"))
    assert (await client.expect(Publish)).payload == b"authenticated"


@pytest.mark.parametrize("method", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize(("name", "password"), [("ann", "wrong"), ("zoe", "open, sesame")])
async def test_scram_refuses(peers: Peers, name: str, password: str, method: str) -> None:
    client = await peers.open()
    connack = await scram_connect(client, Scram(name, password, method), "scram")
    assert connack.reason_code == 0x87
    await client.expect_closed()


async def test_an_unknown_method(peers: Peers) -> None:
    client = await peers.open()
    connack = await client.connect(
        Connect(V5, "c", True, 0, properties=properties(authentication_method="GS2-KRB5", authentication_data=b"x"))
    )
    assert connack.reason_code == 0x8C
    await client.expect_closed()


async def test_reauthentication(peers: Peers, topic: str) -> None:
    client = await peers.open()
    await scram_connect(client, Scram("ann", "open, sesame"), "scram")
    await client.subscribe(topic)
    other = await peers.open()
    await scram_connect(other, Scram("ann", "open, sesame"), "other")
    scram = Scram("ann", "open, sesame")
    await answer(client, scram.first(), 0x19)
    challenge = await client.expect(Auth)
    assert challenge.reason_code == 0x18 and challenge.properties is not None
    # Messages go on meanwhile.
    await other.publish(topic, b"meanwhile", 1)
    await client.take(b"meanwhile")
    await answer(client, scram.final(challenge.properties.authentication_data))
    done = await client.expect(Auth)
    assert done.reason_code == 0 and done.properties is not None
    scram.check(done.properties.authentication_data)
    await other.publish(topic, b"still here", 1)
    await client.take(b"still here")


async def test_a_failed_reauthentication_ends_the_connection(peers: Peers, topic: str) -> None:
    client = await peers.open()
    await scram_connect(client, Scram("ann", "open, sesame"), "scram")
    scram = Scram("ann", "wrong")
    await answer(client, scram.first(), 0x19)
    challenge = await client.expect(Auth)
    assert challenge.properties is not None
    await answer(client, scram.final(challenge.properties.authentication_data))
    await client.expect_disconnect(0x87)


async def test_reauthentication_without_authentication(peers: Peers) -> None:
    client = await peers.open()
    connack = await client.connect(Connect(V5, "plain", True, 0, username="ann", password=b"open, sesame"))
    assert connack.reason_code == 0
    await answer(client, Scram("ann", "open, sesame").first(), 0x19)
    await client.expect_disconnect(0x82)


async def test_a_packet_in_the_middle_of_the_exchange(peers: Peers, topic: str) -> None:
    client = await peers.open()
    values = properties(authentication_method=METHOD, authentication_data=Scram("ann", "x").first())
    await client.send(Connect(V5, "early", True, 0, properties=values))
    await client.expect(Auth)
    await client.send(Publish(topic, b"too early"))
    await peers.refused(client, 0x82)


@pytest.mark.parametrize("method", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("password", ["open, sesame", "wrong"])
def test_scram_of_mqttjs(node: BrokerProcess, topic: str, method: str, password: str) -> None:
    scram = {"username": "ann", "password": password}
    with JavaScript(node) as js:
        said = js.do(
            "connect",
            "js",
            url=f"mqtt://{node.host}:{node.port}",
            options={"protocolVersion": 5, "clientId": "js", "properties": {"authenticationMethod": method}},
            scram=scram,
        )
        assert ("error" in said) == (password == "wrong"), said
        if password == "wrong":
            assert said["code"] == 0x87
            return
        assert js.do("verified", "js")
        js.do("subscribe", "js", topic=topic)
        js.do("publish", "js", topic=topic, payload="x", options={"qos": 1})
        assert js.event("message")["payload"] == "x"


async def test_users_are_read_again(node: BrokerProcess, users: Path, peers: Peers) -> None:
    client = await peers.open()
    await scram_connect(client, Scram("ann", "open, sesame"), "ann")
    add_user(users, "bob", "builder")
    os.kill(node.pid, signal.SIGHUP)
    for _ in range(200):
        newcomer = await peers.open()
        connack = await scram_connect(newcomer, Scram("bob", "builder"), "bob")
        if connack.reason_code == 0:
            break
    else:
        raise UnexpectedPacket("bob is not let in")
    await client.expect_nothing()
    await client.disconnect(Disconnect())
