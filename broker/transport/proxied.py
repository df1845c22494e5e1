"""Reads the PROXY header of an accepted socket, and leaves what follows it in the kernel: for TLS, or for MQTT."""

from __future__ import annotations

import socket
from collections.abc import Callable

from broker.peer import Peer
from broker.transport.proxy_protocol import BODY_LIMIT, HeaderParser, ProxyError
from broker.transport.reactor import Reactor


class HeaderReader:
    """`passed` gets the socket and the peer that the header tells of, `refused` a reason for the metrics and one for
    the log ("": the proxy only had a look). One of them is called, once."""

    def __init__(
        self,
        raw: socket.socket,
        peer: Peer,
        reactor: Reactor,
        timeout_s: float,
        passed: Callable[[socket.socket, Peer], None],
        refused: Callable[[socket.socket, Peer, str, str], None],
    ) -> None:
        self._raw: socket.socket | None = raw
        self._peer = peer
        self._reactor = reactor
        self._passed = passed
        self._refused = refused
        self._parser = HeaderParser()
        reactor.register_client(raw.fileno(), self)
        reactor.watch_deadline(self, reactor.now + timeout_s)

    def readable(self) -> None:
        raw = self._raw
        if raw is None:
            return
        try:
            data = raw.recv(BODY_LIMIT, socket.MSG_PEEK)
            used = self._parser.feed(data)
            if used:
                raw.recv(used)  # no more than the header: who serves the socket next finds the rest
        except BlockingIOError:
            return
        except ProxyError as error:
            self._refuse("proxy_header", str(error))
            return
        except OSError:
            data = b""
        if not data:
            self._refuse("proxy_header", "")
            return
        header = self._parser.header
        if header is not None:
            self._raw = None
            self._reactor.unregister(raw.fileno())
            self._passed(raw, header.applied(self._peer))

    def writable(self) -> None:
        """Never asked for."""

    def check_deadline(self, now: float) -> float:
        """The header had its time."""
        self._refuse("proxy_timeout", "no PROXY header in time")
        return 0.0

    def abort(self) -> None:
        """The node drops everybody."""
        self._refuse("proxy_header", "")

    def _refuse(self, why: str, reason: str) -> None:
        raw = self._raw
        if raw is not None:
            self._raw = None
            self._reactor.unregister(raw.fileno())
            self._refused(raw, self._peer, why, reason)
