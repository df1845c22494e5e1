"""A WebSocket client without I/O, which sends what it is told to, right or wrong; and one over a socket."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from types import TracebackType

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
)

from broker.codec.encode import encode
from broker.codec.packets import Connect

DEADLINE_S = 10.0

Headers = Sequence[tuple[bytes, bytes]]


def frame(payload: bytes, first: int = 0x82, size: int | None = None) -> bytes:
    """A frame of a client, masked with zeros; `size` may lie about the length."""
    length = len(payload) if size is None else size
    if length < 126:
        head = bytes((first, 0x80 | length))
    elif length < 65536:
        head = bytes((first, 0xFE)) + length.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + length.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload


class WebSocketWire:
    """What a client knows of its connection; `take` returns the bytes that came in binary messages."""

    def __init__(self) -> None:
        self._connection = WSConnection(ConnectionType.CLIENT)
        #: HTTP status of the answer, 0 before it.
        self.status = 0
        self.subprotocol: str | None = None
        self.body = b""
        #: Code of the close frame, 0 before it.
        self.code = 0
        #: Lengths of the binary messages.
        self.messages: list[int] = []
        self.pongs: list[bytes] = []
        self._size = 0
        self._bytes = bytearray()

    def request(self, path: str = "/mqtt", subprotocols: Sequence[str] = ("mqtt",), headers: Headers = ()) -> bytes:
        """The upgrade request."""
        return self._connection.send(
            Request("broker.test", path, subprotocols=list(subprotocols), extra_headers=list(headers))
        )

    def binary(self, payload: bytes, finished: bool = True) -> bytes:
        """A binary message, or a part of one."""
        return self._connection.send(BytesMessage(payload, message_finished=finished))

    def ping(self, payload: bytes) -> bytes:
        return self._connection.send(Ping(payload))

    def closing(self, code: int) -> bytes:
        """A close frame."""
        return self._connection.send(CloseConnection(code))

    def receive(self, data: bytes) -> bytes:
        """Take what the server sent; returns what has to be answered."""
        if data and self._connection.state is not ConnectionState.CLOSED:
            self._connection.receive_data(data)
        answer = b""
        for event in self._connection.events():
            if isinstance(event, AcceptConnection):
                self.status, self.subprotocol = 101, event.subprotocol
                assert not event.extensions
            elif isinstance(event, RejectConnection):
                self.status = event.status_code
            elif isinstance(event, RejectData):
                self.body += event.data
            elif isinstance(event, BytesMessage):
                self._bytes += event.data
                self._size += len(event.data)
                if event.message_finished:
                    self.messages.append(self._size)
                    self._size = 0
            elif isinstance(event, Pong):
                self.pongs.append(bytes(event.payload))
            elif isinstance(event, CloseConnection):
                self.code = int(event.code)
                if self._connection.state is ConnectionState.REMOTE_CLOSING:
                    answer += self._connection.send(event.response())
        return answer

    def take(self) -> bytes:
        """What came in binary messages since the last look."""
        data = bytes(self._bytes)
        self._bytes.clear()
        return data


class WebSocketClient:
    """A `WebSocketWire` over a connected socket."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.wire = WebSocketWire()
        raw = socket.create_connection((host, port), DEADLINE_S)
        self.socket = tls.wrap_socket(raw, server_hostname="localhost") if tls is not None else raw
        self.ended = False

    def send(self, data: bytes) -> None:
        """Raw bytes."""
        self.socket.sendall(data)

    def open(self, path: str = "/mqtt", subprotocols: Sequence[str] = ("mqtt",), headers: Headers = ()) -> int:
        """Ask for the upgrade; returns the status, 0 if the connection was closed without one."""
        self.send(self.wire.request(path, subprotocols, headers))
        while not self.wire.status and self.step():
            pass
        return self.wire.status

    def step(self) -> bool:
        """Receive once; False at the end."""
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        self.ended = self.ended or not data
        answer = self.wire.receive(data)
        if answer:
            self.send(answer)
        return bool(data)

    def take(self, count: int) -> bytes:
        """So many bytes of MQTT."""
        data = self.wire.take()
        while len(data) < count:
            assert self.step(), f"closed with {self.wire.code} after {data!r}"
            data += self.wire.take()
        return data

    def until_closed(self) -> bytes:
        """What comes until the server closes the connection."""
        while self.step():
            pass
        return self.wire.take()

    def connect(self, client_id: str = "", version: int = 5, keep_alive_s: int = 0) -> None:
        """Upgrade and CONNECT."""
        assert self.open() == 101
        self.send(
            self.wire.binary(
                bytes(encode(Connect(version, client_id, True, keep_alive_s, None, None, None, None), version))
            )
        )
        head = self.take(2)
        while len(head) < 2 + head[1]:
            head += self.take(1)
        assert head[0] == 0x20 and head[3] == 0, head

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> WebSocketClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
