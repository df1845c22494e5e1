"""Accepts connections on the reactor, of all kinds, and makes streams of them."""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import socket
from collections.abc import Callable

from broker.errors import ConfigError
from broker.log import get_logger
from broker.options.listener import Listener
from broker.peer import Peer, network_of
from broker.transport.api import Stream
from broker.transport.certificates import Certificates
from broker.transport.entrance import Bucket, Entrance
from broker.transport.forwarded import Trusted
from broker.transport.proxied import HeaderReader
from broker.transport.stream import TcpStream
from broker.transport.tls import TlsStream
from broker.transport.unix_socket import bind_unix

#: Accepted in one turn, so that a storm of connects does not starve those who are in.
ACCEPTS_PER_TURN = 64

#: How long nobody is accepted once the process is out of descriptors.
PAUSE_S = 0.5

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


#: Connections that wait to be accepted.
BACKLOG = 4096


def bind(listener: Listener, shared: bool = False) -> socket.socket:
    """A socket that takes the address, and connections from `listen` on; with `shared` other processes of this user may
    take the same one (SO_REUSEPORT). Raises ConfigError if it cannot be had."""
    if listener.scheme == "unix":
        assert not shared, "the configuration does not allow it"
        return bind_unix(listener.path, int(listener.options.mode, 8))
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        raise ConfigError(f"listen = {listener.url}: {error.strerror or error}") from None
    return taken


def located(listener: Listener, taken: socket.socket) -> Listener:
    """The listener with the address that its socket has got."""
    if listener.scheme == "unix":
        return listener
    host, port = taken.getsockname()[:2]
    return dataclasses.replace(listener, host=host, port=port)


class Acceptor:
    """Accepts on a bound socket from `start` on, until `close`; `accept` gets each stream once its peer is known: after
    the PROXY header and the TLS handshake. While there is no token or no descriptor, clients wait."""

    def __init__(
        self,
        taken: socket.socket,
        listener: Listener,
        entrance: Entrance,
        certificates: Certificates | None,
        accept: Callable[[Stream, Listener], None],
    ) -> None:
        self.listener = listener
        #: Sockets that were accepted here and are not closed yet.
        self.open = 0
        self._socket = taken
        self._socket.setblocking(False)
        self._entrance = entrance
        self._reactor = entrance.reactor
        self._certificates = certificates
        self._accept = accept
        self._bucket = Bucket(listener.options.connection_rate)
        self._limit = listener.options.max_connections
        self._trusted = [network_of(text) for text in listener.options.trusted_proxies]
        self._forwarders = Trusted(listener.options.trusted_proxies)
        self._proxied = listener.options.proxy_protocol == "on"
        self._left = self._leave
        self._log = get_logger("listener")
        self._full_logged = False
        self._closed = False

    def start(self) -> None:
        """Begin to accept. Raises ConfigError if somebody else listens there by now."""
        try:
            self._socket.listen(BACKLOG)
        except OSError as error:
            raise ConfigError(f"listen = {self.listener.url}: {error.strerror or error}") from None
        self._reactor.register_client(self._socket.fileno(), self)

    def readable(self) -> None:
        now = self._reactor.now
        shared, own = self._entrance.bucket, self._bucket
        for _ in range(ACCEPTS_PER_TURN):
            wait_s = max(shared.wait_s(now), own.wait_s(now))
            if wait_s:
                self._pause(wait_s)
                return
            try:
                raw, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    # Those who are connected go on; a listener that stays readable would spin meanwhile.
                    self._pause(PAUSE_S)
                    if not self._full_logged:
                        self._full_logged = True
                        self._log.error("listener.out_of_descriptors", error=error.strerror)
                    return
                continue  # the client gave up between SYN and accept
            self._full_logged = False
            shared.take()
            own.take()
            raw.setblocking(False)
            if raw.family == socket.AF_UNIX:
                peer = Peer("", 0, self.listener.name)
            else:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer = Peer(address[0], address[1], self.listener.name)
            self._take(raw, peer)

    # -- from a socket to a stream

    def _take(self, raw: socket.socket, peer: Peer) -> None:
        self.open += 1
        if self._limit and self.open > self._limit:
            self._refuse(raw, peer, "listener_max_connections", "")
        elif self._proxied:
            if not self._trusts(peer.host):
                self._refuse(raw, peer, "untrusted_proxy", "not one of trusted_proxies")
            elif self._entrance.full():
                self._refuse(raw, peer, "max_connections", "")
            else:
                self._entrance.headers += 1
                timeout_s = self.listener.options.proxy_timeout_s
                HeaderReader(raw, peer, self._reactor, timeout_s, self._header_passed, self._header_refused)
        else:
            self._serve(raw, peer)

    def _trusts(self, host: str) -> bool:
        address = ipaddress.ip_address(host.partition("%")[0])
        return any(address in network for network in self._trusted)

    def _forwards(self, host: str) -> bool:
        """Whose the connection is will be in its WebSocket request."""
        return self.listener.web and host in self._forwarders

    def _header_passed(self, raw: socket.socket, peer: Peer) -> None:
        self._entrance.headers -= 1
        self._serve(raw, peer)

    def _header_refused(self, raw: socket.socket, peer: Peer, why: str, reason: str) -> None:
        self._entrance.headers -= 1
        if reason:
            self._refuse(raw, peer, why, reason)
        else:
            self._drop(raw)

    def _serve(self, raw: socket.socket, peer: Peer) -> None:
        bound = self._entrance.output_bound
        certificates = self._certificates
        if self._entrance.banned(peer.host):
            self._refuse(raw, peer, "banned", "")
        elif certificates is None:
            self._accept(TcpStream(raw, self._reactor, bound, peer, self._left), self.listener)
        elif self._entrance.full():
            self._refuse(raw, peer, "max_connections", "")
        elif not (self._forwards(peer.host) or self._entrance.origins.enter(raw.fileno(), peer.host)):
            self._refuse(raw, peer, "max_connections_per_ip", "")
        else:
            TlsStream(
                raw,
                self._reactor,
                bound,
                peer,
                self._left,
                certificates,
                self._entrance.handshakes,
                self.listener.options.handshake_timeout_s,
                self._shaken,
            )

    def _shaken(self, stream: TlsStream) -> None:
        self._accept(stream, self.listener)

    def _refuse(self, raw: socket.socket, peer: Peer, why: str, reason: str) -> None:
        self._entrance.refused(peer, why, reason)
        self._drop(raw)

    def _drop(self, raw: socket.socket) -> None:
        raw.close()
        self._leave()

    def _leave(self) -> None:
        self.open -= 1

    # -- pauses and the end

    def _pause(self, for_s: float) -> None:
        """Let clients wait in the kernel."""
        self._reactor.unregister(self._socket.fileno())
        self._reactor.watch_deadline(self, self._reactor.now + for_s)

    def writable(self) -> None:
        """Never asked for."""

    def check_deadline(self, now: float) -> float:
        """Go on after a pause."""
        if not self._closed:
            self._reactor.register_client(self._socket.fileno(), self)
        return 0.0

    def abort(self) -> None:
        """Accept nobody any more, but keep the address: for the next listener on this socket."""
        self._closed = True
        self._reactor.unregister(self._socket.fileno())

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._closed = True
        if self._socket.fileno() >= 0:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()
