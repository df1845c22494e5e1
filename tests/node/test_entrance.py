"""Who waits at the entrance: sockets that have said nothing yet count for their address on every kind of listener."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from broker.limits.origins import Origins
from broker.metrics import Metrics
from broker.options import read_options
from broker.options.listener import Listener, ListenerOptions
from broker.transport.api import Stream
from broker.transport.certificates import Certificates
from broker.transport.entrance import Entrance
from broker.transport.listener import Acceptor, bind
from broker.transport.reactor import Reactor
from broker.transport.websocket import WebSockets
from tests.kit.certificates import Chain

LIMIT = 2
REQUEST = b"GET /mqtt HTTP/1.1\r\nHost: x\r\n"


class Place:
    """A listener on a reactor; what gets through is kept in `passed`, and counted no more."""

    def __init__(self, listener: Listener, certificates: Certificates | None, nursery: trio.Nursery) -> None:
        self.reactor = Reactor()
        self.metrics = Metrics()
        self.passed: list[Stream] = []
        self.entrance = Entrance(self.reactor, self.metrics, 1 << 20, lambda: len(self.passed), origins=Origins(LIMIT))
        web = WebSockets(self.entrance, nursery.start_soon, self.accept)
        self.taken = bind(listener)
        self.acceptor = Acceptor(
            self.taken, listener, self.entrance, certificates, web.accept if listener.web else self.accept
        )
        self.acceptor.start()
        nursery.start_soon(self.reactor.run)
        self.clients: list[socket.socket] = []

    def accept(self, stream: Stream, listener: Listener) -> None:
        self.passed.append(stream)

    async def come(self, count: int, said: bytes = b"") -> None:
        """So many clients connect."""
        for _ in range(count):
            self.clients.append(socket.create_connection(self.taken.getsockname()))
            self.clients[-1].sendall(said)
        for _ in range(20):
            self.reactor.wake()
            await trio.testing.wait_all_tasks_blocked()

    async def go(self) -> None:
        """All of them leave."""
        for client in self.clients:
            client.close()
        self.clients.clear()
        await self.come(0)

    def refused(self) -> int:
        return self.metrics.rejected["max_connections_per_ip"]


@asynccontextmanager
async def placed(listener: Listener, certificates: Certificates | None) -> AsyncIterator[Place]:
    async with trio.open_nursery() as nursery:
        place = Place(listener, certificates, nursery)
        yield place
        nursery.cancel_scope.cancel()
        place.acceptor.close()
        for client in place.clients:
            client.close()
    place.reactor.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    server = Chain(tmp_path_factory.mktemp("chain")).server()
    return {"certfile": str(server.certfile), "keyfile": str(server.keyfile)}


def listener(scheme: str, options: dict[str, object]) -> Listener:
    path = "/mqtt" if scheme in ("ws", "wss") else ""
    return Listener(scheme, "127.0.0.1", 0, path, read_options(ListenerOptions, options))


@pytest.mark.parametrize("scheme", ["tls", "ws", "wss"])
@pytest.mark.parametrize("proxied", [False, True])
async def test_silent_sockets_of_an_address(certificate: dict[str, object], scheme: str, proxied: bool) -> None:
    options = dict(certificate) if scheme in ("tls", "wss") else {}
    told = listener(scheme, options)
    if proxied:
        told = dataclasses.replace(
            told,
            options=dataclasses.replace(told.options, proxy_protocol="on", trusted_proxies=("127.0.0.1",)),
        )
    async with placed(told, Certificates(told) if options else None) as place:
        if proxied:  # those who owe a header are the proxy's, which may have any number
            await place.come(10)
            assert (place.refused(), place.entrance.headers) == (0, 10)
            await place.go()
        for _ in range(2):
            await place.come(10, b"PROXY TCP4 192.0.2.1 192.0.2.9 1 2\r\n" if proxied else b"")
            assert place.acceptor.open == LIMIT + 1
            if proxied:
                await place.come(1, b"PROXY TCP4 192.0.2.2 192.0.2.9 1 2\r\n")
                assert place.acceptor.open == LIMIT + 2
            await place.go()
            assert place.acceptor.open == 0
        assert place.refused() == 2 * (10 - LIMIT - 1)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_a_proxy_that_forwards_has_many(certificate: dict[str, object], scheme: str) -> None:
    """Whose the sockets are is in the request."""
    options = dict(certificate) if scheme == "wss" else {}
    told = listener(scheme, {**options, "trusted_proxies": ("127.0.0.1",)})
    async with placed(told, Certificates(told) if options else None) as place:
        await place.come(10)
        assert (place.refused(), place.acceptor.open) == (0, 10)


async def test_who_gets_through_is_counted_by_the_next(certificate: dict[str, object]) -> None:
    async with placed(listener("ws", {}), None) as place:
        request = REQUEST + (
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        )
        await place.come(LIMIT + 1, request)
        assert len(place.passed) == LIMIT + 1
        await place.come(LIMIT + 1)
        assert place.refused() == 0


def test_origins() -> None:
    origins = Origins(1)
    assert [origins.enter(each, "192.0.2.1") for each in "abc"] == [True, True, False]
    assert origins.enter("d", "192.0.2.2")
    assert origins.enter("u", "") and origins.enter("v", "")
    origins.leave("a")
    origins.leave("a")
    origins.leave("c")
    assert [origins.enter(each, "192.0.2.1") for each in "ef"] == [True, False]
    origins.limit = 0
    assert origins.enter("g", "192.0.2.1")
    origins.leave("g")
    origins.limit = 1
    assert not origins.enter("g", "192.0.2.1")
