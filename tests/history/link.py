"""One network connection of a recorded client: bytes to packets and back, and what is kept of an abandoned one."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

import trio

from broker.codec.decode import decode
from broker.codec.encode import encode
from broker.codec.packets import Packet, Pingreq
from broker.codec.primitives import FrameBuffer

#: A quiet connection is asked for a sign of life this often.
PING_S = 1.0
_READ_BYTES = 65_536


class Address(NamedTuple):
    """Where a node, or what stands before it, accepts clients."""

    node: str
    host: str
    port: int


class Link:
    """Reads until the server closes; `write` is synchronous and never blocks.

    `received(link, packet)` is called for each packet, `ended(link)` once when the connection is over, and
    `silent(link)` once when nothing came for `patience_s` although it was asked.
    """

    def __init__(
        self,
        number: int,
        address: Address,
        stream: trio.SocketStream,
        version: int,
        received: Callable[[Link, Packet], None],
        ended: Callable[[Link], None],
        silent: Callable[[Link], None],
        patience_s: float,
    ) -> None:
        self.number = number
        self.node = address.node
        self.version = version
        self.patience_s = patience_s
        #: Another connection of the client was accepted after this one.
        self.replaced = False
        #: The client does not count on it any more, but it is still open.
        self.given_up = False
        #: The client closes it itself.
        self.closing = False
        self.closed = trio.Event()
        self.local_port: int = stream.socket.getsockname()[1]
        #: Packet id -> payload of what was unacknowledged when it was replaced.
        self.unacked: dict[int, str] = {}
        self._received = received
        self._ended = ended
        self._silent = silent
        self._stream = stream
        self._frames = FrameBuffer()
        self._out = bytearray()
        self._work = trio.Event()
        self._heard = trio.current_time()
        self._scope = trio.CancelScope()

    def write(self, *packets: Packet) -> None:
        """Send packets as soon as the connection takes them."""
        for packet in packets:
            self._out += encode(packet, self.version)
        self._work.set()

    async def serve(self) -> None:
        """Until the connection is over."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._watch)
                    await self._read()
                    nursery.cancel_scope.cancel()
        finally:
            self.closed.set()
            self._ended(self)
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await trio.aclose_forcefully(self._stream)

    def shut(self) -> None:
        """Close it from this side, with all that was written before."""
        self.closing = True
        self._work.set()

    def reset(self) -> None:
        """Reset it at once, as a crashed client would."""
        with contextlib.suppress(OSError):
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._scope.cancel()

    async def _read(self) -> None:
        while True:
            try:
                data = await self._stream.receive_some(_READ_BYTES)
            except trio.BrokenResourceError:
                return
            if not data:
                return
            self._heard = trio.current_time()
            self._frames.feed(bytes(data))
            for first_byte, body in self._frames:
                self._received(self, decode(first_byte, body, 0, len(body), self.version, False))

    async def _write(self) -> None:
        while True:
            if self._out:
                data, self._out = bytes(self._out), bytearray()
                try:
                    await self._stream.send_all(data)
                except trio.BrokenResourceError:
                    return  # the reader notices the end, and what was said before it
            elif self.closing:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._stream.send_eof()
                await trio.sleep(self.patience_s)  # the server closes, or is not there
                self._scope.cancel()
            else:
                self._work = trio.Event()
                await self._work.wait()

    async def _watch(self) -> None:
        while True:
            await trio.sleep(PING_S)
            quiet_s = trio.current_time() - self._heard
            if quiet_s > self.patience_s and not self.given_up:
                self.given_up = True
                self._silent(self)
            elif quiet_s > PING_S and not self.given_up and not self.closing:
                self.write(Pingreq())


async def open_stream(address: Address, limit_s: float) -> trio.SocketStream | None:
    """Connect; None if that does not work within the time."""
    with trio.move_on_after(limit_s):
        try:
            stream = await trio.open_tcp_stream(address.host, address.port, happy_eyeballs_delay=limit_s)
        except OSError:
            return None
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream
    return None
