"""Accepts TCP connections on the reactor."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from broker.errors import ConfigError
from broker.log import get_logger
from broker.options.listener import Listener
from broker.peer import Peer
from broker.transport.reactor import Reactor
from broker.transport.stream import TcpStream

#: Accepted in one turn, so that a storm of connects does not starve those who are in.
ACCEPTS_PER_TURN = 64

#: How long nobody is accepted once the process is out of descriptors.
PAUSE_S = 0.5

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


#: Connections that wait to be accepted.
BACKLOG = 4096


def bind(host: str, port: int, shared: bool = False) -> socket.socket:
    """A socket that takes the address, and connections from `listen` on; with `shared` other processes of this user may
    take the same one (SO_REUSEPORT). Raises ConfigError if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken.bind(address[:2])
        except OSError:
            taken.close()
            raise
    except OSError as error:
        raise ConfigError(f"listen = {host}:{port}: {error.strerror or error}") from None
    return taken


class TcpListener:
    """Accepts on a bound socket from `start` on. One that is not served for a while lets its clients wait."""

    def __init__(
        self,
        taken: socket.socket,
        listener: Listener,
        reactor: Reactor,
        output_bound: int,
        accept: Callable[[TcpStream, Listener], None],
    ) -> None:
        self.listener = listener
        self._socket = taken
        self._socket.setblocking(False)
        self._reactor = reactor
        self._accept = accept
        self._bound = output_bound
        self._log = get_logger("listener")
        self._full_logged = False
        name = self._socket.getsockname()
        self.host: str = name[0]
        self.port: int = name[1]

    def start(self) -> None:
        """Begin to accept. Raises ConfigError if somebody else listens there by now."""
        try:
            self._socket.listen(BACKLOG)
        except OSError as error:
            raise ConfigError(f"listen = {self.host}:{self.port}: {error.strerror or error}") from None
        self._reactor.register_client(self._socket.fileno(), self)

    def readable(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                raw, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    # Those who are connected go on; a listener that stays readable would spin meanwhile.
                    self._reactor.unregister(self._socket.fileno())
                    self._reactor.watch_deadline(self, self._reactor.now + PAUSE_S)
                    if not self._full_logged:
                        self._full_logged = True
                        self._log.error("listener.out_of_descriptors", error=error.strerror)
                    return
                continue  # the client gave up between SYN and accept
            self._full_logged = False
            raw.setblocking(False)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = Peer(address[0], address[1], self.listener.name)
            self._accept(TcpStream(raw, self._reactor, self._bound, peer), self.listener)

    def writable(self) -> None:
        """Never asked for."""

    def check_deadline(self, now: float) -> float:
        """Try again whether there are descriptors."""
        if self._socket.fileno() >= 0:
            self._reactor.register_client(self._socket.fileno(), self)
        return 0.0

    def abort(self) -> None:
        """Accept nobody any more, but keep the address: for the next listener on this socket."""
        self._reactor.unregister(self._socket.fileno())

    def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._socket.fileno() >= 0:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()
