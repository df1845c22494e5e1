"""Seeded streams of nonsense and near-sense, and a campaign that sends them to a node.

`python -m tests.abuse.fuzz --seconds N --seed S` runs a long one. What a connection sends depends only on the seed
and its number, so that a failure can be repeated with `--first NUMBER --connections 1`.
"""

from __future__ import annotations

import argparse
import random
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from broker.codec.decode import decode
from broker.codec.encode import encode
from broker.codec.packets import (
    V5,
    V31,
    V311,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
    Will,
)
from broker.codec.primitives import FrameBuffer
from broker.errors import PeerError
from tests.abuse.world import DEFECTS, AbusedNode, bystanders
from tests.kit.mqtt_client import properties

PARALLEL = 16
#: A node that says nothing for so long hangs.
DEADLINE_S = 30.0

CONNACK_HEAD = 0x20


class BadAnswer(AssertionError):
    """The node sent something that is no MQTT packet."""


class Nonsense:
    """All that one connection sends, made from one seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self.version = self._random.choice((V5, V5, V5, V311, V311, V31))

    def stream(self) -> bytes:
        """The bytes of one connection."""
        kind = self._random.random()
        if kind < 0.1:
            return self._random.randbytes(self._random.randint(1, 3000))
        if kind < 0.25:
            return bytes(encode(self._connect(), self.version)) + self._random.randbytes(self._random.randint(1, 3000))
        if kind < 0.35:
            return self._frames()
        packets = [bytes(encode(packet, self.version)) for packet in self._session()]
        if kind < 0.45:
            self._random.shuffle(packets)
        if kind < 0.5:
            return b"".join(packets)
        return self._mutated(packets)

    def pieces(self, data: bytes) -> list[bytes]:
        """The stream cut at random points."""
        cuts = self._random.choice((0, 1, 3, 10, 40))
        points = sorted(self._random.randrange(len(data)) for _ in range(cuts)) if data else []
        return [data[start:end] for start, end in zip([0, *points], [*points, len(data)], strict=True) if start < end]

    def ending(self) -> str:
        """How the client leaves."""
        return self._random.choice(("close", "reset", "half", "half", "read"))

    def _frames(self) -> bytes:
        """Well-framed packets with random contents behind a good CONNECT."""
        out = bytes(encode(self._connect(), self.version))
        for _ in range(self._random.randint(1, 30)):
            body = self._random.randbytes(self._random.choice((0, 1, 2, 3, 4, 7, 20, 120)))
            out += bytes((self._random.randrange(256), len(body))) + body
        return out

    def _mutated(self, packets: list[bytes]) -> bytes:
        for _ in range(self._random.choice((1, 1, 2, 4, 8))):
            where = self._random.randrange(len(packets))
            packets[where] = self._mutate(packets[where])
        return b"".join(packets)

    def _mutate(self, packet: bytes) -> bytes:
        dice = self._random
        if not packet:
            return dice.randbytes(3)
        at = dice.randrange(len(packet))
        how = dice.randrange(9)
        if how == 0:
            return packet[:at] + bytes((packet[at] ^ 1 << dice.randrange(8),)) + packet[at + 1 :]
        if how == 1:
            return packet[:at] + bytes((dice.choice((0, 1, 0x7F, 0x80, 0xFF)),)) + packet[at + 1 :]
        if how == 2:
            return packet[:at]
        if how == 3:
            return packet[:at] + dice.randbytes(dice.randint(1, 9)) + packet[at:]
        if how == 4:
            return packet + packet
        if how == 5:
            return packet[:at] + packet[at + dice.randint(1, 9) :]
        if how == 6:
            return packet[:1] + bytes((dice.randrange(256),)) + packet[2:]
        if how == 7:
            return bytes((dice.randrange(256),)) + packet[1:]
        return packet[:at] + packet[at:][::-1]

    # Sense

    def _connect(self) -> Connect:
        dice = self._random
        version = self.version
        block = None
        will = None
        if version == V5 and dice.random() < 0.7:
            block = self._some(
                session_expiry_interval=dice.choice((0, 1, 5)),
                receive_maximum=dice.choice((1, 2, 65535)),
                maximum_packet_size=dice.choice((20, 100, 100_000)),
                topic_alias_maximum=dice.choice((0, 1, 10)),
                request_problem_information=dice.randrange(2),
                request_response_information=dice.randrange(2),
                user_properties=[("a", "b")] * dice.randrange(3),
            )
        if dice.random() < 0.3:
            values = self._some(will_delay_interval=dice.choice((0, 1)), content_type="x") if version == V5 else None
            will = Will(self._topic(), b"will", dice.randrange(3), dice.random() < 0.3, values)
        client_id = f"fuzz{dice.randrange(50)}"
        username = "user" if dice.random() < 0.1 else None
        return Connect(version, client_id, dice.random() < 0.5, dice.choice((0, 60)), username, None, will, block)

    def _some(self, **values: object) -> Properties:
        return properties(**{name: value for name, value in values.items() if self._random.random() < 0.4})

    def _topic(self) -> str:
        return "/".join(["fuzz", *(self._random.choice(("a", "b", "c", "", "ü")) for _ in range(3))])

    def _filter(self) -> str:
        name = self._topic()
        kind = self._random.random()
        if kind < 0.2:
            return name.rpartition("/")[0] + "/#"
        if kind < 0.4:
            return name.replace("/a", "/+")
        if kind < 0.5:
            return "$share/g/" + name
        return name

    def _session(self) -> list[Packet]:
        return [self._connect(), *(self._packet() for _ in range(self._random.randint(1, 25)))]

    def _packet(self) -> Packet:
        dice = self._random
        packet_id = dice.choice((1, 2, 3, dice.randint(1, 65535)))
        kind = dice.randrange(20)
        if kind < 9:
            return self._publish(packet_id)
        if kind < 12:
            requests = [
                SubscriptionRequest(self._filter(), dice.randrange(3), False, False, 0)
                for _ in range(dice.randint(1, 4))
            ]
            block = properties(subscription_identifiers=[dice.randint(1, 300)]) if dice.random() < 0.3 else None
            return Subscribe(packet_id, requests, block if self.version == V5 else None)
        if kind == 12:
            return Unsubscribe(packet_id, [self._filter()])
        if kind == 13:
            return Disconnect(0)
        if kind == 14:
            return Pingreq()
        return dice.choice((Puback, Pubrec, Pubrel, Pubrel, Pubcomp))(packet_id)

    def _publish(self, packet_id: int) -> Publish:
        dice = self._random
        qos = dice.randrange(3)
        block = None
        if self.version == V5 and dice.random() < 0.5:
            block = self._some(
                topic_alias=dice.choice((1, 2, 64)),
                message_expiry_interval=dice.choice((0, 1, 100)),
                payload_format_indicator=dice.randrange(2),
                correlation_data=dice.randbytes(4),
                response_topic="fuzz/r",
                content_type="text/plain",
                user_properties=[("k", "v")] * dice.randrange(4),
            )
        payload = dice.randbytes(dice.choice((0, 1, 10, 500, 20_000)))
        return Publish(self._topic(), payload, qos, dice.random() < 0.2, False, packet_id if qos else 0, block)


class Campaign:
    """Connections of nonsense to one node."""

    def __init__(self, host: str, port: int, seed: int) -> None:
        self._address = (host, port)
        self.seed = seed
        self.sent = 0

    async def run(self, numbers: Sequence[int], more: Callable[[], bool] = lambda: True) -> int:
        """Open the connections of these numbers, some at a time, while `more` says so; returns how many."""
        pending = iter(numbers)
        done = 0

        async def work() -> None:
            nonlocal done
            for number in pending:
                if not more():
                    return
                try:
                    with trio.fail_after(DEADLINE_S):
                        await self._connection(number)
                except Exception as error:
                    error.add_note(f"seed {self.seed}, connection {number}")
                    raise
                done += 1

        async with trio.open_nursery() as nursery:
            for _ in range(PARALLEL):
                nursery.start_soon(work)
        return done

    async def _connection(self, number: int) -> None:
        nonsense = Nonsense(f"{self.seed}/{number}")
        data = nonsense.stream()
        pieces = nonsense.pieces(data)
        ending = nonsense.ending()
        stream = await trio.open_tcp_stream(*self._address)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent += len(data)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read, stream)
                for piece in pieces:
                    await stream.send_all(piece)
                    await trio.lowlevel.checkpoint()
                if ending == "half":
                    await stream.send_eof()  # then the node has to close as well, and `_read` ends
                else:
                    if ending == "read":
                        await trio.sleep(0.05)  # a client that stays for a while
                    nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the node has closed, as it may
        finally:
            if ending == "reset":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()


async def _read(stream: trio.SocketStream) -> None:
    """Read to the end; whatever the node sends has to be valid in the version that its CONNACK shows."""
    frames = FrameBuffer()
    version = 0
    while True:
        try:
            data = await stream.receive_some(65_536)
        except trio.BrokenResourceError:
            return
        if not data:
            return
        frames.feed(bytes(data))
        while (cut := frames.next_frame()) is not None:
            head, body = cut
            if not version:
                version = V311 if len(body) == 2 else V5
            try:
                decode(head, body, 0, len(body), version, False)
            except PeerError as error:
                raise BadAnswer(f"the node sent {head:02x} {body[:100].hex()}: {error.text}") from None


async def _main(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="rookery-fuzz-") as folder:
        node = AbusedNode(Path(folder), options.store)
        node.start()
        try:
            end = trio.current_time() + options.seconds
            campaign = Campaign(node.host, node.port, options.seed)
            numbers = range(options.first, options.first + options.connections)
            async with bystanders(node):
                done = await campaign.run(numbers, lambda: trio.current_time() < end)
                await node.until_gauge("mqtt_connections", 2)
            found = DEFECTS.search(node.whole_log())
            if found is not None:
                sys.stdout.write(node.whole_log()[max(0, found.start() - 500) : found.start() + 4000] + "\n")
            errors = {name: int(value) for name, value in node.counters().items() if "packet_errors" in name and value}
            sys.stdout.write(
                f"{done} connections, {campaign.sent} bytes, {node.rss_bytes() >> 20} MiB\n"
                + "".join(f"{name} {value}\n" for name, value in sorted(errors.items()))
            )
            return int(found is not None)
        finally:
            node.stop()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.abuse.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--first", type=int, default=0, help="number of the first connection")
    parser.add_argument("--connections", type=int, default=1 << 40, help="stop after so many")
    parser.add_argument("--store", default="memory", help="as for `rookery serve`")
    options = parser.parse_args()
    sys.stdout.write(f"seed {options.seed}\n")
    sys.stdout.flush()
    return trio.run(_main, options)


if __name__ == "__main__":
    sys.exit(main())
