"""Users in the cluster's store, managed on the command line: what changes counts on every node."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import trio

from broker.codec.packets import Disconnect
from tests.integration.logins import WELCOME, WRONG, connect, login
from tests.integration.scram import Scram, scram_connect
from tests.kit.broker_process import ROOT
from tests.kit.mqtt_client import DEADLINE_S, MqttClient
from tests.multinode.conftest import NAMES, StartCluster
from tests.multinode.nodes import Nodes


@pytest.fixture
async def users(start_cluster: StartCluster) -> Nodes:
    """Three nodes whose users are in their store."""
    return await start_cluster("--authentication", "store", "--no-allow-anonymous")


async def ctl(nodes: Nodes, *arguments: str, text: str = "", status: int = 0) -> str:
    """`rookery ctl users`; returns what it printed."""
    command = [sys.executable, "-m", "broker", "ctl", "users", *arguments, "--store", nodes.store_url]

    def run() -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command,
            input=text,
            env=environment,
            cwd=nodes.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    done = await trio.to_thread.run_sync(run)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


async def add(nodes: Nodes, name: str, password: str, *more: str) -> None:
    await ctl(nodes, "add", name, "--stdin", "--iterations", "1000", *more, text=f"{password}\n")


async def refused(nodes: Nodes, username: str, password: str) -> None:
    """By every node, from now on."""
    for name in NAMES:
        assert await login(nodes[name], username, password) == WRONG


async def test_users_of_the_store(users: Nodes) -> None:
    await refused(users, "ann", "one")
    await add(users, "ann", "one", "--scram", "--superuser", "--attribute", "site=bern")
    await add(users, "bob", "two")
    for name in NAMES:
        assert await login(users[name], "ann", "one") == WELCOME
        assert await login(users[name], "bob", "two") == WELCOME
        assert await login(users[name], "ann", "two") == WRONG
        for method in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            client = await MqttClient.open(users[name].host, users[name].port)
            assert (await scram_connect(client, Scram("ann", "one", method), "scram")).reason_code == 0
            await client.close()
            client = await MqttClient.open(users[name].host, users[name].port)
            assert (await scram_connect(client, Scram("bob", "two", method), "scram")).reason_code == 0x87
            await client.close()
    assert await ctl(users, "list") == "ann superuser\nbob\n"
    shown = json.loads(await ctl(users, "show", "ann"))
    assert (shown["superuser"], shown["attributes"], len(shown["scram"])) == (True, {"site": "bern"}, 2)
    assert shown["password"].startswith("pbkdf2_sha512:1000")
    assert "already" in await ctl(users, "add", "ann", "--stdin", text="x\n", status=1)
    for command in ("remove", "disable", "enable", "show"):
        assert "no user 'zoe'" in await ctl(users, command, "zoe", status=1)


CHANGES = {
    "remove": ("remove",),
    "disable": ("disable",),
    "passwd": ("passwd", "--stdin", "--iterations", "1000"),
    "superuser": ("change", "--superuser"),
    "attribute": ("change", "--attribute", "site=basel"),
}


async def test_a_changed_user_is_disconnected_everywhere(users: Nodes) -> None:
    for name in ("bob", *CHANGES):
        await add(users, name, "one")
    clients = {
        name: [(await connect(users[node], name, "one", f"{name}-{node}"))[0] for node in NAMES]
        for name in ("bob", *CHANGES)
    }
    for name, arguments in CHANGES.items():
        await ctl(users, *arguments, name, text="other\n")
        with trio.fail_after(DEADLINE_S):
            for client in clients[name]:
                assert (await client.expect(Disconnect)).reason_code == 0x87
        for node in NAMES:
            code = await login(users[node], name, "one")
            assert code == (WELCOME if name in ("superuser", "attribute") else WRONG)
    for client in clients["bob"]:
        await client.expect_nothing()
    assert "disable disabled\n" in await ctl(users, "list")
    await ctl(users, "enable", "disable")
    assert await login(users["a"], "disable", "one") == WELCOME
    for client in (each for of_user in clients.values() for each in of_user):
        await client.close()


async def test_strangers_see_one_salt_on_all_nodes(users: Nodes) -> None:
    await add(users, "ann", "one", "--scram")
    shown: set[str] = set()
    for name in NAMES:
        for _ in range(2):
            client = await MqttClient.open(users[name].host, users[name].port)
            scram = Scram("nobody", "x")
            assert (await scram_connect(client, scram, "c")).reason_code == 0x87
            shown.add(scram.salt)
            await client.close()
    assert len(shown) == 1
