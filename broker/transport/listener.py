"""Accepts TCP connections on the reactor."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from broker.errors import ConfigError
from broker.log import get_logger
from broker.transport.reactor import Reactor
from broker.transport.stream import TcpStream

#: Accepted in one turn, so that a storm of connects does not starve those who are in.
ACCEPTS_PER_TURN = 64

#: How long nobody is accepted once the process is out of descriptors.
PAUSE_S = 0.5

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class TcpListener:
    """One listening socket. Raises ConfigError if the address cannot be used."""

    def __init__(
        self, host: str, port: int, reactor: Reactor, output_bound: int, accept: Callable[[TcpStream], None]
    ) -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
                0
            ]
            self._socket = socket.create_server(
                address[:2], family=family, backlog=4096, reuse_port=False, dualstack_ipv6=False
            )
        except OSError as error:
            raise ConfigError(f"listen = {host}:{port}: {error.strerror or error}") from None
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
        """Begin to accept."""
        self._reactor.register(self._socket.fileno(), self)

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
            self._accept(TcpStream(raw, self._reactor, self._bound, f"{address[0]}:{address[1]}"))

    def writable(self) -> None:
        """Never asked for."""

    def check_deadline(self, now: float) -> float:
        """Try again whether there are descriptors."""
        if self._socket.fileno() >= 0:
            self._reactor.register(self._socket.fileno(), self)
        return 0.0

    def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._socket.fileno() >= 0:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()
