"""What things take in the store: `python -m tests.docs.sizing` prints the figures of docs/sizing.md.

Sessions, subscriptions, queued and retained messages are made through the protocol by one node on a store of its own,
and `used_memory` of the store is read before and after. Every figure is an average over many, so that the growth of
the store's tables (which double) is part of it.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from broker.codec.encode import encode
from broker.codec.packets import V5, Connect, Disconnect, Packet, Publish, Subscribe, SubscriptionRequest
from broker.codec.primitives import FrameBuffer
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import properties
from tests.kit.redis_server import plain_client, redis_server

IN_PARALLEL = 50
#: Publications of a connection under way: what a node announces as Receive Maximum.
WINDOW = 100
DAY_S = 86_400
#: Of each session where subscriptions are measured, and messages in each queue.
FILTERS = 4
QUEUED = 4
PAYLOAD = 64

_CONNACK, _PUBACK, _SUBACK = 2, 4, 9


class Sizes(NamedTuple):
    """Bytes in the store."""

    session: float
    subscription: float
    #: Beside the payload.
    queued: float
    retained: float


class _Wire:
    """A connection that sends many packets at a time and counts the answers."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._frames = FrameBuffer()

    async def exchange(self, packets: Sequence[Packet], kind: int, answers: int) -> None:
        await self._stream.send_all(b"".join(encode(packet, V5) for packet in packets))
        while answers:
            data = await self._stream.receive_some(65_536)
            if not data:
                raise RuntimeError("the node closed the connection")
            self._frames.feed(data)
            for first_byte, body in self._frames:
                if first_byte >> 4 == kind:
                    answers -= 1
                elif first_byte >> 4 == _CONNACK and body[1]:
                    raise RuntimeError(f"refused: {body.hex()}")


@asynccontextmanager
async def _connected(node: BrokerProcess, client_id: str, expiry_s: int) -> AsyncIterator[_Wire]:
    """A client, whose session is stored when this is left."""
    async with await trio.open_tcp_stream(node.host, node.port) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = _Wire(stream)
        kept = properties(session_expiry_interval=expiry_s)
        await wire.exchange([Connect(V5, client_id, not expiry_s, 0, properties=kept)], _CONNACK, 1)
        yield wire
        await stream.send_all(encode(Disconnect(), V5))
        await stream.receive_some(1)


async def _sessions(node: BrokerProcess, kind: str, count: int, filters: int) -> None:
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            async with _connected(node, f"device-{kind}-{number:06}", DAY_S) as wire:
                if filters:
                    wanted = [SubscriptionRequest(_topic(number, index), 1) for index in range(filters)]
                    await wire.exchange([Subscribe(1, wanted)], _SUBACK, 1)

    async with trio.open_nursery() as nursery:
        for _ in range(IN_PARALLEL):
            nursery.start_soon(worker)


def _topic(number: int, index: int) -> str:
    """About 25 bytes, each of its own."""
    return f"site/{number % 97:02}/device/{number:06}/v{index}"


async def _publish(node: BrokerProcess, topics: Sequence[str], payload: int, retain: bool) -> None:
    parts = iter([topics[first : first + WINDOW] for first in range(0, len(topics), WINDOW)])

    async def worker(name: str) -> None:
        async with _connected(node, name, 0) as wire:
            for part in parts:
                body = b"x" * payload
                packets = [Publish(topic, body, 1, retain, False, number) for number, topic in enumerate(part, start=1)]
                await wire.exchange(packets, _PUBACK, len(part))

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(worker, f"publisher-{number}")


class Used:
    """Calls tell `used_memory` of a store."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "s"

    def __call__(self) -> int:
        with plain_client(self._socket) as client:
            return int(dict(client.info("memory"))["used_memory"])


async def measure(node: BrokerProcess, used: Used, count: int) -> Sizes:
    """Make so many of each thing, and say what one takes."""
    before = used()
    await _sessions(node, "a", count, 0)
    session = (used() - before) / count
    before = used()
    await _sessions(node, "b", count, FILTERS)
    subscription = ((used() - before) / count - session) / FILTERS
    before = used()
    topics = [_topic(number, index) for number in range(count) for index in range(QUEUED)]
    await _publish(node, topics, PAYLOAD, False)
    queued = (used() - before) / len(topics) - PAYLOAD
    before = used()
    await _publish(node, [f"state/{number:08}/temperature" for number in range(count)], PAYLOAD, True)
    retained = (used() - before) / count - PAYLOAD
    return Sizes(session, subscription, queued, retained)


#: Small sorted sets are packed; those of a few thousand sessions are not.
_AS_IF_MANY = ("--zset-max-listpack-entries", "1")


def run(count: int, binary: str = "") -> Sizes:
    """With a store and a node of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="rookery-sizing-") as folder,
        redis_server(binary=binary, options=_AS_IF_MANY) as store,
    ):
        node = BrokerProcess(Path(folder), f"redis://127.0.0.1:{store.address.port}/0")
        node.start()
        try:
            return trio.run(measure, node, Used(store.folder), count)
        finally:
            node.stop()


def main() -> int:
    """Print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--server", default="", help="program of the store")
    options = parser.parse_args()
    for name, value in run(options.count, options.server)._asdict().items():
        sys.stdout.write(f"{name}: {value:.0f} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
