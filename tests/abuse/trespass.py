"""Clients who are where they should not be, and what they must not leave behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from broker.codec.packets import V5, Connack, Connect, Will
from tests.abuse.conftest import Nodes
from tests.abuse.siege import siege
from tests.abuse.world import DEFECTS, AbusedNode, new_name
from tests.kit.mqtt_client import MqttClient, properties

DENIED = 0x87
WRONG = 0x86


@contextmanager
def nodes_of_a_module(folder: Path) -> Iterator[Nodes]:
    """Nodes that are gone before what they depend on, such as a store."""
    running = Nodes(folder)
    try:
        yield running
    finally:
        running.stop()
    assert DEFECTS.search(running.new_log()) is None


_inside: list[MqttClient] = []


@asynccontextmanager
async def trespassing(node: AbusedNode) -> AsyncIterator[None]:
    """See `siege`; the clients of the test leave before memory and descriptors are looked at."""
    async with siege(node):
        try:
            yield
            await node.goes_on(2)
        finally:
            with trio.CancelScope(shield=True):
                while _inside:
                    await _inside.pop().close()


async def knock(
    node: AbusedNode,
    username: str | None = None,
    client_id: str = "",
    password: bytes | None = None,
    *,
    clean_start: bool = True,
    expiry_s: int = 0,
    will: Will | None = None,
    version: int = V5,
) -> tuple[MqttClient, Connack]:
    """A client, and the answer to its CONNECT."""
    client = await node.open(version)
    _inside.append(client)
    sent = properties(session_expiry_interval=expiry_s) if version == V5 and expiry_s else None
    packet = Connect(
        version, client_id or new_name(), clean_start, 0, username=username, password=password, will=will,
        properties=sent,
    )  # fmt: skip
    await client.send(packet)
    client.client_id = packet.client_id
    return client, await client.expect(Connack)


async def enter(
    node: AbusedNode, username: str | None = None, client_id: str = "", password: bytes | None = None, expiry_s: int = 0
) -> MqttClient:
    """A client that the node has to accept; with `expiry_s` it goes on with the session that it has."""
    client, connack = await knock(node, username, client_id, password, clean_start=not expiry_s, expiry_s=expiry_s)
    assert connack.reason_code == 0, f"refused with 0x{connack.reason_code:02x}"
    client.connack = connack
    return client


async def code(node: AbusedNode, *arguments: object, **named: object) -> int:
    """The reason code that a client gets, which leaves again."""
    client, connack = await knock(node, *arguments, **named)  # type: ignore[arg-type]
    await client.close()
    return connack.reason_code
