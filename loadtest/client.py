"""A client connection of a run, served by the engine's loop."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from broker.codec.decode import decode
from broker.codec.encode import encode
from broker.codec.packets import (
    V5,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Properties,
    Suback,
    Subscribe,
    SubscriptionRequest,
)
from broker.codec.primitives import read_variable_byte_integer
from broker.errors import PeerError

if TYPE_CHECKING:
    from loadtest.engine import Engine

KEEP_ALIVE_S = 60
SESSION_EXPIRY_S = 3600
# One buffer for all: a read that allocated its own would spend most of its time on pages.
_BUFFER = memoryview(bytearray(262_144))


class LoadError(Exception):
    """The run cannot go on: a connection refused or lost, or a peer that breaks the protocol."""


class Client:
    """A connection: connects, subscribes if it is to, and then does what its class adds."""

    def __init__(
        self, engine: Engine, client_id: str, clean: bool = True, topic_filter: str = "", qos: int = 0
    ) -> None:
        self.engine = engine
        self.client_id = client_id
        self.clean = clean
        self.topic_filter = topic_filter
        self.qos = qos
        self.ready = False
        self.blocked = True  # until it is connected
        self.dirty = False
        self.out: list[bytes] = []
        self.receive_maximum = 65_535
        self._rest = b""
        self.socket = socket.socket(engine.family, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def greeting(self) -> bytes:
        """Return the CONNECT packet."""
        properties = None
        if self.engine.version == V5 and not self.clean:
            properties = Properties()
            properties.session_expiry_interval = SESSION_EXPIRY_S
        packet = Connect(self.engine.version, self.client_id, self.clean, KEEP_ALIVE_S, properties=properties)
        return encode(packet, self.engine.version)

    def write(self, data: bytes) -> None:
        """Send `data` at the end of this turn."""
        self.out.append(data)
        if not self.dirty:
            self.dirty = True
            self.engine.dirty.append(self)

    def ping(self) -> None:
        """Keep the connection alive."""
        self.write(encode(Pingreq(), self.engine.version))

    def flush(self) -> None:
        """Write what was collected, as far as the socket takes it."""
        self.dirty = False
        if self.blocked or not self.out:
            return
        data = b"".join(self.out)
        self.out.clear()
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise LoadError(f"{self.client_id}: connection lost: {error}") from None
        if sent < len(data):
            self.out.append(data[sent:])
            self.blocked = True
            self.engine.watch(self, writable=True)

    def writable(self) -> None:
        """Go on writing after the socket was full."""
        self.blocked = False
        self.engine.watch(self, writable=False)
        self.flush()

    def readable(self) -> None:
        """Read once and handle every complete packet."""
        try:
            size = self.socket.recv_into(_BUFFER)
        except BlockingIOError:
            return
        except OSError as error:
            raise LoadError(f"{self.client_id}: connection lost: {error}") from None
        if not size:
            raise LoadError(f"{self.client_id}: the broker closed the connection")
        data = self._rest + _BUFFER[:size] if self._rest else bytes(_BUFFER[:size])
        try:
            used = self.feed(data)
        except PeerError as error:
            raise LoadError(f"{self.client_id}: {error.text}") from None
        self._rest = data[used:]

    def feed(self, data: bytes) -> int:
        """Handle every complete packet in `data`; return how many bytes they took."""
        at, size = 0, len(data)
        while at < size:
            after = self.run(data, at, size)
            if after == at:
                after = self.one(data, at, size)
                if after == at:
                    break
            at = after
        return at

    def run(self, data: bytes, at: int, size: int) -> int:
        """Handle a run of equal packets at `at`; return the position after it. The quick way, for subclasses."""
        return at

    def one(self, data: bytes, at: int, size: int) -> int:
        """Handle one packet of any kind by the codec; return the position after it, or `at` if bytes are missing."""
        lengths = data[at + 1 : at + 5]
        if len(lengths) < 4 and all(byte & 128 for byte in lengths):
            return at
        length, taken = read_variable_byte_integer(lengths, 0, len(lengths))
        start = at + 1 + taken
        if start + length > size:
            return at
        self.packet(decode(data[at], data, start, start + length, self.engine.version, from_client=False))
        return start + length

    def packet(self, packet: Packet) -> None:
        """Handle what all clients share."""
        if isinstance(packet, Connack):
            if packet.reason_code:
                raise LoadError(f"{self.client_id}: connection refused, reason code 0x{packet.reason_code:02x}")
            if packet.properties is not None and packet.properties.receive_maximum is not None:
                self.receive_maximum = packet.properties.receive_maximum
            if not self.topic_filter:
                self.opened()
            elif not self.ready:
                request = Subscribe(1, (SubscriptionRequest(self.topic_filter, self.qos),))
                self.write(encode(request, self.engine.version))
        elif isinstance(packet, Suback):
            if packet.reason_codes[0] != self.qos:
                raise LoadError(f"{self.client_id}: SUBSCRIBE answered by 0x{packet.reason_codes[0]:02x}")
            self.opened()
        elif isinstance(packet, Disconnect):
            raise LoadError(f"{self.client_id}: DISCONNECT with reason code 0x{packet.reason_code:02x}")
        elif not isinstance(packet, Pingresp):
            raise LoadError(f"{self.client_id}: unexpected {type(packet).__name__}")

    def opened(self) -> None:
        """Note that the client is ready for its work."""
        self.ready = True
        self.engine.opened += 1

    def close(self) -> None:
        """Send DISCONNECT, as far as the socket takes it, and close."""
        try:
            if self.ready:
                self.socket.send(encode(Disconnect(), self.engine.version))
        except OSError:
            pass  # it was lost already
        self.socket.close()
