"""Users in the embedded store, and in one beside a file: who is asked about whom."""

from __future__ import annotations

from pathlib import Path

import trio

from broker.codec.packets import Disconnect
from tests.integration.conftest import StartNode
from tests.integration.logins import WELCOME, WRONG, connect, login
from tests.integration.scram import Scram, scram_connect
from tests.integration.test_password_file import rookery
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import DEADLINE_S, MqttClient


async def scram_code(node: BrokerProcess, username: str, password: str, method: str = "SCRAM-SHA-512") -> int:
    client = await MqttClient.open(node.host, node.port)
    connack = await scram_connect(client, Scram(username, password, method), "scram")
    await client.close()
    return connack.reason_code


async def test_users_of_the_embedded_store(start_node: StartNode) -> None:
    node = start_node("--authentication", "store", store="embedded")
    where = ("--data-dir", str(node.directory / "data"))
    rookery("ctl", "users", "add", "ann", "--stdin", "--iterations", "10", *where, text="one\n")
    client, connack = await connect(node, "ann", "one", "c")
    assert connack.reason_code == WELCOME
    assert rookery("ctl", "users", "list", *where) == "ann\n"
    rookery("ctl", "users", "remove", "ann", *where)
    with trio.fail_after(DEADLINE_S):
        assert (await client.expect(Disconnect)).reason_code == 0x87
    assert await login(node, "ann", "one") == WRONG
    await client.close()


async def test_a_file_before_the_store(start_node: StartNode, tmp_path: Path) -> None:
    path = tmp_path / "users"
    rookery("passwd", "-b", "--scram", "--iterations", "10", str(path), "ann", "of the file")
    arguments = ("--authentication", f"password_file?path={path}", "--authentication", "store")
    node = start_node(*arguments, store="embedded")
    where = ("--data-dir", str(node.directory / "data"))
    for name in ("ann", "bob"):
        rookery("ctl", "users", "add", name, "--stdin", "--scram", "--iterations", "10", *where, text="of the store\n")
    assert await login(node, "bob", "of the store") == WELCOME
    assert await login(node, "ann", "of the file") == WELCOME
    assert await login(node, "ann", "of the store") == WRONG  # the first that knows the user decides
    assert await scram_code(node, "bob", "of the store") == 0
    assert await scram_code(node, "ann", "of the file", "SCRAM-SHA-256") == 0
    assert await scram_code(node, "ann", "of the store") == 0x87
    assert await scram_code(node, "zoe", "of the store") == 0x87
