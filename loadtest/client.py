"""A client connection of a run, served by the engine's loop. It comes back when its connection is lost."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from time import monotonic_ns
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
from loadtest.address import Address, Tls

if TYPE_CHECKING:
    from loadtest.engine import Engine

FILTERS_PER_PACKET = 500
FIRST_PAUSE_S = 0.2  # before another attempt to connect; it doubles
LONGEST_PAUSE_S = 5.0
_PASSING = frozenset((0x88, 0x89, 0x97, 0x9F))  # unavailable, busy, quota, rate: reasons to come again
_PASSING_V4 = 3
# One buffer for all: a read that allocated its own would spend most of its time on pages.
_BUFFER = memoryview(bytearray(262_144))


class LoadError(Exception):
    """The run cannot be made, or not go on."""


class Client:
    """A connection: connects, subscribes if it is to, and then does what its class adds."""

    def __init__(
        self,
        engine: Engine,
        client_id: str,
        node: Address,
        clean: bool = True,
        filters: Sequence[str] = (),
        qos: int = 0,
    ) -> None:
        self.engine = engine
        self.client_id = client_id
        self.node = node
        self.clean = clean
        self.filters = filters
        self.qos = qos
        self.socket: socket.socket | None = None
        self.connected = False  # CONNACK came
        self.ready = False  # ... and so did each SUBACK
        self.blocked = True  # until the socket takes what is to be written
        self.dirty = False
        self.out: list[bytes] = []
        self.receive_maximum = 65_535
        self.since_ns = 0  # when it connected last
        self.session: bool | None = False  # whether the broker keeps one; None: not known
        self._unanswered: dict[int, int] = {}  # how many filters, by the packet identifier of their SUBSCRIBE
        self._pinged = False
        self._attempts = 0
        self._leaving = False
        self._unsent = b""
        self._rest = b""
        self._tls: Tls | None = None

    def greeting(self) -> bytes:
        """Return the CONNECT packet."""
        engine = self.engine
        properties = None
        if engine.version == V5 and not self.clean:
            properties = Properties()
            properties.session_expiry_interval = engine.session_expiry_s
        given = engine.credentials
        packet = Connect(
            *(engine.version, self.client_id, self.clean, engine.keep_alive_s, given.username, given.password),
            properties=properties,
        )
        return encode(packet, engine.version)

    def connect(self) -> None:
        """Begin to connect."""
        made = self.socket = socket.socket(self.node.family, socket.SOCK_STREAM)
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.node.tls is not None:
            self._tls = Tls(self.node.tls, self.node.host)
        self._leaving = False
        self.since_ns = monotonic_ns()
        made.connect_ex(self.node.resolved)  # an error shows when the socket is served
        self.out.append(self.greeting())
        self.engine.register(self)

    def write(self, data: bytes) -> None:
        """Send `data` at the end of this turn."""
        self.out.append(data)
        if not self.dirty:
            self.dirty = True
            self.engine.dirty.append(self)

    def ping(self) -> None:
        """Keep the connection alive."""
        if self._pinged:
            self.lost("no PINGRESP")
            return
        self._pinged = True
        self.write(encode(Pingreq(), self.engine.version))

    def flush(self) -> None:
        """Write what was collected, as far as the socket takes it."""
        self.dirty = False
        if self.blocked or self.socket is None:
            return
        try:
            if self._tls is not None:
                data = self._unsent + self._tls.sealed(self.out)
            elif self.out:
                data = self._unsent + b"".join(self.out) if self._unsent else b"".join(self.out)
                self.out.clear()
            else:
                data = self._unsent
            if not data:
                return
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lost(str(error))
            return
        self._unsent = data[sent:]
        if self._unsent:
            self.blocked = True
            self.engine.watch(self, writable=True)

    def writable(self) -> None:
        """Go on writing after the socket was full."""
        self.blocked = False
        self.engine.watch(self, writable=False)
        self.flush()

    def readable(self) -> None:
        """Read once and handle every complete packet."""
        assert self.socket is not None
        try:
            size = self.socket.recv_into(_BUFFER)
            data = bytes(_BUFFER[:size])
            if self._tls is not None and size:
                data = self._tls.opened(data)
                if (self._tls.pending or self.out) and not self.dirty:
                    self.dirty = True
                    self.engine.dirty.append(self)
        except BlockingIOError:
            return
        except OSError as error:
            self.lost(str(error))
            return
        if not size:
            self.lost("the broker closed the connection")
            return
        if self._rest:
            data = self._rest + data
        try:
            used = self.feed(data)
        except PeerError as error:
            self.engine.trouble("protocol_errors", f"{self.client_id}: {error.text}")
            self.lost("", counted=False)
            return
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
        return start + length if self.socket is not None else size

    def packet(self, packet: Packet) -> None:
        """Handle what all clients share."""
        if isinstance(packet, Connack):
            self._connack(packet)
        elif isinstance(packet, Suback):
            self._suback(packet)
        elif isinstance(packet, Pingresp):
            self._pinged = False
        elif isinstance(packet, Disconnect):
            self.lost(f"DISCONNECT with reason code 0x{packet.reason_code:02x}")
        else:
            self.wrong(f"unexpected {type(packet).__name__}")

    def wrong(self, text: str) -> None:
        """Count what the protocol does not permit."""
        self.engine.trouble("protocol_errors", f"{self.client_id}: {text}")

    def _connack(self, packet: Connack) -> None:
        engine = self.engine
        if packet.reason_code:
            text = f"{self.client_id}: connection refused, reason code 0x{packet.reason_code:02x}"
            engine.trouble("refused", text)
            passing = packet.reason_code in _PASSING if engine.version == V5 else packet.reason_code == _PASSING_V4
            if not passing:
                engine.fail(text)
            self.lost(text, counted=False)
            return
        if self.connected:
            self.wrong("a second CONNACK")
            return
        self.connected = True
        self._attempts = 0
        kept = self.session and not self.clean
        if self.session is not None and packet.session_present != kept:
            text = f"{self.client_id}: session present is {packet.session_present}, not {kept}"
            engine.trouble("session_mismatches", text)
        self.session = not self.clean
        self.receive_maximum = 65_535
        if packet.properties is not None and packet.properties.receive_maximum is not None:
            self.receive_maximum = packet.properties.receive_maximum
        engine.shaken(self)
        self.greeted(packet.session_present)
        if (packet.session_present and kept) or not self.filters:
            self.opened()
            return
        for at in range(0, len(self.filters), FILTERS_PER_PACKET):
            wanted = [SubscriptionRequest(each, self.qos) for each in self.filters[at : at + FILTERS_PER_PACKET]]
            packet_id = len(self._unanswered) + 1
            self._unanswered[packet_id] = len(wanted)
            self.write(encode(Subscribe(packet_id, wanted), engine.version))

    def _suback(self, packet: Suback) -> None:
        wanted = self._unanswered.pop(packet.packet_id, None)
        if wanted is None:
            self.wrong(f"SUBACK for packet identifier {packet.packet_id}, not in use")
            return
        if len(packet.reason_codes) != wanted:
            self.wrong(f"SUBACK with {len(packet.reason_codes)} reason codes for {wanted} filters")
        for code in packet.reason_codes:
            if code != self.qos:
                text = f"{self.client_id}: SUBSCRIBE answered by 0x{code:02x}"
                self.engine.trouble("refused", text)
                self.engine.fail(text)
                return
        if not self._unanswered:
            self.opened()

    def greeted(self, session_present: bool) -> None:
        """Go on with a session, or begin one; before `opened`."""

    def opened(self) -> None:
        """Note that the client is ready for its work."""
        self.ready = True
        self.engine.opened(self)

    def lost(self, why: str, counted: bool = True) -> None:
        """The connection ended, and it was not we who wanted that: come back after a pause."""
        if self.socket is None:
            return
        if not self.connected and not self.clean:
            self.session = None  # it may have been made
        self.drop()
        if self._leaving:
            return
        pause_s = min(FIRST_PAUSE_S * 2**self._attempts, LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)
        self._attempts += 1
        self.engine.lost(self, why if counted else "", pause_s)

    def drop(self) -> None:
        """End the connection without a word."""
        if self.socket is None:
            return
        self.engine.unregister(self)
        self.socket.close()
        self.socket = None
        self._tls = None
        self.connected = self.ready = self._pinged = False
        self.blocked = True
        self.out.clear()
        self._unsent = self._rest = b""
        self._unanswered.clear()

    def close(self) -> None:
        """Send DISCONNECT, as far as the socket takes it, and end the connection."""
        self._leaving = True
        if self.socket is not None and self.connected and not self.blocked:
            self.out.append(encode(Disconnect(), self.engine.version))
            self.flush()
        if self.socket is not None and not self.connected and not self.clean:
            self.session = None  # it may have been made
        self.drop()
