"""A non-blocking byte connection to the store: TCP, TLS or a Unix socket, without a task of its own."""

from __future__ import annotations

import socket
import ssl

import trio

from broker.errors import StoreUnavailable
from cluster.redis.address import StoreAddress

READ_BYTES = 262_144


class Wire:
    """One connected socket. `write` sends what fits and keeps the rest; no method blocks.

    Every method but `close` may raise OSError (ssl.SSLError included): the connection is then of no use.
    """

    __slots__ = ("_incoming", "_outgoing", "_rest", "_socket", "_tls", "fd")

    def __init__(self, connected: socket.socket, tls: ssl.SSLContext | None = None, server_hostname: str = "") -> None:
        connected.setblocking(False)
        self._socket = connected
        self.fd = connected.fileno()
        self._rest = memoryview(b"")
        self._tls: ssl.SSLObject | None = None
        # Memory buffers, not a wrapped socket: one code path for partial writes, and nothing decrypted
        # can stay behind in OpenSSL where a level-triggered epoll does not see it.
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        if tls is not None:
            self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname or None)

    @property
    def blocked_bytes(self) -> int:
        """Bytes that wait for room in the socket; 0: `write` may be called."""
        return len(self._rest)

    def write(self, data: bytes) -> bool:
        """Sends `data`; False if a part waits for `write_rest`. Not to be called while something waits."""
        if self._tls is not None:
            self._tls.write(data)
            data = self._outgoing.read()
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return True
        self._rest = memoryview(data)[sent:]
        return False

    def write_rest(self) -> bool:
        """There may be room again; True if nothing waits any more."""
        if self._rest:
            try:
                self._rest = self._rest[self._socket.send(self._rest) :]
            except BlockingIOError:
                return False
        return not self._rest

    def read(self) -> bytes | None:
        """What has arrived; None for nothing yet, b"" for the end."""
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        if self._tls is None or not data:
            return data
        return self._decrypt(self._tls, data)

    def _decrypt(self, tls: ssl.SSLObject, data: bytes) -> bytes | None:
        self._incoming.write(data)
        chunks: list[bytes] = []
        try:
            while chunk := tls.read(READ_BYTES):
                chunks.append(chunk)
        except ssl.SSLWantReadError:
            if not chunks:
                self._send_own_records()
                return None
        except ssl.SSLZeroReturnError:
            pass
        self._send_own_records()
        return b"".join(chunks)

    def _send_own_records(self) -> None:
        """What TLS itself has to say (a key update); it may not overtake a rest that waits."""
        if self._outgoing.pending:
            self._rest = memoryview(bytes(self._rest) + self._outgoing.read())
            self.write_rest()

    async def handshake(self) -> None:
        """The TLS handshake, if this is a TLS connection. Raises OSError."""
        if self._tls is None:
            return
        while True:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            self._send_own_records()
            while self._rest:
                await trio.lowlevel.wait_writable(self._socket)
                self.write_rest()
            if done:
                return
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                continue
            if not data:
                raise ConnectionResetError("connection closed during the TLS handshake")
            self._incoming.write(data)

    def close(self) -> None:
        """Closes the socket; wakes tasks that wait for it. A second call does nothing."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


async def open_wire(address: StoreAddress) -> Wire:
    """Connects, with the TLS handshake; no time-out of its own. Raises StoreUnavailable with one clear line."""
    try:
        context = await trio.to_thread.run_sync(address.ssl_context) if address.tls else None
    except OSError as error:
        raise StoreUnavailable(f"store {address}: cannot load the TLS files: {reason(error)}") from error
    try:
        if address.path:
            connected = (await trio.open_unix_socket(address.path)).socket
        else:
            connected = (await trio.open_tcp_stream(address.host, address.port)).socket
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except OSError as error:
        raise StoreUnavailable(f"cannot connect to the store {address}: {reason(error)}") from error
    wire = Wire(socket.socket(fileno=connected.detach()), context, address.host)
    secured = False
    try:
        await wire.handshake()
        secured = True
    except OSError as error:
        raise StoreUnavailable(f"store {address}: TLS handshake failed: {reason(error)}") from error
    finally:
        if not secured:
            wire.close()
    return wire


def reason(error: BaseException) -> str:
    """The one line that says why: the innermost of trio's groups, without errno clutter."""
    while isinstance(error.__cause__, BaseExceptionGroup | OSError) or isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__  # type: ignore[assignment]
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error).replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().partition("\n")[0] or type(error).__name__
