"""Clients on blocking sockets, for what is measured while nothing happens: over TCP, TLS, WebSocket or both."""

from __future__ import annotations

import base64
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from broker.codec.encode import encode
from broker.codec.packets import V5, Connect, Packet, Properties, Subscribe, SubscriptionRequest
from loadtest.client import LoadError
from loadtest.targets import Address

BATCH = 500  # filters in a SUBSCRIBE
PATIENCE_S = 30.0
CONNACK, PUBLISH, PUBACK, SUBACK = 2, 3, 4, 9
_READ_BYTES = 65_536


@dataclass(frozen=True)
class Way:
    """How a node is reached."""

    address: Address
    tls: ssl.SSLContext | None = None
    web: bool = False


class Caller:
    """A connection that waits for each answer. What was opened is closed with the block."""

    def __init__(self, way: Way) -> None:
        self._data = b""
        self._web = False
        self._socket = socket.create_connection(way.address, PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if way.tls is not None:
                self._socket = way.tls.wrap_socket(self._socket, server_hostname="localhost")
            if way.web:
                self._upgrade()
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the connection without a word."""
        self._socket.close()

    # -- MQTT

    def greet(self, client_id: str, expiry_s: int = 0, receive_maximum: int | None = None) -> None:
        """Send CONNECT: `expiry_s` 0 is a session that ends with the connection, others begin anew or go on."""
        given = Properties()
        given.session_expiry_interval = expiry_s
        given.receive_maximum = receive_maximum
        self.send([Connect(V5, client_id, not expiry_s, 0, properties=given)])

    def connect(self, client_id: str, expiry_s: int = 0, receive_maximum: int | None = None) -> None:
        """Connect, and wait until that is done."""
        self.greet(client_id, expiry_s, receive_maximum)
        self.take(CONNACK)

    def subscribe(self, filters: Sequence[str], qos: int = 0) -> None:
        """Subscribe, in as many packets as that takes, and wait for each."""
        for at in range(0, len(filters), BATCH):
            self.send([Subscribe(1, [SubscriptionRequest(name, qos) for name in filters[at : at + BATCH]])])
            self.take(SUBACK)

    def send(self, packets: Sequence[Packet]) -> None:
        """Send packets at once."""
        data = b"".join(encode(packet, V5) for packet in packets)
        self._socket.sendall(_frame(data) if self._web else data)

    def take(self, kind: int, count: int = 1) -> None:
        """Wait for so many packets of this kind; no other may come."""
        for _ in range(count):
            first, byte = self._exactly(2)
            length, shift = byte & 127, 7
            while byte & 128:
                byte = self._exactly(1)[0]
                length, shift = length | (byte & 127) << shift, shift + 7
            body = self._exactly(length)
            if first >> 4 != kind or (kind == CONNACK and body[1]):
                raise LoadError(f"the broker answered 0x{first:02x} {body[:16].hex()}")

    def ended(self) -> None:
        """Wait until the broker has closed the connection."""
        while self._socket.recv(_READ_BYTES):
            pass

    def _exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            self._data += self._message() if self._web else self._some()
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def _some(self) -> bytes:
        if data := self._socket.recv(_READ_BYTES):
            return data
        raise LoadError("the broker closed the connection")

    # -- WebSocket (RFC 6455): as much as a client needs whose frames are short

    def _upgrade(self) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        request = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        request += f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        self._socket.sendall(request.encode())
        while b"\r\n\r\n" not in self._data:
            self._data += self._some()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise LoadError(f"no WebSocket: {head[:60]!r}")
        self._web = True

    def _message(self) -> bytes:
        """Return what is in the next frame."""
        size = self._raw(2)[1]
        if size > 125:
            size = int.from_bytes(self._raw(2 if size == 126 else 8), "big")
        return self._raw(size)

    def _raw(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise LoadError("the broker closed the connection")
            data += more
        return data


def _frame(payload: bytes) -> bytes:
    """Return a binary frame whose mask changes nothing."""
    size = len(payload)
    head = bytes((0x82, 0x80 | size)) if size < 126 else b"\x82\xfe" + size.to_bytes(2, "big")
    return head + bytes(4) + payload
