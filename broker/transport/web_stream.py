"""The owner's side of a WebSocket connection: a stream like any other, in binary messages."""

from __future__ import annotations

from typing import Protocol

from broker.peer import Peer
from broker.transport.api import Nobody, Stream, StreamProtocol
from broker.transport.reactor import Reactor

#: How long a peer may take to answer the closing handshake.
LINGER_S = 2.0

#: Taken apart and not handed to the owner yet: then no more is.
INBOX_BYTES = 8192

_NORMAL, _GOING_AWAY, _PROTOCOL_ERROR, UNSUPPORTED, _POLICY, _TOO_BIG = 1000, 1001, 1002, 1003, 1008, 1009
_INTERNAL_ERROR = 1011

#: WebSocket close codes by the reason for which MQTT closed; any other that is no success is a matter of policy.
_CLOSE_CODES = {
    "": _NORMAL,
    "normal": _NORMAL,
    "server_shutting_down": _GOING_AWAY,
    "server_busy": _GOING_AWAY,
    "use_another_server": _GOING_AWAY,
    "server_moved": _GOING_AWAY,
    "malformed_packet": _PROTOCOL_ERROR,
    "protocol_error": _PROTOCOL_ERROR,
    "packet_too_large": _TOO_BIG,
}

_NOBODY = Nobody()


class Wire(Protocol):
    """The side of the network: what takes frames apart."""

    below: Stream
    #: Why no more bytes will come; "" while they may.
    ended: str

    def watch_reading(self) -> None:
        """`paused` of the stream changed."""

    def wake(self) -> None:
        """The owner took what there was."""

    def farewell(self, code: int) -> bool:
        """Send a close frame; False if the peer closed already."""
        ...

    def end(self, reason: str) -> None:
        """No more bytes."""


class WebSocketStream:
    """An MQTT stream in the binary messages of a WebSocket connection."""

    __slots__ = (
        "_again",
        "_below",
        "_closing",
        "_code",
        "_dirty",
        "_inbox",
        "_inbox_bytes",
        "_lost",
        "_pieces",
        "_queued",
        "_reactor",
        "_said_goodbye",
        "_wire",
        "paused",
        "peer",
        "protocol",
    )

    def __init__(self, reactor: Reactor, wire: Wire, peer: Peer) -> None:
        self._reactor = reactor
        self._wire = wire
        self._below = wire.below
        self.peer = peer
        self.protocol: StreamProtocol = _NOBODY
        self._pieces: list[bytes] = []
        self._dirty = False
        self._inbox: list[bytes] = []
        self._inbox_bytes = 0
        #: `resume` will be called; and the owner asked for it.
        self._queued = self._again = False
        self.paused = False
        self._closing = self._said_goodbye = False
        self._code = 0
        self._lost = ""

    def start(self, protocol: StreamProtocol) -> None:
        """Begin to read; `protocol` gets what comes."""
        self.protocol = protocol

    @property
    def congested(self) -> bool:
        return self._below.congested

    @property
    def overrun(self) -> bool:
        return self._below.overrun

    @property
    def stalled_since(self) -> float:
        return self._below.stalled_since

    @property
    def closed(self) -> bool:
        """True once `close` took effect or the connection was lost."""
        return self._below.closed

    def pending_bytes(self) -> int:
        """Bytes that the peer has not taken yet."""
        return self._below.pending_bytes() + sum(map(len, self._pieces))

    # -- in

    @property
    def hungry(self) -> bool:
        """The owner may get more; all that there is, at the end."""
        return self._inbox_bytes < INBOX_BYTES or self._closing or bool(self._wire.ended)

    def feed(self, data: bytes) -> None:
        """A piece of a message came. In trio-websocket's task: the owner gets it in a turn."""
        if data and not self._closing:
            self._inbox.append(data)
            self._inbox_bytes += len(data)

    def deliver(self) -> None:
        """That was all for now."""
        if self._inbox and not self.paused:
            self._queue()

    def lost(self, reason: str) -> None:
        """The connection is over; the owner is told after it got what came before."""
        self._lost = reason
        if self._closing:
            self._over()
        else:
            self._queue()

    def fail(self, code: int) -> None:
        """The peer broke the rules: close, as if it had gone."""
        if not self._closing:
            self._code = code
            self._lost = "text message" if code == UNSUPPORTED else "protocol error"
            self._queue()

    def _queue(self) -> None:
        if not self._queued:
            self._queued = True
            self._reactor.call_again(self)

    def call_again(self) -> None:
        """`protocol.resume` is called in the next turn."""
        self._again = True
        self._queue()

    def resume(self) -> None:
        """From the reactor, in a turn."""
        self._queued = False
        try:
            if self._again:
                self._again = False
                if not self._closing:
                    self.protocol.resume()
            if self._inbox and not self._closing and (not self.paused or self._lost):
                data = b"".join(self._inbox) if len(self._inbox) > 1 else self._inbox[0]
                self._inbox.clear()
                self._inbox_bytes = 0
                self.protocol.data_received(data)
                self._wire.wake()
        except Exception:
            self._lost = "internal error"  # where the next packet begins is not known any more
            self._code = _INTERNAL_ERROR
            raise
        finally:
            if self._lost:
                self._tell_lost()

    def _tell_lost(self) -> None:
        protocol = self.protocol
        if not self._closing:
            self.close()
            protocol.connection_lost(self._lost)
        self._over()

    def pause_reading(self, paused: bool) -> None:
        """Leave what the peer sends in the kernel."""
        self.paused = paused and not self._closing
        self._wire.watch_reading()
        if not paused and self._inbox:
            self._queue()

    # -- out

    def write(self, data: bytes) -> None:
        """Append to the output of this turn."""
        self._pieces.append(data)
        if not self._dirty:
            self._dirty = True
            self._reactor.mark_dirty(self)

    def write_parts(self, head: bytes, middle: bytes, tail: bytes) -> None:
        """Append three pieces that follow each other."""
        self._pieces += (head, middle, tail)
        if not self._dirty:
            self._dirty = True
            self._reactor.mark_dirty(self)

    def flush(self) -> None:
        """Pass on what was written, as one message. The stream below sends it in the same turn."""
        self._dirty = False
        pieces = self._pieces
        if pieces:
            if not self._said_goodbye and not self._wire.ended:
                self._pieces = []
                payload = b"".join(pieces) if len(pieces) > 1 else pieces[0]
                self._below.write_parts(_frame_header(len(payload)), payload, b"")
            else:
                pieces.clear()
        if self._closing and not self._said_goodbye:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        self._said_goodbye = True
        if self._wire.farewell(self._code) and not self._wire.ended:
            self._reactor.watch_deadline(self, self._reactor.now + LINGER_S)
        else:
            self._below.close()
            self._wire.end("closed")

    def check_deadline(self, now: float) -> float:
        """The peer had its time to answer."""
        if self._below.closed or self._wire.ended:
            return 0.0
        if self._below.pending_bytes():
            return now + LINGER_S  # it did not get to the question yet; the owner looks whether it takes anything
        self._below.close()
        self._wire.end("closed")
        return 0.0

    # -- the end

    def close(self) -> None:
        """Close once the output written so far is gone, with a close frame; nothing more is read. Idempotent."""
        if self._closing:
            return
        self._closing = True
        # The owner's word for it; owners that have none (Nobody) are done in peace.
        self._code = self._code or _close_code(getattr(self.protocol, "close_reason", ""))
        self._inbox.clear()
        self.paused = False
        self._wire.watch_reading()
        self._wire.wake()
        if not self._dirty:
            self._dirty = True
            self._reactor.mark_dirty(self)

    def abort(self) -> None:
        """Close at once, whatever waits. Idempotent."""
        self._closing = self._said_goodbye = True
        self._below.abort()
        self._wire.end("aborted")
        self._over()

    def _over(self) -> None:
        """Nothing more will happen: no cycle for the garbage collector."""
        self._pieces.clear()
        self._inbox.clear()
        self.protocol = _NOBODY


def _close_code(reason: str) -> int:
    return _CLOSE_CODES.get(reason, _POLICY)


def _frame_header(size: int) -> bytes:
    """Of a final binary frame from a server: without a mask (RFC 6455, 5.2)."""
    if size < 126:
        return bytes((0x82, size))
    if size < 65536:
        return b"\x82\x7e" + size.to_bytes(2, "big")
    return b"\x82\x7f" + size.to_bytes(8, "big")
