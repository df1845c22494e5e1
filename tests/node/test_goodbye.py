"""Closing while the peer is still sending: it must be able to read why."""

from __future__ import annotations

import socket

import pytest
import trio

from broker.peer import Peer
from broker.transport.reactor import Reactor
from broker.transport.stream import TcpStream


class _Owner:
    """Closes with a last word when the first bytes come."""

    def __init__(self, stream: TcpStream) -> None:
        self.stream = stream
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.stream.write(b"because")
        self.stream.close()

    def resume(self) -> None: ...

    def connection_lost(self, reason: str) -> None:
        self.lost = True

    def peer_gone(self) -> None: ...

    def output_congested(self) -> None: ...

    def output_drained(self) -> None: ...


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    server.setblocking(False)
    return client, server


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


async def test_the_last_word_arrives_although_input_is_left_unread(reactor: Reactor) -> None:
    client, server = _tcp_pair()
    stream = TcpStream(server, reactor, 1024, Peer("peer"))
    owner = _Owner(stream)
    client.sendall(b"x" * 200_000)  # more than one read: the rest is unread when the stream closes
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reactor.run)
        stream.start(owner)
        peer = trio.socket.from_stdlib_socket(client)
        with trio.fail_after(10):
            await peer.send(b"y" * 1000)
            said = b""
            while data := await peer.recv(100):
                said += data
            assert said == b"because"
            peer.close()
            while not stream.closed:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert not owner.lost
    reactor.close()


async def test_a_peer_that_never_closes_is_closed_after_a_while(
    reactor: Reactor, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.transport.reactor.time.monotonic", trio.current_time)
    client, server = _tcp_pair()
    stream = TcpStream(server, reactor, 1024, Peer("peer"))
    stream.start(_Owner(stream))
    with client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reactor.run)
            stream.close()
            await trio.sleep(1)
            states = [stream.closed]
            await trio.sleep(3)
            states.append(stream.closed)
            assert states == [False, True]
            nursery.cancel_scope.cancel()
    reactor.close()
