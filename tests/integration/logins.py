"""Logging in, as the tests of databases and directories do it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import trio

from broker.codec.packets import V5, Connack, Connect
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import DEADLINE_S, MqttClient

WELCOME, WRONG, NOBODY, UNAVAILABLE = 0, 0x86, 0x87, 0x88

#: For nodes of these tests: what a backend that says nothing costs, and how soon rules are read again.
TIMEOUT = "700ms"


def node_with(
    folder: Path, authentication: Sequence[Mapping[str, object]], authorization: Sequence[Mapping[str, object]] = ()
) -> BrokerProcess:
    """A node, not started, with these blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [("authentication", each) for each in authentication] + [("authorization", each) for each in authorization]
    lines = ["allow_anonymous = false"]
    for kind, block in blocks:
        lines.append(f"[[{kind}]]")
        # JSON's texts, numbers and booleans are TOML's, too.
        lines += [f"{name} = {json.dumps(value)}" for name, value in block.items()]
    path = folder / "rookery.toml"
    path.write_text("\n".join(lines) + "\n")
    return BrokerProcess(folder, "memory", arguments=("--config", str(path)))


class Door(Protocol):
    """Where clients come in: a node, or one of its listeners."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


async def connect(
    node: Door, username: str | None, password: str | bytes | None, client_id: str = ""
) -> tuple[MqttClient, Connack]:
    """A connection and what was said to its CONNECT."""
    client = await MqttClient.open(node.host, node.port)
    secret = password.encode() if isinstance(password, str) else password
    await client.send(Connect(V5, client_id, True, 0, username=username, password=secret))
    return client, await client.expect(Connack)


async def login(node: Door, username: str | None, password: str | bytes | None, client_id: str = "") -> int:
    """The reason code of CONNACK."""
    client, connack = await connect(node, username, password, client_id)
    await client.close()
    return connack.reason_code


async def login_when_back(node: Door, username: str, password: str) -> int:
    """As `login`, once the backend could be asked: there is a pause between tries to reach it."""
    with trio.fail_after(DEADLINE_S):
        while (code := await login(node, username, password)) == UNAVAILABLE:
            await trio.sleep(0.02)
    return code


async def still_serves(node: Door, client: MqttClient, topic: str, meanwhile: Sequence[tuple[str, str]]) -> None:
    """While these users try to log in and get no answer, a client that is there already publishes and is answered."""
    refused: list[int] = []

    async def try_login(username: str, password: str) -> None:
        refused.append(await login(node, username, password))

    async with trio.open_nursery() as nursery:
        for username, password in meanwhile:
            nursery.start_soon(try_login, username, password)
        before = 0
        while len(refused) < len(meanwhile):
            assert await client.publish(topic, b"x", qos=1) < 0x80
            before += not refused
    assert refused == [UNAVAILABLE] * len(meanwhile)
    assert before > 5
