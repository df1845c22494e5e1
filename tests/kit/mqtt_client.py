"""A raw-packet MQTT client for tests: it sends what it is told, and tells exactly what came back.

Nothing is acknowledged, repeated or checked behind the test's back. Packets are built and read by
`broker.codec`; where a test is about the bytes themselves it uses `send_raw` and `last_raw`.
"""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import TypeVar

import trio

from broker.codec.decode import decode
from broker.codec.encode import encode
from broker.codec.packets import (
    KIND_NAMES,
    PROPERTY_NAMES,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
)
from broker.codec.primitives import FrameBuffer, remaining_length
from broker.reasons import reason_name
from tests.kit.packet_data import attributes

# Long enough for a busy machine; a test that has to wait this long has failed.
DEADLINE_S = 10.0

P = TypeVar("P")


class ConnectionClosed(Exception):
    """The server closed the network connection while the test waited for a packet."""


class UnexpectedPacket(AssertionError):
    """Another packet came than the one the test expects."""


def describe(packet: Packet) -> str:
    """Return a packet's name and fields on one line, for failures."""
    fields = []
    slots: set[str] = set()
    for cls in type(packet).__mro__:
        slots.update(attributes(cls))
    for name in sorted(slots):
        value = getattr(packet, name)
        if name == "properties" and value is not None:
            set_ones = {n: getattr(value, n) for n in PROPERTY_NAMES if getattr(value, n) not in (None, ())}
            value = set_ones
        elif name == "reason_code":
            value = f"0x{value:02x} {reason_name(value)}"
        fields.append(f"{name}={value!r}")
    return f"{KIND_NAMES[packet.kind]}({', '.join(fields)})"


def properties(**values: object) -> Properties:
    """Return properties with these values; the names are those of the class."""
    result = Properties()
    for name, value in values.items():
        if name not in PROPERTY_NAMES:
            raise AttributeError(f"no property {name!r}")
        setattr(result, name, value)
    return result


def frame(first_byte: int, body: bytes) -> bytes:
    """Return a whole packet from its first byte and what follows the remaining length."""
    return bytes((first_byte,)) + remaining_length(len(body)) + body


class MqttClient:
    """One network connection to a server; `version` says how packets are written and read.

    `auto_ack` answers PUBLISH and PUBREL as a correct client would, when `receive` returns them. `connack`
    is what `connect` received; `last_raw` holds the bytes of the packet received last.
    """

    def __init__(self, stream: trio.SocketStream, version: int = 5) -> None:
        self.version = version
        self.auto_ack = False
        self.connack: Connack | None = None
        self.client_id = ""
        self.last_raw = b""
        self._stream = stream
        self._frames = FrameBuffer()
        self._packet_id = 0
        # Packets that came while `take` waited for a PUBREL or `subscribe` for its SUBACK, each with its bytes.
        self._deferred: list[tuple[Packet, bytes]] = []

    @classmethod
    async def open(cls, host: str, port: int, version: int = 5) -> MqttClient:
        """Open the network connection; nothing is sent yet."""
        with trio.fail_after(DEADLINE_S):
            stream = await trio.open_tcp_stream(host, port)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(stream, version)

    async def __aenter__(self) -> MqttClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self, packet: Connect) -> Connack:
        """Send CONNECT in the packet's own version and return the CONNACK, whatever its reason code."""
        self.version = packet.protocol_version
        await self.send(packet)
        self.connack = await self.expect(Connack)
        properties = self.connack.properties
        self.client_id = packet.client_id
        if properties is not None and properties.assigned_client_identifier is not None:
            self.client_id = properties.assigned_client_identifier
        return self.connack

    async def send(self, *packets: Packet) -> None:
        """Send packets in one write."""
        await self.send_raw(b"".join([bytes(encode(packet, self.version)) for packet in packets]))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are. A connection that the server already closed is not an error here."""
        try:
            with trio.fail_after(DEADLINE_S):
                await self._stream.send_all(data)
        except trio.BrokenResourceError:
            # The next receive tells what the server said before it closed.
            return

    async def receive(self, deadline_s: float = DEADLINE_S) -> Packet:
        """Return the next packet; ConnectionClosed at the end, trio.TooSlowError at the deadline."""
        if self._deferred:
            packet, self.last_raw = self._deferred.pop(0)
            return packet
        with trio.fail_after(deadline_s):
            first_byte, body = await self._next_frame()
        packet = decode(first_byte, body, 0, len(body), self.version, False)
        if self.auto_ack:
            await self._acknowledge(packet)
        return packet

    async def _next_frame(self) -> tuple[int, bytes]:
        while True:
            cut = self._frames.next_frame()
            if cut is not None:
                self.last_raw = frame(*cut)
                return cut
            try:
                data = await self._stream.receive_some(65_536)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                if len(self._frames):
                    raise ConnectionClosed("the server closed in the middle of a packet")
                raise ConnectionClosed("the server closed the connection")
            self._frames.feed(bytes(data))

    async def _acknowledge(self, packet: Packet) -> None:
        if isinstance(packet, Publish) and packet.qos == 1:
            await self.send(Puback(packet.packet_id))
        elif isinstance(packet, Publish) and packet.qos == 2:
            await self.send(Pubrec(packet.packet_id))
        elif isinstance(packet, Pubrel):
            await self.send(Pubcomp(packet.packet_id))

    async def expect(self, kind: type[P], deadline_s: float = DEADLINE_S) -> P:
        """Return the next packet, which has to be of this class."""
        try:
            packet = await self.receive(deadline_s)
        except ConnectionClosed:
            raise UnexpectedPacket(f"expected {kind.__name__}, the server closed") from None
        except trio.TooSlowError:
            raise UnexpectedPacket(f"expected {kind.__name__}, nothing came in {deadline_s} s") from None
        if not isinstance(packet, kind):
            raise UnexpectedPacket(f"expected {kind.__name__}, got {describe(packet)}")
        return packet

    async def collect(self, kind: type[P], count: int, deadline_s: float = DEADLINE_S) -> list[P]:
        """Return the next `count` packets, which all have to be of this class."""
        return [await self.expect(kind, deadline_s) for _ in range(count)]

    async def expect_closed(self, deadline_s: float = DEADLINE_S) -> None:
        """The server closes without another packet."""
        try:
            packet = await self.receive(deadline_s)
        except ConnectionClosed:
            return
        except trio.TooSlowError:
            raise UnexpectedPacket("the server keeps the connection open") from None
        raise UnexpectedPacket(f"expected the server to close, got {describe(packet)}")

    async def expect_disconnect(self, reason_code: int, deadline_s: float = DEADLINE_S) -> Disconnect:
        """The server refuses: version 5 says DISCONNECT with this reason code, then any version closes."""
        packet = Disconnect(reason_code)
        if self.version == 5:
            packet = await self.expect(Disconnect, deadline_s)
            if packet.reason_code != reason_code:
                wanted = f"0x{reason_code:02x} {reason_name(reason_code)}"
                raise UnexpectedPacket(f"expected DISCONNECT {wanted}, got {describe(packet)}")
        await self.expect_closed(deadline_s)
        return packet

    async def expect_nothing(self) -> None:
        """Nothing is on its way: PINGREQ is answered by PINGRESP with no packet before it.

        The server handles the packets of a connection in order, so what it had to send because of earlier
        packets of this connection, or of others that were acknowledged to a test, comes before PINGRESP.
        """
        await self.send(Pingreq())
        packet = await self.receive()
        if not isinstance(packet, Pingresp):
            raise UnexpectedPacket(f"expected nothing, got {describe(packet)}")

    async def drain(self) -> list[Packet]:
        """Return every packet that is on its way, by the same barrier as `expect_nothing`."""
        await self.send(Pingreq())
        packets: list[Packet] = []
        while True:
            packet = await self.receive()
            if isinstance(packet, Pingresp):
                return packets
            packets.append(packet)

    def next_packet_id(self) -> int:
        """Return a packet id that this connection has not used."""
        self._packet_id += 1
        return self._packet_id

    async def subscribe(
        self, *filters: str | SubscriptionRequest, qos: int = 2, properties: Properties | None = None
    ) -> Suback:
        """Subscribe and return the SUBACK. Plain strings are taken at `qos`.

        Messages that match may come before it (MQTT 5.0, 3.8.4): they are received after it."""
        requests = [f if isinstance(f, SubscriptionRequest) else SubscriptionRequest(f, qos) for f in filters]
        packet_id = self.next_packet_id()
        await self.send(Subscribe(packet_id, requests, properties))
        early: list[tuple[Packet, bytes]] = []
        while isinstance(packet := await self.receive(), Publish):
            early.append((packet, self.last_raw))
        self._deferred = early + self._deferred
        if not isinstance(packet, Suback):
            raise UnexpectedPacket(f"expected Suback, got {describe(packet)}")
        suback = packet
        if suback.packet_id != packet_id:
            raise UnexpectedPacket(f"SUBSCRIBE has packet id {packet_id}, got {describe(suback)}")
        return suback

    async def unsubscribe(self, *topic_filters: str) -> Unsuback:
        """Unsubscribe and return the UNSUBACK, which has to be the next packet."""
        packet_id = self.next_packet_id()
        await self.send(Unsubscribe(packet_id, topic_filters))
        unsuback = await self.expect(Unsuback)
        if unsuback.packet_id != packet_id:
            raise UnexpectedPacket(f"UNSUBSCRIBE has packet id {packet_id}, got {describe(unsuback)}")
        return unsuback

    async def publish(
        self,
        topic_name: str,
        payload: bytes = b"",
        qos: int = 0,
        *,
        retain: bool = False,
        dup: bool = False,
        properties: Properties | None = None,
    ) -> int:
        """Publish, finish the exchange of the QoS, and return the reason code of the PUBACK or PUBREC.

        When it returns the server has handled the message, at QoS 0 by the barrier of `expect_nothing`.
        """
        packet_id = self.next_packet_id() if qos else 0
        await self.send(Publish(topic_name, payload, qos, retain, dup, packet_id, properties))
        if qos == 0:
            await self.expect_nothing()
            return 0
        answer: Puback | Pubrec = await self.expect(Puback) if qos == 1 else await self.expect(Pubrec)
        if answer.packet_id != packet_id:
            raise UnexpectedPacket(f"PUBLISH has packet id {packet_id}, got {describe(answer)}")
        if qos == 2 and answer.reason_code < 0x80:
            await self.send(Pubrel(packet_id))
            comp = await self.expect(Pubcomp)
            if comp.packet_id != packet_id or comp.reason_code != 0:
                raise UnexpectedPacket(f"PUBREL has packet id {packet_id}, got {describe(comp)}")
        return answer.reason_code

    async def take(self, payload: bytes | None = None) -> Publish:
        """Return the next packet, a PUBLISH (with this payload), after the whole exchange of its QoS.

        Messages that come meanwhile are kept and returned next.
        """
        publish = await self.expect(Publish)
        if payload is not None and publish.payload != payload:
            raise UnexpectedPacket(f"expected payload {payload!r}, got {describe(publish)}")
        if publish.qos == 1:
            await self.send(Puback(publish.packet_id))
        elif publish.qos == 2:
            raw = self.last_raw
            await self.send(Pubrec(publish.packet_id))
            await self._await_release(publish.packet_id)
            await self.send(Pubcomp(publish.packet_id))
            self.last_raw = raw
        return publish

    async def _await_release(self, packet_id: int) -> None:
        others: list[tuple[Packet, bytes]] = []
        while True:
            packet = await self.receive()
            if isinstance(packet, Pubrel):
                if packet.packet_id != packet_id:
                    raise UnexpectedPacket(f"PUBREC has packet id {packet_id}, got {describe(packet)}")
                break
            if not isinstance(packet, Publish):
                raise UnexpectedPacket(f"expected Pubrel, got {describe(packet)}")
            others.append((packet, self.last_raw))
        self._deferred = others + self._deferred

    async def disconnect(self, packet: Disconnect | None = None) -> None:
        """Send DISCONNECT, wait until the server has closed as well, and close."""
        await self.send(packet or Disconnect())
        await self.expect_closed()
        await self.close()

    async def abort(self) -> None:
        """Reset the connection (TCP RST), as a crashed client would."""
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._stream.socket.close()

    async def close(self) -> None:
        """Close without DISCONNECT. Closing twice does nothing."""
        with trio.move_on_after(1):
            await self._stream.aclose()
