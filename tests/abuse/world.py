"""A node under abuse: its counters, its memory and descriptors, and bystanders who must not notice anything."""

from __future__ import annotations

import os
import re
import socket
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import trio

from broker.codec.packets import V5, V311, Connect, Puback, Publish
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import MqttClient, properties

LOOPBACK = "127.0.0.1:0"

#: What a defect of the broker leaves in its log.
DEFECTS = re.compile(r"Traceback|handler_failed|task_failed|resume_failed|hook_failed|flush_failed|deadline_failed")

#: For a figure of the node to become what it has to be.
SETTLE_S = 20.0
_POLL_S = 0.01

_SAMPLE = re.compile(r"^(\w+(?:\{[^}]*\})?) ([0-9.eE+-]+)$", re.MULTILINE)
_numbers = count(1)


class AbusedNode(BrokerProcess):
    """A broker process that tells how it is."""

    def __init__(self, directory: Path, store: str = "memory", *arguments: str) -> None:
        unlimited = {"ROOKERY_HTTP_RATE": "0"}  # for `counters`
        super().__init__(directory, store, http=LOOPBACK, arguments=arguments, environment=unlimited)
        self._clients: list[MqttClient] = []
        self._scraped = ""
        #: The pair that works beside the running test.
        self.attended_by: Bystanders | None = None

    async def goes_on(self, rounds: int) -> None:
        """Wait until bystanders have exchanged so many more messages."""
        pair = self.attended_by
        assert pair is not None
        until = pair.rounds + rounds
        await self.until(lambda: pair.rounds >= until, f"{rounds} rounds of bystanders")

    def counters(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels, as it is now; one that never moved may be missing."""
        before = self._scraped
        # Who asks too much gets the last answer for up to a second; a new one has other numbers of the process.
        while self._scraped == before:
            with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=SETTLE_S) as response:
                self._scraped = response.read().decode()
        return {name: float(value) for name, value in _SAMPLE.findall(self._scraped)}

    def counter(self, name: str) -> float:
        """One sample, or (without labels) the sum over them; 0 if there is none."""
        return total(self.counters(), name)

    def rss_bytes(self) -> int:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        """Open file descriptors of the process."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def whole_log(self) -> str:
        """All that the process wrote."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a figure of the node is as it has to be; AssertionError with `what` if that takes too long."""
        with trio.move_on_after(SETTLE_S):
            while not condition():
                await trio.sleep(_POLL_S)
            return
        raise AssertionError(f"{what} did not happen within {SETTLE_S} s: {self.counters()}")

    async def until_counter(self, name: str, value: float) -> None:
        """Wait until a counter has reached a value."""
        await self.until(lambda: self.counter(name) >= value, f"{name} >= {value}")

    async def until_gauge(self, name: str, value: float) -> None:
        """Wait until a gauge has exactly this value."""
        await self.until(lambda: self.counter(name) == value, f"{name} == {value}")

    async def client(self, version: int = V5, client_id: str | None = None, **values: object) -> MqttClient:
        """Connect a client that the node has to accept; `values` are properties of CONNECT."""
        client = await self.open(version)
        packet = Connect(
            version,
            client_id if client_id is not None else new_name(),
            True,
            0,
            properties=properties(**values) if version == V5 and values else None,
        )
        connack = await client.connect(packet)
        assert connack.reason_code == 0, f"refused with 0x{connack.reason_code:02x}"
        return client

    async def open(self, version: int = V5) -> MqttClient:
        """Open a network connection and send nothing."""
        client = await MqttClient.open(self.host, self.port, version)
        self._clients.append(client)
        return client

    async def slow_client(self, version: int = V5, keep_alive_s: int = 0, **values: object) -> MqttClient:
        """As `client`, with hardly any room in its kernel for what it does not read."""
        raw = trio.socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await raw.connect((self.host, self.port))
        client = MqttClient(trio.SocketStream(raw), version)
        self._clients.append(client)
        block = properties(**values) if values else None
        connack = await client.connect(Connect(version, new_name(), True, keep_alive_s, properties=block))
        assert connack.reason_code == 0
        return client

    async def close_clients(self) -> None:
        """Close what a test has left open."""
        clients, self._clients = self._clients, []
        for client in clients:
            await client.close()


def total(counters: dict[str, float], name: str) -> float:
    """One sample, or (without labels) the sum over them; 0 if there is none."""
    return sum(value for key, value in counters.items() if name in (key, key.partition("{")[0]))


def new_name() -> str:
    """A client id or topic that nobody else uses."""
    return f"ab{os.getpid():x}n{next(_numbers)}"


def packet_errors(reason: str) -> str:
    """The name of a counter."""
    return f'mqtt_packet_errors_total{{reason="{reason}"}}'


def disconnects(reason: str) -> str:
    """The name of a counter."""
    return f'mqtt_disconnects_total{{reason="{reason}"}}'


def dropped(reason: str) -> str:
    """The name of a counter."""
    return f'mqtt_messages_dropped_total{{reason="{reason}"}}'


class Bystanders:
    """A publisher and a subscriber at QoS 1 who go on while others misbehave."""

    def __init__(self, node: AbusedNode) -> None:
        self._node = node
        self._topic = f"bystander/{new_name()}"
        self._publisher: MqttClient
        self._subscriber: MqttClient
        self._sent = 0
        self._stopping = False
        self._done = trio.Event()
        #: Messages that went all the way and were acknowledged.
        self.rounds = 0

    async def begin(self) -> None:
        """Connect both; returns when the first message has gone all the way."""
        self._publisher = await self._node.client(V311)
        self._subscriber = await self._node.client(V5)
        await self._subscriber.subscribe(self._topic, qos=1)
        await self._send()
        await self._take(0)

    async def run(self) -> None:
        """Until `finish`: one message after the other, each acknowledged by both sides."""
        taken = 1
        while not self._stopping:
            await self._send()
            await self._take(taken)
            taken += 1
            self.rounds += 1
            await trio.sleep(_POLL_S)  # a pace, not a wait: bystanders are no load test
        self._done.set()

    async def finish(self) -> None:
        """A few more messages, then both are still connected and nothing was lost, repeated or reordered."""
        self._stopping = True
        await self._done.wait()
        before = self._sent
        for _ in range(5):
            await self._send()
        for number in range(before, self._sent):
            await self._take(number)
        await self._publisher.expect_nothing()
        await self._subscriber.expect_nothing()
        await self.close()

    async def close(self) -> None:
        """Close both connections."""
        await self._publisher.close()
        await self._subscriber.close()

    async def _send(self) -> None:
        packet_id = 1 + self._sent % 65535
        await self._publisher.send(Publish(self._topic, b"%d" % self._sent, 1, False, False, packet_id))
        assert (await self._publisher.expect(Puback, SETTLE_S)).packet_id == packet_id
        self._sent += 1

    async def _take(self, number: int) -> None:
        message = await self._subscriber.expect(Publish, SETTLE_S)
        assert (message.payload, message.dup) == (b"%d" % number, False)
        await self._subscriber.send(Puback(message.packet_id))


@asynccontextmanager
async def bystanders(node: AbusedNode) -> AsyncIterator[Bystanders]:
    """A pair that works in the background and is checked at the end of a block that went well."""
    pair = Bystanders(node)
    await pair.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.run)
        try:
            yield pair
        except BaseException:
            nursery.cancel_scope.cancel()
            raise
        await pair.finish()


async def in_parallel(tasks: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Run `work(0)` to `work(tasks - 1)` at the same time."""
    async with trio.open_nursery() as nursery:
        for number in range(tasks):
            nursery.start_soon(work, number)
