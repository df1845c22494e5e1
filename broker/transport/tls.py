"""TLS over a non-blocking connection: the contract of `TcpStream`, with records in between.

OpenSSL works on memory: what the socket gave is decrypted at once, and the output of a turn is encrypted at its end and
leaves in one `send`. A connection has no task and no thread.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from collections.abc import Callable

from broker.limits.origins import Origins
from broker.peer import Peer
from broker.transport.api import Nobody, StreamProtocol
from broker.transport.certificates import Certificates
from broker.transport.reactor import Reactor
from broker.transport.stream import LINGER_S, TcpStream

#: Seconds of CPU that handshakes get in one turn, about: each costs a millisecond, and there may be thousands.
HANDSHAKE_SLICE_S = 0.004

#: Plain text in one record. OpenSSL's buffers never shrink: with more at a time, each connection would keep more.
RECORD_BYTES = 16384

#: Read of one connection in a turn: a whole record with what surrounds it.
READ_BYTES = RECORD_BYTES + 1024

_NOBODY = Nobody()


class Handshakes:
    """All handshakes of a node. Steps wait here for their turn, in order, so that a flood of them leaves the others
    most of the time."""

    def __init__(
        self, reactor: Reactor, refused: Callable[[Peer, str, str], None], origins: Origins | None = None
    ) -> None:
        """`refused` is told of those that failed: a reason for the metrics, and details. Those under way that `origins`
        counts leave it at the end of their handshake."""
        self.reactor = reactor
        self.refused = refused
        #: Under way.
        self.open = 0
        self.origins = origins or Origins()
        self._waiting: deque[TlsStream] = deque()

    def queue(self, stream: TlsStream) -> None:
        """Call `stream.shake` in one of the next turns."""
        if not self._waiting:
            self.reactor.call_again(self)
        self._waiting.append(stream)

    def resume(self) -> None:
        """As many as fit."""
        waiting = self._waiting
        until = time.perf_counter() + HANDSHAKE_SLICE_S
        try:
            while waiting:
                waiting.popleft().shake()
                if time.perf_counter() > until:
                    break
        finally:
            if waiting:
                self.reactor.call_again(self)


class TlsStream(TcpStream):
    """`established` gets it once the handshake is done and `peer` is complete; before that it has no protocol.

    One that fails is counted, told to the client in an alert, and closed.
    """

    __slots__ = (
        "_certificates",
        "_established",
        "_handshakes",
        "_hello",
        "_incoming",
        "_outgoing",
        "_over",
        "_queued",
        "_shaking",
        "_tls",
        "_until",
    )

    def __init__(
        self,
        raw: socket.socket,
        reactor: Reactor,
        bound: int,
        peer: Peer,
        gone: Callable[[], None] | None,
        certificates: Certificates,
        handshakes: Handshakes,
        timeout_s: float,
        established: Callable[[TlsStream], None],
    ) -> None:
        super().__init__(raw, reactor, bound, peer, gone)
        self.protocol = _NOBODY
        self._certificates = certificates
        self._handshakes = handshakes
        self._established: Callable[[TlsStream], None] | None = established
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = certificates.server_side(self._incoming, self._outgoing)
        self._shaking = True
        #: What the client has sent, until it is answered.
        self._hello: bytes | None = b""
        self._queued = False
        #: Nothing may be encrypted any more.
        self._over = False
        #: When the handshake, or the peer's goodbye, has to be done.
        self._until = reactor.now + timeout_s
        handshakes.open += 1
        reactor.register_client(self.fd, self)
        reactor.watch_deadline(self, self._until)

    def start(self, protocol: StreamProtocol) -> None:
        self.protocol = protocol

    # -- the handshake

    def shake(self) -> None:
        """The next step."""
        self._queued = False
        if self._raw is None or not self._shaking:
            return
        if self._receive():
            self._step()

    def _step(self) -> None:
        try:
            self._certificates.step(self._tls)
            self._certificates.tell(self._tls, self.peer)
        except ssl.SSLWantReadError:
            hello = self._hello
            if hello is not None and self._outgoing.pending:
                self._hello = None
                if self._tls.session_reused:  # certificates and keys are looked at in every handshake
                    self._begin_anew(hello)
                    return
            self._watch_reading()
            self._send_records()
        except ssl.SSLCertVerificationError as error:
            self._refuse(f"{error.reason}: {error.verify_message}")
        except ssl.SSLError as error:
            self._refuse(error.reason or str(error))
        except ValueError as error:
            self._refuse(f"the client's certificate cannot be read: {error}")
        else:
            self._shaken()

    def _begin_anew(self, hello: bytes) -> None:
        """The same hello, for a server that does not know its session: that answers with a whole handshake."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self._certificates.server_side(self._incoming, self._outgoing, anew=True)
        self._incoming.write(hello)
        self._step()

    def _shaken(self) -> None:
        self._hello = None
        established = self._established
        assert established is not None
        self._end_shaking()
        self._until = 0.0
        self._watch_reading()
        self._send_records()
        established(self)
        if self._raw is not None and not self._closing and (self._incoming.pending or self._tls.pending()):
            self._deliver()

    def _end_shaking(self) -> None:
        if self._shaking:
            self._shaking = False
            self._established = None
            self._handshakes.open -= 1
            self._handshakes.origins.leave(self.fd)

    def _refuse(self, reason: str) -> None:
        self._end_shaking()
        self._handshakes.refused(self.peer, "tls_handshake", reason)
        self._over = True
        self.close()  # when the alert is gone

    # -- in

    def readable(self) -> None:
        if self._shaking:
            if not self._queued and self._raw is not None:
                self._queued = True
                self._reactor.watch_readable(self.fd, False)
                self._handshakes.queue(self)
            return
        if not self._left_alone() and self._receive() and not self._closing:
            self._deliver()

    def _receive(self) -> bool:
        """Whether something came. While it says goodbye, what comes is thrown away."""
        if self._raw is None:
            return False
        try:
            data = self._raw.recv(READ_BYTES)
        except BlockingIOError:
            self._watch_reading()
            return False
        except OSError as error:
            self._lost(error.strerror or str(error))
            return False
        if not data:
            self._lost("closed by peer")
            return False
        self._reactor.bytes_read += len(data)
        if not self._closing:
            self._incoming.write(data)
            if self._hello is not None:
                self._hello += data
        return True

    def _deliver(self) -> None:
        tls, incoming = self._tls, self._incoming
        data = b""
        end = ""
        try:
            data = tls.read(RECORD_BYTES)
            while data and (incoming.pending or tls.pending()):
                more = tls.read(RECORD_BYTES)
                if not more:
                    end = "closed by peer"
                    break
                data += more
            if not data:
                end = "closed by peer"
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            end = error.reason or str(error)
        self._send_records()
        if data:
            try:
                self.protocol.data_received(data)
            except Exception:
                self._lost("internal error")
                raise
        if end and self._raw is not None and not self._closing:
            if self._outgoing.pending:  # an alert
                self._try_to_send(self._outgoing.read())
            self._lost(end)

    def _try_to_send(self, data: bytes) -> None:
        if self._raw is not None and not self._unsent:
            try:
                self._raw.send(data)
            except OSError:
                return

    # -- out

    def _send_records(self) -> None:
        """OpenSSL itself has something to say."""
        if self._outgoing.pending and not self._dirty:
            self._dirty = True
            self._reactor.mark_dirty(self)

    def flush(self) -> None:
        if self._raw is None:
            super().flush()
            return
        pieces = self._pieces
        records: list[bytes] = []
        try:
            if pieces and not self._over:
                self._encrypt(b"".join(pieces), records)
            if self._closing and not self._over:
                self._over = True
                self._say_close_notify()
        except ssl.SSLError as error:
            self._lost(error.reason or str(error))
            return
        if self._outgoing.pending:
            records.append(self._outgoing.read())
        self._pieces = records
        super().flush()

    def _encrypt(self, data: bytes, records: list[bytes]) -> None:
        """The last record, or the only one, stays in `_outgoing`."""
        write = self._tls.write
        size = len(data)
        if size <= RECORD_BYTES:
            write(data)
            return
        view = memoryview(data)
        for at in range(0, size, RECORD_BYTES):
            write(view[at : at + RECORD_BYTES])
            records.append(self._outgoing.read())

    def _say_close_notify(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            return  # it is made; nobody waits for the peer's

    # -- the end

    def _say_goodbye(self) -> None:
        if not self._lingering:
            self._until = self._reactor.now + LINGER_S
        super()._say_goodbye()

    def check_deadline(self, now: float) -> float:
        """The time of the handshake or of the goodbye may be over."""
        if self._raw is None or not self._until:
            return 0.0
        if now < self._until:
            return self._until
        if self._shaking:
            self._end_shaking()
            self._handshakes.refused(self.peer, "tls_timeout", "no handshake in time")
        self.abort()
        return 0.0

    def _shut(self) -> None:
        self._end_shaking()
        if self._raw is not None:
            super()._shut()
            # The wheel may hold the stream until the time of its handshake is over, and OpenSSL's part is large.
            del self._tls, self._incoming, self._outgoing
