"""The HTTP request that a WebSocket connection begins with: whether it is let in, and what it tells of the client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from broker.options.listener import Listener
from broker.peer import Peer
from broker.transport.forwarded import Trusted, client_address

#: Bytes and lines of a request, the request line included. Browsers send about 700 bytes, with cookies a few thousand.
MAX_HEAD_BYTES = 8192
MAX_HEAD_LINES = 64

#: What clients call MQTT. The version is that of CONNECT, whatever is said here [MQTT-6.0.0-3].
SUBPROTOCOLS = ("mqtt", "mqttv3.1", "mqttv3.1.1", "mqttv5")

#: Of the handshake itself, and nobody's business after it.
_HOP = (b"connection", b"upgrade")

_END = b"\r\n\r\n"


class Refusal(Exception):
    """The request is answered with an HTTP status, and `text` for who looks at it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Request(NamedTuple):
    """What a client asked for, as the HTTP parser left it: names of headers in lower case."""

    target: str
    host: str
    subprotocols: Sequence[str]
    headers: Sequence[tuple[bytes, bytes]]


class Door:
    """The rules of one listener, made ready."""

    def __init__(self, listener: Listener) -> None:
        options = listener.options
        self.listener = listener
        self.trusted = Trusted(options.trusted_proxies)
        self.origins = frozenset(_origin(each) for each in options.origins)

    def head(self, received: bytes) -> int:
        """Where the request ends, 0 if more has to come; Refusal when it is no request, or too large."""
        if not received[:1].isalpha():
            raise Refusal(0, "no HTTP request")
        end = received.find(_END)
        if end < 0:
            end = len(received)
        if end > MAX_HEAD_BYTES or received.count(b"\n", 0, end) >= MAX_HEAD_LINES:
            raise Refusal(431, "the request header is too large")
        if end == len(received):
            return 0
        version = received[: received.find(b"\n")].rstrip().rpartition(b" ")[2]
        if version.startswith(b"HTTP/") and version != b"HTTP/1.1":  # RFC 6455, 4.2.1
            raise Refusal(505, "only HTTP/1.1 is spoken here")
        return end + len(_END)

    def admit(self, request: Request, peer: Peer) -> tuple[Peer, str | None]:
        """The client's `Peer` and the subprotocol to answer with. Raises Refusal."""
        options = self.listener.options
        if request.target.partition("?")[0] != self.listener.path:
            raise Refusal(404, "there is nothing here")
        headers: dict[str, str] = {"host": request.host}
        for raw_name, raw_value in request.headers:
            if raw_name in _HOP or raw_name.startswith(b"sec-websocket-"):
                continue
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
            # For a proxy it would be a part of the request, and for us the first frames.
            raise Refusal(400, "a request with a body")
        # Without Origin it is no browser, and there is no page to be protected from.
        if self.origins and "origin" in headers and _origin(headers["origin"]) not in self.origins:
            raise Refusal(403, "not from this origin")
        subprotocol = next((each for each in request.subprotocols if each in SUBPROTOCOLS), None)
        if subprotocol is None and options.require_subprotocol:
            raise Refusal(400, "the subprotocol mqtt is missing")  # [MQTT-6.0.0-3]
        told = headers.get(options.forwarded, "")
        host, port = client_address(peer.host, peer.port, options.forwarded, (told,) if told else (), self.trusted)
        return (
            Peer(
                host,
                port,
                peer.listener,
                peer.secure,
                peer.certificate,
                peer.psk_identity,
                peer.server_name,
                headers,
            ),
            subprotocol,
        )


def _origin(text: str) -> str:
    return text.lower().rstrip("/")
