"""A non-blocking TCP connection with a bounded list of output, served by the reactor."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from broker.peer import Peer
from broker.transport.api import Nobody, StreamProtocol
from broker.transport.reactor import Reactor

#: How long a connection that this side has closed may take to be closed by the other.
LINGER_S = 2.0

#: Read at most this much of one connection in a turn.
READ_BYTES = 65536


_NOBODY = Nobody()


class TcpStream:
    """One connected socket. Output is collected by `write` and leaves in one `send` a turn.

    `congested` is true while more than `bound` bytes wait after a flush: then droppable output should be
    dropped and other output held; `stalled_since` is when the peer last took anything (0.0: nothing waits).
    """

    __slots__ = (
        "_bound",
        "_closing",
        "_dirty",
        "_gone",
        "_lingering",
        "_paused",
        "_pieces",
        "_raw",
        "_reactor",
        "_told_gone",
        "_unsent",
        "congested",
        "fd",
        "overrun",
        "peer",
        "protocol",
        "stalled_since",
    )

    def __init__(
        self, raw: socket.socket, reactor: Reactor, bound: int, peer: Peer, gone: Callable[[], None] | None = None
    ) -> None:
        """`gone` is called once, when the socket is closed."""
        self._raw: socket.socket | None = raw
        self._reactor = reactor
        self._bound = bound
        self._gone = gone
        self.fd = raw.fileno()
        self.peer = peer
        self._pieces: list[bytes] = []
        #: A bytearray once the peer did not take all of a turn; what follows is appended to it.
        self._unsent: bytes | bytearray = b""
        self._dirty = False
        self._closing = False
        self._lingering = False
        self._paused = False
        #: The owner knows that the peer has ended.
        self._told_gone = False
        self.congested = False
        #: Twice the bound waits, of answers that can be neither dropped nor held: nothing more is read meanwhile.
        self.overrun = False
        self.stalled_since = 0.0
        self.protocol: StreamProtocol

    def start(self, protocol: StreamProtocol) -> None:
        """Begin to read; `protocol` gets what comes."""
        self.protocol = protocol
        self._reactor.register_client(self.fd, self)

    @property
    def closed(self) -> bool:
        """True once `close` took effect or the connection was lost."""
        return self._raw is None

    def readable(self) -> None:
        if self._raw is None or self._left_alone():
            return
        try:
            data = self._raw.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error.strerror or str(error))
            return
        if not data:
            self._lost("closed by peer")
        elif not self._closing:
            self._reactor.bytes_read += len(data)
            try:
                self.protocol.data_received(data)
            except Exception:
                self._lost("internal error")  # where the next packet begins is not known any more
                raise

    def resume(self) -> None:
        if self._raw is not None and not self._closing:
            try:
                self.protocol.resume()
            except Exception:
                self._lost("internal error")
                raise

    def call_again(self) -> None:
        """`protocol.resume` is called in the next turn."""
        self._reactor.call_again(self)

    def pause_reading(self, paused: bool) -> None:
        """Leave what the peer sends in the kernel."""
        self._paused = paused
        self._told_gone = False
        self._watch_reading()

    def _watch_reading(self) -> None:
        if self._raw is not None:
            wanted = self._lingering or not (self._paused or self.overrun or self._closing)
            self._reactor.watch_readable(self.fd, wanted, self._paused and not (self._told_gone or self._closing))

    def _left_alone(self) -> bool:
        """Whether there is nothing to be read, for all that the reactor says: reading is paused, and the connection has
        not failed. That the peer has ended is told."""
        events = self._reactor.events
        if not self._paused or self._closing or events & (select.EPOLLHUP | select.EPOLLERR):
            return False
        if events & select.EPOLLRDHUP and not self._told_gone:
            self._told_gone = True
            self._watch_reading()
            self.protocol.peer_gone()
        return True

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
        self._dirty = False
        pieces = self._pieces
        raw = self._raw
        if raw is None:
            pieces.clear()
            return
        if self._unsent:  # waits for room; writable() goes on
            if pieces:
                more = b"".join(pieces)
                self._unsent += more
                self._reactor.unsent_bytes += len(more)
                pieces.clear()
            self._judge()
            return
        if pieces:
            data = b"".join(pieces) if len(pieces) > 1 else pieces[0]
            self._pieces = []
            try:
                sent = raw.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._lost(error.strerror or str(error))
                return
            self._reactor.sent_bytes += sent
            if sent < len(data):
                self._unsent = bytearray(memoryview(data)[sent:])
                self._reactor.unsent_bytes += len(data) - sent
                self.stalled_since = self._reactor.now
                self._reactor.watch_writable(self.fd, True)
                self._judge()
                return
        if self._closing:
            self._say_goodbye()

    def writable(self) -> None:
        if self._raw is None:
            return
        unsent = self._unsent
        try:
            sent = self._raw.send(unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error.strerror or str(error))
            return
        self._reactor.sent_bytes += sent
        self._reactor.unsent_bytes -= sent
        self.stalled_since = self._reactor.now
        was_congested = self.congested
        if sent < len(unsent):
            assert isinstance(unsent, bytearray)
            del unsent[:sent]
        else:
            self._unsent = b""
            self._reactor.watch_writable(self.fd, False)
            self.stalled_since = 0.0
            self.flush()
        if was_congested:
            self._judge()
            self._tell_drained()

    def _tell_drained(self) -> None:
        if not self.congested and self._raw is not None:
            self.protocol.output_drained()

    def pending_bytes(self) -> int:
        """Bytes that the peer has not taken yet."""
        return len(self._unsent) + sum(map(len, self._pieces))

    def _judge(self) -> None:
        waiting = len(self._unsent)
        congested = waiting > self._bound
        if congested and not self.congested:
            self.congested = True
            self.protocol.output_congested()
        self.congested = congested
        overrun = congested and (self.overrun or waiting > 2 * self._bound)
        if overrun != self.overrun:
            self.overrun = overrun
            self._watch_reading()

    def close(self) -> None:
        """Close once the output written so far is gone; nothing more is read. Idempotent."""
        if not self._closing and self._raw is not None:
            self._closing = True
            self._watch_reading()
            if not self._dirty:
                self._dirty = True
                self._reactor.mark_dirty(self)

    def abort(self) -> None:
        """Close at once, whatever waits. Idempotent."""
        self._closing = True
        self._shut()

    def _say_goodbye(self) -> None:
        """Half-close, and throw away what still comes until the peer closes too.

        A socket that is closed with unread input resets the connection, and the peer may never see what was sent last.
        """
        if self._raw is None or self._lingering:
            return
        self._lingering = True
        try:
            self._raw.shutdown(socket.SHUT_WR)
        except OSError:
            self._shut()
            return
        self._watch_reading()
        self._reactor.watch_deadline(self, self._reactor.now + LINGER_S)

    def check_deadline(self, now: float) -> float:
        """The peer had its time to close."""
        self._shut()
        return 0.0

    def _shut(self) -> None:
        raw = self._raw
        if raw is not None:
            self._raw = None
            self._pieces.clear()
            self._reactor.unsent_bytes -= len(self._unsent)
            self._unsent = b""
            self.stalled_since = 0.0
            if self._closing:
                self.protocol = _NOBODY  # no cycle for the garbage collector
            self._reactor.unregister(self.fd)
            raw.close()
            if self._gone is not None:
                self._gone()

    def _lost(self, reason: str) -> None:
        protocol = None if self._closing else self.protocol
        self._closing = True
        self._shut()
        if protocol is not None:
            protocol.connection_lost(reason)
