"""Many messages through a raw client, and what the node counts."""

from __future__ import annotations

import os
import re
import signal
import time
import urllib.request
from collections.abc import AsyncGenerator, Sequence

import redis

from broker.codec.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import ConnectionClosed, MqttClient, UnexpectedPacket, describe

#: Below the Receive Maximum that the node announces.
WINDOW = 50


async def gather(client: MqttClient, count: int) -> list[Publish]:
    """Receive and acknowledge exactly `count` messages; the exchanges of all are complete when it returns."""
    client.auto_ack = True
    got: list[Publish] = []
    releases = 0
    while len(got) < count or releases < sum(1 for message in got if message.qos == 2):
        packet = await client.receive()
        if isinstance(packet, Publish):
            got.append(packet)
        elif isinstance(packet, Pubrel):
            releases += 1
        else:
            raise UnexpectedPacket(f"expected messages, got {describe(packet)}")
    client.auto_ack = False
    return got


async def publishing(
    client: MqttClient, topic: str, payloads: Sequence[bytes], qos: int
) -> AsyncGenerator[bytes, None]:
    """Publish with several messages on their way at a time, and yield each when it is acknowledged.

    Ends early if the connection is lost.
    """
    open_ids: dict[int, bytes] = {}
    waiting = list(reversed(payloads))
    while waiting or open_ids:
        while waiting and len(open_ids) < WINDOW:
            payload = waiting.pop()
            packet_id = client.next_packet_id()
            open_ids[packet_id] = payload
            await client.send(Publish(topic, payload, qos, False, False, packet_id))
        try:
            packet = await client.receive()
        except ConnectionClosed:
            return
        if isinstance(packet, Pubrec):
            assert packet.reason_code < 0x80, describe(packet)
            await client.send(Pubrel(packet.packet_id))
        elif isinstance(packet, Puback | Pubcomp):
            assert packet.reason_code < 0x80, describe(packet)
            yield open_ids.pop(packet.packet_id)
        else:
            raise UnexpectedPacket(f"expected acknowledgements, got {describe(packet)}")


async def publish_many(client: MqttClient, topic: str, payloads: Sequence[bytes], qos: int) -> None:
    """Publish all and wait until all are acknowledged."""
    assert [payload async for payload in publishing(client, topic, payloads, qos)] == list(payloads)


def payloads(messages: Sequence[Publish]) -> list[bytes]:
    """The payloads of messages."""
    return [message.payload for message in messages]


def numbered(prefix: str, count: int) -> list[bytes]:
    """Payloads that tell where they come from and in which order."""
    return [f"{prefix}{number}".encode() for number in range(count)]


def metric(node: BrokerProcess, sample: str) -> float:
    """One sample of the node's /metrics, or (without labels) the sum over them, such as `mqtt_connections`."""
    found = 0.0
    with urllib.request.urlopen(f"http://{node.http}/metrics", timeout=10) as response:
        for line in response.read().decode().splitlines():
            name, _, value = line.rpartition(" ")
            if sample in (name, name.partition("{")[0]):
                found += float(value)
    return found


#: For what a node and its store do soon.
SOON_S = 20.0
_POLL_S = 0.01


def store_pid(node: BrokerProcess, starts: int = 1) -> int:
    """The process id of the embedded store once it was started so often, from the log of its node."""
    deadline = time.monotonic() + SOON_S
    while len(pids := re.findall(r"store\.started pid=(\d+)", node.log())) < starts:
        assert time.monotonic() < deadline, node.log()
        time.sleep(_POLL_S)
    return int(pids[-1])


def write_at_once(node: BrokerProcess) -> None:
    """Let the embedded store write its file before every answer: a kill at any moment loses nothing then.

    With `appendfsync everysec` it puts the write off while the disk is slow to sync; without any sync it never does.
    """
    with redis.Redis(unix_socket_path=str(node.directory / "data" / "store.sock")) as client:
        client.config_set("appendfsync", "no")


def kill_store(node: BrokerProcess, starts: int = 1) -> None:
    """Kill -9 the embedded store of a node, when what it was told is written: all that its durability class promises.

    With `appendfsync everysec` the server answers without writing while the disk is slow to sync.
    """
    pid = store_pid(node, starts)
    deadline = time.monotonic() + SOON_S
    with redis.Redis(unix_socket_path=str(node.directory / "data" / "store.sock")) as client:
        while client.info("persistence")["aof_buffer_length"]:
            assert time.monotonic() < deadline, "the append-only file is not written"
            time.sleep(_POLL_S)
    os.kill(pid, signal.SIGKILL)
