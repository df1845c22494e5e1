"""Clients from any address, before listeners that believe a PROXY header; users; and `rookery ctl bans`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest
import trio

from broker.codec.packets import V5, Connack, Connect
from tests.kit.broker_process import ROOT
from tests.kit.mqtt_client import ConnectionClosed, MqttClient

#: For clients that say where they come from.
PROXIED = "tcp://127.0.0.1:0?proxy_protocol=on&trusted_proxies=127.0.0.1"
#: What CONNACK is where the node closes without one.
CLOSED = -1
#: What has to be true everywhere after a ban: "within a second" on a machine that is not busy.
SOON_S = 20.0


class Door(Protocol):
    """Where clients come in."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


def rookery(*arguments: str, text: str = "", status: int = 0) -> str:
    """A command, as an operator would type it; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "broker", *arguments],
        input=text,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def users_file(folder: Path, *names: str) -> str:
    """A password file in which everybody's password is `right`; the option for a node."""
    path = folder / "users"
    for name in names:
        rookery("passwd", "--stdin", str(path), name, text="right\n")
    return f"password_file?path={path}"


_clients: list[MqttClient] = []


@pytest.fixture(autouse=True)
async def leave() -> AsyncIterator[None]:
    """All clients go at the end of a test."""
    yield
    while _clients:
        await _clients.pop().close()


async def stranger(door: Door, version: int = V5) -> MqttClient:
    """A network connection that says nothing."""
    client = await MqttClient.open(door.host, door.port, version)
    _clients.append(client)
    return client


async def knock(
    door: Door,
    client_id: str = "",
    username: str | None = None,
    password: bytes = b"right",
    *,
    host: str = "",
    version: int = V5,
) -> tuple[MqttClient, int]:
    """A client from `host` (behind PROXIED), and the reason code of its CONNACK, or CLOSED."""
    client = await stranger(door, version)
    if host:
        family = "TCP6 {0} ::1" if ":" in host else "TCP4 {0} 127.0.0.1"
        await client.send_raw(f"PROXY {family.format(host)} 4000 1883\r\n".encode())
    secret = None if username is None else password
    await client.send(Connect(version, client_id, True, 0, username=username, password=secret))
    try:
        return client, (await client.expect(Connack)).reason_code
    except AssertionError:
        return client, CLOSED


async def code(door: Door, *arguments: object, **named: object) -> int:
    """The same for clients that leave again."""
    client, found = await knock(door, *arguments, **named)  # type: ignore[arg-type]
    await client.close()
    return found


async def until(door: Door, expected: int, *arguments: object, **named: object) -> None:
    """Knocks until that is the answer."""
    with trio.fail_after(SOON_S):
        while (found := await code(door, *arguments, **named)) != expected:
            assert found in (0, 0x8A, 0x97, CLOSED), hex(found)
            await trio.sleep(0.05)


async def dropped(client: MqttClient, reason_code: int) -> None:
    """A connected client is told to go, and the connection is closed."""
    await client.expect_disconnect(reason_code, SOON_S)


async def is_closed(client: MqttClient) -> bool:
    """Whether the other side has closed."""
    try:
        await client.receive(SOON_S)
    except ConnectionClosed:
        return True
    return False
