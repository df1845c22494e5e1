"""Raw connections to any door of a node under abuse, and what an attack must not leave behind."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from broker.codec.encode import encode
from broker.codec.packets import V311, Connect
from tests.abuse.world import SETTLE_S, AbusedNode

MIB = 1 << 20

#: What the allocator and caches of a node may keep of an attack.
SLACK_BYTES = 24 * MIB

#: How every line of a log begins; what attackers write for one has no fractions of a second.
_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z (debug|info|warning|error) ")

CONNACK_V3 = b"\x20\x02\x00\x00"


def connect_packet(client_id: str, version: int = V311, keep_alive_s: int = 0, username: str | None = None) -> bytes:
    """A CONNECT as it is on the wire."""
    return bytes(encode(Connect(version, client_id, True, keep_alive_s, username=username), version))


class Door(NamedTuple):
    """A listener of a node."""

    host: str
    port: int


def door(node: AbusedNode, scheme: str, number: int = 0) -> Door:
    """The address of the listener with this scheme; `number` counts those of the same one."""
    found = [url for url in node.listeners if url.startswith(scheme + "://")]
    address = found[number].removeprefix(scheme + "://").partition("?")[0].partition("/")[0]
    host, _, port = address.rpartition(":")
    return Door(host.strip("[]"), int(port))


def rejected(reason: str) -> str:
    """The name of a counter."""
    return f'mqtt_connections_rejected_total{{reason="{reason}"}}'


def limited(reason: str) -> str:
    """The name of a counter."""
    return f'mqtt_limits_total{{reason="{reason}"}}'


class Raw:
    """A connection whose every byte is the test's."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = b""

    async def send(self, data: bytes) -> bool:
        """False once the node has closed."""
        try:
            with trio.fail_after(SETTLE_S):
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def trickle(self, data: bytes, pace_s: float = 0.005) -> None:
        """One byte after the other, for as long as they are taken: a slow peer is the point."""
        for byte in data:
            if not await self.send(bytes((byte,))):
                return
            await trio.sleep(pace_s)

    async def some(self) -> bytes:
        """What comes next, b"" at the end."""
        try:
            with trio.fail_after(SETTLE_S):
                data = bytes(await self.stream.receive_some(65_536))
        except trio.BrokenResourceError:
            data = b""
        self.received += data
        return data

    async def until_closed(self) -> bytes:
        """All that comes until the node closes; trio.TooSlowError if it does not."""
        with trio.fail_after(SETTLE_S):
            while await self.some():
                pass
        return self.received

    async def exactly(self, count: int) -> bytes:
        """The next bytes, all of them."""
        while len(self.received) < count:
            assert await self.some(), f"closed after {self.received!r}"
        data, self.received = self.received[:count], self.received[count:]
        return data

    def reset(self) -> None:
        """End it with RST."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


class Siege:
    """What attackers have opened."""

    def __init__(self, node: AbusedNode) -> None:
        self._node = node
        self._open: list[Raw] = []

    async def dial(self, at: Door, small: bool = False) -> Raw:
        """A connection; with `small` its kernel takes hardly anything that is not read."""
        raw = trio.socket.socket()
        if small:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        with trio.fail_after(SETTLE_S):
            await raw.connect(at)
        attacker = Raw(trio.SocketStream(raw))
        self._open.append(attacker)
        return attacker

    async def leave(self) -> None:
        """All of them are closed."""
        attackers, self._open = self._open, []
        for attacker in attackers:
            with trio.move_on_after(1):
                await attacker.stream.aclose()


@asynccontextmanager
async def siege(node: AbusedNode, slack_bytes: int = SLACK_BYTES, rounds: int = 3) -> AsyncIterator[Siege]:
    """An attack: bystanders make so many more rounds while its connections are still open; when they are gone all
    descriptors are closed, memory has come back, and each line of the log is one that the node meant."""
    descriptors, memory, log = node.descriptors(), node.rss_bytes(), len(node.whole_log())
    attackers = Siege(node)
    try:
        yield attackers
        await node.goes_on(rounds)
    finally:
        with trio.CancelScope(shield=True):
            await attackers.leave()
    await node.until(lambda: node.descriptors() <= descriptors, f"the closing of all but {descriptors} descriptors")
    assert node.rss_bytes() - memory < slack_bytes, f"{(node.rss_bytes() - memory) >> 10} KiB more than before"
    forged = [line for line in node.whole_log()[log:].splitlines() if not _LINE.match(line)]
    assert not forged, forged[:5]


async def meanwhile(node: AbusedNode, attack: Callable[[], Awaitable[None]], rounds: int = 3) -> None:
    """Repeats an attack until it was done at least once and bystanders made so many rounds during it."""
    done = trio.Event()

    async def watch() -> None:
        await node.goes_on(rounds)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        while True:
            await attack()
            if done.is_set():
                return
